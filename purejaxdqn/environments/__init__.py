"""Environments as pure functions: `make(name)` makes one, `register` adds one of your own.

A name may have settings: "CartPole-v1?sticky_actions=0.25&time_limit=200". A new environment is a
file here, and an entry of `tasks.TASKS`. Such a file is imported once its environment is made:
names, and what a list says of them, are known without JAX.
"""

import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from purejaxdqn.checks import ConfigError, is_same_definition, nearest_names
from purejaxdqn.environments import naming
from purejaxdqn.environments.base import Environment as Environment
from purejaxdqn.environments.base import EnvState as EnvState
from purejaxdqn.environments.base import step_and_reset as step_and_reset
from purejaxdqn.environments.tasks import TASKS
from purejaxdqn.environments.tasks import Facts as Facts

if TYPE_CHECKING:
    from purejaxdqn.environments.classic_control.cartpole import CartPoleState as CartPoleState

_ENVIRONMENTS: dict[str, Callable[..., Environment]] = {}  # those that `register` was given
# Of others: what stands before the colon, and the function `(name, id, given) -> Environment`.
_PREFIXES: dict[str, str] = {
    "gymnasium": "host.bridge:make_from_gymnasium",
    "gymnax": "gymnax:make_from_gymnax",
}


def register(name: str, make: Callable[[], Environment]) -> None:
    """Registers an environment under a name that `make` and every command know.

    `make` makes the environment, whose `name` is this one. Its arguments that have a bool, a
    number or a text as default are settings behind the name: "Mine-v0?size=5". The same function,
    defined anew, may be registered again: a notebook's cell may run twice.

    Raises:
      ConfigError: for a name that is no text or belongs to another function, or a `make` that
        cannot be called.
    """
    is_name = isinstance(name, str) and name.isprintable() and name == name.strip()
    if not is_name or not name or "?" in name or name.partition(":")[0] in _PREFIXES:
        raise ConfigError(f"environment ({name!r}) must be a name, such as 'My-v0'")
    if not callable(make):
        raise ConfigError(
            f"make ({make!r:.60}) of environment {name!r} must be a function without arguments "
            "that makes an Environment: pass the function itself, and not what it makes"
        )
    if name in TASKS or not is_same_definition(_ENVIRONMENTS.get(name, make), make):
        raise ConfigError(f"environment {name!r} is registered already: choose another name")
    _ENVIRONMENTS[name] = make


def names() -> tuple[str, ...]:
    """Returns the names of all environments, sorted."""
    return tuple(sorted({**TASKS, **_ENVIRONMENTS}))


def prefixes() -> tuple[str, ...]:
    """Returns what stands before the colon in names of other libraries' environments, sorted."""
    return tuple(sorted(_PREFIXES))


def options_of(name: str) -> naming.Options:
    """Returns the settings that the environment of a name has of its own, beside wrappers."""
    return TASKS[name].options if name in TASKS else naming.options_of(_ENVIRONMENTS[name])


def make(name: str) -> Environment:
    """Makes the environment of a name such as "CartPole-v1"; those of gymnasium are the same tasks.

    Raises:
      ConfigError: if no environment has the name, with the nearest ones; for a setting in the name
        that is not allowed; or if its function makes anything but an `Environment` of this name.
    """
    base, settings, wrappers = _read(name)
    if base in TASKS:
        task = TASKS[base]
        function = pkgutil.resolve_name(f"{__name__}.{task.place}")
        env = function(base, **{**task.arguments, **settings})
    elif base in _ENVIRONMENTS:
        env = _ENVIRONMENTS[base](**settings)
    else:
        prefix, _, rest = base.partition(":")
        env = pkgutil.resolve_name(f"{__name__}.{_PREFIXES[prefix]}")(base, rest, settings)
    if not isinstance(env, Environment):
        raise ConfigError(
            f"the function of environment {base!r} must make an Environment, and made {env!r:.60}"
        )
    if env.name != base:
        raise ConfigError(
            f"the environment registered as {base!r} is named {env.name!r}: both must be equal, so "
            "change one of them"
        )
    if wrappers:
        from purejaxdqn.environments import wrappers as functions

        for wrapper, value in wrappers:
            env = getattr(functions, wrapper)(env, value)
    return env if env.name == name else env._replace(name=name)


def validate(name: str) -> None:
    """Refuses a name as `make` does; the package's own are not made for that, but for wrappers."""
    base, _, wrappers = _read(name)
    if base not in TASKS or wrappers:
        make(name)


def is_known(name: str) -> bool:
    """Tells whether an environment has the name, whatever its settings are."""
    base = name.partition("?")[0]
    return base in names() or base.partition(":")[0] in _PREFIXES


def describe(name: str) -> Facts:
    """Says what an environment is like; the package's own are not made for that."""
    if name in TASKS:
        return TASKS[name].facts
    return facts_of(make(name))


def facts_of(env: Environment) -> Facts:
    """Reads what a list says of an environment."""
    shape = "x".join(map(str, env.observation_space.shape)) or "none"
    observation = f"{shape} {env.observation_space.dtype}"
    return Facts(env.num_actions, observation, env.max_steps, env.threshold)


def _read(name: Any) -> tuple[str, dict[str, Any], list[tuple[str, Any]]]:
    """Reads a name: of the environment, its own settings, and wrappers with theirs, in order."""
    base, given = naming.split(name) if isinstance(name, str) else (name, [])
    if isinstance(name, str) and base.partition(":")[0] in _PREFIXES and ":" in base:
        own = {key: naming.text() for key, _ in given if key not in naming.WRAPPERS}
    elif isinstance(name, str) and base in names():
        own = {**options_of(base)}
    else:
        id = base.partition(":")[2] if isinstance(base, str) else ""
        known = [*names(), *(f"{prefix}:{id or 'NAME'}" for prefix in _PREFIXES)]
        raise ConfigError(f"environment ({base!r}) must be one of {nearest_names(base, known)}")
    return base, *naming.read_settings(name, given, own)


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
