"""How a sweep will be run: programs, batches, bytes and time, worked out before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import psutil
from rich.filesize import decimal

from purejaxdqn.engine.memory import RunBytes, abstract_run, free_bytes, peak_bytes, run_bytes
from purejaxdqn.engine.programs import Experiment
from purejaxdqn.engine.rounds import evaluation_steps
from purejaxdqn.runtime.devices import Plan, max_width, min_devices
from purejaxdqn.storage import arrays as checkpoint
from purejaxdqn.sweep.design import Design
from purejaxdqn.training.diagnostics import DIAGNOSTICS
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ConfigError, Params

_SPARE = 0.8  # of the free memory is planned with


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
    configs = [runs[group[0]].config for group in members]
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


_DOUBTED = 1.6  # times what XLA says of a program's memory: then it does not know all of it


def peak_memory(
    plan: SweepPlan,
    compiled: Mapping[int, int],
    now: int,
    *,
    is_in_process: bool,
    is_kept: bool,
    goes_on: bool,
    is_checkpointed: bool,
) -> int:
    """The most memory that this process is going to have.

    Args:
      plan: the runs, laid out.
      compiled: bytes of a round, as XLA has laid it out, by its group's first batch; 0 if unknown.
      now: bytes that the process has without any run.
      is_in_process: whether the devices' memory is the process's, as that of a CPU is.
      is_kept: whether it writes to a folder.
      goes_on: whether it takes up there what was under way.
      is_checkpointed: whether it trains for long enough to write a checkpoint.

    Returns:
      Bytes; not fewer than it has had.
    """
    running = 0
    for group in plan.groups:
        by_xla = compiled.get(group.batches[0], 0)
        # XLA knows better what it has compiled, but for what it leaves to libraries.
        is_known = by_xla > group.round_bytes / _DOUBTED
        running = max(running, by_xla if is_known else group.round_bytes)
    if goes_on:
        # What is read of a device is there beside its copy.
        running += plan.width * max(group.run_bytes.state for group in plan.groups)
    if is_kept:
        states = (group.plan.slots_per_round * group.run_bytes.state for group in plan.groups)
        running += checkpoint.working_bytes(max(states) if is_checkpointed else 0)
    in_process = running if is_in_process else 0
    return max(peak_bytes(), now + in_process + plan.result_bytes)


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
