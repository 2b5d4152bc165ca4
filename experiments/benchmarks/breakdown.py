"""Where the time of `purejaxdqn train` goes, from Enter to the last file.

    python experiments/benchmarks/breakdown.py
    python experiments/benchmarks/breakdown.py --num-seeds 8 --total-steps 20000 --json

Trains as the command does, in this process, with a folder, and measures what is called on the way.
A part does not count what other parts within it take. A share is one of the time after compilation
in which the sweep trains; figures, the film and playing in gymnasium come after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from throughput import print_rows

from purejaxdqn.cli.commands import train as command
from purejaxdqn.cli.exits import run_script
from purejaxdqn.report import films, training
from purejaxdqn.sweep import batches
from purejaxdqn.sweep.folder import SweepFolder


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    num_seeds: int = 30
    """Seeds that train."""
    total_steps: int = 100_000
    """Environment steps of each."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""


class Clock:
    """Adds up seconds by the name of the innermost part that is running."""

    def __init__(self) -> None:
        self.seconds: Any = Counter()  # of floats, which its type does not know
        self._running = ["before training"]
        self._since = time.perf_counter()

    def _lap(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._lap()
        self._running.append(name)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose seconds count under a name."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return jax.block_until_ready(function(*args, **options))

        return call


WITHIN = ("training", "evaluation", "checkpoints", "results.nc", "host loop")  # a sweep that trains


def measure(args: Args) -> dict[str, float]:
    """Seconds by part; the parts are put in place of the functions that the command calls."""
    clock = Clock()

    def compiled(*how: Any) -> Any:
        with clock.part("compiling"):
            programs: Any = compile_programs(*how)
        parts = {"init": "training", "chunk": "training", "evaluate": "evaluation"}
        timed = {name: clock.timed(part, getattr(programs, name)) for name, part in parts.items()}
        return programs._replace(**timed)

    def forecast(*how: Any) -> Any:
        before = clock.seconds.copy()
        result = forecast_round(*how)
        clock._lap()  # what its programs took was no training
        spent = sum(clock.seconds.values()) - sum(before.values())
        clock.seconds.clear()
        clock.seconds.update(before + Counter({"forecast": spent}))
        return result

    compile_programs, forecast_round = batches.compile_programs, batches.forecast_round
    patched: Any = batches
    patched.compile_programs, patched.forecast_round = compiled, forecast
    for where, name, part in (
        (batches.BatchTrainer, "_train", "host loop"),
        (batches, "copy_from_devices", "checkpoints"),
        (SweepFolder, "save_running", "checkpoints"),
        (SweepFolder, "save_finished", "checkpoints"),
        (SweepFolder, "write_times", "checkpoints"),
        (SweepFolder, "delete_running", "checkpoints"),
        (batches.BatchTrainer, "_make_result", "results.nc"),
        (batches.results, "save", "results.nc"),
        (films, "play_in_gymnasium", "playing in gymnasium"),
        (films, "save_gif", "film"),
        (training, "report_training", "tables and figures"),
    ):
        setattr(where, name, clock.timed(part, getattr(where, name)))
    with tempfile.TemporaryDirectory() as folder:
        numbers = {"num-seeds": args.num_seeds, "total-steps": args.total_steps, "output": folder}
        command.run([f"--{name}={value}" for name, value in numbers.items()])
    clock._lap()
    return dict(clock.seconds)


def main(args: Args) -> None:
    seconds = measure(args)
    whole = sum(seconds[part] for part in WITHIN)
    others = [part for part in seconds if part not in WITHIN]
    rows = [
        {"part": part, "seconds": seconds[part], "share": f"{seconds[part] / whole:.2%}"}
        for part in WITHIN
    ]
    rows.append({"part": "all but training", "seconds": whole - seconds["training"]})
    rows[-1]["share"] = f"{1 - seconds['training'] / whole:.2%}"
    rows += [{"part": part, "seconds": seconds[part], "share": ""} for part in others]
    columns = {"part": "{part}", "seconds": "{seconds:.2f}", "share": "{share}"}
    print_rows(rows, f"{args.num_seeds} seeds of {args.total_steps:,} steps", columns)
    if args.json:
        print(json.dumps(seconds))


if __name__ == "__main__":
    run_script(main, Args)
