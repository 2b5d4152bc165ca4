"""What others changed in learners, each from outside: optimisers, edits of weights, no targets."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from purejaxdqn import dqn, losses, networks, pqn, replay
from purejaxdqn.replay.prioritised import SumTree
from purejaxdqn.training.learner import no_target, over_batch, periodic_target_update
from purejaxdqn.types import LossOutput, TrainState
from tiny import TINY, TINY_PQN, bits

NETWORK = networks.value_network(2, (8,))
EXPERIMENTS: dict[str, Any] = {"dqn": (dqn, TINY), "pqn": (pqn, TINY_PQN)}


def run(name, num_iterations=2, **parts):
    """Trains for some iterations with parts; gives the state before, after, and the outputs."""
    experiment, config = EXPERIMENTS[name]
    train = functools.partial(experiment, **parts)(config)
    before = jax.jit(train.init)(jax.random.key(0))
    chunk = jax.jit(train.chunk, static_argnums=2)
    return before, *chunk(before, num_iterations, num_iterations)


def layers(state):
    return state.learner.params["params"]


def with_learner(state: TrainState, **changes: Any) -> TrainState:
    return dataclasses.replace(state, learner=dataclasses.replace(state.learner, **changes))


def by_layer(learning_rate):
    """The first layer stands still, the second one moves by plain gradients."""
    label = functools.partial(jax.tree.map_with_path, lambda path, _: path[1].key)
    rules = {"Dense_0": optax.set_to_zero(), "Dense_1": optax.sgd(learning_rate)}
    return optax.multi_transform(rules, label)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_part_of_the_weights_has_its_own_optimiser(name):
    before, after, _ = run(name, network=NETWORK, optimizer=by_layer)
    assert bits(layers(before)["Dense_0"]) == bits(layers(after)["Dense_0"])
    assert bits(layers(before)["Dense_1"]) != bits(layers(after)["Dense_1"])


def reset_last_layer(key, state):
    """Begins the last layer anew, without its moments, in which all weights are one vector."""
    params = state.learner.params
    fresh = {"params": {**params["params"], "Dense_1": NETWORK.init(key, state.obs[0])["params"]}}
    fresh["params"]["Dense_1"] = fresh["params"]["Dense_1"]["Dense_1"]
    is_kept = jax.tree.map_with_path(
        lambda path, x: jnp.full(x.shape, "Dense_1" not in str(path)), params
    )
    mask = ravel_pytree(is_kept)[0]
    moments = {n: optax.tree.get(state.learner.opt_state, n) * mask for n in ("mu", "nu")}
    return with_learner(
        state, params=fresh, opt_state=optax.tree.set(state.learner.opt_state, **moments)
    )


def test_a_layer_is_reset_with_its_moments():
    _, after, _ = run("pqn", 1, network=NETWORK, after_update=reset_last_layer)
    moments = optax.tree.get(after.learner.opt_state, "mu")
    is_last = 8 * 4 + 8  # first the first layer's bias and kernel, as their names are sorted
    assert (moments[:is_last] != 0).any()
    assert (moments[is_last:] == 0).all()
    assert (layers(after)["Dense_1"]["bias"] == 0).all()  # as at the start: nothing came after


def test_shrink_and_perturb_draws_anew_for_each_update():
    def shrink(key, state):
        fresh = NETWORK.init(key, state.obs[0])
        params = jax.tree.map(lambda w, f: 0.0 * w + f, state.learner.params, fresh)
        return with_learner(state, params=params)

    kernels = []
    for num_iterations in (1, 2):
        _, after, _ = run("dqn", num_iterations, network=NETWORK, after_update=shrink)
        kernels.append(np.asarray(layers(after)["Dense_0"]["kernel"]))
    assert (kernels[0] != kernels[1]).all()


class Kept(NamedTuple):
    """Which weights are not pruned."""

    is_kept: Any


def keep_pruned(learning_rate):
    """Adam that leaves pruned weights where they are; the hook says which."""
    masks = optax.GradientTransformation(
        lambda params: Kept(jax.tree.map(jnp.ones_like, params)),
        lambda updates, state, params=None: (jax.tree.map(jnp.multiply, updates, state[0]), state),
    )
    return optax.chain(optax.adam(learning_rate), masks)


def prune(key, state):
    """Prunes half of the weights after the second update, the smallest ones of each array."""
    is_due = state.learner.num_updates == 2
    params, masks = state.learner.params, optax.tree.get(state.learner.opt_state, "is_kept")
    masks = jax.tree.map(
        lambda w, old: jnp.where(is_due, jnp.abs(w) > jnp.median(jnp.abs(w)), old), params, masks
    )
    opt_state = optax.tree.set(state.learner.opt_state, is_kept=masks)
    return with_learner(
        state, params=jax.tree.map(jnp.multiply, params, masks), opt_state=opt_state
    )


def test_pruned_weights_stay_pruned():
    _, after, _ = run("dqn", 6, network=NETWORK, optimizer=keep_pruned, after_update=prune)
    kernel = layers(after)["Dense_0"]["kernel"]
    assert (kernel == 0).mean() == 0.5


def test_the_hook_sets_priorities():
    def forget(key, state):
        tree = state.replay.tree
        zero = jax.tree.map(jnp.zeros_like, tree)
        kept = SumTree(zero.leaves.at[0].set(1.0), zero.sums.at[0, 0, 0].set(1.0))
        return dataclasses.replace(state, replay=dataclasses.replace(state.replay, tree=kept))

    prioritised = replay.prioritised_replay(120, 16, 500, 0.5)
    _, after, _ = run("dqn", 2, replay=prioritised, after_update=forget)
    assert prioritised.sample(after.replay, jax.random.key(1)).indices.tolist() == [0] * 16


def test_members_learn_from_batches_of_their_own():
    member = networks.value_network(2, (4,))
    num_members = 4

    def init(key, obs):
        return jax.vmap(member.init, in_axes=(0, None))(jax.random.split(key, num_members), obs)

    def apply(params, obs, key=None):
        return jax.vmap(member.apply, in_axes=(0, None))(params, obs)

    ensemble = member._replace(init=init, apply=apply, action_values=lambda q: q.mean(axis=0))
    of_member = over_batch(losses.bellman_loss())

    def batch_loss(_, params, target_params, batch, key):
        split = jax.tree.map(lambda x: x.reshape(num_members, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, num_members)
        learn = jax.vmap(functools.partial(of_member, member))
        return jax.tree.map(jnp.ravel, learn(params, target_params, split, keys))

    before, after, outputs = run("dqn", network=ensemble, batch_loss=batch_loss)
    changed = layers(before)["Dense_0"]["kernel"] != layers(after)["Dense_0"]["kernel"]
    assert changed.any(axis=(1, 2)).all()
    assert np.isfinite(outputs.metrics["q_value"]).all()


def test_without_a_target_network_the_loss_gets_the_weights_and_nothing_is_copied():
    def loss(network, params, target_params, transition, key):
        output = losses.bellman_loss()(network, params, target_params, transition, key)
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(target_params), strict=True)
        gap = jnp.stack([jnp.abs(a - b).sum() for a, b in pairs]).sum()
        return LossOutput(output.loss, output.priority, {"gap": gap})

    parts: dict[str, Any] = {"network": NETWORK, "loss_fn": loss, "num_iterations": 6}
    _, without, outputs = run("dqn", target_update=no_target, **parts)
    assert without.learner.target_params is None
    assert (outputs.metrics["gap"] == 0).all()
    _, current, _ = run("dqn", target_update=periodic_target_update(1), **parts)
    assert bits(without.learner.params) == bits(current.learner.params)


def test_weights_are_transformed_before_the_forward_pass():
    def apply(params, obs, key=None):
        return NETWORK.apply(jax.tree.map(jnp.tanh, params), obs, key)

    before, after, _ = run("dqn", network=NETWORK._replace(apply=apply))
    assert bits(before.learner.params) != bits(after.learner.params)


def test_the_count_of_updates_begins_anew_with_all_that_follows_it():
    def restart(key, state):
        num_updates = jnp.where(state.learner.num_updates == 3, 0, state.learner.num_updates)
        return with_learner(state, num_updates=num_updates)

    _, after, _ = run("dqn", 5, after_update=restart)
    assert int(after.learner.num_updates) == 2
