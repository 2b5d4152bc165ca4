"""Defaults for each task: the settings in which an agent differs there from its own defaults.

An agent's own defaults are tuned for CartPole-v1. Each entry was found on seeds 0 to 9, by the
command that stands above it; docs/benchmarks.md says which of them were tried on other seeds.
"""

from collections.abc import Mapping
from typing import Any

from purejaxdqn.agents.dqn.settings import DQNConfig

DEFAULT = DQNConfig.agent  # the agent where none is named
ALL = ""  # stands for every agent that has these settings

# purejaxdqn sweep --env FrozenLake-v1 --num-seeds 5 --learning-rate 5e-4 2e-3 --adam-epsilon 1e-5
#   --learning-rate-end-fraction 0 --n-step 1 --target-period 100 --replay-capacity 100000
#   --hidden-sizes 64 --epsilon-end 0.2 1 --eval-interval 20000 --eval-episodes 1000
_FROZEN_LAKE: Mapping[str, Mapping[str, Any]] = {
    ALL: {"eval_interval": 10_000, "eval_episodes": 1_000, "hidden_sizes": (64,)},
    DEFAULT: {
        "n_step": 1,
        "target_period": 100,
        "learning_rate": 5e-4,
        "learning_rate_end_fraction": 0.0,
        "adam_epsilon": 1e-5,
        "replay_capacity": 100_000,
        "epsilon_end": 1.0,
    },
}

# purejaxdqn sweep --env MinAtar/Breakout-v1 --num-seeds 3 --total-steps 300000
#   --learning-rate 3e-4 1e-3 --adam-epsilon 1e-5 --n-step 1 3 --batch-size 32 --target-period 250
#   --replay-capacity 100000 --hidden-sizes 128 --epsilon-end 0.02 --eval-interval 50000
#   --eval-episodes 30 --eval-max-steps 2000
# The other games take what was found for Breakout.
_MINATAR: Mapping[str, Mapping[str, Any]] = {
    ALL: {
        "total_steps": 1_000_000,
        "eval_interval": 100_000,
        "eval_episodes": 30,
        "eval_max_steps": 2_500,
    },
    DEFAULT: {
        "n_step": 3,
        "batch_size": 32,
        "target_period": 250,
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-5,
        "replay_capacity": 100_000,
        "epsilon_end": 0.02,
    },
}
_GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")

# By task, without what stands behind `?` in its name, and by agent; its own go before those of ALL.
TUNED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    **{f"MinAtar/{game}-{version}": _MINATAR for game in _GAMES for version in ("v0", "v1")},
    # purejaxdqn sweep --env Acrobot-v1 --num-seeds 4 --target-period 50 --learning-rate 5e-4 2e-3
    #   --adam-epsilon 1e-5 --learning-rate-end-fraction 0 --n-step 1 5 --updates-per-iteration 2
    #   --replay-capacity 50000 --eval-interval 20000
    "Acrobot-v1": {
        DEFAULT: {
            "n_step": 1,
            "learning_rate": 2e-3,
            "learning_rate_end_fraction": 0.0,
            "adam_epsilon": 1e-5,
            "updates_per_iteration": 2,
            "replay_capacity": 50_000,
        },
    },
    # purejaxdqn sweep --env CliffWalking-v1 --num-seeds 5 --total-steps 50000 --n-step 1 5
    #   --learning-rate 1e-3 --adam-epsilon 1e-5 --learning-rate-end-fraction 0 --target-period 50
    #   --replay-capacity 50000 --hidden-sizes 64 --epsilon-end 0.1 0.5 --eval-interval 10000
    #   --eval-episodes 1 --eval-max-steps 200
    "CliffWalking-v1": {
        ALL: {"total_steps": 50_000, "eval_max_steps": 200, "hidden_sizes": (64,)},
        DEFAULT: {
            "n_step": 1,
            "learning_rate": 1e-3,
            "learning_rate_end_fraction": 0.0,
            "adam_epsilon": 1e-5,
            "replay_capacity": 50_000,
            "epsilon_end": 0.1,
        },
    },
    "FrozenLake-v1": _FROZEN_LAKE,
    # purejaxdqn sweep --env FrozenLake8x8-v1 --num-seeds 10 --total-steps 300000
    #   --discount 0.99 0.999 --hidden-sizes 64 64x64 --eval-interval 100000
    "FrozenLake8x8-v1": {
        ALL: {**_FROZEN_LAKE[ALL], "total_steps": 300_000, "hidden_sizes": (64, 64)},
        DEFAULT: _FROZEN_LAKE[DEFAULT],
    },
    # purejaxdqn sweep --env MountainCar-v0 --num-seeds 10 --total-steps 120000 --discount 0.98
    #   --target-period 100 300 --learning-rate 2e-3 --learning-rate-end-fraction 0.2
    #   --adam-epsilon 1e-6 --n-step 1 --updates-per-iteration 2 --replay-capacity 30000
    #   --epsilon-end 0.05 --eval-interval 20000 --eval-episodes 50
    "MountainCar-v0": {
        ALL: {"total_steps": 120_000, "discount": 0.98},
        DEFAULT: {
            "n_step": 1,
            "target_period": 100,
            "learning_rate": 2e-3,
            "learning_rate_end_fraction": 0.2,
            "adam_epsilon": 1e-6,
            "updates_per_iteration": 2,
            "replay_capacity": 30_000,
            "epsilon_end": 0.05,
        },
    },
    # purejaxdqn sweep --env gymnasium:LunarLander-v3 --num-seeds 3 --total-steps 300000
    #   --learning-rate 5e-4 1e-3 --adam-epsilon 1e-5 --learning-rate-end-fraction 0 --n-step 1 3
    #   --target-period 250 --replay-capacity 100000 --eval-interval 50000 --eval-episodes 30
    "gymnasium:LunarLander-v3": {
        ALL: {"total_steps": 300_000, "eval_interval": 25_000, "eval_episodes": 30},
        DEFAULT: {
            "n_step": 1,
            "target_period": 250,
            "learning_rate": 1e-3,
            "learning_rate_end_fraction": 0.0,
            "adam_epsilon": 1e-5,
            "replay_capacity": 100_000,
            "epsilon_end": 0.05,
        },
    },
}

# Of Atari games, not tuned: Mnih et al. (2015), Methods, have this hidden layer.
_ATARI: Mapping[str, Mapping[str, Any]] = {ALL: {"hidden_sizes": (512,), "eval_episodes": 10}}


def settings_for(env: str, agent: str) -> dict[str, Any]:
    """Returns the settings by name that an agent has on a task; without an entry there are none."""
    base = env.partition("?")[0]
    of_task = TUNED.get(base, _ATARI if base.startswith("gymnasium:ALE/") else {})
    return {**of_task.get(ALL, {}), **of_task.get(agent, {})}
