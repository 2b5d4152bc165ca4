"""What a node of a Ray cluster does for a sweep: trains some batches, and tells of them."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.engine.memory import peak_bytes
from purejaxdqn.engine.programs import Experiment
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.engine.record import Record
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.runtime.interrupts import EXIT_TERMINATED, Stop, Stopped, listen
from purejaxdqn.storage import results
from purejaxdqn.sweep.design import Design
from purejaxdqn.sweep.folder import Paused, SweepFolder
from purejaxdqn.sweep.plan import plan_sweep
from purejaxdqn.sweep.trainer import Trainer
from purejaxdqn.tracking import Evaluated
from purejaxdqn.types import ConfigError

ANSWER_SECONDS = 10.0  # to wait for an answer


def import_ray() -> Any:
    """Ray, if it is there."""
    # Here, as it takes seconds to import, and is an extra.
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"a sweep on a cluster needs Ray, which cannot be imported ({error}): "
            'pip install "purejaxdqn[cluster]"'
        ) from None
    return ray


class Layout(NamedTuple):
    """What a task has of its node, and how many of them run at a time.

    Attributes:
      cores_per_task: CPU cores or GPUs, whichever it trains on.
      devices_per_task: XLA devices; two at least on CPUs, as everywhere.
      num_cpus: that Ray keeps for a task.
      num_gpus: likewise.
      memory_budget: bytes that the runs of a task may take; None leaves it to the task.
      num_devices: that train at a time in the whole cluster.
      num_nodes: nodes that can run a task.
    """

    cores_per_task: int
    devices_per_task: int
    num_cpus: int
    num_gpus: int
    memory_budget: int | None
    num_devices: int
    num_nodes: int


class Order(NamedTuple):
    """What every task is told; the parts are those of `run_on_cluster`.

    Attributes:
      experiment: what is trained.
      design: the runs.
      width: runs per batch.
      output: the folder, under its whole path.
      asked: what the numbers hang on, as the folder has it.
      layout: what a task has of its node.
      checkpoint_seconds: between two checkpoints.
      diagnostics: whether to look inside the learner.
    """

    experiment: Experiment
    design: Design
    width: int
    output: Path
    asked: dict[str, Any]
    layout: Layout
    checkpoint_seconds: float | None
    diagnostics: bool


class Started(NamedTuple):
    """A task begins, for the first time or again."""

    node: str
    made_with: dict[str, Any]


class TakenUp(NamedTuple):
    """Batches go on from a checkpoint."""

    step: int
    records: dict[int, Record]


class Counted(NamedTuple):
    """How far a task is."""

    env_steps: int
    training_return: np.ndarray
    speed: float


class Share(NamedTuple):
    """What a task found; `unsaved` are the batches that the folder could not take."""

    records: dict[int, Record]
    unsaved: set[int]
    trained_steps: int
    facts: dict[str, Any]


class Board:
    """An actor on the driver's node: keeps what tasks say until the driver asks for it."""

    def __init__(self) -> None:
        self._said: list[tuple[int, Any]] = []

    def say(self, task: int, what: Any) -> None:
        """Takes a report; those of a task stay in order."""
        self._said.append((task, what))

    def take(self) -> list[tuple[int, Any]]:
        """What has been said since the last time, by the number of the task."""
        said, self._said = self._said, []
        return said

    def heard(self) -> None:
        """Answers once everything that the caller said before is here."""


class _Bar(SweepProgress):
    """What a task shows, shown by the driver."""

    def __init__(self, board: Any, task: int) -> None:
        super().__init__(0, enabled=False)
        self._board, self._number = board, task

    def message(self, text: str) -> None:
        self._board.say.remote(self._number, text)

    def update(self, env_steps: int, training_return: np.ndarray, speed: float) -> None:
        self._board.say.remote(self._number, Counted(env_steps, training_return, speed))


class _Task(Trainer):
    """Trains the batches of a task. The driver writes the results of all."""

    def __init__(self, order: Order, board: Any, task: int) -> None:
        devices = use_every_core(order.layout.cores_per_task if not order.layout.num_gpus else None)
        bar = _Bar(board, task)
        plan = plan_sweep(
            order.experiment,
            order.design,
            devices,
            width=order.width,
            memory_budget=order.layout.memory_budget,
        )
        folder = SweepFolder(order.output, bar.message)
        if not folder.is_begun() or folder.begun()["asked"] != order.asked:
            raise ConfigError(
                f"node {platform.node()} does not see the sweep in {order.output}: output must be "
                "a folder that all nodes share under the same path, such as one on NFS"
            )

        def tell(event: Evaluated) -> None:
            board.say.remote(task, event)

        super().__init__(
            order.experiment,
            plan,
            devices,
            folder,
            bar=bar,
            diagnostics=order.diagnostics,
            checkpoint_seconds=order.checkpoint_seconds,
            on_evaluation=tell,
        )
        self._board, self._number = board, task

    def work(self, numbers: Sequence[int], stop: Stop) -> Share:
        """Trains what is not finished of these batches."""
        self._read_finished(numbers)
        self.train(numbers, stop)
        self._facts["peak_bytes"] = peak_bytes()
        records = {number: self._records[number] for number in numbers}
        return Share(records, self._unsaved, self._trained_steps, self._facts)

    def _take_paused(self, *args: Any) -> dict[int, Paused]:
        paused = super()._take_paused(*args)
        if paused:
            step = next(iter(paused.values())).step
            records = {number: batch.record for number, batch in paused.items()}
            self._board.say.remote(self._number, TakenUp(step, records))
        return paused

    def _save_snapshot(self) -> None:
        pass


def work(order: Order, task: int, numbers: Sequence[int], board: Any) -> Share:
    """Runs on a node, in a process of its own."""
    ray = import_ray()
    node = f"{platform.node()} (Ray's node {ray.get_runtime_context().get_node_id()})"
    board.say.remote(task, Started(node, results.made_with()))
    try:
        with listen() as stop:
            share = _Task(order, board, task).work(numbers, stop)
    except Stopped as error:
        if error.exit_code == EXIT_TERMINATED:
            # The node is being shut down, not the sweep: Ray is to start this again elsewhere,
            # which it does for processes that are gone.
            os.kill(os.getpid(), signal.SIGKILL)
        raise
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(board.heard.remote(), timeout=ANSWER_SECONDS)
    return share
