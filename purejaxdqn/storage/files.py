"""Writes files so that a kill or a full disk leaves the file before them intact."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from purejaxdqn.runtime.interrupts import defer_signals

_PROBE_BYTES = 2**20  # to find out why a file cannot be written


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Replaces a file, or makes it, once the block has written all of it; signals wait for that.

    Args:
      path: the file.

    Yields:
      The path to write to, beside the file and with the same suffix.

    Raises:
      OSError: if it cannot be written; the message names the file and the reason.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with defer_signals():
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # the latter is what netCDF makes of a full disk
            reason = explain_write_failure(path.parent) or getattr(error, "strerror", None) or error
            raise OSError(f"{path} cannot be written: {reason}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def find_half_written(path: Path) -> Iterator[Path]:
    """Finds the temporary files that killed processes have left beside a file."""
    return path.parent.glob(f".{path.stem}.*{path.suffix}")


def explain_write_failure(folder: Path) -> str | None:
    """Writes a probe into a folder, and returns the system's error message; None without an error.

    Libraries hide it: netCDF calls a full disk a lack of permission.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.strerror
    return None
