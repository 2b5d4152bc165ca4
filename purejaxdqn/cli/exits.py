"""Decides how a command ends: one line without a traceback, and an exit code."""

import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import tyro

from purejaxdqn.checks import ConfigError
from purejaxdqn.cli.flags import check_words
from purejaxdqn.runtime.console import discard, show_controls
from purejaxdqn.runtime.interrupts import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    catch_signals,
    end_at_second_signal,
)

Args = TypeVar("Args")

EXIT_REFUSED = 2
EXIT_FAILED = 1
EXIT_UNREAD = 128 + signal.SIGPIPE
_remedies: list[str] = []  # how to go on from where the command is; none or one
_format_warning = warnings.formatwarning


def exit_with(action: Callable[[], int | None]) -> NoReturn:
    """Runs an action, and exits.

    Exit codes: what the action returns (None is 0); 2 for settings that are refused; 1 for a file
    that cannot be written; 130 after Ctrl-C; 75 after SIGTERM, which a cluster sends before it
    takes a machine away, and after which a sweep can go on. A second signal ends the process at
    once with the shell's codes: 130, 143 or 129.
    """
    warnings.formatwarning = _format_in_a_line
    _remedies.clear()
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:  # it is closed: else the next file that is opened takes its place
            os.open(os.devnull, os.O_RDWR)
    try:
        with catch_signals(), end_at_second_signal(_say_last_words):
            exit_code = action()
            if sys.stdout is not None:
                sys.stdout.flush()
        sys.exit(exit_code)
    except BrokenPipeError:  # whoever read the answer has enough of it, as behind `| head`
        discard(sys.stdout)
        sys.exit(EXIT_UNREAD)
    except ConfigError as error:
        line, exit_code = f"error: {error}", EXIT_REFUSED
    except OSError as error:
        remedy = "".join(f"; once it can be, {note}" for note in getattr(error, "__notes__", ()))
        line, exit_code = f"error: {error}{remedy}", EXIT_FAILED
    except KeyboardInterrupt as interrupt:
        exit_code = getattr(interrupt, "exit_code", EXIT_INTERRUPTED)
        cause = "stopped by SIGTERM" if exit_code == EXIT_TERMINATED else "interrupted"
        notes = getattr(interrupt, "__notes__", ())
        line = "; ".join([cause, *notes]) if notes else str(interrupt) or cause
    print(_join_lines(line), file=sys.stderr)
    sys.exit(exit_code)


def run_script(main: Callable[[Args], int | None], args_type: type[Args]) -> NoReturn:
    """Parses the command line of a script into a dataclass, runs its `main`, and exits."""
    exit_with(lambda: main(_read_args(args_type)))


def _read_args(args_type: Any) -> Any:
    """Parses the words of the process; what tyro refuses in a box of lines is one line here."""
    check_words(sys.argv[1:], [field.name for field in dataclasses.fields(args_type)])
    text, config, said = args_type.__doc__, (tyro.conf.OmitArgPrefixes,), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(args_type, description=text, config=config)
    except SystemExit:
        if refusal := " ".join(re.sub("[\u2500-\u257f]|--{2,}", " ", said.getvalue()).split()):
            raise ConfigError(refusal) from None
        raise  # of --help


@contextlib.contextmanager
def saying_how_to_go_on(how: str) -> Iterator[None]:
    """Adds a note on how to go on to an `OSError` or interrupt of the block."""
    _remedies[:] = [how]
    try:
        with catch_signals():
            yield
    except (OSError, KeyboardInterrupt) as error:
        error.add_note(how)
        raise
    else:  # after an interrupt it is still to be said at a second one
        _remedies.clear()


def _say_last_words() -> str:
    return "; ".join(["ended at once: what was not written yet is lost", *_remedies])


def _join_lines(message: object) -> str:
    line = show_controls("; ".join(str(message).splitlines()))
    return re.sub(r"(\S{100})\S{400,}", r"\1...", line)  # what is no word fills no screen


def _format_in_a_line(message: Any, category: type[Warning], *where: Any, **more: Any) -> str:
    """Formats a warning to the user without its place in the code, which is no news to users."""
    if category is UserWarning:
        return f"warning: {_join_lines(message)}\n"
    return _format_warning(message, category, *where, **more)
