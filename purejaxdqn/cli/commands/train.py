"""Trains many seeds of an agent at once and says how well they did.

    purejaxdqn train --num-seeds 10
    purejaxdqn train --num-seeds 30 --first-seed 100 --learning-rate 5e-4 --output results/mine
    purejaxdqn train --agent rainbow --no-noisy
    purejaxdqn train --agent pqn --q-lambda 0.65

Writes results.nc (every number, labelled), learning_curve.png, .svg and .html (to look into),
policy.gif (the best seed's policy in gymnasium's rendered environment) and summary.json. Progress
goes to standard error. What a killed run had reached is kept, and --resume goes on from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from purejaxdqn import agents
from purejaxdqn.cli.flags import find_values, import_modules, read_command_line
from purejaxdqn.cli.sweeps import (
    READERS,
    agent_settings,
    explain_foreign_flags,
    list_seeds,
    print_json,
    refuse_unread,
    sweep_flags,
    trained_design,
)
from purejaxdqn.report.films import is_in_gymnasium, play_and_film
from purejaxdqn.report.training import report_training
from purejaxdqn.runtime import processes
from purejaxdqn.runtime.console import make_console
from purejaxdqn.sweep.dataset import SweepInterrupted
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.training.declaration import Setting
from purejaxdqn.training.settings import RunConfig


def run(argv: Sequence[str]) -> int:
    """Trains one agent over several seeds, plays its policies, and prints the scores."""
    config, flags = read_training(
        argv, "purejaxdqn train", __doc__ or "", sweep_flags("results/train")
    )
    train_and_report(config, flags)
    return 0


def read_training(
    argv: Sequence[str],
    prog: str,
    description: str,
    own: Sequence[Setting],
    default_agent: str = agents.DEFAULT,
    **defaults: Any,
) -> tuple[RunConfig, SimpleNamespace]:
    """Reads the settings of one agent, and the flags of a command that trains it.

    Args:
      argv: the words behind the command.
      prog: how it is called.
      description: what its help says.
      own: its own flags.
      default_agent: the agent where none is named.
      **defaults: settings that the command changes in the agent's.

    Raises:
      ConfigError: for an agent, a setting or a flag that cannot be.
    """
    import_modules(argv)
    name = (find_values(argv, "agent") or [default_agent])[0]
    base = agents.get(name).config
    base = dataclasses.replace(base, **defaults)
    line = read_command_line(
        argv,
        prog,
        description,
        own,
        agent_settings([base], "The agent"),
        readers=READERS,
        hints_for_foreign_flags=explain_foreign_flags([name]),
    )
    config = dataclasses.replace(base, **line.given)
    config.validate()
    line.flags.given = [*line.given]  # whoever trains refuses those that nothing reads
    return config, line.flags


def train_and_report(config: RunConfig, flags: SimpleNamespace) -> None:
    """Trains every seed, plays the policies in gymnasium, and reports."""
    refuse_unread(flags.given, [config])
    experiment = agents.experiment_of(config)
    design = grid_design(config, list_seeds(flags), {})
    try:
        with trained_design(experiment, design, flags) as (dataset, params):
            if not processes.is_first_process():
                return
            try:
                made = experiment(config)
                if not is_in_gymnasium(made.env.name):
                    console = make_console(stderr=True)
                    console.print(f"gymnasium has no {made.env.name}: nothing is played there")
                elif "gymnasium_return" not in dataset:  # else it has been played already
                    dataset = play_and_film(made, dataset, params, flags.output)
            finally:
                print_json(flags, report_training(dataset, flags.output))
    except SweepInterrupted as interrupt:
        if processes.is_first_process():
            print_json(flags, report_training(interrupt.result.dataset, flags.output))
        raise
