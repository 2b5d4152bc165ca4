"""A sweep on the machines of a Ray cluster: tasks that go on elsewhere when their node dies.

A task (`purejaxdqn.sweep.ray.task`) trains some batches side by side and keeps their checkpoints in
the folder of the sweep, which all nodes see. Ray starts a task again whose node or process is gone;
it then goes on from what was kept. The process that asked, here called the driver
(`purejaxdqn.sweep.ray.driver`), shows progress and puts the numbers together as `run_design` does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from purejaxdqn.engine.programs import Experiment
from purejaxdqn.runtime.devices import ensure_devices
from purejaxdqn.sweep.design import Design
from purejaxdqn.sweep.opening import SeedMode, opened
from purejaxdqn.sweep.plan import SweepPlan, plan_sweep
from purejaxdqn.sweep.ray.driver import Driver
from purejaxdqn.sweep.ray.task import ANSWER_SECONDS, Layout, Order, import_ray
from purejaxdqn.sweep.trainer import SweepResult
from purejaxdqn.tracking import Tracker
from purejaxdqn.types import ConfigError

_UNKNOWN = 2**62  # bytes: what the GPUs of a node have is known there alone


def run_on_cluster(
    experiment: Experiment,
    design: Design,
    *,
    address: str | None = None,
    output: Path,
    width: int | None = None,
    seed_mode: SeedMode = "vmap",
    resume: bool = False,
    overwrite: bool = False,
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
      overwrite: whether to start again, and drop what it holds.
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
    ray = import_ray()
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
            overwrite=overwrite,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
            diagnostics=diagnostics,
        ) as sweep:
            order = Order(
                experiment,
                design,
                sweep.plan.width,
                output,
                sweep.asked,
                layout,
                checkpoint_seconds,
                diagnostics,
            )
            driver = Driver(
                ray, order, sweep, devices, batches_per_task or layout.cores_per_task, on_evaluation
            )
            return driver.go(announce=progress)


def _check_whole(name: str, value: int | None, least: int) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value < least
    ):
        raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {least}")


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
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()


def _lay_out(ray: Any, num_cpus: int | None, num_gpus: int, memory_budget: int | None) -> Layout:
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
    return Layout(
        cores,
        num_gpus or max(num_cpus, 2),
        num_cpus,
        num_gpus,
        memory_budget,
        cores * sum(map(tasks, nodes)),
        len(nodes),
    )
