"""Compiles and runs the functions of a component, and checks that they are pure."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing import require
from purejaxdqn.testing.require import is_key, pair_leaves, write_some
from purejaxdqn.types import ArrayTree

COMPILABLE = (
    "It must compile: jnp in the place of numpy, jnp.where or jax.lax.cond in the place of `if`, "
    "fixed shapes, no broadcasting of arrays of different rank"
)


@contextlib.contextmanager
def explain_errors(name: str, remedy: str) -> Iterator[None]:
    """Turns what is raised into a failure with the remedy; refuses broadcasting between ranks."""
    try:
        with jax.numpy_rank_promotion("raise"):
            yield
    except jax.errors.KeyReuseError as error:
        raise AssertionError(
            f"{name} uses a PRNG key twice, so that draws are not independent: {error}\n"
            "Give each use its own: key, use_key = jax.random.split(key)."
        ) from error
    except Exception as error:
        raise AssertionError(f"{name} raises {type(error).__name__}: {error}\n{remedy}.") from error


def find_types(name: str, remedy: str, function: Callable[..., Any], *args: Any) -> Any:
    """Finds shapes and dtypes of a function's output; fails with the remedy if it raises."""
    with explain_errors(name, remedy):
        return jax.eval_shape(lambda *args: function(*args), *args)


def pure_jit(name: str, remedy: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function; its first call fails where a second call, or trace, gives another."""
    # Two functions, so that each is traced; optimised for compile time.
    options = {"xla_backend_optimization_level": 0}
    compiled, again = (
        jax.jit(lambda *args: function(*clone_keys(args)), compiler_options=options)
        for _ in range(2)
    )
    calls = itertools.count()

    def call(*args: Any) -> Any:
        args = jax.tree.map(jnp.asarray, args)
        with explain_errors(name, remedy), jax.debug_key_reuse(True):
            answers = [compiled(*args)]
            if next(calls) == 0:
                answers.append(compiled(*args))
                # Another program from a second trace reads something besides its arguments.
                if again.lower(*args).as_text() != compiled.lower(*args).as_text():
                    answers.append(again(*args))
            jax.block_until_ready(answers)
        for other in answers[1:]:
            for path, x, y in pair_leaves(to_numpy(answers[0]), to_numpy(other)):
                require.that(
                    x.tobytes() == y.tobytes(),
                    f"{name} gives different answers to the same arguments: {path} is "
                    f"{write_some(x)} and then {write_some(y)}; draw every random number with "
                    "jax.random from the key: none from numpy, none counted",
                )
        return answers[0]

    return call


def to_numpy(tree: ArrayTree) -> Any:
    """Copies a tree into NumPy arrays, keys as their data."""
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def clone_keys(tree: ArrayTree) -> ArrayTree:
    """Copies a tree so that its keys may be used again, on purpose."""
    return jax.tree.map(lambda x: jax.random.clone(x) if is_key(x) else x, tree)
