"""What the checks share: running a component, comparing trees, saying what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.types import Array, ArrayTree

NUM_LANES = 16  # environments or transitions that are looked at side by side
COMPILABLE = (
    "It must compile: jnp in the place of numpy, jnp.where or jax.lax.cond in the place of `if`, "
    "fixed shapes, no broadcasting of arrays of different rank"
)
OWN_KEY = "draw every random number with jax.random from the key: none from numpy, none counted"


def require(condition: bool | np.bool_, message: str) -> None:
    """Fails with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def output_types(name: str, remedy: str, function: Callable[..., Any], *args: Any) -> Any:
    """Shapes and dtypes of a function's answer; whatever it raises is a finding."""
    try:
        with jax.numpy_rank_promotion("raise"):
            return jax.eval_shape(lambda *args: function(*args), *args)
    except Exception as error:
        raise AssertionError(f"{name} raises {type(error).__name__}: {error}\n{remedy}.") from error


class Program:
    """A function of a component, compiled; its first call shows whether it is pure."""

    def __init__(self, name: str, remedy: str, function: Callable[..., Any]) -> None:
        self._name, self._remedy, self._function = name, remedy, function
        self._compiled: Any = None

    def _trace(self) -> Any:
        # A function of its own each time, so that it is traced anew; compiled soon, not fast.
        return jax.jit(
            lambda *args: self._function(*clone_keys(args)),
            compiler_options={"xla_backend_optimization_level": 0},
        )

    def __call__(self, *args: Any) -> Any:
        """The output on the host; fails where a second call, or a second trace, gives another."""
        args = jax.tree.map(jnp.asarray, args)
        answers = []
        try:
            with jax.numpy_rank_promotion("raise"), jax.debug_key_reuse(True):
                if self._compiled is None:
                    self._compiled, again = self._trace(), self._trace()
                    answers.append(self._compiled(*args))
                    # What is hidden outside of the arguments shows when it is traced again.
                    if again.lower(*args).as_text() != self._compiled.lower(*args).as_text():
                        answers.append(again(*args))
                answers.append(self._compiled(*args))
                jax.block_until_ready(answers)
        except jax.errors.KeyReuseError as error:
            raise AssertionError(
                f"{self._name} uses a PRNG key twice, so that draws are not independent: {error}\n"
                "Give each use its own: key, use_key = jax.random.split(key)."
            ) from error
        except Exception as error:
            raise AssertionError(
                f"{self._name} raises {type(error).__name__}: {error}\n{self._remedy}."
            ) from error
        for other in answers[1:]:
            for path, x, y in pairs(on_host(answers[0]), on_host(other)):
                require(
                    x.tobytes() == y.tobytes(),
                    f"{self._name} gives different answers to the same arguments: {path} is "
                    f"{some(x)} and then {some(y)}; {OWN_KEY}",
                )
        return answers[0]


def run(name: str, remedy: str, function: Callable[..., Any], *args: Any) -> Any:
    """A function's answer, compiled and seen to be pure, on the host."""
    return on_host(Program(name, remedy, function)(*args))


def on_host(tree: ArrayTree) -> Any:
    """A tree as NumPy arrays, keys as their data."""
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def clone_keys(tree: ArrayTree) -> ArrayTree:
    """Lets the keys of a tree be used again, on purpose."""
    return jax.tree.map(lambda x: jax.random.clone(x) if is_key(x) else x, tree)


def host_rng(key: Array) -> np.random.Generator:
    """A NumPy generator that depends on a key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def is_key(x: Any) -> bool:
    """Whether an array holds typed PRNG keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def without_keys(tree: ArrayTree) -> list[Array]:
    """The leaves that are no keys."""
    return [leaf for leaf in jax.tree.leaves(tree) if not is_key(leaf)]


def describe(x: Any) -> str:
    """Dtype and shape, for a message."""
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x)


def some(values: np.ndarray) -> str:
    """The first few values, for a message."""
    return np.array2string(values.ravel()[:4]) + (" ..." if values.size > 4 else "")


def pairs(a: ArrayTree, b: ArrayTree) -> list[tuple[str, Any, Any]]:
    """`(path, leaf of a, leaf of b)` of two trees of one structure."""
    paths = jax.tree_util.tree_leaves_with_path(a)
    leaves = jax.tree.leaves(b)
    return [
        (f"the part {jax.tree_util.keystr(path)}" if path else "it", x, y)
        for (path, x), y in zip(paths, leaves, strict=True)
    ]


def require_same_types(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    """Fails where structure, dtypes or shapes of two trees differ."""
    one, other = str(jax.tree.structure(a)), str(jax.tree.structure(b))
    require(one == other, f"{message}: {one} and then {other}; {remedy}")
    for path, x, y in pairs(a, b):
        require(
            x.shape == y.shape and x.dtype == y.dtype,
            f"{message}: {path} is {describe(x)} and then {describe(y)}; {remedy}",
        )


def require_close(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    """Equal up to what another order of sums rounds."""
    for path, x, y in pairs(a, b):
        require(
            np.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True),
            f"{message}: {path} is {some(x)} and then {some(y)}; {remedy}",
        )


def require_finite(tree: ArrayTree, name: str) -> None:
    """Fails where a leaf holds NaN or infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_finite = np.isfinite(leaf) if leaf.dtype != jax.dtypes.float0 else np.array(True)
        require(
            is_finite.all(),
            f"{name}{jax.tree_util.keystr(path)} holds {some(leaf[~is_finite])}: it must be "
            "finite; look for a division by 0, a logarithm of 0 or the gradient of a root at 0",
        )


def require_float_scalar(x: Any, name: str) -> None:
    """Fails unless `x` is a float scalar."""
    require(
        getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.floating),
        f"{name} is {describe(x)}: it must be a float scalar, float32[]",
    )


def largest(tree: ArrayTree) -> float:
    """The largest magnitude in a tree of gradients."""
    leaves = [np.abs(x).max() for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]
    return max(map(float, leaves), default=0.0)
