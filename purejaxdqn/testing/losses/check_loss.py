"""Runs all the checks of this folder on one loss, judged by what it declares: `check_loss`."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn import losses
from purejaxdqn.losses.bellman_loss import ALIASES, TD_ERROR_ARGUMENTS, Recipe, TDError
from purejaxdqn.testing import fixed_points
from purejaxdqn.testing.fixed_points import OPTIMAL, RETURN, Bootstrap, FixedPoint, soft
from purejaxdqn.testing.losses import (
    convergence,
    distributions,
    fractions,
    gradients,
    several,
    target_parts,
)
from purejaxdqn.testing.losses.interface import (
    check_error_sign,
    check_interface,
    check_outputs,
    choose_table,
    fill_in,
    of_batch,
    of_trajectory,
    take_first,
)
from purejaxdqn.testing.losses.single_transitions import Subject, make_subject
from purejaxdqn.testing.report import Check, Report, attempt, print_and_raise, unprinted
from purejaxdqn.testing.tabular.table_networks import OutputTable
from purejaxdqn.types import LossFn, Network, Transition

LOSS_ARGUMENTS = ("network", "params", "target_params", "transition", "key")
DECLARED: Any = object()
_OF_BATCHES, _OF_TRAJECTORIES = "a loss of batches", "a loss of trajectories"
_SEVERAL = {_OF_BATCHES: several.check_batch, _OF_TRAJECTORIES: several.check_trajectory}
_NO_TABLE = (
    "the network's output is none that is known: say how it is made of action values and read, "
    "with outputs=OutputTable(encode, decode)"
)
_ROWS_ON_TABLES = (
    *("no gradient to the target network", "no gradient through the target"),
    *("the gradient reaches q_tm1[a_tm1]", "no gradient to other actions"),
    *("leads towards the target", "finite differences, float64", "finite at a million"),
    *("the reward counts once", "the discount counts once", "the bootstrap"),
    *("the target is the declared one", "with 2 and with 6 actions", "errors of both signs"),
    *("the penalty", "the priority", "the fixed point"),
)


@print_and_raise
def check_loss(
    loss: LossFn[Any] | TDError,
    *,
    fixed_point: FixedPoint | Callable[..., Any] | None = DECLARED,
    bootstrap: Bootstrap | None = None,
    discount: float = 0.99,
    network: Network[Any] | None = None,
    outputs: OutputTable | None = None,
    transitions: Transition | None = None,
    learns_other_actions: bool = False,
    learns_next_obs: bool = False,
) -> Report:
    """Checks a loss, prints a table with a row a check, and raises if one failed.

    One line in a test: `check_loss(my_loss)`. A loss of batches, or of trajectories, is judged on
    those of one transition first. The rows:

    - It takes ONE transition, and gives a float, a priority of at least 0 and scalar metrics; the
      same arguments give the same bits, and no PRNG key is used twice.
    - Eager, compiled and mapped over a batch it gives the same, whatever the batch's order.
    - The gradient agrees with finite differences in float64; all is finite at values of a million,
      and where prediction and target agree.
    - A TD error is target less prediction, and no penalty is in it yet.
    - It is a semi-gradient: it reaches `q_tm1[a_tm1]`, no other action, nothing at time t, and not
      the target network; and it leads to the target.
    - Observations after a terminal transition do not count; where a time limit cut the episode off
      the target is the same as elsewhere, or the transition is left out.
    - Reward, discount and bootstrap enter the target as in a Bellman equation, and the values come
      from the network that is declared. Where the target is not the declared one, the mistake is
      named if it is known; else the message says what the difference depends on.
    - Errors of both signs count alike, or as a quantile's fraction says, and at the end of an
      episode as elsewhere; a network of whole distributions is taught the whole distribution.
    - No target in a batch reads another transition. In a trajectory of greedy actions whose values
      are right there is nothing to learn, whatever lies behind its end.
    - With 2 and with 6 actions it is drawn to the declared target too, as with 3.
    - Fractions and weights of quantiles count as the network gives them, and a proposal of
      fractions has a loss of its own, whose gradient reaches nothing else.
    - Iterated on small decision processes it converges to the declared values. One whose minimiser
      is not the mean (Huber, quantiles) is judged on deterministic ones and by known quantiles.

    It is longer than other functions because it describes every row. `loss_report` has the same
    arguments, and neither prints nor raises.

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
      outputs: how its output is made of action values and read as such, `OutputTable(encode,
        decode)`, where it is another one. By default action values are repeated along all axes but
        the last, if `network` reads them so; else what needs a table is said to be not judged.
      transitions: `[B, ...]` that go with `network`; random ones with 4 numbers in an
        observation by default. All rows see the extras of the first one.
      learns_other_actions: True for a loss that is meant to move other actions than the one taken.
      learns_next_obs: True for a loss that is meant to learn from `obs_t` whatever the discount.

    Returns:
      The `Report`, or raises a `CheckError`, an AssertionError with it and every failure's message.
    """
    name = getattr(loss, "__qualname__", None) or repr(loss)
    found: list[Any] = []

    def recognise() -> str:
        made = _make_loss(loss)
        kinds = {"a TD error" if _is_td_error(loss) else "a loss": made}
        if "a loss" in kinds:
            kinds |= {_OF_BATCHES: of_batch(made), _OF_TRAJECTORIES: of_trajectory(made)}
        filled = {kind: fill_in(one, transitions) for kind, one in kinds.items()}
        fits = (x for x in filled if choose_table(filled[x], network, outputs) is not None)
        kind = next(fits, next(iter(kinds)))
        found.extend([filled[kind], find_declared(loss)])
        return kind

    checks = [attempt("is a TD error or a loss", recognise)]
    if not found:
        return Report(name, tuple(checks))
    loss_fn, declared = found
    if outputs is not None:
        checks.append(attempt("decode(encode(q)) is q", check_outputs, outputs))
        if not checks[-1].passed:
            return Report(name, tuple(checks))
    seen = (transitions, learns_next_obs, outputs, fixed_point is not None)
    rows = check_interface(loss_fn, network, *seen)
    checks += rows
    table = choose_table(loss_fn, network, outputs)
    if not rows[0].passed:
        return Report(name, tuple(checks))
    if table is None:
        checks += [Check(x, None, "", _NO_TABLE) for x in _ROWS_ON_TABLES]
        return Report(name, tuple(checks))
    if _is_td_error(loss):
        checks.append(attempt("the TD error is target less prediction", check_error_sign, loss))
    if fixed_point is DECLARED:
        fixed_point = declared.fixed_point or OPTIMAL
    elif fixed_point is not None and not isinstance(fixed_point, FixedPoint):
        quiet = np.errstate(all="ignore")(fixed_point)  # it may overflow at values of a thousand
        fixed_point = FixedPoint(getattr(fixed_point, "__name__", "declared"), quiet)
    told = (fixed_point, bootstrap or declared.bootstrap, learns_other_actions, learns_next_obs)
    try:
        subject = make_subject(loss_fn, table, *told)
    except Exception as error:
        message = f"raises {type(error).__name__} with float64 values: {error}"
        checks.append(Check("runs in float64", False, type(error).__name__, message))
    else:
        _check_subject(subject, discount, checks)
        check_several = _SEVERAL.get(checks[0].measured)
        if check_several is not None and fixed_point is not None:
            extras = {} if transitions is None else take_first(transitions.extras)
            checks += check_several(subject, loss, extras)
    return Report(name, tuple(checks))


loss_report = unprinted(check_loss)


def _is_td_error(loss: Any) -> bool:
    """Tells whether a function is a TD error, not a whole loss, by the names of its arguments."""
    return not {*TD_ERROR_ARGUMENTS, *ALIASES}.isdisjoint(inspect.signature(loss).parameters)


def _make_loss(loss: Any) -> LossFn[Any]:
    """Makes a loss out of what may be a TD error; raises what is wrong if it is neither."""
    if _is_td_error(loss):
        return losses.bellman_loss(loss)
    parameters = inspect.signature(loss).parameters.values()
    if all(p.kind is p.VAR_POSITIONAL for p in parameters):
        return loss
    needed = [p for p in parameters if p.default is p.empty]
    names = [p.name for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes = f"takes ({', '.join(names)})"
    rule = (
        f"a TD error takes {', '.join(TD_ERROR_ARGUMENTS)} by these names (without "
        f"{TD_ERROR_ARGUMENTS[-1]}, if it has no use for it), a loss ({', '.join(LOSS_ARGUMENTS)}) "
        "by their places"
    )
    if len(names) != len(LOSS_ARGUMENTS):
        hint = "; if it makes a loss, call it and pass what it gives" if len(names) < 4 else ""
        raise AssertionError(f"{takes}: {rule}{hint}")
    pairs = zip(names, LOSS_ARGUMENTS, strict=True)
    moved = [(mine, theirs) for mine, theirs in pairs if mine != theirs and mine in LOSS_ARGUMENTS]
    if swapped := [f"{mine} where {theirs} comes" for mine, theirs in moved]:
        raise AssertionError(f"{takes}: {'; '.join(swapped)} (swapped arguments): {rule}")
    return loss


def _check_subject(subject: Subject, discount: float, checks: list[Check]) -> None:
    """Adds the rows on gradient, target, penalty and fixed point."""
    fixed_point, representation = subject.fixed_point, subject.table.representation
    finite = attempt("finite at a million, and at zero", gradients.check_finite, subject)
    rows, wrong = [finite], ""
    if all(np.isfinite(x).all() for x in subject.answers):  # else nothing can be told
        rows = [*gradients.check_gradients(subject), finite]
        rows += target_parts.check_target_parts(subject)
        if fixed_point is not None:
            declared, wrong = target_parts.check_declared_target(subject)
            rows.append(declared)
            if declared.passed:
                sizes = "with 2 and with 6 actions"
                rows.append(attempt(sizes, target_parts.check_other_sizes, subject))
            if representation != "categorical":
                title = "errors of both signs" if representation == "values" else "the fractions"
                rows.append(attempt(title, gradients.check_asymmetry, subject))
                why = "what it bootstraps from moves with the prediction"
                each = "each transition counts alike"
                rows.append(attempt(each, gradients.check_weights, subject, why_not=why))
            if all(check.passed is not False for check in rows):  # else the errors are not known
                if representation != "categorical":
                    rows.append(attempt("the penalty", gradients.check_penalty, subject))
                why = "it is the same whatever the error is"
                rows.append(attempt("the priority", gradients.check_priority, subject, why_not=why))
            if fixed_point.name == "optimal" and representation != "values":
                why = "it learns a mean alone, as a distribution"
                look = distributions.CHECKS[representation]
                rows.append(attempt("the whole distribution", look, subject, why_not=why))
            if representation == "quantile" and all(x.passed is not False for x in rows):
                rows += fractions.check_fractions(subject)
    checks += rows
    if fixed_point is None:
        checks.append(Check("fixed point", None, "", "none is declared: it is not judged"))
        return
    failed = next((check.name for check in checks if check.passed is False), None)
    if failed and not wrong:
        wrong = f"see what is said of: {failed}"
    checks += convergence.check_fixed_point(subject, discount, wrong)


class Declared(NamedTuple):
    """What a loss converges to, if that is declared, and the network its target bootstraps from."""

    fixed_point: FixedPoint | None
    bootstrap: Bootstrap = "target"


def _munchausen(loss_fn: Any, temperature: Any, coefficient: Any, log_policy_min: Any) -> Declared:
    inner, bootstrap = find_declared(loss_fn)
    if inner is not None:
        inner = fixed_points.munchausen(inner, temperature, coefficient, log_policy_min)
    return Declared(inner, bootstrap)


def find_declared(loss: Callable[..., Any]) -> Declared:
    """Finds what a loss or a TD error converges to: no fixed point where nothing says it.

    `converges_to` wrote it on it, or `KNOWN_LOSSES` has it; also behind a `functools.partial` and a
    wrapper that names what it wraps.
    """
    # A `functools.partial` has defaults of its own.
    defaults = {name: p.default for name, p in inspect.signature(loss).parameters.items()}
    function: Any = loss
    while function is not None:
        if hasattr(function, "fixed_point"):
            said = function.fixed_point
            if not isinstance(said, FixedPoint):
                said = _call_with_settings(said, defaults)
            return Declared(said, function.bootstrap)
        recipe = getattr(function, "recipe", None)
        maker, settings = recipe if isinstance(recipe, Recipe) else (function, defaults)
        for known, make in KNOWN_LOSSES.items():
            if maker is known:
                return _call_with_settings(make, settings)
        function = getattr(function, "func", getattr(function, "__wrapped__", None))
    return Declared(None)


def _call_with_settings(make: Callable[..., Any], settings: dict[str, Any]) -> Any:
    """Calls a function with those of the settings that it has arguments for."""
    return make(**{name: settings[name] for name in inspect.signature(make).parameters})


# Each TD error, and each maker of losses, with a function of those of its own settings that count.
KNOWN_LOSSES: dict[Callable[..., Any], Callable[..., Declared]] = {
    losses.q_learning: lambda: Declared(OPTIMAL),
    losses.double_q_learning: lambda: Declared(OPTIMAL),
    losses.minto: lambda: Declared(OPTIMAL, "both"),
    losses.expected_sarsa: lambda epsilon: Declared(fixed_points.epsilon_greedy(epsilon)),
    losses.soft_q_learning: lambda temperature: Declared(soft(temperature)),
    losses.return_error: lambda: Declared(RETURN, "none"),
    losses.bellman_loss: lambda td_error: find_declared(td_error),
    losses.ensemble_loss: lambda td_error: find_declared(td_error),
    losses.hl_gauss_loss: lambda td_error: find_declared(td_error),
    losses.categorical_loss: lambda: Declared(OPTIMAL),
    losses.quantile_loss: (
        lambda temperature: Declared(OPTIMAL if temperature is None else soft(temperature))
    ),
    losses.munchausen: _munchausen,
    losses.persistent_advantage_learning_loss: (
        lambda coefficient: Declared(fixed_points.persistent(coefficient))
    ),
}
