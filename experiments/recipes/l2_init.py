"""L2 init: weights are drawn back to where they began, so that they can still learn later.

Kumar, Marklund and Van Roy, "Maintaining plasticity in continual learning via regenerative
regularization" (2023): to the loss is added `l2_init * |params - first params|^2`. New is the
`optimizer`: what it is made of remembers the first weights, and adds the term's gradient.

    cd experiments
    purejaxdqn train --import recipes.l2_init --agent l2_init --num-seeds 10
    purejaxdqn sweep --import recipes.l2_init --agent l2_init --l2-init 0 1e-4 1e-2
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import DQNConfig, agents, dqn, setting
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import following
from purejaxdqn.types import Array, Schedule


@dataclasses.dataclass(frozen=True)
class L2InitConfig(DQNConfig):
    """DQN's settings, and how much the distance counts."""

    l2_init: float = setting(1e-4, "Weight of the squared distance to the start.", at_least=0)


def draw_to_start(weight: Array | float) -> optax.GradientTransformation:
    """Adds the gradient of `weight * |params - first params|^2`."""

    def update(grads: Any, first: Any, params: Any = None) -> tuple[Any, Any]:
        def pull(grad: Array, now: Array, then: Array) -> Array:
            return grad + 2 * weight * (now - then)

        return jax.tree.map(pull, grads, params, first), first

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.copy, params), update)


def make_optimizer(now: L2InitConfig, learning_rate: Schedule) -> optax.GradientTransformation:
    """Makes Adam behind the pull to the start."""
    adam = optax.adam(learning_rate, eps=now.adam_epsilon)
    return optax.chain(draw_to_start(now.l2_init), adam)


def l2_init(config: L2InitConfig) -> Train:
    """Makes the training run of the settings."""
    return dqn(config, optimizer=following(lambda now: functools.partial(make_optimizer, now)))


agents.register("l2_init", L2InitConfig(), l2_init, "weights are drawn back to their start")
