"""Refuses parts that are passed to an agent, or what they return, where the kind is wrong."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.training.schedules import part_of
from purejaxdqn.training.settings import RunConfig, reserved_names
from purejaxdqn.types import (
    ArrayTree,
    Behaviour,
    ConfigError,
    Learner,
    LossOutput,
    Measure,
    Network,
    Replay,
    ensure,
    ensure_function,
    ensure_whole,
)

# What each part that can be passed is made of, by the number of arguments of its functions.
_RECORDS: dict[str, tuple[type, dict[str, int], str]] = {
    "network": (
        Network,
        {"init": 2, "apply": 2, "action_values": 1},
        "networks.value_network(2, (64,))",
    ),
    "behaviour": (
        Behaviour,
        {"act": 3, "init": 1},
        "behaviours.epsilon_greedy_behaviour(lambda num_steps: 0.1)",
    ),
    "replay": (
        Replay,
        {"init": 2, "add": 3, "sample": 2, "update": 3},
        "replay.uniform_replay(10_000, 128, 500)",
    ),
    "learner": (Learner, {"init": 2, "update": 4}, "training.learner.make_learner(...)"),
    "measure": (Measure, {"init": 1, "update": 5}, "Measure(update)"),
}
_FUNCTIONS = {
    "loss_fn": (5, "losses.bellman_loss(td_error)"),
    "wrap_loss": (1, "lambda loss_fn: losses.munchausen(loss_fn)"),
    "batch_loss": (5, "over_batch(losses.bellman_loss(td_error))"),
    "optimizer": (1, "optax.rmsprop"),
    "target_update": (3, "periodic_target_update(50)"),
    "after_update": (2, "lambda key, state: state"),
}
_GIVEN_THE_STATE = ("network", "after_update", "measure")  # or the same at all times
_NUMBERS = (jax.Array, np.ndarray, np.generic, int, float)


def ensure_parts(config: RunConfig, **parts: Any) -> None:
    """Refuses parts of an agent, by the names of its arguments, that are of the wrong kind."""
    for name, part in parts.items():
        if part is None:
            continue
        if name not in _GIVEN_THE_STATE:
            part = part_of(part, config.at(0))
        if name in _FUNCTIONS:
            count, example = _FUNCTIONS[name]
            ensure_function(name, part, example, count)
            continue
        kind, functions, example = _RECORDS[name]
        ensure(isinstance(part, kind), name, part, f"a {kind.__name__}, such as {example}")
        for field, count in functions.items():
            ensure_function(f"{kind.__name__}.{field}", getattr(part, field), "its own", count)
    if parts["measure"] is not None:
        ensure_whole("Measure.every", parts["measure"].every)


def refuse_unused(learner: Learner | None, **parts: Any) -> None:
    """Refuses parts of a learner that would not be used: beside a learner, or a batch's loss."""
    given = [name for name, part in parts.items() if part is not None]
    beside = "learner"
    if learner is None:
        beside = "batch_loss"
        given = [name for name in given if name in ("loss_fn", "wrap_loss")]
        given = given if parts["batch_loss"] is not None else []
    if given:
        raise ConfigError(
            f"{beside}= stands in place of {', '.join(f'{name}=' for name in given)}, which would "
            "not be used: pass one of them"
        )


def ensure_alike(name: str, value: Any, before: Any) -> None:
    """Refuses arrays of another structure, shape or dtype than those whose place they take."""

    def describe(x: Any) -> str:
        if isinstance(x, numbers.Number):
            x = jnp.asarray(x)
        return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__

    found, wanted = (
        {jax.tree_util.keystr(path): describe(x) for path, x in jax.tree.leaves_with_path(tree)}
        for tree in (value, before)
    )
    for path in {**wanted, **found}:
        pair = [of.get(path, "nothing") for of in (found, wanted)]
        if pair[0] != pair[1]:
            raise ConfigError(
                f"{name} has {pair[0]} as {path.lstrip('.') or 'a whole'}, and must have {pair[1]} "
                "there, as before: keep structure, shapes and dtypes, as with x.astype(y.dtype)"
            )
    structures: list[Any] = [jax.tree.structure(tree) for tree in (value, before)]
    ensure(structures[0] == structures[1], name, value, "of the same classes as before")


def check_metrics(metrics: Any, ndim: int = 0, of: str = "the loss") -> None:
    """Refuses metrics of one transition, or `[B]` of a batch, that results could not show."""
    if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
        raise ConfigError(
            f"metrics of {of} ({metrics!r:.60}) must be numbers by name, such as "
            "{'q_value': q_value}: give a dictionary, {} for none"
        )
    if reserved := reserved_names() & set(metrics):
        raise ConfigError(
            f"{of} has a metric named {', '.join(sorted(reserved))}, which names something "
            "else in results: rename it"
        )
    for name in metrics:
        is_name = name.isprintable() and name.strip() and "/" not in name
        ensure(bool(is_name), f"the name of a metric of {of}", name, "printable, without a slash")
    for name, metric in metrics.items():
        is_number = isinstance(metric, _NUMBERS)
        if not is_number or jnp.ndim(metric) != ndim or jnp.iscomplexobj(metric):
            shown = f"is of type {type(metric).__name__}"
            if is_number:
                shown = f"has shape {jnp.shape(metric)} and type {jnp.result_type(metric)}"
            raise ConfigError(
                f"metric {name} {shown}, and must be one real number: give the mean of several, or "
                "as many metrics"
            )


def check_output(output: Any, shape: tuple[int, ...]) -> None:
    """Refuses what is no output of a loss, of one transition or of a batch."""
    ensure(isinstance(output, LossOutput), "what the loss returns", output, "a LossOutput")
    for name in ("loss", "priority"):
        of, rule = getattr(output, name), "one of each transition" if shape else "one number"
        is_right = isinstance(of, _NUMBERS) and jnp.shape(of) == shape
        ensure(is_right, f"LossOutput.{name}", of, f"of shape {shape}, {rule}")
    check_metrics(output.metrics, ndim=len(shape))


def check_acted(acted: Any, state: ArrayTree) -> None:
    """Refuses what the `act` of a behaviour returns, where it is not of the right kind."""
    is_whole = isinstance(acted, tuple) and len(acted) == 3
    ensure(is_whole, "what Behaviour.act returns", acted, "(state, action, extras)")
    after, action, extras = acted
    ensure_alike("the state after Behaviour.act", after, state)
    is_action = isinstance(action, _NUMBERS) and jnp.shape(action) == ()
    is_action = is_action and jnp.issubdtype(jnp.result_type(action), jnp.integer)
    ensure(is_action, "the action of Behaviour.act", action, "one whole number, as jnp.int32(0)")
    is_dict = isinstance(extras, dict) and all(isinstance(name, str) for name in extras)
    is_dict = is_dict and all(isinstance(x, _NUMBERS) for x in extras.values())
    ensure(is_dict, "extras", extras, "a dictionary of arrays by name, {} for none")
