"""The Bellman loss: a TD error under a penalty, as a loss of ONE transition."""

from __future__ import annotations

import collections
import inspect
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from purejaxdqn.losses.bellman_targets import q_learning
from purejaxdqn.losses.recipe import name_part, write_recipe
from purejaxdqn.types import Array, ConfigError, LossFn, LossOutput, Network, Params, Transition

TDError = Callable[..., Array]
Penalty = Callable[[Array], Array]

SELECTOR = "q_t_selector"
TD_ERROR_ARGUMENTS = ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t", SELECTOR)
ALIASES = {"q_t_value": "q_t"}  # what rlax.double_q_learning calls it


def masked_squared_error(num_actions: int) -> Penalty:
    """Makes a penalty: the mean square over all `A` outputs, of which one has an error.

    Some networks multiply their outputs by a one-hot action, and are trained on equally masked
    targets with the mean squared error over the outputs. Where the mask is 0 there is no error. So
    the loss is the square of the TD error divided by `A`, that is `2 / A` times `optax.l2_loss`.

    Args:
      num_actions: `A`.

    Returns:
      `td_error [] -> loss []`, a penalty for `bellman_loss`.
    """

    def masked_squared(td_error: Array) -> Array:
        return jnp.square(td_error) / num_actions

    return masked_squared


def check_arguments(td_error: TDError) -> None:
    """Refuses a TD error that `bellman_loss` could not call.

    Args:
      td_error: must have the arguments `q_tm1`, `a_tm1`, `r_t`, `discount_t` and `q_t` (or
        `q_t_value`), in any order, and may have `q_t_selector`. All others need a default.

    Raises:
      ConfigError: names the argument that is missing or unknown.
    """
    name = getattr(td_error, "__qualname__", repr(td_error))
    rule = (
        f"a TD error takes {', '.join(TD_ERROR_ARGUMENTS[:-1])} by these names (q_t may be called "
        f"q_t_value), and {SELECTOR} where it looks at the online network's values at time t"
    )
    try:
        parameters = inspect.signature(td_error).parameters
    except (TypeError, ValueError):
        raise ConfigError(
            f"td_error ({name}) does not say what arguments it takes: {rule}. Wrap it in a function"
        ) from None
    known = {ALIASES.get(argument, argument) for argument in parameters}
    if missing := [x for x in TD_ERROR_ARGUMENTS[:-1] if x not in known]:
        raise ConfigError(
            f"td_error ({name}) takes ({', '.join(parameters)}), without {', '.join(missing)}: "
            f"{rule}. Name its arguments so, also those that it does not use"
        )
    unknown = [
        argument
        for argument, parameter in parameters.items()
        if ALIASES.get(argument, argument) not in TD_ERROR_ARGUMENTS
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if unknown:
        renamed = f"; q_t_online is now {SELECTOR}" if "q_t_online" in unknown else ""
        raise ConfigError(
            f"td_error ({name}) needs {', '.join(unknown)}, which bellman_loss does not know: "
            f"{rule}{renamed}. Give what else it takes a default, or a value with functools.partial"
        )


def call_by_name(td_error: TDError, arguments: dict[str, Array]) -> Array:
    """Calls a TD error with those of the arguments that it takes.

    Args:
      td_error: one that `check_arguments` lets pass.
      arguments: by their names in `TD_ERROR_ARGUMENTS`.

    Returns:
      What it gives.
    """
    signature = inspect.signature(td_error)
    passed: collections.OrderedDict[str, Array] = collections.OrderedDict()
    for argument in signature.parameters:
        known = ALIASES.get(argument, argument)
        if known in arguments:
            passed[argument] = arguments[known]
    bound = inspect.BoundArguments(signature, passed)  # each in the place that its name has
    return td_error(*bound.args, **bound.kwargs)


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

    def loss_fn(
        network: Network[Any],
        params: Params,
        target_params: Params,
        transition: Transition,
        key: Array,
    ) -> LossOutput:
        key_tm1, key_t, selector_key = jax.random.split(key, 3)

        def values(params: Params, obs: Array, key: Array) -> Array:
            return network.action_values(network.apply(params, obs, key))

        q_tm1 = values(params, transition.obs_tm1, key_tm1)
        arguments = {
            "q_tm1": q_tm1,
            "a_tm1": transition.a_tm1,
            "r_t": transition.r_t,
            "discount_t": transition.discount_t,
            "q_t": values(target_params, transition.obs_t, key_t),
        }
        if SELECTOR in inspect.signature(td_error).parameters:
            arguments[SELECTOR] = values(params, transition.obs_t, selector_key)
        error = call_by_name(td_error, arguments)
        chex.assert_rank(error, 0)
        metrics = {"q_value": q_tm1[transition.a_tm1]}
        return LossOutput(loss=penalty(error), priority=jnp.abs(error), metrics=metrics)

    name = f"bellman_loss({name_part(td_error)}, {name_part(penalty)})"
    return write_recipe(loss_fn, name, bellman_loss, td_error=td_error, penalty=penalty)
