"""Runs a sweep on the machines of a Ray cluster: tasks go on elsewhere when their node dies.

A task (`purejaxdqn.sweep.ray.task`) trains some batches side by side. It keeps their checkpoints
in the folder of the sweep, which all nodes see. Ray starts a task again whose node or process is
gone; the task then goes on from its checkpoint. The process that called `run_on_cluster` is the
driver (`purejaxdqn.sweep.ray.driver`): it shows progress and puts the numbers together as
`run_design` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from purejaxdqn.runtime.devices import ensure_devices
from purejaxdqn.sweep.dataset import SweepResult
from purejaxdqn.sweep.design import Design
from purejaxdqn.sweep.options import SweepOptions, check_whole, take_options
from purejaxdqn.sweep.plan import SweepPlan, plan_sweep
from purejaxdqn.sweep.ray.driver import Driver
from purejaxdqn.sweep.ray.task import ANSWER_SECONDS, Layout, import_ray
from purejaxdqn.sweep.resume import open_sweep
from purejaxdqn.training.loop import Experiment
from purejaxdqn.types import ConfigError

_UNKNOWN = 2**62  # bytes: only the node itself knows the memory of its GPUs
_NOT_TAKEN = {"devices": "a task trains on its node's own, give num_cpus_per_task"}


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
    same kind of processor and the same versions; otherwise a warning and the attribute
    `not_bitwise` say so. The experiment must be importable on the nodes, or defined in the script.

    Args:
      experiment: `config -> Train`.
      design: the runs.
      address: of the cluster, such as "10.0.0.1:6379"; by default that of `RAY_ADDRESS`, or of the
        cluster that this machine is part of, or else this machine alone. A connection to Ray that
        the process has already is used.
      batches_per_task: by default as many as train side by side: one for each core or GPU.
      num_cpus_per_task: cores of a task; by default all of the smallest node.
      num_gpus_per_task: GPUs of a task, which then trains on these. Give `width` too: this machine
        may have none to choose it for.
      options: several fields of `SweepOptions` at once, but for `devices`. `output` is needed: a
        folder that all nodes see under the same path, such as one on NFS. The width is chosen for
        all cores of the cluster. `memory_budget` is that of a task, by default its share of what
        Ray counts as its node's memory.
      **option_fields: the fields of `SweepOptions`.

    Returns:
      The `SweepResult`. Of its attributes, `train_seconds` and the like are sums over tasks,
      `env_steps_per_second` is over all nodes, `retries` says how often a task was started again,
      and `retried_from` (JSON) at which steps these went on.

    Raises:
      ConfigError: for options that cannot be, before anything is compiled; without Ray; if there is
        no cluster at that address; or if a node does not see the folder.
      SweepInterrupted: on Ctrl-C and SIGTERM, with everything that was finished; batches under way
        have a checkpoint to `resume` from.
    """
    check_whole("batches_per_task", 1 if batches_per_task is None else batches_per_task, 1)
    check_whole("num_cpus_per_task", 1 if num_cpus_per_task is None else num_cpus_per_task, 1)
    check_whole("num_gpus_per_task", num_gpus_per_task, 0)
    options = take_options(options, option_fields, "run_on_cluster", _NOT_TAKEN)
    if options.output is None:
        raise ConfigError("output (None) must be a folder that all nodes of the cluster see")
    options = dataclasses.replace(options, output=options.output.resolve())
    ray = import_ray()
    with _connect(ray, address):
        devices = ensure_devices()  # not before: Ray may start processes, and JAX has threads then
        layout = _lay_out(ray, num_cpus_per_task, num_gpus_per_task, options.memory_budget)
        plan = functools.partial(_plan, experiment, design, devices[0], layout)
        with open_sweep(experiment, design, plan, options) as sweep:
            size = batches_per_task or layout.cores_per_task
            return Driver(ray, layout, sweep, devices, size).run()


def _plan(
    experiment: Experiment, design: Design, device: jax.Device, layout: Layout, width: int | None
) -> SweepPlan:
    """Plans for the devices of one task, at a width for those of the whole cluster."""
    return plan_sweep(
        experiment,
        design,
        [device] * layout.devices_per_task,
        width=width,
        memory_budget=_UNKNOWN if layout.memory_budget is None else layout.memory_budget,
        num_devices=layout.num_devices,
    )


@contextlib.contextmanager
def _connect(ray: Any, address: str | None) -> Iterator[None]:
    """Connects to a cluster within the block, unless the process is connected already."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # Ray puts its own there
            stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        stack.callback(ray.shutdown)
        try:
            _check_address(address)
            with warnings.catch_warnings():
                # Where JAX has threads already, forking warns; but Ray starts other programs.
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


def _check_address(address: str | None) -> None:
    """Finds out within seconds whether anyone answers there: Ray itself takes minutes."""
    if address in (None, "auto", "local") or "://" in str(address):
        return
    host, _, port = str(address).rpartition(":")
    if not (host and port.isdigit()):
        raise ValueError("an address is a host and a port, such as 10.0.0.1:6379")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()


def _lay_out(ray: Any, num_cpus: int | None, num_gpus: int, memory_budget: float | None) -> Layout:
    """Decides how much of a node each task has, and counts what the cluster has of it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= num_gpus]
    if not nodes:
        raise ConfigError(
            f"no node of the Ray cluster has a CPU and {num_gpus} GPU(s): start one that has, or "
            "lower num_gpus_per_task"
        )
    if num_cpus is None:
        num_cpus = min(int(node["CPU"]) for node in nodes)
        if num_gpus:  # the GPUs do the work
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
