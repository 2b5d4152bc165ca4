"""Holds the environments by name, so that users can add their own."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from purejaxdqn.environments.base import Environment
from purejaxdqn.types import ConfigError, is_same_definition

MakeEnvironment = Callable[[], Environment]

_ENVIRONMENTS: dict[str, MakeEnvironment] = {}


def register(name: str, make: MakeEnvironment) -> None:
    """Registers an environment under a name that `make` and every command know.

    `purejaxdqn.testing.check_environment` tells whether the environment keeps its contract.

    Args:
      name: such as "My-v0".
      make: makes the environment, whose `name` is this one. The same function, defined anew, may be
        registered again: a notebook's cell may run twice.

    Raises:
      ConfigError: for a name that is no text or belongs to another function, or a `make` that
        cannot be called.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"environment ({name!r}) must be a name, such as 'My-v0'")
    if not callable(make):
        raise ConfigError(
            f"make ({make!r:.60}) of environment {name!r} must be a function without arguments "
            "that makes an Environment: pass the function itself, and not what it makes"
        )
    if name in _ENVIRONMENTS and not is_same_definition(_ENVIRONMENTS[name], make):
        raise ConfigError(f"environment {name!r} is registered already: choose another name")
    _ENVIRONMENTS[name] = make


def names() -> tuple[str, ...]:
    """Returns the names of all environments, sorted."""
    return tuple(sorted(_ENVIRONMENTS))


def make(name: str) -> Environment:
    """Makes the environment of a name.

    Args:
      name: one of `names()`, such as "CartPole-v1"; those of gymnasium are the same tasks.

    Returns:
      The `Environment`.

    Raises:
      ConfigError: if no environment has the name, with the nearest ones; or if its function makes
        anything but an `Environment` of this name.
    """
    if name not in _ENVIRONMENTS:
        nearest = difflib.get_close_matches(str(name), _ENVIRONMENTS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
        raise ConfigError(
            f"unknown environment {name!r}: {hint}The environments are {', '.join(names())}."
        )
    env = _ENVIRONMENTS[name]()
    if not isinstance(env, Environment):
        raise ConfigError(
            f"the function of environment {name!r} must make an Environment, and made {env!r:.60}"
        )
    if env.name != name:
        raise ConfigError(
            f"the environment registered as {name!r} is named {env.name!r}: both must be equal, so "
            "change one of them"
        )
    return env
