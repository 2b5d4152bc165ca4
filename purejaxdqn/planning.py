"""How a sweep will be run: programs, batches, bytes and time, worked out before anything runs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil
from rich.filesize import decimal

from purejaxdqn.config import RunConfig
from purejaxdqn.design import Design
from purejaxdqn.devices import Plan, max_width, min_devices
from purejaxdqn.diagnostics import DIAGNOSTICS
from purejaxdqn.footprint import working_bytes
from purejaxdqn.programs import COUNT, SEED, Experiment, one_run
from purejaxdqn.rounds import evaluation_steps
from purejaxdqn.training import ChunkOutputs
from purejaxdqn.types import ArrayTree, ConfigError, Params, TrainState

_SPARE = 0.8  # of the free memory is planned with


class RunBytes(NamedTuple):
    """Memory of one run, in bytes.

    Attributes:
      parts: on the device while it trains, by the setting that makes each part big.
      state: of these, what is there between two chunks.
      result: on the host until the end, its numbers and its last weights.
    """

    parts: dict[str, int]
    state: int
    result: int

    @property
    def running(self) -> int:
        """On the device while it trains."""
        return sum(self.parts.values())


class AbstractRun(NamedTuple):
    """What a run holds, and computes on its way.

    Attributes:
      state: its `TrainState`, as shapes.
      outputs: what a chunk puts out, as shapes.
      chunk_bytes: of what a chunk computes on its way.
      evaluation_bytes: of what an evaluation does.
    """

    state: TrainState
    outputs: ChunkOutputs
    chunk_bytes: int
    evaluation_bytes: int


class Group(NamedTuple):
    """Runs that share a compiled program.

    Attributes:
      config: their settings, but for the floats.
      batches: their batches, by number.
      plan: how many batches train at the same time; the devices that the program is made for.
      run_bytes: memory of each.
      params: the weights of one run, as shapes.
    """

    config: RunConfig
    batches: tuple[int, ...]
    plan: Plan
    run_bytes: RunBytes
    params: Params

    @property
    def round_bytes(self) -> int:
        """On the devices while batches train."""
        return self.plan.slots_per_round * self.run_bytes.running


class SweepPlan(NamedTuple):
    """A sweep, laid out.

    Attributes:
      design: its runs.
      width: runs per batch; a run's bits depend on it.
      batches: which runs each batch has; what trains on one device at a time.
      groups: one for each compiled program.
      budget: bytes that runs may take on the devices at a time.
    """

    design: Design
    width: int
    batches: tuple[tuple[int, ...], ...]
    groups: tuple[Group, ...]
    budget: int

    @property
    def result_bytes(self) -> int:
        """On the host at the end: all numbers and last weights."""
        return sum(
            len(self.batches[batch]) * group.run_bytes.result
            for group in self.groups
            for batch in group.batches
        )

    def describe(self) -> str:
        """The plan in a few lines."""
        num_runs = len(self.design.runs)
        lines = [
            f"{_count(num_runs, 'run')} ({_count(len(self.design.settings), 'setting')}, "
            f"{_count(len(self.design.seeds), 'seed')}) in {_count(len(self.groups), 'program')}, "
            f"{_count(len(self.batches), 'batch', 'batches')} of up to {self.width}"
        ]
        lines += [
            f"program {number}: {self.describe_group(group)}"
            for number, group in enumerate(self.groups, 1)
        ]
        return "\n".join(lines)

    def describe_group(self, group: Group) -> str:
        """One program in a line."""
        num_runs = sum(len(self.batches[batch]) for batch in group.batches)
        at_once = min(group.plan.num_devices, len(group.batches))
        return (
            f"{_count(num_runs, 'run')} of {group.config.total_steps:,} steps in "
            f"{_count(len(group.batches), 'batch', 'batches')}, {at_once} at a time; "
            f"{decimal(group.run_bytes.running)} a run, {decimal(group.round_bytes)} at a time "
            f"(of {decimal(self.budget)})"
        )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def plan_sweep(
    experiment: Experiment,
    design: Design,
    devices: Sequence[jax.Device],
    *,
    width: int | None = None,
    memory_budget: int | None = None,
    num_devices: int | None = None,
) -> SweepPlan:
    """Lays a sweep out over devices and memory; compiles nothing.

    Args:
      experiment: `config -> Train`.
      design: the runs.
      devices: what to train on.
      width: runs per batch; by default as many as no device idles for, and fit.
      memory_budget: bytes that runs may take on the devices at a time; by default most of what
        is free.
      num_devices: for which the width is chosen, those of other processes or machines included; by
        default these alone.

    Returns:
      The `SweepPlan`.

    Raises:
      ConfigError: if not even the smallest round fits, or the results do not, with the size and
        what makes it big.
    """
    if memory_budget is not None and (
        isinstance(memory_budget, bool)
        or not isinstance(memory_budget, (int, float))  # such as 4e9
        or not 1 <= memory_budget < math.inf
    ):
        raise ConfigError(f"memory_budget ({memory_budget!r}) must be at least 1 byte, such as 4e9")
    budget = int(memory_budget or _SPARE * free_bytes(devices))
    members = design.groups()
    runs = design.runs
    configs = [runs[group[0]].setting.config for group in members]
    traced = [abstract_run(experiment, config) for config in configs]
    _check_names(design, [name for run in traced for name in run.outputs.metrics])
    sizes = [run_bytes(config, run) for config, run in zip(configs, traced, strict=True)]
    least = min(min_devices(), max(len(devices), 1))

    lengths = [len(group) for group in members]
    chosen = width or choose_width(lengths, num_devices or len(devices), max_width())
    for config, size in zip(configs, sizes, strict=True):
        fits = budget // (least * size.running)
        if width is None:
            chosen = min(chosen, max(fits, 1))
        if fits < chosen:
            _refuse(config, size, chosen, least, budget)

    batches: list[tuple[int, ...]] = []
    groups = []
    for config, group, size, run in zip(configs, members, sizes, traced, strict=True):
        ends = range(chosen, len(group), chosen)
        own = [tuple(map(int, part)) for part in np.split(group, ends)]
        numbers = range(len(batches), len(batches) + len(own))
        batches += own
        at_once = min(len(devices), max(len(own), least), budget // (chosen * size.running))
        layout = Plan(chosen, at_once, math.ceil(len(own) / at_once))
        groups.append(Group(config, tuple(numbers), layout, size, run.state.learner.params))
    plan = SweepPlan(design, chosen, tuple(batches), tuple(groups), budget)
    _check_results(plan)
    return plan


def _check_names(design: Design, metrics: Sequence[str]) -> None:
    """Refuses what would have the name of something else in the results."""
    taken = {"run", "sample", "seed", "step", "episode", "settings", "diverged", "num_updates"}
    taken |= {"evaluation_return", "training_return", "final_return", *metrics, *DIAGNOSTICS}
    for name in design.axes:
        if name in taken:
            raise ConfigError(
                f"{name!r} cannot be swept: something else has that name in the results, choose "
                "another"
            )


def choose_width(group_sizes: Sequence[int], num_devices: int, widest: int) -> int:
    """Runs per batch for which the devices are done soonest.

    A round of batches takes a time that grows with the width, and has a part that does not.
    """

    def cost(width: int) -> int:
        rounds = sum(math.ceil(math.ceil(size / width) / num_devices) for size in group_sizes)
        return rounds * (1 + width)

    return min(range(widest, 0, -1), key=cost)


def _refuse(config: RunConfig, size: RunBytes, width: int, least: int, budget: int) -> None:
    name, largest = max(size.parts.items(), key=lambda part: part[1])
    batch = f"a batch of {width} run(s)" if width > 1 else "a run"
    pair = "" if least == 1 else f", and {least} must train side by side"
    narrower = f", or --width ({width})" if width > 1 else ""
    raise ConfigError(
        f"{batch} takes {decimal(width * size.running)}{pair}, but {decimal(budget)} may be used: "
        f"{name} ({getattr(config, name)}) makes up {largest / size.running:.0%} of it. Lower "
        f"{name}{narrower}, or raise --memory-budget"
    )


def _check_results(plan: SweepPlan) -> None:
    """Refuses what could be trained, but whose numbers this machine could not hold."""
    free = psutil.virtual_memory().available
    if plan.result_bytes <= free:
        return
    group = max(plan.groups, key=lambda group: group.run_bytes.result)
    num_evaluations = len(evaluation_steps(group.config))
    raise ConfigError(
        f"the results of {_count(len(plan.design.runs), 'run')} take {decimal(plan.result_bytes)} "
        f"in the end, but {decimal(free)} are free: a run has {num_evaluations:,} evaluations of "
        f"eval_episodes ({group.config.eval_episodes}) each. Lower eval_episodes, raise "
        "eval_interval, or make several sweeps of it"
    )


# --------------------------------------------------------------------------------------- bytes


def abstract_run(experiment: Experiment, config: RunConfig) -> AbstractRun:
    """Traces a run of these settings; computes nothing."""
    run = one_run(experiment, config)
    counts = jax.ShapeDtypeStruct((1,), COUNT.dtype)
    chunk_bytes, outputs = working_bytes(
        lambda *args: run.chunk(*args)[1], run.floats, run.state, counts
    )
    params = run.state.learner.params
    evaluation_bytes, _ = working_bytes(run.evaluate, run.floats, params, SEED, COUNT)
    return AbstractRun(run.state, outputs, chunk_bytes, evaluation_bytes)


def run_bytes(config: RunConfig, run: AbstractRun) -> RunBytes:
    """What the shapes of a run take."""
    state, outputs, working = run.state, run.outputs, run.chunk_bytes
    learner = tree_bytes(state.learner)
    params = tree_bytes(state.learner.params)
    num_evaluations = len(evaluation_steps(config))
    num_curves = 1 + len(outputs.metrics)
    parts = {
        # Gradients and steps are as large as the weights.
        "hidden_sizes": learner + 2 * params,
        "num_envs": tree_bytes((state.env_state, state.obs, outputs)),
        # Between two chunks: only what it takes more than they do.
        "eval_episodes": max(0, run.evaluation_bytes - working),
    }
    if state.replay is not None:
        parts["replay_capacity"] = tree_bytes(state.replay)
        width = sum(config.hidden_sizes) + sum(config.head_sizes)  # type: ignore[attr-defined]
        # Each layer's values and gradients at the least.
        layers = 4 * 4 * width * config.batch_size  # type: ignore[attr-defined]
        parts["batch_size"] = max(layers, working - 2 * params)
    else:
        parts["num_envs"] += max(0, working - 2 * params)  # all that is played is learned from
    numbers = 4 * num_evaluations * config.eval_episodes + 8 * num_evaluations * num_curves
    return RunBytes(parts, tree_bytes(state), 2 * numbers + 2 * params)


def tree_bytes(tree: ArrayTree) -> int:
    """Of arrays, or of their shapes."""

    def size(leaf: Any) -> int:
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return math.prod(leaf.shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Memory that is free for runs: of the accelerators, or of the machine."""
    stats = [device.memory_stats() for device in devices]
    if devices[0].platform != "cpu" and all(stats):
        return sum(one["bytes_limit"] - one["bytes_in_use"] for one in stats if one is not None)
    free = psutil.virtual_memory().available
    limit = _container_limit()
    if limit is not None:
        free = min(free, limit - memory_bytes())
    return max(int(free), 1)


def _container_limit() -> int | None:
    """What a container or a cluster's job may use, where one is set (control groups 2 and 1)."""
    root = Path("/sys/fs/cgroup")
    limits = []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        base = root / "memory" if "memory" in controllers.split(",") else root
        name = "memory.limit_in_bytes" if base != root else "memory.max"
        folder = base / path.lstrip("/")
        for parent in (folder, *folder.parents):
            limits += [int(text) for text in _lines(parent / name) if text.isdigit()]
            if parent == root:
                break
    total = psutil.virtual_memory().total
    return min((limit for limit in limits if limit < total), default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgt", 1)}


def parse_bytes(text: str) -> int:
    """Such as "4GB", "500 MiB" or "1e9".

    Raises:
      ConfigError: if it is no positive amount of memory.
    """
    match = re.fullmatch(
        r"\s*(?P<amount>\d+\.?\d*(?:e\+?\d+)?|\.\d+)\s*(?P<unit>[kmgt]i?)?b?\s*", text.lower()
    )
    amount = float(match["amount"]) * _UNITS[match["unit"] or ""] if match else 0.0
    if not 1 <= amount < math.inf:
        raise ConfigError(
            f"memory_budget ({text!r}) must be an amount of memory, such as 4GB or 500MiB"
        )
    return int(amount)


def memory_bytes() -> int:
    """The memory that this process has now."""
    resident: int = psutil.Process().memory_info().rss
    return resident


def peak_bytes() -> int:
    """The most memory that this process has had, as the operating system saw it."""
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
