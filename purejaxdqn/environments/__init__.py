"""Environments as pure functions: `make(name)` makes one, `register` adds one of your own.

A new environment is a file here, and a line at the end of this one. Such a file is imported once
its environment is made: names, and what a list says of them, are known without JAX.
"""

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from purejaxdqn.checks import ConfigError, is_same_definition, nearest_names
from purejaxdqn.environments.base import Environment as Environment
from purejaxdqn.environments.base import EnvState as EnvState
from purejaxdqn.environments.base import step_and_reset as step_and_reset

if TYPE_CHECKING:
    from purejaxdqn.environments.classic_control.cartpole import CartPoleState as CartPoleState

_ENVIRONMENTS: dict[str, Callable[[], Environment]] = {}


class Facts(NamedTuple):
    """What a list of environments says of one."""

    num_actions: int
    observation: str  # shape and dtype
    max_steps: int
    threshold: float | None


# Of the package's own.
_FACTS = {
    "Acrobot-v1": Facts(3, "6 float32", 500, -100.0),
    "CartPole-v0": Facts(2, "4 float32", 200, 195.0),
    "CartPole-v1": Facts(2, "4 float32", 500, 475.0),
    "MountainCar-v0": Facts(3, "2 float32", 200, -110.0),
}
# Where each is made, by its name without the version.
_MAKERS = {
    "Acrobot": "classic_control.acrobot:acrobot",
    "CartPole": "classic_control.cartpole:cartpole",
    "MountainCar": "classic_control.mountain_car:mountain_car",
}


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
    _check_name(name)
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


def validate(name: str) -> None:
    """Refuses a name as `make` does; the package's own environments are not made for that."""
    _check_name(name)
    if name not in _FACTS:
        make(name)


def describe(name: str) -> Facts:
    """Says what an environment is like; the package's own are not made for that."""
    if name in _FACTS:
        return _FACTS[name]
    env = make(name)
    shape = "x".join(map(str, env.observation_space.shape)) or "none"
    observation = f"{shape} {env.observation_space.dtype}"
    return Facts(env.num_actions, observation, env.max_steps, env.threshold)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name not in _ENVIRONMENTS:
        raise ConfigError(f"environment ({name!r}) must be one of {nearest_names(name, names())}")


def ensure(env: Environment) -> Environment:
    """Returns an environment as it is; a `ConfigError` refuses what is none."""
    if not isinstance(env, Environment):
        raise ConfigError(f"env ({env!r:.60}) must be an Environment, such as make('CartPole-v1')")
    return env


def __getattr__(name: str) -> Any:
    if name == "CartPoleState":
        from purejaxdqn.environments.classic_control.cartpole import CartPoleState

        return CartPoleState
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _make(name: str, facts: Facts) -> Environment:
    module, _, function = _MAKERS[name.partition("-")[0]].partition(":")
    maker = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return maker(name, facts.max_steps, facts.threshold)


for _name, _facts in _FACTS.items():
    register(_name, functools.partial(_make, _name, _facts))
