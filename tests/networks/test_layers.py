"""Tests what the layers share: noise of a whole batch, and products of matrices."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.losses import bellman_loss, double_q_learning
from purejaxdqn.networks import NoisyDense, make_network, value_network
from purejaxdqn.networks.layers import Dense
from purejaxdqn.training.learner import over_batch
from purejaxdqn.types import BATCH, ConfigError, LossOutput, Transition, compute_once

OBS = jnp.array([0.3, -1.0, 2.0, 0.5])
KINDS: dict[str, Any] = {
    "noisy": {"noisy": True},
    "fractions": {"representation": "implicit_quantile"},
}


def small(kind, noise):
    network = value_network(2, (8,), noise=noise, num_quantiles=4, num_cosines=8, **KINDS[kind])
    return network, network.init(jax.random.key(0), OBS)


def assert_near(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, expected
    )


def in_batch(network, params, keys, obs=OBS):
    """The action values of one observation in a batch, a key for each, as a learner computes."""
    apply = jax.vmap(network.apply, (None, None, 0), axis_name=BATCH)
    outputs = apply(params, obs, keys)
    return np.asarray(jax.vmap(network.action_values)(outputs))


class TestNoiseOfABatch:
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_one_for_all_transitions_and_new_in_each_call(self, kind):
        network, params = small(kind, "batch")
        first, second = (jax.random.split(jax.random.key(i), 5) for i in (1, 2))
        values, others = in_batch(network, params, first), in_batch(network, params, second)
        assert np.ptp(values, axis=0).max() == 0
        assert np.abs(values - others).min() > 0
        # It is the noise of the first key, by another way to compute.
        alone = network.action_values(network.apply(params, OBS, first[0]))
        np.testing.assert_allclose(values[0], alone, rtol=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_each_transition_has_its_own_if_asked_for(self, kind):
        network, params = small(kind, "transition")
        values = in_batch(network, params, jax.random.split(jax.random.key(1), 5))
        assert len(np.unique(values[:, 0])) == 5

    @pytest.mark.parametrize("kind", KINDS)
    def test_runs_side_by_side_do_not_share_it(self, kind):
        network, params = small(kind, "batch")
        keys = jax.random.split(jax.random.key(1), (3, 5))
        apply = jax.vmap(network.apply, (None, None, 0), axis_name=BATCH)
        outputs = jax.vmap(apply, (None, None, 0))(params, OBS, keys)
        values = np.asarray(jax.vmap(jax.vmap(network.action_values))(outputs))
        assert len(np.unique(values[:, 0, 0])) == 3
        for run in range(3):
            np.testing.assert_allclose(values[run], in_batch(network, params, keys[run]), rtol=1e-5)

    def test_three_networks_of_a_loss_draw_noise_of_their_own(self):
        network, params = small("noisy", "batch")
        drawn = []

        def watch(params, obs, key):
            output = network.apply(params, obs, key)
            drawn.append(network.action_values(output))
            return output

        def loss_fn(_, params, target_params, transition, key):
            drawn.clear()
            loss = bellman_loss(double_q_learning)
            output = loss(network._replace(apply=watch), params, target_params, transition, key)
            seen = {f"value_{i}": values[0] for i, values in enumerate(drawn)}
            return LossOutput(output.loss, output.priority, seen)

        batch = Transition(OBS, jnp.int32(0), jnp.float32(1), jnp.float32(0.9), OBS)
        batch = jax.tree.map(lambda x: jnp.stack([x] * 3), batch)
        metrics = over_batch(loss_fn)(network, params, params, batch, jax.random.key(3)).metrics
        values = np.stack([metrics[f"value_{i}"] for i in range(3)])  # [networks, batch]
        assert len(np.unique(values[:, 0])) == 3
        assert np.ptp(values, axis=1).max() == 0

    def test_gradient_is_that_of_weights_with_that_noise(self):
        layer = make_network(NoisyDense(3, noise="batch"), noise="batch")
        params, keys = layer.init(jax.random.key(0), OBS), jax.random.split(jax.random.key(1), 4)
        rows = jax.random.normal(jax.random.key(2), (4, 4))

        def together(params):
            outputs = jax.vmap(layer.apply, (None, 0, 0), axis_name=BATCH)(params, rows, keys)
            return jnp.sum(outputs**2)

        def alone(params):
            outputs = jax.vmap(layer.apply, (None, 0, None))(params, rows, keys[0])
            return jnp.sum(outputs**2)

        found, expected = jax.grad(together)(params), jax.grad(alone)(params)
        assert_near(found, expected)

    def test_other_words_are_refused(self):
        with pytest.raises(ConfigError, match=r"noise \('sample'\) must be 'batch' or"):
            value_network(2, (4,), noise="sample")  # type: ignore[arg-type]


@pytest.mark.parametrize("num_outputs", [2, 16, 17])
@pytest.mark.parametrize("rows", [(), (5,), (2, 3)])
def test_dense_is_that_of_flax(num_outputs, rows):
    ours, theirs = Dense(num_outputs), nn.Dense(num_outputs)
    x = jax.random.normal(jax.random.key(0), (6, *rows, 4))
    params = theirs.init(jax.random.key(1), x[0])

    def loss(params, x, layer):
        return jnp.sum(jax.vmap(lambda one: layer.apply(params, one))(x) ** 2)

    found, expected = (
        jax.jit(jax.value_and_grad(lambda p, x, layer=layer: loss(p, x, layer), (0, 1)))(params, x)
        for layer in (ours, theirs)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_what_is_computed_once_is_the_same_and_lies_in_memory(monkeypatch):
    def total(x):
        repeated = compute_once(lambda: jnp.tile(x, 3) ** 2)
        return jnp.sum(repeated * jnp.arange(6.0)), repeated

    x = jnp.array([1.0, 2.0])
    program = jax.jit(jax.value_and_grad(total, has_aux=True))
    (loss, repeated), gradient = program(x)
    np.testing.assert_array_equal(repeated, [1, 4, 1, 4, 1, 4])
    assert loss == 4 * (1 + 3 + 5) + 2 + 4
    np.testing.assert_array_equal(gradient, [2 * (0 + 2 + 4), 4 * (1 + 3 + 5)])
    assert " conditional(" in str(program.lower(x).compile().as_text())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # which would wait for the condition
    assert " conditional(" not in str(jax.jit(total).lower(x).compile().as_text())
