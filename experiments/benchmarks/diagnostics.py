"""What diagnostics cost at the default interval between evaluations.

    python experiments/benchmarks/diagnostics.py
    python experiments/benchmarks/diagnostics.py --agent pqn --rounds 5 --json

The same sweep without and with, in turns, so that a drift of the machine's speed meets both;
medians over the rounds. Timed is training with its evaluations, after compilation.
"""

from __future__ import annotations

import dataclasses
import json
import statistics

from rich import box
from rich.table import Table

from purejaxdqn import agents
from purejaxdqn.cli.exits import run_script
from purejaxdqn.runtime.console import make_console
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.sweep.run import run_sweep
from purejaxdqn.types import ConfigError


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    agent: str = "double"
    """A member of the family, or pqn."""
    num_seeds: int = 8
    """Seeds side by side."""
    total_steps: int | None = None
    """Environment steps per seed; by default 10 intervals between evaluations."""
    rounds: int = 3
    """Runs of each kind, of which the median is reported."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""


def main(args: Args) -> None:
    if min(args.num_seeds, args.rounds) < 1:
        raise ConfigError("num_seeds and rounds must be at least 1")
    config = agents.get(args.agent).config
    total_steps = args.total_steps or 10 * config.eval_interval
    config = dataclasses.replace(config, total_steps=total_steps)
    config.validate()
    use_every_core()
    console = make_console(stderr=True)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(args.rounds):
        for diagnostics in seconds:
            facts = run_sweep(
                agents.train,
                config,
                range(args.num_seeds),
                diagnostics=diagnostics,
                progress=False,
            ).dataset.attrs
            seconds[diagnostics].append(facts["train_seconds"] + facts["evaluation_seconds"])
            console.print(
                f"round {turn + 1}/{args.rounds}: {'with' if diagnostics else 'without'} "
                f"{seconds[diagnostics][-1]:.2f} s (evaluation {facts['evaluation_seconds']:.2f} s)"
            )
    without, with_ = (statistics.median(seconds[key]) for key in (False, True))
    table = Table(
        *("seconds without", "seconds with", "ratio"),
        title=f"{args.agent}: {args.num_seeds} seeds, {total_steps:,} steps each, evaluated every "
        f"{config.eval_interval:,}",
        box=box.SIMPLE_HEAD,
    )
    table.add_row(f"{without:.2f}", f"{with_:.2f}", f"{with_ / without:.3f}")
    make_console().print(table)
    if args.json:
        measured = {"without": without, "with": with_, "ratio": with_ / without}
        print(json.dumps({"num_seeds": args.num_seeds, "total_steps": total_steps, **measured}))


if __name__ == "__main__":
    run_script(main, Args)
