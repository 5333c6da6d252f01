"""The SCSI controller: storvsp (the channel's protocol), SCSI disks, and the files behind them."""
