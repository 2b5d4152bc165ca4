"""Ends of commands: the second signal, a reader that has left, streams that are closed."""

import re
import signal
import subprocess
import sys

import pytest

START = """
import hashlib, os, signal, sys
# What runs in the background, or behind nohup, inherits that these are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from purejaxdqn.cli.exits import exit_with, saying_how_to_go_on
from purejaxdqn.runtime.interrupts import defer_signals, finish_first

def wait():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # an hour outside of Python
"""


def start(code, environment, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([sys.executable, "-c", START + code], env=environment, **pipes)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_second_signal_ends_at_once_and_says_how_to_go_on(number, exit_code, fresh_environment):
    """Also where no handler of Python's can run, and while a file is written."""
    code = (
        "def act():\n"
        "    with saying_how_to_go_on('--resume goes on'), defer_signals():\n        wait()\n"
        "exit_with(act)"
    )
    process = start(code, fresh_environment)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):  # the first waits
        process.wait(0.5)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == exit_code
    assert err == "\nended at once: what was not written yet is lost; --resume goes on\n"


def test_the_first_signal_is_told_and_heard_after_what_is_under_way(fresh_environment):
    code = (
        "def act():\n"
        "    with finish_first():\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        print('finished', flush=True)\n"
        "    print('not reached')\n"
        "exit_with(act)"
    )
    process = start(code, fresh_environment)
    out, err = process.communicate()
    assert (process.returncode, out) == (75, "finished\n")
    assert re.fullmatch("stopping after what is under way; a second .*\nstopped by SIGTERM\n", err)


@pytest.mark.parametrize(
    "signals",
    ["signal.SIGTERM,", "signal.SIGTERM, signal.SIGHUP"],
    ids=["heard again after a file", "the end of a session"],
)
def test_what_asks_once_is_not_taken_for_two(signals, fresh_environment):
    code = (
        "def act():\n"
        "    with finish_first():\n"
        "        with defer_signals():\n"
        f"            for number in ({signals}):\n"
        "                signal.raise_signal(number)\n"
        "        print('finished', flush=True)\n"
        "exit_with(act)"
    )
    process = start(code, fresh_environment)
    out, err = process.communicate()
    assert (process.returncode, out) == (75, "finished\n"), err


def test_a_sweep_goes_on_when_nobody_reads_it_any_more(fresh_environment, tmp_path):
    """As behind `| head`: what it writes to files is kept; an answer is not for anybody."""
    code = (
        "from purejaxdqn.runtime.console import make_console\n"
        "def act():\n"
        "    for stderr in (False, True):\n"
        "        console = make_console(stderr=stderr)\n"
        "        for _ in range(3):\n            console.print('x' * 1_000)\n"
        f"    open({str(tmp_path / 'kept')!r}, 'w').close()\n"
        "exit_with(act)"
    )
    with start(code, fresh_environment, bufsize=0, text=False) as process:
        process.stdout.close()
        process.stderr.close()
        assert process.wait() == 0
    assert (tmp_path / "kept").exists()
    with start("exit_with(lambda: print('x' * 100_000))", fresh_environment) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_no_file_takes_the_place_of_a_closed_stream(fresh_environment, tmp_path):
    code = (
        "os.close(0), os.close(1)\n"
        f"exit_with(lambda: open({str(tmp_path / 'file')!r}, 'w').fileno() > 2 and 5)"
    )
    with start(code, fresh_environment) as process:
        assert (process.wait(), process.stderr.read()) == (5, "")


@pytest.mark.parametrize("words", [("play",), ("rerun",), ("agents",), ("check",), ("restore",)])
def test_a_word_of_thousands_of_letters_fills_no_screen(words, call_command):
    code, _, err = call_command(*words, "x" * 5000)
    assert code in (1, 2)
    assert "x" * 20 in err
    assert len(err) < 700
    assert len(err.splitlines()) == 1
