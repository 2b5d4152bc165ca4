"""Estimates the memory of a traced function's intermediate results from its jaxpr, uncompiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Var

from purejaxdqn.types import ArrayTree

_CALLS = {"pjit", "jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint"}
_VIEWS = {"reshape", "squeeze", "expand_dims"}  # of the same bytes
# XLA computes these element by element where they are needed, and does not write them to memory.
_ELEMENTWISE = {"abs", "add", "and", "broadcast_in_dim", "ceil", "clamp", "convert_element_type"}
_ELEMENTWISE |= {"copy", "cos", "div", "eq", "exp", "exp2", "expm1", "floor", "ge", "gt", "iota"}
_ELEMENTWISE |= {"integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min"}
_ELEMENTWISE |= {"mul", "ne", "neg", "not", "or", "pow", "rsqrt", "select_n", "shift_left"}
_ELEMENTWISE |= {"shift_right_logical", "sign", "sin", "slice", "sqrt", "square", "stop_gradient"}
_ELEMENTWISE |= {"sub", "tanh", "transpose", "xor"}
_IN_PLACE = ("scatter", "scatter-add", "scatter_add", "dynamic_update_slice")


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
    An elementwise result read by one elementwise operation is fused, and counts nothing. One read
    by a reduction counts: XLA hands reductions to a library, for which it writes their arguments to
    memory. The compiled program may take a third more or less.

    Args:
      function: the function to trace.
      *args: its arguments, or their shapes.

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
        if len(read_by) <= 1 and {*read_by} <= _ELEMENTWISE:
            fused.add(step.outputs[0])
            for var in step.inputs:  # read again wherever this output is computed
                last[var] = max(last[var], last.get(step.outputs[0], at))
    alive: dict[Var, int] = {}
    most = 0
    for at, step in enumerate(steps):
        for var in step.outputs[step.num_in_place :]:
            alive[var] = 0 if var in fused else _num_bytes(var)
        inner = max(map(_most_alive, step.bodies), default=0)
        most = max(most, sum(alive.values()) + inner)
        alive = {var: size for var, size in alive.items() if last.get(var, at) > at}
    return most


def _flat(jaxpr: Jaxpr, names: dict[Var, Var]) -> Iterator[_Step]:
    """Yields the operations of a jaxpr, with those of the functions that it calls."""
    for eqn in jaxpr.eqns:
        bodies = [*_bodies(eqn.params)]
        if eqn.primitive.name in _CALLS and len(bodies) == 1:
            (body,) = bodies
            for inner, outer in zip(body.invars, eqn.invars, strict=True):
                if isinstance(outer, Var):
                    names[inner] = names.get(outer, outer)
            yield from _flat(body, names)
            for outer, result in zip(eqn.outvars, body.outvars, strict=True):
                if isinstance(result, Var):
                    names[outer] = names.get(result, result)
            continue
        if eqn.primitive.name in _VIEWS and isinstance(eqn.invars[0], Var):
            names[eqn.outvars[0]] = names.get(eqn.invars[0], eqn.invars[0])
            continue
        in_place = {**dict.fromkeys(_IN_PLACE, 1), "while": len(eqn.outvars)}
        if eqn.primitive.name == "scan":
            # A carried value keeps its shape; a stacked one has one axis more than in the body.
            pairs = zip(eqn.outvars, bodies[0].outvars, strict=True)
            in_place["scan"] = sum(_ndim(outer) == _ndim(inner) for outer, inner in pairs)
        inputs = [names.get(v, v) for v in eqn.invars if isinstance(v, Var)]
        name = eqn.primitive.name
        yield _Step(name, inputs, [*eqn.outvars], bodies, in_place.get(name, 0))


def _bodies(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(part, (ClosedJaxpr, Jaxpr)):
                yield part.jaxpr if isinstance(part, ClosedJaxpr) else part


def _ndim(atom: Any) -> int:
    return len(atom.aval.shape)


def _num_bytes(var: Var) -> int:
    aval: Any = var.aval
    return math.prod(aval.shape) * aval.dtype.itemsize
