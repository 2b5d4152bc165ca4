"""Deep Q-learning research in pure JAX: many seeds at once, one readable file per algorithm.

Every public name is imported when it is first used, so that `import purejaxdqn` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purejaxdqn import agents as agents
    from purejaxdqn import environments as environments
    from purejaxdqn import losses as losses
    from purejaxdqn import networks as networks
    from purejaxdqn import replay as replay
    from purejaxdqn import testing as testing
    from purejaxdqn.agents.dqn.dqn import dqn as dqn
    from purejaxdqn.agents.dqn.settings import DQNConfig as DQNConfig
    from purejaxdqn.agents.pqn.pqn import pqn as pqn
    from purejaxdqn.agents.pqn.settings import PQNConfig as PQNConfig
    from purejaxdqn.storage.results import load as load
    from purejaxdqn.sweep.rerun import load_params as load_params
    from purejaxdqn.sweep.rerun import rerun as rerun
    from purejaxdqn.sweep.run import run_sweep as run_sweep
    from purejaxdqn.training import schedules as schedules
    from purejaxdqn.training.declaration import setting as setting
    from purejaxdqn.training.settings import RunConfig as RunConfig
    from purejaxdqn.types import ConfigError as ConfigError

_HOMES = {  # of each public name
    "ConfigError": "types",
    "DQNConfig": "agents.dqn.settings",
    "PQNConfig": "agents.pqn.settings",
    "RunConfig": "training.settings",
    "dqn": "agents.dqn.dqn",
    "load": "storage.results",
    "load_params": "sweep.rerun",
    "pqn": "agents.pqn.pqn",
    "rerun": "sweep.rerun",
    "run_sweep": "sweep.run",
    "setting": "training.declaration",
}
_MODULES = {name: name for name in ("agents", "environments", "losses", "networks", "replay")}
_MODULES |= {"schedules": "training.schedules", "testing": "testing"}

__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"purejaxdqn.{_MODULES[name]}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"purejaxdqn.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
