"""Checks a loss from the command line.

    python -m purejaxdqn.testing my_module:my_loss
    python -m purejaxdqn.testing path/to/file.py:my_loss --fixed-point soft --temperature 0.1

Prints a table with a row a check. Exit code 0: the loss passes; 1: it fails; 2: there is no such
loss, or a flag is refused.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro

from purejaxdqn.cli.exits import EXIT_FAILED, run_script
from purejaxdqn.losses.bellman import TD_ERROR_ARGUMENTS
from purejaxdqn.testing import fixed_points
from purejaxdqn.testing.losses import LOSS_ARGUMENTS, loss_report
from purejaxdqn.types import ConfigError


@dataclasses.dataclass(frozen=True)
class Args:  # noqa: D101 - the module's docstring is the command's help
    __doc__ = __doc__
    loss: Annotated[str, tyro.conf.Positional]
    """module:name or path/to/file.py:name, of a TD error, of a loss, or of a function that makes
    one without arguments."""
    fixed_point: Literal[
        "declared",
        "optimal",
        "epsilon_greedy",
        "soft",
        "munchausen",
        "persistent",
        "return",
        "none",
    ] = "declared"
    """What it converges to: what the loss declares (else the optimal values), another known fixed
    point, or none that is judged."""
    bootstrap: Literal["declared", "target", "online", "both", "none"] = "declared"
    """The network whose values at time t are in the target; "online" without a target network,
    "none" where the reward is a whole return."""
    discount: float = 0.99
    """The largest gamma of the decision processes."""
    temperature: float = 0.03
    """Of the fixed points soft and munchausen."""
    epsilon: float = 0.05
    """Of the fixed point epsilon_greedy."""
    coefficient: float = 0.9
    """Of the fixed points munchausen and persistent."""
    learns_other_actions: bool = False
    """The loss is meant to move other actions than the one that was taken."""
    learns_next_obs: bool = False
    """The loss is meant to learn from obs_t whatever the discount."""


def load(name: str) -> Any:
    """The loss that `module:name` or `file.py:name` names; what makes one is called.

    Raises:
      ConfigError: if there is none.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise ConfigError(f"loss ({name!r}) must be module:name or path/to/file.py:name")
    module = _import(place)
    loss: Any = module
    for part in attribute.split("."):
        if not hasattr(loss, part):
            raise ConfigError(f"{place} has no {attribute!r}: name a function in it")
        loss = getattr(loss, part)
    if not callable(loss):
        raise ConfigError(
            f"{name} is a {type(loss).__name__} and not a function: a TD error takes "
            f"({', '.join(TD_ERROR_ARGUMENTS)}), a loss ({', '.join(LOSS_ARGUMENTS)})"
        )
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(
            f"{name} does not say what arguments it takes: wrap it in a function"
        ) from None
    is_required = (p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in parameters)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if any(is_required) or variadic:
        return loss
    try:
        made = loss()
    except Exception as error:
        raise ConfigError(f"{name}() raises {_in_a_line(error)}") from error
    if not callable(made):
        raise ConfigError(f"{name}() gives {type(made).__name__} and not a loss")
    return made


def _import(place: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise ConfigError(f"there is no file {place}")
        sys.path.insert(0, str(path.resolve().parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise ConfigError(f"there is no module {place!r} here: is the name right?") from error
        raise ConfigError(f"importing {place} raises {_in_a_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"importing {place} raises {_in_a_line(error)}") from error


def _in_a_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def main(args: Args) -> int:
    """Checks the loss, prints the report, and gives the exit code."""
    loss = load(args.loss)
    if not 0 <= args.discount < 1:
        raise ConfigError(f"discount ({args.discount}) must be at least 0 and below 1")
    if not args.temperature > 0:
        raise ConfigError(f"temperature ({args.temperature}) must be above 0")
    soft = fixed_points.soft(args.temperature)
    options: dict[str, Any] = {
        "optimal": fixed_points.OPTIMAL,
        "epsilon_greedy": fixed_points.epsilon_greedy(args.epsilon),
        "soft": soft,
        "munchausen": fixed_points.munchausen(soft, args.temperature, args.coefficient, -1.0),
        "persistent": fixed_points.persistent(args.coefficient),
        "return": fixed_points.RETURN,
        "none": None,
    }
    chosen = {} if args.fixed_point == "declared" else {"fixed_point": options[args.fixed_point]}
    report = loss_report(
        loss,
        bootstrap=None if args.bootstrap == "declared" else args.bootstrap,
        discount=args.discount,
        learns_other_actions=args.learns_other_actions,
        learns_next_obs=args.learns_next_obs,
        **chosen,
    )
    report.print()
    return 0 if report.passed else EXIT_FAILED


if __name__ == "__main__":
    run_script(main, Args)
