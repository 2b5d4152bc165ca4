"""Environments as pure functions: `make(name)` builds one, `step_and_reset` steps it."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable

from purejaxdqn.environments.base import Environment, EnvState, step_and_reset
from purejaxdqn.environments.cartpole import CartPoleState, cartpole
from purejaxdqn.types import ConfigError

__all__ = [
    "CartPoleState",
    "EnvState",
    "Environment",
    "make",
    "registered",
    "step_and_reset",
]

_REGISTRY: dict[str, Callable[[], Environment]] = {
    "CartPole-v0": functools.partial(cartpole, "CartPole-v0", max_steps=200, threshold=195.0),
    "CartPole-v1": functools.partial(cartpole, "CartPole-v1", max_steps=500, threshold=475.0),
}


def registered() -> tuple[str, ...]:
    """The names that `make` knows."""
    return tuple(sorted(_REGISTRY))


def make(name: str) -> Environment:
    """Builds an environment by its gymnasium name.

    Args:
      name: one of `registered()`, such as "CartPole-v1".

    Returns:
      The `Environment`.

    Raises:
      ConfigError: if there is no such environment; the message names the nearest ones.
    """
    if name not in _REGISTRY:
        nearest = difflib.get_close_matches(str(name), _REGISTRY, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
        raise ConfigError(
            f"unknown environment {name!r}: {hint}The environments are {', '.join(registered())}."
        )
    return _REGISTRY[name]()
