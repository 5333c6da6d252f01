"""The register of flows (`flows.toml`) and the counters of a running VM."""

from teuthis.flows.counters import Count, Counters, by_flow, counters_size, total
from teuthis.flows.register import FLOWS, RECEIVERS, REGISTER_PATH, Flow, Receiver

__all__ = [
    "FLOWS",
    "RECEIVERS",
    "REGISTER_PATH",
    "Count",
    "Counters",
    "Flow",
    "Receiver",
    "by_flow",
    "counters_size",
    "total",
]
