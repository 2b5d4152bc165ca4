"""What parts return in another shape or kind than they must is refused in one line, in tracing."""

# mypy: disable-error-code="arg-type, return-value"

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn import behaviours, dqn, losses, networks, pqn
from purejaxdqn.training.learner import make_learner, over_batch
from purejaxdqn.training.parts import ensure_alike
from purejaxdqn.types import Behaviour, ConfigError, Learner, Measure, run_axes
from tiny import TINY, TINY_PQN

EXPERIMENTS: dict[str, Any] = {"dqn": (dqn, TINY), "pqn": (pqn, TINY_PQN)}
NETWORK = networks.value_network(2, (8,))
ACTION = jnp.int32(0)


def with_learner(**changes):
    def hook(key, state):
        return dataclasses.replace(state, learner=dataclasses.replace(state.learner, **changes))

    return hook


def as_half(key, state):
    params = jax.tree.map(lambda x: x.astype(jnp.float16), state.learner.params)
    return with_learner(params=params)(key, state)


def acting(*acted, init=lambda key: None):
    return Behaviour(lambda state, key, here: acted, init)


def broken_learner(network):
    """A learner whose count becomes a float."""
    sound = make_learner(network, losses.bellman_loss(), optax.sgd(0.1))

    def update(state, *args):
        state, priorities, metrics = sound.update(state, *args)
        return dataclasses.replace(state, num_updates=state.num_updates * 1.0), priorities, metrics

    return Learner(sound.init, update)


def add_axis(axis, x):
    return x if axis is None else jax.ShapeDtypeStruct((2, *x.shape), x.dtype)


def told(metrics):
    sound = over_batch(losses.bellman_loss())
    return lambda *args: sound(*args)._replace(metrics=metrics)


def changed(**fields):
    sound = over_batch(losses.bellman_loss())
    return lambda *args: sound(*args)._replace(**fields)


BROKEN: list[tuple[str, Any, str]] = [
    ("after_update", lambda key, state: None, "what after_update returns (None) must be the state"),
    ("after_update", lambda key, state: state.learner, "must be the state"),
    ("after_update", as_half, "has float16[8] as learner.params['params']['Dense_0']['bias']"),
    ("after_update", with_learner(params={}), "has nothing as learner.params"),
    ("after_update", with_learner(num_updates=jnp.zeros(2)), "has float32[2] as learner.num_upda"),
    ("after_update", with_learner(num_updates="x"), "has str as learner.num_updates"),
    ("behaviour", acting(None, ACTION), "what Behaviour.act returns"),
    ("behaviour", acting(None, ACTION, None), "extras (None) must be a dictionary"),
    ("behaviour", acting(None, ACTION, [ACTION]), "must be a dictionary"),
    ("behaviour", acting(None, ACTION, {"text": "x"}), "must be a dictionary"),
    ("behaviour", acting(None, jnp.zeros(()), {}), "the action of Behaviour.act"),
    ("behaviour", acting(None, jnp.zeros(2, jnp.int32), {}), "must be one whole number"),
    ("behaviour", acting(None, None, {}), "the action of Behaviour.act (None)"),
    (
        "behaviour",
        acting(jnp.zeros(()), ACTION, {}),
        "has float32[] as a whole, and must have",
    ),
    ("behaviour", acting(0.0, ACTION, {}, init=lambda key: 0), "the state after Behaviour.act has"),
    ("batch_loss", lambda *args: jnp.zeros(3), "what the loss returns"),
    ("batch_loss", changed(loss=jnp.zeros(())), "LossOutput.loss"),
    ("batch_loss", changed(priority=None), "LossOutput.priority (None) must be of shape"),
    ("batch_loss", told({"m": jnp.zeros(())}), "metric m has shape ()"),
    ("loss_fn", lambda *args: jnp.zeros(()), "what the loss returns"),
    ("loss_fn", lambda n, p, *args: losses.bellman_loss()(n, p, *args)[0], "must be a LossOutput"),
    ("wrap_loss", lambda loss_fn: None, "what wrap_loss makes (None) must be a function of 5"),
    ("wrap_loss", lambda loss_fn: lambda batch: batch, "what wrap_loss makes"),
    ("learner", broken_learner(NETWORK), "the state after Learner.update and Replay.update has fl"),
    ("measure", Measure(lambda *args: {}), "what Measure.update returns"),
    (
        "measure",
        Measure(lambda *args: (jnp.zeros(2), {})),
        "the accumulator of measure has",
    ),
]


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize(("part", "value", "words"), BROKEN)
def test_what_a_part_returns_is_refused_in_one_line(name, part, value, words):
    experiment, config = EXPERIMENTS[name]
    config = dataclasses.replace(config, **({"layer_norm": False} if name == "pqn" else {}))

    def trace():
        train = experiment(config, **{part: value})
        state = jax.eval_shape(train.init, jax.random.key(0))
        jax.eval_shape(lambda state: train.chunk(state, jnp.int32(1), 1), state)

    with pytest.raises(ConfigError) as caught:
        trace()
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("other", [{}, {"mask": jnp.zeros(4)}, {"other": jnp.zeros(3)}])
def test_extras_of_another_shape_in_the_prefill_are_refused(other):
    behaviour = behaviours.write_extras(
        behaviours.epsilon_greedy_behaviour(lambda _: 0.5),
        lambda key, here, action: other if here.is_prefill else {"mask": jnp.zeros(3)},
    )
    with pytest.raises(ConfigError, match=r"extras in the prefill has .* as \['(mask|other)'\]"):
        jax.eval_shape(dqn(TINY, behaviour=behaviour).init, jax.random.key(0))


@pytest.mark.parametrize(
    ("action", "extras"),
    [(0, {}), (np.int32(1), {"p": 1.0, "mask": np.ones(2, bool)}), (jnp.uint8(1), {"key": 3})],
)
def test_numbers_of_python_and_numpy_are_actions_and_extras(action, extras):
    train = dqn(TINY, behaviour=acting(None, action, extras))
    jax.eval_shape(train.init, jax.random.key(0))


def test_what_is_alike_is_not_refused():
    tree = {"a": jnp.zeros(2), "b": None, "key": jax.random.key(0), "n": np.int32(0)}
    ensure_alike("it", {**tree, "a": np.ones(2, np.float32)}, tree)
    ensure_alike("it", None, None)
    with pytest.raises(ConfigError, match=r"it .* must be of the same classes"):
        ensure_alike("it", (jnp.zeros(2),), [jnp.zeros(2)])


@pytest.mark.parametrize(
    ("is_due", "is_refused"),
    [
        (lambda state: state.learner.num_updates % 4 == 0, False),
        (lambda state: state.num_steps > 200, False),
        (lambda state: state.episode_return.mean() > 10, True),
        (lambda state: jax.random.bernoulli(state.key), True),
    ],
)
def test_a_count_that_runs_side_by_side_would_not_share_is_refused(is_due, is_refused):
    def begin_anew(key, state):
        count = jnp.where(is_due(state), 0, state.learner.num_updates)
        return with_learner(num_updates=count)(key, state)

    train = dqn(TINY, after_update=begin_anew)
    one = jax.eval_shape(train.init, jax.random.key(0))
    axes = run_axes(one)
    shapes = jax.tree.map(
        lambda axis, part: jax.tree.map(lambda x: add_axis(axis, x), part),
        axes,
        one,
        is_leaf=lambda axis: axis is None,
    )
    chunk = jax.vmap(lambda s: train.chunk(s, jnp.int32(1), 1)[0], (axes,), axes)
    problem = pytest.raises(ConfigError, match="num_updates by what differs between runs")
    with problem if is_refused else contextlib.nullcontext():
        jax.eval_shape(chunk, shapes)
