"""Devices on VMBus channels."""
