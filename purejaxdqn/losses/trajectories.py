"""Losses of ONE trajectory, and the returns that they learn: what `sequence_replay` is for.

All returns are of one form (Munos et al., "Safe and efficient off-policy reinforcement learning"
(2016), equation 3, worked out backwards): `G_{t-1} = r_t + discount_t * (v_t + c_t (G_t - b_t))`,
with a value `v_t`, a trace `c_t` and a baseline `b_t`. None looks beyond its trajectory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxdqn.losses.bellman_loss import Penalty, name_part
from purejaxdqn.types import (
    Array,
    ConfigError,
    LossFn,
    LossOutput,
    Network,
    Params,
    Trajectory,
    ensure_function,
    ensure_number,
)

# (trajectory, q_t [T, A]) -> returns [T], the targets of q_tm1[a_tm1]: q_t are the target network's
# values of obs_t
Returns = Callable[[Trajectory, Array], Array]


def trace_returns(trajectory: Trajectory, v_t: Array, b_t: Array, c_t: Array | float) -> Array:
    """Computes the returns `[T]` of values, baselines and traces (each `[T]`): see above.

    The trace is cut at a time limit and behind the last valid step. There the return bootstraps
    from `v_t`.
    """
    is_followed = jnp.append(trajectory.is_valid[1:], False) & ~trajectory.truncated_t
    traces = jnp.where(is_followed, c_t, 0.0)

    def backwards(return_t: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        r_t, discount_t, v_t, b_t, c_t = step
        # A select: behind the end there may be anything, and 0 times that need not be 0.
        corrected = v_t + jnp.where(c_t > 0, c_t * (return_t - b_t), 0.0)
        return_tm1 = r_t + discount_t * corrected
        return return_tm1, return_tm1

    steps = (trajectory.r_t, trajectory.discount_t, v_t, b_t, traces)
    return jax.lax.scan(backwards, jnp.zeros_like(v_t[-1]), steps, reverse=True)[1]


def n_step_returns() -> Returns:
    """Makes the returns that sum all rewards of the trajectory, and bootstrap at its end."""
    return peng_q_lambda(1.0)


def peng_q_lambda(lambda_: Array | float) -> Returns:
    """Makes the Q(lambda) returns that no action cuts.

    Peng and Williams, "Incremental multi-step Q-learning" (1996). The returns of all lengths up to
    the trajectory's are averaged with weights that fall by lambda, `[]` from 0 to 1.
    """
    ensure_number("lambda_", lambda_, 0, 1)

    def returns(trajectory: Trajectory, q_t: Array) -> Array:
        v_t = jnp.max(q_t, axis=1)
        return trace_returns(trajectory, v_t, v_t, lambda_)

    return returns


def watkins_q_lambda(lambda_: Array | float) -> Returns:
    """Makes the Q(lambda) returns that end before the first action that is not greedy.

    Watkins, "Learning from delayed rewards" (1989), chapter 7; Sutton and Barto, "Reinforcement
    Learning: An Introduction" (2018), section 12.10.
    """
    ensure_number("lambda_", lambda_, 0, 1)

    def returns(trajectory: Trajectory, q_t: Array) -> Array:
        v_t = jnp.max(q_t, axis=1)
        is_greedy = take_next(trajectory, q_t) == v_t
        return trace_returns(trajectory, v_t, v_t, jnp.where(is_greedy, lambda_, 0.0))

    return returns


def retrace(lambda_: Array | float = 1.0) -> Returns:
    """Makes the Retrace(lambda) returns of the greedy policy.

    Munos et al., "Safe and efficient off-policy reinforcement learning" (2016), table 1 and
    equation 3: `c_t = lambda * min(1, pi(a_t) / mu(a_t))`, where pi is greedy in `q_t`, and mu is
    what the behaviour wrote down as `probability`, such as `epsilon_greedy_behaviour(epsilon,
    write_probability=True)`.

    Raises:
      ConfigError: from the returns, if no probability was written down.
    """
    ensure_number("lambda_", lambda_, 0, 1)

    def returns(trajectory: Trajectory, q_t: Array) -> Array:
        if "probability" not in trajectory.extras:
            raise ConfigError(
                f"retrace needs the probability of each action, and the extras are "
                f"{sorted(trajectory.extras)}: pass a behaviour that writes it down, such as "
                "epsilon_greedy_behaviour(epsilon, write_probability=True)"
            )
        taken_t, v_t = take_next(trajectory, q_t), jnp.max(q_t, axis=1)
        pi = jnp.where(taken_t == v_t, 1.0, 0.0)
        mu = jnp.append(trajectory.extras["probability"][1:], 1.0)
        return trace_returns(trajectory, v_t, taken_t, lambda_ * jnp.minimum(1.0, pi / mu))

    return returns


def take_next(trajectory: Trajectory, q_t: Array) -> Array:
    """Takes the values `[T]` of the actions at time t; the last one, unknown, is action 0."""
    a_t = jnp.append(trajectory.a_tm1[1:], 0)
    return jnp.take_along_axis(q_t, a_t[:, jnp.newaxis], axis=1)[:, 0]


def trajectory_loss(returns: Returns, penalty: Penalty = optax.l2_loss) -> LossFn[Any]:
    """Makes the loss of ONE trajectory: the mean penalty of its valid steps' TD errors.

    The `LossFn` is given a `Trajectory` for a transition. Its priority is the mean absolute TD
    error, and its returns let no gradient through.
    """
    ensure_function("returns", returns, "losses.watkins_q_lambda(0.9)", 2)
    ensure_function("penalty", penalty, "optax.l2_loss")

    def loss_fn(
        network: Network[Any], params: Params, target_params: Params, transition: Any, key: Array
    ) -> LossOutput:
        length = len(transition.r_t)
        keys = jax.random.split(key, 2 * length)

        def values(params: Params, obs: Array, keys: Array) -> Array:
            output = jax.vmap(network.apply, in_axes=(None, 0, 0))(params, obs, keys)
            return jax.vmap(network.action_values)(output)

        q_tm1 = values(params, transition.obs_tm1, keys[:length])
        q_t = values(target_params, transition.obs_t, keys[length:])
        chosen = jnp.take_along_axis(q_tm1, transition.a_tm1[:, jnp.newaxis], axis=1)[:, 0]
        is_valid = transition.is_valid
        errors = jax.lax.stop_gradient(returns(transition, q_t)) - chosen
        errors = jnp.where(is_valid, errors, 0.0)  # also for their gradient, which may be NaN
        loss, priority, q_value = (
            jnp.mean(jnp.where(is_valid, x, 0.0)) * length / is_valid.sum()
            for x in (jax.vmap(penalty)(errors), jnp.abs(errors), chosen)
        )
        return LossOutput(loss, priority, {"q_value": q_value})

    loss_fn.__qualname__ = f"trajectory_loss({name_part(returns)}, {name_part(penalty)})"
    return loss_fn
