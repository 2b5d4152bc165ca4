"""`check_network`: good networks pass, and each kind of broken one is found."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.networks import MLP, CNNTorso, make_network, value_network
from purejaxdqn.testing import check_network
from purejaxdqn.types import Array, Network
from tiny_networks import REPRESENTATIONS, small

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


def layers(values, key=KEY, sizes=(4, 6, 2), **others):
    """A network of two layers whose values are `values(params, features, key)`."""

    def init(key, obs):
        one, two = jax.random.split(key)
        first, second = jax.random.normal(one, sizes[:2]), jax.random.normal(two, sizes[1:])
        return {"torso": first, "head": second}

    def apply(params, obs, key=None):
        return values(params, jnp.tanh(obs @ params["torso"]), key)

    return Network(init, apply, lambda q: q)


def noise_of(key, q):
    return q + jax.random.normal(key, q.shape)


def plain(params, features, key):
    return features @ params["head"]


def or_a_constant(key):
    return jax.random.key(0) if key is None else key


stop = jax.lax.stop_gradient
PLANTED: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "noise of a constant key": (
        lambda p, x, key: noise_of(jax.random.key(0), x @ p["head"]),
        {},
        "draws random numbers, and not from its key|without a key",
    ),
    "noise of a constant key where there is one": (
        lambda p, x, key: (
            x @ p["head"] if key is None else noise_of(or_a_constant(None), x @ p["head"])
        ),
        {},
        "draws random numbers, and not from its key",
    ),
    "noise of NumPy's": (
        lambda p, x, key: x @ p["head"] + (0 if key is None else np.array([0.1, -0.2], "f")),
        {},
        "but not from key to key",
    ),
    "noise without a key": (
        lambda p, x, key: noise_of(or_a_constant(key), x @ p["head"]),
        {},
        "draws random numbers without a key",
    ),
    "a noisy one that never is": (plain, {"noisy": True}, "noisy=True, but other keys"),
    "ignored observation": (
        lambda p, x, key: p["head"].sum(axis=0),
        {},
        "ignores its observation",
    ),
    "two actions that share an output": (
        lambda p, x, key: (x @ p["head"])[jnp.array([0, 1, 1])],
        {},
        "actions 1 and 2 share an output",
    ),
    "equal over all actions": (
        lambda p, x, key: jnp.broadcast_to((x @ p["head"]).mean(), (3,)),
        {},
        "the values are the same for all actions",
    ),
    "a torso that is cut off": (
        lambda p, x, key: stop(x) @ p["head"],
        {},
        r"no gradient reaches the weights \['torso'\]",
    ),
    "a torso whose weights are": (
        lambda p, x, key: plain({**p, "head": stop(p["head"])}, x, key),
        {},
        r"no gradient reaches the weights \['head'\]",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted(name):
    values, options, message = PLANTED[name]
    num_actions = 3 if "actions" in name else 2
    with pytest.raises(AssertionError, match=message):
        check_network(layers(values), KEY, OBS, num_actions, **options)


def prior_network():
    """Osband et al. (2018): a fixed network is added to one that learns."""
    one = make_network(MLP((6,), 2))

    def init(key, obs):
        keys = jax.random.split(key)
        return {"prior": one.init(keys[0], obs), "own": one.init(keys[1], obs)}

    def apply(params, obs, key=None):
        return one.apply(params["own"], obs) + 3 * stop(one.apply(params["prior"], obs))

    return Network(init, apply, lambda q: q)


def test_sound():
    check_network(layers(PLANTED["a torso that is cut off"][0]), KEY, OBS, 2, frozen=("torso",))
    check_network(changed_network(noisy), KEY, OBS, 2, noisy=True)
    check_network(prior_network(), KEY, OBS, 2)


@pytest.mark.parametrize(
    "representation",
    [
        pytest.param(x, marks=[pytest.mark.slow] * (x != "proposed_quantile"))
        for x in REPRESENTATIONS
    ],
)
def test_the_networks_of_the_package(representation):
    network = small(representation, dueling=True, noisy=True)
    check_network(network, KEY, OBS, 3, noisy=True)


@pytest.mark.slow
def test_a_network_of_images_that_begins_at_0():
    """All values are 0 at first, whatever the observation is."""
    network = value_network(2, (), torso=CNNTorso())
    head = lambda key, obs: jax.tree.map_with_path(  # noqa: E731
        lambda path, x: x * ("Dense" not in jax.tree_util.keystr(path)), network.init(key, obs)
    )
    check_network(network._replace(init=head), KEY, jnp.zeros((36, 36, 2), jnp.uint8), 2)


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
