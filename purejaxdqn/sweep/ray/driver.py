"""Hands the batches of a sweep to the nodes of a Ray cluster, and puts their numbers together."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from purejaxdqn.engine.rounds import Event, Record
from purejaxdqn.runtime.interrupts import StopRequest
from purejaxdqn.runtime.modules import list_imported
from purejaxdqn.storage import provenance
from purejaxdqn.sweep.batches import TIMES, BatchTrainer
from purejaxdqn.sweep.ray.task import (
    ANSWER_SECONDS,
    Board,
    Layout,
    Order,
    Progressed,
    Resumed,
    Started,
    TaskResult,
    run_task,
)
from purejaxdqn.sweep.resume import OpenSweep, note_changes
from purejaxdqn.tracking import Evaluated
from purejaxdqn.types import ConfigError

_POLL_SECONDS = 0.5  # between two looks at the reports of tasks
_GRACE_SECONDS = 60.0  # for tasks that are stopped to write their checkpoints


class Driver(BatchTrainer):
    """Trains the batches of a plan in tasks; everything else is as in every sweep."""

    def __init__(
        self,
        ray: Any,
        layout: Layout,
        sweep: OpenSweep,
        devices: Sequence[Any],
        batches_per_task: int,
    ) -> None:
        super().__init__(sweep, devices)
        options = dataclasses.replace(
            sweep.options, width=sweep.plan.width, on_evaluation=None, progress=False
        )
        self._order = Order(sweep.experiment, sweep.plan.design, options, sweep.request, layout)
        self._ray, self._layout = ray, layout
        self._batches_per_task = batches_per_task
        self._steps_before = 0  # environment steps that were not taken by these tasks
        self._parts: list[list[int]] = []  # the batches of each task
        self._starts: dict[int, int] = {}  # how often each task was started
        self._progress: dict[int, Progressed] = {}  # of tasks that are running
        self._told: set[tuple[int, int]] = set()  # evaluations, by first run and step
        self._question: Any = None  # to the board, without an answer yet
        self._reports: collections.deque[tuple[int, Any]] = collections.deque()
        self._versions = [provenance.collect_versions()]  # the kinds that are known
        self._retried_from: list[int] = []
        self._facts |= {"device": "", "num_devices": layout.num_devices, "retries": 0}
        self._facts |= {"retried_from": "[]"}

    def compile_and_forecast(self) -> None:
        """Prints how many tasks there are, and what each has of its node; the tasks compile."""
        layout, plan = self._layout, self._plan
        tasks = len(self._divide())
        what = "GPU" if layout.num_gpus else "CPU"
        self._bar.message(
            f"{len(self._runs)} run(s) in {len(plan.batches)} batch(es) of up to {plan.width}: "
            f"{tasks} task(s) of up to {self._batches_per_task} batch(es) and "
            f"{layout.cores_per_task} {what}(s) each, on {layout.num_nodes} node(s)"
        )

    def _divide(self) -> list[list[int]]:
        """Divides the unfinished batches among tasks; all batches of a task share a program."""
        size = self._batches_per_task
        return [
            left[begin : begin + size]
            for left in map(self._unfinished, self._plan.groups)
            for begin in range(0, len(left), size)
        ]

    def _train(self, numbers: Sequence[int], stop: StopRequest) -> None:
        """Submits the unfinished batches as Ray tasks, and waits for them."""
        ray = self._ray
        wanted = [[n for n in part if n in numbers] for part in self._divide()]
        self._parts = [part for part in wanted if part]
        board, pending = self._submit()
        self._steps_before = self._count_env_steps()
        start = time.perf_counter()
        self._saving.start()
        stop.is_deferred = True
        try:
            while pending:
                done, _ = ray.wait([*pending], timeout=_POLL_SECONDS)
                self._take_reports(board)
                for task in done:
                    self._progress.pop(pending.pop(task), None)
                    self._take_result(self._get_result(task))
                self._show_progress(time.perf_counter() - start)
                self._save_results()
                stop.raise_if_requested()
        finally:
            self._cancel([*pending], board)
            ray.kill(board)
        stop.is_deferred = False

    def _submit(self) -> tuple[Any, dict[Any, int]]:
        """Hands all tasks to Ray.

        Returns:
          The board that tasks report to, and the number of each task by its reference.
        """
        ray, layout = self._ray, self._layout
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On this node, so that it dies with no other one: if `soft`, Ray may place it elsewhere.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
        board = ray.remote(**options)(Board).remote()
        task = ray.remote(
            num_cpus=layout.num_cpus,
            num_gpus=layout.num_gpus,
            max_retries=-1,
            max_calls=1,  # a process for each: JAX takes its devices once, and frees no memory
            scheduling_strategy="SPREAD",
        )(run_task)
        # In a list, which Ray hands over as it is: the task imports the user's modules before it
        # reads.
        order = [ray.put(self._order)]
        modules = list_imported()
        parts = enumerate(self._parts)
        tasks = {task.remote(modules, order, i, part, board): i for i, part in parts}
        return board, tasks

    def _get_result(self, task: Any) -> TaskResult:
        try:
            # A copy: Ray's own is read-only, and takes room in its store.
            result: TaskResult = copy.deepcopy(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConfigError):
                raise ConfigError(str(error.cause)) from None
            raise
        return result

    def _take_result(self, result: TaskResult) -> None:
        self._records |= result.records
        self._finished |= {*result.records}
        self._unsaved |= result.unsaved
        self._trained_steps += result.trained_steps
        facts = self._facts
        for name in TIMES:
            facts[name] += result.facts[name]
        for name in ("peak_bytes", "planned_peak_bytes"):
            facts[name] = max(facts[name], result.facts[name])
        facts["memory_budget"] = min(facts["memory_budget"], result.facts["memory_budget"])
        kinds = {*facts["device"].split(", "), result.facts["device"]} - {""}
        facts["device"] = ", ".join(sorted(kinds))
        self._save_finished()
        self._write_times()

    def _cancel(self, tasks: Sequence[Any], board: Any) -> None:
        """Stops tasks, which write their checkpoints first, and takes their last reports."""
        for task in tasks:
            self._ray.cancel(task)
        done, _ = self._ray.wait([*tasks], num_returns=len(tasks), timeout=_GRACE_SECONDS)
        self._take_reports(board)
        for task in done:
            with contextlib.suppress(self._ray.exceptions.RayError, ConfigError):
                self._take_result(self._get_result(task))

    # ------------------------------------------------------------------------ reports of tasks

    def _take_reports(self, board: Any) -> None:
        """Takes all reports of the tasks; their results come on their own."""
        self._ask(board)
        while self._reports:
            task, what = self._reports.popleft()
            numbers = self._parts[task]
            if isinstance(what, Started):
                self._take_start(task, what)
            elif isinstance(what, Resumed):
                self._take_resumed(task, what)
            elif isinstance(what, Progressed):
                self._progress[task] = what
            elif isinstance(what, Evaluated):
                self._take_reported_evaluation(numbers, what)
            else:
                self._bar.message(f"{_name_batches(numbers)}: {what}")

    def _ask(self, board: Any) -> None:
        """Asks the board for new reports.

        First waits for the answer to an earlier question, if one is open.
        """
        errors = self._ray.exceptions
        for _ in range(1 if self._question is None else 2):
            self._question = self._question or board.take.remote()
            try:
                answer = self._ray.get(self._question, timeout=ANSWER_SECONDS)
            except errors.GetTimeoutError:
                return  # it is only slow, as when it starts on a busy machine
            except errors.RayError:
                answer = []
            self._question = None
            self._reports.extend(copy.deepcopy(answer))

    def _take_start(self, task: int, start: Started) -> None:
        self._starts[task] = self._starts.get(task, 0) + 1
        self._progress.pop(task, None)
        if self._starts[task] > 1:
            self._facts["retries"] += 1
            self._bar.message(
                f"{_name_batches(self._parts[task])}: started again on {start.node}, as the node "
                "or the process that trained before is gone"
            )
        if start.versions not in self._versions:
            self._versions.append(start.versions)
            assert self._folder is not None
            self._facts |= note_changes(self._folder, start.versions, self._bar.message)

    def _take_resumed(self, task: int, resumed: Resumed) -> None:
        for number, record in resumed.records.items():
            if number not in self._finished:
                self._records[number] = record
        if self._starts.get(task, 0) > 1:
            self._retried_from.append(resumed.step)
            self._facts["retried_from"] = json.dumps(self._retried_from)
        else:  # these steps were taken by an earlier sweep
            runs = sum(len(self._plan.batches[number]) for number in resumed.records)
            self._steps_before += resumed.step * runs

    def _take_reported_evaluation(self, numbers: Sequence[int], evaluated: Evaluated) -> None:
        key = (int(evaluated.runs[0]), evaluated.step)
        if key in self._told:  # a task repeats it whose node died after it
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
        self._bar.show_evaluation(evaluated.step, evaluated.episode_return)
        if self._options.on_evaluation is not None:
            self._options.on_evaluation(evaluated)

    def _show_progress(self, seconds: float) -> None:
        """Moves the bar; the speed is that of all nodes since the start."""
        env_steps = self._count_env_steps()
        speed = max(env_steps - self._steps_before, 0) / max(seconds, 1e-9)
        self._facts["env_steps_per_second"] = speed
        returns = [progress.training_return for progress in self._progress.values()]
        self._bar.update(env_steps, np.concatenate([np.empty(0), *returns]), speed)

    def _count_env_steps(self) -> int:
        under_way = sum(progress.env_steps for progress in self._progress.values())
        return sum(map(self._count_steps, self._finished)) + under_way


def _name_batches(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"batch {numbers[0]}"
    return f"batches {numbers[0]} to {numbers[-1]}"
