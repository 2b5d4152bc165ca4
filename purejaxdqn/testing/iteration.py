"""Iterating a loss on tabular decision processes until it settles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.losses.fixed_points import Bootstrap
from purejaxdqn.testing.cases import FAST_COMPILE
from purejaxdqn.testing.mdps import MDP
from purejaxdqn.testing.tables import Table
from purejaxdqn.types import Array, LossFn, Transition

_NUM_COPIES, _STEPS_PER_COPY = 500, 10


def iterate(
    loss_fn: LossFn, table: Table, mdp: MDP, bootstrap: Bootstrap, q_values: np.ndarray
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
    observations = np.eye(mdp.num_states, dtype=np.float32)

    def learn(start: Array, noise: Array) -> Array:
        transitions = Transition(
            jnp.asarray(observations[mdp.state]),
            jnp.asarray(mdp.action),
            jnp.asarray(mdp.reward),
            jnp.asarray(mdp.discount),
            jnp.asarray(observations[mdp.next_state]),
        )

        def expected_loss(online: Array, target: Array, keys: Array) -> Array:
            over_transitions = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
            losses = over_transitions(table.network, online, target, transitions, keys).loss
            return jnp.sum(jnp.asarray(mdp.probability) * losses)

        def step(carry: Any, key: Array) -> tuple[Any, None]:
            state, online, target = carry
            keys = jax.random.split(key, len(mdp.state))
            state, online = table.descend(state, online, jax.grad(expected_loss)(online, target, keys))
            return (state, online, target), None

        def copy(carry: Any, key: Array) -> tuple[Any, None]:
            state, online, _ = carry
            target = noise if bootstrap == "online" else online
            keys = jax.random.split(key, _STEPS_PER_COPY)
            return jax.lax.scan(step, (state, online, target), keys)[0], None

        keys = jax.random.split(jax.random.key(0), _NUM_COPIES)
        (_, online, _), _ = jax.lax.scan(copy, (table.init(start), start, start), keys)
        return online

    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        noise = np.random.default_rng(3).normal(size=q_values.shape)
        tables = [table.from_values(x).astype(np.float64) for x in (q_values, noise)]
        return np.asarray(jax.jit(learn, compiler_options=FAST_COMPILE)(*tables))


def action_values(table: Table, learned: np.ndarray) -> np.ndarray:
    """`[S, A]` of a table `[S, A, ...]`."""
    with jax.enable_x64(True):
        observations = jnp.eye(len(learned))
        network = table.network
        values = jax.vmap(lambda obs: network.action_values(network.apply(learned, obs)))
        return np.asarray(values(observations))
