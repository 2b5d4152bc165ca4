"""Says what an environment is: two pure functions of ONE environment, and facts about them."""

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
      name: the one that it is registered under.
      reset: `key -> (state, obs [*obs])`.
      step: `(key, state, action []) -> (state, TimeStep)`. It never resets by itself:
        `TimeStep.obs` is the observation that the action led to, also at the end of an episode.
      num_actions: number of discrete actions.
      observation_space: bounds, shape and dtype of an observation.
      threshold: the mean return at which the task counts as solved; None if there is none.
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
        """Describes the actions as gymnasium does."""
        return gymnasium.spaces.Discrete(self.num_actions)


def step_and_reset(
    env: Environment, key: Array, state: EnvState, action: Array
) -> tuple[EnvState, Array, TimeStep]:
    """Steps one environment, and begins a new episode if the step ended one.

    Args:
      env: the environment.
      key: `[]` PRNG key.
      state: the state of the environment.
      action: `[]` int.

    Returns:
      `(state, obs_to_act_on [*obs], timestep)`. State and observation are those of the new episode
      if one began; `timestep.obs` is the last observation of the old one then.
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
