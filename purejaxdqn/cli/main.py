"""The command `purejaxdqn`: finds the command that is asked for, and runs it.

A new command is one file in `commands/`, with a function `run(argv) -> exit code`, and one line in
`COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from purejaxdqn.cli.exits import exit_with
from purejaxdqn.types import ConfigError, nearest_names

# Each command: the file and the function that run it, and what it does, in a line.
COMMANDS = {
    "train": ("train:run", "train many seeds of one agent; table, figures, film"),
    "sweep": ("sweep:run", "train every seed at every combination of settings"),
    "plan": ("sweep:run_plan", "say how a sweep would be run and how long it would take"),
    "search": ("search:run", "search for good settings with Optuna"),
    "ablate": ("ablate:run", "measure what each component of an agent adds"),
    "play": ("play:run", "play trained policies in gymnasium, and film one"),
    "rerun": ("rerun:run", "train one run of a results file again, and compare the bits"),
    "check": ("check:run", "check whether a loss is sound"),
    "agents": ("lists:run_agents", "list the agents, or the settings of one"),
    "environments": ("lists:run_environments", "list the environments"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line, and exits.

    Args:
      argv: the words behind `purejaxdqn`; those that the process was started with by default.
    """
    exit_with(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int | None:
    """Runs a command line, and returns its exit code.

    Raises:
      ConfigError: for a command that there is not.
    """
    name = argv[0] if argv else "--help"
    if name == "--version":
        print(f"purejaxdqn {importlib.metadata.version('purejaxdqn')}")
        return 0
    if name in ("-h", "--help"):
        _make_parser().print_help()
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"command ({name!r}) must be one of {nearest_names(name, COMMANDS)}")
    file, _, function = COMMANDS[name][0].partition(":")
    code: int | None = getattr(importlib.import_module(f"{__package__}.commands.{file}"), function)(
        argv[1:]
    )
    return code


def _make_parser() -> argparse.ArgumentParser:
    """Makes what prints the list of commands."""
    parser = argparse.ArgumentParser(
        prog="purejaxdqn",
        description="Deep Q-learning research in pure JAX: many seeds at once.",
        epilog="purejaxdqn COMMAND --help lists the flags of a command.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (_, help_line) in COMMANDS.items():
        commands.add_parser(name, help=help_line)
    return parser
