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

import jax
import numpy as np
from rich.console import Console

from purejaxdqn import agents, environments
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.cli import flags as cli
from purejaxdqn.report import figures as plotting
from purejaxdqn.report import summary
from purejaxdqn.report.films import play_in_gymnasium, save_gif
from purejaxdqn.storage import results
from purejaxdqn.sweep.run import SweepInterrupted, SweepResult, run_sweep
from purejaxdqn.training.settings import RunConfig

GYMNASIUM_EPISODES = 100
FILM = "policy.gif"


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
    try:
        with args.tracked(dataclasses.asdict(args.config)) as tracker:
            result = run_sweep(
                agents.experiment_of(args.config),
                args.config,
                seeds,
                on_evaluation=tracker,
                devices=devices,
                output=output,
                diagnostics=args.diagnostics,
                **options,
            )
    except SweepInterrupted as interrupt:
        report(args, interrupt.result, output)
        raise
    try:
        if "gymnasium_return" not in result.dataset:  # a finished sweep's are there already
            result = play(args, result, output)
    finally:
        report(args, result, output)
    return 0


def play(args: Args, result: SweepResult, output: Path) -> SweepResult:
    """Plays every seed's policy in gymnasium's own environment, and films the best one."""
    train = agents.train(args.config)
    returns = play_in_gymnasium(train, result.params, GYMNASIUM_EPISODES, progress=True)
    best = int(returns.mean(axis=1).argmax())
    save_gif(train, jax.tree.map(lambda x: x[best], result.params), output / FILM)
    dataset = result.dataset.assign(gymnasium_return=(("seed", "gymnasium_episode"), returns))
    results.save(dataset, output)  # last: it says that all of this is done
    return result._replace(dataset=dataset)


def report(args: Args, result: SweepResult, output: Path) -> None:
    """The table, the summary and the figure of whatever is there."""
    if result.dataset.evaluation_return.isnull().all():
        Console(stderr=True).print("nothing was evaluated: nothing is written")
        return
    if "gymnasium_return" not in result.dataset:
        (output / FILM).unlink(missing_ok=True)  # an earlier run's
    threshold = environments.make(args.config.env).threshold
    facts = summary.summarise(result.dataset, threshold, np.random.default_rng(0))
    console = Console()
    summary.print_summary(facts, console)
    summary.save_summary(facts, output)
    title = f"{facts['algorithm']} on {args.config.env}"
    plotting.save_figure(
        plotting.learning_curve(result.dataset, title, threshold), output / "learning_curve"
    )
    greedy = result.dataset.evaluation_return.mean("episode").rename("greedy return")
    plotting.save_html(
        plotting.interactive_curves({title: greedy}, title, threshold),
        output / "learning_curve.html",
    )
    console.print(f"written to {output}: {', '.join(sorted(p.name for p in output.iterdir()))}")
    if args.json:
        print(json.dumps(facts, allow_nan=False))


if __name__ == "__main__":
    cli.run(main, Args, defaults=defaults)
