"""Hands the batches of a sweep to the nodes of a Ray cluster, and puts together what they find."""

from __future__ import annotations

import collections
import contextlib
import copy
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from purejaxdqn.engine.record import Record
from purejaxdqn.engine.rounds import Event
from purejaxdqn.runtime.interrupts import Stop
from purejaxdqn.storage import results
from purejaxdqn.sweep.opening import Opened, note_changes
from purejaxdqn.sweep.ray.task import (
    ANSWER_SECONDS,
    Board,
    Counted,
    Order,
    Share,
    Started,
    TakenUp,
    work,
)
from purejaxdqn.sweep.trainer import TIMES, Trainer
from purejaxdqn.tracking import Evaluated, Tracker
from purejaxdqn.types import ConfigError

_POLL_SECONDS = 0.5  # between two looks at what the tasks say
_GRACE_SECONDS = 60.0  # for tasks that are stopped to write their checkpoints


class Driver(Trainer):
    """Has the batches of a plan trained by tasks; the rest is as in every sweep."""

    def __init__(
        self,
        ray: Any,
        order: Order,
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
        self._counts: dict[int, Counted] = {}  # of tasks that are running
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
        board = ray.remote(**options)(Board).remote()
        task = ray.remote(
            num_cpus=layout.num_cpus,
            num_gpus=layout.num_gpus,
            max_retries=-1,
            max_calls=1,  # a process for each: JAX takes its devices once, and frees no memory
            scheduling_strategy="SPREAD",
        )(work)
        order = ray.put(self._order)
        tasks = {task.remote(order, i, part, board): i for i, part in enumerate(self._parts)}
        return board, tasks

    def _result_of(self, task: Any) -> Share:
        try:
            # A copy: what Ray gives is read-only, and takes room in its store.
            share: Share = copy.deepcopy(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConfigError):
                raise ConfigError(str(error.cause)) from None
            raise
        return share

    def _take(self, share: Share) -> None:
        """Takes what a task found."""
        self._records |= share.records
        self._finished |= {*share.records}
        self._unsaved |= share.unsaved
        self._trained_steps += share.trained_steps
        facts = self._facts
        for name in TIMES:
            facts[name] += share.facts[name]
        for name in ("peak_bytes", "planned_peak_bytes"):
            facts[name] = max(facts[name], share.facts[name])
        facts["memory_budget"] = min(facts["memory_budget"], share.facts["memory_budget"])
        kinds = {*facts["device"].split(", "), share.facts["device"]} - {""}
        facts["device"] = ", ".join(sorted(kinds))
        self._save_finished()
        self._keep_times()

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
            if isinstance(what, Started):
                self._hear_start(task, what)
            elif isinstance(what, TakenUp):
                self._hear_taken_up(task, what)
            elif isinstance(what, Counted):
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
                answer = self._ray.get(self._question, timeout=ANSWER_SECONDS)
            except errors.GetTimeoutError:
                return  # it is only slow, as when it starts on a busy machine
            except errors.RayError:
                answer = []
            self._question = None
            self._unheard.extend(copy.deepcopy(answer))

    def _hear_start(self, task: int, start: Started) -> None:
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

    def _hear_taken_up(self, task: int, taken: TakenUp) -> None:
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
