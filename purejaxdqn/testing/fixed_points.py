"""What a loss can converge to: the known fixed points that `check_loss` judges by.

They are in plain NumPy, apart from the losses' own code, and take any leading axes: `q_t [..., A]`.
A loss converges to the table of action values that equals its expected targets.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

Bootstrap = Literal["target", "online", "both", "none"]
Loss = TypeVar("Loss", bound=Callable[..., Any])
Rows = np.ndarray  # `[..., A]`, or `[...]` without the actions
_ByMistake = dict[str, Rows]  # "" is the right one


class FixedPoint(NamedTuple):
    """What a loss converges to; its `target` and those of its near misses take and give NumPy."""

    name: str  # for messages
    # (q_tm1 [..., A], a_tm1 [...], r_t [...], discount_t [...], q_t [..., A]) -> [...]: where both
    # networks agree, the target of q_tm1[a_tm1]
    target: Callable[..., Rows]
    # (what is wrong, FixedPoint) of common mistakes, by which `check_loss` names one that it finds
    near_misses: tuple[tuple[str, Any], ...] = ()


def take_value(q_values: Rows, action: Rows) -> Rows:
    """Takes the values `[...]` of actions `[...]` out of action values `[..., A]`."""
    return np.take_along_axis(q_values, np.expand_dims(action, -1), -1)[..., 0]


def _logsumexp(x: Rows) -> Rows:
    return np.logaddexp.reduce(x, axis=-1)


def _make(name: str, targets: Callable[..., _ByMistake]) -> FixedPoint:
    """Makes a fixed point of the right target, with those of common mistakes as near misses."""
    _, *mistakes = targets(np.zeros(2), np.zeros((), int), *np.zeros((2, 1)), np.zeros(2))
    right, *near = (
        FixedPoint(f"{name}, off" if wrong else name, lambda *x, wrong=wrong: targets(*x)[wrong])
        for wrong in ("", *mistakes)
    )
    return right._replace(near_misses=tuple(zip(mistakes, near, strict=True)))


OPTIMAL = FixedPoint("optimal", lambda _, __, r_t, discount_t, q_t: r_t + discount_t * q_t.max(-1))
"""The optimal values: Bellman's optimality equation."""

RETURN = FixedPoint("return", lambda q_tm1, a_tm1, r_t, discount_t, q_t: r_t + 0 * discount_t)
"""The mean of `r_t`, for losses whose `r_t` is a whole return: they do not bootstrap."""


def epsilon_greedy(epsilon: Any) -> FixedPoint:
    """Makes the values of a policy that is greedy but for a share `epsilon` of random actions."""

    def targets(q_tm1: Rows, a_tm1: Rows, r_t: Rows, discount_t: Rows, q_t: Rows) -> _ByMistake:
        best, mean, others = q_t.max(-1), q_t.mean(-1), q_t.sum(-1) - q_t.max(-1)
        each = others / (q_t.shape[-1] - 1)
        values = {
            "": (1 - epsilon) * best + epsilon * mean,
            "epsilon is shared by the other actions alone, epsilon / (A - 1) each: a random action "
            "is drawn from all, epsilon / A each": (1 - epsilon) * best + epsilon * each,
            "epsilon and 1 - epsilon are swapped": epsilon * best + (1 - epsilon) * mean,
            "the random actions' values are summed: their mean belongs": best + epsilon * others,
            "the highest value counts in full, and not 1 - epsilon times": best + epsilon * mean,
        }
        return {wrong: r_t + discount_t * value for wrong, value in values.items()}

    return _make(f"epsilon_greedy({epsilon})", targets)


def soft(temperature: Any) -> FixedPoint:
    """Makes the soft values: `temperature * log sum_a exp(q_t[a] / temperature)`, not the maximum.

    The temperature is above 0, in the unit of the action values.
    """

    def policy_mean(q_t: Rows, temperature: Any) -> Rows:
        scaled = q_t / temperature
        return (np.exp(scaled - _logsumexp(scaled)[..., np.newaxis]) * q_t).sum(-1)

    def targets(q_tm1: Rows, a_tm1: Rows, r_t: Rows, discount_t: Rows, q_t: Rows) -> _ByMistake:
        right, plain = temperature * _logsumexp(q_t / temperature), _logsumexp(q_t)
        mean, flat_mean = policy_mean(q_t, temperature), policy_mean(q_t, 1.0)
        bonus = right - mean  # the temperature times the policy's entropy
        flat = flat_mean + temperature * (plain - flat_mean)
        swapped = temperature * _logsumexp(q_t * temperature)
        average = right - temperature * np.log(q_t.shape[-1])
        lowest = -temperature * _logsumexp(-q_t / temperature)
        values = {
            "": right,
            "the policy's entropy is missing (- temperature * log policy at obs_t)": mean,
            "the temperature is missing: it is 1": plain,
            "q_t is not divided by the temperature": temperature * plain,
            "q_t is multiplied by the temperature where it is to be divided by it": swapped,
            "q_t is divided by the temperature, and its log-sum-exp is not multiplied by it": (
                right / temperature
            ),
            "the policy's entropy has the wrong sign": mean - bonus,
            "the policy's entropy is not multiplied by the temperature": mean + bonus / temperature,
            "the policy is the softmax of q_t without the temperature": flat,
            "log A is taken off: it is the mean of the exponentials, and not their sum": average,
            "it is a soft minimum: the sign of the temperature is wrong": lowest,
        }
        return {wrong: r_t + discount_t * value for wrong, value in values.items()} | {
            "the policy's entropy is not multiplied by discount_t": r_t + discount_t * mean + bonus
        }

    return _make(f"soft({temperature})", targets)


def munchausen(
    fixed_point: FixedPoint, temperature: Any, coefficient: Any, log_policy_min: Any
) -> FixedPoint:
    """Makes another fixed point, with the bonus of `purejaxdqn.losses.munchausen` in its reward."""

    def bonuses(q_tm1: Rows, a_tm1: Rows, discount_t: Rows, q_t: Rows) -> _ByMistake:
        def clip(log_policy: Rows) -> Rows:
            return np.clip(log_policy, log_policy_min, 0.0)

        # The temperature times the log-policies.
        all_tm1, all_t = (
            q - temperature * _logsumexp(q / temperature)[..., np.newaxis] for q in (q_tm1, q_t)
        )
        log_policy, late = (take_value(x, a_tm1) for x in (all_tm1, all_t))
        plain = temperature * (take_value(q_tm1, a_tm1) - _logsumexp(q_tm1))
        right, unscaled = clip(log_policy), clip(log_policy / temperature)
        rescaled = temperature * unscaled
        average, probability = clip(all_tm1).mean(-1), np.exp(log_policy / temperature)
        scaled = {
            "": right,
            "the bonus is discounted": discount_t * right,
            "the Munchausen bonus has the wrong sign": -right,
            "the bonus's log-policy is not clipped": log_policy,
            "the bonus's log-policy is not multiplied by the temperature": unscaled,
            "the bonus's log-policy is multiplied by the temperature after it is clipped": rescaled,
            "the bonus's log-policy is that of action values without a temperature": clip(plain),
            "the bonus's log-policy is averaged over the actions: it is that of a_tm1": average,
            "the bonus is the policy's probability and not its logarithm": probability,
            "the bonus is that of the policy at obs_t and not at obs_tm1": clip(late),
        }
        return {wrong: coefficient * bonus for wrong, bonus in scaled.items()} | {
            "the Munchausen bonus is missing": 0 * right,
            "the bonus is not multiplied by the coefficient": right,
        }

    def make(inner: FixedPoint, wrong: str = "") -> FixedPoint:
        def target(q_tm1: Rows, a_tm1: Rows, r_t: Rows, discount_t: Rows, q_t: Rows) -> Rows:
            bonus = bonuses(q_tm1, a_tm1, discount_t, q_t)[wrong]
            return inner.target(q_tm1, a_tm1, r_t + bonus, discount_t, q_t)

        return FixedPoint(f"munchausen({inner.name}, {temperature}, {coefficient})", target)

    _, *mistakes = bonuses(np.zeros(2), np.zeros((), int), np.zeros(()), np.zeros(2))
    near_misses = (
        *((wrong, make(fixed_point, wrong)) for wrong in mistakes),
        *((wrong, make(inner)) for wrong, inner in fixed_point.near_misses),
        (f"the maximum stands in the place of {fixed_point.name}", make(OPTIMAL)),
    )
    return make(fixed_point)._replace(near_misses=near_misses)


def persistent(coefficient: Any) -> FixedPoint:
    """Makes the values of `purejaxdqn.losses.persistent_advantage_learning_loss`."""

    def targets(q_tm1: Rows, a_tm1: Rows, r_t: Rows, discount_t: Rows, q_t: Rows) -> _ByMistake:
        optimal = r_t + discount_t * q_t.max(-1)
        gap, gap_t = (q.max(-1) - take_value(q, a_tm1) for q in (q_tm1, q_t))
        mean_gap, mean_gap_t = (q.mean(-1) - take_value(q, a_tm1) for q in (q_tm1, q_t))
        gap_t, mean_gap_t = (np.where(discount_t > 0, x, 0.0) for x in (gap_t, mean_gap_t))
        smaller, smaller_mean = np.minimum(gap, gap_t), np.minimum(mean_gap, mean_gap_t)
        penalties = {
            "": smaller,
            "the gaps have the wrong sign": -smaller,
            "the gap is discounted": discount_t * smaller,
            "the gaps are those to the mean action value and not to the highest": smaller_mean,
            "the larger gap counts and not the smaller": np.maximum(gap, gap_t),
            "the gap at obs_tm1 alone counts (advantage learning)": gap,
            "the gap at obs_t alone counts": gap_t,
        }
        return {wrong: optimal - coefficient * x for wrong, x in penalties.items()} | {
            "the gap is not multiplied by the coefficient": optimal - smaller
        }

    return _make(f"persistent({coefficient})", targets)


def rescaled(
    fixed_point: FixedPoint, rescale: Callable[[Rows], Rows], restore: Callable[[Rows], Rows]
) -> FixedPoint:
    """Makes another fixed point of values that the network puts out rescaled.

    Pohlen et al., "Observe and look further: achieving consistent performance on Atari" (2018),
    section 3.1: `rescale(r_t + discount_t * restore(value at time t))`, where `restore` is the
    inverse of `rescale`; both take and give NumPy.
    """

    def target(q_tm1: Rows, a_tm1: Rows, r_t: Rows, discount_t: Rows, q_t: Rows) -> Rows:
        true = fixed_point.target(restore(q_tm1), a_tm1, r_t, discount_t, restore(q_t))
        return rescale(true)

    return FixedPoint(f"rescaled({fixed_point.name})", target)


def is_bent(fixed_point: FixedPoint) -> bool:
    """Tells whether 1 more of the reward is not declared to be 1 more of the target."""
    q_values, action = np.array([[0.4, 1.5, -0.7]]), np.array([1])
    less, more = (
        fixed_point.target(q_values, action, np.array([r]), np.array([0.9]), q_values)
        for r in (0.3, 1.3)
    )
    return bool(np.abs(more - less - 1).max() > 1e-6)


def converges_to(
    fixed_point: FixedPoint | Callable[..., FixedPoint], bootstrap: Bootstrap = "target"
) -> Callable[[Loss], Loss]:
    """Declares, as a decorator that returns the loss itself, what a loss or TD error converges to.

    Args:
      fixed_point: such as `OPTIMAL` or `soft(0.1)`; or a function that makes one, such as `soft`
        for a TD error whose argument `temperature` has a default.
      bootstrap: the network whose values at time t the loss bootstraps from.
    """

    def declare(loss: Loss) -> Loss:
        vars(loss).update(fixed_point=fixed_point, bootstrap=bootstrap)
        return loss

    return declare
