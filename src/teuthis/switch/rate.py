"""Token buckets: so much a second, with a small reserve for bursts."""


class Bucket:
    """Refills by time; whoever spends more than there is goes into debt and waits."""

    def __init__(self, rate: float, reserve: float, now: float) -> None:
        """`rate`: units a second; `reserve`: units that an idle bucket holds."""
        self._rate = rate
        self._reserve = reserve
        self._level = reserve
        self._at = now

    def wait(self, now: float) -> float:
        """Seconds until something may be spent again; 0: now."""
        self._level = min(self._reserve, self._level + (now - self._at) * self._rate)
        self._at = now
        return 0.0 if self._level > 0 else -self._level / self._rate + 0.001

    def spend(self, units: float) -> None:
        """Takes units out, into debt if need be."""
        self._level -= units
