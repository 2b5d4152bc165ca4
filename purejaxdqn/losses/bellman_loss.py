"""The Bellman loss: a TD error under a penalty; and what all losses have, such as a recipe."""

import collections
import inspect
from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from purejaxdqn.losses.bellman_targets import q_learning
from purejaxdqn.types import (
    Array,
    ConfigError,
    LossFn,
    LossOutput,
    Network,
    Output,
    Transition,
    ensure,
    ensure_function,
    ensure_whole,
)

TDError = Callable[..., Array]
Penalty = Callable[[Array], Array]

SELECTOR = "q_t_selector"
TD_ERROR_ARGUMENTS = ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t", SELECTOR)
ALIASES = {"q_t_value": "q_t"}  # what rlax.double_q_learning calls it


class Recipe(NamedTuple):
    """Which function made a loss, such as `bellman_loss`, and of what; numbers may be tracers."""

    maker: Callable[..., LossFn[Any]]
    arguments: dict[str, Any]


def write_recipe(
    loss_fn: LossFn[Output], name: str, maker: Callable[..., LossFn[Any]], /, **arguments: Any
) -> LossFn[Output]:
    """Writes on a loss how it was made, and its `name` in results files, and returns it."""
    vars(loss_fn)["recipe"] = Recipe(maker, arguments)
    loss_fn.__qualname__ = name  # type: ignore[attr-defined]
    return loss_fn


def name_part(part: Any) -> str:
    """Names a function that a loss is made of, such as a penalty, for the loss's own name."""
    return getattr(part, "__name__", repr(part))


def masked_squared_error(num_actions: int) -> Penalty:
    """Makes a penalty `td_error [] -> loss []`: the mean square over all `A` outputs.

    Some networks multiply their outputs by a one-hot action, and are trained on equally masked
    targets with the mean squared error over the outputs. Where the mask is 0 there is no error. So
    the loss is the square of the TD error divided by `A`, that is `2 / A` times `optax.l2_loss`.
    """
    ensure_whole("num_actions", num_actions)

    def masked_squared(td_error: Array) -> Array:
        return jnp.square(td_error) / num_actions

    return masked_squared


def check_arguments(td_error: TDError) -> None:
    """Refuses a TD error that `bellman_loss` could not call."""
    name = getattr(td_error, "__qualname__", repr(td_error))
    *needed, _ = TD_ERROR_ARGUMENTS
    rule = (
        f"a TD error takes {', '.join(needed)} by these names (q_t may be called "
        f"q_t_value), and {SELECTOR} where it looks at the online network's values at time t"
    )
    try:
        parameters = inspect.signature(td_error).parameters
    except (TypeError, ValueError):
        raise ConfigError(
            f"td_error ({name}) does not say what arguments it takes: {rule}. Wrap it in a function"
        ) from None
    known = {ALIASES.get(x, x): parameter for x, parameter in parameters.items()}
    if missing := [x for x in needed if x not in known]:
        raise ConfigError(
            f"td_error ({name}) takes ({', '.join(parameters):.100}), without "
            f"{', '.join(missing)}: {rule}. Name its arguments so, also those that it does not use"
        )
    # The values of `*args` and `**kwargs` may be none at all.
    required = [x for x, p in known.items() if p.default is p.empty and "VAR" not in p.kind.name]
    if unknown := [x for x in required if x not in TD_ERROR_ARGUMENTS]:
        renamed = f"; q_t_online is now {SELECTOR}" if "q_t_online" in unknown else ""
        raise ConfigError(
            f"td_error ({name}) needs {', '.join(unknown):.100}, which bellman_loss does not know: "
            f"{rule}{renamed}. Give what else it takes a default, or a value with functools.partial"
        )


def call_by_name(td_error: TDError, arguments: dict[str, Array]) -> Array:
    """Calls a TD error with those of the `TD_ERROR_ARGUMENTS` by name that it takes."""
    signature = inspect.signature(td_error)
    known = {name: ALIASES.get(name, name) for name in signature.parameters}
    passed = {name: arguments[x] for name, x in known.items() if x in arguments}
    # Each in the place that its name has.
    bound = inspect.BoundArguments(signature, collections.OrderedDict(passed))
    return td_error(*bound.args, **bound.kwargs)


class Outputs(NamedTuple, Generic[Output]):
    """What the networks say of ONE transition."""

    online_tm1: Output  # of the online network, at t - 1
    target_t: Output  # of the target network, at t
    q_tm1: Array  # [A] the action values of `online_tm1`
    q_t: Array  # [A] those of `target_t`
    q_t_selector: Array  # [A] those that choose an action at t


def loss_of_outputs(
    measure: Callable[[Outputs[Output], Transition], LossOutput], double: bool
) -> LossFn[Output]:
    """Makes a loss of what two networks put out.

    With `double` the online network chooses actions at t, and does not look at `obs_t` otherwise.
    """
    ensure(isinstance(double, bool), "double", double, "True or False")

    def loss_fn(
        network: Network[Any], params: Any, target_params: Any, transition: Transition, key: Array
    ) -> LossOutput:
        key_tm1, key_t, selector_key = jax.random.split(key, 3)
        online_tm1 = network.apply(params, transition.obs_tm1, key_tm1)
        target_t = network.apply(target_params, transition.obs_t, key_t)
        selector = network.apply(params, transition.obs_t, selector_key) if double else target_t
        values = map(network.action_values, (online_tm1, target_t, selector))
        return measure(Outputs(online_tm1, target_t, *values), transition)

    return loss_fn


def bellman_loss(td_error: TDError = q_learning, penalty: Penalty = optax.l2_loss) -> LossFn[Any]:
    """Makes a loss from a TD error and a penalty.

    It stops no gradient. The TD error knows what its target is, and stops the gradient there.

    Args:
      td_error: such as `q_learning`, or a function of rlax with the same arguments. It is called by
        the names of its arguments: `q_tm1` `[A]`, `a_tm1` `[]`, `r_t` `[]`, `discount_t` `[]`,
        `q_t` `[A]` (the target network's values, also called `q_t_value`), and, if it has such an
        argument, `q_t_selector` `[A]` (the online network's values at time t). Without that
        argument the online network does not look at `obs_t`.
      penalty: `[] -> []`, such as `optax.l2_loss` (half the square; Mnih et al. 2015,
        equation 2) or `functools.partial(optax.huber_loss, delta=1.0)`.

    Returns:
      A `LossFn` whose priority is the absolute TD error.

    Raises:
      ConfigError: if the TD error lacks one of these arguments, or needs another one.
    """
    check_arguments(td_error)
    ensure_function("penalty", penalty, "optax.l2_loss")

    def measure(outputs: Outputs[Any], transition: Transition) -> LossOutput:
        error = find_error(td_error, outputs, transition)
        return measure_error(error, outputs.q_tm1[transition.a_tm1], penalty)

    loss_fn = loss_of_outputs(measure, takes_selector(td_error))
    name = f"bellman_loss({name_part(td_error)}, {name_part(penalty)})"
    return write_recipe(loss_fn, name, bellman_loss, td_error=td_error, penalty=penalty)


def ensemble_loss(td_error: TDError = q_learning, penalty: Penalty = optax.l2_loss) -> LossFn[Any]:
    """Makes the loss of a `networks.ensemble`, of which each transition teaches one member.

    Lan, Pan, Fyshe and White, "Maxmin Q-learning: controlling the estimation bias of Q-learning"
    (2020), algorithm 1, with the smallest of the members' values: the target is made of the values
    that are read of all members, and the prediction is one member's, which is drawn anew for each
    transition. The arguments, the priority and what is raised are those of `bellman_loss`; the
    metric `member_spread` `[]` is the deviation of the members' values of the action taken.
    """
    check_arguments(td_error)
    ensure_function("penalty", penalty, "optax.l2_loss")

    def loss_fn(
        network: Network[Any], params: Any, target_params: Any, transition: Transition, key: Array
    ) -> LossOutput:
        draw_key, key = jax.random.split(key)

        def measure(outputs: Outputs[Any], transition: Transition) -> LossOutput:
            members = jnp.atleast_2d(outputs.online_tm1)  # [K, A]
            q_tm1 = members[jax.random.randint(draw_key, (), 0, len(members))]
            error = find_error(td_error, outputs._replace(q_tm1=q_tm1), transition)
            output = measure_error(error, outputs.q_tm1[transition.a_tm1], penalty)
            spread = jax.lax.stop_gradient(jnp.std(members[:, transition.a_tm1]))
            return output._replace(metrics={**output.metrics, "member_spread": spread})

        learn = loss_of_outputs(measure, takes_selector(td_error))
        return learn(network, params, target_params, transition, key)

    name = f"ensemble_loss({name_part(td_error)}, {name_part(penalty)})"
    return write_recipe(loss_fn, name, ensemble_loss, td_error=td_error, penalty=penalty)


def takes_selector(td_error: TDError) -> bool:
    """Tells whether a TD error looks at the online network's values at time t."""
    return SELECTOR in inspect.signature(td_error).parameters


def find_error(td_error: TDError, outputs: Outputs[Any], transition: Transition) -> Array:
    """Computes the TD error `[]` of what both networks put out."""
    _, _, q_tm1, q_t, q_t_selector = outputs
    _, a_tm1, r_t, discount_t, *_ = transition
    values = (q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector)
    return call_by_name(td_error, dict(zip(TD_ERROR_ARGUMENTS, values, strict=True)))


def measure_error(error: Array, q_value: Array, penalty: Penalty) -> LossOutput:
    """Makes the output of a loss from a TD error `[]` and the value `[]` of the action taken."""
    chex.assert_rank(error, 0)
    return LossOutput(penalty(error), priority=jnp.abs(error), metrics={"q_value": q_value})
