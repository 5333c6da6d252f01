"""The squid: the register of flows as a drawing."""

from teuthis.flows.squid.drawing import draw

__all__ = ["draw"]
