"""A network of several: the same network several times over, with weights of its own each time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from purejaxdqn.types import Activations, Array, Network, Params, ensure_function, ensure_whole


def ensemble(
    member: Network[Array], num_members: int, read: Callable[[Array], Array]
) -> Network[Array]:
    """Makes a network of `K` members, whose action values are read of theirs.

    Its weights are the members' `[K, ...]` in one tree, its output their values `[K, A]`. With a
    key each member has noise of its own.

    Args:
      member: puts out action values `[A]`, as `value_network` does by default.
      num_members: `K`.
      read: `[K, A] -> [A]`, such as `functools.partial(jnp.min, axis=0)`.
    """
    ensure_whole("num_members", num_members)
    ensure_function("read", read, "functools.partial(jnp.min, axis=0)")

    def init(key: Array, obs: Array) -> Params:
        return jax.vmap(member.init, in_axes=(0, None))(jax.random.split(key, num_members), obs)

    def apply(params: Params, obs: Array, key: Array | None = None) -> Array:
        if key is None:
            return jax.vmap(member.apply, in_axes=(0, None))(params, obs)
        keys = jax.random.split(key, num_members)
        return jax.vmap(member.apply, in_axes=(0, None, 0))(params, obs, keys)

    def activations(params: Params, obs: Array) -> Activations:
        """Puts the members' units beside each other."""
        assert member.activations is not None
        each = jax.vmap(member.activations, in_axes=(0, None))(params, obs)
        hidden = tuple(jnp.concatenate([*x], axis=-1) for x in each.hidden)
        return Activations(hidden, each.features.ravel())

    return Network(init, apply, read, activations if member.activations else None)
