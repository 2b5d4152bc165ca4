"""How often something is written to disk: often enough, and never for much of the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

COST = 20.0  # whatever is written may take one part in so many of the time


class Pace:
    """How often something is written: so that it costs little of the time.

    Args:
      at_least: seconds between the end of one and the start of the next.
      seconds: these, and not what its cost says; None lets the cost say.
    """

    def __init__(self, at_least: float, seconds: float | None = None) -> None:
        self._at_least, self._seconds = at_least, seconds
        self._last_end = time.perf_counter()
        self._last_cost = 0.0
        self.total = 0.0

    def start(self) -> None:
        """Counts from now on."""
        self._last_end = time.perf_counter()

    def is_due(self) -> bool:
        """Whether it is time."""
        wanted = self._seconds
        if wanted is None:
            wanted = max(self._at_least, COST * self._last_cost)
        return time.perf_counter() - self._last_end >= wanted

    def comes_within(self, seconds: float) -> bool:
        """Whether so many seconds are enough for the first one."""
        return seconds >= (self._at_least if self._seconds is None else self._seconds)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measures what is written within."""
        start = time.perf_counter()
        yield
        self._last_end = time.perf_counter()
        self._last_cost = self._last_end - start
        self.total += self._last_cost
