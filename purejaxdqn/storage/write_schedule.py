"""Decides how often something is written to disk: often, and never for much of the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

_COST = 20.0  # writing may take one part in so many of the time


class WriteSchedule:
    """Says when a file is due, from how long it took to write the last time.

    Args:
      at_least: seconds between the end of one write and the start of the next.
      seconds: an interval in place of the one that the cost of writing asks for.

    Attributes:
      total: seconds that all writes took.
    """

    def __init__(self, at_least: float, seconds: float | None = None) -> None:
        self._at_least, self._seconds = at_least, seconds
        self._last_end = time.perf_counter()
        self._last_cost = 0.0
        self.total = 0.0

    def start(self) -> None:
        """Counts the interval from now on."""
        self._last_end = time.perf_counter()

    def is_due(self) -> bool:
        """Tells whether it is time to write."""
        wanted = self._seconds
        if wanted is None:
            wanted = max(self._at_least, _COST * self._last_cost)
        return time.perf_counter() - self._last_end >= wanted

    def comes_within(self, seconds: float) -> bool:
        """Tells whether the first write comes within so many seconds."""
        return seconds >= (self._at_least if self._seconds is None else self._seconds)

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Measures the block, which is one write."""
        start = time.perf_counter()
        yield
        self._last_end = time.perf_counter()
        self._last_cost = self._last_end - start
        self.total += self._last_cost
