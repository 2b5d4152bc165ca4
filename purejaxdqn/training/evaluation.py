"""Evaluates a policy by whole episodes, on environments and keys of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxdqn.environments import Environment
from purejaxdqn.types import Array, Network, Params

Policy = Callable[[Array, Array], Array]  # (key [], obs [*obs]) -> action []


class EpisodeStats(NamedTuple):
    """One number per episode.

    Attributes:
      episode_return: `[N]` float32, undiscounted.
      length: `[N]` int32, steps.
    """

    episode_return: Array
    length: Array


def greedy_policy(network: Network[Any], params: Params) -> Policy:
    """Makes the policy that takes the action of the highest value, without noise or exploration."""

    def policy(key: Array, obs: Array) -> Array:
        del key
        q_values = network.action_values(network.apply(params, obs))
        return jnp.argmax(q_values).astype(jnp.int32)

    return policy


def evaluate(policy: Policy, env: Environment, key: Array, num_episodes: int) -> EpisodeStats:
    """Plays one episode to its end in each of `num_episodes` new environments.

    A second episode where the first was short would favour short episodes.

    Args:
      policy: `(key, obs [*obs]) -> action []`.
      env: the environment.
      key: `[]` PRNG key.
      num_episodes: `N`.

    Returns:
      `EpisodeStats`.
    """

    class Carry(NamedTuple):
        num_steps: Array
        env_state: object
        obs: Array
        running: Array
        stats: EpisodeStats

    def cond(carry: Carry) -> Array:
        return carry.running.any()

    def body(carry: Carry) -> Carry:
        keys = jax.random.split(jax.random.fold_in(play_key, carry.num_steps), 2 * num_episodes)
        act_keys, step_keys = keys.reshape(2, num_episodes)
        actions = jax.vmap(policy)(act_keys, carry.obs)
        env_state, timestep = jax.vmap(env.step)(step_keys, carry.env_state, actions)
        stats = EpisodeStats(
            carry.stats.episode_return
            + jnp.where(carry.running, timestep.reward, 0.0).astype(jnp.float32),
            carry.stats.length + carry.running,
        )
        running = carry.running & ~(timestep.terminated | timestep.truncated)
        return Carry(carry.num_steps + 1, env_state, timestep.obs, running, stats)

    reset_key, play_key = jax.random.split(key)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))
    start = Carry(
        num_steps=jnp.zeros((), jnp.int32),
        env_state=env_state,
        obs=obs,
        running=jnp.ones(num_episodes, bool),
        stats=EpisodeStats(
            jnp.zeros(num_episodes, jnp.float32), jnp.zeros(num_episodes, jnp.int32)
        ),
    )
    return jax.lax.while_loop(cond, body, start).stats
