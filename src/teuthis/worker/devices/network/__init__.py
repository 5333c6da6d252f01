"""The synthetic network adapter: NVSP on VMBus (`nvsp`), RNDIS inside it (`rndis`), the device.

`port` is the other side: the frame socket to this VM's switch process, which enforces what a VM
may send. No offload is offered: a frame that leaves here is complete, and nothing in it is parsed.
"""
