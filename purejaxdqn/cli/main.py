"""The command `purejaxdqn`: finds the command that is asked for, and runs it.

A new command is one file in `commands/`, with a function `run(argv) -> exit code`, and one line in
`COMMANDS`.
"""

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Any

from purejaxdqn.checks import ConfigError, nearest_names
from purejaxdqn.cli.exits import exit_with

# Each command: the file and the function that run it, and what it does, in a line.
COMMANDS = {
    "train": ("train:run", "train many seeds of one agent; table, figures, film"),
    "sweep": ("sweep:run", "train every seed at every combination of settings"),
    "plan": ("sweep:run_plan", "say how a sweep would be run and how long it would take"),
    "search": ("search:run", "search for good settings with Optuna"),
    "ablate": ("ablate:run", "measure what each component of an agent adds"),
    "play": ("runs:run_play", "play trained policies in gymnasium, and film one"),
    "rerun": ("runs:run_rerun", "train one run of a results file again, and compare the bits"),
    "restore": ("runs:run_restore", "make a damaged results file again from its folder"),
    "check": ("check:run", "check whether a loss is sound"),
    "agents": ("lists:run_agents", "list the agents, or the settings of one"),
    "environments": ("lists:run_environments", "list the environments"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the words behind `purejaxdqn`, by default those of the process, and exits."""
    exit_with(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int | None:
    """Runs the words behind `purejaxdqn`, and returns an exit code."""
    name = argv[0] if argv else "--help"
    if name in COMMANDS:
        file, _, function = COMMANDS[name][0].partition(":")
        command: Any = importlib.import_module(f"{__package__}.commands.{file}")
        return getattr(command, function)(argv[1:])
    if name not in ("-h", "--help", "--version"):
        raise ConfigError(f"command ({name!r}) must be one of {nearest_names(name, COMMANDS)}")
    parser = argparse.ArgumentParser(
        prog="purejaxdqn",
        description="Deep Q-learning research in pure JAX: many seeds at once.",
        epilog="purejaxdqn COMMAND --help lists the flags of a command.",
    )
    version = f"purejaxdqn {importlib.metadata.version('purejaxdqn')}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command_name, (_, help_line) in COMMANDS.items():
        commands.add_parser(command_name, help=help_line)
    parser.parse_args([name])  # prints, and exits
    return 0
