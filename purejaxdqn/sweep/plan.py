"""Plans a sweep before anything runs: its programs, its batches, and the memory that they take."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import psutil
from rich.filesize import decimal

from purejaxdqn.engine.memory import TracedRun, free_bytes, trace_run
from purejaxdqn.engine.rounds import evaluation_steps
from purejaxdqn.runtime.devices import Plan, max_width, min_devices
from purejaxdqn.sweep.design import Design, group_by_program
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings import NAMES_OF_RESULTS, RunConfig
from purejaxdqn.types import ConfigError

_PLANNED_SHARE = 0.8  # of the memory that is free


class Group(NamedTuple):
    """Runs that share a compiled program."""

    config: RunConfig  # of the first one; only floats of the others differ
    batches: Sequence[int]  # the numbers of their batches
    num_runs: int
    plan: Plan  # how their batches are laid out over the devices
    run: TracedRun

    @property
    def round_bytes(self) -> int:
        """Bytes on the devices while batches train."""
        return self.plan.slots_per_round * self.run.running_bytes


class SweepPlan(NamedTuple):
    """A sweep, laid out over batches, programs and devices."""

    design: Design
    width: int  # runs per batch; a run's bits depend on it
    batches: Sequence[Sequence[int]]  # the runs of each, which train on one device at a time
    groups: Sequence[Group]
    budget: int  # bytes that runs may take on the devices at a time

    @property
    def result_bytes(self) -> int:
        """Bytes on the host at the end: all numbers and last weights."""
        return sum(group.num_runs * group.run.result_bytes for group in self.groups)

    def describe(self) -> str:
        """Describes the plan in a few lines."""
        design, groups = self.design, self.groups
        lines = [
            f"{_count(len(design.runs), 'run')} ({_count(len(design.points), 'setting')}, "
            f"{_count(len(design.seeds), 'seed')}) in {_count(len(groups), 'program')}, "
            f"{_count(len(self.batches), 'batch')} of up to {self.width}"
        ]
        for number, group in enumerate(groups, 1):
            at_once = min(group.plan.num_devices, len(group.batches))
            lines.append(
                f"program {number}: {_count(group.num_runs, 'run')} of "
                f"{group.config.total_steps:,} steps in {_count(len(group.batches), 'batch')}, "
                f"{at_once} at a time; {decimal(group.run.running_bytes)} a run, "
                f"{decimal(group.round_bytes)} at a time (of {decimal(self.budget)})"
            )
        return "\n".join(lines)


def _count(number: int, one: str) -> str:
    many = "batches" if one == "batch" else f"{one}s"
    return f"{number:,} {one if number == 1 else many}"


def plan_sweep(
    experiment: Experiment,
    design: Design,
    devices: Sequence[jax.Device],
    memory_budget: float | None = None,
    num_devices: int | None = None,
    width: int | None = None,
) -> SweepPlan:
    """Lays a sweep out over devices and memory; compiles nothing.

    Runs take at most `memory_budget` bytes on the devices at a time, by default most of what is
    free. `width` is by default the number of runs per batch for which the devices are done soonest,
    of those that fit; if others than these share the sweep, for `num_devices`.

    Raises:
      ConfigError: if not even the smallest round fits, or the results do not, with the size and
        what makes it big; or if something else than a swept setting has its name in the results.
    """
    budget = int(memory_budget or _PLANNED_SHARE * free_bytes(devices))
    runs = design.runs
    members = group_by_program(run.config for run in runs)
    configs = [runs[group[0]].config for group in members]
    traced = [trace_run(experiment, config) for config in configs]
    for name in design.axes:
        if name in NAMES_OF_RESULTS or any(name in run.outputs.metrics for run in traced):
            raise ConfigError(
                f"{name!r} cannot be swept: something else has that name in the results, choose "
                "another"
            )
    fewest = min(min_devices(), max(len(devices), 1))
    chosen = width or choose_width([*map(len, members)], num_devices or len(devices), max_width())
    for config, run in zip(configs, traced, strict=True):
        widest_that_fits = budget // (fewest * run.running_bytes)
        if width is None:
            chosen = min(chosen, max(widest_that_fits, 1))
        if widest_that_fits < chosen:
            _refuse_size(config, run, chosen, fewest, budget)

    batches: list[Sequence[int]] = []
    groups = []
    for config, group, run in zip(configs, members, traced, strict=True):
        numbers = range(len(batches), len(batches) + math.ceil(len(group) / chosen))
        batches += cut_into_batches(group, chosen)
        fit = budget // (chosen * run.running_bytes)
        at_once = min(len(devices), max(len(numbers), fewest), fit)
        layout = Plan(chosen, at_once, math.ceil(len(numbers) / at_once))
        groups.append(Group(config, numbers, len(group), layout, run))
    plan = SweepPlan(design, chosen, batches, groups, budget)
    _check_results(plan)
    return plan


def cut_into_batches(group: Sequence[int], width: int) -> list[Sequence[int]]:
    """Cuts the runs of a group into batches of a width; the last one may have room left."""
    return [group[at : at + width] for at in range(0, len(group), width)]


def choose_width(group_sizes: Sequence[int], num_devices: int, widest: int) -> int:
    """Chooses the runs per batch for which the devices are done soonest.

    The time of a round is taken to be a constant and as much again for each run of a batch.
    """

    def cost(width: int) -> int:
        rounds = sum(math.ceil(math.ceil(size / width) / num_devices) for size in group_sizes)
        return rounds * (1 + width)

    return min(range(widest, 0, -1), key=cost)


def _refuse_size(config: RunConfig, run: TracedRun, width: int, fewest: int, budget: int) -> None:
    name, largest = max(run.parts.items(), key=lambda part: part[1])
    share = f"{name} ({getattr(config, name)}) makes up {largest / run.running_bytes:.0%} of it"
    batch = f"a batch of {width} run(s)" if width > 1 else "a run"
    pair = "" if fewest == 1 else f", and {fewest} must train side by side"
    narrower = f", or --width ({width})" if width > 1 else ""
    raise ConfigError(
        f"{batch} takes {decimal(width * run.running_bytes)}{pair}, but {decimal(budget)} may be "
        f"used: {share}. Lower {name}{narrower}, or raise --memory-budget"
    )


def _check_results(plan: SweepPlan) -> None:
    """Refuses a sweep whose numbers do not fit into this machine's memory."""
    free = psutil.virtual_memory().available
    if plan.result_bytes <= free:
        return
    config = max(plan.groups, key=lambda group: group.run.result_bytes).config
    raise ConfigError(
        f"the results of {_count(len(plan.design.runs), 'run')} take {decimal(plan.result_bytes)} "
        f"in the end, but {decimal(free)} are free: a run has {len(evaluation_steps(config)):,} "
        f"evaluations of eval_episodes ({config.eval_episodes}) each. Lower eval_episodes, raise "
        "eval_interval, or make several sweeps of it"
    )
