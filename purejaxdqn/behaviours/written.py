"""Writes more down beside each step than a behaviour does by itself."""

from collections.abc import Callable

import jax

from purejaxdqn.types import (
    Array,
    ArrayTree,
    Behaviour,
    ConfigError,
    Extras,
    Situation,
    ensure,
    ensure_function,
)


def write_extras(
    behaviour: Behaviour, extras: Callable[[Array, Situation, Array], Extras]
) -> Behaviour:
    """Makes the behaviour that also writes `extras(key, situation, action)` down.

    Such as the mask of a bootstrap, which stays the transition's own:
    `lambda key, *_: {"mask": jax.random.bernoulli(key, 0.5, (num_heads,))}`.

    Raises:
      ConfigError: from `act`, for a name that the behaviour writes already.
    """
    is_behaviour = isinstance(behaviour, Behaviour)
    ensure(is_behaviour, "behaviour", behaviour, "a Behaviour, such as of epsilon_greedy_behaviour")
    ensure_function("extras", extras, "lambda key, situation, action: {'index': action}", 3)

    def act(state: ArrayTree, key: Array, situation: Situation) -> tuple[ArrayTree, Array, Extras]:
        act_key, extras_key = jax.random.split(key)
        state, action, written = behaviour.act(state, act_key, situation)
        more = extras(extras_key, situation, action)
        if twice := written.keys() & more.keys():
            raise ConfigError(f"extras {sorted(twice)} are written already: choose other names")
        return state, action, written | more

    return behaviour._replace(act=act)
