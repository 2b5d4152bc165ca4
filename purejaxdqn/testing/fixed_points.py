"""What a loss can converge to: the known fixed points that `check_loss` judges by.

A `FixedPoint` is the target of a transition where the online and the target network agree. It is
written in plain NumPy, apart from the losses' own code. The loss converges to the table of action
values that equals its expected targets. All functions work on any leading axes: `q_t [..., A]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

Bootstrap = Literal["target", "online", "both", "none"]
Loss = TypeVar("Loss", bound=Callable[..., Any])
Rows = np.ndarray  # `[..., A]`, or `[...]` without the actions
_ValueOf = Callable[[Rows], Rows]  # `[..., A] -> [...]`


class FixedPoint(NamedTuple):
    """What a loss converges to.

    Attributes:
      name: for messages.
      target: `(q_tm1 [..., A], a_tm1 [...], r_t [...], discount_t [...], q_t [..., A]) -> [...]`,
        NumPy in and out: where both networks agree, the target of `q_tm1[a_tm1]`.
      near_misses: `(what is wrong, FixedPoint)` of common mistakes. `check_loss` uses them to say
        what is wrong with a loss that makes one.
    """

    name: str
    target: Callable[..., Rows]
    near_misses: tuple[tuple[str, Any], ...] = ()


def take_value(q_values: Rows, action: Rows) -> Rows:
    """Takes the values `[...]` of actions `[...]` out of action values `[..., A]`."""
    return np.take_along_axis(q_values, np.expand_dims(action, -1), -1)[..., 0]


def _find_highest(q_values: Rows) -> Rows:
    return q_values.max(-1)


def _logsumexp(x: Rows) -> Rows:
    highest = x.max(-1)
    return highest + np.log(np.exp(x - np.expand_dims(highest, -1)).sum(-1))


def _make_bellman(
    name: str, value: _ValueOf, undiscounted: Callable[[Rows], Any] = lambda q_t: 0.0
) -> FixedPoint:
    return FixedPoint(
        name,
        lambda q_tm1, a_tm1, r_t, discount_t, q_t: (
            r_t + discount_t * value(q_t) + undiscounted(q_t)
        ),
    )


OPTIMAL = _make_bellman("optimal", _find_highest)
"""The optimal values: Bellman's optimality equation."""


RETURN = _make_bellman("return", lambda q_t: 0 * q_t.max(-1))
"""The mean of `r_t`, for losses whose `r_t` is a whole return: they do not bootstrap."""


def epsilon_greedy(epsilon: Any) -> FixedPoint:
    """Makes the values of a policy that is greedy but for a share `epsilon` of random actions."""
    name = f"epsilon_greedy({epsilon})"
    others: _ValueOf = lambda q_t: q_t.sum(-1) - q_t.max(-1)  # noqa: E731
    mistakes: dict[str, _ValueOf] = {
        "epsilon is shared by the other actions alone, epsilon / (A - 1) each: a random action is "
        "drawn from all, epsilon / A each": (
            lambda q_t: (1 - epsilon) * q_t.max(-1) + epsilon * others(q_t) / (q_t.shape[-1] - 1)
        ),
        "epsilon and 1 - epsilon are swapped": (
            lambda q_t: epsilon * q_t.max(-1) + (1 - epsilon) * q_t.mean(-1)
        ),
        "the random actions' values are summed: their mean belongs": (
            lambda q_t: q_t.max(-1) + epsilon * others(q_t)
        ),
        "the highest value counts in full, and not 1 - epsilon times": (
            lambda q_t: q_t.max(-1) + epsilon * q_t.mean(-1)
        ),
    }
    right = _make_bellman(name, lambda q_t: (1 - epsilon) * q_t.max(-1) + epsilon * q_t.mean(-1))
    near_misses = ((wrong, _make_bellman(name, value)) for wrong, value in mistakes.items())
    return right._replace(near_misses=tuple(near_misses))


def soft(temperature: Any) -> FixedPoint:
    """Makes the soft values: `temperature * log sum_a exp(q_t[a] / temperature)`, not the maximum.

    Args:
      temperature: above 0, in the unit of the action values.
    """

    def policy_mean(q_t: Rows) -> Rows:
        scaled = (q_t - q_t.max(-1, keepdims=True)) / temperature
        policy = np.exp(scaled - np.expand_dims(_logsumexp(scaled), -1))
        return (policy * q_t).sum(-1)

    def entropy(q_t: Rows) -> Rows:
        return _logsumexp(q_t / temperature) - policy_mean(q_t) / temperature

    def value_of_plain_softmax(q_t: Rows) -> Rows:
        policy = np.exp(q_t - np.expand_dims(_logsumexp(q_t), -1))
        return (policy * q_t).sum(-1) * (1 - temperature) + temperature * _logsumexp(q_t)

    mistakes: dict[str, _ValueOf] = {
        "the policy's entropy is missing (- temperature * log policy at obs_t)": policy_mean,
        "the temperature is missing: it is 1": _logsumexp,
        "q_t is not divided by the temperature": lambda q_t: temperature * _logsumexp(q_t),
        "q_t is multiplied by the temperature where it is to be divided by it": (
            lambda q_t: temperature * _logsumexp(q_t * temperature)
        ),
        "q_t is divided by the temperature, and its log-sum-exp is not multiplied by it": (
            lambda q_t: _logsumexp(q_t / temperature)
        ),
        "the policy's entropy has the wrong sign": (
            lambda q_t: policy_mean(q_t) - temperature * entropy(q_t)
        ),
        "the policy's entropy is not multiplied by the temperature": (
            lambda q_t: policy_mean(q_t) + entropy(q_t)
        ),
        "the policy is the softmax of q_t without the temperature": value_of_plain_softmax,
        "log A is taken off: it is the mean of the exponentials, and not their sum": (
            lambda q_t: temperature * (_logsumexp(q_t / temperature) - np.log(q_t.shape[-1]))
        ),
        "it is a soft minimum: the sign of the temperature is wrong": (
            lambda q_t: -temperature * _logsumexp(-q_t / temperature)
        ),
    }
    off = f"soft({temperature}), off"
    undiscounted = _make_bellman(off, policy_mean, lambda q_t: temperature * entropy(q_t))
    return _make_bellman(
        f"soft({temperature})", lambda q_t: temperature * _logsumexp(q_t / temperature)
    )._replace(
        near_misses=(
            *((wrong, _make_bellman(off, value)) for wrong, value in mistakes.items()),
            ("the policy's entropy is not multiplied by discount_t", undiscounted),
        )
    )


def munchausen(
    fixed_point: FixedPoint, temperature: Any, coefficient: Any, log_policy_min: Any
) -> FixedPoint:
    """Makes another fixed point, with the bonus of `purejaxdqn.losses.munchausen` in its reward.

    It is longer than other functions because it lists every near miss.
    """

    def log_policy(q_values: Rows, a_tm1: Rows) -> Rows:
        """Computes the temperature times the log-policy."""
        return take_value(q_values, a_tm1) - temperature * _logsumexp(q_values / temperature)

    def clipped(log_policy: Rows) -> Rows:
        return np.clip(log_policy, log_policy_min, 0.0)

    def right(q_tm1: Rows, a_tm1: Rows, q_t: Rows) -> Rows:
        return clipped(log_policy(q_tm1, a_tm1))

    def make(
        inner: FixedPoint,
        bonus: Callable[..., Rows] = right,
        coefficient: Any = coefficient,
        is_discounted: bool = False,
    ) -> FixedPoint:
        def target(q_tm1: Rows, a_tm1: Rows, r_t: Rows, discount_t: Rows, q_t: Rows) -> Rows:
            more = coefficient * bonus(q_tm1, a_tm1, q_t)
            r_t = r_t + (discount_t * more if is_discounted else more)
            return inner.target(q_tm1, a_tm1, r_t, discount_t, q_t)

        return FixedPoint(f"munchausen({inner.name}, {temperature}, {coefficient})", target)

    mistakes: dict[str, Callable[..., Rows]] = {
        "the Munchausen bonus has the wrong sign": lambda q_tm1, a, q_t: -right(q_tm1, a, q_t),
        "the bonus's log-policy is not clipped": lambda q_tm1, a, q_t: log_policy(q_tm1, a),
        "the bonus's log-policy is not multiplied by the temperature": (
            lambda q_tm1, a, q_t: clipped(log_policy(q_tm1, a) / temperature)
        ),
        "the bonus's log-policy is multiplied by the temperature after it is clipped": (
            lambda q_tm1, a, q_t: temperature * clipped(log_policy(q_tm1, a) / temperature)
        ),
        "the bonus's log-policy is that of action values without a temperature": (
            lambda q_tm1, a, q_t: clipped(temperature * (take_value(q_tm1, a) - _logsumexp(q_tm1)))
        ),
        "the bonus's log-policy is averaged over the actions: it is that of a_tm1": (
            lambda q_tm1, a, q_t: clipped(
                q_tm1 - temperature * np.expand_dims(_logsumexp(q_tm1 / temperature), -1)
            ).mean(-1)
        ),
        "the bonus is the policy's probability and not its logarithm": (
            lambda q_tm1, a, q_t: np.exp(log_policy(q_tm1, a) / temperature)
        ),
        "the bonus is that of the policy at obs_t and not at obs_tm1": (
            lambda q_tm1, a, q_t: clipped(log_policy(q_t, a))
        ),
    }
    return make(fixed_point)._replace(
        near_misses=(
            ("the Munchausen bonus is missing", fixed_point),
            ("the bonus is not multiplied by the coefficient", make(fixed_point, coefficient=1.0)),
            ("the bonus is discounted", make(fixed_point, is_discounted=True)),
            *((wrong, make(fixed_point, bonus)) for wrong, bonus in mistakes.items()),
            *((wrong, make(inner)) for wrong, inner in fixed_point.near_misses),
            (f"the maximum stands in the place of {fixed_point.name}", make(OPTIMAL)),
        )
    )


def persistent(coefficient: Any) -> FixedPoint:
    """Makes the values of `purejaxdqn.losses.persistent_advantage_learning_loss`."""

    def make(
        gap: Callable[[Rows, Rows], Rows] = np.minimum,
        factor: Any = coefficient,
        best: _ValueOf = _find_highest,
        is_discounted: bool = False,
    ) -> FixedPoint:
        def target(q_tm1: Rows, a_tm1: Rows, r_t: Rows, discount_t: Rows, q_t: Rows) -> Rows:
            gap_tm1, gap_t = (best(q) - take_value(q, a_tm1) for q in (q_tm1, q_t))
            lost = factor * gap(gap_tm1, np.where(discount_t > 0, gap_t, 0.0))
            lost = discount_t * lost if is_discounted else lost
            return r_t + discount_t * q_t.max(-1) - lost

        return FixedPoint(f"persistent({coefficient})", target)

    return make()._replace(
        near_misses=(
            ("the gaps have the wrong sign", make(factor=-coefficient)),
            ("the gap is not multiplied by the coefficient", make(factor=1.0)),
            ("the gap is discounted", make(is_discounted=True)),
            (
                "the gaps are those to the mean action value and not to the highest",
                make(best=lambda q_values: q_values.mean(-1)),
            ),
            ("the larger gap counts and not the smaller", make(np.maximum)),
            ("the gap at obs_tm1 alone counts (advantage learning)", make(lambda now, _: now)),
            ("the gap at obs_t alone counts", make(lambda _, then: then)),
        )
    )


def converges_to(
    fixed_point: FixedPoint | Callable[..., FixedPoint], bootstrap: Bootstrap = "target"
) -> Callable[[Loss], Loss]:
    """Declares, as a decorator, what a loss or a TD error converges to.

    Args:
      fixed_point: such as `OPTIMAL` or `soft(0.1)`; or a function that makes one, such as `soft`
        for a TD error whose argument `temperature` has a default.
      bootstrap: the network whose values at time t the loss bootstraps from.

    Returns:
      The decorator, which returns the loss itself.
    """

    def declare(loss: Loss) -> Loss:
        vars(loss).update(fixed_point=fixed_point, bootstrap=bootstrap)
        return loss

    return declare
