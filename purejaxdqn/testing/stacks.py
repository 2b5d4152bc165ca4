"""Checks observations that are stacks of frames, which replays put together again."""

from typing import Any

import jax
import numpy as np

from purejaxdqn.environments import Environment, step_and_reset
from purejaxdqn.testing import require
from purejaxdqn.types import BATCH, Array


def check_stacks(env: Environment, key: Array, actions: np.ndarray) -> None:
    """Plays `actions` `[T, lanes]`, and checks each observation by the one before it.

    Raises:
      AssertionError: if a replay that keeps the newest frames would give another observation.
    """
    frames, shape = env.frames, env.observation_space.shape
    that = type(frames) is int and frames >= 1 and bool(shape) and shape[-1] % frames == 0
    what = f"Environment.frames is {frames!r}"
    rule = f"a whole number that divides the last axis of observations, {shape}"
    require.that(that or frames == 1, f"{what}: it must be {rule}")
    if frames == 1:
        return

    def play(keys: Array, actions: Array) -> tuple[Array, ...]:
        step_all = jax.vmap(lambda *x: step_and_reset(env, *x), axis_name=BATCH)

        def step(carry: tuple[Any, Array], xs: tuple[Array, Array]) -> Any:
            state, obs = carry
            state, obs_to_act_on, timestep = step_all(xs[0], state, xs[1])
            ends = timestep.terminated | timestep.truncated
            return (state, obs_to_act_on), (obs, timestep.obs, ends)

        return jax.lax.scan(step, jax.vmap(env.reset)(keys[0]), (keys[1:], actions))[1]

    keys = jax.random.split(key, (len(actions) + 1, actions.shape[1]))
    obs, next_obs, ends = map(np.asarray, jax.jit(play)(keys, actions))
    size = shape[-1] // frames
    older, newest = np.split(obs, [-size], axis=-1)
    axes = tuple(range(2, obs.ndim))
    first_again = (older == np.concatenate([newest] * (frames - 1), axis=-1)).all(axes)
    begins = np.concatenate([np.ones_like(ends[:1]), ends[:-1]])
    require.that(
        bool((first_again | (older == 0).all(axes))[begins].all()),
        f"{what}, but at the begin of an episode neither 0 nor the first frame again stands for "
        "each of those before it: begin so, or leave it at 1",
    )
    require.that(
        bool((next_obs[..., :-size] == obs[..., size:]).all()),
        f"{what}, but an observation does not have the newest frames of the one before it first: "
        "put the newest one last, along the last axis, or leave it at 1",
    )
