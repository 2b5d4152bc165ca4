"""Temporally-extended exploration: a random action is held on to for a while.

Dabney, Ostrovski and Barreto, "Temporally-extended epsilon-greedy exploration" (2021), algorithm 1:
with probability epsilon an action is drawn, and taken `n` times, where `n` is drawn from the zeta
distribution, in proportion to `n^-2`. New is the `behaviour` alone.

    cd experiments
    purejaxdqn train --import recipes.epsilon_z --agent epsilon_z --num-seeds 10
    purejaxdqn sweep --import recipes.epsilon_z --agent epsilon_z --longest-action 1 10 100
"""

import dataclasses

from purejaxdqn import DQNConfig, agents, dqn, setting
from purejaxdqn.behaviours import epsilon_z_behaviour
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import linear_epsilon


@dataclasses.dataclass(frozen=True)
class EpsilonZConfig(DQNConfig):
    """DQN's settings, and how long random actions last."""

    longest_action: int = setting(100, "The most steps that a random action lasts.")


def epsilon_z(config: EpsilonZConfig) -> Train:
    """Makes the training run of the settings."""
    behaviour = epsilon_z_behaviour(linear_epsilon(config), longest=config.longest_action)
    return dqn(config, behaviour=behaviour)


agents.register("epsilon_z", EpsilonZConfig(), epsilon_z, "random actions last for a while")
