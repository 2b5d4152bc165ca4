"""Runs a sweep on the machines of a Ray cluster: tasks go on elsewhere when their node dies.

A task trains some batches, and keeps their checkpoints in the sweep's folder, which all nodes see.
The process that called `run_on_cluster` is the driver, which puts the numbers together.
"""

import collections
import contextlib
import copy
import dataclasses
import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from purejaxdqn.engine.rounds import Event, Record
from purejaxdqn.runtime.addresses import find_node
from purejaxdqn.runtime.devices import ensure_devices
from purejaxdqn.runtime.interrupts import catch_signals, keep_handlers
from purejaxdqn.runtime.modules import IMPORTED, describe_error
from purejaxdqn.storage import provenance
from purejaxdqn.sweep.batches import TIMES, BatchTrainer
from purejaxdqn.sweep.dataset import SweepResult
from purejaxdqn.sweep.design import Design
from purejaxdqn.sweep.options import SweepOptions, take_options
from purejaxdqn.sweep.ray.task import ANSWER_SECONDS, Board, Layout, run_task
from purejaxdqn.sweep.resume import OpenSweep, open_sweep
from purejaxdqn.training.loop import Experiment
from purejaxdqn.types import ConfigError, ensure_whole

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"  # answered in kind where Ray is
_UNKNOWN = 2**62  # bytes: only the node itself knows the memory of its GPUs
_NOT_TAKEN = {"devices": "a task trains on its node's own, give num_cpus_per_task"}
_POLL_SECONDS = 0.5  # between two looks at the reports of tasks
_GRACE_SECONDS = 60.0  # for tasks that are stopped to write their checkpoints


def run_on_cluster(
    experiment: Experiment,
    design: Design,
    *,
    address: str | None = None,
    batches_per_task: int | None = None,
    num_cpus_per_task: int | None = None,
    num_gpus_per_task: int = 0,
    options: SweepOptions | None = None,
    **option_fields: Any,
) -> SweepResult:
    """Trains every run of a design on the nodes of a Ray cluster.

    At the same width every run has the bits that it has with `run_design`, if all nodes have the
    same processor and versions; otherwise a warning and the attribute `not_bitwise` say so.

    Args:
      experiment: `config -> Train`, importable on the nodes, or defined in the script.
      design: the runs.
      address: of the cluster, such as "10.0.0.1:6379", unless the process is connected to one; by
        default `RAY_ADDRESS`, or the cluster of this machine, or else this machine alone.
      batches_per_task: by default as many as train side by side: one for each core or GPU.
      num_cpus_per_task: cores of a task; by default all of the smallest node.
      num_gpus_per_task: GPUs of a task, which then trains on these. Give `width` too: this machine
        may have none to choose it for.
      options: several fields of `SweepOptions` at once.
      **option_fields: the fields of `SweepOptions`, but for `devices`. `output` is needed: a folder
        that all nodes see under the same path, such as one on NFS. The width is chosen for all
        cores of the cluster. `memory_budget` is that of a task, by default its share of what Ray
        counts as its node's memory.

    Returns:
      The `SweepResult`. Its attributes in seconds are sums over tasks; `env_steps_per_second` is
      over all nodes. Tasks were started again `retries` times, at the steps `retried_from` (JSON).

    Raises:
      ConfigError: for options that cannot be, before anything is compiled; without Ray; if there is
        no cluster at that address; or if a node does not see the folder.
      SweepInterrupted: as `run_design` does.
    """
    ensure_whole("batches_per_task", 1 if batches_per_task is None else batches_per_task, 1)
    ensure_whole("num_cpus_per_task", 1 if num_cpus_per_task is None else num_cpus_per_task, 1)
    ensure_whole("num_gpus_per_task", num_gpus_per_task, 0)
    options = take_options(options, option_fields, "run_on_cluster", _NOT_TAKEN)
    if options.output is None:
        raise ConfigError("output (None) must be a folder that all nodes of the cluster see")
    with _connect(address) as ray:
        devices = ensure_devices()  # not before: Ray may start processes, and JAX has threads then
        layout = _lay_out(ray, num_cpus_per_task, num_gpus_per_task, options.memory_budget)
        devices = devices[:1] * layout.devices_per_task
        output, budget = options.output.resolve(), layout.memory_budget or _UNKNOWN
        options = dataclasses.replace(options, output=output, memory_budget=budget)
        with open_sweep(experiment, design, options, devices, layout.num_devices) as sweep:
            return _Driver(ray, layout, sweep, batches_per_task).run()


@contextlib.contextmanager
def _connect(address: str | None) -> Iterator[Any]:
    """Imports Ray, and connects to a cluster within the block unless it is connected already."""
    if address is None:
        address = os.environ.get("RAY_ADDRESS") or None
    node = find_node(address)
    # Imported here: it takes seconds, and is an extra of the package.
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"a sweep on a cluster needs Ray, which cannot be imported ({error}): "
            'pip install "purejaxdqn[cluster]"'
        ) from None
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(catch_signals())
            stack.callback(ray.shutdown)
            _start(ray, address, node)
        try:
            yield ray
        except ray.exceptions.RayTaskError:
            raise  # of the user's code, with its traceback
        except ray.exceptions.RayError as error:
            raise OSError(
                f"the Ray cluster cannot be used any more ({describe_error(error):.300}): 'ray "
                "status' says what is left of it, and /tmp/ray/session_latest/logs why"
            ) from error


def _start(ray: Any, address: str | None, node: tuple[str, int] | None) -> None:
    """Connects to a cluster, or starts one on this machine; refuses one that does not answer."""
    try:
        if node is not None:  # within seconds, where nobody answers: Ray takes minutes
            with socket.create_connection(node, timeout=ANSWER_SECONDS) as connection:
                connection.sendall(_HELLO)
                if "RAY_USE_TLS" not in os.environ and connection.recv(9)[3:4] != b"\4":
                    raise OSError("what answers there is no Ray")
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        with warnings.catch_warnings(), keep_handlers():  # Ray's would end us with nothing said
            # Where JAX has threads already, forking warns; but Ray starts other programs.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(address, include_dashboard=False, **quiet)
    except Exception as error:  # of any kind: Ray raises bare ones where it does not start in time
        why = f"({describe_error(error):.300})"
        if address in (None, "local"):
            raise ConfigError(
                f"Ray does not start on this machine {why}: see /tmp/ray/session_latest/logs, end "
                "what is left of an earlier one with 'ray stop', or train without a cluster"
            ) from error
        raise ConfigError(
            f"no Ray cluster can be reached at {address} {why}: start one with 'ray start --head', "
            "run this on one of its nodes, and give its address"
        ) from error


def _lay_out(ray: Any, num_cpus: int | None, num_gpus: int, memory_budget: float | None) -> Layout:
    """Decides how much of a node each task has, and counts what the cluster has of it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= num_gpus]
    if not nodes:
        raise ConfigError(
            f"no node of the Ray cluster has a CPU and {num_gpus} GPU(s): start one that has, or "
            "lower num_gpus_per_task"
        )
    cpus = [int(node["CPU"]) for node in nodes]
    if num_cpus is None:
        num_cpus = 1 if num_gpus else min(cpus)  # where there are GPUs, they do the work
    if num_cpus > max(cpus):
        raise ConfigError(
            f"num_cpus_per_task ({num_cpus}) must be at most {max(cpus)}, the CPUs of the largest "
            "node of the Ray cluster"
        )
    nodes = [node for node in nodes if node["CPU"] >= num_cpus]
    if memory_budget is None and not num_gpus:
        shares = [node["memory"] * num_cpus / node["CPU"] for node in nodes if "memory" in node]
        memory_budget = int(min(shares)) if shares else None
    needed = {"CPU": num_cpus, "GPU": num_gpus}
    num_tasks = sum(int(min(node[name] // n for name, n in needed.items() if n)) for node in nodes)
    num_devices = num_tasks * (num_gpus or num_cpus)
    devices_per_task = num_gpus or max(num_cpus, 2)
    return Layout(num_cpus, num_gpus, devices_per_task, memory_budget, num_devices, len(nodes))


class _Driver(BatchTrainer):
    """Trains the batches of a plan in tasks; everything else is as in every sweep."""

    def __init__(self, ray: Any, layout: Layout, sweep: OpenSweep, size: int | None) -> None:
        super().__init__(sweep, jax.local_devices())
        self._request, self._ray, self._layout = sweep.request, ray, layout
        self._size = size or layout.num_gpus or layout.num_cpus  # the most batches of a task
        self._steps_before = 0  # environment steps that were not taken by these tasks
        self._parts: list[list[int]] = []  # the batches of each task
        self._starts: collections.Counter[int] = collections.Counter()  # of each task
        self._progress: dict[int, tuple[int, np.ndarray]] = {}  # of running tasks: steps, returns
        self._told: set[tuple[int, int]] = set()  # evaluations, by first run and step
        self._questions: list[Any] = []  # to the board, without an answer yet
        self._reports: collections.deque[tuple[Any, ...]] = collections.deque()
        self._versions = [provenance.collect_versions()]  # the kinds that are known
        self._facts |= {"device": "", "num_devices": layout.num_devices}
        self._facts |= {"retries": 0, "retried_from": "[]"}

    def compile_and_forecast(self) -> None:
        """Prints how many tasks there are, and what each has of its node; the tasks compile."""
        layout, plan = self._layout, self._plan
        share = f"{layout.num_gpus} GPU(s)" if layout.num_gpus else f"{layout.num_cpus} CPU(s)"
        self._bar.message(
            f"{len(self._runs)} run(s) in {len(plan.batches)} batch(es) of up to {plan.width}: "
            f"{len(self._divide())} task(s) of up to {self._size} batch(es) and {share} "
            f"each, on {layout.num_nodes} node(s)"
        )

    def _divide(self) -> list[list[int]]:
        """Divides the unfinished batches among tasks; all batches of a task share a program."""
        return [
            left[begin : begin + self._size]
            for left in map(self._unfinished, self._plan.groups)
            for begin in range(0, len(left), self._size)
        ]

    def _train(self) -> None:
        """Submits the unfinished batches as Ray tasks, and waits for them."""
        self._parts = self._divide()
        board, pending = self._submit()
        self._steps_before = self._count_finished()
        start = time.perf_counter()
        self._saving.start()
        self._stop.is_deferred = True
        try:
            while pending:
                done, _ = self._ray.wait([*pending], timeout=_POLL_SECONDS)
                self._take_reports(board)
                for task in done:
                    self._progress.pop(pending.pop(task), None)
                    self._take_result(task)
                self._show_progress(time.perf_counter() - start)
                self._save_results()
                self._stop.raise_if_requested()
        finally:
            self._cancel([*pending], board)
            self._ray.kill(board)

    def _submit(self) -> tuple[Any, dict[Any, int]]:
        """Hands all tasks to Ray; returns their board, and the number of each by its reference."""
        ray, layout = self._ray, self._layout
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On this node, so that it dies with no other one: if `soft`, Ray may place it elsewhere.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        on_here = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
        board = on_here(Board).remote()
        # With a process for each call: JAX takes its devices once, and frees no memory.
        how = {"max_calls": 1, "max_retries": -1, "scheduling_strategy": "SPREAD"}
        task = ray.remote(num_cpus=layout.num_cpus, num_gpus=layout.num_gpus, **how)(run_task)
        options = dataclasses.replace(self._options, width=self._plan.width, on_evaluation=None)
        # In a list, which Ray hands over as it is: the task imports the modules before it reads.
        order = [ray.put((self._experiment, self._plan.design, options, self._request, layout))]
        numbered = enumerate(self._parts)
        return board, {task.remote(IMPORTED, order, i, part, board): i for i, part in numbered}

    def _take_result(self, task: Any) -> None:
        try:
            # A copy: Ray's own is read-only, and takes room in its store.
            records, unsaved, trained_steps, theirs = copy.deepcopy(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConfigError | OSError):  # such as of a disk that is full
                raise error.cause from None
            raise
        self._records |= records
        self._finished |= {*records}
        self._unsaved |= unsaved
        self._trained_steps += trained_steps
        ours = self._facts
        for name in TIMES:
            ours[name] += theirs[name]
        for name in ("peak_bytes", "planned_peak_bytes"):
            ours[name] = max(ours[name], theirs[name])
        ours["memory_budget"] = min(ours["memory_budget"], theirs["memory_budget"])
        ours["device"] = ", ".join(sorted({*ours["device"].split(", "), theirs["device"]} - {""}))
        self._save_finished()
        self._write_times()

    def _cancel(self, pending: Sequence[Any], board: Any) -> None:
        """Stops tasks, which write their checkpoints first, and takes all last reports."""
        for task in pending:
            self._ray.cancel(task)
        done, _ = self._ray.wait(pending, num_returns=len(pending), timeout=_GRACE_SECONDS)
        self._take_reports(board)
        for task in done:
            with contextlib.suppress(self._ray.exceptions.RayError, ConfigError):
                self._take_result(task)

    def _take_reports(self, board: Any) -> None:
        """Asks the board for reports, once it has answered earlier questions, and takes all."""
        self._questions.append(board.take.remote())
        while self._questions:
            try:
                answer = self._ray.get(self._questions[0], timeout=ANSWER_SECONDS)
            except self._ray.exceptions.GetTimeoutError:
                break  # it is only slow, as when it starts on a busy machine
            except self._ray.exceptions.RayError:
                answer = []
            del self._questions[0]
            self._reports.extend(copy.deepcopy(answer))
        while self._reports:
            task, about, *what = self._reports.popleft()
            getattr(self, f"_on_{about}")(task, *what)

    def _on_message(self, task: int, text: str) -> None:
        first, last = self._parts[task][0], self._parts[task][-1]
        name = f"batch {first}" if first == last else f"batches {first} to {last}"
        self._bar.message(f"{name}: {text}")

    def _on_progress(self, task: int, env_steps: int, training_return: np.ndarray) -> None:
        self._progress[task] = env_steps, training_return

    def _on_start(self, task: int, node: str, versions: dict[str, Any]) -> None:
        self._starts[task] += 1
        self._progress.pop(task, None)
        if self._starts[task] > 1:
            self._facts["retries"] += 1
            why = "as the node or the process that trained before is gone"
            self._on_message(task, f"started again on {node}, {why}")
        if versions not in self._versions:
            self._versions.append(versions)
            assert self._folder is not None
            self._facts |= self._folder.note_changes(versions)

    def _on_resumed(self, task: int, step: int, records: dict[int, Record]) -> None:
        """Takes the numbers of batches that go on from a checkpoint."""
        self._records |= {n: record for n, record in records.items() if n not in self._finished}
        if self._starts[task] > 1:
            steps = [*json.loads(self._facts["retried_from"]), step]
            self._facts["retried_from"] = json.dumps(steps)
        else:  # these steps were taken by an earlier sweep
            self._steps_before += step * sum(len(self._plan.batches[n]) for n in records)

    def _on_evaluation(self, task: int, event: Event, members: list[int]) -> None:
        if (members[0], event.step) in self._told:  # a task repeats it whose node died after it
            return
        self._told.add((members[0], event.step))
        for number in self._parts[task]:
            batch = self._plan.batches[number]
            if batch[0] in members and number not in self._finished:
                record = self._records.setdefault(number, Record(self._configs[number], len(batch)))
                begin = members.index(batch[0])
                record.add(event, slice(begin, begin + len(batch)))
        self._publish(event, members)

    def _show_progress(self, seconds: float) -> None:
        """Moves the bar; the speed is that of all nodes since the start."""
        env_steps = self._count_finished() + sum(steps for steps, _ in self._progress.values())
        speed = max(env_steps - self._steps_before, 0) / max(seconds, 1e-9)
        self._facts["env_steps_per_second"] = speed
        returns = [values for _, values in self._progress.values()]
        self._bar.show_progress(env_steps, np.concatenate([np.empty(0), *returns]), speed)
