"""Checks whether a loss is sound, and whether it converges to what it declares.

    purejaxdqn check my_module:my_loss
    purejaxdqn check path/to/file.py:my_loss --fixed-point soft --temperature 0.1

Prints a table with a row a check. Exit code 0: the loss passes; 1: it fails; 2: there is no such
loss, or a flag is refused.
"""

from collections.abc import Sequence

from purejaxdqn.checks import ConfigError
from purejaxdqn.cli.exits import EXIT_FAILED
from purejaxdqn.cli.flags import read_command_line
from purejaxdqn.cli.named_loss import LossOptions, report_on_named_loss
from purejaxdqn.training.declaration import Setting, settings_of

_NAMED = (
    "module:name or path/to/file.py:name, of a TD error, of a loss, or of a function that makes "
    "one without arguments."
)
_LOSS = Setting("loss", str, "", _NAMED)


def run(argv: Sequence[str]) -> int:
    """Checks the named loss, and prints a row for each check."""
    declared = settings_of(LossOptions)
    flags = read_command_line(
        argv, "purejaxdqn check", __doc__, declared.values(), positional=_LOSS
    ).flags
    options = LossOptions(**{name: getattr(flags, name) for name in declared})
    for name, one in declared.items():
        if getattr(options, name) != one.default and not one.is_read(options):
            raise ConfigError(f"{name} is read only where {one.read_only_where()}: leave it out")
    report = report_on_named_loss(flags.loss, options)
    report.print()
    return 0 if report.passed else EXIT_FAILED
