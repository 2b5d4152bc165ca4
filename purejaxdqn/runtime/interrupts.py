"""Decides what happens on Ctrl-C, SIGTERM and SIGHUP: an end at once, or at a safe moment."""

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_TERMINATED = 75  # EX_TEMPFAIL: try again, which a cluster's scheduler does
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTICE = "stopping after what is under way; a second Ctrl-C or signal ends it at once"
_resent: list[int] = []  # signals that this process has sent to itself, which ask for nothing new


class Stopped(KeyboardInterrupt):
    """A signal asked for an end; `exit_code` is what the process should end with."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED


class Interrupted(KeyboardInterrupt):
    """A signal ended what was under way; `result` is what was finished, `exit_code` is as above."""

    def __init__(self, message: str, result: Any, exit_code: int) -> None:
        super().__init__(message)
        self.result, self.exit_code = result, exit_code


class StopRequest:
    """Remembers whether a signal has asked for an end.

    While `is_deferred`, the first signal is only noted, until `raise_if_requested` is called, as
    between two chunks. A second signal is not deferred, except while a file is written; within
    `end_at_second_signal` it ends the process even then.
    """

    number: int | None = None  # the first signal
    is_deferred = False

    def raise_if_requested(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def handle(self, number: int, _: FrameType | None) -> None:
        """Notes a signal, and raises `Stopped` unless that is deferred."""
        if number == signal.SIGHUP:
            _leave_terminal()
        if self.number is None:
            self.number = number
            if self.is_deferred:
                with contextlib.suppress(RuntimeError, OSError, AttributeError):  # amid a print
                    print(_NOTICE, file=sys.stderr, flush=True)
                return
        elif not _insists(self.number, number):
            return
        raise Stopped(self.number)


def _insists(first: int, number: int) -> bool:
    """Tells whether a later signal asks for more: a session that ends sends two different ones."""
    return number == first or signal.SIGINT in (first, number)


def _leave_terminal() -> None:
    """Sends what is still printed nowhere: a terminal that was closed fails each write to it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # one that is closed
            if stat.S_ISCHR(os.fstat(stream).st_mode):  # no file, and no pipe
                os.dup2(nowhere, stream)
    os.close(nowhere)


@contextlib.contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Handles SIGINT, SIGTERM and SIGHUP within the block, in the main thread, which gets them.

    A signal that the process was started to ignore, as in a shell's background, stays ignored.
    """
    request, hook = StopRequest(), sys.unraisablehook

    def send(number: int) -> None:
        if signal.getsignal(number) == request.handle:
            _resent.append(number)
            os.kill(os.getpid(), number)

    def resend(unraisable: Any) -> None:
        # Python drops exceptions in callbacks of its garbage collector. JAX has such a callback,
        # and signals often arrive in it after a long compilation.
        if isinstance(unraisable.exc_value, Stopped) and request.number is not None:
            timer = threading.Timer(0.01, send, [request.number])
            timer.daemon = True
            timer.start()
        else:
            hook(unraisable)

    try:
        sys.unraisablehook = resend
        with _install_handler(request.handle):
            yield request
    except SystemError as error:
        # Of code in C that cannot pass on what is raised in it; tracing calls such code often.
        if isinstance(error.__cause__, Stopped):
            raise error.__cause__ from None
        raise
    finally:
        sys.unraisablehook = hook


@contextlib.contextmanager
def finish_first() -> Iterator[None]:
    """Delivers the first signal after the block, and says so; a second one ends the block."""
    with catch_signals() as request:
        request.is_deferred = True
        yield
    request.raise_if_requested()


@contextlib.contextmanager
def end_at_second_signal(last_words: Callable[[], str]) -> Iterator[None]:
    """Ends the process at the second signal within the block, at once, whatever it is doing.

    The exit code is the shell's: 128 and the signal's number. `last_words` go to standard error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read_end, write_end = os.pipe()

    def watch() -> None:
        # Python's handlers wait for the main thread, which may be in a library for minutes.
        first = None
        with open(read_end, "rb", buffering=0) as signals:
            while byte := signals.read(1):
                if (number := byte[0]) not in _SIGNALS:
                    continue
                if number in _resent:
                    _resent.remove(number)
                elif first is None:
                    first = number
                elif _insists(first, number):
                    with contextlib.suppress(OSError):  # the terminal may be gone
                        os.write(2, f"\n{last_words()}\n".encode())
                    os._exit(128 + number)

    _resent.clear()
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)  # which ends the thread


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Delivers signals after the block: amid it, libraries that write files may hold locks."""
    received: list[int] = []
    try:
        with _install_handler(lambda number, _: received.append(number)):
            yield
    finally:
        for number in received:
            handler = signal.getsignal(number)
            if callable(handler):
                handler(number, None)
            else:  # the system's own
                signal.raise_signal(number)


@contextlib.contextmanager
def keep_handlers() -> Iterator[None]:
    """Lets a library put no handlers of its own in place of those that are installed."""
    install, found = signal.signal, lambda number, handler: signal.getsignal(number)
    try:
        signal.signal = found  # type: ignore[assignment]
        yield
    finally:
        signal.signal = install


@contextlib.contextmanager
def _install_handler(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS if is_main}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
