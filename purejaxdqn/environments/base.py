"""Says what an environment is: two pure functions of ONE environment, and facts about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import gymnasium

    from purejaxdqn.types import Array, TimeStep

EnvState = Any  # a pytree of arrays


class Environment(NamedTuple):
    """An environment as pure functions; `purejaxdqn.testing.check_environment` checks a new one.

    `step` never resets by itself: `TimeStep.obs` is the observation that the action led to, also at
    the end of an episode.

    An episode may be cut at three kinds of times. With a time limit, `truncated` is True from the
    `max_steps`-th step of an episode on, and at no earlier one. Without one, where `max_steps` is
    None, it is never True. With `truncates_early` it may be True at any step before the limit too,
    if there is one, and the replay takes twice the memory for observations.
    """

    name: str  # that it is made by, with all settings: "CartPole-v1?sticky_actions=0.1"
    reset: Callable[[Array], tuple[EnvState, Array]]  # key -> (state, obs [*obs])
    # (key, state, action []) -> (state, TimeStep)
    step: Callable[[Array, EnvState, Array], tuple[EnvState, TimeStep]]
    num_actions: int  # discrete ones
    # bounds, shape and dtype of an observation, which replays keep: bool, uint8 or float32
    observation_space: gymnasium.spaces.Box
    threshold: float | None  # the mean return at which the task counts as solved, if there is one
    max_steps: int | None = None  # the time limit; None where an episode may go on for ever
    # obs [*obs] -> [A] bool, which actions may be taken there, at least one of them; None where all
    # may be, always
    legal_actions: Callable[[Array], Array] | None = None
    truncates_early: bool = False
    render: Callable[[EnvState], Array] | None = None  # state -> [H, W, 3] uint8, for films
    tabular: Callable[[], Any] | None = None  # -> TabularMDP, the exact process of a small task
    # (key, state, action) -> (state, obs_to_act_on, TimeStep), as `step_and_reset` below, which
    # stands for None; for what resets by itself, or has a state that outlives episodes. Where it
    # takes `cut` too, a wrapper around it may have a time limit
    step_and_reset: Callable[..., tuple[EnvState, Array, TimeStep]] | None = None
    # states [E, ...] of training -> the environment that evaluations play; None for the same
    for_evaluation: Callable[[EnvState], Environment] | None = None
    is_host: bool = False  # whether it steps on the host, outside of the compiled program
    # Of what evaluations play: its reward -> that which the agent learns from; None for the same
    reward_in_training: Callable[[Array], Array] | None = None
    # How many frames, the newest last, an observation stacks along its last axis; replays keep the
    # newest. Before the first of an episode, 0 or the first again stands for all that are missing
    frames: int = 1

    def in_evaluation(self, env_state: EnvState) -> Environment:
        """Returns what is evaluated, where `env_state [E, ...]` is that of training."""
        return self if self.for_evaluation is None else self.for_evaluation(env_state)

    def learned_reward(self, reward: Array) -> Array:
        """Returns what an agent learns from in training, where the reward here is this one."""
        return reward if self.reward_in_training is None else self.reward_in_training(reward)

    @property
    def truncation_interval(self) -> int | None:
        """The least number of steps between two truncations; None if there are none."""
        return 1 if self.truncates_early else self.max_steps

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        """Describes the actions as gymnasium does."""
        import gymnasium  # only where an environment is looked at

        return gymnasium.spaces.Discrete(self.num_actions)


def step_and_reset(
    env: Environment, key: Array, state: EnvState, action: Array, cut: Array | None = None
) -> tuple[EnvState, Array, TimeStep]:
    """Steps one environment by an action `[]`, and begins a new episode if the step ended one.

    With `cut`, `[]` bool, the episode is truncated here in any case where it is True.

    Returns:
      `(state, obs_to_act_on [*obs], timestep)`. State and observation are those of the new episode
      if one began; `timestep.obs` is the last observation of the old one then.
    """
    import jax  # not before something is traced: names of environments are checked without it
    import jax.numpy as jnp

    if env.step_and_reset is not None:
        return env.step_and_reset(key, state, action, *(() if cut is None else (cut,)))
    step_key, reset_key = jax.random.split(key)
    next_state, timestep = env.step(step_key, state, action)
    if cut is not None:
        timestep = timestep._replace(truncated=timestep.truncated | cut)
    reset_state, reset_obs = env.reset(reset_key)
    ended = timestep.terminated | timestep.truncated
    begin, go_on = (reset_state, reset_obs), (next_state, timestep.obs)
    state, obs = jax.tree.map(lambda new, old: jnp.where(ended, new, old), begin, go_on)
    return state, obs, timestep
