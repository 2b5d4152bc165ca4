"""Trains some batches of a sweep on a node of a Ray cluster, and reports to the driver."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.engine.memory import peak_bytes
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.engine.rounds import Record
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.runtime.interrupts import EXIT_TERMINATED, Stopped, StopRequest, catch_signals
from purejaxdqn.runtime.modules import import_module_or_file
from purejaxdqn.storage import provenance
from purejaxdqn.sweep.batches import BatchTrainer
from purejaxdqn.sweep.design import Design
from purejaxdqn.sweep.folder import Paused, SweepFolder
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.sweep.plan import plan_sweep
from purejaxdqn.sweep.resume import OpenSweep
from purejaxdqn.training.loop import Experiment
from purejaxdqn.types import ConfigError

ANSWER_SECONDS = 10.0  # to wait for an answer


def import_ray() -> Any:
    """Imports Ray.

    Raises:
      ConfigError: if it is not installed.
    """
    # Imported here: it takes seconds, and is an extra of the package.
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"a sweep on a cluster needs Ray, which cannot be imported ({error}): "
            'pip install "purejaxdqn[cluster]"'
        ) from None
    return ray


class Layout(NamedTuple):
    """Resources per task, and how many such shares the cluster has.

    Attributes:
      cores_per_task: CPU cores or GPUs, whichever a task trains on.
      devices_per_task: XLA devices; at least two on CPUs, as everywhere.
      num_cpus: the CPUs that Ray reserves for a task.
      num_gpus: the GPUs that Ray reserves for a task.
      memory_budget: bytes that the runs of a task may take; None leaves it to the task.
      num_devices: devices that train at a time in the whole cluster.
      num_nodes: nodes that can run a task.
    """

    cores_per_task: int
    devices_per_task: int
    num_cpus: int
    num_gpus: int
    memory_budget: float | None
    num_devices: int
    num_nodes: int


class Order(NamedTuple):
    """The description of the sweep that every task receives.

    Attributes:
      experiment: `config -> Train`.
      design: the runs.
      options: how to train and keep them; the width is set, and the output is an absolute path.
      request: see `OpenSweep`.
      layout: the part of a node that a task has.
    """

    experiment: Experiment
    design: Design
    options: SweepOptions
    request: dict[str, Any]
    layout: Layout


class Started(NamedTuple):
    """A report that a task begins on a node, for the first time or again."""

    node: str
    versions: dict[str, Any]


class Resumed(NamedTuple):
    """A report that batches go on from a checkpoint, with their numbers so far."""

    step: int
    records: dict[int, Record]


class Progressed(NamedTuple):
    """A report of how far a task is."""

    env_steps: int
    training_return: np.ndarray
    speed: float


class TaskResult(NamedTuple):
    """The numbers of a task's batches; `unsaved` are those that the folder could not take."""

    records: dict[int, Record]
    unsaved: set[int]
    trained_steps: int
    facts: dict[str, Any]


class Board:
    """An actor on the driver's node: keeps the reports of tasks until the driver asks for them."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, Any]] = []

    def report(self, task: int, what: Any) -> None:
        """Takes a report; those of a task stay in order."""
        self._reports.append((task, what))

    def take(self) -> list[tuple[int, Any]]:
        """Returns the reports since the last time, each with the number of its task."""
        reports, self._reports = self._reports, []
        return reports

    def confirm(self) -> None:
        """Does nothing.

        Its answer means that all earlier reports have arrived, as Ray keeps their order.
        """


class _TaskProgress(SweepProgress):
    """Sends the messages and the progress of a task to the driver, which shows them."""

    def __init__(self, board: Any, task: int) -> None:
        super().__init__(0, enabled=False)
        self._board, self._number = board, task

    def message(self, text: str) -> None:
        self._board.report.remote(self._number, text)

    def update(self, env_steps: int, training_return: np.ndarray, speed: float) -> None:
        self._board.report.remote(self._number, Progressed(env_steps, training_return, speed))


class _TaskTrainer(BatchTrainer):
    """Trains the batches of one task; the driver writes the results of all tasks."""

    def __init__(self, order: Order, board: Any, task: int) -> None:
        layout, output = order.layout, order.options.output
        assert output is not None
        devices = use_every_core(None if layout.num_gpus else layout.cores_per_task)
        bar = _TaskProgress(board, task)
        plan = plan_sweep(
            order.experiment,
            order.design,
            devices,
            width=order.options.width,
            memory_budget=layout.memory_budget,
        )
        folder = SweepFolder(output, bar.message)
        if not folder.is_begun() or folder.read_begun()["asked"] != order.request:
            raise ConfigError(
                f"node {platform.node()} does not see the sweep in {output}: output must be "
                "a folder that all nodes share under the same path, such as one on NFS"
            )
        options = dataclasses.replace(
            order.options, on_evaluation=lambda event: board.report.remote(task, event)
        )
        sweep = OpenSweep(order.experiment, plan, options, order.request, folder, bar, {})
        super().__init__(sweep, devices)
        self._board, self._number = board, task

    def train_share(self, numbers: Sequence[int], stop: StopRequest) -> TaskResult:
        """Trains those of some batches that are not finished."""
        self._read_finished(numbers)
        self._train(numbers, stop)
        self._facts["peak_bytes"] = peak_bytes()
        records = {number: self._records[number] for number in numbers}
        return TaskResult(records, self._unsaved, self._trained_steps, self._facts)

    def _load_paused(self, *args: Any) -> dict[int, Paused]:
        paused = super()._load_paused(*args)
        if paused:
            step = next(iter(paused.values())).step
            records = {number: batch.record for number, batch in paused.items()}
            self._board.report.remote(self._number, Resumed(step, records))
        return paused

    def _save_results(self) -> None:
        pass


def run_task(
    modules: Sequence[str], order_refs: Sequence[Any], task: int, numbers: Sequence[int], board: Any
) -> TaskResult:
    """Trains the batches of a task on a node, in a process of its own.

    Args:
      modules: what `--import` named, which registers agents and environments.
      order_refs: Ray's reference of the `Order`, which may need these modules.
      task: its number.
      numbers: of its batches.
      board: takes its reports.
    """
    ray = import_ray()
    for place in modules:
        import_module_or_file(place)
    order: Order = ray.get(order_refs[0])
    node = f"{platform.node()} (Ray's node {ray.get_runtime_context().get_node_id()})"
    board.report.remote(task, Started(node, provenance.collect_versions()))
    try:
        with catch_signals() as stop:
            result = _TaskTrainer(order, board, task).train_share(numbers, stop)
    except Stopped as error:
        if error.exit_code == EXIT_TERMINATED:
            # The node is being shut down, not the sweep. Ray starts a task again elsewhere if its
            # process is gone, so this one kills itself.
            os.kill(os.getpid(), signal.SIGKILL)
        raise
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(board.confirm.remote(), timeout=ANSWER_SECONDS)
    return result
