"""Boltzmann exploration: better actions are taken more often.

Sutton and Barto, "Reinforcement Learning: An Introduction" (2018), equation 13.2, with action
values over a temperature as preferences: `pi(a)` is in proportion to `exp(q[a] / temperature)`. New
is the `behaviour` alone. The temperature falls in a straight line, as epsilon would.

    cd experiments
    purejaxdqn train --import recipes.boltzmann --agent boltzmann --num-seeds 10
    purejaxdqn sweep --import recipes.boltzmann --agent boltzmann --temperature-end 0.1 0.5 1
"""

import dataclasses

from purejaxdqn import DQNConfig, agents, dqn, setting
from purejaxdqn.behaviours import boltzmann_behaviour
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import linear_schedule


@dataclasses.dataclass(frozen=True)
class BoltzmannConfig(DQNConfig):
    """DQN's settings, and how the temperature falls over `epsilon_fraction` of the run."""

    temperature_start: float = setting(
        5.0, "Temperature of the actions at first.", above=0, may_change=False
    )
    temperature_end: float = setting(
        0.2, "Temperature of the actions in the end.", above=0, may_change=False
    )


def boltzmann(config: BoltzmannConfig) -> Train:
    """Makes the training run of the settings."""
    temperature = linear_schedule(
        config.temperature_start,
        config.temperature_end,
        config.epsilon_fraction * config.total_steps,
    )
    return dqn(config, behaviour=boltzmann_behaviour(temperature))


agents.register("boltzmann", BoltzmannConfig(), boltzmann, "better actions are taken more often")
