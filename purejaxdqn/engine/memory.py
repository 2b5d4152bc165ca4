"""Measures memory: what a run will take, from its traced shapes, and what the machine has free."""

import contextlib
import ctypes
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import psutil
from jax.extend.core import Jaxpr, Var, jaxprs_in_params

from purejaxdqn.engine.programs import COUNT, COUNTS, SEED, OneRun, make_run_functions
from purejaxdqn.engine.rounds import evaluation_steps
from purejaxdqn.runtime.devices import max_width
from purejaxdqn.training.loop import ChunkOutputs, Experiment
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ArrayTree, TrainState


class TracedRun(NamedTuple):
    """The shapes of a run, and the memory that it takes, in bytes."""

    state: TrainState  # as shapes
    outputs: ChunkOutputs  # of a chunk, as shapes
    chunk_bytes: int  # at most, of its intermediate results
    evaluation_bytes: int  # likewise
    parts: dict[str, int]  # on the device while it trains, by the setting that makes each part big
    state_bytes: int  # the part of these that stays between two chunks
    array_bytes: int  # the largest array of these
    number_bytes: int  # on the host until the end, of its evaluations
    weight_bytes: int  # likewise, of its last weights
    functions: OneRun

    @property
    def running_bytes(self) -> int:
        """Bytes on the device while the run trains."""
        return sum(self.parts.values())

    @property
    def max_width(self) -> int:
        """The most such runs that are worth while in one batch."""
        if self.functions.env.is_host:
            return max_width()  # one call steps the environments of them all
        # Weights have gradients, and an optimiser's two averages of those.
        return max_width(self.chunk_bytes + 4 * self.weight_bytes)


def trace_run(experiment: Experiment, config: RunConfig) -> TracedRun:
    """Traces a run of these settings, and finds the memory that it takes; computes nothing."""
    run = make_run_functions(experiment, config)
    state, weights = run.state, run.state.learner.params
    working, outputs = trace_memory(lambda *args: run.chunk(*args)[1], run.config, state, COUNTS)
    evaluation, _ = trace_memory(run.evaluate, run.config, state, SEED, COUNT)
    params = tree_bytes(weights)
    parts = {
        # Gradients and optimiser updates are as large as the weights.
        "hidden_sizes": tree_bytes((state.learner, state.measured)) + 2 * params,
        "num_envs": tree_bytes((state.env_state, state.obs, state.behaviour, outputs)),
        # An evaluation runs between two chunks: only what it takes beyond theirs counts.
        "eval_episodes": max(0, evaluation - working),
    }
    if state.replay is not None:
        parts["replay_capacity"] = tree_bytes(state.replay)
        # Each layer's values and gradients at the least, where the settings say how many there are.
        width = sum(config.hidden_sizes) + sum(getattr(config, "head_sizes", ()))
        layers = 4 * 4 * width * getattr(config, "batch_size", 0)
        parts["batch_size"] = max(layers, working - 2 * params)
    else:
        parts["num_envs"] += max(0, working - 2 * params)  # all steps are learned from at once
    num_curves = 1 + len(outputs.metrics) + len(outputs.measured)
    numbers = len(evaluation_steps(config)) * (4 * config.eval_episodes + 8 * num_curves)
    own = {name: size for name, size in parts.items() if hasattr(config, name)}
    own["num_envs"] += sum(parts.values()) - sum(own.values())  # of settings under other names
    sizes = (tree_bytes(state), max(map(tree_bytes, jax.tree.leaves(state))), numbers, params)
    return TracedRun(state, outputs, working, evaluation, own, *sizes, run)


def tree_bytes(tree: ArrayTree) -> int:
    """Adds up the bytes of arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


# -------------------------------------------------------------------------- intermediate results

_CALLS = {"pjit", "jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint"}
_VIEWS = {"reshape", "squeeze", "expand_dims"}  # of the same bytes
# XLA computes these element by element where they are needed, and does not write them to memory.
_ELEMENTWISE = {"abs", "add", "and", "broadcast_in_dim", "ceil", "clamp", "convert_element_type"}
_ELEMENTWISE |= {"copy", "cos", "div", "eq", "exp", "exp2", "expm1", "floor", "ge", "gt", "iota"}
_ELEMENTWISE |= {"integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min"}
_ELEMENTWISE |= {"mul", "ne", "neg", "not", "or", "pow", "rsqrt", "select_n", "shift_left"}
_ELEMENTWISE |= {"shift_right_logical", "sign", "sin", "slice", "sqrt", "square", "stop_gradient"}
_ELEMENTWISE |= {"sub", "tanh", "transpose", "xor"}
# What reads elements where they are computed: these too.
_READS_ELEMENTS = _ELEMENTWISE | {"reduce_max", "reduce_min", "reduce_sum", "argmax", "argmin"}


class _Step(NamedTuple):
    """One operation; the first `num_in_place` of its outputs reuse the memory of inputs."""

    name: str
    inputs: list[Var]
    outputs: list[Var]
    bodies: list[Jaxpr]
    num_in_place: int


def trace_memory(function: Callable[..., Any], *args: ArrayTree) -> tuple[int, ArrayTree]:
    """Estimates the most bytes that a function's intermediate results take at a time.

    Arguments do not count, nor results that reuse their memory, such as the state of a loop.
    An elementwise result that one such operation, or one reduction, reads is fused, and counts
    nothing. The compiled program may take a third more, or two fifths less.

    Returns:
      Bytes, and the function's results as shapes.
    """
    jaxpr, results = jax.make_jaxpr(function, return_shape=True)(*args)
    return _most_alive(jaxpr.jaxpr), results


def _most_alive(jaxpr: Jaxpr) -> int:
    names: dict[Var, Var] = {}
    steps = [*_flat(jaxpr, names)]
    readers: dict[Var, list[int]] = {}  # by number, in order
    for at, step in enumerate(steps):
        for var in step.inputs:
            readers.setdefault(var, []).append(at)
    results = {names.get(v, v) for v in jaxpr.outvars if isinstance(v, Var)}
    last = {var: ats[-1] for var, ats in readers.items()}
    last |= dict.fromkeys(results, len(steps))
    fused: set[Var] = set()
    for at in reversed(range(len(steps))):
        step = steps[at]
        if step.name not in _ELEMENTWISE or step.outputs[0] in results:
            continue
        read_by = [steps[i].name for i in readers.get(step.outputs[0], [])]
        if len(read_by) <= 1 and {*read_by} <= _READS_ELEMENTS:
            fused.add(step.outputs[0])
            for var in step.inputs:  # read again wherever this output is computed
                last[var] = max(last[var], last.get(step.outputs[0], at))
    alive: dict[Var, int] = {}
    most = 0
    for at, step in enumerate(steps):
        for var in step.outputs[step.num_in_place :]:
            alive[var] = 0 if var in fused else tree_bytes(var.aval)
        inner = max(map(_most_alive, step.bodies), default=0)
        most = max(most, sum(alive.values()) + inner)
        alive = {var: size for var, size in alive.items() if last.get(var, at) > at}
    return most


def _flat(jaxpr: Jaxpr, names: dict[Var, Var]) -> Iterator[_Step]:
    """Yields the operations of a jaxpr, with those of the functions that it calls."""

    def rename(new: Any, old: Any) -> None:
        if isinstance(old, Var):
            names[new] = names.get(old, old)

    for eqn in jaxpr.eqns:
        name, bodies = eqn.primitive.name, [*jaxprs_in_params(eqn.params)]
        if name in _CALLS and len(bodies) == 1:
            for inner, outer in zip(bodies[0].invars, eqn.invars, strict=True):
                rename(inner, outer)
            yield from _flat(bodies[0], names)
            for outer, result in zip(eqn.outvars, bodies[0].outvars, strict=True):
                rename(outer, result)
        elif name in _VIEWS and isinstance(eqn.invars[0], Var):
            rename(eqn.outvars[0], eqn.invars[0])
        else:
            in_place = {"scatter": 1, "dynamic_update_slice": 1, "while": len(eqn.outvars)}
            if name == "scan":
                # A carried value keeps its shape; a stacked one has one axis more than in the body.
                pairs: Any = zip(eqn.outvars, bodies[0].outvars, strict=True)
                in_place["scan"] = sum(out.aval.ndim == own.aval.ndim for out, own in pairs)
            inputs = [names.get(v, v) for v in eqn.invars if isinstance(v, Var)]
            kind = "scatter" if name.startswith("scatter") else name  # "scatter-add", "scatter-max"
            yield _Step(name, inputs, [*eqn.outvars], bodies, in_place.get(kind, 0))


# ------------------------------------------------------------------------- the machine's memory


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Returns the memory that is free for runs, of the accelerators or of the machine."""
    stats = [device.memory_stats() for device in devices]
    if devices[0].platform != "cpu" and all(stats):
        return sum(one["bytes_limit"] - one["bytes_in_use"] for one in stats if one is not None)
    free = psutil.virtual_memory().available
    if (limit := _container_limit()) is not None:
        free = min(free, limit - memory_bytes())
    return max(int(free), 1)


def _container_limit() -> int | None:
    """Reads the limit of a container or a cluster's job, if any (control groups 2 and 1)."""

    def lines(path: Path) -> list[str]:
        try:
            return path.read_text().split()
        except OSError:
            return []

    root = Path("/sys/fs/cgroup")
    limits = []
    for line in lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        base = root / "memory" if "memory" in controllers.split(",") else root
        name = "memory.limit_in_bytes" if base != root else "memory.max"
        folder = base / path.lstrip("/")
        for parent in (folder, *folder.parents):
            limits += [int(text) for text in lines(parent / name) if text.isdigit()]
    total = psutil.virtual_memory().total
    return min((limit for limit in limits if limit < total), default=None)


def memory_bytes() -> int:
    """Returns the memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Returns the most memory that this process has had, as the operating system counts it."""
    with contextlib.suppress(OSError):  # Linux; the number below begins with that of the parent
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def return_free_memory() -> None:
    """Returns what this process has freed to the operating system, where the C library keeps it."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # of glibc alone
        trim(0)
