"""Ctrl-C and SIGTERM: heard at once, or between chunks while something would be lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
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


class Stop:
    """What the signals asked for so far.

    Attributes:
      number: of the first signal, None before there was one.
      waits: whether a signal is only noted, to be heard with `check`. A second one never waits.
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
def listen() -> Iterator[Stop]:
    """Listens for SIGINT and SIGTERM; in vain outside the main thread, where Python hears none.

    A signal that the process was started to ignore, as in a shell's background, stays ignored.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    hook = sys.unraisablehook

    def send_again(number: int) -> None:
        if signal.getsignal(number) == stop.hear:
            os.kill(os.getpid(), number)

    def raise_again(unraisable: Any) -> None:
        # Python drops what is raised in a callback of its garbage collector, such as JAX has one,
        # which is where signals are often heard after a long compilation.
        if isinstance(unraisable.exc_value, Stopped) and stop.number is not None:
            timer = threading.Timer(_AGAIN_SECONDS, send_again, [stop.number])
            timer.daemon = True
            timer.start()
        else:
            hook(unraisable)

    try:
        sys.unraisablehook = raise_again
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop.hear)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Has all signals wait for the end of what is within, a second one too.

    For code that may wait for itself forever once it is interrupted, such as Orbax's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    came: list[int] = []
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)
