"""Makes the consoles that all commands print to, so that piped tables are never cut."""

import os
from typing import Any

from rich.console import Console


def make_console(**options: Any) -> Console:
    """Makes a console, with rich's own options, that breaks lines for a terminal alone.

    rich takes a pipe or a file for a terminal of 80 columns. Here tables are then as wide as they
    need to be, unless the environment variable `COLUMNS` says how wide.
    """
    console = Console(**options)
    if not (console.file.isatty() or console.is_jupyter or os.environ.get("COLUMNS")):
        console.width = 10_000  # columns: no line is broken
    return console
