"""Transitions of several steps, from any replay."""

import jax
import jax.numpy as jnp

from purejaxdqn.types import (
    Array,
    ArrayTree,
    ConfigError,
    Replay,
    Sample,
    Transition,
    Window,
    ensure,
    ensure_whole,
)


def n_step_transition(window: Window, discount: Array | float) -> Transition:
    """Makes the transition of ONE window of m steps, from the first observation to the last one.

    With the discount gamma `[]` per step, `r_t` is the sum of gamma^k times the k-th reward (from 0
    on), and `discount_t` is gamma^m, or 0 if the last step terminated. Watkins, "Learning from
    delayed rewards" (1989), chapter 7; Sutton and Barto, "Reinforcement learning" (2018), section
    7.1.
    """
    powers = discount ** jnp.arange(len(window.reward))
    terminates = jnp.any(window.terminated & window.is_inside)
    return Transition(
        obs_tm1=window.obs,
        a_tm1=window.action[0],
        r_t=jnp.sum(powers * window.reward, where=window.is_inside),
        discount_t=jnp.where(terminates, 0.0, discount ** window.is_inside.sum()),
        obs_t=window.next_obs,
        truncated_t=jnp.any(window.truncated & window.is_inside),
        extras=jax.tree.map(lambda x: x[0], window.extras),
    )


def first_steps(window: Window, num_steps: Array | int) -> Window:
    """Cuts ONE window down to its first steps, `num_steps` `[]` rounded and at least 1.

    Raises:
      ConfigError: if the window does not hold its observations.
    """
    if window.observations is None:
        raise ConfigError(
            "n_step is a schedule, and the replay's windows hold no observations but the first and "
            "the last: let window_at give Window.observations, [n, *obs], too, or set n_step"
        )
    is_inside = window.is_inside & (jnp.arange(len(window.reward)) < jnp.round(num_steps))
    num_inside = is_inside.sum()
    is_cut = num_inside < window.is_inside.sum()
    following = window.observations[jnp.minimum(num_inside, len(window.reward) - 1)]
    next_obs = jnp.where(is_cut, following, window.next_obs)
    return window._replace(is_inside=is_inside, next_obs=next_obs)


def n_step_replay(replay: Replay, n_step: int) -> Replay:
    """Makes a replay whose windows span `n_step` steps, or fewer: see `Window`.

    The new replay draws, remembers and updates as the given one does, over its state, with the same
    indices and probabilities; an `n_step` of 1 changes nothing. The actions in between are those
    that were played, without any correction. Where one such replay is made of another, the outer
    one says how many steps.

    Raises:
      ConfigError: if `n_step` is not positive, or the replay has no `window_at`.
    """
    ensure_whole("n_step", n_step)
    ensure(isinstance(replay, Replay), "replay", replay, "a Replay, such as of uniform_replay")
    window_at = replay.window_at
    if window_at is None:
        raise ConfigError(
            f"n_step ({n_step}) needs a replay with window_at, which this one lacks: give "
            "Replay a fifth function, (state, index, num_steps) -> Window, or set n_step to 1"
        )

    def sample(state: ArrayTree, key: Array) -> Sample:
        # When compiled, `drawn.window` is unused and XLA removes it.
        drawn = replay.sample(state, key)
        windows = jax.vmap(lambda index: window_at(state, index, n_step))(drawn.indices)
        return drawn._replace(window=windows)

    return replay._replace(sample=sample)
