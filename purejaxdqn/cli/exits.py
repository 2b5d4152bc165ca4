"""Decides how a command ends: one line without a traceback, and an exit code."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import tyro

from purejaxdqn.runtime.interrupts import EXIT_INTERRUPTED, EXIT_TERMINATED, catch_signals
from purejaxdqn.types import ConfigError

Args = TypeVar("Args")

EXIT_REFUSED = 2
EXIT_FAILED = 1
_format_warning = warnings.formatwarning


def exit_with(action: Callable[[], int | None]) -> NoReturn:
    """Runs an action, and exits.

    Exit codes: what the action returns (None is 0); 2 for settings that are refused; 1 for a file
    that cannot be written; 130 after Ctrl-C; 75 after SIGTERM, which a cluster sends before it
    takes a machine away, and after which a sweep can go on.
    """
    warnings.formatwarning = _format_in_a_line
    try:
        with catch_signals():
            exit_code = action()
        sys.exit(exit_code or 0)
    except ConfigError as error:
        print(f"error: {_join_lines(error)}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    except OSError as error:
        remedy = "".join(f"; once it can be, {note}" for note in _notes(error))
        print(f"error: {_join_lines(error)}{remedy}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt as interrupt:
        exit_code = getattr(interrupt, "exit_code", EXIT_INTERRUPTED)
        cause = "stopped by SIGTERM" if exit_code == EXIT_TERMINATED else "interrupted"
        remedy = "".join(f"; {note}" for note in _notes(interrupt))
        print(f"{cause}{remedy}" if remedy else str(interrupt) or cause, file=sys.stderr)
        sys.exit(exit_code)


def run_script(main: Callable[[Args], int | None], args_type: type[Args]) -> NoReturn:
    """Parses the command line of a script into a dataclass, runs its `main`, and exits."""
    exit_with(
        lambda: main(
            tyro.cli(args_type, description=args_type.__doc__, config=(tyro.conf.OmitArgPrefixes,))
        )
    )


@contextlib.contextmanager
def saying_how_to_go_on(how: str) -> Iterator[None]:
    """Adds a note on how to go on to an `OSError` or interrupt of the block."""
    try:
        yield
    except (OSError, KeyboardInterrupt) as error:
        if how:
            error.add_note(how)
        raise


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


def _join_lines(error: Exception) -> str:
    return "; ".join(str(error).splitlines())


def _format_in_a_line(
    message: Warning | str, category: type[Warning], *where: Any, **more: Any
) -> str:
    """Formats a warning to the user without its place in the code, which is no news to users."""
    if category is UserWarning:
        return f"warning: {'; '.join(str(message).splitlines())}\n"
    return _format_warning(message, category, *where, **more)
