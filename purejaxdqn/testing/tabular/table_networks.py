"""Networks that are tables: every value is a number of its own, so that learning is exact."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.networks import expected_value, mean_of_quantiles
from purejaxdqn.types import Array, Categorical, Network, ProposedQuantiles, Quantiles

NUM_QUANTILES = 8
FRACTIONS = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
_WEIGHTS = np.full(NUM_QUANTILES, 1 / NUM_QUANTILES)
SUPPORT = np.linspace(-20.0, 20.0, 81)  # wide: targets outside of it would change the mean
_LEAST_STEP, _MOST_STEP = 1e-10, 1e4


class OutputTable(NamedTuple):
    """How a network of another output is read, so that a loss for it is judged on tables."""

    encode: Callable[[Array], Any]  # action values [A] -> an output that has them, in jnp
    decode: Callable[[Any], Array]  # output -> action values [A], as Network.action_values


class Table(NamedTuple):
    """A network over a table of outputs `[S, A, ...]`; an observation is one-hot, `[S]`."""

    representation: str  # as `purejaxdqn.networks.value_network` has it
    network: Network[Any]  # its params are the table
    from_values: Callable[[np.ndarray], np.ndarray]  # q [..., A] -> table [..., A, *] that has them
    pull: np.ndarray  # [] or [*] how much an action's value grows with each of its outputs
    init: Callable[[Array, Array], Any]  # (table, steps [] or [S] for a start) -> state
    # (state, table, gradient) -> (state, table): one step of a descent that needs no step size
    descend: Callable[[Any, Array, Array], tuple[Any, Array]]
    steps_per_copy: int  # of `descend`, that come near enough to a target that stays


_State = tuple[Array, ...]  # of a descent, each shaped as the table


def _start_by_sign(table: Array, step: Array) -> _State:
    nothing = jnp.zeros_like(table)
    step = step.reshape(*step.shape, *(1,) * (table.ndim - step.ndim))
    return nothing, jnp.clip(step + nothing, _LEAST_STEP, _MOST_STEP), nothing


def _descend_by_sign(state: _State, table: Array, gradient: Array) -> tuple[_State, Array]:
    """Moves each entry by a step of its own, whatever the penalty's scale and shape.

    After Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the
    RPROP algorithm" (1993). The step is halved where the sign of the gradient changes, and doubled
    where it does not for long. The state has the last sign, the step, and for how long it agreed.
    """
    last_sign, step, agreements = state
    sign = jnp.sign(gradient)
    agreements = jnp.where(sign * last_sign > 0, agreements + 1, 0)
    factor = jnp.where(sign * last_sign < 0, 0.5, jnp.where(agreements > 2, 2.0, 1.0))
    step = jnp.clip(step * factor, _LEAST_STEP, _MOST_STEP)
    return (sign, step, agreements), table - sign * step


def _descend_probabilities(state: _State, table: Array, gradient: Array) -> tuple[_State, Array]:
    """Moves probabilities by the gradient of their logits: for a cross-entropy, to the target."""
    moved = jnp.maximum(jax.nn.softmax(table) - 0.7 * gradient, 1e-12)
    return state, jnp.log(moved / moved.sum(-1, keepdims=True))


def _make_bell_logits(q_values: np.ndarray) -> np.ndarray:
    """Makes logits on SUPPORT with given means, almost without mass at the support's ends."""
    distance = (SUPPORT - q_values[..., np.newaxis]) / (SUPPORT[1] - SUPPORT[0])
    return np.maximum(-(distance**2) / 2, -40.0)


def _make_table(representation: str, head: Any, action_values: Any, *others: Any) -> Table:
    def no_init(key: Array, obs: Array) -> Array:
        raise NotImplementedError("a table is made of values, not initialised")

    def apply(params: Array, obs: Array, key: Array | None = None) -> Any:
        return head(jnp.tensordot(obs.astype(params.dtype), params, 1))

    return Table(representation, Network(no_init, apply, action_values), *others)


def _propose_evenly(params: Array, obs: Array, key: Array | None = None) -> ProposedQuantiles:
    """Proposes the fractions of `Quantiles`, with boundaries that have no reason to move."""
    values = jnp.tensordot(obs.astype(params.dtype), params, 1)
    fractions, weights = jnp.asarray([FRACTIONS, _WEIGHTS], values.dtype)
    between = (values[:, 1:] + values[:, :-1]) / 2
    return ProposedQuantiles(values, fractions, weights, jnp.cumsum(weights)[:-1], between)


_BY_SIGN: Any = (_start_by_sign, _descend_by_sign, 16)
TABLES = {
    "values": _make_table("values", lambda x: x, lambda q: q, lambda q: q, np.ones(()), *_BY_SIGN),
    "quantile": _make_table(
        "quantile",
        lambda x: Quantiles(x, *jnp.asarray([FRACTIONS, _WEIGHTS], x.dtype)),
        mean_of_quantiles,
        lambda q: np.repeat(q[..., np.newaxis], NUM_QUANTILES, -1),
        _WEIGHTS,
        *_BY_SIGN,
    ),
    "categorical": _make_table(
        "categorical",
        lambda x: Categorical(x, jnp.asarray(SUPPORT, x.dtype)),
        expected_value,
        _make_bell_logits,
        SUPPORT,
        lambda table, step: (),
        _descend_probabilities,
        5,
    ),
}
TABLES["proposed_quantile"] = TABLES["quantile"]._replace(
    network=TABLES["quantile"].network._replace(apply=_propose_evenly)
)


def make_output_table(outputs: OutputTable) -> Table:
    """Makes the table of action values that an output is encoded from."""
    values = TABLES["values"]
    rest = (values.from_values, values.pull, *_BY_SIGN)
    return _make_table("values", outputs.encode, outputs.decode, *rest)
