"""Runs the checks that a module declares, as tests: `pytest --purejaxdqn-check my_module`.

A module declares its checks in `CHECKS`, by name: functions without arguments, such as
`{"my_replay": lambda: check_replay(my_replay)}`. Each loss that `converges_to` is written on is
checked too. pytest loads this file at each start, so that nothing is imported before it is used.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    text = "run the checks that a module, or a file.py, declares; may be given several times"
    group = parser.getgroup("purejaxdqn")
    group.addoption("--purejaxdqn-check", action="append", default=[], metavar="MODULE", help=text)


@pytest.hookimpl(tryfirst=True)  # so that -k chooses among them
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Adds a test for each check; refuses a module that cannot be imported or declares none."""
    for place in config.getoption("purejaxdqn_check"):
        from purejaxdqn.checks import ConfigError
        from purejaxdqn.runtime.modules import import_module_or_file

        try:
            checks = list_checks(import_module_or_file(place))
        except ConfigError as error:
            raise pytest.UsageError(str(error)) from error
        if not checks:
            raise pytest.UsageError(
                f"{place} declares nothing to check: give it CHECKS = {{name: function without "
                "arguments}, or write converges_to on a loss"
            )
        for name, check in checks.items():
            items.append(_Check.from_parent(session, name=f"{place}::{name}", check=check))


def list_checks(module: ModuleType) -> dict[str, Callable[[], Any]]:
    """Lists what a module declares: functions that raise what is wrong, by name.

    Raises:
      ConfigError: if `CHECKS` is none of names and functions.
    """
    from purejaxdqn.checks import ensure

    declared = getattr(module, "CHECKS", {})
    is_right = isinstance(declared, dict) and all(map(callable, declared.values()))
    wanted = "a dict of functions without arguments, such as {'loss': lambda: check_loss(mine)}"
    ensure(is_right, f"CHECKS of {module.__name__}", declared, wanted)
    losses = {
        name: functools.partial(_check_loss, value)
        for name, value in vars(module).items()
        if "fixed_point" in getattr(value, "__dict__", {})
        and getattr(value, "__module__", None) == module.__name__
    }
    return {**losses, **declared}


def _check_loss(loss: Any) -> None:
    from purejaxdqn.testing import check_loss

    check_loss(loss)


class _Check(pytest.Item):
    """One check as a test."""

    def __init__(self, *, check: Callable[[], Any], **others: Any) -> None:
        super().__init__(**others)
        self._check = check

    def runtest(self) -> None:
        """Runs it."""
        self._check()

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """Says what is wrong, without the way through the check's own code."""
        is_said = isinstance(excinfo.value, AssertionError)
        return str(excinfo.value) if is_said else super().repr_failure(excinfo, style)

    def reportinfo(self) -> Any:
        """Names the check."""
        return self.path, None, self.name
