"""Fails with a message where arrays are not what they must be: `require.that`, and others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.types import Array, ArrayTree

NUM_LANES = 16  # environments or transitions that are checked side by side


def that(condition: bool | np.bool_, message: str) -> None:
    """Fails with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def same_types(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    """Fails where structure, dtypes or shapes of two trees differ."""
    one, other = str(jax.tree.structure(a)), str(jax.tree.structure(b))
    that(one == other, f"{message}: {one} and then {other}; {remedy}")
    for path, x, y in pair_leaves(a, b):
        wrong = f"{message}: {path} is {describe_type(x)} and then {describe_type(y)}; {remedy}"
        that(x.shape == y.shape and x.dtype == y.dtype, wrong)


def close(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    """Fails where two trees differ by more than sums in another order do."""
    for path, x, y in pair_leaves(a, b):
        wrong = f"{message}: {path} is {write_some(x)} and then {write_some(y)}; {remedy}"
        that(np.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True), wrong)


def finite(tree: ArrayTree, name: str) -> None:
    """Fails where a leaf holds NaN or infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if leaf.dtype != jax.dtypes.float0:
            wrong = (
                f"{name}{jax.tree_util.keystr(path)} holds {write_some(leaf[~np.isfinite(leaf)])}: "
                "it must be finite; look for a division by 0, a logarithm of 0 or the gradient of "
                "a root at 0"
            )
            that(np.isfinite(leaf).all(), wrong)


def float_scalar(x: Any, name: str) -> None:
    """Fails unless `x` is a float scalar."""
    is_right = getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.floating)
    that(is_right, f"{name} is {describe_type(x)}: it must be a float scalar, float32[]")


def pair_leaves(a: ArrayTree, b: ArrayTree) -> list[tuple[str, Any, Any]]:
    """Lists `(path, leaf of a, leaf of b)` of two trees of one structure."""
    paths = jax.tree_util.tree_leaves_with_path(a)
    return [
        (f"the part {jax.tree_util.keystr(path)}" if path else "it", x, y)
        for (path, x), y in zip(paths, jax.tree.leaves(b), strict=True)
    ]


def is_key(x: Any) -> bool:
    """Tells whether an array holds typed PRNG keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def drop_keys(tree: ArrayTree) -> list[Array]:
    """Lists the leaves that are no keys."""
    return [leaf for leaf in jax.tree.leaves(tree) if not is_key(leaf)]


def find_size(tree: ArrayTree) -> float:
    """Finds the largest magnitude in a tree, such as one of gradients."""
    leaves = [x for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]
    return max((float(np.abs(x).max(initial=0)) for x in leaves), default=0.0)


def describe_type(x: Any) -> str:
    """Writes dtype and shape for a message."""
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x)


def write_some(values: np.ndarray) -> str:
    """Writes the first few values for a message."""
    return np.array2string(values.ravel()[:4]) + (" ..." if values.size > 4 else "")
