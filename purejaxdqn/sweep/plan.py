"""Plans a sweep before anything runs: its programs, its batches, and the memory that they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import psutil
from rich.filesize import decimal

from purejaxdqn.engine.memory import RunBytes, free_bytes, peak_bytes, run_bytes, trace_run
from purejaxdqn.engine.rounds import evaluation_steps
from purejaxdqn.runtime.devices import Plan, max_width, min_devices
from purejaxdqn.storage.checkpoint import estimate_write_memory
from purejaxdqn.sweep.design import Design
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings import NAMES_OF_RESULTS, RunConfig
from purejaxdqn.types import ConfigError, Params

_PLANNED_SHARE = 0.8  # of the memory that is free


class Group(NamedTuple):
    """Runs that share a compiled program.

    Attributes:
      config: their settings; the floats are those of the first run.
      batches: the numbers of their batches.
      plan: how their batches are laid out over the devices.
      run_bytes: the memory of each run.
      params: the weights of one run, as shapes.
    """

    config: RunConfig
    batches: tuple[int, ...]
    plan: Plan
    run_bytes: RunBytes
    params: Params

    @property
    def round_bytes(self) -> int:
        """Bytes on the devices while batches train."""
        return self.plan.slots_per_round * self.run_bytes.running


class SweepPlan(NamedTuple):
    """A sweep, laid out over batches, programs and devices.

    Attributes:
      design: its runs.
      width: runs per batch; a run's bits depend on it.
      batches: which runs each batch has; a batch is what trains on one device at a time.
      groups: the runs of each compiled program.
      budget: bytes that runs may take on the devices at a time.
    """

    design: Design
    width: int
    batches: tuple[tuple[int, ...], ...]
    groups: tuple[Group, ...]
    budget: int

    @property
    def result_bytes(self) -> int:
        """Bytes on the host at the end: all numbers and last weights."""
        return sum(
            len(self.batches[batch]) * group.run_bytes.result
            for group in self.groups
            for batch in group.batches
        )

    def describe(self) -> str:
        """Describes the plan in a few lines."""
        num_runs = len(self.design.runs)
        lines = [
            f"{_count(num_runs, 'run')} ({_count(len(self.design.points), 'setting')}, "
            f"{_count(len(self.design.seeds), 'seed')}) in {_count(len(self.groups), 'program')}, "
            f"{_count(len(self.batches), 'batch', 'batches')} of up to {self.width}"
        ]
        lines += [
            f"program {number}: {self._describe_group(group)}"
            for number, group in enumerate(self.groups, 1)
        ]
        return "\n".join(lines)

    def _describe_group(self, group: Group) -> str:
        """Describes one program in a line."""
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
    memory_budget: float | None = None,
    num_devices: int | None = None,
) -> SweepPlan:
    """Lays a sweep out over devices and memory; compiles nothing.

    Args:
      experiment: `config -> Train`.
      design: the runs.
      devices: what to train on.
      width: runs per batch; by default the number for which the devices are done soonest, of those
        that fit.
      memory_budget: bytes that runs may take on the devices at a time; by default most of what
        is free.
      num_devices: the devices to choose the width for, if others than these share the sweep.

    Raises:
      ConfigError: if not even the smallest round fits, or the results do not, with the size and
        what makes it big.
    """
    budget = int(memory_budget or _PLANNED_SHARE * free_bytes(devices))
    groups_of_runs = design.groups()
    runs = design.runs
    configs = [runs[group[0]].config for group in groups_of_runs]
    traced = [trace_run(experiment, config) for config in configs]
    _check_names(design, [name for run in traced for name in run.outputs.metrics])
    sizes = [run_bytes(config, run) for config, run in zip(configs, traced, strict=True)]
    fewest_devices = min(min_devices(), max(len(devices), 1))

    lengths = [len(group) for group in groups_of_runs]
    chosen = width or choose_width(lengths, num_devices or len(devices), max_width())
    for config, size in zip(configs, sizes, strict=True):
        widest_that_fits = budget // (fewest_devices * size.running)
        if width is None:
            chosen = min(chosen, max(widest_that_fits, 1))
        if widest_that_fits < chosen:
            _refuse_size(config, size, chosen, fewest_devices, budget)

    batches: list[tuple[int, ...]] = []
    groups = []
    for config, group, size, run in zip(configs, groups_of_runs, sizes, traced, strict=True):
        boundaries = range(chosen, len(group), chosen)
        group_batches = [tuple(map(int, part)) for part in np.split(group, boundaries)]
        numbers = range(len(batches), len(batches) + len(group_batches))
        batches += group_batches
        batches_at_once = min(
            len(devices), max(len(group_batches), fewest_devices), budget // (chosen * size.running)
        )
        layout = Plan(chosen, batches_at_once, math.ceil(len(group_batches) / batches_at_once))
        groups.append(Group(config, tuple(numbers), layout, size, run.state.learner.params))
    plan = SweepPlan(design, chosen, tuple(batches), tuple(groups), budget)
    _check_results(plan)
    return plan


def _check_names(design: Design, metrics: Sequence[str]) -> None:
    """Refuses swept names that the results have for something else."""
    for name in design.axes:
        if name in NAMES_OF_RESULTS or name in metrics:
            raise ConfigError(
                f"{name!r} cannot be swept: something else has that name in the results, choose "
                "another"
            )


def choose_width(group_sizes: Sequence[int], num_devices: int, widest: int) -> int:
    """Chooses the runs per batch for which the devices are done soonest.

    The time of a round is taken to be a constant and as much again for each run of a batch.
    """

    def cost(width: int) -> int:
        rounds = sum(math.ceil(math.ceil(size / width) / num_devices) for size in group_sizes)
        return rounds * (1 + width)

    return min(range(widest, 0, -1), key=cost)


def _refuse_size(
    config: RunConfig, size: RunBytes, width: int, fewest_devices: int, budget: int
) -> None:
    name, largest = max(size.parts.items(), key=lambda part: part[1])
    batch = f"a batch of {width} run(s)" if width > 1 else "a run"
    pair = "" if fewest_devices == 1 else f", and {fewest_devices} must train side by side"
    narrower = f", or --width ({width})" if width > 1 else ""
    raise ConfigError(
        f"{batch} takes {decimal(width * size.running)}{pair}, but {decimal(budget)} may be used: "
        f"{name} ({getattr(config, name)}) makes up {largest / size.running:.0%} of it. Lower "
        f"{name}{narrower}, or raise --memory-budget"
    )


def _check_results(plan: SweepPlan) -> None:
    """Refuses a sweep whose numbers do not fit into this machine's memory."""
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


_DISBELIEF_FACTOR = 1.6  # ignore XLA's estimate if ours is this many times larger


def estimate_peak_memory(
    plan: SweepPlan,
    compiled: Mapping[int, int],
    now: int,
    *,
    is_in_process: bool,
    is_kept: bool,
    is_resumed: bool,
    is_checkpointed: bool,
) -> int:
    """Estimates the most memory that this process is going to have.

    Args:
      plan: the runs, laid out.
      compiled: by a group's first batch, the bytes of a round as XLA has laid it out; 0 if unknown.
      now: bytes that the process has without any run.
      is_in_process: whether the devices' memory is the process's, as that of a CPU is.
      is_kept: whether the process writes to a folder.
      is_resumed: whether it reads checkpoints of batches under way there.
      is_checkpointed: whether it trains for long enough to write a checkpoint.

    Returns:
      Bytes; at least the most that the process has had so far.
    """
    running = 0
    for group in plan.groups:
        by_xla = compiled.get(group.batches[0], 0)
        # XLA knows its own buffers better than we do, but not those of the libraries that it calls.
        is_known = by_xla > group.round_bytes / _DISBELIEF_FACTOR
        running = max(running, by_xla if is_known else group.round_bytes)
    if is_resumed:
        # A batch that is read from the disk is there beside its copy on the device.
        running += plan.width * max(group.run_bytes.state for group in plan.groups)
    if is_kept:
        states = (group.plan.slots_per_round * group.run_bytes.state for group in plan.groups)
        running += estimate_write_memory(max(states) if is_checkpointed else 0)
    in_process = running if is_in_process else 0
    return max(peak_bytes(), now + in_process + plan.result_bytes)
