"""Trains many seeds of an agent at once and says how well they did.

    purejaxdqn train --num-seeds 10
    purejaxdqn train --num-seeds 30 --first-seed 100 --learning-rate 5e-4 --output results/mine
    purejaxdqn train --agent rainbow --no-noisy
    purejaxdqn train --agent pqn --q-lambda 0.65

Writes results.nc (every number, labelled), learning_curve.png, .svg and .html (to look into),
policy.gif (the best seed's policy, in gymnasium's rendered environment where it has one) and
summary.json. Progress goes to standard error. What a killed run had reached is kept, and --resume
goes on from there.
"""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from purejaxdqn import agents
from purejaxdqn.cli.flags import read_command_line
from purejaxdqn.cli.sweeps import list_seeds, print_json, refuse_unread, sweep_flags, train_design
from purejaxdqn.runtime.console import make_console
from purejaxdqn.sweep.dataset import SweepResult
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.training.declaration import Setting
from purejaxdqn.training.settings import RunConfig


def run(argv: Sequence[str]) -> int:
    """Trains one agent over several seeds, plays its policies, and prints the scores."""
    own = sweep_flags("results/train")
    train_and_report(*read_training(argv, "purejaxdqn train", __doc__, own))
    return 0


def read_training(
    argv: Sequence[str], prog: str, description: str | None, own: Sequence[Setting], **options: Any
) -> tuple[RunConfig, SimpleNamespace]:
    """Reads the settings of one agent, and the flags of a command, as `read_command_line` does."""
    options = {"default_agent": agents.DEFAULT, **options}
    line = read_command_line(argv, prog, description, own, **options)
    config = dataclasses.replace(line.base, **line.given)
    config.validate()
    line.flags.given = [*line.given]  # whoever trains refuses those that nothing reads
    return config, line.flags


def train_and_report(config: RunConfig, flags: SimpleNamespace) -> None:
    """Trains every seed, plays the policies in gymnasium, and reports."""
    refuse_unread(flags.given, [config])

    def report(result: SweepResult) -> None:
        from purejaxdqn.report.films import find_problem, play_and_film
        from purejaxdqn.report.training import report_training

        dataset, params = result
        try:
            made = agents.train(config)
            was_played = "gymnasium_return" in dataset or "filmed" in dataset.attrs
            if dataset.attrs["status"] != "finished" or was_played:
                return  # nothing can be played yet, or it has been already
            if problem := find_problem(made.env):
                make_console(stderr=True).print(f"{problem}: nothing is played there")
            if not problem or made.env.render is not None:
                dataset = play_and_film(made, dataset, params, flags.output, not problem)
        finally:
            print_json(flags, report_training(dataset, flags.output))

    design = grid_design(config, list_seeds(flags), {})
    train_design(lambda: agents.experiment_of(config), design, flags, report)
