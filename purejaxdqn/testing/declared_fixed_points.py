"""Finds what a loss converges to: from a table of the package's losses, or from its decorator."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from purejaxdqn import losses
from purejaxdqn.losses.bellman_loss import Recipe
from purejaxdqn.testing import fixed_points
from purejaxdqn.testing.fixed_points import OPTIMAL, RETURN, Bootstrap, FixedPoint, soft
from purejaxdqn.types import LossFn


class Declared(NamedTuple):
    """What a loss converges to, if that is declared, and the network its target bootstraps from."""

    fixed_point: FixedPoint | None
    bootstrap: Bootstrap = "target"


def _munchausen(
    loss_fn: LossFn[Any], temperature: Any, coefficient: Any, log_policy_min: Any
) -> Declared:
    inner = find_declared(loss_fn)
    if inner.fixed_point is None:
        return inner
    raised = fixed_points.munchausen(inner.fixed_point, temperature, coefficient, log_policy_min)
    return inner._replace(fixed_point=raised)


# Each TD error, and each maker of losses, with a function of those of its own settings that count.
KNOWN_LOSSES: dict[Callable[..., Any], Callable[..., Declared]] = {
    losses.q_learning: lambda: Declared(OPTIMAL),
    losses.double_q_learning: lambda: Declared(OPTIMAL),
    losses.expected_sarsa: lambda epsilon: Declared(fixed_points.epsilon_greedy(epsilon)),
    losses.soft_q_learning: lambda temperature: Declared(soft(temperature)),
    losses.return_error: lambda: Declared(RETURN, "none"),
    losses.bellman_loss: lambda td_error: find_declared(td_error),
    losses.categorical_loss: lambda: Declared(OPTIMAL),
    losses.quantile_loss: (
        lambda temperature: Declared(OPTIMAL if temperature is None else soft(temperature))
    ),
    losses.munchausen: _munchausen,
    losses.persistent_advantage_learning_loss: (
        lambda coefficient: Declared(fixed_points.persistent(coefficient))
    ),
}


def find_declared(loss: Callable[..., Any]) -> Declared:
    """Finds what a loss or a TD error converges to.

    Looks at what `converges_to` wrote on it, else in `KNOWN_LOSSES`, also behind a
    `functools.partial` and behind a wrapper that names what it wraps. Without either there is no
    fixed point.
    """
    # A `functools.partial` has defaults of its own.
    defaults = {name: p.default for name, p in inspect.signature(loss).parameters.items()}
    function: Any = loss
    while function is not None:
        if hasattr(function, "fixed_point"):
            said = function.fixed_point
            if not isinstance(said, FixedPoint):
                said = _call_with_settings(said, defaults)
            return Declared(said, function.bootstrap)
        if isinstance(recipe := getattr(function, "recipe", None), Recipe):
            return _call_with_settings(KNOWN_LOSSES[recipe.maker], recipe.arguments)
        for known, make in KNOWN_LOSSES.items():
            if function is known:
                return _call_with_settings(make, defaults)
        function = getattr(function, "func", getattr(function, "__wrapped__", None))
    return Declared(None)


def _call_with_settings(make: Callable[..., Any], settings: dict[str, Any]) -> Any:
    """Calls a function with those of the settings that it has arguments for."""
    return make(**{name: settings[name] for name in inspect.signature(make).parameters})
