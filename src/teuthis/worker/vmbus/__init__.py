"""The host side of VMBus: messages, buffers (GPADLs), rings and the channel state machine."""
