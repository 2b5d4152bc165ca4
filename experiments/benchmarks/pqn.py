"""Training speed of PQN beside the DQN of throughput.py.

    python experiments/benchmarks/pqn.py
    python experiments/benchmarks/pqn.py --num-seeds 32 --rounds 5 --json

Both with their own settings, each figure from a process of its own, in turns, so that a drift of
the machine's speed meets both; medians over the rounds. Timed is a whole run without evaluation,
DQN's prefill included, after compilation, until its results are on the host.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from typing import Any

from rich.console import Console
from throughput import Args as ThroughputArgs
from throughput import make_config, make_pqn_config, measure, print_rows

from purejaxdqn.cli.exits import run_script
from purejaxdqn.runtime.console import make_console
from purejaxdqn.types import ConfigError

WORKERS = {"DQN": "package", "PQN": "pqn"}


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    num_seeds: int = 8
    """Seeds side by side."""
    rounds: int = 3
    """Processes per figure, of which the median is reported."""
    total_steps: int = 100_000
    """Environment steps per seed."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""


def compare(args: Args, console: Console) -> list[dict[str, Any]]:
    """A row for each, DQN first."""
    options = ThroughputArgs(total_steps=args.total_steps)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WORKERS}
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(args.rounds):
            for name, worker in WORKERS.items():
                runs[name].append(measure(worker, args.num_seeds, options, cache))
                speed = runs[name][-1]["steps_per_second"]
                console.print(f"round {turn + 1}/{args.rounds}: {name} {speed:,.0f} steps/s")
    speeds = {
        name: statistics.median(run["steps_per_second"] for run in measured)
        for name, measured in runs.items()
    }
    return [
        {
            "algorithm": name,
            "steps_per_second": speeds[name],
            "ratio": speeds[name] / speeds["DQN"],
            "compile_seconds": measured[0]["compile_seconds"],  # later ones come from the cache
        }
        for name, measured in runs.items()
    ]


def main(args: Args) -> None:
    if min(args.num_seeds, args.rounds) < 1:
        raise ConfigError("num_seeds and rounds must be at least 1")
    for make in (make_config, make_pqn_config):
        make(ThroughputArgs(total_steps=args.total_steps)).validate()
    rows = compare(args, make_console(stderr=True))
    columns = {
        "algorithm": "{algorithm}",
        "steps per second": "{steps_per_second:,.0f}",
        "ratio": "{ratio:.2f}",
        "compile s": "{compile_seconds:.1f}",
    }
    print_rows(rows, f"{args.num_seeds} seeds together", columns)
    if args.json:
        print(json.dumps({"num_seeds": args.num_seeds, "results": rows}))


if __name__ == "__main__":
    run_script(main, Args)
