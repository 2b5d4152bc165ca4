"""A regulariser of the features over a batch: their correlations are drawn to 0.

Mavrin, Yao and Kong, "Deep reinforcement learning with decorrelation" (2019): to the loss is added
`decorrelation / 2 * sum_{i != j} cov(feature_i, feature_j)^2`. A covariance needs the whole batch,
so what is new is a `batch_loss` around the loss that the settings name.

    cd experiments
    purejaxdqn train --import recipes.decorrelation --agent decorrelation --num-seeds 10
    purejaxdqn sweep --import recipes.decorrelation --agent decorrelation --decorrelation 0 1e-3 1
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, environments, losses, setting
from purejaxdqn.training.learner import over_batch
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import following
from purejaxdqn.types import Array, BatchLossFn, LossOutput, Network, Params, Transition


@dataclasses.dataclass(frozen=True)
class DecorrelationConfig(DQNConfig):
    """DQN's settings, and how much correlations count."""

    decorrelation: float = setting(1e-3, "Weight of the features' covariances.", at_least=0)


def decorrelated_loss(config: DecorrelationConfig) -> BatchLossFn[Any]:
    """Makes the loss that the settings name, with the penalty."""
    num_actions = environments.make(config.env).num_actions
    bellman_loss = over_batch(losses.from_config(config, num_actions))

    def loss(
        network: Network[Any], params: Params, target_params: Params, batch: Transition, key: Array
    ) -> LossOutput:
        output = bellman_loss(network, params, target_params, batch, key)
        assert network.activations is not None
        features = jax.vmap(network.activations, in_axes=(None, 0))(params, batch.obs_tm1).features
        covariance = jnp.cov(features, rowvar=False, bias=True)
        penalty = jnp.sum(covariance**2) - jnp.sum(jnp.diag(covariance) ** 2)
        metrics = {**output.metrics, "covariance": jnp.full_like(output.loss, penalty)}
        return LossOutput(
            output.loss + config.decorrelation / 2 * penalty, output.priority, metrics
        )

    return loss


def decorrelation(config: DecorrelationConfig) -> Train:
    """Makes the training run of the settings."""
    return dqn(config, batch_loss=following(decorrelated_loss))


agents.register("decorrelation", DecorrelationConfig(), decorrelation, "features not correlated")
