"""Trains many seeds of an agent on CartPole at once and says how well they did.

    python experiments/cartpole.py --num-seeds 10
    python experiments/cartpole.py --num-seeds 30 --first-seed 100 --learning-rate 5e-4 --output out
    python experiments/cartpole.py --agent rainbow --no-noisy
    python experiments/cartpole.py --agent pqn --q-lambda 0.65

Writes results.nc (every number, labelled), learning_curve.png, .svg and .html (to look into),
policy.gif (the best seed's policy in gymnasium's rendered environment) and summary.json. Progress
goes to standard error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from purejaxdqn import agents
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.cli import flags as cli
from purejaxdqn.report.films import play_and_film
from purejaxdqn.report.training import report_training
from purejaxdqn.storage import results
from purejaxdqn.sweep.run import SweepInterrupted, run_sweep
from purejaxdqn.training.settings import RunConfig


@dataclasses.dataclass(frozen=True)
class Args(cli.LongSweepArgs):
    __doc__ = __doc__
    output: Path = Path("results/cartpole")
    """Folder for everything that is written."""
    agent: str | None = None
    """A member of the family, whose settings are the defaults of all others: dqn, double, dueling,
    n_step, prioritised, c51, qr_dqn, iqn, fqf, munchausen, m_iqn, noisy, rainbow; or pqn, which
    has flags of its own."""
    diagnostics: bool = False
    """Also look inside the learner at each evaluation, into results.nc: value bias, dormant units,
    effective rank, gradient norm, policy churn."""
    config: RunConfig = dataclasses.field(default_factory=DQNConfig)


def defaults(argv: Sequence[str]) -> Args:
    """What flags are that are not given: those of the agent, if one is."""
    name = cli.value_of("--agent", argv)
    return Args() if name is None else Args(agent=name, config=agents.get(name).config)


def main(args: Args) -> int:
    args.config.validate()
    seeds = args.seeds
    options = args.sweep_options()
    output = results.prepare_output(args.output, args.overwrite, args.resume)
    devices = args.devices()
    experiment = agents.experiment_of(args.config)
    try:
        with args.tracked(dataclasses.asdict(args.config)) as tracker:
            dataset, params = run_sweep(
                experiment,
                args.config,
                seeds,
                on_evaluation=tracker,
                devices=devices,
                output=output,
                diagnostics=args.diagnostics,
                **options,
            )
    except SweepInterrupted as interrupt:
        report(args, interrupt.result.dataset, output)
        raise
    try:
        if "gymnasium_return" not in dataset:  # a finished sweep has been played already
            dataset = play_and_film(experiment(args.config), dataset, params, output)
    finally:
        report(args, dataset, output)
    return 0


def report(args: Args, dataset: xr.Dataset, output: Path) -> None:
    """Prints the table and, if asked for, the same as JSON; writes the summary and the figures."""
    facts = report_training(dataset, output)
    if args.json and facts is not None:
        print(json.dumps(facts, allow_nan=False))


if __name__ == "__main__":
    cli.run(main, Args, defaults=defaults)
