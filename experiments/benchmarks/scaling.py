"""What a run costs in a sweep: with more runs, more cores, a larger replay, and checkpoints.

    python experiments/benchmarks/scaling.py
    python experiments/benchmarks/scaling.py --num-runs 8 64 256 1024 --rounds 3 --json

The DQN of throughput.py. Each figure is of a process of its own that sweeps learning rates and
seeds as `run_sweep` does; they take turns, so that a drift of the machine's speed meets all, and
the median over the rounds counts. The cost of a run is the seconds of training, after compilation,
over the number of runs. The last line is the same sweep with an output folder, checkpoints at their
default interval included. Writes scaling.png and scaling.svg.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from throughput import Args as ThroughputArgs
from throughput import make_config

from purejaxdqn.cli.exits import run_script
from purejaxdqn.report.files import save_figure
from purejaxdqn.runtime.console import make_console
from purejaxdqn.runtime.devices import available_cores, use_every_core
from purejaxdqn.types import ConfigError

LEARNING_RATES = 4  # of each sweep; the other runs are seeds


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    num_runs: tuple[int, ...] = (8, 32, 256)
    """Runs of a sweep, multiples of 4: that many seeds at four learning rates."""
    replay_capacities: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Transitions in each run's replay, with the fewest runs."""
    rounds: int = 3
    """Processes per figure, of which the median is reported."""
    total_steps: int = 20_000
    """Environment steps per run, of which the first 10,000 are played at random."""
    output: Path = Path("results/scaling")
    """Folder of the figure."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""
    worker: str | None = None
    """Measure one case, JSON of its numbers, in this process; what the benchmark calls itself."""


def measure(case: dict[str, Any], args: Args) -> dict[str, float]:
    """One case, in this process."""
    from purejaxdqn.agents.dqn.dqn import dqn
    from purejaxdqn.sweep.run import run_sweep

    if hasattr(os, "sched_setaffinity") and case["cores"] < available_cores():
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["cores"]])
    use_every_core()
    config = make_config(
        ThroughputArgs(total_steps=args.total_steps, replay_capacity=case["capacity"])
    )
    config = dataclasses.replace(config, eval_interval=args.total_steps, eval_episodes=1)
    with tempfile.TemporaryDirectory() as folder:
        result = run_sweep(
            dqn,
            config,
            range(case["runs"] // LEARNING_RATES),
            learning_rate=[1e-4 * (1 + i) for i in range(LEARNING_RATES)],
            output=Path(folder) if case["kept"] else None,
            progress=False,
        )
    attrs = result.dataset.attrs
    seconds = float(attrs["train_seconds"])
    return {
        "seconds_per_run": seconds / case["runs"],
        "compile_seconds": float(attrs["compile_seconds"]),
        "checkpoint_share": float(attrs["checkpoint_seconds"]) / seconds,
        "peak_bytes": float(attrs["peak_bytes"]),
        "planned_peak_bytes": float(attrs["planned_peak_bytes"]),
    }


def cases(args: Args) -> list[dict[str, Any]]:
    """What is measured; the first one is what the others are held against."""
    base = {
        "runs": min(args.num_runs),
        "cores": available_cores(),
        "capacity": min(args.replay_capacities),
        "kept": False,
    }
    listed = [base]
    listed += [base | {"runs": runs} for runs in args.num_runs]
    listed += [base | {"cores": cores} for cores in range(1, available_cores())]
    listed += [base | {"capacity": capacity} for capacity in args.replay_capacities]
    listed += [base | {"runs": max(args.num_runs), "kept": True}]
    return [case for i, case in enumerate(listed) if case not in listed[:i]]


def measure_all(args: Args, console: Console) -> list[dict[str, Any]]:
    """A row for each case: medians over the rounds, and the cost beside the first case."""
    listed = cases(args)
    found: list[list[dict[str, float]]] = [[] for _ in listed]
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(args.rounds):
            for case, measured in zip(listed, found, strict=True):
                command = [sys.executable, __file__, "--worker", json.dumps(case)]
                command += ["--total-steps", str(args.total_steps)]
                environment = os.environ | {"XDG_CACHE_HOME": cache}
                answer = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True, env=environment
                )
                measured.append(json.loads(answer.stdout.splitlines()[-1]))
                cost = measured[-1]["seconds_per_run"]
                console.print(f"round {turn + 1}/{args.rounds}: {case} {cost:.3f} s a run")
    rows = [
        case | {name: statistics.median(m[name] for m in measured) for name in measured[0]}
        for case, measured in zip(listed, found, strict=True)
    ]
    for row in rows:
        row["cost"] = row["seconds_per_run"] / rows[0]["seconds_per_run"]
    return rows


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Cost against the number of runs, of cores, and the replay's capacity."""
    base = rows[0]
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = {"runs": "runs", "cores": "CPU cores", "capacity": "replay capacity"}
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (name, words) in zip(axes, panels.items(), strict=True):
        others = [other for other in ("runs", "cores", "capacity", "kept") if other != name]
        line = sorted(
            (row[name], row["seconds_per_run"])
            for row in rows
            if all(row[other] == base[other] for other in others)
        )
        axis.plot(*zip(*line, strict=True), marker="o", color="#1f5fa8")
        axis.set(xlabel=words, xscale="log")
        axis.set_xticks([x for x, _ in line], [f"{x:,}" for x, _ in line])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds of training a run")
    axes[0].set_ylim(0, 1.1 * max(row["seconds_per_run"] for row in rows))
    return figure


def main(args: Args) -> None:
    if args.worker is not None:
        print(json.dumps(measure(json.loads(args.worker), args)))
        return
    if not args.num_runs or any(n < 4 or n % LEARNING_RATES for n in args.num_runs):
        raise ConfigError(f"num_runs {args.num_runs} must be multiples of {LEARNING_RATES}")
    if args.rounds < 1 or not args.replay_capacities:
        raise ConfigError("rounds must be at least 1, and replay_capacities not empty")
    for capacity in args.replay_capacities:
        make_config(
            ThroughputArgs(total_steps=args.total_steps, replay_capacity=capacity)
        ).validate()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = measure_all(args, make_console(stderr=True))
    columns = (
        "runs",
        "cores",
        "replay",
        "kept",
        "s a run",
        "cost",
        "saving",
        "peak",
        "planned",
    )
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(
            str(row["runs"]),
            str(row["cores"]),
            f"{row['capacity'] / 1000:,g}k",
            "yes" if row["kept"] else "no",
            f"{row['seconds_per_run']:.3f}",
            f"{row['cost']:.2f}",
            f"{row['checkpoint_share']:.1%}",
            f"{row['peak_bytes'] / 1e6:,.0f} MB",
            f"{row['planned_peak_bytes'] / 1e6:,.0f} MB",
        )
    make_console().print(table)
    files = save_figure(draw(rows), args.output / "scaling")
    print("written:", ", ".join(map(str, files)))
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    run_script(main, Args)
