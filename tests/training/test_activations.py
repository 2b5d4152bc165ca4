"""What networks show of their units and features, of which diagnostics are made."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from purejaxdqn.networks import CNNTorso, make_network, value_network


def show(network):
    assert network.activations is not None
    return network.activations


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({}, [(1, 6), (1, 5)]),
        ({"layer_norm": True, "noisy": True}, [(1, 6), (1, 5)]),
        ({"dueling": True, "head_sizes": (4,)}, [(1, 4), (1, 4), (1, 6), (1, 5)]),
        ({"representation": "categorical"}, [(1, 6), (1, 5)]),
        ({"representation": "quantile"}, [(1, 6), (1, 5)]),
        (
            {"representation": "implicit_quantile", "head_sizes": (4,)},
            [(7, 5), (7, 4), (1, 6), (1, 5)],
        ),
        # Quantiles at seven fractions, and at the six boundaries between them.
        ({"representation": "proposed_quantile"}, [(13, 5), (1, 6), (1, 5)]),
    ],
)
def test_every_network_shows_its_units_and_features(options, hidden):
    network = value_network(3, (6, 5), num_quantiles=7, **options)
    obs = jnp.arange(4.0)
    params = network.init(jax.random.key(0), obs)
    assert set(params) == {"params"}  # nothing of it is kept among the weights
    activations = show(network)(params, obs)
    assert sorted(x.shape for x in activations.hidden) == sorted(hidden)
    assert activations.features.shape == (5,)
    assert all((x >= 0).all() for x in activations.hidden)  # behind the ReLU


def test_a_channel_of_a_convolution_is_a_unit():
    torso = CNNTorso(channels=(3,), kernel_sizes=(3,), strides=(1,), hidden_size=8)
    network = value_network(2, (), torso=torso)
    image = jnp.ones((5, 5, 1))
    activations = show(network)(network.init(jax.random.key(0), image), image)
    assert sorted(x.shape for x in activations.hidden) == [(1, 8), (9, 3)]
    assert activations.features.shape == (8,)


class Own(nn.Module):
    """As a user writes one."""

    shows: bool

    @nn.compact
    def __call__(self, obs):
        x = jnp.tanh(nn.Dense(3)(obs))
        if self.shows:
            self.sow("intermediates", "hidden", x)
            self.sow("intermediates", "features", x)
        return nn.Dense(2)(x)


def test_a_network_of_ones_own_shows_what_it_sows():
    for shows, shapes in ((True, [(1, 3)]), (False, [])):
        network = make_network(Own(shows))
        params = network.init(jax.random.key(0), jnp.ones(4))
        activations = show(network)(params, jnp.ones(4))
        assert [x.shape for x in activations.hidden] == shapes
        assert activations.features.shape == (3 if shows else 0,)
