"""What the commands that train many runs share: their flags, and how they train a design.

JAX, and everything that needs it, is imported once all flags are checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from purejaxdqn import tracking
from purejaxdqn.checks import ConfigError
from purejaxdqn.cli.exits import saying_how_to_go_on
from purejaxdqn.runtime.addresses import check_processes, find_node
from purejaxdqn.runtime.console import show_waiting
from purejaxdqn.storage import results
from purejaxdqn.storage.provenance import to_jsonable
from purejaxdqn.sweep.dataset import SweepInterrupted, SweepResult
from purejaxdqn.sweep.design import MOST_RUNS, Design
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.training.declaration import Setting, settings_of
from purejaxdqn.training.settings import RunConfig

if TYPE_CHECKING:
    import jax

    from purejaxdqn.training.loop import Experiment

_FIRST = "The first of them; they are consecutive. The defaults were tuned on seeds 0 to 9."
_JSON = "Print the summary as one JSON object on the last line of standard output."
_TRACKER = (
    f"Where curves are shown as they come: {', '.join(tracking.TRACKERS)}. Each is an extra of "
    "the package."
)
_DEVICES = (
    "Devices to train on; by default one on each CPU core, or the accelerators there are. With "
    "--cluster, the cores of each task."
)
_CLUSTER = (
    "Train on the nodes of the Ray cluster at this address, such as 10.0.0.1:6379 (auto: the one "
    "that this machine is part of). All of them see the output folder. Runs go on elsewhere when "
    "their node dies."
)
_GPUS = "GPUs of a node that each task trains on, with --cluster."
_COORDINATOR = (
    "Share the sweep with other processes: where the first of them can be reached, such as "
    "10.0.0.1:8476 (auto: as Slurm, Open MPI or a TPU has it). Each is started with the same "
    "command but for --process-id."
)
_PROCESSES = "Processes that share the sweep, with --coordinator."
_PROCESS = "Number of this process, from 0, with --coordinator."
_ALL = ": leave it out for all there are"
_MACHINE_FLAGS = [
    Setting("tracker", tuple[str, ...], (), _TRACKER, "sweep"),
    Setting("num_devices", int, None, _DEVICES, "machines", at_most=1024, remedy=_ALL),
    Setting("cluster", str, None, _CLUSTER, "machines"),
    Setting("gpus_per_task", int, 0, _GPUS, "machines", at_least=0),
    Setting("coordinator", str, None, _COORDINATOR, "machines"),
    Setting("num_processes", int, None, _PROCESSES, "machines", at_least=0),
    Setting("process_id", int, None, _PROCESS, "machines", at_least=0),
]
Report = Callable[[SweepResult], None]


def seed_flags(output: str, num_seeds: int = 10) -> list[Setting]:
    """Returns the flags of every command that trains over seeds, with their defaults."""
    return [
        Setting("num_seeds", int, num_seeds, "Seeds to train.", "run", at_most=MOST_RUNS),
        Setting("first_seed", int, 0, _FIRST, "run", at_least=0, at_most=2**32 - 1),
        Setting("json", bool, False, _JSON, "run"),
        Setting("output", Path, Path(output), "Folder for everything that is written.", "run"),
    ]


def sweep_flags(output: str, num_seeds: int = 10) -> list[Setting]:
    """Returns the flags of every command that trains a sweep, with their defaults."""
    options = [one for one in settings_of(SweepOptions).values() if one.name != "output"]
    return [*seed_flags(output, num_seeds), *options, *_MACHINE_FLAGS]


def refuse_unread(names: Iterable[str], configs: Collection[RunConfig]) -> None:
    """Refuses settings that are given, but that none of the runs' settings leaves any effect."""
    for name in names:
        known = [(one, c) for c in configs if (one := settings_of(type(c)).get(name)) is not None]
        if known and not any(one.is_read(config) for one, config in known):
            raise ConfigError(
                f"{name} changes nothing: it is read only where {known[0][0].read_only_where()}; "
                "leave it out, or set that too"
            )


def list_seeds(flags: SimpleNamespace) -> range:
    """Lists the seeds that the flags ask for."""
    first, end = flags.first_seed, flags.first_seed + flags.num_seeds
    if end > (top := 2**32):
        raise ConfigError(f"first_seed ({first}) must be at least 0, and the last seed below {top}")
    return range(first, end)


def make_options(flags: SimpleNamespace) -> SweepOptions:
    """Makes the options that the flags ask for, and refuses flags that exclude each other."""
    for name in flags.tracker:
        tracking.check_name(name)
    find_node(flags.cluster)
    if flags.cluster is None and flags.gpus_per_task:
        raise ConfigError(f"gpus_per_task ({flags.gpus_per_task}) needs --cluster")
    if flags.cluster is not None and flags.coordinator is not None:
        raise ConfigError(
            f"cluster ({flags.cluster!r}) and coordinator ({flags.coordinator!r}) exclude each "
            "other: leave one of them out"
        )
    check_processes(flags.coordinator, flags.num_processes, flags.process_id)
    return SweepOptions(**{name: getattr(flags, name) for name in settings_of(SweepOptions)})


def choose_devices(flags: SimpleNamespace) -> list[jax.Device]:
    """Starts JAX, and chooses what to train on."""
    from purejaxdqn.runtime.devices import use_every_core

    found = use_every_core(flags.num_devices)
    return found if found[0].platform == "cpu" else found[: flags.num_devices]


def train_design(
    find_experiment: Callable[[], Experiment],
    design: Design,
    flags: SimpleNamespace,
    report: Report,
) -> None:
    """Trains a design as `sweep_flags` say, on this machine, a share of it, or a cluster.

    The experiment is found once JAX is there. The first process reports the result, also what an
    interrupt leaves of it. A failed write or an interrupt, also of the report, says how to go on.
    """
    options = make_options(flags)
    folder = (flags.output, flags.overwrite, flags.resume)
    if flags.coordinator is None:  # else the first process alone tells
        results.check_output(*folder)
    instead = " in place of --overwrite" if flags.overwrite else ""
    how = f"the same command with --resume{instead} goes on (in {flags.output})"
    with saying_how_to_go_on(how):
        with show_waiting("importing JAX"):
            from purejaxdqn.runtime import processes

            processes.join_processes(flags.coordinator, flags.num_processes, flags.process_id)
            if flags.cluster is None:
                options = dataclasses.replace(options, devices=choose_devices(flags))
                processes.run_on_first_process(lambda: results.check_output(*folder))
            train = _choose_trainer(flags)
            experiment = find_experiment()
        try:
            with contextlib.ExitStack() as stack:
                settings = to_jsonable(dict(design.shared))
                trackers = [
                    stack.enter_context(tracking.open_tracker(name, flags.output, config=settings))
                    for name in flags.tracker
                ]

                def track(event: tracking.Evaluated) -> None:
                    for tracker in trackers:
                        tracker(event)

                options = dataclasses.replace(options, on_evaluation=track if trackers else None)
                result = train(experiment, design, options=options)
        except SweepInterrupted as interrupt:
            if processes.is_first_process():
                report(interrupt.result)
            raise
        if processes.is_first_process():
            report(result)


def _choose_trainer(flags: SimpleNamespace) -> Callable[..., SweepResult]:
    """Chooses where a design is trained; on a cluster, Ray starts before JAX does."""
    if flags.cluster is None:
        from purejaxdqn.sweep.run import run_design

        return run_design
    from purejaxdqn.sweep.ray.cluster import run_on_cluster

    return functools.partial(
        run_on_cluster,
        address=flags.cluster,
        num_cpus_per_task=flags.num_devices,
        num_gpus_per_task=flags.gpus_per_task,
    )


def print_json(flags: SimpleNamespace, facts: Mapping[str, Any] | None) -> None:
    """Prints the facts of a report as one JSON object, if the flags ask for it."""
    if flags.json and facts is not None:
        print(json.dumps(facts, allow_nan=False))
