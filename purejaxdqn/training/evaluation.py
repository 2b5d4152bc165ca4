"""Evaluates a policy by whole episodes, on environments and keys of their own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxdqn.environments import Environment
from purejaxdqn.types import Array, Network, Params

Policy = Callable[[Array, Array], Array]  # (key [], obs [*obs]) -> action []


class EpisodeStats(NamedTuple):
    """One number per episode."""

    episode_return: Array  # [N] float32, undiscounted
    length: Array  # [N] int32, steps


def greedy_policy(network: Network[Any], params: Params) -> Policy:
    """Makes the policy that takes the action of the highest value, without noise or exploration."""

    def policy(_: Array, obs: Array) -> Array:
        q_values = network.action_values(network.apply(params, obs))
        return jnp.argmax(q_values).astype(jnp.int32)

    return policy


def cap_of(config: Any, env: Environment) -> int | None:
    """Finds the steps at which settings stop a greedy episode; None with a time limit."""
    return config.eval_max_steps if env.max_steps is None else None


def evaluate(
    policy: Policy, env: Environment, key: Array, num_episodes: int, max_steps: int | None = None
) -> EpisodeStats:
    """Plays one episode to its end in each of `N = num_episodes` new environments.

    A second episode where the first was short would favour short episodes. An episode that has not
    ended after `max_steps` steps, for an environment without a time limit, counts as it is then.
    """

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        num_steps, env_state, obs, running, (episode_return, length) = carry
        keys = jax.random.split(jax.random.fold_in(play_key, num_steps), 2 * num_episodes)
        act_keys, step_keys = keys.reshape(2, num_episodes)
        actions = jax.vmap(policy)(act_keys, obs)
        env_state, timestep = jax.vmap(env.step)(step_keys, env_state, actions)
        reward = jnp.where(running, timestep.reward, 0.0).astype(jnp.float32)
        stats = EpisodeStats(episode_return + reward, length + running)
        running &= ~(timestep.terminated | timestep.truncated)
        return num_steps + 1, env_state, timestep.obs, running, stats

    reset_key, play_key = jax.random.split(key)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))
    stats = EpisodeStats(jnp.zeros(num_episodes, jnp.float32), jnp.zeros(num_episodes, jnp.int32))
    start = (jnp.zeros((), jnp.int32), env_state, obs, jnp.ones(num_episodes, bool), stats)

    def goes_on(carry: tuple[Any, ...]) -> Array:
        any_running = carry[3].any()
        return any_running if max_steps is None else any_running & (carry[0] < max_steps)

    return jax.lax.while_loop(goes_on, body, start)[-1]
