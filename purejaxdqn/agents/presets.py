"""Agents as settings: what has a name of its own is still only a choice of arguments."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.agents.pqn.pqn import pqn
from purejaxdqn.training.loop import Train
from purejaxdqn.training.settings import DQNConfig, PQNConfig, RunConfig
from purejaxdqn.types import ConfigError

# What all members of the family change in the package's defaults, so that each differs from the
# plain one in its component: one step, the greedy action of the target network, a lower discount
# and more exploration, without which values that are learned one step at a time run away.
_PLAIN: dict[str, Any] = {
    "td_error": "q_learning",
    "n_step": 1,
    "discount": 0.98,
    "learning_rate": 2e-3,
    "learning_rate_end_fraction": 0.0,
    "target_period": 10,
    "epsilon_end": 0.1,
    "replay_capacity": 30_000,
}
# What learns faster, or holds more of what it learned, does with a shorter memory.
_SHORT_MEMORY: dict[str, Any] = {"replay_capacity": 10_000}
# Their gradients are small, whatever the returns are: Adam's epsilon must not swallow them.
_DISTRIBUTION: dict[str, Any] = {
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-5,
    **_SHORT_MEMORY,
}
_C51: dict[str, Any] = {"representation": "categorical", "value_max": 50.0, **_DISTRIBUTION}
# Quantiles run away where the target network follows at once, and are slow to learn and to hold
# what they learned one step at a time.
_QUANTILES: dict[str, Any] = {
    "td_error": "double_q_learning",
    "n_step": 5,
    "target_period": 50,
    **_DISTRIBUTION,
}
_IQN: dict[str, Any] = {
    "representation": "implicit_quantile",
    "num_quantiles": 8,
    "num_cosines": 16,
    "hidden_sizes": (64, 32),
    "huber_threshold": 10.0,
    **_QUANTILES,
}

_CHANGES: dict[str, dict[str, Any]] = {
    "dqn": {},
    "double": {"td_error": "double_q_learning"},
    "dueling": {"dueling": True},
    "n_step": {"n_step": 5, **_SHORT_MEMORY},
    "prioritised": {"prioritised": True, **_SHORT_MEMORY},
    "c51": _C51,
    "qr_dqn": {"representation": "quantile", **_QUANTILES},
    "iqn": _IQN,
    "fqf": {**_IQN, "representation": "proposed_quantile"},
    "munchausen": {"munchausen": True, **_SHORT_MEMORY},
    "m_iqn": {
        **_IQN,
        "munchausen": True,
        "hidden_sizes": (64, 64),
        "batch_size": 64,
        "huber_threshold": 1.0,
    },
    "noisy": {"noisy": True, "batch_size": 32, **_SHORT_MEMORY},
    "rainbow": {
        **_C51,
        "td_error": "double_q_learning",
        "dueling": True,
        "n_step": 3,
        "prioritised": True,
        "noisy": True,
        "steps_per_update": 8,
        "batch_size": 32,
        "hidden_sizes": (64, 64),
    },
}
AGENTS: dict[str, DQNConfig] = {
    name: dataclasses.replace(DQNConfig(), **{**_PLAIN, **changes})
    for name, changes in _CHANGES.items()
}
"""Settings by name: DQN, its single extensions, and Rainbow (Hessel et al., 2018)."""


def agent(name: str) -> RunConfig:
    """The settings of a named agent, "pqn" among them; `dataclasses.replace` changes single ones.

    Raises:
      ConfigError: for a name that is none, with the nearest ones.
    """
    named: dict[str, RunConfig] = {**AGENTS, "pqn": PQNConfig()}
    if name not in named:
        nearest = difflib.get_close_matches(name, named, n=3)
        raise ConfigError(f"agent ({name!r}) must be one of {', '.join(nearest or named)}")
    return named[name]


def experiment(config: RunConfig) -> Callable[[Any], Train]:
    """The `Experiment` that settings are of: `dqn` or `pqn`."""
    return pqn if isinstance(config, PQNConfig) else dqn


def train_by_kind(config: RunConfig) -> Train:
    """An `Experiment` for settings of either kind, as a sweep over agents has them."""
    return experiment(config)(config)


def configure(**settings: Any) -> RunConfig:
    """The settings of an agent, single ones changed: what a sweep over agents is made with.

    Args:
      **settings: by name; "agent" among them is a named agent's, and the package's defaults of DQN
        where it is left out.

    Raises:
      ConfigError: for a name that is none, or a setting that the agent does not have.
    """
    name = settings.pop("agent", None)
    config = DQNConfig() if name is None else agent(name)
    known = [field.name for field in dataclasses.fields(config)]
    for setting in settings:
        if setting not in known:
            nearest = difflib.get_close_matches(setting, known, n=3)
            hint = f", did you mean {' or '.join(nearest)}?" if nearest else ""
            raise ConfigError(f"{setting!r} is no setting of agent {name or 'dqn'!r}{hint}")
    return dataclasses.replace(config, **settings)


TUTORIAL = DQNConfig(
    env="CartPole-v0",
    num_envs=1,
    steps_per_update=1,
    updates_per_iteration=1,
    prefill_steps=32,  # it plays at random until the memory holds a batch
    replay_capacity=10_000,
    batch_size=32,
    sample_with_replacement=False,
    hidden_sizes=(64, 64),
    td_error="q_learning",
    penalty="masked_squared",
    n_step=1,
    optimizer="rmsprop",
    learning_rate=3e-4,
    learning_rate_end_fraction=1.0,
    max_grad_norm=float("inf"),
    target_period=1,  # no target network
    epsilon_schedule="multiplicative",
    epsilon_decay=0.999,
    epsilon_end=0.0,
)
"""The deep Q-learning agent that tutorials build by hand for CartPole, as they build it.

One environment, one update per step, no target network, RMSprop, the mean squared error over
masked outputs, exploration that decays by a factor, and batches without replacement. One thing is
different: the time limit is bootstrapped through, and not learned as a death.
"""
