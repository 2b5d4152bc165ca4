"""L2 init: weights are drawn back to where they began, so that they can still learn later.

Kumar, Marklund and Van Roy, "Maintaining plasticity in continual learning via regenerative
regularization" (2023), equation 1. New is the optimiser: what it is made of remembers the first
weights, and adds their distance to the gradient.

    cd experiments
    purejaxdqn train --import recipes.l2_init --agent l2_init --num-seeds 10
"""

import dataclasses
from typing import Any

import jax
import optax

from purejaxdqn import DQNConfig, agents, dqn, setting
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Array, Schedule


@dataclasses.dataclass(frozen=True)
class L2InitConfig(DQNConfig):
    """DQN's settings, and how much the distance counts."""

    l2_init: float = setting(1e-4, "Weight of the squared distance to the start.", at_least=0)


def draw_to_start(weight: Array | float) -> optax.GradientTransformation:
    """Adds the gradient of `weight * |params - first params|^2`."""

    def update(grads: Any, first: Any, params: Any = None) -> tuple[Any, Any]:
        pull = lambda g, now, then: g + 2 * weight * (now - then)  # noqa: E731
        return jax.tree.map(pull, grads, params, first), first

    return optax.GradientTransformation(lambda params: params, update)


def l2_init(config: L2InitConfig) -> Train:
    """Makes the training run of the settings."""

    def optimizer(learning_rate: Schedule) -> optax.GradientTransformation:
        adam = optax.adam(learning_rate, eps=config.adam_epsilon)
        return optax.chain(draw_to_start(config.l2_init), adam)

    return dqn(config, optimizer=optimizer)


agents.register("l2_init", L2InitConfig(), l2_init, "weights are drawn back to their start")
