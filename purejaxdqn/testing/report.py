"""What a check says: a table with a row a check, its figure, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from purejaxdqn.runtime.console import make_console


class Check(NamedTuple):
    """One row.

    Attributes:
      name: what was looked at.
      passed: whether it holds; None where it was not judged.
      figure: what was measured.
      message: what is wrong and the remedy, or why it was not judged; empty where it holds.
    """

    name: str
    passed: bool | None
    figure: str = ""
    message: str = ""


class CheckError(AssertionError):
    """What was checked is not sound; `report` says why."""

    def __init__(self, report: Report) -> None:
        self.report = report
        lines = [f"{check.name}: {check.message}" for check in report.failures]
        super().__init__(f"{report.subject} fails {len(lines)} checks\n" + "\n".join(lines))


class Report(NamedTuple):
    """All rows of one component.

    Attributes:
      subject: what was checked.
      checks: the rows.
    """

    subject: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The rows that found something."""
        return tuple(check for check in self.checks if check.passed is False)

    def print(self) -> None:
        """Prints the table, then what each failure says."""
        verdict = {True: ("pass", "green"), False: ("FAIL", "bold red"), None: ("-", "dim")}
        table = Table("check", "", "figure", title=Text(self.subject), title_justify="left")
        for check in self.checks:
            word, style = verdict[check.passed]
            table.add_row(Text(check.name), Text(word, style), Text(check.figure))
        console = make_console()
        console.print(table)
        for check in self.checks:
            if check.message:
                console.print(Text(f"{check.name}: ", verdict[check.passed][1]) + check.message)

    def raise_if_failed(self) -> Report:
        """Gives itself back where nothing was found.

        Raises:
          CheckError: an AssertionError with the message of every failure.
        """
        if not self.passed:
            raise CheckError(self)
        return self


def attempt(name: str, look: Callable[[], str]) -> Check:
    """A row: `look` gives the figure, and raises where something is wrong."""
    try:
        return Check(name, True, look())
    except AssertionError as error:
        figure, message = error.args if len(error.args) == 2 else ("", str(error))
    except Exception as error:
        figure, message = type(error).__name__, f"raises {type(error).__name__}: {error}"
    return Check(name, False, figure, message)


def expect(condition: object, figure: str, message: str) -> str:
    """The figure of a row, or its failure with figure and message."""
    if not condition:
        raise AssertionError(figure, message)
    return figure
