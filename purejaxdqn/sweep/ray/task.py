"""Trains some batches of a sweep on a node of a Ray cluster, and reports to the driver."""

import contextlib
import functools
import os
import platform
import signal
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.engine.memory import peak_bytes
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.engine.rounds import Event, Record
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.runtime.interrupts import EXIT_TERMINATED, Stopped, StopRequest, catch_signals
from purejaxdqn.runtime.modules import import_module_or_file
from purejaxdqn.storage import provenance
from purejaxdqn.sweep.batches import BatchTrainer
from purejaxdqn.sweep.design import Design
from purejaxdqn.sweep.folder import Paused, SweepFolder, find_differences
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.sweep.plan import plan_sweep
from purejaxdqn.sweep.resume import OpenSweep, describe_code
from purejaxdqn.training.loop import Experiment
from purejaxdqn.types import ConfigError

ANSWER_SECONDS = 10.0  # to wait for an answer


class Layout(NamedTuple):
    """What Ray reserves for a task, and how many such shares the cluster has."""

    num_cpus: int
    num_gpus: int  # a task that has any trains on these alone
    devices_per_task: int  # of XLA; at least two on CPUs, as everywhere
    memory_budget: float | None  # bytes for the runs of a task; None leaves it to the task
    num_devices: int  # that train at a time in the whole cluster
    num_nodes: int  # that can run a task


# Of a task: records, batches that the folder could not take, steps of all runs, and attributes.
TaskResult = tuple[dict[int, Record], set[int], int, dict[str, Any]]


class Board:
    """An actor on the driver's node: keeps the reports of tasks until the driver asks for them.

    A report is what the driver's method for it takes, such as `(task, "message", text)`.
    """

    def __init__(self) -> None:
        self._reports: list[tuple[Any, ...]] = []

    def report(self, *report: Any) -> None:
        """Takes a report."""
        self._reports.append(report)

    def take(self) -> list[tuple[Any, ...]]:
        """Returns the reports since the last time; those of a task are in order."""
        reports, self._reports = self._reports, []
        return reports


class _TaskProgress(SweepProgress):
    """Sends the messages and the progress of a task to the driver, which shows them."""

    def __init__(self, report: Callable[..., None]) -> None:
        super().__init__(0, enabled=False)
        self._report = report

    def message(self, text: str) -> None:
        self._report("message", text)

    def show_progress(self, env_steps: int, training_return: np.ndarray, speed: float) -> None:
        self._report("progress", env_steps, training_return)


# Of a task: its experiment, design, options with a width and an absolute path, request, and layout.
Order = tuple[Experiment, Design, SweepOptions, dict[str, Any], Layout]


class TaskTrainer(BatchTrainer):
    """Trains the batches of one task; the driver writes the results of all tasks."""

    def __init__(self, order: Order, report: Callable[..., None]) -> None:
        experiment, design, options, request, layout = order
        devices = use_every_core(None if layout.num_gpus else layout.num_cpus)
        plan = plan_sweep(experiment, design, devices, layout.memory_budget, width=options.width)
        bar = _TaskProgress(report)
        assert options.output is not None
        folder = SweepFolder(options.output, bar.message)
        if folder.read_asked() != request:
            raise ConfigError(
                f"node {platform.node()} does not see the sweep in {options.output}: output must "
                "be a folder that all nodes share under the same path, such as one on NFS"
            )
        code = describe_code(experiment, [point.config for point in design.points])
        if lines := find_differences(request["code"], code, "code"):
            raise ConfigError(
                f"node {platform.node()} has other code than the driver ({'; '.join(lines[:4])}): "
                "install the same on all nodes"
            )
        super().__init__(OpenSweep(experiment, plan, options, request, folder, bar, {}), devices)
        self._report = report

    def train_share(self, numbers: Sequence[int], stop: StopRequest) -> TaskResult:
        """Trains those of some batches that are not finished."""
        self._share, self._stop = numbers, stop
        self._read_finished()
        self._train()
        self._facts["peak_bytes"] = peak_bytes()
        records = {number: self._records[number] for number in numbers}
        return records, self._unsaved, self._trained_steps, self._facts

    def _load_paused(self, *args: Any) -> dict[int, Paused]:
        paused = super()._load_paused(*args)
        if paused:
            step = next(iter(paused.values())).step
            self._report("resumed", step, {n: batch.record for n, batch in paused.items()})
        return paused

    def _publish(self, event: Event, members: list[int]) -> None:
        self._report("evaluation", event._replace(params=None), members)

    def _save_results(self) -> None:
        pass


def run_task(
    modules: Sequence[str], order: Sequence[Any], task: int, numbers: Sequence[int], board: Any
) -> TaskResult:
    """Trains the batches of a task on a node, in a process of its own.

    The first of `order` is Ray's reference of an `Order`. It may need the modules, those that
    `--import` named, which register agents and environments.
    """
    import ray

    for place in modules:
        import_module_or_file(place)
    report = functools.partial(board.report.remote, task)
    node = f"{platform.node()} (Ray's node {ray.get_runtime_context().get_node_id()})"
    report("start", node, provenance.collect_versions())
    try:
        with catch_signals() as stop:
            result = TaskTrainer(ray.get(order[0]), report).train_share(numbers, stop)
    except Stopped as error:
        if error.exit_code == EXIT_TERMINATED:
            # The node is being shut down, not the sweep. Ray starts a task again elsewhere if its
            # process is gone, so this one kills itself.
            os.kill(os.getpid(), signal.SIGKILL)
        raise
    with contextlib.suppress(ray.exceptions.RayError):
        # Once the board answers, all reports have arrived, as Ray keeps their order.
        ray.get(board.__ray_ready__.remote(), timeout=ANSWER_SECONDS)
    return result
