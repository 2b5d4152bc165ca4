"""Environments as pure functions: `make(name)` makes one, `register` adds one of your own.

A new environment is a file here, and a line at the end of this one.
"""

import functools
from collections.abc import Callable

from purejaxdqn.environments.base import Environment as Environment
from purejaxdqn.environments.base import EnvState as EnvState
from purejaxdqn.environments.base import step_and_reset as step_and_reset
from purejaxdqn.environments.cartpole import CartPoleState as CartPoleState
from purejaxdqn.environments.cartpole import cartpole
from purejaxdqn.types import ConfigError, is_same_definition, nearest_names

_ENVIRONMENTS: dict[str, Callable[[], Environment]] = {}


def register(name: str, make: Callable[[], Environment]) -> None:
    """Registers an environment under a name that `make` and every command know.

    `make` makes the environment, whose `name` is this one. The same function, defined anew, may be
    registered again: a notebook's cell may run twice.

    Raises:
      ConfigError: for a name that is no text or belongs to another function, or a `make` that
        cannot be called.
    """
    if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip():
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
    """Makes the environment of a name such as "CartPole-v1"; those of gymnasium are the same tasks.

    Raises:
      ConfigError: if no environment has the name, with the nearest ones; or if its function makes
        anything but an `Environment` of this name.
    """
    if not isinstance(name, str) or name not in _ENVIRONMENTS:
        raise ConfigError(f"environment ({name!r}) must be one of {nearest_names(name, names())}")
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


def ensure(env: Environment) -> Environment:
    """Returns an environment as it is; a `ConfigError` refuses what is none."""
    if not isinstance(env, Environment):
        raise ConfigError(f"env ({env!r:.60}) must be an Environment, such as make('CartPole-v1')")
    return env


register("CartPole-v0", functools.partial(cartpole, "CartPole-v0", max_steps=200, threshold=195.0))
register("CartPole-v1", functools.partial(cartpole, "CartPole-v1", max_steps=500, threshold=475.0))
