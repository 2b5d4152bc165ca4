"""What small worlds share: drawn outcomes, time limits, cells, and pictures of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import drawing
from purejaxdqn.types import Array

if TYPE_CHECKING:
    import gymnasium

_SIDE = 256  # pixels of a picture's longer side, about


@flax.struct.dataclass
class Walker:
    """One walker in a world of cells."""

    position: Array  # [2] int32, row and column
    num_steps: Array  # [] int32, steps taken in this episode


def begin(position: Array) -> Walker:
    """Begins an episode at a position `[2]` int32."""
    return Walker(position, jnp.zeros((), jnp.int32))


def draw(key: Array, probabilities: Sequence[float]) -> Array:
    """Draws one of the outcomes 0, 1, ..., `[]` int32, with these probabilities."""
    if 1.0 in probabilities:
        return jnp.full((), probabilities.index(1.0), jnp.int32)
    below = np.cumsum(probabilities)[:-1]
    return jnp.sum(jax.random.uniform(key) >= below, dtype=jnp.int32)


def is_late(num_steps: Array, max_steps: int | None) -> Array:
    """Tells, `[]` bool, whether a time limit is reached; without one it never is."""
    return num_steps >= max_steps if max_steps is not None else jnp.zeros((), bool)


def bool_space(shape: tuple[int, ...]) -> gymnasium.spaces.Box:
    """Makes the space of observations that are False or True."""
    import gymnasium  # only where an environment is made

    kind: Any = bool  # gymnasium declares numbers alone
    return gymnasium.spaces.Box(0, 1, shape, kind)


def mark(position: Any, shape: tuple[int, ...]) -> Array:
    """Marks the cell of a `position`, row and column, in a board `[rows, columns]` of bool.

    No cell is marked for a position beside the board.
    """
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (position[0] == rows) & (position[1] == columns)


def paint(shape: tuple[int, int], *layers: tuple[Array | np.ndarray, drawing.Color]) -> Array:
    """Paints a board of cells as `[H, W, 3]` uint8, with lines between them.

    Each layer, cells `[rows, columns]` bool and their colour, lies above the one before.
    """
    image = drawing.blank(*shape)
    for cells, color in layers:
        image = jnp.where(jnp.asarray(cells)[..., jnp.newaxis], np.array(color, np.uint8), image)
    side = max(_SIDE // max(shape), 3)
    rows, columns = np.ogrid[: side * shape[0], : side * shape[1]]
    lines = (rows % side == 0) | (columns % side == 0)
    squares = image.repeat(side, axis=0).repeat(side, axis=1)
    return jnp.where(lines[..., np.newaxis], np.array(drawing.GREY, np.uint8), squares)
