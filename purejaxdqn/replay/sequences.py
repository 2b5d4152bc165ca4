"""Sequences of steps, from any replay."""

import jax.numpy as jnp

from purejaxdqn.replay.n_step import n_step_replay
from purejaxdqn.types import Array, ConfigError, Replay, Trajectory, Window, ensure_whole


def make_trajectory(window: Window, discount: Array | float) -> Trajectory:
    """Makes the trajectory of ONE window of `T` steps; gamma `[]` is per step.

    Raises:
      ConfigError: if the window does not hold its observations.
    """
    if window.observations is None:
        raise ConfigError(
            "the replay's windows hold no observations but the first and the last: let window_at "
            "give Window.observations, [n, *obs], too"
        )
    last = window.is_inside.sum() - 1
    following = jnp.roll(window.observations, -1, axis=0)
    is_last = jnp.arange(len(window.reward)) == last
    is_last = is_last.reshape(-1, *(1,) * window.next_obs.ndim)
    return Trajectory(
        obs_tm1=window.observations,
        a_tm1=window.action,
        r_t=window.reward,
        discount_t=jnp.where(window.terminated, 0.0, discount),
        obs_t=jnp.where(is_last, window.next_obs, following),
        truncated_t=window.truncated,
        extras=window.extras,
        is_valid=window.is_inside,
    )


def sequence_replay(replay: Replay, length: int) -> Replay:
    """Makes a replay that a loss learns whole trajectories `[B, T, ...]` of, not transitions.

    It draws, remembers and updates as the given one does, with the same indices: a trajectory of
    `T = length` steps starts at each. It ends sooner with the step that ended its episode, or with
    the newest one: see `Trajectory.is_valid`.

    Raises:
      ConfigError: if `length` is not positive, or the replay has no `window_at`.
    """
    ensure_whole("length", length)
    if replay.window_at is None:
        raise ConfigError(
            f"length ({length}) must be at least 1, and the replay must have window_at: give "
            "Replay a fifth function, (state, index, num_steps) -> Window"
        )
    # The windows of several steps, of which another thing is made.
    windows = n_step_replay(replay, length)
    return windows._replace(window_at=None, to_transition=make_trajectory)
