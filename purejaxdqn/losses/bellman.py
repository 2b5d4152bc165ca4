"""The Bellman loss: a TD error under a penalty, as a loss of ONE transition."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from purejaxdqn.losses.q_learning import q_learning
from purejaxdqn.losses.recipe import name_part, write_recipe
from purejaxdqn.types import Array, LossFn, LossOutput, Network, Params, Transition

TDError = Callable[..., Array]
Penalty = Callable[[Array], Array]


def masked_squared_error(num_actions: int) -> Penalty:
    """The mean square over all `A` outputs, masked by the action that was taken.

    A network whose outputs are multiplied by a one-hot action, trained on equally masked targets
    with the mean squared error over the outputs, has no error where the mask is 0: what is left is
    the square of the TD error divided by `A`, that is `2 / A` times `optax.l2_loss`.

    Args:
      num_actions: `A`.

    Returns:
      `td_error [] -> loss []`, a penalty for `bellman_loss`.
    """

    def masked_squared(td_error: Array) -> Array:
        return jnp.square(td_error) / num_actions

    return masked_squared


def bellman_loss(td_error: TDError = q_learning, penalty: Penalty = optax.l2_loss) -> LossFn:
    """Makes a loss from a TD error and a penalty.

    No gradient is stopped here: the TD error decides what its target is, and stops that.

    Args:
      td_error: `(q_tm1 [A], a_tm1 [], r_t [], discount_t [], q_t [A], q_t_online [A]) -> []`,
        such as `q_learning`.
      penalty: `[] -> []`, such as `optax.l2_loss` (half the square; Mnih et al. 2015,
        equation 2) or `functools.partial(optax.huber_loss, delta=1.0)`.

    Returns:
      A `LossFn` whose priority is the absolute TD error.
    """

    def loss_fn(
        network: Network, params: Params, target_params: Params, transition: Transition, key: Array
    ) -> LossOutput:
        key_tm1, key_t, key_online = jax.random.split(key, 3)

        def values(params: Params, obs: Array, key: Array) -> Array:
            return network.action_values(network.apply(params, obs, key))

        q_tm1 = values(params, transition.obs_tm1, key_tm1)
        error = td_error(
            q_tm1,
            transition.a_tm1,
            transition.r_t,
            transition.discount_t,
            values(target_params, transition.obs_t, key_t),
            values(params, transition.obs_t, key_online),
        )
        chex.assert_rank(error, 0)
        metrics = {"q_value": q_tm1[transition.a_tm1]}
        return LossOutput(loss=penalty(error), priority=jnp.abs(error), metrics=metrics)

    name = f"bellman_loss({name_part(td_error)}, {name_part(penalty)})"
    return write_recipe(loss_fn, name, bellman_loss, td_error=td_error, penalty=penalty)
