"""Behaviours that take better actions more often."""

import jax
import jax.numpy as jnp

from purejaxdqn.types import Array, Behaviour, Extras, Schedule, Situation, ensure_function


def boltzmann_behaviour(temperature: Schedule, write_probability: bool = False) -> Behaviour:
    """Makes the behaviour that draws actions in proportion to `exp(q / temperature)`.

    Sutton and Barto, "Reinforcement Learning: An Introduction" (2018), equation 13.2, with action
    values over a temperature as preferences.

    Args:
      temperature: `num_steps -> []`, above 0, in units of the action values.
      write_probability: as in `epsilon_greedy_behaviour`.
    """
    ensure_function("temperature", temperature, "lambda num_steps: 0.1")

    def act(state: None, key: Array, situation: Situation) -> tuple[None, Array, Extras]:
        q_values = situation.q_values
        preferences = jnp.zeros_like(q_values)
        if not situation.is_prefill:
            preferences = q_values / temperature(situation.num_steps)
        if situation.is_legal is not None:
            preferences = jnp.where(situation.is_legal, preferences, -jnp.inf)
        action = jax.random.categorical(key, preferences).astype(jnp.int32)
        probability = jnp.float32(jax.nn.softmax(preferences)[action])
        return state, action, {"probability": probability} if write_probability else {}

    return Behaviour(act)
