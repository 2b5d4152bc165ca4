"""Measures what goes on inside a learner and returns do not show, with a key of its own."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from purejaxdqn.environments import Environment
from purejaxdqn.environments.tabular import TabularMDP, optimal_values
from purejaxdqn.training.declaration import DIAGNOSTICS as DIAGNOSTICS
from purejaxdqn.training.declaration import NUM_STATES as NUM_STATES
from purejaxdqn.training.declaration import TABULAR_DIAGNOSTICS as TABULAR_DIAGNOSTICS
from purejaxdqn.types import (
    Array,
    ConfigError,
    Learner,
    LearnerState,
    Network,
    Params,
    Schedule,
    TrainState,
)

NUM_EPISODES = 10  # with whose returns values are compared


class Probe(NamedTuple):
    """What a training run shows of itself."""

    network: Network[Any]
    # [] gamma, per step of one environment; of a schedule, over gradient steps
    discount: Array | float | Schedule
    # (TrainState, key) -> (obs [N, *obs], gradient_norm []): states drawn as for the next updates,
    # NUM_STATES at most, and the mean norm of their batches' gradients
    observe: Callable[[TrainState, Array], tuple[Array, Array]]


def diagnose(
    probe: Probe,
    env: Environment,
    state: TrainState,
    params_before: Params,
    key: Array,
    max_steps: int | None = None,
) -> dict[str, Array]:
    """Measures, for one run, all of `DIAGNOSTICS`; a sweep does so at each evaluation.

    Churn is counted from the weights `params_before`. The `key` `[]` serves nothing else. An
    episode of an environment without a time limit is cut after `max_steps`.

    Returns:
      `[]` float32 by name, but `features [N, F]` in place of the effective rank, which the host
      computes of them. So it does `TABULAR_DIAGNOSTICS`, for an environment with `tabular`: in
      their place stand `table [S, A]`, the values of all states, and `discount`. Dormant units and
      the effective rank are NaN for a network that shows no hidden units or features (see
      `make_network`), and so is the gradient's norm for a learner without `gradient`. All of them
      are NaN where weights are NaN.
    """
    network, params = probe.network, state.learner.params
    discount = probe.discount
    discount = discount(state.learner.num_updates) if callable(discount) else discount
    observe_key, play_key = jax.random.split(key)
    obs, norm = probe.observe(state, observe_key)

    def action_values(params: Params, obs: Array) -> Array:
        return jax.vmap(lambda x: network.action_values(network.apply(params, x)))(obs)

    hidden: tuple[Array, ...] = ()
    features = jnp.zeros((len(obs), 0))
    if network.activations is not None:
        hidden, features = jax.vmap(network.activations, in_axes=(None, 0))(params, obs)
    table = {}
    if env.tabular is not None:
        states = jnp.asarray(env.tabular().observations)
        table = {"table": action_values(params, states), "discount": jnp.float32(discount)}
    return {
        "value_bias": value_bias(network, params, env, discount, play_key, NUM_EPISODES, max_steps),
        "dormant_units": dormant_units(hidden),
        "features": features,
        "gradient_norm": norm,
        "policy_churn": policy_churn(action_values(params_before, obs), action_values(params, obs)),
        **table,
    }


def value_bias(
    network: Network[Any],
    params: Params,
    env: Environment,
    discount: Array | float,
    key: Array,
    num_episodes: int,
    max_steps: int | None = None,
) -> Array:
    """Measures how much too high values are: the highest one minus the return, over all states.

    Van Hasselt et al., "Deep reinforcement learning with double Q-learning" (2016), figure 3,
    compare values so with the discounted returns of greedy episodes; gamma is per step.

    The return of an episode that a time limit, or `max_steps`, cut short is bootstrapped with the
    network's own value of the last state. A state m steps before the limit gets the weight
    1 - gamma^m, the share of its return that was observed. So a bias that is the same in all states
    is measured exactly.

    Returns:
      `[]` above 0 where values are too high. NaN if nothing was tested: no episode terminated, and
      gamma is 1. With losses whose values are no expected return (soft, Munchausen) it is the gap
      between the two.
    """

    def action_values(obs: Array) -> Array:
        return network.action_values(network.apply(params, obs))

    def play(key: Array) -> tuple[Array, Array]:
        """Plays an episode, and sums over its states: value minus return, and the share tested."""

        def step(episode: tuple[Any, ...]) -> tuple[Any, ...]:
            num_steps, env_state, obs, _, _, trace, excess = episode
            q_values = action_values(obs)
            step_key = jax.random.fold_in(play_key, num_steps)
            action = jnp.argmax(q_values).astype(jnp.int32)
            env_state, timestep = env.step(step_key, env_state, action)
            obs, reward, terminated, truncated = timestep
            # What the reward adds to the returns of all states so far, and values minus returns.
            trace = 1 + discount * trace
            excess = excess + jnp.max(q_values) - trace * env.learned_reward(reward)
            running = ~(terminated | truncated)
            return num_steps + 1, env_state, obs, running, terminated, trace, excess

        reset_key, play_key = jax.random.split(key)
        env_state, obs = env.reset(reset_key)
        zero, true = jnp.zeros(()), jnp.ones((), bool)
        start = (jnp.zeros((), jnp.int32), env_state, obs, true, ~true, zero, zero)

        def goes_on(episode: tuple[Any, ...]) -> Array:
            return episode[3] if max_steps is None else episode[3] & (episode[0] < max_steps)

        end = jax.lax.while_loop(goes_on, step, start)
        num_steps, _, obs, _, terminated, trace, excess = end
        # The sum over the states of gamma^m, by which the last state's value enters each return.
        untested = jnp.where(terminated, 0.0, discount * trace)
        return excess - untested * jnp.max(action_values(obs)), num_steps - untested

    excess, tested = jax.tree.map(jnp.sum, jax.vmap(play)(jax.random.split(key, num_episodes)))
    return jnp.where(tested > 0, excess / tested, jnp.nan)


def dormant_units(hidden: tuple[Array, ...], threshold: float = 0.025) -> Array:
    """Measures the share of hidden units that are all but silent.

    Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning" (2023), definitions
    3.1 and 3.2: a unit is dormant if its mean absolute activation is at most the threshold tau
    times that of its layer. A silent layer is dormant as a whole.

    `hidden` is an array `[N, ..., units]` for each hidden layer, of N observations; a channel of a
    convolution is one unit. The share `[]` is over the units of all layers; NaN if there are none,
    or if an activation is not finite.
    """
    dormant, num_units, total = jnp.zeros(()), 0, jnp.zeros(())
    for layer in hidden:
        activity = jnp.mean(jnp.abs(layer.reshape(-1, layer.shape[-1])), axis=0)
        mean = jnp.mean(activity)
        dormant += jnp.sum(activity <= threshold * mean)  # no quotient: 0 / 0 is dormant
        num_units += layer.shape[-1]
        total += mean
    return jnp.where(jnp.isfinite(total), dormant / num_units if num_units else jnp.nan, jnp.nan)


def effective_rank(features: np.ndarray | Array, delta: float = 0.01) -> np.ndarray:
    """Counts the directions that the features of many states span, in NumPy on the host.

    Kumar et al., "Implicit under-parameterization inhibits data-efficient deep reinforcement
    learning" (2021), definition 1 (srank): the smallest k for which the k largest singular values
    make up at least 1 - delta of the sum of all.

    Of features `[..., N, F]` of N states it is `[...]` float32, whole numbers from 0 (all features
    are 0) to the smaller of N and F; NaN without features, or if one is not finite.
    """
    # In NumPy, because XLA's decomposition stalled where several CPU devices called it at once.
    features = np.asarray(features, np.float32)
    if not features.size:
        return np.full(features.shape[:-2], np.nan, np.float32)
    finite = np.isfinite(features).all(axis=(-2, -1))
    values = np.linalg.svd(np.where(finite[..., None, None], features, 0), compute_uv=False)
    total = values.sum(axis=-1)
    # A little less, because single precision may round a share of exactly 1 - delta down.
    enough = (1 - delta - 1e-6) * total
    rank = (values.cumsum(axis=-1) < enough[..., None]).sum(axis=-1) + (total > 0)
    return np.where(finite, rank, np.nan).astype(np.float32)


def gradient_norm(learner: Learner, state: LearnerState, *batch: Any) -> Array:
    """Measures the global norm `[]` of one batch's gradient before any clipping.

    A `batch` is what `Learner.update` takes besides the state. NaN if there is no `gradient`.
    """
    if learner.gradient is None:
        return jnp.full((), jnp.nan)
    return optax.global_norm(learner.gradient(state, *batch))


def policy_churn(q_before: Array, q_after: Array) -> Array:
    """Measures the share of states whose greedy action has changed.

    Schaul et al., "The phenomenon of policy churn" (2022), section 2, count it from one gradient
    step to the next, a sweep from one evaluation to the next. Both arguments are action values
    `[N, A]` of N states. The share `[]` is NaN if a value is not finite.
    """
    changed = jnp.argmax(q_before, axis=-1) != jnp.argmax(q_after, axis=-1)
    finite = jnp.all(jnp.isfinite(q_before) & jnp.isfinite(q_after))
    return jnp.where(finite, jnp.mean(changed), jnp.nan)


def known_values(mdp: TabularMDP) -> Callable[[float], np.ndarray]:
    """Makes a function of the discount that computes `optimal_values` `[S, A]` once for each.

    They are NaN where there are none, which is possible without discounting alone.

    Raises:
      ConfigError: for a table that is none.
    """
    optimal_values(mdp, 0.0)  # of any table

    @functools.cache
    def values(discount: float) -> np.ndarray:
        with contextlib.suppress(ConfigError):
            return optimal_values(mdp, discount)
        return np.full_like(mdp.reward, np.nan)

    return values


def compare_with_optimal(q_values: np.ndarray, optimal: np.ndarray) -> dict[str, np.ndarray]:
    """Measures how far a network is from the optimal values of a small task, in NumPy on the host.

    Both arguments are `[..., S, A]`; actions that may not be taken have an optimal value of -inf.
    Of states and actions each counts alike, however often it is met.

    Returns:
      `[...]` float32 by name:
        - `value_error`: the mean absolute difference of the two;
        - `optimal_actions`: the share of states whose greedy action is one of the optimal ones;
        - `true_action_gap`: the best optimal value minus the next lower one, mean over states, 0
          for a state without one. Bellemare et al., "Increasing the action gap" (2016), section
          3.1, ask what the gap of learned values is; this one belongs to the task.
      NaN where there are no optimal values; the first two also where a value is not finite.
    """
    q_values = np.asarray(q_values, np.float64)
    is_known = ~np.isnan(optimal).any(axis=(-2, -1))
    is_finite = np.isfinite(q_values).all(axis=(-2, -1)) & is_known
    optimal = np.where(is_known[..., np.newaxis, np.newaxis], optimal, 0.0)
    best = optimal.max(axis=-1, keepdims=True)
    # Equal values may differ by rounding.
    is_lower = optimal < best - 1e-10 * np.abs(best).max(axis=-2, keepdims=True)
    greedy = q_values.argmax(axis=-1)[..., np.newaxis]
    is_optimal = ~np.take_along_axis(is_lower, greedy, axis=-1)
    is_legal = optimal > -np.inf
    error = np.abs(q_values - np.where(is_legal, optimal, 0.0)).mean(axis=(-2, -1), where=is_legal)
    lower = optimal.max(axis=-1, keepdims=True, where=is_lower, initial=-np.inf)
    gap = np.where(lower > -np.inf, best - lower, 0.0).mean(axis=(-2, -1))
    return {
        "value_error": np.where(is_finite, error, np.nan).astype(np.float32),
        "optimal_actions": np.where(is_finite, is_optimal.mean(axis=(-2, -1)), np.nan).astype(
            np.float32
        ),
        "true_action_gap": np.where(is_known, gap, np.nan).astype(np.float32),
    }
