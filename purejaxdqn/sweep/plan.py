"""Plans a sweep before anything runs: its programs, its batches, and the memory that they take."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil
from rich.filesize import decimal

from purejaxdqn import agents
from purejaxdqn.engine.memory import TracedRun, free_bytes, trace_run
from purejaxdqn.engine.programs import COUNT, SEED, OneRun, make_traced, trace_reads
from purejaxdqn.engine.rounds import evaluation_steps
from purejaxdqn.runtime.devices import Plan, available_cores, choose_width, min_devices
from purejaxdqn.storage import provenance
from purejaxdqn.sweep.design import Design, Point, group_by_program
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings import NAMES_OF_RESULTS, RunConfig, name_of_kind
from purejaxdqn.types import ConfigError, Params

_PLANNED_SHARE = 0.8  # of the memory that is free
# What the sweep itself reads of a run's settings, and the name that says where they come from.
_READ_BY_SWEEP = {"agent", "total_steps", "eval_interval", "eval_episodes"}
_ON_HOST = (
    "steps on the host: a run that is resumed begins new episodes, and is not what it would have "
    "been to the bit; runs of one process share what the environment's own code shares"
)


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
    recorded: Design  # as results have it, with the environments that were passed in place of `env`
    width: int  # runs per batch; a run's bits depend on it
    batches: Sequence[Sequence[int]]  # the runs of each, which train on one device at a time
    groups: Sequence[Group]
    budget: int  # bytes that runs may take on the devices at a time

    @property
    def environment(self) -> dict[str, Any]:
        """Facts of the environment, as attributes: of several, only what holds `on_host`."""
        envs = [group.run.functions.env for group in self.groups]
        facts = [(env.name, env.threshold) for env in envs]
        named = dict(zip(("env", "threshold"), facts[0], strict=True))
        is_one = len({*facts}) == 1
        noted = {"on_host": _ON_HOST} if any(env.is_host for env in envs) else {}
        return noted | {name: fact for name, fact in named.items() if is_one and fact is not None}

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
            lines += _describe_episodes(group)
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


def _describe_episodes(group: Group) -> list[str]:
    """Says what it costs that episodes may be cut, and where evaluation stops them."""
    env, config, lines = group.run.functions.env, group.config, []
    interval, capacity = env.truncation_interval, getattr(config, "replay_capacity", None)
    if interval is not None and capacity is not None and group.run.state.replay is not None:
        space = env.observation_space
        num_rows = (capacity // config.num_envs - 1) // interval + 2
        size = num_rows * config.num_envs * math.prod(space.shape) * space.dtype.itemsize
        size //= env.frames  # of which the newest alone is kept
        lines.append(
            f"an episode may be cut {'at any step' if interval == 1 else f'at step {interval:,}'}: "
            f"a run's replay takes {decimal(size)} more, for what followed then"
        )
    if env.max_steps is None:
        steps = _count(config.eval_max_steps, "step")
        lines.append(f"{env.name} has no time limit: evaluation stops an episode after {steps}")
    if env.is_host:
        lines.append(f"{env.name} {_ON_HOST}")
    return lines


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
        what makes it big; if something else than a swept setting has its name in the results; or
        for a setting that is swept or set, and that the experiment does not read.
    """
    budget = int(memory_budget or _PLANNED_SHARE * free_bytes(devices))
    runs = design.runs
    members = group_by_program(run.config for run in runs)
    configs = [runs[group[0]].config for group in members]
    traced = [trace_run(experiment, config) for config in configs]
    for name in design.axes:
        curves = [{**run.outputs.metrics, **run.outputs.measured} for run in traced]
        if name in NAMES_OF_RESULTS or any(name in curve for curve in curves):
            raise ConfigError(
                f"{name!r} cannot be swept: something else has that name in the results, choose "
                "another"
            )
    _refuse_unread(experiment, design, traced)
    fewest = min(min_devices(), max(len(devices), 1))
    widest = min(run.max_width for run in traced)
    chosen = width or choose_width([*map(len, members)], num_devices or len(devices), widest)
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
    recorded = design
    if any("env" not in run.functions.read for run in traced):
        made = {jax.tree.structure(c): x.functions for c, x in zip(configs, traced, strict=True)}
        points = [
            point._replace(config=record_environment(point.config, made)) for point in design.points
        ]
        recorded = design._replace(points=tuple(points))
    plan = SweepPlan(design, recorded, chosen, batches, groups, budget)
    _check_results(plan)
    return plan


def _refuse_unread(experiment: Experiment, design: Design, traced: Sequence[TracedRun]) -> None:
    """Refuses a setting that is swept or set otherwise than by default, and that no run reads.

    What is passed to an experiment does not read the settings of the part that it replaces. The
    settings that a class of the user's adds are the user's business.
    """
    runs = [one.functions for one in traced]
    read = _READ_BY_SWEEP.union(*(run.read for run in runs))
    for point in design.points:
        defaults = defaults_of(point.config)
        kinds = [kind for kind in type(point.config).__mro__ if issubclass(kind, RunConfig)]
        declared = settings_of(next(kind for kind in kinds if _is_own(kind)))
        for name in [name for name in declared if name not in read]:
            value, is_swept = getattr(point.config, name), name in design.axes
            if not is_swept and value == getattr(defaults, name):
                continue
            if name == "env" and {run.env.name for run in runs} == {value}:
                continue  # what was passed is called so
            for run in runs:  # evaluation and diagnostics read settings too
                read |= trace_reads(run.evaluate, run.config, run.state, SEED, COUNT)[0]
                if run.train.probe is not None:
                    weights = run.state.learner.params
                    args = (run.config, run.state, weights, SEED, COUNT)
                    read |= trace_reads(run.diagnose, *args)[0]
            is_read = declared[name].is_read(point.config)
            if name in read or not (is_read or is_swept or _is_replaced(experiment, point, name)):
                continue
            part = _find_part(experiment, point, name)
            if part and not is_swept and _is_true_of(part[1], point, name, runs):
                continue
            what = f"{name} is swept" if is_swept else f"{name} ({value!r}) is set"
            reason = (
                f"nothing in {provenance.name_experiment(experiment)['experiment']} depends on it: "
                f"leave {name} out, or train with an experiment that does"
            )
            if part:
                reason = (
                    f"{part[0]}= stands in place of the part that reads it: leave {name} out, or "
                    f"pass no {part[0]}"
                )
            elif not is_read and not _is_replaced(experiment, point, name):
                where = declared[name].read_only_where()
                reason = f"it is read only where {where}: leave it out, or set that too"
            raise ConfigError(f"{what}, but {reason}")


def _is_own(kind: type[RunConfig]) -> bool:
    """Tells whether a class of settings is the package's."""
    return "." not in name_of_kind(kind)


def defaults_of(config: RunConfig) -> RunConfig:
    """Returns the settings before any was set: those of agent and task, or else of the class."""
    known = None
    if config.agent in agents.names():
        own = agents.get(config.agent).config
        known = dataclasses.replace(agents.defaults(config.agent, config.env), env=own.env)
    return known if type(known) is type(config) else type(config)()


def _is_replaced(experiment: Experiment, point: Point, name: str) -> bool:
    """Tells whether an experiment is made without a setting, also where others leave it read."""
    config = point.config
    for condition in settings_of(type(config))[name].read_if[:1]:
        values = {n: x[0] if isinstance(x, tuple) else x for n, x in condition.items()}
        known = {n: value for n, value in values.items() if hasattr(config, n)}
        config = dataclasses.replace(config, **known)
    return name not in make_traced(experiment, config)[0]


def _find_part(experiment: Experiment, point: Point, name: str) -> tuple[str, Experiment] | None:
    """Finds the part that was passed in place of a setting's reader, and the rest without it."""
    if experiment is agents.train:
        experiment = agents.experiment_of(point.config)
    if isinstance(experiment, functools.partial) and _is_replaced(experiment, point, name):
        parameters = inspect.signature(experiment.func).parameters
        for part in experiment.keywords:
            others = {key: value for key, value in experiment.keywords.items() if key != part}
            without = functools.partial(experiment.func, *experiment.args, **others)
            is_needed = part in parameters and parameters[part].default is inspect.Parameter.empty
            if not is_needed and not _is_replaced(without, point, name):
                return part, without
    return None


def _is_true_of(without: Experiment, point: Point, name: str, runs: Sequence[OneRun]) -> bool:
    """Tells whether a setting, such as `hidden_sizes`, gives the shapes of the part passed."""
    default = getattr(defaults_of(point.config), name)

    def shapes(config: RunConfig) -> str:
        def init(traced: RunConfig) -> Params:
            return without(traced).init(jax.random.key(0)).learner.params

        return str(jax.eval_shape(init, jax.tree.map(np.float32, config)))

    there = {str(run.state.learner.params) for run in runs}
    changed = dataclasses.replace(point.config, **{name: default})
    return there == {shapes(point.config)} != {shapes(changed)}


def record_environment(config: RunConfig, made: Mapping[Any, OneRun]) -> RunConfig:
    """Names the environment that was passed in place of the one of the settings, if there is one.

    `made` has the functions of a run by the structure of its settings.
    """
    run = made[jax.tree.structure(config)]
    return config if "env" in run.read else dataclasses.replace(config, env=run.env.name)


def cut_into_batches(group: Sequence[int], width: int) -> list[Sequence[int]]:
    """Cuts the runs of a group into batches of a width; the last one may have room left."""
    return [group[at : at + width] for at in range(0, len(group), width)]


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
