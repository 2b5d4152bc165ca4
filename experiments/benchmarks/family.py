"""What each component of the family costs beside plain DQN, on the settings of throughput.py.

    python experiments/benchmarks/family.py
    python experiments/benchmarks/family.py --components double prioritised --num-seeds 8 --json
    python experiments/benchmarks/family.py --env MinAtar/Breakout-v1

All programs live in one process and take turns, a chunk at a time, so that a drift of the machine's
speed meets all of them. The cost is a component's median time per iteration over plain DQN's, after
compilation, with the same replay capacity. "Products" is how many multiplications the products of
matrices in its compiled program have, over plain DQN's: what it would cost if all else were free.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.progress import track
from throughput import Args as ThroughputArgs
from throughput import make_config, print_rows

from purejaxdqn import agents
from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.agents.torso import settings_for_images
from purejaxdqn.cli.exits import run_script
from purejaxdqn.engine.programs import compile_programs
from purejaxdqn.runtime.console import make_console
from purejaxdqn.runtime.devices import Plan, use_every_core
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.plan import plan_sweep
from purejaxdqn.training.loop import Experiment
from purejaxdqn.types import ConfigError

COMPONENTS: dict[str, dict[str, Any]] = {
    "double": {"td_error": "double_q_learning"},
    "dueling": {"dueling": True},
    "n_step": {"n_step": 3},
    "prioritised": {"prioritised": True},
    "munchausen": {"munchausen": True},
    "noisy": {"noisy": True},
    "c51": {"representation": "categorical"},
    "qr_dqn": {"representation": "quantile", "num_quantiles": 32},
    "iqn": {"representation": "implicit_quantile", "num_quantiles": 8},
    "fqf": {"representation": "proposed_quantile", "num_quantiles": 8},
}
# The agents of these names have fewer cosines than their papers, 64.
COMPONENTS |= {f"{x}_16_cosines": {**COMPONENTS[x], "num_cosines": 16} for x in ("iqn", "fqf")}
RAINBOW = "rainbow"


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    components: tuple[str, ...] = (*COMPONENTS, RAINBOW)
    """What to measure; rainbow with its own settings, beside plain DQN of the same size."""
    capacities: tuple[int, ...] = (100_000, 1_000_000)
    """Transitions per seed; only prioritised replay is measured at more than the first."""
    env: str = "CartPole-v1"
    """The task; one with images is learned by convolutions, in batches of 32, once in 4 steps."""
    num_seeds: int = 8
    """Seeds side by side."""
    rounds: int = 30
    """Chunks per program."""
    iterations: int = 50
    """Iterations per chunk, each of 10 environment steps and one update."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""


_SHAPE = re.compile(r"(%[\w.-]+) = \w+\[([\d,]*)\]")
_PRODUCT = re.compile(r"(%[\w.-]+) = \S+ dot\((%[\w.-]+), .*lhs_contracting_dims=\{([\d,]+)\}")


def count_products(program: str) -> int:
    """Counts the multiplications of all products of matrices in a compiled program's text, once."""

    def numbers(text: str) -> list[int]:
        return [int(x) for x in text.split(",") if x]

    shapes = {name: numbers(shape) for name, shape in _SHAPE.findall(program)}
    return sum(
        math.prod(shapes[result]) * math.prod(shapes[left][axis] for axis in numbers(axes))
        for result, left, axes in _PRODUCT.findall(program)
    )


def plan_seeds(config: DQNConfig, num_seeds: int, experiment: Experiment = dqn) -> Plan:
    """How a sweep lays seeds out: in rounds, if many at a time would not fit into the cache."""
    design = grid_design(config, range(num_seeds), {})
    return plan_sweep(experiment, design, use_every_core()).groups[0].plan


def make_runner(
    config: DQNConfig, args: Args, experiment: Experiment, plan: Plan | None = None
) -> tuple[Callable[[], float], float, float]:
    """A function that runs a chunk of a round and says how many seconds it took, for all rounds.

    Also the seconds of compiling, and the multiplications of the products of a run's iteration.
    """
    devices = use_every_core()
    plan = plan or plan_seeds(config, args.num_seeds, experiment)
    programs = compile_programs(experiment, config, plan, devices)
    slots = plan.slots_per_round
    seeds = programs.place(np.arange(slots, dtype=np.uint32))
    configs = jax.tree.map(lambda x: programs.place(np.full(slots, x, np.float32)), config)
    state = [programs.init(configs, seeds)]  # a box, since each chunk takes the old state's place
    counts = programs.place(np.full(plan.num_devices, args.iterations, np.int32))

    def run() -> float:
        start = time.perf_counter()
        state[0], outputs = programs.chunk(configs, state[0], counts)
        jax.block_until_ready(outputs)
        return (time.perf_counter() - start) * plan.num_rounds

    compiled: Any = programs.chunk
    return run, programs.compile_seconds, count_products(compiled.as_text()) / plan.width


def measure_in_turns(
    programs: dict[str, tuple[DQNConfig, Experiment]], args: Args, plan: Plan | None = None
) -> dict[str, tuple[float, float, float]]:
    """The median seconds of a chunk by name, those of compiling, and the products' size.

    With a plan, that of all programs; else each has its own.
    """
    console = make_console(stderr=True)
    runners = {
        name: make_runner(config, args, experiment, plan)
        for name, (config, experiment) in track(programs.items(), "compiling", console=console)
    }
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for turn in track(range(args.rounds + 1), "measuring", console=console):
        for name, (run, *_) in runners.items():
            taken = run()
            if turn:  # the first one warms up
                seconds[name].append(taken)
    return {name: (statistics.median(seconds[name]), *runners[name][1:]) for name in runners}


def compare(configs: dict[str, DQNConfig], args: Args) -> list[dict[str, Any]]:
    """Some agents, of which the first one is the measure of all."""
    measured = measure_in_turns({name: (config, dqn) for name, config in configs.items()}, args)
    first, _, first_products = next(iter(measured.values()))
    return [
        {
            "component": name,
            "replay_capacity": configs[name].replay_capacity,
            "cost": median / first,
            "products": products / first_products,
            "microseconds": median / args.iterations / args.num_seeds * 1e6,
            "compile_seconds": compile_seconds,
        }
        for name, (median, compile_seconds, products) in measured.items()
    ]


def settings_of_task(env: str) -> dict[str, Any]:
    """What all agents have on a task with images; of CartPole, nothing."""
    images = settings_for_images(env)
    of_all = {"env": env, "num_envs": 4, "steps_per_update": 4, "batch_size": 32, **images}
    return of_all if images else {"env": env}


def list_comparisons(args: Args) -> list[dict[str, DQNConfig]]:
    """Each with plain DQN as the first."""
    comparisons: list[dict[str, DQNConfig]] = []
    for capacity in args.capacities:
        plain = dataclasses.replace(
            make_config(ThroughputArgs()), replay_capacity=capacity, **settings_of_task(args.env)
        )
        names = [name for name in args.components if name != RAINBOW]
        if comparisons:
            names = [name for name in names if name == "prioritised"]
        if names:
            changed = {name: dataclasses.replace(plain, **COMPONENTS[name]) for name in names}
            comparisons.append({"dqn": plain, **changed})
    if RAINBOW in args.components:
        rainbow = agents.get(RAINBOW).config
        assert isinstance(rainbow, DQNConfig)
        rainbow = dataclasses.replace(rainbow, **settings_of_task(args.env))
        without: dict[str, Any] = {
            "dueling": False,
            "prioritised": False,
            "noisy": False,
            "n_step": 1,
        }
        without |= {"td_error": "q_learning", "representation": "values"}
        plain = dataclasses.replace(rainbow, **without)
        comparisons.append({"dqn, as large as rainbow": plain, RAINBOW: rainbow})
    return comparisons


def main(args: Args) -> None:
    if unknown := sorted(set(args.components) - {*COMPONENTS, RAINBOW}):
        raise ConfigError(f"components {unknown} must be of {', '.join(COMPONENTS)}, {RAINBOW}")
    if min(args.num_seeds, args.rounds, args.iterations, *args.capacities) < 1:
        raise ConfigError("num_seeds, rounds, iterations and capacities must be at least 1")
    rows = [row for configs in list_comparisons(args) for row in compare(configs, args)]
    columns = {
        "component": "{component}",
        "replay capacity": "{replay_capacity:,}",
        "cost": "{cost:.2f}",
        "products": "{products:.2f}",
        "us per seed": "{microseconds:.0f}",
        "compile s": "{compile_seconds:.1f}",
    }
    print_rows(rows, f"{args.num_seeds} seeds", columns)
    if args.json:
        print(json.dumps({"num_seeds": args.num_seeds, "results": rows}))


if __name__ == "__main__":
    run_script(main, Args)
