"""Writes files so that a kill or a full disk leaves the one before intact; says when one is due."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from purejaxdqn.runtime.interrupts import defer_signals

TEMPORARY = ".writing-"  # begins the name of what is not finished
_COST = 100.0  # writing may take one part in so many of the time


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Replaces a file, or makes it, once the block has written all of it; signals wait for that.

    The block is given a path beside the file, with the same suffix. Where it cannot be written, an
    `OSError` names the file and the reason.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.stem}.{os.getpid()}{path.suffix}")
    with defer_signals():
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # the latter is what netCDF makes of a full disk
            reason = _find_failure(path.parent) or getattr(error, "strerror", None) or error
            raise OSError(f"{path} cannot be written: {reason}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Makes a file, or a rename in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _find_failure(folder: Path) -> str | None:
    """Finds the system's message by a probe: netCDF calls a full disk a lack of permission."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
    except OSError as error:
        return error.strerror
    return None


class WriteSchedule:
    """Says when a file is due, from how long it took to write the last time, `total` for all times.

    Between two writes lie `at_least` so many seconds, or always `seconds` if they are given.
    """

    def __init__(self, at_least: float, seconds: float | None = None) -> None:
        self._at_least, self._seconds = at_least, seconds
        self._last_cost = self.total = 0.0
        self.start()

    def start(self) -> None:
        """Counts the interval from now on."""
        self._last_end = time.perf_counter()

    def is_due(self) -> bool:
        """Tells whether it is time to write."""
        interval = self._seconds
        if interval is None:
            interval = max(self._at_least, _COST * self._last_cost)
        return time.perf_counter() - self._last_end >= interval

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Measures the block, which is one write."""
        begin = time.perf_counter()
        yield
        self.start()
        self._last_cost = self._last_end - begin
        self.total += self._last_cost
