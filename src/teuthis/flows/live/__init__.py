"""The squid alive: a local page whose lines move with the counters of running VMs."""

from teuthis.flows.live.page import Page
from teuthis.flows.live.server import address, listen, serve
from teuthis.flows.live.sources import Sources

__all__ = ["Page", "Sources", "address", "listen", "serve"]
