"""Averaged DQN: the target takes the mean of the last target networks.

Anschel, Baram and Shimkin, "Averaged-DQN: variance reduction and stabilization for deep
reinforcement learning" (2017), algorithm 2. Member 0 learns. The others are what it was when the
target moved last, and the times before. New are the network, the loss, and a hook that hands the
weights on: there is no other target network.

    cd experiments
    purejaxdqn train --import recipes.averaged --agent averaged --num-seeds 10
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, environments, networks, setting
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Array, LossOutput, Network, Params, TrainState, Transition
from recipes.ensembles import ensemble


@dataclasses.dataclass(frozen=True)
class AveragedConfig(DQNConfig):
    """DQN's settings, and the number of target networks."""

    num_targets: int = setting(5, "Target networks whose mean counts.")
    hand_on_period: int = setting(50, "Gradient steps after which a new one is kept.")


def averaged_loss(
    network: Network[Any], params: Params, _: Params, transition: Transition, key: Array
) -> LossOutput:
    """Computes half the squared error of one transition."""
    q_t = network.apply(params, transition.obs_t)[1:].mean(axis=0)
    target = jax.lax.stop_gradient(transition.r_t + transition.discount_t * q_t.max())
    td_error = target - network.apply(params, transition.obs_tm1)[0, transition.a_tm1]
    return LossOutput(td_error**2 / 2, jnp.abs(td_error), {})


def hand_on(key: Array, state: TrainState, period: int) -> TrainState:
    """Keeps the weights that learn as the newest target, and drops the oldest one."""
    is_due = state.learner.num_updates % period == 0

    def shift(x: Array) -> Array:
        return jnp.where(is_due, jnp.concatenate([x[:1], x[:-1]]), x)

    learner = dataclasses.replace(state.learner, params=jax.tree.map(shift, state.learner.params))
    return dataclasses.replace(state, learner=learner)


def averaged(config: AveragedConfig) -> Train:
    """Makes the training run of the settings."""
    member = networks.value_network(environments.make(config.env).num_actions, config.hidden_sizes)
    network = ensemble(member, 1 + config.num_targets, lambda values: values[0])
    after_update = functools.partial(hand_on, period=config.hand_on_period)
    return dqn(
        dataclasses.replace(config, target_period=1),
        network=network,
        loss_fn=averaged_loss,
        after_update=after_update,
    )


agents.register("averaged", AveragedConfig(), averaged, "the mean of several target networks")
