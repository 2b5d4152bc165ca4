"""Networks in parts: halves, outputs of any structure, further inputs, state beside the weights."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn import dqn, environments, losses, networks, run_sweep
from purejaxdqn.training.learner import make_learner, over_batch, periodic_target_update
from purejaxdqn.types import ConfigError, LossOutput, Network, TimeStep, Transition
from tiny import TINY, assert_same_dataset, bits

OBS = jnp.linspace(-1.0, 1.0, 4)
FULL: dict[str, Any] = {"dueling": True, "noisy": True}


class Halves(nn.Module):
    """A module of one's own with both methods; also a field of a method's name elsewhere."""

    def setup(self):
        self.torso, self.outputs = nn.Dense(3), nn.Dense(2)

    def features(self, obs):
        return nn.relu(self.torso(obs))

    def head(self, features):
        return self.outputs(features)

    def __call__(self, obs):
        return self.head(self.features(obs))


@pytest.mark.parametrize(
    "network",
    [
        networks.value_network(2, (8, 5)),
        networks.value_network(2, (8, 5), representation="implicit_quantile", **FULL),
        networks.make_network(Halves()),
    ],
)
def test_a_head_looks_at_features_of_other_weights(network):
    one, other = (network.init(jax.random.key(i), OBS) for i in range(2))
    for key in (None, jax.random.key(3)):
        whole = network.head(one, network.features(one, OBS, key), key)
        assert bits(whole) == bits(network.apply(one, OBS, key))
        mixed = network.head(one, network.features(other, OBS, key), key)
        assert bits(mixed) not in (bits(whole), bits(network.apply(other, OBS, key)))


def test_a_module_without_the_methods_has_no_halves():
    network = networks.make_network(nn.Dense(2))  # whose `features` is a number
    assert (network.features, network.head) == (None, None)


class Normalised(nn.Module):
    """An MLP with BatchNorm, whose output is a dictionary: values, and a guess of the reward."""

    @nn.compact
    def __call__(self, obs, train=False):
        x = nn.Dense(8)(obs)
        x = nn.BatchNorm(use_running_average=not train, axis_name="batch", momentum=0.9)(x)
        x = nn.relu(x)
        self.sow("intermediates", "features", x)
        return {"values": nn.Dense(2)(x), "reward": nn.Dense(1)(x)[0]}


MODULE = Normalised()
NETWORK: Network[Any] = networks.make_network(MODULE, lambda output: output["values"])


def joint_loss(network, params, target_params, batch, key):
    """CrossQ, Bhatt et al. (2024): both observations in one batch, with its own statistics."""
    both = jnp.concatenate([batch.obs_tm1, batch.obs_t])
    train: Any = functools.partial(MODULE.apply, params, train=True, mutable=["batch_stats"])
    outputs, collections = jax.vmap(train, axis_name="batch", out_axes=(0, None))(both)
    q_tm1, q_t = jnp.split(outputs["values"], 2)
    target = batch.r_t + batch.discount_t * jax.lax.stop_gradient(q_t.max(axis=1))
    td_error = target - q_tm1[jnp.arange(len(target)), batch.a_tm1]
    guess = outputs["reward"][: len(target)] - batch.r_t
    return LossOutput(optax.l2_loss(td_error) + guess**2, td_error, {"guess": guess}, collections)


def batch_of(num):
    obs = jax.random.normal(jax.random.key(1), (2, num, 4)) * 3 + 1
    ones = jnp.ones(num)
    return Transition(obs[0], jnp.zeros(num, jnp.int32), ones, 0.9 * ones, obs[1])


def test_batch_statistics_are_learned_from_batches_and_moved_by_no_gradient():
    optimizer = optax.adamw(1e-2, weight_decay=0.5)  # would shrink whatever it holds
    learner = make_learner(NETWORK, None, optimizer, periodic_target_update(2), joint_loss)
    state, batch = learner.init(jax.random.key(0), OBS), batch_of(32)
    assert "batch_stats" not in str(jax.tree.structure(state.opt_state))
    update = jax.jit(learner.update)
    after = update(state, batch, jax.random.key(0))[0]
    both = jnp.concatenate([batch.obs_tm1, batch.obs_t])
    hidden: Any = nn.Dense(8).apply({"params": state.params["params"]["Dense_0"]}, both)
    mean = after.params["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * hidden.mean(axis=0), rtol=1e-4)  # from 0 on
    assert bits(after.params["params"]) != bits(state.params["params"])
    assert bits(after.target_params) == bits(state.params)  # its own statistics, frozen
    again = update(after, batch, jax.random.key(0))[0]
    assert bits(again.target_params) == bits(again.params)
    assert learner.gradient is not None
    assert set(learner.gradient(state, batch, jax.random.key(0))) == {"params"}
    frozen = make_learner(NETWORK, losses.bellman_loss(), optimizer)
    after = jax.jit(frozen.update)(state, batch, jax.random.key(0))[0]
    assert bits(after.params["batch_stats"]) == bits(state.params["batch_stats"])


def per_transition(network, params, target_params, transition, key):
    output = losses.bellman_loss()(network, params, target_params, transition, key)
    return output._replace(collections={"batch_stats": params["batch_stats"]})


@pytest.mark.parametrize(
    ("collections", "problem"),
    [
        ({"other": jnp.zeros(3)}, "must be some of those beside the weights"),
        ({"batch_stats": jnp.zeros(3)}, "must be some of those beside the weights"),
    ],
)
def test_other_collections_than_the_networks_are_refused(collections, problem):
    def batch_loss(*args):
        return joint_loss(*args)._replace(collections=collections)

    learner = make_learner(NETWORK, None, optax.sgd(0.1), batch_loss=batch_loss)
    arguments = (learner.init(jax.random.key(0), OBS), batch_of(4), jax.random.key(0))
    with pytest.raises(ConfigError, match=problem):
        jax.eval_shape(learner.update, *arguments)
    learner = make_learner(NETWORK, per_transition, optax.sgd(0.1))
    with pytest.raises(ConfigError, match="they are for a batch_loss"):
        jax.eval_shape(learner.update, *arguments)


def test_outputs_and_statistics_go_through_a_sweep_and_its_checkpoints(tmp_path):
    experiment = functools.partial(dqn, network=NETWORK, batch_loss=joint_loss)
    config = dataclasses.replace(TINY, target_period=1, total_steps=240, hidden_sizes=(128, 128))
    how: dict[str, Any] = {"output": tmp_path, "diagnostics": True, "progress": False}
    dataset, params = run_sweep(experiment, config, [0, 1], **how)
    assert np.isfinite(dataset.final_return).all()
    assert np.isfinite(dataset.value_bias.isel(step=-1)).all()
    assert (dataset.effective_rank > 0).all()
    assert np.isfinite(dataset.guess.isel(step=-1)).all()
    means = params["batch_stats"]["BatchNorm_0"]["mean"]
    assert means.shape == (2, 8)
    assert np.abs(means).min() > 0
    again = run_sweep(experiment, config, [0, 1], resume=True, **how)
    assert_same_dataset(dataset, again.dataset)
    assert bits(again.params) == bits(params)


class TaskAware(nn.Module):
    """Looks at the task, the last part of the observation, in a way of its own."""

    @nn.compact
    def __call__(self, obs):
        scale = nn.Embed(2, 8)(obs[-1].astype(jnp.int32))
        return nn.Dense(2)(nn.relu(nn.Dense(8)(obs[:-1])) * scale)


def test_a_task_is_a_part_of_the_observation():
    """Each episode draws one of two tasks; the second one's rewards are negative."""
    plain = environments.make("CartPole-v1")

    def reset(key):
        task = jax.random.bernoulli(jax.random.fold_in(key, 1)).astype(jnp.float32)
        state, obs = plain.reset(key)
        return (state, task), jnp.append(obs, task)

    def step(key, state, action):
        env_state, (obs, reward, *ended) = plain.step(key, state[0], action)
        obs = jnp.append(obs, state[1])
        return (env_state, state[1]), TimeStep(obs, jnp.where(state[1] > 0, -1.0, reward), *ended)

    bounds = np.full(5, np.inf, np.float32)
    space = gymnasium.spaces.Box(-bounds, bounds, dtype=np.float32)
    env = plain._replace(name="Tasks", reset=reset, step=step, observation_space=space)

    def batch_loss(network, params, target_params, batch, key):
        output = over_batch(losses.bellman_loss())(network, params, target_params, batch, key)
        is_right = jnp.sign(batch.r_t) == jnp.where(batch.obs_tm1[:, -1] > 0, -1.0, 1.0)
        return output._replace(metrics={"right": is_right.astype(jnp.float32)})

    parts: dict[str, Any] = {"env": env, "network": networks.make_network(TaskAware())}
    train = dqn(dataclasses.replace(TINY, n_step=1), batch_loss=batch_loss, **parts)
    state = jax.jit(train.init)(jax.random.key(0))
    after, outputs = jax.jit(train.chunk, static_argnums=2)(state, 5, 5)
    assert {0.0, 1.0} == {*np.unique(after.replay.obs[..., -1]).tolist()}
    np.testing.assert_array_equal(outputs.metrics["right"], 1.0)
