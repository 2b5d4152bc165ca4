"""The memory that a run adds to a process, beside what its arrays need.

    python experiments/benchmarks/memory.py
    python experiments/benchmarks/memory.py --capacities 10000 --widths 8 64 --json
    python experiments/benchmarks/memory.py --widths 1 3 --env MinAtar/Breakout-v1

Each figure is the peak of resident memory in a process of its own, from the compiled programs on.
What a run adds is the difference between few and many side by side, over their number. Its arrays
are XLA's buffers, and what an evaluation hands to the host. Beside it stands one copy of the
observations that its replay holds.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import subprocess
import sys
from typing import Any

from throughput import print_rows

from purejaxdqn import environments
from purejaxdqn.checks import ConfigError
from purejaxdqn.cli.exits import run_script


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    capacities: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Transitions that the replay of a run holds."""
    env: str = "CartPole-v1"
    """The task; one with images is learned by convolutions."""
    widths: tuple[int, ...] = (8, 64)
    """Runs side by side on each of two devices: few, and many."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""
    worker: bool = False
    """Used by the script itself: measure the first capacity and width, in this process."""


def measure(env: str, capacity: int, width: int) -> dict[str, float]:
    """The memory of a round of runs, and of one copy of what one of them observes, in bytes."""
    import jax
    import throughput
    from family import settings_of_task

    from purejaxdqn.agents.dqn.dqn import dqn
    from purejaxdqn.engine.memory import return_free_memory
    from purejaxdqn.engine.programs import compile_programs
    from purejaxdqn.engine.rounds import train_round
    from purejaxdqn.runtime.devices import Plan, use_every_core
    from purejaxdqn.sweep.design import grid_design

    devices = use_every_core(2)
    settings = throughput.Args(total_steps=11_000, replay_capacity=capacity)
    config = dataclasses.replace(throughput.make_config(settings), **settings_of_task(env))
    space = environments.make(env).observation_space
    programs = compile_programs(dqn, config, Plan(width, 2, 1), devices)
    runs = grid_design(config, range(2 * width), {}).runs
    gc.collect()
    return_free_memory()
    before, on_host = throughput.reset_peak_memory(), 0
    for event in train_round(programs, config, runs):
        on_host = max(on_host, sum(x.nbytes for x in jax.tree.leaves(event.params)))
    return {
        "added": throughput.resident_memory("VmHWM") - before,
        "needed": programs.round_bytes + on_host,
        "observed": capacity * math.prod(space.shape) * space.dtype.itemsize,
    }


def compare(env: str, capacity: int, widths: tuple[int, ...]) -> dict[str, Any]:
    """What one more run adds and needs, in MB."""
    found = []
    for width in (min(widths), max(widths)):
        flags = ("--worker", "--env", env, "--capacities", str(capacity), "--widths", str(width))
        answer = subprocess.run(
            [sys.executable, __file__, *flags], stdout=subprocess.PIPE, check=True, text=True
        )
        found.append(json.loads(answer.stdout.splitlines()[-1]))
    num_runs = 2 * (max(widths) - min(widths)) * 1e6
    row = {name: (found[1][name] - found[0][name]) / num_runs for name in ("added", "needed")}
    observed = found[0]["observed"] / 1e6
    row |= {"ratio": row["added"] / row["needed"], "of_observed": row["added"] / observed}
    return {"capacity": capacity, **row, "observed": observed}


def main(args: Args) -> None:
    if args.worker:
        print(json.dumps(measure(args.env, args.capacities[0], args.widths[0])))
        return
    if len({*args.widths}) < 2:
        raise ConfigError(f"widths {args.widths} must be two at least, such as 8 32")
    environments.validate(args.env)
    rows = [compare(args.env, capacity, args.widths) for capacity in args.capacities]
    columns = {
        "replay capacity": "{capacity:,}",
        "MB added by a run": "{added:.2f}",
        "MB its arrays need": "{needed:.2f}",
        "ratio": "{ratio:.2f}",
        "MB of observations": "{observed:.2f}",
        "added, over those": "{of_observed:.2f}",
    }
    print_rows(rows, "one more run", columns)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    run_script(main, Args)
