"""`check_network`: good networks pass, and each kind of broken one is found."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.networks import MLP, make_network
from purejaxdqn.testing import check_network
from purejaxdqn.types import Array, Network

KEY = jax.random.key(0)
HIDDEN = itertools.count(1)  # no function of its arguments


OBS = jnp.array([0.5, -1.0, 2.0, 0.1])
NETWORK = Network(
    init=lambda key, obs: jax.random.uniform(key, (2, obs.size)),
    apply=lambda params, obs, key=None: params @ obs,
    action_values=lambda output: output,
)


def changed_network(
    values: Callable[..., Any] = lambda q, key: q,
    init: Callable[..., Any] = NETWORK.init,
    action_values: Callable[[Array], Array] = NETWORK.action_values,
) -> Network:
    """A network whose outputs go through `values(q, key)`."""

    def apply(params, obs, key=None):
        return values(NETWORK.apply(params, obs), key)

    return Network(init, apply, action_values)


def noisy(q, key):
    return q if key is None else q + jax.random.uniform(key, q.shape)


def normalised_over_the_batch(q, key):
    return q + jax.pure_callback(
        lambda q: np.asarray(q) - np.asarray(q).mean(),
        jax.ShapeDtypeStruct((2,), jnp.float32),
        jax.lax.stop_gradient(q),
        vmap_method="broadcast_all",
    )


def init_with_one_key_for_all(key, obs):
    params = NETWORK.init(key, obs)
    return params + jax.random.uniform(key, params.shape)


BROKEN_NETWORKS = {
    "another number of actions": (
        changed_network(action_values=lambda q: jnp.append(q, 0.0)),
        r"gives float32\[3\] for one observation without a key: it must give float32\[2\]",
    ),
    "batched values": (
        changed_network(action_values=lambda q: q[None]),
        r"action_values gives float32\[1, 2\]",
    ),
    "integer values": (
        changed_network(action_values=lambda q: q.astype(jnp.int32)),
        r"action_values gives int32\[2\]",
    ),
    "no key": (
        Network(NETWORK.init, lambda params, obs: NETWORK.apply(params, obs), lambda q: q),
        "network.apply without a key raises TypeError",
    ),
    "a key that must be there": (
        changed_network(lambda q, key: q + jax.random.normal(key, q.shape)),
        "network.apply without a key raises",
    ),
    "noise that is not the key's": (
        changed_network(lambda q, key: q + next(HIDDEN) / 100),
        "the network gives different answers to the same arguments",
    ),
    "constant weights": (
        changed_network(init=lambda key, obs: NETWORK.init(jax.random.key(3), obs)),
        "two different keys give the same weights",
    ),
    "a key used twice": (changed_network(init=init_with_one_key_for_all), "a PRNG key twice"),
    "infinite weights": (
        changed_network(init=lambda key, obs: NETWORK.init(key, obs) / 0.0),
        "the network's weights after network.init.* must be finite",
    ),
    "values that are not numbers": (
        changed_network(lambda q, key: jnp.log(-jnp.square(q))),
        "action_values without a key holds .*nan",
    ),
    "noise that is infinite": (
        changed_network(lambda q, key: q if key is None else q / 0.0),
        "action_values with a key holds .*inf",
    ),
    "gradient that is not a number": (
        changed_network(lambda q, key: q + jnp.sqrt(0.0 * jnp.square(q))),
        "the gradient of the action values.* holds .*nan",
    ),
    "nothing is learned": (
        changed_network(lambda q, key: jax.lax.stop_gradient(q)),
        "no gradient reaches the weights",
    ),
    "normalised over the batch": (
        changed_network(normalised_over_the_batch, action_values=jax.lax.stop_gradient),
        "the values of an observation differ alone and among observations in a batch",
    ),
    "broadcasting between ranks": (
        changed_network(lambda q, key: (q + jnp.ones((3, 2))).mean(axis=0)),
        "network.apply without a key raises ValueError",
    ),
    "a branch on an array": (
        changed_network(lambda q, key: q if q[0] > 0 else -q),
        "network.apply without a key raises TracerBoolConversionError",
    ),
}


class TestCheckNetwork:
    def test_good(self):
        check_network(NETWORK, KEY, OBS, 2)
        check_network(changed_network(noisy), KEY, OBS, 2)
        check_network(make_network(MLP((8,), 3)), KEY, jnp.ones((2, 2), jnp.uint8), 3)

    @pytest.mark.parametrize("name", BROKEN_NETWORKS)
    def test_broken(self, name):
        network, message = BROKEN_NETWORKS[name]
        with pytest.raises(AssertionError, match=message):
            check_network(network, KEY, OBS, 2)
