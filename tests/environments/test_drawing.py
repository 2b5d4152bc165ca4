"""The pictures of environments: what is inside of a shape, what is not, and which way is up."""

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.drawing import BLACK, BLUE, ORANGE, blank, disc, fill, grid, segment


def is_(image, color):
    return (np.asarray(image) == color).all(axis=-1)


def test_a_blank_image_has_one_colour():
    image = blank(3, 5, (1, 2, 3))
    assert (image.shape, image.dtype) == ((3, 5, 3), jnp.uint8)
    assert is_(image, (1, 2, 3)).all()


def test_points_count_from_the_lower_left_corner():
    x, y = grid(blank(3, 5))
    np.testing.assert_array_equal(x[0], [0.5, 1.5, 2.5, 3.5, 4.5])
    np.testing.assert_array_equal(y[:, 0], [2.5, 1.5, 0.5])


def test_a_disc_is_where_it_should_be_and_as_large():
    image = np.asarray(disc(blank(40, 60), (20, 10), 6, BLACK))
    ink = (255.0 - image[..., 0]) / 255
    np.testing.assert_allclose(ink.sum(), np.pi * 36, rtol=0.01)
    x, y = map(np.asarray, grid(blank(40, 60)))
    np.testing.assert_allclose([(x * ink).sum(), (y * ink).sum()] / ink.sum(), [20, 10], atol=0.01)
    distance = np.hypot(x - 20, y - 10)
    assert is_(image, BLACK)[distance < 5.4].all()
    assert (image[distance > 6.6] == 255).all()


def test_a_segment_has_its_length_and_round_ends():
    image = np.asarray(segment(blank(40, 60), (10, 30), (40, 10), 3, BLACK))
    ink = (255.0 - image[..., 0]) / 255
    np.testing.assert_allclose(ink.sum(), 6 * np.hypot(30, 20) + np.pi * 9, rtol=0.01)
    both_ways = segment(blank(40, 60), (40, 10), (10, 30), 3, BLACK)
    assert np.abs(image.astype(int) - np.asarray(both_ways)).max() <= 1
    assert is_(image, BLACK)[39 - 29, 11]  # the upper end is on the left
    assert not ink[:8, 40:].any()


def test_what_is_drawn_later_lies_on_top():
    image = disc(disc(blank(20, 20), (10, 10), 8, BLUE), (10, 10), 3, ORANGE)
    assert is_(image, ORANGE)[9:11, 9:11].all()
    assert is_(image, BLUE)[10, 4]


def test_what_lies_outside_changes_nothing():
    for image in (
        disc(blank(9, 9), (99, -99), 5, BLACK),
        segment(blank(9, 9), (-9, -9), (99, -9), 2, BLACK),
    ):
        np.testing.assert_array_equal(image, blank(9, 9))


def test_a_shape_is_filled_by_its_distance():
    image = blank(10, 10)
    x, _ = grid(image)
    half = np.asarray(fill(image, x - 5, BLUE))
    assert is_(half, BLUE)[:, :5].all()
    assert (half[:, 5:] == 255).all()


def test_points_may_be_traced_and_mapped():
    draw = jax.jit(jax.vmap(lambda x: disc(blank(9, 20), (x, 4.5), 2, BLACK)))
    images = np.asarray(draw(jnp.array([4.5, 14.5])))
    np.testing.assert_array_equal(images[0][:, :10], images[1][:, 10:])
