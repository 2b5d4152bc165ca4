"""The loss that DQN's settings name."""

import functools
from typing import Any

import optax

from purejaxdqn.losses.bellman_loss import (
    Penalty,
    TDError,
    bellman_loss,
    ensemble_loss,
    masked_squared_error,
)
from purejaxdqn.losses.bellman_targets import (
    double_q_learning,
    expected_sarsa,
    minto,
    q_learning,
    soft_q_learning,
)
from purejaxdqn.losses.distributional import categorical_loss, hl_gauss_loss, quantile_loss
from purejaxdqn.losses.munchausen import munchausen, persistent_advantage_learning_loss
from purejaxdqn.types import LossFn


def from_config(config: Any, num_actions: int) -> LossFn[Any]:
    """Makes the loss that settings name, for an environment of so many actions.

    Of a `DQNConfig`, or whatever has its fields, it reads `representation`, `td_error`, `penalty`,
    `munchausen`, `label`, `ensemble`, and what these read; floats may be tracers.

    Raises:
      ValueError: for settings that `config.validate()` refuses.
    """
    threshold = config.huber_threshold
    is_double = config.td_error == "double_q_learning"
    penalties: dict[str, Penalty] = {
        "squared": optax.l2_loss,
        "huber": functools.partial(optax.huber_loss, delta=threshold),
        "masked_squared": masked_squared_error(num_actions),
    }
    td_errors: dict[str, TDError] = {
        "q_learning": q_learning,
        "double_q_learning": double_q_learning,
        "minto": minto,
        "expected_sarsa": functools.partial(expected_sarsa, epsilon=config.epsilon_end),
        "soft_q_learning": functools.partial(soft_q_learning, temperature=config.temperature),
    }
    make_loss = bellman_loss if config.ensemble == "none" else ensemble_loss
    loss_of = functools.partial(make_loss, penalty=penalties[config.penalty])
    raised = functools.partial(
        munchausen, temperature=config.temperature, coefficient=config.munchausen_coefficient
    )
    match config.representation, config.munchausen, config.td_error:
        case "categorical", _, name if config.label == "gaussian":
            return hl_gauss_loss(td_errors[name], config.label_width)
        case "categorical", _, _:
            return categorical_loss(double=is_double)
        case "quantile" | "implicit_quantile" | "proposed_quantile", True, _:
            # A soft target has no next action to pick.
            return raised(quantile_loss(False, threshold, config.temperature))
        case "quantile" | "implicit_quantile" | "proposed_quantile", False, _:
            return quantile_loss(is_double, threshold)
        case "values", True, _:
            return raised(loss_of(td_errors["soft_q_learning"]))
        case "values", False, name if name in td_errors:
            return loss_of(td_errors[name])
        case "values", False, "persistent_advantage_learning":
            penalty = penalties[config.penalty]
            return persistent_advantage_learning_loss(config.advantage_coefficient, penalty)
        case unknown:
            raise ValueError(f"no loss for {unknown}: config.validate() says what is allowed")
