"""Reports of checks: a table with a row a check, what was measured, and what is wrong."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

from rich.table import Table
from rich.text import Text

from purejaxdqn.runtime.console import make_console
from purejaxdqn.types import ConfigError

P = ParamSpec("P")
_VERDICTS = {True: ("pass", "green"), False: ("FAIL", "bold red"), None: ("not judged", "dim")}


class Check(NamedTuple):
    """One row of a report."""

    name: str  # what was checked
    passed: bool | None  # None where it was not judged
    measured: str = ""
    message: str = ""  # what is wrong and the remedy, or why it was not judged; "" where it holds


class CheckError(AssertionError):
    """Says what is wrong with a component; `report` has all rows."""

    def __init__(self, report: Report) -> None:
        self.report = report
        lines = [f"{check.name}: {check.message}" for check in report.failures]
        super().__init__("\n".join([f"{report.subject} fails {len(lines)} checks", *lines]))


class Report(NamedTuple):
    """All rows of one component, which `subject` names."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Tells whether no row failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """Lists the rows that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def verdict(self) -> str:
        """Says in words whether it passes, and which rows were not judged."""
        num, not_judged = len(self.failures), [x.name for x in self.checks if x.passed is None]
        text = f"fails {num} check(s)" if num else "passes"
        return f"{text}; not judged: {', '.join(not_judged)}" if not_judged else text

    def print(self) -> None:
        """Prints the table, then the message of each row that has one."""
        table = Table("check", "", "measured", title=Text(self.subject), title_justify="left")
        for check in self.checks:
            table.add_row(Text(check.name), Text(*_VERDICTS[check.passed]), Text(check.measured))
        console = make_console()
        console.print(table)
        for check in self.checks:
            if check.message:
                console.print(Text(f"{check.name}: ", _VERDICTS[check.passed][1]) + check.message)
        console.print(Text(f"{self.subject} {self.verdict}"))

    def raise_if_failed(self) -> Report:
        """Returns itself, or raises a `CheckError` if a row failed."""
        if not self.passed:
            raise CheckError(self)
        return self


def print_and_raise(make_report: Callable[P, Report]) -> Callable[P, Report]:
    """Decorates a function that returns a report: it also prints it, and raises if a row failed."""

    @functools.wraps(make_report)
    def check(*args: P.args, **kwargs: P.kwargs) -> Report:
        report = make_report(*args, **kwargs)
        report.print()
        return report.raise_if_failed()

    return check


def unprinted(check: Callable[P, Report]) -> Callable[P, Report]:
    """Returns the function that `print_and_raise` decorated."""
    return inspect.unwrap(check)


def attempt(name: str, look: Callable[..., str | None], *args: Any, why_not: str = "") -> Check:
    """Runs a check, which raises what is wrong, or returns what it measured: None for `why_not`."""
    try:
        measured = look(*args)
        return Check(name, None, "", why_not) if measured is None else Check(name, True, measured)
    except (AssertionError, ConfigError) as error:
        measured, message = error.args if len(error.args) == 2 else ("", str(error))
    except Exception as error:
        measured, message = type(error).__name__, f"raises {type(error).__name__}: {error}"
    return Check(name, False, measured, message)


def expect(condition: object, measured: str, message: str) -> str:
    """Returns what was measured, or fails with it and a message unless a condition holds."""
    if not condition:
        raise AssertionError(measured, message)
    return measured


def find_true(texts: dict[str, Any]) -> list[str]:
    """Lists the texts of `{text: whether it is true}` that are true, but no empty one."""
    return [text for text, is_true in texts.items() if text and is_true]
