"""What virtual machines boot: kernels, initrds and root disks; how they are made and kept."""
