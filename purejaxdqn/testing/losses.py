"""Checks of a loss: its contract, the parts of its target, and what it converges to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from purejaxdqn.losses.bellman import (
    ALIASES,
    SELECTOR,
    TD_ERROR_ARGUMENTS,
    TDError,
    bellman_loss,
)
from purejaxdqn.testing.cases import make_bench
from purejaxdqn.testing.contract import (
    ONE_TRANSITION,
    check_contract,
    check_error_sign,
    table_of,
)
from purejaxdqn.testing.convergence import check_fixed_point
from purejaxdqn.testing.fixed_points import OPTIMAL, Bootstrap, FixedPoint
from purejaxdqn.testing.known_losses import find_declared
from purejaxdqn.testing.report import Check, Report, attempt
from purejaxdqn.testing.targets import check_target
from purejaxdqn.types import ConfigError, LossFn, Network, Transition

LOSS_ARGUMENTS = ("network", "params", "target_params", "transition", "key")
_DECLARED: Any = object()


class _Loss(NamedTuple):
    """A loss with what it declares."""

    name: str
    function: LossFn[Any]
    td_error: TDError | None
    fixed_point: FixedPoint | None
    bootstrap: Bootstrap


def check_loss(
    loss: LossFn[Any] | TDError,
    *,
    fixed_point: FixedPoint | Callable[..., Any] | None = _DECLARED,
    bootstrap: Bootstrap | None = None,
    discount: float = 0.99,
    network: Network[Any] | None = None,
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
      loss: a whole `LossFn`; or a TD error, judged in `bellman_loss`.
      fixed_point: what it converges to, such as `purejaxdqn.testing.fixed_points.soft(0.1)`, or
        the function of a `FixedPoint`; None for a loss with none of its own, such as one with a
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
    loss: LossFn[Any] | TDError,
    *,
    fixed_point: FixedPoint | Callable[..., Any] | None = _DECLARED,
    bootstrap: Bootstrap | None = None,
    discount: float = 0.99,
    network: Network[Any] | None = None,
    transitions: Transition | None = None,
    learns_other_actions: bool = False,
    learns_next_obs: bool = False,
) -> Report:
    """Makes the report of `check_loss`, without printing or raising; same arguments."""
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
    """Makes a loss out of what may be a TD error; what it is says the names of its arguments.

    Raises:
      AssertionError: if it is neither.
    """
    parameters = inspect.signature(loss).parameters
    is_td_error = not {*TD_ERROR_ARGUMENTS, *ALIASES}.isdisjoint(parameters)
    if is_td_error:
        try:
            function = bellman_loss(loss)
        except ConfigError as error:
            raise AssertionError(str(error)) from error
    else:
        _check_loss_arguments(parameters.values())
        function = loss
    own, own_bootstrap = find_declared(loss)
    if fixed_point is _DECLARED:
        fixed_point = own or OPTIMAL
    elif fixed_point is not None and not isinstance(fixed_point, FixedPoint):
        fixed_point = FixedPoint(getattr(fixed_point, "__name__", "declared"), fixed_point)
    td_error = loss if is_td_error else None
    return _Loss(name, function, td_error, fixed_point, bootstrap or own_bootstrap)


def _check_loss_arguments(parameters: Iterable[inspect.Parameter]) -> None:
    """Refuses a loss that the learner could not call with five arguments by their places."""
    if all(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return
    names = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    rule = (
        f"a TD error takes {', '.join(TD_ERROR_ARGUMENTS)} by these names (without {SELECTOR}, if "
        f"it has no use for it), a loss ({', '.join(LOSS_ARGUMENTS)}) by their places"
    )
    factory = "; if it makes a loss, call it and pass what it gives" if len(names) < 4 else ""
    if len(names) != len(LOSS_ARGUMENTS):
        raise AssertionError(f"takes ({', '.join(names)}): {rule}{factory}")
    swapped = [
        f"{mine} where {theirs} comes"
        for mine, theirs in zip(names, LOSS_ARGUMENTS, strict=True)
        if mine != theirs and mine in LOSS_ARGUMENTS
    ]
    if swapped:
        raise AssertionError(
            f"takes ({', '.join(names)}): {'; '.join(swapped)} (swapped arguments): {rule}"
        )
