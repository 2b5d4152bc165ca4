"""Checks a loss that the command line names, by options that the command line can give."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, Literal

from purejaxdqn.checks import ConfigError
from purejaxdqn.runtime.modules import describe_error, import_module_or_file
from purejaxdqn.training.declaration import setting, settings_of

if TYPE_CHECKING:
    from purejaxdqn.testing.report import Report

_FixedPointName = Literal[
    "declared", "optimal", "epsilon_greedy", "soft", "munchausen", "persistent", "return", "none"
]
_SOFT = {"fixed_point": ("soft", "munchausen")}
_EPSILON_GREEDY = {"fixed_point": "epsilon_greedy"}
_SCALED = {"fixed_point": ("munchausen", "persistent")}


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """The arguments of `check_loss` that a command line can give."""

    fixed_point: _FixedPointName = setting(
        "declared",
        "The values that the loss converges to: those that it declares (else the optimal ones), "
        "other known ones, or none that are judged.",
    )
    bootstrap: Literal["declared", "target", "online", "both", "none"] = setting(
        "declared",
        'The network whose values at time t are in the target; "online" without a target network, '
        '"none" where the reward is a whole return.',
    )
    discount: float = setting(0.99, "The largest gamma of the decision processes.", at_least=0)
    temperature: float = setting(0.03, "What a nat of entropy is worth.", above=0, read_if=_SOFT)
    epsilon: float = setting(
        0.05, "The share of random actions.", at_least=0, at_most=1, read_if=_EPSILON_GREEDY
    )
    coefficient: float = setting(0.9, "How much the bonus or the gap counts.", read_if=_SCALED)
    learns_other_actions: bool = setting(
        False, "The loss is meant to move other actions than the one that was taken."
    )
    learns_next_obs: bool = setting(False, "It is meant to learn from obs_t whatever the discount.")


def load_loss(name: str) -> Any:
    """Loads the loss that `module:name` or `file.py:name` names; calls what makes one.

    Raises a ConfigError if there is none.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise ConfigError(f"loss ({name!r}) must be module:name or path/to/file.py:name")
    loss: Any = import_module_or_file(place)
    for part in attribute.split("."):
        if not hasattr(loss, part):
            raise ConfigError(f"{place} has no {attribute!r}: name a function in it")
        loss = getattr(loss, part)
    if not callable(loss):
        from purejaxdqn.losses.bellman_loss import TD_ERROR_ARGUMENTS
        from purejaxdqn.testing.losses.check_loss import LOSS_ARGUMENTS

        raise ConfigError(
            f"{name} is a {type(loss).__name__} and not a function: a TD error takes "
            f"({', '.join(TD_ERROR_ARGUMENTS)}), a loss ({', '.join(LOSS_ARGUMENTS)})"
        )
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        message = f"{name} does not say what arguments it takes: wrap it in a function"
        raise ConfigError(message) from None
    if any(p.kind is p.VAR_POSITIONAL or p.default is p.empty for p in parameters):
        return loss
    try:
        made = loss()
    except Exception as error:
        raise ConfigError(f"{name}() raises {describe_error(error)}") from error
    if not callable(made):
        raise ConfigError(f"{name}() gives {type(made).__name__} and not a loss")
    return made


def report_on_named_loss(name: str, options: LossOptions) -> Report:
    """Checks the loss that `module:name` or `file.py:name` names.

    Raises a ConfigError if there is no such loss, or an option is out of range.
    """
    loss = load_loss(name)
    declared = settings_of(LossOptions).values()
    if problems := [p for one in declared if (p := one.problem(getattr(options, one.name)))]:
        raise ConfigError("; ".join(problems))
    if not options.discount < 1:
        raise ConfigError(f"discount ({options.discount}) must be at least 0 and below 1")
    from purejaxdqn.testing import fixed_points, loss_report
    from purejaxdqn.testing.losses.check_loss import DECLARED

    temperature, coefficient = options.temperature, options.coefficient
    soft = fixed_points.soft(temperature)
    known = {
        "declared": DECLARED,
        "optimal": fixed_points.OPTIMAL,
        "epsilon_greedy": fixed_points.epsilon_greedy(options.epsilon),
        "soft": soft,
        "munchausen": fixed_points.munchausen(soft, temperature, coefficient, -1.0),
        "persistent": fixed_points.persistent(coefficient),
        "return": fixed_points.RETURN,
        "none": None,
    }
    bootstrap = None if options.bootstrap == "declared" else options.bootstrap
    as_given = ("discount", "learns_other_actions", "learns_next_obs")
    others: dict[str, Any] = {name: getattr(options, name) for name in as_given}
    return loss_report(loss, fixed_point=known[options.fixed_point], bootstrap=bootstrap, **others)
