"""Measures memory: what a run will take, from its shapes, and what the machine has free."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import psutil

from purejaxdqn.engine.rounds import evaluation_steps
from purejaxdqn.engine.run import COUNT, SEED, make_run_functions
from purejaxdqn.engine.traced_memory import trace_memory
from purejaxdqn.training.loop import ChunkOutputs, Experiment
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ArrayTree, TrainState


class RunBytes(NamedTuple):
    """Memory of one run, in bytes.

    Attributes:
      parts: on the device while the run trains, by the setting that makes each part big.
      state: the part of these that stays between two chunks.
      result: on the host until the end, the numbers and the last weights.
    """

    parts: dict[str, int]
    state: int
    result: int

    @property
    def running(self) -> int:
        """Bytes on the device while the run trains."""
        return sum(self.parts.values())


class TracedRun(NamedTuple):
    """The shapes of a run, and the memory of its intermediate results.

    Attributes:
      state: its `TrainState`, as shapes.
      outputs: the outputs of a chunk, as shapes.
      chunk_bytes: the most that intermediate results of a chunk take.
      evaluation_bytes: the most that those of an evaluation take.
    """

    state: TrainState
    outputs: ChunkOutputs
    chunk_bytes: int
    evaluation_bytes: int


def trace_run(experiment: Experiment, config: RunConfig) -> TracedRun:
    """Traces a run of these settings; computes nothing."""
    run = make_run_functions(experiment, config)
    counts = jax.ShapeDtypeStruct((1,), COUNT.dtype)
    chunk_bytes, outputs = trace_memory(
        lambda *args: run.chunk(*args)[1], run.config, run.state, counts
    )
    params = run.state.learner.params
    evaluation_bytes, _ = trace_memory(run.evaluate, run.config, params, SEED, COUNT)
    return TracedRun(run.state, outputs, chunk_bytes, evaluation_bytes)


def run_bytes(config: RunConfig, run: TracedRun) -> RunBytes:
    """Computes the memory that a run takes from its shapes."""
    state, outputs, working = run.state, run.outputs, run.chunk_bytes
    learner = tree_bytes(state.learner)
    params = tree_bytes(state.learner.params)
    num_evaluations = len(evaluation_steps(config))
    num_curves = 1 + len(outputs.metrics)
    parts = {
        # Gradients and optimiser updates are as large as the weights.
        "hidden_sizes": learner + 2 * params,
        "num_envs": tree_bytes((state.env_state, state.obs, outputs)),
        # An evaluation runs between two chunks: only what it takes beyond theirs counts.
        "eval_episodes": max(0, run.evaluation_bytes - working),
    }
    if state.replay is not None:
        parts["replay_capacity"] = tree_bytes(state.replay)
        # Each layer's values and gradients at the least, where the settings say how many there are.
        width = sum(config.hidden_sizes) + sum(getattr(config, "head_sizes", ()))
        layers = 4 * 4 * width * getattr(config, "batch_size", 0)
        parts["batch_size"] = max(layers, working - 2 * params)
    else:
        parts["num_envs"] += max(0, working - 2 * params)  # all steps are learned from at once
    numbers = 4 * num_evaluations * config.eval_episodes + 8 * num_evaluations * num_curves
    own = {name: size for name, size in parts.items() if hasattr(config, name)}
    own["num_envs"] += sum(parts.values()) - sum(own.values())  # of settings under other names
    return RunBytes(own, tree_bytes(state), 2 * numbers + 2 * params)


def tree_bytes(tree: ArrayTree) -> int:
    """Adds up the bytes of arrays, or of their shapes."""

    def size(leaf: Any) -> int:
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return math.prod(leaf.shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Returns the memory that is free for runs, of the accelerators or of the machine."""
    stats = [device.memory_stats() for device in devices]
    if devices[0].platform != "cpu" and all(stats):
        return sum(one["bytes_limit"] - one["bytes_in_use"] for one in stats if one is not None)
    free = psutil.virtual_memory().available
    limit = _container_limit()
    if limit is not None:
        free = min(free, limit - memory_bytes())
    return max(int(free), 1)


def _container_limit() -> int | None:
    """Reads the limit of a container or a cluster's job, if any (control groups 2 and 1)."""
    root = Path("/sys/fs/cgroup")
    limits = []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        base = root / "memory" if "memory" in controllers.split(",") else root
        name = "memory.limit_in_bytes" if base != root else "memory.max"
        folder = base / path.lstrip("/")
        for parent in (folder, *folder.parents):
            limits += [int(text) for text in _lines(parent / name) if text.isdigit()]
            if parent == root:
                break
    total = psutil.virtual_memory().total
    return min((limit for limit in limits if limit < total), default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def memory_bytes() -> int:
    """Returns the memory that this process has now."""
    resident: int = psutil.Process().memory_info().rss
    return resident


def peak_bytes() -> int:
    """Returns the most memory that this process has had, as the operating system counts it."""
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
