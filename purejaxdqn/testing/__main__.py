"""Checks a loss from the command line.

    python -m purejaxdqn.testing my_module:my_loss
    python -m purejaxdqn.testing path/to/file.py:my_loss --fixed-point soft --temperature 0.1

Prints a table with a row a check. Exit code 0: the loss passes; 1: it fails; 2: there is no such
loss, or a flag is refused.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from purejaxdqn.cli.exits import EXIT_FAILED, run_script
from purejaxdqn.testing.named_loss import LossOptions, report_on_named_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(LossOptions):  # noqa: D101 - the module's docstring is the command's help
    __doc__ = __doc__
    loss: Annotated[str, tyro.conf.Positional]
    """module:name or path/to/file.py:name, of a TD error, of a loss, or of a function that makes
    one without arguments."""


def main(args: Args) -> int:
    """Checks the loss, prints the report, and gives the exit code."""
    report = report_on_named_loss(args.loss, args)
    report.print()
    return 0 if report.passed else EXIT_FAILED


if __name__ == "__main__":
    run_script(main, Args)
