"""The named agents of the package: each is a choice of settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from purejaxdqn.agents import DEFAULT, Place, register
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.pqn.settings import PQNConfig

dqn = Place("purejaxdqn.agents.dqn.dqn:dqn")
pqn = Place("purejaxdqn.agents.pqn.pqn:pqn")

# Settings in which plain DQN differs from the package's default. Every other agent of the family
# starts from these, so that it differs from plain DQN in its component. A lower discount and
# more exploration keep values that are learned one step at a time from running away.
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
# Agents that learn faster need a shorter memory.
_FAST = {"replay_capacity": 10_000}
# Their gradients are small, whatever the returns are: Adam's epsilon must not swallow them.
_DISTRIBUTION: dict[str, Any] = {"learning_rate": 1e-3, "adam_epsilon": 1e-5, **_FAST}
_C51 = {"representation": "categorical", "value_max": 50.0, **_DISTRIBUTION}
_HL_GAUSS = {**_C51, "label": "gaussian", "td_error": "double_q_learning", "learning_rate": 2e-3}
# Quantiles run away where the target network follows at once, and are slow to learn and to hold
# what they learned one step at a time.
_QUANTILES = {"td_error": "double_q_learning", "n_step": 5, "target_period": 50, **_DISTRIBUTION}
_IQN = {**_QUANTILES, "representation": "implicit_quantile", "huber_threshold": 10.0}
_IQN |= {"num_quantiles": 8, "num_cosines": 16, "batch_size": 64}
_RAINBOW = {**_C51, "hidden_sizes": (64, 64), "batch_size": 32, "steps_per_update": 8}
_RAINBOW |= {"learning_rate": 2e-3, "td_error": "double_q_learning", "n_step": 3}
_RAINBOW |= {"dueling": True, "prioritised": True, "noisy": True}


def _add(name: str, help: str, shared: Mapping[str, Any] = {}, /, **changes: Any) -> None:
    """Registers an agent of the family: plain DQN with some changes."""
    register(name, dataclasses.replace(DQNConfig(), **{**_PLAIN, **shared, **changes}), dqn, help)


register(DEFAULT, DQNConfig(), dqn, "the default: double DQN with 5-step returns")
_add("dqn", "plain DQN, Mnih et al. (2015)")
_add("double", "double DQN, van Hasselt et al. (2016)", td_error="double_q_learning")
_add("dueling", "dueling network, Wang et al. (2016)", dueling=True)
_add("n_step", "5-step returns", _FAST, n_step=5)
_add("prioritised", "prioritised replay, Schaul et al. (2016)", _FAST, prioritised=True)
_add("minto", "the smaller of both networks' values, Hendawy et al. (2025)", td_error="minto")
_add("maxmin", "the smallest of several networks' values, Lan et al. (2020)", ensemble="min")
_add("c51", "categorical distribution, Bellemare et al. (2017)", _C51)
_add("hl_gauss", "classification, Farebrother et al. (2024)", _HL_GAUSS)
_add("qr_dqn", "fixed quantiles, Dabney et al. (2018)", _QUANTILES, representation="quantile")
_add("iqn", "implicit quantiles, Dabney et al. (2018)", _IQN)
_add("fqf", "proposed quantiles, Yang et al. (2019)", _IQN, representation="proposed_quantile")
_add("munchausen", "Munchausen DQN, Vieillard et al. (2020)", _FAST, munchausen=True)
_add("m_iqn", "Munchausen IQN, Vieillard et al. (2020)", _IQN, munchausen=True)
_add("noisy", "noisy network, Fortunato et al. (2018)", _FAST, noisy=True, batch_size=32)
_add("rainbow", "six extensions at once, Hessel et al. (2018)", _RAINBOW)
register(
    "pqn", PQNConfig(), pqn, "Q(lambda) without replay or target network, Gallici et al. (2025)"
)

# The deep Q-learning agent that tutorials build by hand for CartPole, as they build it: one
# environment, one update per step, no target network, RMSprop, the mean squared error over masked
# outputs, exploration that decays by a factor, and batches without replacement. One thing is
# different: the time limit is bootstrapped through, and not learned as a death.
register(
    "tutorial",
    DQNConfig(
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
    ),
    dqn,
    "what tutorials build by hand for CartPole",
)
