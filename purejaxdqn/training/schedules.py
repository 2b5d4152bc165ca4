"""Schedules: numbers that change with a count of environment steps or gradient steps.

Settings may be schedules, so that this file is read where JAX is not needed yet: what is called in
tracing imports it by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from purejaxdqn.checks import ConfigError, ensure_function, ensure_number
from purejaxdqn.training.pytrees import register_pytree

if TYPE_CHECKING:
    from purejaxdqn.types import Array, Schedule

Part = TypeVar("Part")


def _ensure_numbers(**numbers: Any) -> None:
    for name, number in numbers.items():
        ensure_number(name, number)


def linear_schedule(start: Array | float, end: Array | float, duration: Array | float) -> Schedule:
    """Goes from `start` at count 0 to `end` in a straight line over `duration` counts, then stays.

    With a duration of 0 it is `end` from the start. A count is of environment steps or of gradient
    steps. All three may be tracers, unlike those of `optax.linear_schedule`.
    """
    _ensure_numbers(start=start, end=end, duration=duration)

    def schedule(count: Array) -> Array:
        import jax.numpy as jnp

        along = start + (end - start) * (count / jnp.maximum(duration, 1.0))
        return jnp.where(count >= duration, end, along)

    return schedule


def exponential_schedule(
    start: Array | float, end: Array | float, duration: Array | float
) -> Schedule:
    """Goes from `start` to `end` by the same factor at each count; all else as `linear_schedule`.

    Both have the same sign, and neither is 0.
    """
    _ensure_numbers(start=start, end=end, duration=duration)

    def schedule(count: Array) -> Array:
        import jax.numpy as jnp

        along = start * (end / start) ** (count / jnp.maximum(duration, 1.0))
        return jnp.where(count >= duration, end, along)

    return schedule


def multiplicative_schedule(
    start: Array | float, decay: Array | float, end: Array | float = 0.0
) -> Schedule:
    """Multiplies `start` by `decay` (between 0 and 1) at every count from 0 on, down to `end`.

    Below a count of 0 it is `start`. All three may be tracers.
    """
    _ensure_numbers(start=start, decay=decay, end=end)

    def schedule(count: Array) -> Array:
        import jax.numpy as jnp

        power = jnp.maximum(jnp.asarray(count, jnp.float32), 0.0)
        return jnp.maximum(start * jnp.power(decay, power), end)

    return schedule


def linear_epsilon(config: Any) -> Schedule:
    """Makes the schedule `num_steps -> epsilon`, in environment steps, of a `RunConfig`."""
    duration = config.epsilon_fraction * config.total_steps
    return linear_schedule(config.epsilon_start, config.epsilon_end, duration)


# ------------------------------------------------------------------------ settings that change

SHAPES = {"linear": linear_schedule, "exponential": exponential_schedule}
EXAMPLE = "linear:0.97:0.997:10000"


@functools.partial(register_pytree, leaves=("start", "end", "duration"), static=("shape",))
@dataclasses.dataclass(frozen=True, repr=False)
class Changing:
    """The value of a setting that changes with the count of gradient steps: a `Schedule`.

    Its text, such as "linear:0.97:0.997:10000", is what command lines and results have. It is a
    pytree of its numbers, so that these stay arguments of the compiled program. It is no number:
    an experiment reads those of `config.at(num_updates)`.
    """

    shape: str  # one of `SHAPES`
    start: Array | float  # at the first gradient step
    end: Array | float  # from gradient step `duration` on
    duration: Array | int  # gradient steps

    def __call__(self, num_updates: Array) -> Array | float:
        """Returns the value after so many gradient steps."""
        return SHAPES[self.shape](self.start, self.end, self.duration)(num_updates)

    def __repr__(self) -> str:
        def show(number: Any) -> str:
            is_whole = isinstance(number, int | float) and float(number).is_integer()
            return str(int(number) if is_whole else number)

        return ":".join([str(self.shape), *map(show, (self.start, self.end, self.duration))])

    def problem(self) -> str | None:
        """Says what the numbers have to be, where they are not; None where nothing is wrong."""
        if self.shape not in SHAPES:
            return f"have a shape of {', '.join(SHAPES)}"
        ends, duration = (self.start, self.end), self.duration
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in ends):
            return "start and end at finite numbers"
        if self.shape == "exponential" and not self.start * self.end > 0:
            return "start and end at numbers of one sign, and not at 0"
        is_whole = isinstance(duration, int) and not isinstance(duration, bool)
        return None if is_whole and duration >= 1 else "last at least 1 gradient step"

    def _refuse(self, *_: Any) -> NoReturn:
        raise ConfigError(
            f"a setting that is a {self.shape} schedule is no number: read it from "
            "config.at(state.learner.num_updates) where there is a state, pass the part that reads "
            "it as schedules.following(lambda now: ...), or set it to a number"
        )

    __jax_array__ = __array__ = __float__ = __int__ = __bool__ = __neg__ = __abs__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = __pow__ = __rpow__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __round__ = __floor__ = __ceil__ = _refuse
    dtype = property(_refuse)


def linear(start: float, end: float, duration: int) -> Any:
    """Makes the value of a setting that goes in a straight line over `duration` gradient steps.

    Then it stays at `end`: `DQNConfig(discount=linear(0.97, 0.997, 10_000))`. Where
    `LearnerState.num_updates` is set back, as `after_update` may do, it begins anew.
    """
    return Changing("linear", start, end, duration)


def exponential(start: float, end: float, duration: int) -> Any:
    """Makes the value of a setting that changes by the same factor at each gradient step."""
    return Changing("exponential", start, end, duration)


def read_changing(text: str, read: Callable[[str], Any]) -> Changing:
    """Reads a text such as "linear:0.97:0.997:10000", each end with `read`; else a `ValueError`."""
    shape, start, end, duration = text.split(":")
    if shape not in SHAPES:
        raise ValueError
    return Changing(shape, read(start), read(end), int(duration))


def follow(config: Any, make: Callable[[Any], Part]) -> Callable[[Array | int], Part]:
    """Makes `num_updates -> part`, the part that settings make as they are after so many steps.

    Without schedules it is made once.
    """
    first = make(config.at(0))

    def part_at(num_updates: Array | int) -> Part:
        now = config.at(num_updates)
        return first if now is config else make(now)

    return part_at


class Following(NamedTuple):
    """A part that is made of the settings as they are at each gradient step."""

    make: Callable[[Any], Any]


def following(make: Callable[[Any], Any]) -> Any:
    """Makes a part of one's own follow schedules, for an argument of `dqn` or `pqn`.

    `dqn(config, loss_fn=following(lambda now: partial(my_loss, weight=now.weight)))`: the part is
    made of the settings `now`, in which schedules are numbers. It may be a loss, `wrap_loss`,
    optimiser, target update, learner, behaviour or replay; hooks and measures are given the state.
    """
    ensure_function("make", make, "lambda now: partial(my_loss, weight=now.weight)")
    return Following(make)


def part_of(part: Any, now: Any) -> Any:
    """Makes a part of the settings as they are now, where it is `following` them."""
    return part.make(now) if isinstance(part, Following) else part


def largest(value: Any) -> Any:
    """Returns the largest number that a setting has at any time."""
    return max(value.start, value.end) if isinstance(value, Changing) else value
