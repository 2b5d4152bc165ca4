"""The learner: one gradient step on a batch of transitions, and the target network's update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxdqn.training.exploration import Schedule, linear_schedule
from purejaxdqn.training.settings import RunConfig, reserved_names
from purejaxdqn.training.target_network import TargetUpdate
from purejaxdqn.types import (
    Array,
    ConfigError,
    Learner,
    LearnerState,
    LossFn,
    LossOutput,
    Network,
    Params,
    Transition,
)

MakeOptimizer = Callable[[Schedule], optax.GradientTransformation]


def linear_learning_rate(config: RunConfig, learning_rate: Array | float) -> Schedule:
    """Makes the schedule `num_updates -> learning rate`, which falls over all gradient steps."""
    end = learning_rate * config.learning_rate_end_fraction
    return linear_schedule(learning_rate, end, config.num_updates)


def make_clipped_optimizer(
    optimizer: MakeOptimizer | None,
    default: MakeOptimizer,
    learning_rate: Schedule,
    max_grad_norm: Array | float,
) -> optax.GradientTransformation:
    """Puts an optimiser behind the clipping of the gradients' global norm.

    Args:
      optimizer: `learning-rate schedule -> optax optimiser`; None for `default`.
      default: makes the agent's own optimiser, in the same way.
      learning_rate: `num_updates -> step size`.
      max_grad_norm: `[]` above 0.

    Returns:
      The optimiser.
    """
    clip = optax.clip_by_global_norm(max_grad_norm)
    if optimizer is not None:
        return optax.chain(clip, optimizer(learning_rate))
    # All weights as one vector: a few long operations where each layer would have its own.
    return optax.flatten(optax.chain(clip, default(learning_rate)))


def make_learner(
    network: Network[Any],
    loss_fn: LossFn[Any],
    optimizer: optax.GradientTransformation,
    target_update: TargetUpdate | None = None,
) -> Learner:
    """Makes the learner: the mean loss of a batch, one optimiser step, the target's update.

    This function is long, because its four functions share the same parts.

    Args:
      network: the value network.
      loss_fn: loss of ONE transition.
      optimizer: any optax optimiser.
      target_update: such as `periodic_target_update(50)`. Without it there is no target network,
        and the loss is given the weights themselves in its place.

    Returns:
      The `Learner`. Its metrics are the loss function's own, averaged over the batch, and `loss`.

    Raises:
      ConfigError: from `update`, if a metric has one of the `reserved_names`.
    """

    def init(key: Array, obs: Array) -> LearnerState:
        params = network.init(key, obs)
        return LearnerState(
            params=params,
            # Copied: one buffer cannot be donated twice.
            target_params=None if target_update is None else jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            num_updates=jnp.zeros((), jnp.int32),
        )

    def differentiate(
        state: LearnerState, transition: Transition, key: Array, weights: Array | None
    ) -> tuple[tuple[Array, LossOutput], Params]:
        keys = jax.random.split(key, transition.r_t.shape[0])

        bootstrap_params = state.params if target_update is None else state.target_params

        def mean_loss(params: Params) -> tuple[Array, LossOutput]:
            batched = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
            output = batched(network, params, bootstrap_params, transition, keys)
            weighted = output.loss if weights is None else weights * output.loss
            return jnp.mean(weighted), output

        return jax.value_and_grad(mean_loss, has_aux=True)(state.params)

    def update(
        state: LearnerState, transition: Transition, key: Array, weights: Array | None = None
    ) -> tuple[LearnerState, Array, dict[str, Array]]:
        (loss, output), grads = differentiate(state, transition, key, weights)
        if reserved := reserved_names() & set(output.metrics):
            raise ConfigError(
                f"the loss has a metric named {', '.join(sorted(reserved))}, which names something "
                "else in results: rename it"
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        num_updates = state.num_updates + 1
        target_params = None
        if target_update is not None:
            target_params = target_update(params, state.target_params, num_updates)
        metrics = {"loss": loss, **jax.tree.map(jnp.mean, output.metrics)}
        state = LearnerState(params, target_params, opt_state, num_updates)
        return state, output.priority, metrics

    def gradient(
        state: LearnerState, transition: Transition, key: Array, weights: Array | None = None
    ) -> Params:
        return differentiate(state, transition, key, weights)[1]

    return Learner(init, update, gradient)
