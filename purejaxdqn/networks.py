"""Value networks as flax.linen modules of ONE observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import flax.linen as nn
import jax.numpy as jnp

from purejaxdqn.types import Array, Network, Params


class MLP(nn.Module):
    """A multilayer perceptron with ReLU between the layers and a linear output.

    Attributes:
      hidden_sizes: width of each hidden layer.
      num_outputs: width of the output.
    """

    hidden_sizes: Sequence[int]
    num_outputs: int

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Maps one observation `[*obs]` to `[num_outputs]`."""
        x = jnp.ravel(obs).astype(jnp.float32)
        for size in self.hidden_sizes:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.num_outputs)(x)


def make_network(
    module: nn.Module, action_values: Callable[[Array], Array] = lambda output: output
) -> Network:
    """Turns a linen module of one observation into the package's three functions.

    Args:
      module: maps one observation `[*obs]` to an output; noise, if it has any, is drawn from
        the stream "noise".
      action_values: `output -> q [A]`; the output itself by default.

    Returns:
      The `Network`.
    """

    def init(key: Array, obs: Array) -> Params:
        return module.init(key, obs)

    def apply(params: Params, obs: Array, key: Array | None = None) -> Array:
        rngs = None if key is None else {"noise": key}
        return cast(Array, module.apply(params, obs, rngs=rngs))

    return Network(init, apply, action_values)
