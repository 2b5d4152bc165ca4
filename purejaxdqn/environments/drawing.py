"""Draws pictures of environments as pure functions: discs and segments in uint8 images `[H, W, 3]`.

A point is `(x, y)` in pixels from the lower left corner, y upwards; numbers may be traced. Each
function returns a new image, so what is drawn later lies on top. Edges are smooth.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from purejaxdqn.types import Array

Point = Sequence[Array | float] | Array
Color = tuple[int, int, int]  # red, green and blue, from 0 to 255
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (200, 200, 200)
BLUE, ORANGE = (0, 114, 178), (230, 159, 0)  # told apart with every kind of colour vision


def blank(height: int, width: int, color: Color = WHITE) -> Array:
    """Makes an image `[height, width, 3]` of one colour."""
    return jnp.stack([jnp.full((height, width), value, jnp.uint8) for value in color], axis=-1)


def grid(image: Array) -> tuple[Array, Array]:
    """Returns `(x, y)` of all pixels' centres, `[H, W]` each."""
    height, width, _ = image.shape
    x, y = jnp.meshgrid(jnp.arange(width) + 0.5, height - 0.5 - jnp.arange(height))
    return x, y


def fill(image: Array, distance: Array, color: Color) -> Array:
    """Paints a shape by the distance `[H, W]` of each pixel from its edge, negative inside."""
    cover = jnp.clip(0.5 - distance, 0, 1)
    channels = [image[..., i] + cover * (color[i] - image[..., i].astype(float)) for i in range(3)]
    return jnp.round(jnp.stack(channels, axis=-1)).astype(jnp.uint8)


def segment(image: Array, start: Point, end: Point, radius: float, color: Color) -> Array:
    """Paints all that is within `radius` pixels of the segment between two points."""
    (x_0, y_0), (x_1, y_1) = start, end
    (x, y), d_x, d_y = grid(image), x_1 - x_0, y_1 - y_0
    length = jnp.maximum(d_x**2 + d_y**2, 1e-12)  # squared
    part = jnp.clip(((x - x_0) * d_x + (y - y_0) * d_y) / length, 0, 1)  # of the way
    distance = jnp.hypot(x - x_0 - part * d_x, y - y_0 - part * d_y)
    return fill(image, distance - radius, color)


def disc(image: Array, centre: Point, radius: float, color: Color) -> Array:
    """Paints a disc."""
    return segment(image, centre, centre, radius, color)
