"""Networks that are tables: every value is a number of its own, so that what a loss does is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.networks import expected_value, mean_of_quantiles
from purejaxdqn.types import Array, Categorical, Network, Quantiles

NUM_QUANTILES = 8
FRACTIONS = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
SUPPORT = np.linspace(-20.0, 20.0, 81)  # wide: what falls outside would have another mean
_FIRST_STEP, _LEAST_STEP, _MOST_STEP = 0.1, 1e-9, 1e4


class Table(NamedTuple):
    """A network over a table of outputs `[S, A, ...]`; an observation is one-hot, `[S]`.

    Attributes:
      representation: as `purejaxdqn.networks.value_network` has it.
      network: the `Network`; its params are the table.
      from_values: `q [..., A] -> table [..., A, *]` with these action values.
      pull: `[]` or `[*]` what more of each output is worth, to the first order.
      init: `table -> state` of `descend`.
      descend: `(state, table, gradient) -> (state, table)`, one step of a descent that needs no
        step size: only where the gradient is 0 does it stay.
    """

    representation: str
    network: Network
    from_values: Callable[[np.ndarray], np.ndarray]
    pull: np.ndarray
    init: Callable[[Array], Any]
    descend: Callable[[Any, Array, Array], tuple[Any, Array]]


class SignState(NamedTuple):
    """Of `_descend_by_sign`: the last gradient's signs and the steps, shaped as the table."""

    sign: Array
    step: Array


def _start_by_sign(table: Array) -> SignState:
    return SignState(jnp.zeros_like(table), jnp.full_like(table, _FIRST_STEP))


def _descend_by_sign(
    state: SignState, table: Array, gradient: Array
) -> tuple[SignState, Array]:
    """Rprop: each entry by a step of its own, whatever the penalty's scale and shape.

    Igel and Huesken, "Improving the Rprop learning algorithm" (2000), iRprop-.
    """
    sign = jnp.sign(gradient)
    agreement = sign * state.sign
    factor = jnp.where(agreement > 0, 1.3, jnp.where(agreement < 0, 0.5, 1.0))
    step = jnp.clip(state.step * factor, _LEAST_STEP, _MOST_STEP)
    sign = jnp.where(agreement < 0, 0.0, sign)
    return SignState(sign, step), table - sign * step


def _descend_probabilities(
    state: tuple[()], table: Array, gradient: Array
) -> tuple[tuple[()], Array]:
    """Moves probabilities by the gradient of their logits: for a cross-entropy, to the target."""
    moved = jnp.maximum(jax.nn.softmax(table) - 0.7 * gradient, 1e-12)
    return state, jnp.log(moved / moved.sum(-1, keepdims=True))


def _bell_logits(q_values: np.ndarray) -> np.ndarray:
    """Logits on SUPPORT with given means, of which the ends of the support hold nothing."""
    width = SUPPORT[1] - SUPPORT[0]
    distance = (SUPPORT - q_values[..., np.newaxis]) / width
    return np.maximum(-(distance**2) / 2, -40.0)


def _make_network(
    head: Callable[[Array], Any], action_values: Callable[[Any], Array]
) -> Network:
    def no_init(key: Array, obs: Array) -> Array:
        raise NotImplementedError("a table is made of values, not initialised")

    def apply(params: Array, obs: Array, key: Array | None = None) -> Any:
        del key  # no noise
        return head(jnp.tensordot(obs.astype(params.dtype), params, 1))

    return Network(no_init, apply, action_values)


def _quantiles(values: Array) -> Quantiles:
    weights = jnp.full_like(values[0], 1 / NUM_QUANTILES)
    return Quantiles(values, jnp.asarray(FRACTIONS, values.dtype), weights)


TABLES = {
    table.representation: table
    for table in (
        Table(
            "values",
            _make_network(lambda row: row, lambda q: q),
            lambda q: q,
            np.ones(()),
            _start_by_sign,
            _descend_by_sign,
        ),
        Table(
            "quantile",
            _make_network(_quantiles, mean_of_quantiles),
            lambda q: np.repeat(q[..., np.newaxis], NUM_QUANTILES, -1),
            np.full(NUM_QUANTILES, 1 / NUM_QUANTILES),
            _start_by_sign,
            _descend_by_sign,
        ),
        Table(
            "categorical",
            _make_network(
                lambda row: Categorical(row, jnp.asarray(SUPPORT, row.dtype)), expected_value
            ),
            _bell_logits,
            SUPPORT,
            lambda table: (),
            _descend_probabilities,
        ),
    )
}
