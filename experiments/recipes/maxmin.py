"""Maxmin Q-learning: the target takes the smallest value that several networks say.

Lan et al., "Maxmin Q-learning: controlling the estimation bias of Q-learning" (2020), algorithm 1:
`r_t + discount_t * max_a min_k q_t^k[a]`. Actions are chosen by `min_k q^k` too, and each update
teaches one member, drawn anew. New are the `network` and a `batch_loss`, as all of a batch teaches
the same member. The package's own agent `maxmin` draws a member for each transition.

    cd experiments
    purejaxdqn train --import recipes.maxmin --agent maxmin_recipe --num-seeds 10
    purejaxdqn sweep --import recipes.maxmin --agent maxmin_recipe --num-networks 2 4 8
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, environments, networks, setting
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Array, LossOutput, Network, Params, Transition


@dataclasses.dataclass(frozen=True)
class MaxminConfig(DQNConfig):
    """DQN's settings, and the number of networks."""

    num_networks: int = setting(2, "Networks of which the smallest value counts.")


def maxmin_loss(
    network: Network[Any], params: Params, target_params: Params, batch: Transition, key: Array
) -> LossOutput:
    """Computes half the squared errors `[B]` of the one member that is drawn."""
    values = jax.vmap(network.apply, in_axes=(None, 0))  # [B, K, A]
    q_t = values(target_params, batch.obs_t).min(axis=1)
    target = jax.lax.stop_gradient(batch.r_t + batch.discount_t * q_t.max(axis=1))
    all_tm1 = values(params, batch.obs_tm1)
    member = jax.random.randint(key, (), 0, all_tm1.shape[1])
    q_tm1 = jnp.take_along_axis(all_tm1[:, member], batch.a_tm1[:, jnp.newaxis], axis=1)[:, 0]
    spread = jnp.std(all_tm1, axis=(1, 2))
    return LossOutput((target - q_tm1) ** 2 / 2, jnp.abs(target - q_tm1), {"spread": spread})


def maxmin(config: MaxminConfig) -> Train:
    """Makes the training run of the settings."""
    member = networks.value_network(environments.make(config.env).num_actions, config.hidden_sizes)
    network = networks.ensemble(member, config.num_networks, functools.partial(jnp.min, axis=0))
    return dqn(config, network=network, batch_loss=maxmin_loss)


agents.register("maxmin_recipe", MaxminConfig(), maxmin, "the smallest of several values")
