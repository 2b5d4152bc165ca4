"""The learner: one gradient step on a batch of transitions, and when the target network moves."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from purejaxdqn.training.parts import check_output
from purejaxdqn.training.schedules import linear_schedule
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import (
    BATCH,
    Array,
    ArrayTree,
    BatchLossFn,
    ConfigError,
    Learner,
    LearnerState,
    LossFn,
    LossOutput,
    Network,
    Params,
    Schedule,
    Transition,
    ensure,
    ensure_function,
)

MakeOptimizer = Callable[[Schedule], optax.GradientTransformation]
TargetUpdate = Callable[[Params, Params, Array], Params]  # (params, target_params, num_updates)


def linear_learning_rate(config: RunConfig, learning_rate: Array | float) -> Schedule:
    """Makes the schedule `num_updates -> learning rate`, which falls over all gradient steps."""
    end = learning_rate * config.learning_rate_end_fraction
    return linear_schedule(learning_rate, end, config.num_updates)


def make_clipped_optimizer(
    config: RunConfig, optimizer: MakeOptimizer | None, default: Callable[[Any], MakeOptimizer]
) -> optax.GradientTransformation:
    """Puts an optimiser, or else the agent's own, behind the clipping of gradients' global norm.

    Each is made of its learning rate, `num_updates -> step size`; `default` chooses the agent's by
    the settings, which are only read where it is used.
    """
    learning_rate = linear_learning_rate(config, config.learning_rate)
    if optimizer is not None:
        ensure_function("optimizer", optimizer, "optax.rmsprop")
        made = optimizer(learning_rate)
        is_made = isinstance(made, optax.GradientTransformation)
        ensure(is_made, "what optimizer makes", made, "an optimiser of optax")
        return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), made)
    clip = _clip_by_norm(config.max_grad_norm)
    return _join_small(optax.chain(clip, default(config)(learning_rate)))


_LARGE = 2**15  # numbers, from which to copy an array takes longer than operations of its own


def _join_small(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Hands all small arrays to a transformation as one vector, as `optax.flatten` does all.

    A few long operations take the place of some for each array.
    """

    def join(tree: ArrayTree) -> tuple[ArrayTree, Callable[[Any], ArrayTree]]:
        arrays, structure = jax.tree.flatten(tree)
        vector, split_vector = ravel_pytree([x for x in arrays if x.size < _LARGE])
        large = [x for x in arrays if x.size >= _LARGE]

        def split(joined: Any) -> ArrayTree:
            vector, *rest = joined if large else [joined]
            small, others = iter(split_vector(vector)), iter(rest)
            parts = [next(small if x.size < _LARGE else others) for x in arrays]
            return jax.tree.unflatten(structure, parts)

        return [vector, *large] if large else vector, split

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        joined, split = join(gradients)
        updates, state = inner.update(joined, state, None if params is None else join(params)[0])
        return split(updates), state

    return optax.GradientTransformation(lambda params: inner.init(join(params)[0]), update)


def _clip_by_norm(max_norm: Array | float) -> optax.GradientTransformation:
    """Makes `optax.clip_by_global_norm`, faster on a CPU."""

    def square(x: Array) -> Array:
        # A sum over rows, number by number, before the one within a row, which XLA does slowly.
        rows = jnp.pad(jnp.ravel(x), (0, -x.size % 32)).reshape(32, -1)
        return jnp.sum(sum(map(jnp.square, rows)))

    def clip(gradients: ArrayTree, params: Any = None) -> ArrayTree:
        norm = jnp.sqrt(sum(map(square, jax.tree.leaves(gradients))))
        return jax.tree.map(lambda x: x * jnp.minimum(1, max_norm / norm), gradients)

    return optax.stateless(clip)


def periodic_target_update(period: int, step_size: Array | float = 1.0) -> TargetUpdate:
    """Makes the rule that moves the target network every `period` gradient steps.

    A step size `[]` of 1 is the hard copy of Mnih et al. (2015); a period of 1 with a small step
    size above 0 is Polyak averaging, Lillicrap et al., "Continuous control with deep reinforcement
    learning" (2016), algorithm 1. The rule's `num_updates` `[]` counts the step just taken.
    """

    def target_update(params: Params, target_params: Params, num_updates: Array) -> Params:
        # A select and no branch: under vmap both sides of a branch would run anyway.
        is_due = num_updates % period == 0
        moved = optax.incremental_update(params, target_params, step_size)
        return jax.tree.map(
            lambda new, old: jnp.where(is_due, new.astype(old.dtype), old), moved, target_params
        )

    return target_update


def wrap(loss_fn: LossFn[Any] | None, wrap_loss: Any) -> LossFn[Any] | None:
    """Makes the loss that `wrap_loss` makes of another; each may be None."""
    if loss_fn is None or wrap_loss is None:
        return loss_fn
    wrapped: LossFn[Any] = wrap_loss(loss_fn)
    ensure_function("what wrap_loss makes", wrapped, "losses.munchausen(loss_fn)", 5)
    return wrapped


def no_target(params: Params, target_params: Params, num_updates: Array) -> None:
    """Stands as `target_update` for no target network: losses get the weights themselves."""


def split_collections(params: Params) -> tuple[Params, dict[str, ArrayTree]]:
    """Splits weights from what no gradient moves: collections beside "params", see `Network`."""
    if not isinstance(params, Mapping) or "params" not in params:
        return params, {}
    others = {name: part for name, part in params.items() if name != "params"}
    return ({"params": params["params"]}, others) if others else (params, {})


def _check_collections(new: Mapping[str, ArrayTree], old: Mapping[str, ArrayTree]) -> None:
    """Refuses collections of a loss that are not beside the weights, or of another shape there."""
    known = {name: old[name] for name in new if name in old}
    found, wanted = (jax.tree.map(lambda x: str(jnp.shape(x)), tree) for tree in (dict(new), known))
    if found != wanted:
        raise ConfigError(
            f"collections of the loss ({found!s:.200}) must be some of those beside the weights, "
            f"of the same shapes ({wanted!s:.200}): give what the module gives when they are "
            "mutable, without an axis of the batch"
        )


def over_batch(loss_fn: LossFn[Any]) -> BatchLossFn[Any]:
    """Makes the loss of a batch `[B, ...]` that sees each of its transitions alone.

    Raises:
      ConfigError: for what is no loss; from the loss, for a metric that is no single number.
    """
    ensure_function("loss_fn", loss_fn, "losses.bellman_loss(td_error)", 5)

    def checked_loss(*args: Any) -> LossOutput:
        output = loss_fn(*args)
        check_output(output, ())
        has_none = not output.collections
        ensure(has_none, "collections", [*output.collections], "{}: they are for a batch_loss")
        return output

    def batch_loss(
        network: Network[Any], params: Params, target_params: Params, batch: Transition, key: Array
    ) -> LossOutput:
        keys = jax.random.split(key, len(jax.tree.leaves(batch)[0]))
        batched: Any = jax.vmap(checked_loss, (None, None, None, 0, 0), axis_name=BATCH)
        return batched(network, params, target_params, batch, keys)

    return batch_loss


def make_learner(
    network: Network[Any],
    loss_fn: LossFn[Any] | None,
    optimizer: optax.GradientTransformation,
    target_update: TargetUpdate | None = None,
    batch_loss: BatchLossFn[Any] | None = None,
) -> Learner:
    """Makes the learner: the mean loss of a batch, one optimiser step, the target's update.

    Without a `target_update`, such as `periodic_target_update(50)`, there is no target network, and
    the loss is given the weights themselves in its place; so it is with `no_target`. A `batch_loss`
    stands in place of the `loss_fn`, and sees the batch as a whole. The optimiser moves what lies
    under "params", where a network has collections beside it: `LossOutput.collections` take the
    place of those. The target's update moves all. The learner's metrics are the loss function's
    own, averaged over the batch, and `loss`. This function is long, so that a gradient step can be
    read in one place.

    Raises:
      ConfigError: if the loss is no function; from `update`, if a metric has one of the
        `reserved_names`, or is no single number of a transition.
    """
    is_network = isinstance(network, Network)
    ensure(is_network, "network", network, "a Network, such as networks.value_network makes")
    target_update = None if target_update is no_target else target_update
    measure: Any = over_batch(loss_fn) if batch_loss is None else batch_loss  # type: ignore[arg-type]
    ensure_function("batch_loss", measure, "over_batch(losses.bellman_loss(td_error))", 5)

    def init(key: Array, obs: Array) -> LearnerState:
        params = network.init(key, obs)
        # Copied: one buffer cannot be donated twice.
        target_params = None if target_update is None else jax.tree.map(jnp.copy, params)
        opt_state = optimizer.init(split_collections(params)[0])
        return LearnerState(params, target_params, opt_state, jnp.zeros((), jnp.int32))

    def mean_loss(
        moved: Params, state: LearnerState, transition: Transition, key: Array, weights: Any = None
    ) -> tuple[Array, LossOutput]:
        _, collections = split_collections(state.params)
        params = {**moved, **collections} if collections else moved
        bootstrap_params = state.params if target_update is None else state.target_params
        output: LossOutput = measure(network, params, bootstrap_params, transition, key)
        check_output(output, (len(jax.tree.leaves(transition)[0]),))
        _check_collections(output.collections, collections)
        weighted = output.loss if weights is None else weights * output.loss
        return jnp.mean(weighted), output

    differentiate = jax.value_and_grad(mean_loss, has_aux=True)

    def update(
        state: LearnerState, transition: Transition, key: Array, weights: Array | None = None
    ) -> tuple[LearnerState, Array, dict[str, Array]]:
        params, collections = split_collections(state.params)
        (loss, output), grads = differentiate(params, state, transition, key, weights)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        if collections:
            params = {**params, **collections, **output.collections}
        num_updates, target_params = state.num_updates + 1, None
        if target_update is not None:
            target_params = target_update(params, state.target_params, num_updates)
        metrics = {"loss": loss, **jax.tree.map(jnp.mean, output.metrics)}
        state = LearnerState(params, target_params, opt_state, num_updates)
        return state, output.priority, metrics

    def gradient(state: LearnerState, *batch: Any) -> Params:
        return differentiate(split_collections(state.params)[0], state, *batch)[1]

    return Learner(init, update, gradient)
