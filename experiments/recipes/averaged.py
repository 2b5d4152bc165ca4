"""Averaged DQN: the target is made of the mean of the last target networks.

Anschel, Baram and Shimkin, "Averaged-DQN: variance reduction and stabilization for deep
reinforcement learning" (2017): `r_t + discount_t * max_a mean_k q_t^k[a]`, where the networks `k`
are the last `K` copies of the one that learns. New are a `network` of `K` members, of whose weights
the first ones learn, a `target_update` that copies these and drops the oldest, and the `loss_fn`.
Here the network that learns also acts.

    cd experiments
    purejaxdqn train --import recipes.averaged --agent averaged --num-seeds 10
    purejaxdqn sweep --import recipes.averaged --agent averaged --num-targets 1 5 10
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, environments, networks, setting
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Array, LossOutput, Network, Params, Transition


@dataclasses.dataclass(frozen=True)
class AveragedConfig(DQNConfig):
    """DQN's settings, and the number of target networks."""

    num_targets: int = setting(5, "Target networks whose mean counts.")


def averaged_loss(
    network: Network[Any], params: Params, target_params: Params, transition: Transition, key: Array
) -> LossOutput:
    """Computes half the squared error of one transition."""
    q_t = network.apply(target_params, transition.obs_t).mean(axis=0)
    target = jax.lax.stop_gradient(transition.r_t + transition.discount_t * q_t.max())
    q_value = network.apply(params, transition.obs_tm1)[0, transition.a_tm1]
    td_error = target - q_value
    return LossOutput(td_error**2 / 2, jnp.abs(td_error), {"q_value": q_value})


def averaged(config: AveragedConfig) -> Train:
    """Makes the training run of the settings."""
    num_actions = environments.make(config.env).num_actions
    member = networks.value_network(num_actions, config.hidden_sizes)
    network = networks.ensemble(member, config.num_targets, lambda values: values[0])

    def hand_on(params: Params, target_params: Params, num_updates: Array) -> Params:
        def shift(new: Array, old: Array) -> Array:
            is_due = num_updates % config.target_period == 0
            return jnp.where(is_due, jnp.concatenate([new[:1], old[:-1]]), old)

        return jax.tree.map(shift, params, target_params)

    return dqn(config, network=network, loss_fn=averaged_loss, target_update=hand_on)


agents.register("averaged", AveragedConfig(), averaged, "the mean of several target networks")
