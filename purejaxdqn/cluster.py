"""A sweep on the machines of a Ray cluster: tasks that go on elsewhere when their node dies.

A task trains some batches side by side, with a `Trainer` of its own, and keeps their checkpoints in
the folder of the sweep, which all nodes see. Ray starts a task again whose node or process is gone;
it then goes on from what was kept. The process that asked, here called the driver, shows progress
and puts the numbers together as `run_design` does.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import json
import logging
import os
import platform
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn import results
from purejaxdqn.design import Design
from purejaxdqn.devices import ensure_devices, use_every_core
from purejaxdqn.opening import Opened, SeedMode, asked_for, note_changes, opened
from purejaxdqn.planning import SweepPlan, peak_bytes, plan_sweep
from purejaxdqn.programs import Experiment
from purejaxdqn.progress import SweepProgress
from purejaxdqn.record import Record
from purejaxdqn.rounds import Event
from purejaxdqn.stopping import EXIT_TERMINATED, Stop, Stopped, listen
from purejaxdqn.sweep_folder import Paused, SweepFolder
from purejaxdqn.tracking import Evaluated, Tracker
from purejaxdqn.trainer import SweepResult, Trainer
from purejaxdqn.types import ConfigError

_POLL_SECONDS = 0.5  # between two looks at what the tasks say
_ANSWER_SECONDS = 10.0  # to wait for what they said
_GRACE_SECONDS = 60.0  # for tasks that are stopped to write their checkpoints
_UNKNOWN = 2**62  # bytes: what the GPUs of a node have is known there alone
_TIMES = ("compile_seconds", "train_seconds", "evaluation_seconds", "checkpoint_seconds")


def run_on_cluster(
    experiment: Experiment,
    design: Design,
    *,
    address: str | None = None,
    output: Path,
    width: int | None = None,
    seed_mode: SeedMode = "vmap",
    resume: bool = False,
    checkpoint_seconds: float | None = None,
    memory_budget: int | None = None,
    on_evaluation: Tracker | None = None,
    progress: bool = True,
    diagnostics: bool = False,
    batches_per_task: int | None = None,
    num_cpus_per_task: int | None = None,
    num_gpus_per_task: int = 0,
) -> SweepResult:
    """Trains every run of a design on the nodes of a Ray cluster.

    At the same width every run has the bits that it has with `run_design`, whichever node it is
    trained on and however often it had to go on elsewhere, as long as all have the same kind of
    processor and the same versions; where they have not, a warning and the attribute `not_bitwise`
    say so. Whatever the experiment is made of must be importable on the nodes, or defined in the
    script that is run.

    Args:
      experiment: see `run_design`, as for all that is not explained here.
      design: the runs.
      address: of the cluster, such as "10.0.0.1:6379"; by default that of `RAY_ADDRESS`, or of the
        cluster that this machine is part of, or else this machine alone. A connection to Ray that
        the process has already is used.
      output: a folder that all nodes see under the same path, such as one on NFS.
      width: runs per batch; by default as many as no core of the cluster idles for, and fit.
      seed_mode: "vmap" or "map".
      resume: whether to go on with the sweep that was begun in that folder, here or there.
      checkpoint_seconds: between two checkpoints of each task.
      memory_budget: bytes that the runs of a task may take at a time; by default the task's share
        of what Ray counts as its node's memory.
      on_evaluation: a `Tracker`, called on this machine.
      progress: whether to show any.
      diagnostics: whether to look inside the learner.
      batches_per_task: by default as many as train side by side: one for each core or GPU.
      num_cpus_per_task: cores of a task; by default all of the smallest node.
      num_gpus_per_task: GPUs of a task, which then trains on these. Give `width` too: this machine
        may have none to choose it for.

    Returns:
      A `SweepResult`; see `run_design`. Of the attributes, `train_seconds` and the like are sums
      over tasks, `env_steps_per_second` is over all nodes, `retries` says how often a task was
      started again, and `retried_from` (JSON) at which steps these went on.

    Raises:
      ConfigError: for settings that cannot be kept, before anything is compiled; without Ray; if
        there is no cluster at that address; or if a node does not see the folder.
      SweepInterrupted: on Ctrl-C and SIGTERM, with everything that was finished; what was under way
        has been kept for `resume`.
    """
    _check_whole("batches_per_task", batches_per_task, 1)
    _check_whole("num_cpus_per_task", num_cpus_per_task, 1)
    _check_whole("num_gpus_per_task", num_gpus_per_task, 0)
    ray = _import_ray()
    output = Path(output).resolve()
    with _connected(ray, address):
        devices = ensure_devices()  # not before: Ray may start processes, and JAX has threads then
        layout = _lay_out(ray, num_cpus_per_task, num_gpus_per_task, memory_budget)

        def plan(width: int | None) -> SweepPlan:
            return plan_sweep(
                experiment,
                design,
                [devices[0]] * layout.devices_per_task,
                width=width,
                memory_budget=_UNKNOWN if layout.memory_budget is None else layout.memory_budget,
                num_devices=layout.num_devices,
            )

        with opened(
            experiment,
            design,
            plan,
            width=width,
            seed_mode=seed_mode,
            output=output,
            resume=resume,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
            diagnostics=diagnostics,
        ) as sweep:
            order = _Order(
                experiment,
                design,
                sweep.plan.width,
                output,
                asked_for(experiment, sweep.plan, seed_mode, diagnostics),
                layout,
                checkpoint_seconds,
                diagnostics,
            )
            driver = _Driver(
                ray, order, sweep, devices, batches_per_task or layout.cores_per_task, on_evaluation
            )
            return driver.go(announce=progress)


def _check_whole(name: str, value: int | None, least: int) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value < least
    ):
        raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {least}")


def _import_ray() -> Any:
    # Here, as it takes seconds to import, and is an extra.
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"a sweep on a cluster needs Ray, which cannot be imported ({error}): "
            'pip install "purejaxdqn[cluster]"'
        ) from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connects to a cluster, unless the process is connected already."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # Ray puts its own there
            stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        stack.callback(ray.shutdown)
        try:
            _knock(address)
            with warnings.catch_warnings():
                # Where JAX has started already: what Ray starts is another program at once.
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                ray.init(
                    address=address,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (OSError, RuntimeError, ValueError) as error:
            first_line = (str(error).splitlines() or [""])[0]
            raise ConfigError(
                f"no Ray cluster can be reached at {address or 'the default address'} "
                f"({first_line}): start one with 'ray start --head', run this on one of its nodes, "
                "and give its address"
            ) from error
        yield


def _knock(address: str | None) -> None:
    """Finds out within seconds whether anyone is there: Ray itself takes minutes."""
    if address in (None, "auto", "local") or "://" in str(address):
        return
    host, _, port = str(address).rpartition(":")
    if not (host and port.isdigit()):
        raise ValueError("an address is a host and a port, such as 10.0.0.1:6379")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


# ------------------------------------------------------------------------------------ the layout


class _Layout(NamedTuple):
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


def _lay_out(ray: Any, num_cpus: int | None, num_gpus: int, memory_budget: int | None) -> _Layout:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= num_gpus]
    if not nodes:
        raise ConfigError(
            f"no node of the Ray cluster has a CPU and {num_gpus} GPU(s): start one that has, or "
            "lower num_gpus_per_task"
        )
    if num_cpus is None:
        num_cpus = min(int(node["CPU"]) for node in nodes)
        if num_gpus:  # the host's part is small
            num_cpus = 1
    largest = max(int(node["CPU"]) for node in nodes)
    if num_cpus > largest:
        raise ConfigError(
            f"num_cpus_per_task ({num_cpus}) must be at most {largest}, the CPUs of the largest "
            "node of the Ray cluster"
        )
    nodes = [node for node in nodes if node["CPU"] >= num_cpus]

    def tasks(node: dict[str, float]) -> int:
        by_cpu = int(node["CPU"] // num_cpus)
        return min(by_cpu, int(node["GPU"] // num_gpus)) if num_gpus else by_cpu

    if memory_budget is None and not num_gpus:
        shares = [node["memory"] * num_cpus / node["CPU"] for node in nodes if "memory" in node]
        memory_budget = int(min(shares)) if shares else None
    cores = num_gpus or num_cpus
    return _Layout(
        cores,
        num_gpus or max(num_cpus, 2),
        num_cpus,
        num_gpus,
        memory_budget,
        cores * sum(map(tasks, nodes)),
        len(nodes),
    )


# --------------------------------------------------------------------------------------- a task


class _Order(NamedTuple):
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
    layout: _Layout
    checkpoint_seconds: float | None
    diagnostics: bool


class _Started(NamedTuple):
    """A task begins, for the first time or again."""

    node: str
    made_with: dict[str, Any]


class _TakenUp(NamedTuple):
    """Batches go on from a checkpoint."""

    step: int
    records: dict[int, Record]


class _Counted(NamedTuple):
    """How far a task is."""

    env_steps: int
    training_return: np.ndarray
    speed: float


class _Share(NamedTuple):
    """What a task found; `unsaved` are the batches that the folder could not take."""

    records: dict[int, Record]
    unsaved: set[int]
    facts: dict[str, Any]


class _Board:
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
        self._board.say.remote(self._number, _Counted(env_steps, training_return, speed))


class _Task(Trainer):
    """Trains the batches of a task. The driver writes the results of all."""

    def __init__(self, order: _Order, board: Any, task: int) -> None:
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

    def work(self, numbers: Sequence[int], stop: Stop) -> _Share:
        """Trains what is not finished of these batches."""
        self._read_finished(numbers)
        self.train(numbers, stop)
        self._facts["peak_bytes"] = peak_bytes()
        records = {number: self._records[number] for number in numbers}
        return _Share(records, self._unsaved, self._facts)

    def _take_paused(self, *args: Any) -> dict[int, Paused]:
        paused = super()._take_paused(*args)
        if paused:
            step = next(iter(paused.values())).step
            records = {number: batch.record for number, batch in paused.items()}
            self._board.say.remote(self._number, _TakenUp(step, records))
        return paused

    def _save_snapshot(self) -> None:
        pass


def _work(order: _Order, task: int, numbers: Sequence[int], board: Any) -> _Share:
    """Runs on a node, in a process of its own."""
    ray = _import_ray()
    node = f"{platform.node()} (Ray's node {ray.get_runtime_context().get_node_id()})"
    board.say.remote(task, _Started(node, results.made_with()))
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
        ray.get(board.heard.remote(), timeout=_ANSWER_SECONDS)
    return share


# ------------------------------------------------------------------------------------ the driver


class _Driver(Trainer):
    """Has the batches of a plan trained by tasks; the rest is as in every sweep."""

    def __init__(
        self,
        ray: Any,
        order: _Order,
        sweep: Opened,
        devices: Sequence[Any],
        batches_per_task: int,
        on_evaluation: Tracker | None,
    ) -> None:
        super().__init__(
            order.experiment,
            sweep.plan,
            devices,
            sweep.folder,
            bar=sweep.bar,
            diagnostics=order.diagnostics,
            on_evaluation=on_evaluation,
            attrs=sweep.attrs,
        )
        self._ray, self._order = ray, order
        self._batches_per_task = batches_per_task
        self._steps_before = 0  # environment steps that were not taken by these tasks
        self._parts: list[list[int]] = []  # the batches of each task
        self._starts: dict[int, int] = {}  # how often each task was started
        self._counts: dict[int, _Counted] = {}  # of tasks that are running
        self._told: set[tuple[int, int]] = set()  # evaluations, by first run and step
        self._question: Any = None  # to the board, without an answer yet
        self._unheard: collections.deque[tuple[int, Any]] = collections.deque()
        self._made_with = [results.made_with()]  # the kinds that are known
        self._retried_from: list[int] = []
        self._facts |= {"device": "", "num_devices": order.layout.num_devices, "retries": 0}
        self._facts |= {"retried_from": "[]"}

    def announce(self) -> None:
        """Says how it is done."""
        layout, plan = self._order.layout, self._plan
        tasks = len(self._divided())
        what = "GPU" if layout.num_gpus else "CPU"
        self._bar.message(
            f"{len(self._runs)} run(s) in {len(plan.batches)} batch(es) of up to {plan.width}: "
            f"{tasks} task(s) of up to {self._batches_per_task} batch(es) and "
            f"{layout.cores_per_task} {what}(s) each, on {layout.num_nodes} node(s)"
        )

    def _divided(self) -> list[list[int]]:
        """The batches that are left, those of each task; all of a task share a program."""
        size = self._batches_per_task
        return [
            left[begin : begin + size]
            for left in map(self._left, self._plan.groups)
            for begin in range(0, len(left), size)
        ]

    def train(self, numbers: Sequence[int], stop: Stop) -> None:
        """Has those batches trained that are not finished."""
        ray = self._ray
        wanted = [[n for n in part if n in numbers] for part in self._divided()]
        self._parts = [part for part in wanted if part]
        board, pending = self._submit()
        self._steps_before = self._env_steps()
        start = time.perf_counter()
        self._saving.start()
        stop.waits = True
        try:
            while pending:
                done, _ = ray.wait([*pending], timeout=_POLL_SECONDS)
                self._hear(board)
                for task in done:
                    self._counts.pop(pending.pop(task), None)
                    self._take(self._result_of(task))
                self._show(time.perf_counter() - start)
                if self._saving.is_due():
                    with self._saving.measured():
                        self._bar.attempt(self._save_snapshot)
                stop.check()
        finally:
            self._cancel([*pending], board)
            ray.kill(board)
        stop.waits = False

    def _submit(self) -> tuple[Any, dict[Any, int]]:
        """Hands all tasks to Ray: the board that they report to, and their numbers by reference."""
        ray, layout = self._ray, self._order.layout
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Where this process is, so that it dies with no other node: softly, Ray goes elsewhere.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
        board = ray.remote(**options)(_Board).remote()
        work = ray.remote(
            num_cpus=layout.num_cpus,
            num_gpus=layout.num_gpus,
            max_retries=-1,
            max_calls=1,  # a process for each: JAX takes its devices once, and frees no memory
            scheduling_strategy="SPREAD",
        )(_work)
        order = ray.put(self._order)
        tasks = {work.remote(order, i, part, board): i for i, part in enumerate(self._parts)}
        return board, tasks

    def _result_of(self, task: Any) -> _Share:
        try:
            # A copy: what Ray gives is read-only, and takes room in its store.
            share: _Share = copy.deepcopy(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConfigError):
                raise ConfigError(str(error.cause)) from None
            raise
        return share

    def _take(self, share: _Share) -> None:
        """Takes what a task found."""
        self._records |= share.records
        self._finished |= {*share.records}
        self._unsaved |= share.unsaved
        self._save_finished()
        facts = self._facts
        for name in _TIMES:
            facts[name] += share.facts[name]
        for name in ("peak_bytes", "planned_peak_bytes"):
            facts[name] = max(facts[name], share.facts[name])
        facts["memory_budget"] = min(facts["memory_budget"], share.facts["memory_budget"])
        kinds = {*facts["device"].split(", "), share.facts["device"]} - {""}
        facts["device"] = ", ".join(sorted(kinds))

    def _cancel(self, tasks: Sequence[Any], board: Any) -> None:
        """Stops tasks, which write their checkpoints first, and takes what they still say."""
        for task in tasks:
            self._ray.cancel(task)
        done, _ = self._ray.wait([*tasks], num_returns=len(tasks), timeout=_GRACE_SECONDS)
        self._hear(board)
        for task in done:
            with contextlib.suppress(self._ray.exceptions.RayError, ConfigError):
                self._take(self._result_of(task))

    # -------------------------------------------------------------------------- what tasks say

    def _hear(self, board: Any) -> None:
        """Takes in what the tasks said; their results come on their own."""
        self._ask(board)
        while self._unheard:
            task, what = self._unheard.popleft()
            numbers = self._parts[task]
            if isinstance(what, _Started):
                self._hear_start(task, what)
            elif isinstance(what, _TakenUp):
                self._hear_taken_up(task, what)
            elif isinstance(what, _Counted):
                self._counts[task] = what
            elif isinstance(what, Evaluated):
                self._hear_evaluation(numbers, what)
            else:
                self._bar.message(f"{_named(numbers)}: {what}")

    def _ask(self, board: Any) -> None:
        """Asks the board for what is new, after the answer that it may still owe: none is lost."""
        errors = self._ray.exceptions
        for _ in range(1 if self._question is None else 2):
            self._question = self._question or board.take.remote()
            try:
                answer = self._ray.get(self._question, timeout=_ANSWER_SECONDS)
            except errors.GetTimeoutError:
                return  # it is only slow, as when it starts on a busy machine
            except errors.RayError:
                answer = []
            self._question = None
            self._unheard.extend(copy.deepcopy(answer))

    def _hear_start(self, task: int, start: _Started) -> None:
        self._starts[task] = self._starts.get(task, 0) + 1
        self._counts.pop(task, None)
        if self._starts[task] > 1:
            self._facts["retries"] += 1
            self._bar.message(
                f"{_named(self._parts[task])}: started again on {start.node}, as the node or the "
                "process that trained before is gone"
            )
        if start.made_with not in self._made_with:
            self._made_with.append(start.made_with)
            assert self._folder is not None
            self._facts |= note_changes(self._folder, start.made_with, self._bar.message)

    def _hear_taken_up(self, task: int, taken: _TakenUp) -> None:
        for number, record in taken.records.items():
            if number not in self._finished:
                self._records[number] = record
        if self._starts.get(task, 0) > 1:
            self._retried_from.append(taken.step)
            self._facts["retried_from"] = json.dumps(self._retried_from)
        else:  # an earlier sweep's work
            runs = sum(len(self._plan.batches[number]) for number in taken.records)
            self._steps_before += taken.step * runs

    def _hear_evaluation(self, numbers: Sequence[int], evaluated: Evaluated) -> None:
        key = (int(evaluated.runs[0]), evaluated.step)
        if key in self._told:  # before its node died
            return
        self._told.add(key)
        event = Event(
            evaluated.step,
            0.0,
            0.0,
            evaluated.training_return,
            [],
            evaluated.episode_return,
            evaluated.metrics,
            None,
        )
        row = {run: row for row, run in enumerate(evaluated.runs.tolist())}
        for number in numbers:
            batch = self._plan.batches[number]
            if batch[0] in row and number not in self._finished:
                record = self._records.setdefault(number, Record(self._configs[number], len(batch)))
                record.add(event, slice(row[batch[0]], row[batch[0]] + len(batch)))
        self._bar.evaluated(evaluated.step, evaluated.episode_return)
        if self._on_evaluation is not None:
            self._on_evaluation(evaluated)

    def _show(self, seconds: float) -> None:
        """Moves the bar; the speed is that of all nodes since the start."""
        env_steps = self._env_steps()
        speed = max(env_steps - self._steps_before, 0) / max(seconds, 1e-9)
        self._facts["env_steps_per_second"] = speed
        returns = [count.training_return for count in self._counts.values()]
        self._bar.update(env_steps, np.concatenate([np.empty(0), *returns]), speed)

    def _env_steps(self) -> int:
        under_way = sum(count.env_steps for count in self._counts.values())
        return sum(map(self._steps_of, self._finished)) + under_way


def _named(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"batch {numbers[0]}"
    return f"batches {numbers[0]} to {numbers[-1]}"
