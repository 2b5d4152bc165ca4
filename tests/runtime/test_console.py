"""Tests how wide the lines are that commands print."""

import io
import re
import sys

import pytest
from rich.table import Table

from purejaxdqn.runtime.console import make_console, show_controls, show_waiting


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def print_wide(stream, monkeypatch, stderr=False):
    """Prints a table and a line of 150 letters each; returns the lines without their colours."""
    monkeypatch.setattr(sys, "stderr" if stderr else "stdout", stream)
    console = make_console(stderr=stderr)
    table = Table("setting")
    table.add_row("word " * 30)
    console.print(table)
    console.print("word " * 30)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()


@pytest.mark.parametrize("stderr", [False, True])
@pytest.mark.parametrize("force_color", ["", "1"])
def test_what_is_piped_is_not_cut(monkeypatch, stderr, force_color):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("FORCE_COLOR", force_color)
    lines = print_wide(io.StringIO(), monkeypatch, stderr)
    assert len(lines) == 6  # rule, heading, rule, row, rule, line
    assert sum(("word " * 30).strip() in line for line in lines) == 2
    assert max(map(len, lines)) < 200  # nothing is padded to a width that no table needs


def test_a_terminal_and_the_environment_say_how_wide_lines_are(monkeypatch):
    for columns, stream in (("60", Terminal()), ("70", io.StringIO())):
        monkeypatch.setenv("COLUMNS", columns)
        lines = print_wide(stream, monkeypatch)
        assert int(columns) - 5 <= max(map(len, lines)) <= int(columns)


def test_a_terminal_is_as_wide_as_it_says(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert max(map(len, print_wide(Terminal(), monkeypatch))) <= 150


STEERING = "\x1b[31m \x9b2J \x1b]8;;http://there\x07 \u202egnp \r \udcff"


def test_texts_that_would_steer_a_terminal_are_shown_as_they_are(capsys):
    table = Table(f"[bold]a {STEERING}", title="[link=http://there]b")
    table.add_row(f"[red]c[/red] :smile: {STEERING}")
    for console in (make_console(), make_console(stderr=True)):
        console.print(table)
        console.print(f"[/no] d {STEERING}\nnext line")
    for text in capsys.readouterr():
        assert text.replace("\n", "").isprintable()
        for shown in ("[bold]a", "[link=http://there]b", "[red]c[/red] :smile:", "[/no] d"):
            assert shown in text
        assert text.count(show_controls(STEERING)) == 3
        assert "\nnext line" in text
    assert show_controls(STEERING).startswith(r"\x1b[31m \x9b2J \x1b]8")


@pytest.mark.parametrize("force_color", [None, "1"])
def test_a_line_that_moves_is_for_terminals_alone(monkeypatch, force_color):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if force_color is not None:  # for which rich takes any stream for a terminal
        monkeypatch.setenv("FORCE_COLOR", force_color)
    for stream, is_shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with show_waiting("importing"):
            pass
        assert ("importing" in stream.getvalue()) == is_shown
        assert is_shown or stream.getvalue() == ""
