"""Agents by name: each is settings, and the experiment that trains with them.

A new agent is a few lines in `presets.py`, or a folder beside `dqn/` for another algorithm; this
file stays as it is. Nothing in the rooms below may know an agent.
"""

from __future__ import annotations

import dataclasses
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

from purejaxdqn.agents import tasks
from purejaxdqn.agents.torso import TorsoConfig, settings_for_images
from purejaxdqn.checks import ConfigError, ensure, ensure_function, nearest_names, suggest_names
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.settings import RunConfig

if TYPE_CHECKING:
    from purejaxdqn.training.loop import Experiment, Train


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an experiment of the package lies, as "module:function"."""

    text: str


@dataclasses.dataclass(frozen=True)
class Agent:
    """A named agent: what `register` was given, and the module that has registered it."""

    config: Any  # a `RunConfig` of its own class, whose `agent` is the name
    source: Experiment | Place
    help: str
    module: str

    @property
    def experiment(self) -> Experiment:
        """The experiment itself; the package's own are imported here, and JAX with them."""
        source: Any = self.source
        return pkgutil.resolve_name(source.text) if isinstance(source, Place) else source


DEFAULT = tasks.DEFAULT
_AGENTS: dict[str, Agent] = {}


def register(name: str, config: RunConfig, experiment: Experiment | Place, help: str = "") -> Agent:
    """Registers settings and their experiment under a name that every command knows.

    The returned `Agent` has the settings with this name.

    Args:
      name: such as "my_agent"; letters, digits and underscores.
      config: the agent's settings, which are the defaults of its flags.
      experiment: `config -> Train`, called inside the traced function; of the package's own
        agents its `Place`, so that it is imported once something trains.
      help: what the agent is, in a line.

    Raises:
      ConfigError: for a name that is taken or is none, for settings that cannot be kept, or for an
        experiment that is no function.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"agent ({name!r}) must be a name of letters, digits and underscores")
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"the settings of agent {name!r} ({config!r:.60}) must be of a class derived from "
            "RunConfig, such as DQNConfig()"
        )
    if not isinstance(experiment, Place):
        ensure_function(f"the experiment of agent {name!r}", experiment, "dqn")
    ensure(isinstance(help, str), "help", help, "a text")
    module = str(sys._getframe(1).f_globals.get("__name__"))
    agent = Agent(dataclasses.replace(config, agent=name), experiment, help, module)
    agent.config.validate()
    if name in _AGENTS and _AGENTS[name].module != module:  # a notebook's cell may run again
        raise ConfigError(f"agent {name!r} is registered already: choose another name")
    _AGENTS[name] = agent
    return agent


def names() -> tuple[str, ...]:
    """Returns the names of all agents, in the order in which they were registered."""
    return tuple(_AGENTS)


def get(name: str) -> Agent:
    """Returns the agent of a name.

    Raises:
      ConfigError: for a name that is not registered, with the nearest ones.
    """
    if not isinstance(name, str) or name not in _AGENTS:
        raise ConfigError(f"agent ({name!r}) must be one of {nearest_names(name, _AGENTS)}")
    return _AGENTS[name]


def experiment_of(config: RunConfig) -> Experiment:
    """Returns the experiment of the agent that settings belong to.

    Raises:
      ConfigError: for settings of no registered agent, or of another class than its own.
    """
    ensure(isinstance(config, RunConfig), "config", config, "settings, such as DQNConfig()")
    known = _AGENTS.get(config.agent)
    if known is None or type(config) is not type(known.config):
        kind = type(config).__name__
        raise ConfigError(
            f"settings of {kind} with agent {config.agent!r} belong to no registered agent: call "
            f"agents.register(name, {kind}(...), experiment) first, or pass the experiment itself"
        )
    return known.experiment


def train(config: RunConfig) -> Train:
    """Makes the training run of the agent that settings belong to, with its `experiment_of`."""
    return experiment_of(config)(config)


def defaults(name: str, env: str | None = None) -> RunConfig:
    """Returns an agent's settings before any was set: those for a task, where there are some.

    Where a task's observations are images, the network is by default one for images of their size.

    Raises:
      ConfigError: for an agent that is not registered.
    """
    config: RunConfig = get(name).config
    if env is None or not isinstance(env, str):
        return config
    known = settings_of(type(config))
    found = settings_for_images(env) if isinstance(config, TorsoConfig) else {}
    found |= {key: value for key, value in tasks.settings_for(env, name).items() if key in known}
    return dataclasses.replace(config, **found, env=env)


def configure(**settings: Any) -> RunConfig:
    """Makes an agent's settings with some changed.

    Args:
      **settings: by name; `agent` among them names the agent, the package's default without it.
        With `env` among them, the others have the defaults for that task, see `agents/tasks.py`.

    Raises:
      ConfigError: for a name that is not registered, or a setting that the agent does not have.
    """
    name = settings.pop("agent", DEFAULT)
    config = defaults(name, settings.get("env"))
    known = settings_of(type(config))
    for setting in settings:
        if setting not in known:
            hint = suggest_names(setting, known)
            raise ConfigError(f"{setting!r} is no setting of agent {name!r}: {hint}")
    return dataclasses.replace(config, **settings)


import purejaxdqn.agents.presets  # noqa: E402, F401 - registers the package's own
