"""Tells a TD error from a whole loss, and checks that it is target less prediction."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from purejaxdqn.losses.bellman_loss import (
    ALIASES,
    SELECTOR,
    TD_ERROR_ARGUMENTS,
    TDError,
    bellman_loss,
    call_by_name,
)
from purejaxdqn.testing.report import expect
from purejaxdqn.testing.requirements import NUM_LANES
from purejaxdqn.types import ConfigError, LossFn

LOSS_ARGUMENTS = ("network", "params", "target_params", "transition", "key")
_NUM_ACTIONS = 3


def is_td_error(loss: Any) -> bool:
    """Tells whether a function is a TD error, not a whole loss, by the names of its arguments."""
    return not {*TD_ERROR_ARGUMENTS, *ALIASES}.isdisjoint(inspect.signature(loss).parameters)


def make_loss(loss: Any) -> LossFn[Any]:
    """Makes a loss out of what may be a TD error.

    Raises:
      AssertionError: if it is neither.
    """
    if not is_td_error(loss):
        _check_loss_arguments(inspect.signature(loss).parameters)
        return loss
    try:
        return bellman_loss(loss)
    except ConfigError as error:
        raise AssertionError(str(error)) from error


def _check_loss_arguments(parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuses a loss that the learner could not call with five arguments by their places."""
    if all(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values()):
        return
    names = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    takes = f"takes ({', '.join(names)})"
    rule = (
        f"a TD error takes {', '.join(TD_ERROR_ARGUMENTS)} by these names (without {SELECTOR}, if "
        f"it has no use for it), a loss ({', '.join(LOSS_ARGUMENTS)}) by their places"
    )
    if len(names) != len(LOSS_ARGUMENTS):
        is_maker = len(names) < 4
        hint = "; if it makes a loss, call it and pass what it gives" if is_maker else ""
        raise AssertionError(f"{takes}: {rule}{hint}")
    swapped = [
        f"{mine} where {theirs} comes"
        for mine, theirs in zip(names, LOSS_ARGUMENTS, strict=True)
        if mine != theirs and mine in LOSS_ARGUMENTS
    ]
    if swapped:
        raise AssertionError(f"{takes}: {'; '.join(swapped)} (swapped arguments): {rule}")


def check_error_sign(td_error: TDError) -> str:
    """Checks that a TD error is positive where the target is above the prediction, else negative.

    Its size must change by as much as the prediction does. Returns what was measured.
    """
    q_tm1, q_t = np.random.default_rng(3).normal(size=(2, NUM_LANES, _NUM_ACTIONS))
    action = np.arange(NUM_LANES, dtype=np.int32) % _NUM_ACTIONS
    discount = np.full(NUM_LANES, 0.9, np.float32)
    mapped = jax.jit(jax.vmap(functools.partial(call_by_name, td_error)))

    def evaluate(reward: float, more: float = 0.0) -> np.ndarray:
        r_t = np.full(NUM_LANES, reward, np.float32)
        values = (np.float32(q_tm1 + more), action, r_t, discount, *[np.float32(q_t)] * 2)
        return np.asarray(mapped(dict(zip(TD_ERROR_ARGUMENTS, values, strict=True))))

    above, below = evaluate(1e3), evaluate(-1e3)
    share = float(((above > 0) & (below < 0)).mean())
    if (above < 0).all() and (below > 0).all():
        why = (
            "it is the prediction less the target: the wrong sign. Under a penalty that is the "
            "same on both sides nothing changes, under any other everything does"
        )
    elif (above * below > 0).all():
        why = (
            "it has the same sign on both sides: the square or the size of the error is taken in "
            "it, but that is for the penalty to do (bellman_loss)"
        )
    else:
        why = "it must be above 0 where r_t is large, and below 0 where it is small"
    expect(share == 1, f"{share:.0%}", why)
    factors = evaluate(0.0) - evaluate(0.0, 1.0)
    factor = float(factors.mean())
    is_scaled = np.ptp(factors) < 1e-3 and abs(factor - 1) > 1e-3
    whose = " (a mean over the actions?)" if abs(factor * _NUM_ACTIONS - 1) < 1e-3 else ""
    return expect(
        not is_scaled,
        f"{factor:.3g} times",
        f"1 more of q_tm1 lowers it by {factor:.3g}: it is {factor:.3g} times the target less the "
        f"prediction{whose}. It must be target - prediction, unscaled",
    )
