"""Advantage learning: the gap to the best action is widened.

Bellemare et al., "Increasing the action gap: new operators for reinforcement learning" (2016), the
operator T_AL: `r_t + discount_t * max q_t - gap_weight * (max q_tm1 - q_tm1[a_tm1])`, with the
target network's values of both observations. New is a loss, as a TD error sees the online network's
values of `obs_tm1` alone. It is handed on as `loss_fn`, and declares what it converges to. The
persistent version is a setting of the package (`--td-error persistent_advantage_learning`).

    cd experiments
    purejaxdqn train --import recipes.advantage_learning --agent advantage_learning --num-seeds 10
    purejaxdqn check recipes.advantage_learning:advantage_loss
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn import DQNConfig, agents, dqn, setting, testing
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import following
from purejaxdqn.types import Array, LossOutput, Network, Params, Transition


@dataclasses.dataclass(frozen=True)
class AdvantageLearningConfig(DQNConfig):
    """DQN's settings, and how far the gap is widened."""

    gap_weight: float = setting(0.5, "Share of the gap taken off.", at_least=0, at_most=1)


def fixed_point(gap_weight: float) -> testing.FixedPoint:
    """Says in NumPy what the target is where both networks agree."""

    def target(q_tm1: Any, a_tm1: Any, r_t: Any, discount_t: Any, q_t: Any) -> Any:
        gap = q_tm1.max(-1) - np.take_along_axis(q_tm1, a_tm1[..., np.newaxis], -1)[..., 0]
        return r_t + discount_t * q_t.max(-1) - gap_weight * gap

    return testing.FixedPoint("advantage learning", target)


@testing.converges_to(fixed_point)
def advantage_loss(
    network: Network[Any],
    params: Params,
    target_params: Params,
    transition: Transition,
    key: Array,
    gap_weight: Array | float = 0.5,
) -> LossOutput:
    """Computes half the squared error of one transition."""
    tm1_key, target_key, t_key = jax.random.split(key, 3)
    obs_tm1, a_tm1, r_t, discount_t, obs_t, *_ = transition
    q_tm1 = network.action_values(network.apply(params, obs_tm1, tm1_key))
    target_tm1 = network.action_values(network.apply(target_params, obs_tm1, target_key))
    q_t = network.action_values(network.apply(target_params, obs_t, t_key))
    gap = jnp.max(target_tm1) - target_tm1[a_tm1]
    target = jax.lax.stop_gradient(r_t + discount_t * jnp.max(q_t) - gap_weight * gap)
    td_error = target - q_tm1[a_tm1]
    return LossOutput(td_error**2 / 2, jnp.abs(td_error), {"action_gap": gap})


def advantage_learning(config: AdvantageLearningConfig) -> Train:
    """Makes the training run of the settings."""
    return dqn(
        config,
        loss_fn=following(lambda now: functools.partial(advantage_loss, gap_weight=now.gap_weight)),
    )


agents.register(
    "advantage_learning", AdvantageLearningConfig(n_step=1), advantage_learning, "widened gaps"
)
