"""The connection to the guest agent; every byte from it is hostile."""
