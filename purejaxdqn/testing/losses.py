"""Checks of a TD error and of a loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.learner import RESERVED_METRICS
from purejaxdqn.losses.bellman import TDError
from purejaxdqn.networks import MLP, make_network
from purejaxdqn.testing.common import (
    COMPILABLE,
    NUM_LANES,
    host_rng,
    largest,
    output_types,
    require,
    require_close,
    require_finite,
    require_float_scalar,
    run,
)
from purejaxdqn.testing.networks import _ONE_OBSERVATION
from purejaxdqn.types import Array, LossFn, LossOutput, Network, Params, Transition

ONE_TRANSITION = (
    "It is a function of ONE transition: scalars without a batch axis, mapped over a batch with "
    f"vmap. {COMPILABLE}"
)


def check_td_error(td_error: TDError, key: Array, *, num_actions: int = 3) -> None:
    """Checks a TD error that is meant for `bellman_loss`, such as `q_learning`.

    - It works on ONE transition, under `jit`, `vmap` and `grad`, and gives one finite float.
    - It is a semi-gradient: the gradient reaches `q_tm1[a_tm1]` and nothing else, so that none
      flows through the target.
    - With a `discount_t` of 0, what comes from time t does not count.

    Args:
      td_error: `(q_tm1 [A], a_tm1 [], r_t [], discount_t [], q_t [A], q_t_online [A]) -> []`.
      key: `[]` PRNG key of the values that it is tried on.
      num_actions: `A`.

    Raises:
      AssertionError: if something is wrong.
    """
    names = ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t", "q_t_online")
    floats = tuple(i for i, name in enumerate(names) if name != "a_tm1")
    a_tm1 = np.arange(NUM_LANES, dtype=np.int32) % num_actions

    rng = host_rng(key)
    q_tm1, q_t, q_t_online = rng.normal(size=(3, NUM_LANES, num_actions)).astype(np.float32)
    r_t, discount_t = rng.uniform(0.5, 1, (2, NUM_LANES)).astype(np.float32)
    r_t -= 0.75

    def examine(*batch: Array) -> Any:
        q_tm1, a_tm1, r_t, _, q_t, q_t_online = batch
        ended = (q_tm1, a_tm1, r_t, jnp.zeros_like(r_t))
        batched = jax.vmap(td_error)
        return (
            td_error(*jax.tree.map(lambda x: x[0], batch)),
            batched(*batch),
            jax.vmap(jax.grad(td_error, argnums=floats))(*batch),
            (batched(*ended, q_t, q_t_online), batched(*ended, q_t + 1.0, 1.0 - q_t_online)),
        )

    values = jax.ShapeDtypeStruct((num_actions,), jnp.float32)
    scalar, action = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, jnp.int32))
    found = output_types(
        "the TD error of one transition",
        ONE_TRANSITION,
        td_error,
        *(values, action, scalar, scalar, values, values),
    )
    require_float_scalar(found, "the TD error of one transition")
    batch = (q_tm1, a_tm1, r_t, discount_t, q_t, q_t_online)
    alone, errors, grads, ended = run("the TD error", ONE_TRANSITION, examine, *batch)
    require_finite(errors, "the TD error")
    require_close(
        alone, errors[0], "one transition alone and in a batch differ", "write it for ONE of them"
    )
    for i, grad in zip(floats, grads, strict=True):
        require_finite(grad, f"the gradient of the TD error with respect to {names[i]}")
        require(
            names[i] == "q_tm1" or largest(grad) == 0,
            f"a gradient of up to {largest(grad):.3g} flows through the target to {names[i]}: "
            "wrap the target in jax.lax.stop_gradient",
        )
    is_taken = np.arange(num_actions) == a_tm1[:, np.newaxis]
    require(
        (grads[0][is_taken] != 0).all(),
        "no gradient reaches q_tm1[a_tm1]: stop that of the target alone, not of the prediction",
    )
    require(
        not grads[0][~is_taken].any(),
        f"a gradient of up to {largest(grads[0][~is_taken]):.3g} reaches q_tm1 of actions that "
        "were not taken: index it with a_tm1, and wrap what belongs to the target in "
        "jax.lax.stop_gradient",
    )
    require_close(
        ended[0],
        ended[1],
        "with discount_t = 0 (a terminated episode) the TD error depends on q_t or q_t_online",
        "multiply everything that comes from time t by discount_t",
    )


def check_loss(
    loss_fn: LossFn,
    key: Array,
    *,
    network: Network | None = None,
    transitions: Transition | None = None,
    terminal_ignores_next_obs: bool = True,
) -> None:
    """Checks a loss of ONE transition: see `LossFn` and `LossOutput`.

    - It works under `jit`, `vmap` and `grad`; loss, priority and metrics are finite scalars.
    - The gradient reaches the online network's weights, and not the target network's.
    - The same key gives the same bits.
    - What follows a terminated episode does not count.

    Args:
      loss_fn: the loss.
      key: `[]` PRNG key of everything that is drawn.
      network: the one that the loss is meant for; by default a small MLP of action values.
      transitions: `[B, ...]`, such as `replay.sample(state, key).transition`; by default random
        ones with 4 numbers in an observation.
      terminal_ignores_next_obs: False for a loss that learns from `obs_t` whatever the discount.

    Raises:
      AssertionError: if something is wrong.
    """
    network, transitions, params, target_params = _loss_inputs(key, network, transitions)
    one = jax.tree.map(lambda x: x[0], transitions)

    def losses(params: Params, target_params: Params, keys: Array) -> LossOutput:
        batched = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
        return batched(network, params, target_params, transitions, keys)

    def one_loss(params: Params, target_params: Params, key: Array) -> LossOutput:
        return loss_fn(network, params, target_params, jax.tree.map(jnp.asarray, one), key)

    def examine(params: Params, target_params: Params, keys: Array) -> Any:
        output = losses(params, target_params, keys)
        alone = one_loss(params, target_params, jax.random.clone(keys)[0])

        def mean_loss(params: Params, target_params: Params) -> Array:
            return jnp.mean(losses(params, target_params, jax.random.clone(keys)).loss)

        return alone, output, jax.grad(mean_loss, argnums=(0, 1))(params, target_params)

    weights, keys = (params, target_params), jax.random.split(key, len(transitions.r_t))
    output = output_types("the loss of one transition", ONE_TRANSITION, one_loss, *weights, key)
    require(
        isinstance(output, LossOutput),
        f"the loss returns {output!r}: it must return a LossOutput(loss, priority, metrics)",
    )
    require_float_scalar(output.loss, "LossOutput.loss")
    require_float_scalar(output.priority, "LossOutput.priority")
    require(
        isinstance(output.metrics, dict),
        f"LossOutput.metrics is {output.metrics!r}: it must be a dict of scalars, if only {{}}",
    )
    for name, metric in output.metrics.items():
        require(
            name not in RESERVED_METRICS,
            f"LossOutput.metrics has {name!r}, which names something else in results: rename it",
        )
        require_float_scalar(metric, f"LossOutput.metrics[{name!r}]")

    alone, output, (grads, target_grads) = run("the loss", ONE_TRANSITION, examine, *weights, keys)
    require_finite(output, "LossOutput")
    require(
        (output.priority >= 0).all(),
        f"a priority is {output.priority.min():.3g}: it must not be negative; take jnp.abs of it",
    )
    require_close(
        alone,
        jax.tree.map(lambda x: x[0], output),
        "one transition alone and in a batch have different losses",
        "write the loss for ONE transition",
    )
    require_finite(grads, "the gradient of the loss")
    require(
        largest(grads) > 0,
        "no gradient reaches the online weights, so that nothing would be learned: take the "
        "prediction from params, and stop the gradient of the target alone",
    )
    require(
        largest(target_grads) == 0,
        f"a gradient of up to {largest(target_grads):.3g} reaches target_params: wrap the target "
        "in jax.lax.stop_gradient",
    )
    if terminal_ignores_next_obs:
        check_terminal_ignores_next_obs(loss_fn, key, network=network, transitions=transitions)


def check_terminal_ignores_next_obs(
    loss_fn: LossFn,
    key: Array,
    *,
    network: Network | None = None,
    transitions: Transition | None = None,
) -> None:
    """Checks that `obs_t` does not count where `discount_t` is 0: nothing follows a terminal state.

    Args:
      loss_fn: the loss of ONE transition.
      key: `[]` PRNG key of everything that is drawn.
      network: as for `check_loss`.
      transitions: as for `check_loss`, at least two whose `obs_t` differ.

    Raises:
      AssertionError: if the loss, the priority or the gradient depend on `obs_t`.
    """
    network, transitions, *weights = _loss_inputs(key, network, transitions)
    no_discount: Any = np.zeros_like(transitions.discount_t)
    other_obs: Any = np.roll(transitions.obs_t, 1, axis=0)
    ended = transitions._replace(discount_t=no_discount)
    elsewhere = ended._replace(obs_t=other_obs)

    keys = jax.random.split(key, len(transitions.r_t))

    def examine(params: Params, target_params: Params, keys: Array) -> Any:
        def one(transition: Transition, key: Array) -> Any:
            def loss(params: Params) -> tuple[Array, Array]:
                output = loss_fn(network, params, target_params, transition, key)
                return output.loss, output.priority

            return jax.value_and_grad(loss, has_aux=True)(params)

        return jax.vmap(one)(ended, keys), jax.vmap(one)(elsewhere, jax.random.clone(keys))

    nothing, other = run("the gradient of the loss", ONE_TRANSITION, examine, *weights, keys)
    require_close(
        nothing,
        other,
        "with discount_t = 0 (a terminated episode) the loss, the priority or the gradient depends "
        "on obs_t",
        "multiply everything that comes from obs_t by discount_t. For a loss that is meant to "
        "learn from it all the same: check_loss(..., terminal_ignores_next_obs=False)",
    )


_SMALL_NETWORK = make_network(MLP((16,), 3))


def _loss_inputs(
    key: Array, network: Network | None, transitions: Transition | None
) -> tuple[Network, Transition, Params, Params]:
    """A network, transitions `[B, ...]` as NumPy arrays, and online and target weights."""
    rng = host_rng(key)
    obs: Any = rng.normal(size=(2, NUM_LANES, 4)).astype(np.float32)
    if transitions is not None:
        obs = np.asarray(transitions.obs_tm1)[np.newaxis]
    network = network or _SMALL_NETWORK

    def values(key: Array, obs: Array) -> Array:
        return network.action_values(network.apply(network.init(key, obs), obs))

    q_values = output_types(
        "the network that goes with the loss", _ONE_OBSERVATION, values, key, obs[0, 0]
    )
    num_actions = q_values.shape[0]
    if transitions is None:
        a_tm1: Any = rng.integers(0, num_actions, NUM_LANES, np.int32)
        r_t: Any = rng.normal(size=NUM_LANES).astype(np.float32)
        discount_t: Any = np.where(np.arange(NUM_LANES) % 4 == 3, 0.0, 0.99).astype(np.float32)
        transitions = Transition(obs[0], a_tm1, r_t, discount_t, obs[1])
    transitions = jax.tree.map(np.asarray, transitions)
    # An index that is out of range would be clamped without a word.
    require(
        transitions.a_tm1.max() < num_actions,
        f"a_tm1 reaches {transitions.a_tm1.max()}, but the network has {num_actions} actions: pass "
        "the network and the transitions that belong together",
    )
    init = jax.jit(network.init)
    online, target = (init(init_key, obs[0, 0]) for init_key in jax.random.split(key))
    return network, transitions, online, target
