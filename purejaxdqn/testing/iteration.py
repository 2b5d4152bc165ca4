"""Iterating a loss on tabular decision processes until it settles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing.cases import FAST_COMPILE
from purejaxdqn.testing.fixed_points import Bootstrap
from purejaxdqn.testing.mdps import MDP
from purejaxdqn.testing.tables import Table
from purejaxdqn.types import Array, LossFn, Transition

_NUM_COPIES = 600


def iterate(
    loss_fn: LossFn[Any], table: Table, mdp: MDP, bootstrap: Bootstrap, q_values: np.ndarray
) -> np.ndarray:
    """Learns from every transition at once, each as often as its probability says, in 64 bits.

    Args:
      loss_fn: the loss.
      table: the kind of network.
      mdp: the transitions.
      bootstrap: with "online" there is no target network: it holds noise instead.
      q_values: `[S, A]` to start from.

    Returns:
      `[S, A, ...]` the table that was learned.
    """
    # Each state has two observations, before and after a step, so that the online network too can
    # be held still at time t.
    observations = np.eye(2 * mdp.num_states, dtype=np.float32)
    process = np.searchsorted(mdp.starts, np.arange(mdp.num_states), side="right") - 1

    def learn(start: Array, noise: Array) -> Array:
        transitions = Transition(
            jnp.asarray(observations[mdp.state]),
            jnp.asarray(mdp.action),
            jnp.asarray(mdp.reward),
            jnp.asarray(mdp.discount),
            jnp.asarray(observations[mdp.num_states + mdp.next_state]),
        )

        def expected_loss(online: Array, still: Array, target: Array, keys: Array) -> Array:
            both = jnp.concatenate([online, still])
            over_transitions = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
            losses = over_transitions(table.network, both, target, transitions, keys).loss
            return jnp.sum(jnp.asarray(mdp.probability) * losses)

        def step(carry: Any, key: Array) -> tuple[Any, None]:
            state, online, still, target = carry
            keys = jax.random.split(key, len(mdp.state))
            gradient = jax.grad(expected_loss)(online, still, target, keys)
            return (*table.descend(state, online, gradient), still, target), None

        def copy(carry: Any, key: Array) -> tuple[Any, None]:
            online, moved = carry
            target = noise if bootstrap == "online" else jnp.concatenate([online, online])
            keys = jax.random.split(key, table.steps_per_copy)
            # Targets move by no more than values of the same process have moved.
            state = table.init(online, moved[process])
            (_, learned, *_), _ = jax.lax.scan(step, (state, online, online, target), keys)
            change = jnp.abs(learned - online).reshape(mdp.num_states, -1).max(1)
            return (learned, jax.ops.segment_max(change, process, len(mdp.names))), None

        keys = jax.random.split(jax.random.key(0), _NUM_COPIES)
        return jax.lax.scan(copy, (start, jnp.ones(len(mdp.names))), keys)[0][0]

    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        noise = np.random.default_rng(3).normal(size=(2 * len(q_values), q_values.shape[1]))
        tables = [table.from_values(x).astype(np.float64) for x in (q_values, noise)]
        return np.asarray(jax.jit(learn, compiler_options=FAST_COMPILE)(*tables))


def action_values(table: Table, learned: np.ndarray) -> np.ndarray:
    """`[S, A]` of a table `[S, A, ...]`."""
    with jax.enable_x64(True):
        observations = jnp.eye(len(learned))
        network = table.network
        values = jax.vmap(lambda obs: network.action_values(network.apply(learned, obs)))
        return np.asarray(values(observations))
