"""A network of several whose outputs are read together; `maxmin`, `averaged` and `bootstrapped` do.

The weights of all members `[K, ...]` lie in one tree. Their values `[K, A]` are read as one.
"""

from collections.abc import Callable

import jax

from purejaxdqn.types import Array, Network, Params


def ensemble(
    member: Network[Array], num_members: int, read: Callable[[Array], Array]
) -> Network[Array]:
    """Makes the network of `K` members; `read` makes action values `[A]` of theirs `[K, A]`."""

    def init(key: Array, obs: Array) -> Params:
        return jax.vmap(member.init, in_axes=(0, None))(jax.random.split(key, num_members), obs)

    def apply(params: Params, obs: Array, key: Array | None = None) -> Array:
        return jax.vmap(member.apply, in_axes=(0, None))(params, obs)

    return Network(init, apply, read)
