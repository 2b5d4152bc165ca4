"""How a loss was made: its name in results files, its maker, and the maker's arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple

from purejaxdqn.types import LossFn, Output


class Recipe(NamedTuple):
    """Which function made a loss, such as `bellman_loss`, and of what; numbers may be tracers."""

    maker: Callable[..., LossFn[Any]]
    arguments: dict[str, Any]


def write_recipe(
    loss_fn: LossFn[Output], name: str, maker: Callable[..., LossFn[Any]], /, **arguments: Any
) -> LossFn[Output]:
    """Writes on a loss how it was made, and returns it.

    `name`, which becomes the function's `__qualname__`, is what results files call it.
    """
    vars(loss_fn)["recipe"] = Recipe(maker, arguments)
    loss_fn.__qualname__ = name  # type: ignore[attr-defined]
    return loss_fn


def read_recipe(loss_fn: Any) -> Recipe | None:
    """Reads how a loss was made; None where nothing is written on it."""
    recipe = getattr(loss_fn, "recipe", None)
    return recipe if isinstance(recipe, Recipe) else None


def name_part(part: Any) -> str:
    """Names a function that a loss is made of, such as a penalty, for the loss's own name."""
    return getattr(part, "__name__", repr(part))
