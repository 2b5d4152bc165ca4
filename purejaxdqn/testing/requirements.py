"""Checks arrays against requirements, and describes them in messages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.types import Array, ArrayTree

NUM_LANES = 16  # environments or transitions that are checked side by side


def require(condition: bool | np.bool_, message: str) -> None:
    """Fails with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def require_same_types(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    """Fails where structure, dtypes or shapes of two trees differ."""
    one, other = str(jax.tree.structure(a)), str(jax.tree.structure(b))
    require(one == other, f"{message}: {one} and then {other}; {remedy}")
    for path, x, y in pair_leaves(a, b):
        wrong = f"{message}: {path} is {describe_type(x)} and then {describe_type(y)}; {remedy}"
        require(x.shape == y.shape and x.dtype == y.dtype, wrong)


def require_close(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    """Fails where two trees differ by more than sums in another order do."""
    for path, x, y in pair_leaves(a, b):
        wrong = f"{message}: {path} is {write_some(x)} and then {write_some(y)}; {remedy}"
        require(np.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True), wrong)


def require_finite(tree: ArrayTree, name: str) -> None:
    """Fails where a leaf holds NaN or infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if leaf.dtype != jax.dtypes.float0:
            wrong = (
                f"{name}{jax.tree_util.keystr(path)} holds {write_some(leaf[~np.isfinite(leaf)])}: "
                "it must be finite; look for a division by 0, a logarithm of 0 or the gradient of "
                "a root at 0"
            )
            require(np.isfinite(leaf).all(), wrong)


def require_float_scalar(x: Any, name: str) -> None:
    """Fails unless `x` is a float scalar."""
    is_right = getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.floating)
    require(is_right, f"{name} is {describe_type(x)}: it must be a float scalar, float32[]")


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


def find_largest(tree: ArrayTree) -> float:
    """Finds the largest magnitude in a tree of gradients."""
    leaves = [np.abs(x).max() for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]
    return max(map(float, leaves), default=0.0)


def describe_type(x: Any) -> str:
    """Writes dtype and shape for a message."""
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x)


def write_some(values: np.ndarray) -> str:
    """Writes the first few values for a message."""
    return np.array2string(values.ravel()[:4]) + (" ..." if values.size > 4 else "")
