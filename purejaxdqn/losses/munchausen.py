"""Losses with a bonus for the action taken: Munchausen and advantage learning."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxdqn.losses.bellman_loss import Penalty, measure_error, name_part, write_recipe
from purejaxdqn.losses.bellman_targets import q_learning, softmax_log_policy
from purejaxdqn.types import (
    TINY,
    Array,
    LossFn,
    LossOutput,
    Network,
    Output,
    Transition,
    ensure_function,
    ensure_number,
)


def munchausen(
    loss_fn: LossFn[Output],
    temperature: Array | float = 0.03,
    coefficient: Array | float = 0.9,
    log_policy_min: Array | float = -1.0,
) -> LossFn[Output]:
    """Makes a loss that adds the policy's log-probability of the action taken to the reward.

    Vieillard, Pietquin and Geist, "Munchausen reinforcement learning" (2020), equation 2: `r_t`
    becomes `r_t + coefficient * clip(temperature * log pi(a_tm1 | obs_tm1), log_policy_min, 0)`,
    where `pi` is the softmax of the target network's action values over `temperature`.

    With the same temperature in both, `munchausen(bellman_loss(soft_q_learning))` is the paper's
    M-DQN, and `munchausen(quantile_loss(double=False, temperature=0.03))` its M-IQN. With n-step
    returns, the bonus is that of the first of the n actions.

    Args:
      loss_fn: the loss that sees the new reward; its networks, priority and metrics are kept.
      temperature: `[]` above 0, in the unit of the reward.
      coefficient: `[]` how much of the bonus counts; 0 leaves the loss as it is.
      log_policy_min: `[]` at most 0, the least that `temperature * log pi` can be, in the unit of
        the reward.
    """
    ensure_function("loss_fn", loss_fn, "bellman_loss(soft_q_learning)", 5)
    ensure_number("temperature", temperature, TINY)
    ensure_number("coefficient", coefficient)
    ensure_number("log_policy_min", log_policy_min, high=0)

    def munchausen_loss(
        network: Network[Any], params: Any, target_params: Any, transition: Transition, key: Array
    ) -> LossOutput:
        bonus_key, loss_key = jax.random.split(key)
        output = network.apply(target_params, transition.obs_tm1, bonus_key)
        log_policy = softmax_log_policy(network.action_values(output), temperature)
        bonus = jnp.clip(temperature * log_policy[transition.a_tm1], log_policy_min, 0.0)
        r_t = transition.r_t + coefficient * jax.lax.stop_gradient(bonus)
        return loss_fn(network, params, target_params, transition._replace(r_t=r_t), loss_key)

    name = f"munchausen({getattr(loss_fn, '__qualname__', repr(loss_fn))})"
    numbers = {"temperature": temperature, "coefficient": coefficient}
    numbers["log_policy_min"] = log_policy_min
    return write_recipe(munchausen_loss, name, munchausen, loss_fn=loss_fn, **numbers)


def persistent_advantage_learning_loss(
    coefficient: Array | float = 0.9, penalty: Penalty = optax.l2_loss
) -> LossFn[Any]:
    """Makes a Bellman loss that widens the gap between the best action and the others.

    Bellemare, Ostrovski, Guez, Thomas and Munos, "Increasing the action gap: new operators for
    reinforcement learning" (2016). With `V(x) = max_b Q(x, b)` and the Bellman operator
    `T Q(x, a) = r + gamma V(x')`, advantage learning lowers the values of actions that are not
    the best, `T_AL Q(x, a) = T Q(x, a) - coefficient * (V(x) - Q(x, a))`, and its persistent
    version spares those that are worth repeating:

        T_PAL Q(x, a) = max(T_AL Q(x, a), T Q(x, a) - coefficient * (V(x') - Q(x', a)))

    as in the updates of the paper's Atari experiments. (Its section on operators has
    `r + gamma Q(x', a)`, that is gamma in the place of the coefficient, as the second term.)
    The target is then `T Q(x, a)` less `coefficient` times the smaller of the two gaps. All these
    are values of the target network. Where the episode terminated, no action at `x'` is better
    than another: the second gap is 0, and the target is the reward.

    Args:
      coefficient: `[]` the paper's alpha, from 0 (Q-learning) to below 1.
      penalty: `[] -> []` of the TD error, as for `bellman_loss`.

    Returns:
      A `LossFn` whose priority is the absolute TD error.
    """
    ensure_number("coefficient", coefficient, 0, 1)
    ensure_function("penalty", penalty, "optax.l2_loss")

    def loss_fn(
        network: Network[Any], params: Any, target_params: Any, transition: Transition, key: Array
    ) -> LossOutput:
        key_tm1, target_key_tm1, key_t = jax.random.split(key, 3)
        obs_tm1, a_tm1, r_t, discount_t, obs_t, *_ = transition

        def values(params: Any, obs: Array, key: Array) -> Array:
            return network.action_values(network.apply(params, obs, key))

        def gap(q_values: Array) -> Array:
            return jnp.max(q_values) - q_values[a_tm1]

        q_tm1 = values(params, obs_tm1, key_tm1)
        target_q_tm1 = values(target_params, obs_tm1, target_key_tm1)
        q_t = values(target_params, obs_t, key_t)
        gap_t = jnp.where(discount_t > 0, gap(q_t), 0.0)
        r_t -= coefficient * jnp.minimum(gap(target_q_tm1), gap_t)
        error = q_learning(q_tm1, a_tm1, r_t, discount_t, q_t)
        return measure_error(error, q_tm1[a_tm1], penalty)

    name = f"persistent_advantage_learning_loss({name_part(penalty)})"
    arguments = {"coefficient": coefficient, "penalty": penalty}
    return write_recipe(loss_fn, name, persistent_advantage_learning_loss, **arguments)
