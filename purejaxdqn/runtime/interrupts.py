"""Ctrl-C and SIGTERM: heard at once, or later while something would be lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_TERMINATED = 75  # EX_TEMPFAIL: try again, which a cluster's scheduler does
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 0.01


class Stopped(KeyboardInterrupt):
    """A signal asked for an end; `exit_code` is what the process should end with."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = EXIT_TERMINATED if number == signal.SIGTERM else EXIT_INTERRUPTED


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended something that was under way.

    Attributes:
      result: what was finished.
      exit_code: what the process should end with: 130 after Ctrl-C, 75 after SIGTERM.
    """

    def __init__(self, message: str, result: Any, exit_code: int) -> None:
        super().__init__(message)
        self.result = result
        self.exit_code = exit_code


class Stop:
    """What the signals asked for so far.

    Attributes:
      number: of the first signal, None before there was one.
      waits: whether a signal is only noted, to be heard with `check`. A second one does not wait,
        but for a file that is being written.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.waits = False

    def check(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def hear(self, number: int, _: FrameType | None) -> None:
        """The signals' handler."""
        first = self.number is None
        self.number = number if self.number is None else self.number
        if not (self.waits and first):
            raise Stopped(self.number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Has signals heard only after what is within.

    Libraries that write files, such as xarray and Orbax, hold locks, which an exception out of
    nowhere may leave locked: then they wait for themselves for ever.
    """
    heard: list[int] = []
    try:
        with _handled(lambda number, _: heard.append(number)):
            yield
    finally:
        for number in heard:
            signal.raise_signal(number)


@contextlib.contextmanager
def listen() -> Iterator[Stop]:
    """Listens for SIGINT and SIGTERM; in vain outside the main thread, where Python hears none.

    A signal that the process was started to ignore, as in a shell's background, stays ignored.
    """
    stop = Stop()
    with _handled(stop.hear), _said_again(stop):
        yield stop


@contextlib.contextmanager
def _handled(hear: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, hear)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _said_again(stop: Stop) -> Iterator[None]:
    """Has signals heard once more where Python drops what is raised.

    That is in callbacks of its garbage collector: JAX has one, and signals are often heard there
    after a long compilation.
    """
    hook = sys.unraisablehook

    def send(number: int) -> None:
        if signal.getsignal(number) == stop.hear:
            os.kill(os.getpid(), number)

    def say_again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped) and stop.number is not None:
            timer = threading.Timer(_AGAIN_SECONDS, send, [stop.number])
            timer.daemon = True
            timer.start()
        else:
            hook(unraisable)

    try:
        sys.unraisablehook = say_again
        yield
    finally:
        sys.unraisablehook = hook
