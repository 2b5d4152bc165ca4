"""The environment contract: two pure functions of ONE environment, and what to know about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp

from purejaxdqn.types import Array, TimeStep

EnvState = Any  # a pytree of arrays


class Environment(NamedTuple):
    """An environment as pure functions; `purejaxdqn.testing.check_environment` checks a new one.

    Attributes:
      name: how `make` knows it.
      reset: `key -> (state, obs [*obs])`.
      step: `(key, state, action []) -> (state, TimeStep)`. It never resets by itself:
        `TimeStep.obs` is the observation that the action led to, also at the end of an episode.
      num_actions: number of discrete actions.
      observation_space: bounds, shape and dtype of an observation.
      threshold: the mean return at which the task counts as solved; None where none is agreed on.
      max_steps: the time limit in steps: `truncated` is True from the `max_steps`-th step of an
        episode on, and at no earlier one.
    """

    name: str
    reset: Callable[[Array], tuple[EnvState, Array]]
    step: Callable[[Array, EnvState, Array], tuple[EnvState, TimeStep]]
    num_actions: int
    observation_space: gymnasium.spaces.Box
    threshold: float | None
    max_steps: int

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        """The actions as gymnasium describes them."""
        return gymnasium.spaces.Discrete(self.num_actions)


def step_and_reset(
    env: Environment, key: Array, state: EnvState, action: Array
) -> tuple[EnvState, Array, TimeStep]:
    """One step of one environment, and a new episode where that step ended one.

    Args:
      env: the environment.
      key: `[]` PRNG key.
      state: the environment's state.
      action: `[]` int.

    Returns:
      `(state, obs_to_act_on [*obs], timestep)`: state and observation are those of the new episode
      where one began, while `timestep.obs` is always the last observation of the old one.
    """
    step_key, reset_key = jax.random.split(key)
    next_state, timestep = env.step(step_key, state, action)
    reset_state, reset_obs = env.reset(reset_key)
    ended = timestep.terminated | timestep.truncated
    state, obs = jax.tree.map(
        lambda new, old: jnp.where(ended, new, old),
        (reset_state, reset_obs),
        (next_state, timestep.obs),
    )
    return state, obs, timestep
