"""Training speed: the package, plain `jit(vmap(...))`, and the bound of the matrix products.

    python experiments/benchmarks/throughput.py
    python experiments/benchmarks/throughput.py --num-seeds 8 64 --json
    python experiments/benchmarks/throughput.py --num-seeds 8 --replay-capacity 1000000

Each figure comes from a process of its own; the three kinds take turns, so that a drift of the
machine's speed meets all of them, and medians over the rounds are reported. Timed is a whole run
without evaluation, its prefill included, after compilation, until its results are on the host.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from purejaxdqn.cli.exits import run_script
from purejaxdqn.runtime.console import make_console
from purejaxdqn.types import ConfigError

Worker = Literal["plain", "package", "bound", "pqn"]


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares (a) jit(vmap) on one device with JAX's default flags, (b) the package, (c) a bound.

    The bound is the speed that a run would have if the matrix products of its updates (online and
    target forward, backward) were all there is: by XLA, one thread per core, on all cores.
    """

    num_seeds: tuple[int, ...] = (1, 8, 32)
    """Numbers of seeds to measure."""
    rounds: int = 3
    """Processes per figure, of which the median is reported."""
    total_steps: int = 100_000
    """Environment steps per seed."""
    replay_capacity: int = 10_000
    """Transitions per seed; it is also prefilled with 10,000 steps."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""
    worker: Worker | None = None
    """Used by the script itself: measure only this, for the first of num_seeds, in this process."""


def make_config(args: Args) -> Any:
    """The settings of the comparison."""
    from purejaxdqn.agents.dqn.dqn import DQNConfig

    return DQNConfig(
        env="CartPole-v1",
        total_steps=args.total_steps,
        num_envs=10,
        steps_per_update=10,
        updates_per_iteration=1,
        prefill_steps=10_000,
        replay_capacity=args.replay_capacity,
        batch_size=128,
        hidden_sizes=(120, 84),
        td_error="q_learning",
        penalty="squared",
        n_step=1,
        learning_rate=2.5e-4,
        adam_epsilon=1e-8,
        learning_rate_end_fraction=1.0,
        max_grad_norm=float("inf"),
        target_period=50,  # gradient steps, that is 500 environment steps
        epsilon_end=0.05,
        epsilon_fraction=0.5,
        eval_interval=args.total_steps,
        eval_episodes=1,
    )


def make_pqn_config(args: Args) -> Any:
    """PQN's own settings, over as many steps and with no evaluation between."""
    from purejaxdqn.agents.pqn.settings import PQNConfig

    return PQNConfig(total_steps=args.total_steps, eval_interval=args.total_steps, eval_episodes=1)


# ------------------------------------------------------------------------------- in the processes


def measure_plain(args: Args) -> dict[str, float]:
    """(a) One jitted, vmapped function from keys to results, on one device."""
    import jax
    import jax.numpy as jnp

    from purejaxdqn.agents.dqn.dqn import dqn

    config = make_config(args)
    train = dqn(config)
    num_seeds = args.num_seeds[0]

    def run(key: jax.Array) -> Any:
        state = train.init(key)
        return train.chunk(state, jnp.int32(config.num_iterations), config.num_iterations)[1]

    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    start = time.perf_counter()
    program = jax.jit(jax.vmap(run)).lower(keys).compile()
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(program(keys))
    seconds = time.perf_counter() - start
    return {
        "steps_per_second": num_seeds * config.total_steps / seconds,
        "compile_seconds": compile_seconds,
    }


def measure_package(args: Args) -> dict[str, float]:
    """(b) The package's own compiled programs and host loop, as `run_sweep` uses them."""
    return measure_programs(make_config(args), args.num_seeds[0])


def measure_pqn(args: Args) -> dict[str, float]:
    """The same of PQN, for `pqn.py`."""
    return measure_programs(make_pqn_config(args), args.num_seeds[0])


def measure_programs(config: Any, num_seeds: int) -> dict[str, float]:
    """All runs of some settings, whichever algorithm they are of."""
    import jax

    from purejaxdqn import agents
    from purejaxdqn.engine.programs import compile_programs
    from purejaxdqn.engine.rounds import train_round
    from purejaxdqn.runtime.devices import make_plan, max_width, use_every_core
    from purejaxdqn.sweep.design import grid_design

    devices = use_every_core()
    experiment = agents.experiment_of(config)
    runs = grid_design(config, range(num_seeds), {}).runs
    plan = make_plan(len(runs), len(devices), max_width=max_width())
    programs = compile_programs(experiment, config, plan, devices)
    gc.collect()
    before = reset_peak_memory()
    train_seconds = 0.0
    start = time.perf_counter()
    for members in plan.rounds(len(runs)):
        for event in train_round(programs, config, [runs[i] for i in members]):
            train_seconds += event.train_seconds
    wall_seconds = time.perf_counter() - start
    replay = jax.eval_shape(experiment(config).init, jax.random.key(0)).replay
    return {
        "steps_per_second": len(runs) * config.total_steps / train_seconds,
        "compile_seconds": programs.compile_seconds,
        "train_seconds": train_seconds,
        "wall_seconds": wall_seconds,
        "peak_rss_bytes": resident_memory("VmHWM"),
        "peak_rss_above_start_bytes": resident_memory("VmHWM") - before,
        "replay_bytes": plan.slots_per_round
        * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(replay)),
        "width": plan.width,
        "num_devices": plan.num_devices,
    }


_ON_LINUX = sys.platform == "linux"  # elsewhere memory is not measured


def resident_memory(field: str) -> int:
    """Bytes of resident memory, now ("VmRSS") or at most ("VmHWM"), as Linux tells them."""
    lines = Path("/proc/self/status").read_text().splitlines() if _ON_LINUX else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def reset_peak_memory() -> int:
    """Forgets the highest resident memory so far (compilation's); says what is resident now."""
    if _ON_LINUX:
        Path("/proc/self/clear_refs").write_text("5")
    return resident_memory("VmRSS")


def measure_bound(args: Args) -> dict[str, float]:
    """(c) The updates' matrix products and nothing else, laid out over devices as in (b)."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, PartitionSpec

    from purejaxdqn.runtime.devices import (
        compiler_options,
        make_plan,
        max_width,
        use_every_core,
    )

    devices = use_every_core()
    config = make_config(args)
    num_seeds = args.num_seeds[0]
    plan = make_plan(num_seeds, len(devices), max_width=max_width())
    sizes = (4, *config.hidden_sizes, 2)
    shapes = list(itertools.pairwise(sizes))

    def forward(weights: list[jax.Array], x: jax.Array) -> list[jax.Array]:
        activations = [x]
        for weight in weights:
            activations.append(activations[-1] @ weight)
        return activations

    def update(weights: list[jax.Array], inputs: jax.Array) -> list[jax.Array]:
        online, target = forward(weights, inputs[0]), forward(weights, inputs[1])
        gradient = online[-1] - target[-1]
        gradients = []
        for i in reversed(range(len(weights))):
            gradients.append(online[i].T @ gradient)
            if i:
                gradient = gradient @ weights[i].T
        # Each product depends on the one before, so that none is dropped or moved out of the loop.
        return [w - 1e-6 * g for w, g in zip(weights, reversed(gradients), strict=True)]

    def run(weights: list[jax.Array], inputs: jax.Array, num_updates: jax.Array) -> Any:
        return jax.lax.fori_loop(0, num_updates, lambda _, w: update(w, inputs), weights)

    mesh = Mesh(np.array(devices[: plan.num_devices]), ("runs",))
    per_run, shared = PartitionSpec("runs"), PartitionSpec()
    program = jax.jit(
        jax.shard_map(
            jax.vmap(run, in_axes=(0, 0, None)),
            mesh=mesh,
            in_specs=(per_run, per_run, shared),
            out_specs=per_run,
            check_vma=False,
        ),
        compiler_options=compiler_options(),
    )
    rng = np.random.default_rng(0)
    slots = plan.slots_per_round

    def place(*shape: int) -> jax.Array:
        values = rng.normal(size=(slots, *shape)).astype(np.float32) / np.sqrt(shape[-2])
        return jax.device_put(values, jax.NamedSharding(mesh, per_run))

    arguments = ([place(*shape) for shape in shapes], place(2, config.batch_size, 4))
    jax.block_until_ready(program(*arguments, jnp.int32(1)))
    start = time.perf_counter()
    for _ in range(plan.num_rounds):
        jax.block_until_ready(program(*arguments, jnp.int32(config.num_updates)))
    seconds = time.perf_counter() - start
    return {"steps_per_second": num_seeds * config.total_steps / seconds}


# ------------------------------------------------------------------------------ over the processes


def measure(worker: Worker, num_seeds: int, args: Args, cache: str) -> dict[str, float]:
    """One measurement, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment["JAX_PLATFORMS"] = "cpu"
    if worker in ("package", "pqn"):
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    flags = {
        "worker": worker,
        "num-seeds": num_seeds,
        "total-steps": args.total_steps,
        "replay-capacity": args.replay_capacity,
    }
    command = [sys.executable, __file__, *(f"--{k}={v}" for k, v in flags.items())]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def compare(num_seeds: int, args: Args, console: Console) -> dict[str, Any]:
    """All three, taking turns, for one number of seeds."""
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "package": [], "bound": []}
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(args.rounds):
            for worker, measured in runs.items():
                measured.append(measure(worker, num_seeds, args, cache))  # type: ignore[arg-type]
                speed = measured[-1]["steps_per_second"]
                console.print(
                    f"{num_seeds} seeds, round {turn + 1}/{args.rounds}: {worker} {speed:,.0f} "
                    "steps per second"
                )
    speeds = {
        worker: statistics.median(run["steps_per_second"] for run in measured)
        for worker, measured in runs.items()
    }
    package = runs["package"]
    later = [run["compile_seconds"] for run in package[1:]]
    return {
        "num_seeds": num_seeds,
        **{f"{worker}_steps_per_second": value for worker, value in speeds.items()},
        "speedup": speeds["package"] / speeds["plain"],
        "fraction_of_bound": speeds["package"] / speeds["bound"],
        "compile_seconds": package[0]["compile_seconds"],
        "compile_seconds_cached": statistics.median(later) if later else None,
        "plain_compile_seconds": statistics.median(r["compile_seconds"] for r in runs["plain"]),
        "train_seconds": statistics.median(run["train_seconds"] for run in package),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in package),
        "peak_rss_above_start_bytes": max(run["peak_rss_above_start_bytes"] for run in package),
        "replay_bytes": package[0]["replay_bytes"],
        "width": package[0]["width"],
        "num_devices": package[0]["num_devices"],
    }


def print_rows(rows: Sequence[dict[str, Any]], title: str, columns: Mapping[str, str]) -> None:
    """Prints a table: a column is a heading, and how it shows a row, such as "{cost:.2f}"."""
    table = Table(*columns, title=title, box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for row in rows:
        table.add_row(*(text.format_map(row) for text in columns.values()))
    make_console().print(table)


def print_table(rows: list[dict[str, Any]]) -> None:
    columns = {
        "seeds": "{num_seeds}",
        "jit(vmap)": "{plain_steps_per_second:,.0f}",
        "purejaxdqn": "{package_steps_per_second:,.0f}",
        "bound": "{bound_steps_per_second:,.0f}",
        "speedup": "{speedup:.2f}",
        "of\nbound": "{fraction_of_bound:.2f}",
        "compile s\n(cached)": "{compile_seconds:.1f}{cached}",
        "peak MB\n(replay)": "{peak:.0f} ({replay:.0f})",
    }
    shown = []
    for row in rows:
        cached = row["compile_seconds_cached"]
        peak, replay = row["peak_rss_above_start_bytes"] / 1e6, row["replay_bytes"] / 1e6
        text = f" ({cached:.1f})" if cached else ""
        shown.append({**row, "cached": text, "peak": peak, "replay": replay})
    print_rows(shown, "environment steps per second, all seeds together", columns)


def main(args: Args) -> None:
    if args.worker is not None:
        workers = {
            "plain": measure_plain,
            "package": measure_package,
            "bound": measure_bound,
            "pqn": measure_pqn,
        }
        print(json.dumps(workers[args.worker](args)))
        return
    for name, values in (("num_seeds", args.num_seeds), ("rounds", [args.rounds])):
        if not values or min(values) < 1:
            raise ConfigError(f"{name} {values} must be at least 1")
    make_config(args).validate()
    console = make_console(stderr=True)
    rows = [compare(num_seeds, args, console) for num_seeds in args.num_seeds]
    print_table(rows)
    if args.json:
        print(json.dumps({"cores": os.cpu_count(), "results": rows}))


if __name__ == "__main__":
    run_script(main, Args)
