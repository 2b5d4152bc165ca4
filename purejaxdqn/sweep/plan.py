"""Plans a sweep before anything runs: its programs, its batches, and the memory that they take."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import psutil
from rich.filesize import decimal

from purejaxdqn.engine.memory import TracedRun, free_bytes, trace_run
from purejaxdqn.engine.rounds import evaluation_steps
from purejaxdqn.runtime.devices import Plan, available_cores, max_width, min_devices
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

    @property
    def restoring_bytes(self) -> int:
        """Bytes while batches go from the host back to the devices, an array of a batch at a time.

        An array is then in both places.
        """
        run = self.run
        return self.plan.slots_per_round * run.state_bytes + self.plan.width * run.array_bytes


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
        return 2 * sum(
            group.num_runs * (group.run.number_bytes + group.run.weight_bytes)
            for group in self.groups
        )

    def added_bytes(self, running: int, finished: Collection[int], keeps: bool) -> int:
        """Computes the most bytes that training adds on the host, beside the `finished` batches.

        Every batch's numbers and last weights stay until the end, when all weights are stacked, and
        the `running` bytes of batches that train are free. A sweep that `keeps` its results writes
        them while it trains, too.
        """
        held = numbers = weights = 0
        for group in self.groups:
            for number in group.batches:
                num_runs = len(self.batches[number])
                numbers += num_runs * group.run.number_bytes
                weights += num_runs * group.run.weight_bytes
                if number not in finished:
                    held += num_runs * (group.run.number_bytes + group.run.weight_bytes)
        # A dataset has the numbers once more, and a file's digests are made of two further copies.
        dataset = (3 if keeps else 1) * numbers
        return held + max(running + (dataset if keeps else 0), weights + dataset)

    def describe(self, num_finished: int = 0) -> str:
        """Describes in a few lines what trains beside what, and after what.

        `num_finished` of the batches are not trained any more.
        """
        design, groups = self.design, self.groups
        lines = [
            f"{_count(len(design.runs), 'run')} ({_count(len(design.points), 'setting')}, "
            f"{_count(len(design.seeds), 'seed')}) in {_count(len(groups), 'program')}"
            f"{', one after another' if len(groups) > 1 else ''}"
        ]
        cores = available_cores() if jax.default_backend() == "cpu" else None
        for number, group in enumerate(groups, 1):
            sizes = [len(self.batches[batch]) for batch in group.batches]
            layout = describe_layout(sizes, group.plan.num_devices, jax.process_count(), cores)
            lines.append(
                f"program {number}: {_count(group.num_runs, 'run')} of "
                f"{_count(group.config.total_steps, 'step')} {layout}; room for "
                f"{_count(group.plan.slots_per_round, 'run')} of "
                f"{decimal(group.run.running_bytes)} at a time, {decimal(group.round_bytes)} of "
                f"the {decimal(self.budget)} that may be used"
            )
        if num_finished:
            whole = _count(len(self.batches), "batch")
            lines.append(f"{num_finished:,} of {whole} finished already")
        return "\n".join(lines)


def describe_layout(
    sizes: Sequence[int], num_devices: int, num_processes: int, num_cores: int | None
) -> str:
    """Describes which batches, of these sizes, train side by side, and which one after another.

    They are dealt out to processes with so many devices each; on a CPU, with so many cores.
    """
    share = math.ceil(len(sizes) / num_processes)  # the most batches of a process
    at_once = min(num_devices, share)
    num_rounds = math.ceil(share / at_once)
    up_to = "" if min(sizes) == max(sizes) else "up to "
    text = f"in {_count(len(sizes), 'batch')} of {up_to}{_count(max(sizes), 'run')}, "
    if min(num_processes, len(sizes)) > 1:
        text += f"dealt out to {num_processes} processes, in each "
    if at_once == 1:
        return f"{text}{'one after another ' if share > 1 else ''}on 1 device"
    if num_rounds > 1:
        is_whole = len(sizes) == num_processes * at_once * num_rounds
        text += f"{'' if is_whole else 'up to '}{at_once} "
    text += f"side by side on {at_once} devices"
    if num_cores is not None and num_cores < at_once:
        text += f" that take turns on {_count(num_cores, 'core')}"
    return text if num_rounds == 1 else f"{text}, in {num_rounds:,} rounds one after another"


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
    config = max(plan.groups, key=lambda group: group.run.number_bytes).config
    raise ConfigError(
        f"the results of {_count(len(plan.design.runs), 'run')} take {decimal(plan.result_bytes)} "
        f"in the end, but {decimal(free)} are free: a run has {len(evaluation_steps(config)):,} "
        f"evaluations of eval_episodes ({config.eval_episodes}) each. Lower eval_episodes, raise "
        "eval_interval, or make several sweeps of it"
    )
