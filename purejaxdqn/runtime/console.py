"""Makes the consoles that all commands print to, so that piped tables are never cut."""

import contextlib
import os
from collections.abc import Iterator
from typing import IO, Any

from rich.console import Console
from rich.text import Text


class _Console(Console):
    """Shows texts as they are; a sweep goes on, and is kept, where its reader leaves (`| head`)."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard(self.file)

    def render_str(self, text: str, **options: Any) -> Text:  # of what is printed, and of tables
        return super().render_str(show_controls(text, keep="\n"), **options)


def discard(stream: IO[str]) -> None:
    """Sends what is still written to a stream nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def make_console(**options: Any) -> Console:
    """Makes a console, with rich's own options, that breaks lines for a terminal alone.

    rich takes a pipe or a file for a terminal of 80 columns. Here tables are then as wide as they
    need to be, unless the environment variable `COLUMNS` says how wide. Texts are shown as they
    are: no markup is read in them, and `show_controls` is applied.
    """
    console = _Console(**{"markup": False, "emoji": False, **options})
    if not (console.file.isatty() or console.is_jupyter or os.environ.get("COLUMNS")):
        console.width = 10_000  # columns: no line is broken
    return console


@contextlib.contextmanager
def show_waiting(text: str, console: Console | None = None) -> Iterator[None]:
    """Shows a line that moves on standard error within the block, on a terminal alone."""
    console = console or make_console(stderr=True)
    with console.status(text) if console.file.isatty() else contextlib.nullcontext():
        yield


def show_controls(text: str, keep: str = "") -> str:
    """Escapes what would steer a terminal or turn the order of letters, as `repr` does.

    A text may be of a file that somebody else has made. The characters to `keep` stay.
    """
    return "".join(
        x if x.isprintable() or x in keep else x.encode("unicode_escape").decode() for x in text
    )
