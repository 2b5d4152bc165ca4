"""Makes the consoles that all commands print to, so that piped tables are never cut."""

import os
from typing import IO, Any

from rich.console import Console


class _Console(Console):
    """A console whose reader may leave: a sweep goes on behind `| head`, and is kept."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard(self.file)


def discard(stream: IO[str]) -> None:
    """Sends what is still written to a stream nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def make_console(**options: Any) -> Console:
    """Makes a console, with rich's own options, that breaks lines for a terminal alone.

    rich takes a pipe or a file for a terminal of 80 columns. Here tables are then as wide as they
    need to be, unless the environment variable `COLUMNS` says how wide.
    """
    console = _Console(**options)
    if not (console.file.isatty() or console.is_jupyter or os.environ.get("COLUMNS")):
        console.width = 10_000  # columns: no line is broken
    return console
