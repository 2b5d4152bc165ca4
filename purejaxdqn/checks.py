"""What every room refuses values with: `ConfigError`, and checks that need no JAX.

Users and rooms that use JAX import them from `purejaxdqn.types`. What declares, reads and checks
settings imports them from here: a help text or a refusal then waits for no import of JAX.
"""

import difflib
import inspect
import math
import numbers
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any


class ConfigError(ValueError):
    """A setting is refused; the message names the value, what is allowed, and the remedy.

    It is one line, whatever the value's own text is.
    """

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"\s*[\r\n]\s*", " ", message))


def ensure(is_right: bool, name: str, value: Any, wanted: str) -> None:
    """Refuses a value that is not right, with what is wanted in its place."""
    if not is_right:
        raise ConfigError(f"{name} ({value!r:.60}) must be {wanted}")


def ensure_whole(name: str, value: Any, at_least: int = 1) -> None:
    """Refuses a value that is no whole number of at least `at_least`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    ensure(is_whole and value >= at_least, name, value, f"at least {at_least} and a whole number")


def ensure_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuses a value that is no finite number from `low` to `high`; of arrays the shape counts."""
    jax: Any = sys.modules.get("jax")  # without it, nothing is of its types
    if jax is not None and isinstance(value, jax.Array):  # a tracer's value is not known
        is_right = value.shape == () and jax.numpy.issubdtype(value.dtype, jax.numpy.number)
    else:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        is_right = is_number and math.isfinite(value) and low <= value <= high
    limits = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
    ensure(is_right, name, value, " and ".join([*limits, "a finite number"]))


def ensure_function(name: str, value: Any, example: str, num_arguments: int = 1) -> None:
    """Refuses what cannot be called with so many arguments, or a class."""
    is_function = callable(value) and not isinstance(value, type)
    if is_function:
        try:
            inspect.signature(value).bind(*range(num_arguments))
        except TypeError:
            is_function = False
        except ValueError:  # of a function that does not say what it takes
            pass
    wanted = f"a function of {num_arguments} argument(s), such as {example}"
    ensure(is_function, name, value, wanted)


def nearest_names(name: str, names: Iterable[str]) -> str:
    """Lists the names nearest to one, or all of them where none is near, as a message does."""
    names = list(names)
    return ", ".join(difflib.get_close_matches(str(name), names, n=3) or names)


def suggest_names(name: str, names: Iterable[str]) -> str:
    """Asks whether the names nearest to one were meant, or offers all where none is near."""
    names = list(names)
    is_near = difflib.get_close_matches(name, names, n=1)
    return f"{'did you mean' if is_near else 'choose one of'} {nearest_names(name, names)}"


def is_same_definition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Tells whether two functions are one definition, run twice if a notebook's cell ran again.

    Functions that `def` named are told by module and name, all others (`lambda`) by identity.
    """
    first, second = (getattr(function, "__qualname__", "<lambda>") for function in (one, other))
    is_named = first == second and not first.endswith("<lambda>")
    return one is other or (is_named and one.__module__ == other.__module__)


# Their public home, which pickles, and fingerprints of a user's code that calls them, name.
_PUBLIC: tuple[Any, ...] = (ConfigError, ensure, ensure_whole, ensure_number, ensure_function)
for _one in (*_PUBLIC, nearest_names, suggest_names, is_same_definition):
    _one.__module__ = "purejaxdqn.types"
