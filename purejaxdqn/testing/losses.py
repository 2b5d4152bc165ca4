"""Is a loss sound? Its contract, what its target is made of, and what it converges to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.losses.bellman import TDError, bellman_loss
from purejaxdqn.testing.cases import make_bench
from purejaxdqn.testing.contract import (
    ONE_TRANSITION,
    check_contract,
    check_error_sign,
    table_of,
)
from purejaxdqn.testing.convergence import check_fixed_point
from purejaxdqn.testing.fixed_points import OPTIMAL, Bootstrap, FixedPoint
from purejaxdqn.testing.known_losses import declared
from purejaxdqn.testing.report import Check, Report, attempt
from purejaxdqn.testing.targets import check_target
from purejaxdqn.types import LossFn, Network, Transition

TD_ERROR_ARGUMENTS = ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t", "q_t_online")
LOSS_ARGUMENTS = ("network", "params", "target_params", "transition", "key")
_DECLARED: Any = object()


class _Loss(NamedTuple):
    """A loss with what it declares."""

    name: str
    function: LossFn
    td_error: TDError | None
    fixed_point: FixedPoint | None
    bootstrap: Bootstrap


def check_loss(
    loss: LossFn | TDError,
    *,
    fixed_point: FixedPoint | Callable[..., Any] | None = _DECLARED,
    bootstrap: Bootstrap | None = None,
    discount: float = 0.99,
    network: Network | None = None,
    transitions: Transition | None = None,
    learns_other_actions: bool = False,
    learns_next_obs: bool = False,
) -> Report:
    """Checks a loss, prints a table with a row a check, and raises if one failed.

    One line in a test: `check_loss(my_loss)`. The rows:

    - It takes ONE transition, and gives a float, a priority of at least 0 and scalar metrics; the
      same arguments give the same bits, and no PRNG key is used twice.
    - Eager, compiled and mapped over a batch it says the same; the order of a batch does not count.
    - The gradient agrees with finite differences in float64; all is finite at values of a million,
      and where prediction and target agree.
    - A TD error is target less prediction, and no penalty is in it yet.
    - It is a semi-gradient: it reaches `q_tm1[a_tm1]`, no other action, nothing at time t, and not
      the target network; and it leads to the target.
    - What follows a terminal transition does not count.
    - Reward, discount and bootstrap enter the target as in a Bellman equation, and the values come
      from the network that is declared. A target that is not the declared one is named where it
      can be, and else what it differs by is said to hang on what.
    - Errors of both signs count alike, or as a quantile's fraction says; and a network of whole
      distributions is taught the whole distribution.
    - Iterated on small decision processes it converges to what is declared. One whose minimiser is
      not the mean (Huber, quantiles) is judged on deterministic ones and by known quantiles.

    Args:
      loss: a whole `LossFn`; or a TD error of six arguments, judged in `bellman_loss`.
      fixed_point: what it converges to, such as `purejaxdqn.testing.fixed_points.soft(0.1)`, or the
        function of a `FixedPoint`; None for a loss with none of its own, such as one with a
        regulariser. By default what the loss declares (`converges_to`), else the optimal values.
      bootstrap: the network whose values at time t are in the target: "target"; "online", for a
        loss without a target network; "both"; or "none", where `r_t` is a whole return. By default
        what the loss declares.
      discount: the largest gamma of the decision processes.
      network: the one that the loss is meant for, where it is none of `value_network`'s.
      transitions: `[B, ...]` that go with `network`; random ones with 4 numbers in an
        observation by default.
      learns_other_actions: True for a loss that is meant to move other actions than the one taken.
      learns_next_obs: True for a loss that is meant to learn from `obs_t` whatever the discount.

    Returns:
      The `Report`, all of whose rows passed.

    Raises:
      CheckError: an AssertionError with the message of every failure; its `report` has the rows.
    """
    report = loss_report(
        loss,
        fixed_point=fixed_point,
        bootstrap=bootstrap,
        discount=discount,
        network=network,
        transitions=transitions,
        learns_other_actions=learns_other_actions,
        learns_next_obs=learns_next_obs,
    )
    report.print()
    return report.raise_if_failed()


def loss_report(
    loss: LossFn | TDError,
    *,
    fixed_point: FixedPoint | Callable[..., Any] | None = _DECLARED,
    bootstrap: Bootstrap | None = None,
    discount: float = 0.99,
    network: Network | None = None,
    transitions: Transition | None = None,
    learns_other_actions: bool = False,
    learns_next_obs: bool = False,
) -> Report:
    """What `check_loss` prints, without printing or raising; the arguments are the same."""
    name = getattr(loss, "__qualname__", None) or repr(loss)
    made: list[_Loss] = []

    def recognise() -> str:
        made.append(_recognise(name, loss, fixed_point, bootstrap))
        return "a loss" if made[0].function is loss else "a TD error"

    checks = [attempt("is a TD error or a loss", recognise)]
    if not made:
        return Report(name, tuple(checks))
    subject = made[0]
    checks += check_contract(subject.function, network, transitions, learns_next_obs)
    table = table_of(subject.function, network)
    if table is None or not _runs(checks):
        return Report(name, tuple(checks))
    if subject.td_error is not None:
        sign = functools.partial(check_error_sign, subject.td_error)
        checks.append(attempt("the TD error is target less prediction", sign))
    bench = make_bench(subject.function, table)
    structure, wrong = check_target(
        bench,
        table,
        subject.fixed_point,
        subject.bootstrap,
        learns_other_actions,
        learns_next_obs,
    )
    checks += structure
    if subject.fixed_point is None:
        checks.append(Check("fixed point", None, "", "none is declared: it is not judged"))
    else:
        checks += check_fixed_point(
            subject.function,
            table,
            bench,
            subject.fixed_point,
            subject.bootstrap,
            discount,
            wrong or _as_said(checks),
        )
    return Report(name, tuple(checks))


def _as_said(checks: list[Check]) -> str:
    failed = next((check.name for check in checks if check.passed is False), None)
    return f"see what is said of: {failed}" if failed else ""


def _runs(checks: list[Check]) -> bool:
    return next(check.passed is not False for check in checks if check.name == ONE_TRANSITION)


def _recognise(name: str, loss: Any, fixed_point: Any, bootstrap: Bootstrap | None) -> _Loss:
    """A loss out of what may be a TD error.

    Raises:
      AssertionError: if it is neither.
    """
    names = [*_required(loss)]
    known = set(names) & set(TD_ERROR_ARGUMENTS)
    if len(known) == len(TD_ERROR_ARGUMENTS) and tuple(names[:6]) != TD_ERROR_ARGUMENTS:
        swapped = [
            f"{mine} where {theirs} comes"
            for mine, theirs in zip(names, TD_ERROR_ARGUMENTS, strict=False)
            if mine != theirs
        ]
        raise AssertionError(
            f"takes ({', '.join(names)}): {'; '.join(swapped)} (swapped arguments). bellman_loss "
            f"passes ({', '.join(TD_ERROR_ARGUMENTS)}) by their places"
        )
    is_td_error = len(names) == len(TD_ERROR_ARGUMENTS)
    if not is_td_error and len(names) != len(LOSS_ARGUMENTS):
        factory = "; if it makes a loss, call it and pass what it gives" if len(names) < 4 else ""
        raise AssertionError(
            f"takes ({', '.join(names)}): a TD error takes ({', '.join(TD_ERROR_ARGUMENTS)}), a "
            f"loss ({', '.join(LOSS_ARGUMENTS)}){factory}"
        )
    own, own_bootstrap = declared(loss)
    if fixed_point is _DECLARED:
        fixed_point = own or OPTIMAL
    elif fixed_point is not None and not isinstance(fixed_point, FixedPoint):
        fixed_point = FixedPoint(getattr(fixed_point, "__name__", "declared"), fixed_point)
    function = bellman_loss(loss) if is_td_error else loss
    td_error = loss if is_td_error else None
    return _Loss(name, function, td_error, fixed_point, bootstrap or own_bootstrap)


def _required(loss: Any) -> Iterator[str]:
    """Names of the arguments that must be given; of `*args`, those of what fits."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(loss).parameters.values()
    for parameter in parameters:
        if parameter.kind in kinds and parameter.default is inspect.Parameter.empty:
            yield parameter.name
    if all(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        yield from TD_ERROR_ARGUMENTS if _is_td_error(loss) else LOSS_ARGUMENTS


def _is_td_error(loss: Any) -> bool:
    q_values, scalar = np.zeros(3, np.float32), np.float32(0.5)
    try:
        loss(q_values, np.int32(1), scalar, scalar, q_values, q_values)
    except Exception:
        return False
    return True
