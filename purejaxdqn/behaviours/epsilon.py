"""Behaviours that take the greedy action, but for a random one with probability epsilon."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxdqn.types import (
    Array,
    ArrayTree,
    Behaviour,
    Extras,
    Schedule,
    Situation,
    ensure,
    ensure_function,
    ensure_number,
    ensure_whole,
)


def epsilon_greedy(
    key: Array, q_values: Array, epsilon: Array | float, is_legal: Array | None = None
) -> Array:
    """Takes the greedy action, or with probability `epsilon` one drawn uniformly from all.

    Sutton and Barto, "Reinforcement Learning: An Introduction" (2018), section 2.2.

    The values are `[A]`, the action `[]` int32; ties go to the lowest action. Epsilon `[]` is
    between 0 (never explores) and 1 (always does). Where `is_legal` `[A]` is given, all others are
    never taken.
    """
    num_actions = q_values.shape[-1]
    # One draw of two numbers is cheaper than two draws.
    explore, choice = jax.random.uniform(key, (2,), jnp.float32)
    if is_legal is None:
        random_action = jnp.minimum(jnp.int32(choice * num_actions), num_actions - 1)
    else:
        num_legal = is_legal.sum()
        rank = jnp.minimum(jnp.int32(choice * num_legal), num_legal - 1)
        random_action = jnp.argmax(jnp.cumsum(is_legal) > rank).astype(jnp.int32)
        q_values = jnp.where(is_legal, q_values, -jnp.inf)
    if isinstance(epsilon, float) and epsilon == 1:
        return random_action  # so that a prefill compiles and runs without the network
    return jnp.where(explore < epsilon, random_action, jnp.argmax(q_values).astype(jnp.int32))


def _epsilon_of(epsilon: Schedule) -> Callable[[Situation], Array | float]:
    """Makes `situation -> epsilon`, which is 1 in the prefill; refuses what is no schedule."""
    ensure_function("epsilon", epsilon, "lambda num_steps: 0.1")
    return lambda situation: 1.0 if situation.is_prefill else epsilon(situation.num_steps)


def epsilon_greedy_behaviour(epsilon: Schedule, write_probability: bool = False) -> Behaviour:
    """Makes the behaviour of `epsilon_greedy`.

    Args:
      epsilon: `num_steps -> [0, 1]`, of environment steps.
      write_probability: whether to write down the `probability` `[]` with which the action was
        taken, which corrections of off-policy returns divide by.
    """
    epsilon_in = _epsilon_of(epsilon)

    def act(state: None, key: Array, situation: Situation) -> tuple[None, Array, Extras]:
        q_values, is_legal = situation.q_values, situation.is_legal
        current = epsilon_in(situation)
        action = epsilon_greedy(key, q_values, current, is_legal)
        if not write_probability:
            return state, action, {}
        legal = jnp.ones(len(q_values), bool) if is_legal is None else is_legal
        is_greedy = action == jnp.argmax(jnp.where(legal, q_values, -jnp.inf))
        probability = current / legal.sum() + jnp.where(is_greedy, 1.0 - current, 0.0)
        return state, action, {"probability": jnp.float32(probability)}

    return Behaviour(act)


def epsilon_z_behaviour(
    epsilon: Schedule, exponent: float = 2.0, longest: int = 10_000
) -> Behaviour:
    """Makes the behaviour that holds on to its random actions for a while.

    Dabney et al., "Temporally-extended epsilon-greedy exploration" (2021), algorithm 1: how many
    steps a random action lasts is drawn from the zeta distribution, `n^-exponent` over its sum.

    Where an episode ends, or the action is not legal any more, so does the holding on.

    Args:
      epsilon: `num_steps -> [0, 1]`, the probability that a random action begins.
      exponent: mu, above 1; the larger, the shorter.
      longest: the most steps that an action lasts.
    """
    epsilon_in = _epsilon_of(epsilon)
    ensure_number("exponent", exponent, 1)
    ensure(exponent > 1, "exponent", exponent, "above 1, such as 2.0")
    ensure_whole("longest", longest)
    weights = jnp.arange(1, longest + 1, dtype=jnp.float32) ** -exponent
    up_to = jnp.cumsum(weights) / weights.sum()

    def act(state: ArrayTree, key: Array, situation: Situation) -> tuple[ArrayTree, Array, Extras]:
        left, held = state
        q_values, is_legal = situation.q_values, situation.is_legal
        explore_key, action_key, length_key = jax.random.split(key, 3)
        goes_on = (left > 0) & ~situation.is_first
        if is_legal is not None:
            goes_on &= is_legal[held]
        current = epsilon_in(situation)
        begins = jax.random.uniform(explore_key) < current
        keys = action_key, jax.random.clone(action_key)  # the greedy action needs no draw
        greedy, drawn = (
            epsilon_greedy(key, q_values, x, is_legal)
            for key, x in zip(keys, (0.0, 1.0), strict=True)
        )
        length = 1 + jnp.searchsorted(up_to, jax.random.uniform(length_key)).astype(jnp.int32)
        if situation.is_prefill:
            return (jnp.zeros_like(left), drawn), drawn, {}
        held = jnp.where(goes_on, held, drawn)
        left = jnp.where(goes_on, left, jnp.where(begins, jnp.minimum(length, longest), 0))
        action = jnp.where(left > 0, held, greedy)
        return (jnp.maximum(left - 1, 0), held), action, {}

    zero = jnp.zeros((), jnp.int32)
    return Behaviour(act, lambda key: (zero, zero))


def head_behaviour(
    epsilon: Schedule, num_heads: int, values_of: Callable[[Any], Array] = lambda output: output
) -> Behaviour:
    """Makes the behaviour that follows one head of an ensemble through an episode.

    Osband et al., "Deep exploration via bootstrapped DQN" (2016), algorithm 1: the head `[]` is
    drawn where an episode begins.

    Args:
      epsilon: `num_steps -> [0, 1]`, of random actions on top.
      num_heads: `K`.
      values_of: makes the action values `[K, A]` of the network's output.
    """
    epsilon_in = _epsilon_of(epsilon)
    ensure_whole("num_heads", num_heads)
    ensure_function("values_of", values_of, "lambda output: output")

    def act(head: Array, key: Array, situation: Situation) -> tuple[Array, Array, Extras]:
        head_key, action_key = jax.random.split(key)
        head = jnp.where(situation.is_first, draw_head(head_key), head)
        current = epsilon_in(situation)
        q_values = values_of(situation.output)[head]
        return head, epsilon_greedy(action_key, q_values, current, situation.is_legal), {}

    def draw_head(key: Array) -> Array:
        return jax.random.randint(key, (), 0, num_heads)

    return Behaviour(act, draw_head)
