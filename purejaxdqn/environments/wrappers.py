"""Wrappers: functions that make an environment of another one, by their names in `naming.WRAPPERS`.

The first one in a name is the innermost: "CartPole-v1?mask_observation=1,3&stack_frames=4" stacks
masked observations. Most are an `around` of what happens as an episode begins, and at each step.

Rewards that are scaled or clipped are what an agent learns from, and what `training_return` sums
up. Evaluations play for the task's own rewards, as the papers of DQN report them, so that the
threshold stays true.
"""

import functools
from collections.abc import Iterable
from typing import Any

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.base import Environment, step_and_reset
from purejaxdqn.environments.wrapping import (
    Wrapped,
    around,
    name_of,
    of_observations,
    of_rewards,
    read,
    refuse_legal_actions,
)
from purejaxdqn.types import (
    BATCH,
    Array,
    ConfigError,
    TimeStep,
    ensure,
    ensure_function,
    is_mapped_over_batch,
)

CLIP, EPSILON = 10.0, 1e-8  # of normalised observations, as gymnasium and Stable-Baselines3 have it
_FIRST_COUNT = 1e-4  # what mean 0 and variance 1 count for before the first observation, as there


@flax.struct.dataclass
class Statistics:
    """Running mean and variance of observations."""

    count: Array  # [] int32, observations so far
    mean: Array  # [*obs]
    variance: Array  # [*obs]


def time_limit(env: Environment, max_steps: int) -> Environment:
    """Cuts episodes after `max_steps` steps; the smaller one counts beside a limit of its own.

    Raises:
      ConfigError: for a value that `naming.WRAPPERS` does not allow; or an environment on the host,
        or with a `step_and_reset` that takes no `cut`, whose episodes cannot be cut from outside.
    """
    limit = read(env, time_limit, max_steps)
    if env.is_host:
        raise ConfigError(
            f"time_limit ({limit}) cannot cut {env.name!r}, which resets on the host: set "
            "the limit where it is made, such as gymnasium:LunarLander-v3?max_episode_steps=500"
        )
    if env.step_and_reset is not None:
        example = "(key, state, action, cut=None), where cut [] says that the episode is cut"
        ensure_function(f"step_and_reset of {env.name}", env.step_and_reset, example, 4)
    if env.max_steps is not None and env.max_steps <= limit:
        return env._replace(name=name_of(env, time_limit, limit))
    return around(
        env,
        time_limit,
        limit,
        begin=lambda obs: (jnp.zeros((), jnp.int32), obs),
        go_on=lambda count, action, timestep: (count + 1, timestep),
        is_cut=lambda count: count + 1 >= limit,
        max_steps=limit,
        threshold=None,
        frames=env.frames,
    )


def sticky_actions(env: Environment, probability: float) -> Environment:
    """Takes the last action again, instead of the one that was chosen, with a probability.

    Machado et al., "Revisiting the Arcade Learning Environment" (2018), section 5. The last action
    is the one that was taken, be it chosen or not; an episode begins without one. What is no longer
    legal is not taken again.

    Raises:
      ConfigError: for a value that `naming.WRAPPERS` does not allow.
    """
    share, legal_actions = read(env, sticky_actions, probability), env.legal_actions
    if share == 0:
        return env._replace(name=name_of(env, sticky_actions, share))

    def act(key: Array, memory: tuple[Array, Array], action: Array) -> Array:
        last, may_repeat = memory
        return jnp.where(may_repeat & jax.random.bernoulli(key, share), last, action)

    def go_on(_: Any, action: Array, timestep: TimeStep) -> tuple[Any, TimeStep]:
        is_legal = jnp.bool(True) if legal_actions is None else legal_actions(timestep.obs)[action]
        return (action, is_legal), timestep

    return around(
        env,
        sticky_actions,
        share,
        begin=lambda obs: ((jnp.zeros((), jnp.int32), jnp.zeros((), bool)), obs),
        go_on=go_on,
        act=act,
        threshold=None,
        frames=env.frames,
    )


def scale_reward(env: Environment, factor: float) -> Environment:
    """Multiplies rewards by a factor, in training alone.

    Raises:
      ConfigError: for a value that `naming.WRAPPERS` does not allow.
    """
    number, tabular = read(env, scale_reward, factor), env.tabular

    def scaled() -> Any:
        mdp = tabular()  # type: ignore[misc]
        return mdp._replace(reward=number * mdp.reward)

    table = None if tabular is None else scaled
    return of_rewards(env, scale_reward, number, lambda reward: number * reward, table)


def clip_reward(env: Environment, bound: float) -> Environment:
    """Keeps rewards between minus a bound and the bound, in training alone.

    Raises:
      ConfigError: for a value that `naming.WRAPPERS` does not allow.
    """
    number = read(env, clip_reward, bound)
    clip = functools.partial(jnp.clip, min=-number, max=number)
    return of_rewards(env, clip_reward, number, clip)


def mask_observation(env: Environment, positions: Iterable[int]) -> Environment:
    """Shows 0 at some positions along the last axis of observations, which hides what is there.

    Raises:
      ConfigError: for a value that `naming.WRAPPERS` does not allow, a position that is not there,
        or an environment that reads legal actions in what it shows.
    """
    hidden = list(read(env, mask_observation, positions))
    space = env.observation_space
    size = space.shape[-1] if space.shape else 0
    wanted = f"positions from 0 to {size - 1}, as observations of {env.name} have shape "
    ensure(max(hidden) < size, "mask_observation", tuple(hidden), f"{wanted}{space.shape}")
    refuse_legal_actions(env, mask_observation)
    is_shown = np.broadcast_to(~np.isin(np.arange(size), hidden), space.shape)

    def show(obs: Array) -> Array:
        return jnp.where(is_shown, obs, jnp.zeros_like(obs))

    low, high = (np.where(is_shown, x, 0).astype(space.dtype) for x in (space.low, space.high))
    masked = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)
    return of_observations(env, mask_observation, tuple(hidden), show, masked)


def stack_frames(env: Environment, num: int) -> Environment:
    """Shows the last `num` observations as one, the newest last, joined along their last axis.

    An image without channels gets an axis for them. The first observation of an episode stands for
    those before it.

    Raises:
      ConfigError: for a value that `naming.WRAPPERS` does not allow, or observations of one number.
    """
    frames, space = read(env, stack_frames, num), env.observation_space
    wanted = f"left out, as observations of {env.name} have no axis along which they are joined"
    ensure(bool(space.shape), "stack_frames", frames, wanted)
    is_plain = len(space.shape) == 2  # an image without channels
    size = 1 if is_plain else space.shape[-1]

    def join(frame: Any) -> Any:
        frame = frame[..., np.newaxis] if is_plain else frame
        return (np if isinstance(frame, np.ndarray) else jnp).concatenate([frame] * frames, axis=-1)

    def begin(obs: Array) -> tuple[Array, Array]:
        return (join(obs),) * 2

    def go_on(stack: Array, _: Array, timestep: TimeStep) -> tuple[Array, TimeStep]:
        newest = timestep.obs[..., np.newaxis] if is_plain else timestep.obs
        stack = jnp.concatenate([stack[..., size:], newest], axis=-1)
        return stack, timestep._replace(obs=stack)

    def legal_actions(stack: Array) -> Array:
        newest = stack[..., -1] if is_plain else stack[..., -size:]
        return env.legal_actions(newest)  # type: ignore[misc]

    bounds = join(space.low), join(space.high)
    return around(
        env,
        stack_frames,
        frames,
        begin=begin,
        go_on=go_on,
        observation_space=gymnasium.spaces.Box(*bounds, dtype=space.dtype.type),
        legal_actions=None if env.legal_actions is None else legal_actions,
        frames=frames,
    )


def normalize_observations(env: Environment, on: bool = True) -> Environment:
    """Shows observations minus their running mean, over the root of their running variance.

    Each observation that is acted on counts once, over all episodes and environments of a run;
    those of a run's very first moment count for the first environment alone. What replays keep is
    what was shown. The statistics are part of the state, and so of checkpoints. Evaluations play
    with those of that moment, which stay as they are. Nothing is drawn: results files do not have
    the statistics that a film would need.

    Raises:
      ConfigError: for a value that `naming.WRAPPERS` does not allow, or an environment that reads
        legal actions in what it shows.
    """
    if not read(env, normalize_observations, on):
        return env._replace(name=name_of(env, normalize_observations, False))
    refuse_legal_actions(env, normalize_observations)
    space = gymnasium.spaces.Box(-CLIP, CLIP, env.observation_space.shape, np.float32)

    def reset(key: Array) -> tuple[Wrapped, Array]:
        inner, obs = env.reset(key)
        statistics = _count(_know_nothing(obs), obs[np.newaxis])
        return Wrapped(inner, statistics), _normalize(statistics, obs)

    def step(key: Array, state: Any, action: Array) -> tuple[Wrapped, TimeStep]:
        inner, timestep = env.step(key, state.inner, action)
        statistics = _count(*_gather(state.memory, timestep.obs))
        obs = _normalize(statistics, timestep.obs)
        return Wrapped(inner, statistics), timestep._replace(obs=obs)

    def own_step_and_reset(
        key: Array, state: Any, action: Array, cut: Array | None = None
    ) -> tuple[Wrapped, Array, TimeStep]:
        inner, obs, timestep = step_and_reset(env, key, state.inner, action, cut)
        statistics = _count(*_gather(state.memory, obs))
        last = _normalize(statistics, timestep.obs)
        ended = timestep.terminated | timestep.truncated
        obs = jnp.where(ended, _normalize(statistics, obs), last)
        return Wrapped(inner, statistics), obs, timestep._replace(obs=last)

    def for_evaluation(state: Any) -> Environment:
        statistics = jax.tree.map(lambda x: x[0], state.memory)  # those of all are the same
        see = functools.partial(_normalize, statistics)
        evaluated = env.in_evaluation(state.inner)
        return of_observations(evaluated, normalize_observations, True, see, space)

    return env._replace(
        name=name_of(env, normalize_observations, True),
        reset=reset,
        step=step,
        step_and_reset=own_step_and_reset,
        for_evaluation=for_evaluation,
        observation_space=space,
        render=None,
        tabular=None,
        frames=1,
    )


def _to_float(obs: Array) -> Array:
    return obs if jnp.issubdtype(obs.dtype, jnp.floating) else obs.astype(jnp.float32)


def _know_nothing(obs: Array) -> Statistics:
    zero = jnp.zeros_like(_to_float(obs))
    return Statistics(jnp.zeros((), jnp.int32), zero, zero + 1)


def _normalize(statistics: Statistics, obs: Array) -> Array:
    """Shows an observation `[*obs]` as the statistics have it."""
    deviation = jnp.sqrt(statistics.variance + EPSILON)
    return jnp.clip((_to_float(obs) - statistics.mean) / deviation, -CLIP, CLIP)


def _gather(statistics: Statistics, obs: Array) -> tuple[Statistics, Array]:
    """Returns the statistics of a run, and the observations `[E, *obs]` of its environments."""
    if not is_mapped_over_batch():  # an environment alone
        return statistics, obs[np.newaxis]
    shared = jax.tree.map(lambda x: jax.lax.all_gather(x, BATCH)[0], statistics)
    return shared, jax.lax.all_gather(obs, BATCH)


def _count(statistics: Statistics, obs: Array) -> Statistics:
    """Adds observations `[E, *obs]`.

    Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    In place of sums it keeps means, which a long run does not round away.
    """
    obs = _to_float(obs)
    count, mean = statistics.count + len(obs), obs.mean(axis=0)
    total = _FIRST_COUNT + count.astype(obs.dtype)
    share, moved = len(obs) / total, mean - statistics.mean
    spread = obs.var(axis=0) - statistics.variance + moved**2 * (1 - share)
    return Statistics(count, statistics.mean + share * moved, statistics.variance + share * spread)
