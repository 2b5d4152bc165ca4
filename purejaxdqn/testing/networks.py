"""Checks that a network keeps its contract."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxdqn.testing import require
from purejaxdqn.testing.programs import COMPILABLE, find_types, pure_jit, to_numpy
from purejaxdqn.testing.require import describe_type, find_size
from purejaxdqn.types import Array, Network, Params

_ONE_OBSERVATION = (
    "It is a function of ONE observation without a batch axis, mapped over a batch with vmap. "
    f"{COMPILABLE}"
)


def check_network(network: Network[Any], key: Array, obs: Array, num_actions: int) -> None:
    """Checks a value network of ONE observation: see `Network`.

    - It works under `jit`, `vmap` (over observations and over weights) and `grad`.
    - `action_values` gives one finite float for each action.
    - Its noise is the key's; without a key there is none.
    - The values of an observation do not depend on the others in a batch.
    - Different keys give different weights.

    Args:
      network: the network.
      key: `[]` PRNG key of everything that is drawn.
      obs: `[*obs]` one observation.
      num_actions: `A`.

    Raises:
      AssertionError: if something is wrong.
    """

    def values(params: Params, obs: Array, key: Array | None = None) -> Array:
        return network.action_values(network.apply(params, obs, key))

    obs = jnp.asarray(obs)
    params = find_types("network.init", _ONE_OBSERVATION, network.init, key, obs)
    for name, noise in (("without a key", None), ("with a key", key)):
        found = find_types(f"network.apply {name}", _ONE_OBSERVATION, values, params, obs, noise)
        is_right = getattr(found, "shape", None) == (num_actions,)
        require.that(
            is_right and jnp.issubdtype(found.dtype, jnp.floating),
            f"action_values gives {describe_type(found)} for one observation {name}: it must give "
            f"float32[{num_actions}], one number for each action",
        )
    _check_values(network.init, values, key, obs)


def _check_values(init: Any, values: Callable[..., Array], key: Array, obs: Array) -> None:
    def examine(init_keys: Array, noise_key: Array) -> Any:
        weights = jax.vmap(init, in_axes=(0, None))(init_keys, obs)
        params = jax.tree.map(lambda x: x[0], weights)
        batch = jnp.stack([obs, jnp.zeros_like(obs), jnp.ones_like(obs)])
        gradient = jax.grad(lambda params: values(params, batch[2]).sum())(params)
        among = {
            "observations": jax.vmap(values, in_axes=(None, 0))(params, batch)[0],
            "weights": jax.vmap(values, in_axes=(0, None))(weights, obs)[0],
        }
        return weights, values(params, obs), values(params, obs, noise_key), among, gradient

    *init_keys, noise_key = jax.random.split(key, 3)
    program = pure_jit("the network", _ONE_OBSERVATION, examine)
    weights, alone, noisy, among, gradient = to_numpy(program(jnp.stack(init_keys), noise_key))
    require.finite(weights, "the network's weights after network.init")
    require.finite(alone, "action_values without a key")
    require.finite(noisy, "action_values with a key")
    require.that(
        any((leaf[0] != leaf[1]).any() for leaf in jax.tree.leaves(weights)),
        "two different keys give the same weights: draw them from the key",
    )
    for place, value in among.items():
        wrong = f"the values of an observation differ alone and among {place} in a batch"
        require.close(alone, value, wrong, "normalise within ONE observation, not over a batch")
    require.finite(gradient, "the gradient of the action values")
    wrong = "no gradient reaches the weights, so that nothing would be learned"
    require.that(find_size(gradient) > 0, wrong)
