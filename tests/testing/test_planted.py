"""More mistakes that are planted in parts, which all are found, and sound parts that all pass.

Losses have a table of their own, and most parts one beside their other tests.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn import networks, testing
from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.behaviours import epsilon_greedy
from purejaxdqn.losses import bellman_loss
from purejaxdqn.replay import n_step_replay, n_step_transition, prioritised_replay, uniform_replay
from purejaxdqn.training.learner import make_learner, periodic_target_update
from purejaxdqn.types import Activations, Behaviour, Network, Sample, Transition

KEY = jax.random.key(0)
OBS = jnp.array([0.5, -1.0, 2.0, 0.1])
stop = jax.lax.stop_gradient


def named(names, fast):
    return [pytest.param(n, marks=[pytest.mark.slow] * (n not in fast)) for n in names]


def of_pair(item):
    return item if type(item) is tuple else (item, {})  # a part is a tuple too


# --------------------------------------------------------------------------------------- networks


def draw(key, obs):
    one, two = jax.random.split(key)
    return {"torso": jax.random.normal(one, (4, 6)), "head": jax.random.normal(two, (6, 3))}


def features(params, obs, key=None):
    return jnp.tanh(obs @ params["torso"])


def head(params, x, key=None):
    return x @ params["head"]


def plain(params, obs):
    return head(params, features(params, obs))


def of_values(values, init=draw, **parts):
    """A network of three actions whose values are `values(params, obs)`."""
    return Network(init, lambda p, o, key=None: values(p, o), lambda q: q, **parts)


def activations(params, obs):
    return Activations((features(params, obs),), features(params, obs))


def one_torso(key, obs):
    return {**draw(key, obs), "torso": draw(jax.random.key(7), obs)["torso"]}


MEMBER = networks.make_network(networks.MLP((6,), 3))
ENSEMBLE = networks.ensemble(MEMBER, 3, functools.partial(jnp.mean, axis=0))


def members_alike(key, obs):
    return jax.tree.map(lambda x: jnp.stack([x] * 3), MEMBER.init(key, obs))


BAD_NETWORKS: dict[str, tuple[Any, str]] = {
    "an entry is ignored": (of_values(lambda p, o: plain(p, o.at[0].set(0))), r"entries .* \[0\]"),
    "an entry is overwritten": (of_values(lambda p, o: plain(p, o.at[1].set(o[0]))), r"\[1\]"),
    "cast to bytes": (of_values(lambda p, o: plain(p, jnp.clip(o, 1, 2).round() + 0)), "entries"),
    "NaN of zeros": (of_values(lambda p, o: plain(p, o / jnp.linalg.norm(o))), "all 0, or all 1"),
    "a root at 0": (
        of_values(lambda p, o: plain(p, o) + jnp.sqrt(jnp.sum((o @ p["torso"]) ** 2))),
        "the gradient of the action values",
    ),
    "half precision": (of_values(lambda p, o: plain(p, o).astype(jnp.float16)), "gives float16"),
    "one torso for all seeds": (of_values(plain, one_torso), "are the same with another key"),
    "members that begin alike": (ENSEMBLE._replace(init=members_alike), "all 3 members"),
    "a value that is never set": (
        of_values(lambda p, o: plain(p, o).at[2].set(0)),
        r"actions \[2\]",
    ),
    "shifted copies": (
        of_values(lambda p, o: plain(p, o)[0] + jnp.arange(3.0)),
        "differ by the same for all observations",
    ),
    "scaled copies": (
        of_values(lambda p, o: plain(p, o)[0] * jnp.array([1.0, 2, 3])),
        "the same but for a factor",
    ),
    "halves of another whole": (
        of_values(plain, features=features, head=lambda p, x, key=None: head(p, jnp.tanh(x))),
        "is not apply",
    ),
    "activations of other weights": (
        of_values(plain, activations=lambda p, o: activations(draw(KEY, o), o)),
        "the same for all weights",
    ),
    "activations of nothing": (
        of_values(plain, activations=lambda p, o: activations(p, jnp.ones_like(o))),
        "the same for all observations",
    ),
    "no Activations": (of_values(plain, activations=features), "give Activations"),
    "one action behind a stop": (
        of_values(lambda p, o: plain(p, o).at[0].set(stop(plain(p, o)[0]))),
        r"from the values of actions \[0\]",
    ),
}


class Task(nn.Module):
    """Its last entry is the number of a task."""

    @nn.compact
    def __call__(self, obs):
        task = nn.Embed(3, 4)(jnp.clip(jnp.round(obs[-1]), 0, 2).astype(jnp.int32))
        return nn.Dense(3)(nn.relu(nn.Dense(8)(jnp.concatenate([obs[:-1], task]))))


class Pixels(nn.Module):
    """Its convolution leaves the last row and column out."""

    @nn.compact
    def __call__(self, obs):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, padding="VALID")(obs / 255.0))
        return nn.Dense(3)(x.ravel())


class Fourier(nn.Module):
    """Frequencies that are drawn once."""

    @nn.compact
    def __call__(self, obs):
        frequencies = self.param("frequencies", lambda key: jax.random.normal(key, (4, 16)))
        x = obs @ stop(frequencies)
        return nn.Dense(3)(jnp.concatenate([jnp.sin(x), jnp.cos(x)]))


class Dropout(nn.Module):
    """Few of its units are ever left out."""

    @nn.compact
    def __call__(self, obs):
        x = nn.relu(nn.Dense(8)(obs))
        if self.has_rng("noise"):
            x = x * jax.random.bernoulli(self.make_rng("noise"), 0.9, x.shape) / 0.9
        return nn.Dense(3)(x)


class Zeros(nn.Module):
    """All values begin at 10."""

    @nn.compact
    def __call__(self, obs):
        x = nn.relu(nn.Dense(8, kernel_init=lambda key, shape, dtype: jnp.eye(*shape))(obs))
        x = nn.relu(nn.Dense(8)(x))
        start = nn.initializers.constant(10.0)
        return nn.Dense(3, kernel_init=nn.initializers.zeros, bias_init=start)(x)


GOOD_NETWORKS: dict[str, Any] = {
    "a task": (networks.make_network(Task()), {"obs": OBS.at[3].set(1.0)}),
    "a table": (networks.make_network(nn.Embed(10, 3)), {"obs": jnp.int32(3)}),
    "pixels": (networks.make_network(Pixels()), {"obs": jnp.zeros((8, 8, 2), jnp.uint8)}),
    "Fourier features": (networks.make_network(Fourier()), {"frozen": ("frequencies",)}),
    "dropout": (networks.make_network(Dropout()), {"noisy": True}),
    "begins as one number": networks.make_network(Zeros()),
    "its halves": of_values(plain, features=features, head=head, activations=activations),
    "an entry that is meant not to count": (
        of_values(lambda p, o: plain(p, o.at[0].set(0.0))),
        {"unread": (0,)},
    ),
    "bounded values": of_values(lambda p, o: jnp.tanh(plain(p, o) / 10)),
    "an ensemble": ENSEMBLE,
    "two atoms": networks.value_network(
        3, (6,), representation="categorical", num_atoms=2, v_min=-1.0, v_max=1.0
    ),
}
FAST_NETWORKS = {
    *("an entry is ignored", "NaN of zeros", "half precision", "one torso for all seeds"),
    *("members that begin alike", "shifted copies", "halves of another whole", "a task", "pixels"),
    *("activations of other weights", "its halves"),
}


@pytest.mark.parametrize("name", named(BAD_NETWORKS, FAST_NETWORKS))
def test_a_mistake_in_a_network(name):
    network, message = BAD_NETWORKS[name]
    with pytest.raises(AssertionError, match=message):
        testing.check_network(network, KEY, OBS, 3)


@pytest.mark.parametrize("name", named(GOOD_NETWORKS, FAST_NETWORKS))
def test_a_sound_network(name):
    network, options = of_pair(GOOD_NETWORKS[name])
    testing.check_network(network, KEY, num_actions=3, **{"obs": OBS, **options})


# ---------------------------------------------------------------------------------------- replays


def drawn(choose, base=uniform_replay):
    """A `make_replay` that draws `choose(state, key, B) -> (indices, probabilities)`."""

    def make_replay(*sizes):
        replay = base(*sizes)

        def sample(state, key):
            indices, probabilities = choose(state, key, sizes[1])
            windows = jax.vmap(lambda index: replay.window_at(state, index, 1))(indices)
            return Sample(windows, indices.astype(jnp.int32), probabilities)

        return replay._replace(sample=sample)

    return make_replay


def uniformly(state, num):
    return jnp.full(num, 1.0) / (state.num_rows * state.num_envs)


def all_but_the_newest(state, key, num):
    rows = jnp.maximum(state.num_rows - 1, 1)
    place = jax.random.randint(key, (num,), 0, rows * state.num_envs)
    row = (state.insert_row - 2 - place // state.num_envs) % state.max_rows
    number = row * state.num_envs + place % state.num_envs
    return number, jnp.full(num, 1.0) / (rows * state.num_envs)


def a_little_skewed(state, key, num):
    held = state.num_rows * state.num_envs
    place = jax.random.uniform(key, (num,)) ** 1.2 * held
    return jnp.minimum(place.astype(jnp.int32), held - 1), uniformly(state, num)


def stratified(state, key, num):
    held = state.num_rows * state.num_envs
    place = (jnp.arange(num) + jax.random.uniform(key, (num,))) / num * held
    return jnp.minimum(place.astype(jnp.int32), held - 1), uniformly(state, num)


def with_the_newest(state, key, num):
    """Zhang and Sutton (2017): each batch has one of the newest."""
    one_key, key = jax.random.split(key)
    held, newest = state.num_rows * state.num_envs, (state.insert_row - 1) % state.max_rows
    env = jax.random.randint(one_key, (), 0, state.num_envs)
    number = jax.random.randint(key, (num,), 0, held).at[0].set(newest * state.num_envs + env)
    is_new = number // state.num_envs == newest
    return number, (1 - 1 / num) / held + is_new / (num * state.num_envs)


def stored_as(dtype):
    """A replay that holds observations in another type than their own."""

    def make_replay(*sizes):
        replay, own = uniform_replay(*sizes), {}

        def cast(record, dtype, names=("obs", "next_obs")):
            return record._replace(**{x: getattr(record, x).astype(dtype) for x in names})

        def init(step, key):
            own["dtype"] = step.obs.dtype
            return replay.init(cast(step, dtype), key)

        def window_at(*at):
            assert replay.window_at is not None
            return cast(replay.window_at(*at), own["dtype"], ("obs", "next_obs", "observations"))

        def sample(state, key):
            found = replay.sample(state, key)
            names = ("obs", "next_obs", "observations")
            return found._replace(window=cast(found.window, own["dtype"], names))

        add = lambda state, step, key: replay.add(state, cast(step, dtype), key)  # noqa: E731
        return replay._replace(init=init, add=add, sample=sample, window_at=window_at)

    return make_replay


def of_transition(change):
    """A `make_replay` of windows of three steps, whose transitions are `change(it, window)`."""

    def make_replay(*sizes):
        replay = n_step_replay(uniform_replay(*sizes), 3)
        make = lambda w, discount: change(n_step_transition(w, discount), w)  # noqa: E731
        return replay._replace(to_transition=make)

    return make_replay


def updated(change, *sizes):
    replay = prioritised_replay(*sizes)
    return replay._replace(update=lambda state, i, p: replay.update(state, *change(i, p)))


def forgets_the_largest(*sizes):
    """The largest priority so far holds for the next row alone."""
    replay = prioritised_replay(*sizes)
    add = lambda state, step, key: replay.add(state, step, key).replace(  # noqa: E731
        max_priority=jnp.ones(())
    )
    return replay._replace(add=add)


BAD_REPLAYS: dict[str, Any] = {
    "forgets the largest priority": (forgets_the_largest, {}, "a new entry is drawn with"),
    "all but the newest": (drawn(all_but_the_newest), {}, "is the newest row"),
    "a little skewed": (
        drawn(a_little_skewed),
        {},
        "in two halves of the draws alike|of all draws",
    ),
    "stored as bfloat16": (stored_as(jnp.bfloat16), {}, "observations that were never added"),
    "stored as bytes": (stored_as(jnp.uint8), {}, "never added|invalid value encountered in cast"),
    "priorities of others": (
        functools.partial(updated, lambda i, p: (i, jnp.roll(p, 1))),
        {},
        "do not rise with the priorities",
    ),
    "the last action of a window": (
        of_transition(lambda t, w: t._replace(a_tm1=w.action[w.is_inside.sum() - 1])),
        {"n_step": 3},
        "a_tm1 is not the action",
    ),
    "truncations are lost": (
        of_transition(lambda t, w: t._replace(truncated_t=~w.is_inside[0])),
        {"n_step": 3},
        "truncated_t is not whether",
    ),
    "the first reward alone": (
        of_transition(lambda t, w: t._replace(r_t=w.reward[0])),
        {"n_step": 3},
        "probe: ",
    ),
}
GOOD_REPLAYS: dict[str, Any] = {
    "stratified": drawn(stratified),
    "combined": drawn(with_the_newest),
    "all but the newest, as told": (drawn(all_but_the_newest), {"newest": False}),
    "squared priorities": functools.partial(updated, lambda i, p: (i, p**2)),
}
FAST_REPLAYS = {"a little skewed", "stored as bfloat16", "combined"}


@pytest.mark.parametrize("name", named(BAD_REPLAYS, FAST_REPLAYS))
def test_a_mistake_in_a_replay(name):
    make_replay, options, message = BAD_REPLAYS[name]
    with pytest.raises(AssertionError, match=message):
        testing.check_replay(make_replay, **options)


@pytest.mark.parametrize("name", named(GOOD_REPLAYS, FAST_REPLAYS))
def test_a_sound_replay(name):
    make_replay, options = of_pair(GOOD_REPLAYS[name])
    assert testing.replay_report(make_replay, **options).failures == ()


# ------------------------------------------------------------------------------------- behaviours


def of_act(act: Callable[..., Any], init: Any = lambda key: None) -> Any:
    """A `make_behaviour` of `act(epsilon, state, key, situation)`, with epsilon's value."""

    def make_behaviour(epsilon):
        def one(state, key, here):
            now = 1.0 if here.is_prefill else epsilon(here.num_steps)
            return act(now, state, key, here)

        return Behaviour(one, init)

    return make_behaviour


def never_the_last(epsilon, state, key, here):
    """Explores all actions but the last."""
    action = epsilon_greedy(key, here.q_values, epsilon, here.is_legal)
    if here.is_prefill or here.is_legal is not None:
        return state, action, {}
    best = jnp.argmax(here.q_values).astype(jnp.int32)
    return state, jnp.where(action == len(here.q_values) - 1, best, action), {}


def stale_probability(epsilon, state, key, here):
    action = epsilon_greedy(key, here.q_values, epsilon, here.is_legal)
    values = here.q_values if here.is_legal is None else jnp.where(here.is_legal, here.q_values, -9)
    num = len(values) if here.is_legal is None else here.is_legal.sum()
    likely = epsilon / num + jnp.where(action == values.argmax(), 1 - epsilon, 0.0)
    written = jnp.where(here.is_first, likely, state)
    return jnp.float32(likely), action, {"probability": jnp.float32(written)}


def values_of_before(epsilon, state, key, here):
    values = jnp.where(here.is_first, here.q_values, state)
    return here.q_values, epsilon_greedy(key, values, epsilon, here.is_legal), {}


def by_temperature(factor, epsilon, state, key, here):
    values = factor * here.q_values / epsilon if not here.is_prefill else 0 * here.q_values
    legal = True if here.is_legal is None else here.is_legal
    action = jax.random.categorical(key, jnp.where(legal, values, -1e30))
    return state, action.astype(jnp.int32), {}


def of_any_head(epsilon, state, key, here):
    """Thompson sampling at each step."""
    head_key, key = jax.random.split(key)
    values = here.output[jax.random.randint(head_key, (), 0, 3)]
    return state, epsilon_greedy(key, values, epsilon, here.is_legal), {}


def of_the_vote(epsilon, state, key, here):
    votes = jax.nn.one_hot(here.output.argmax(1), here.output.shape[1]).sum(0)
    return state, epsilon_greedy(key, votes + 0.1 * here.q_values, epsilon, here.is_legal), {}


def by_environment(epsilon, state, key, here):
    """Horgan et al. (2018): each environment has an epsilon of its own."""
    return state, epsilon_greedy(key, here.q_values, epsilon**state, here.is_legal), {}


def noise_on_values(epsilon, state, key, here):
    noise_key, key = jax.random.split(key)
    values = here.q_values + epsilon * jax.random.normal(noise_key, here.q_values.shape)
    return state, epsilon_greedy(key, values, float(here.is_prefill), here.is_legal), {}


BAD_BEHAVIOURS: dict[str, Any] = {
    "never the last": (of_act(never_the_last), r"actions \[3\] are never taken"),
    "a stale probability": (of_act(stale_probability, lambda key: jnp.ones(())), "probability"),
    "values of before": (of_act(values_of_before, lambda key: jnp.zeros(4)), "epsilon of 0 only"),
    "a negative temperature": (
        of_act(functools.partial(by_temperature, -1.0)),
        "with an epsilon of 0 only",
    ),
}
GOOD_BEHAVIOURS: dict[str, Any] = {
    "a temperature": of_act(functools.partial(by_temperature, 1.0)),
    "any head": (of_act(of_any_head), {"num_heads": 3, "keeps_head": False}),
    "the vote": (of_act(of_the_vote), {"num_heads": 3, "keeps_head": False}),
    "an epsilon for each environment": (
        of_act(by_environment, lambda key: 1 + 7 * jax.random.uniform(key)),
        {"outlives_episodes": True},
    ),
    "noise on the values": of_act(noise_on_values),
}
FAST_BEHAVIOURS = {"never the last", "a stale probability", "any head"}


@pytest.mark.parametrize("name", named(BAD_BEHAVIOURS, FAST_BEHAVIOURS))
def test_a_mistake_in_a_behaviour(name):
    make_behaviour, message = BAD_BEHAVIOURS[name]
    with pytest.raises(AssertionError, match=message):
        testing.check_behaviour(make_behaviour)


@pytest.mark.parametrize("name", named(GOOD_BEHAVIOURS, FAST_BEHAVIOURS))
def test_a_sound_behaviour(name):
    make_behaviour, options = of_pair(GOOD_BEHAVIOURS[name])
    assert testing.behaviour_report(make_behaviour, **options).failures == ()


# --------------------------------------------------------------------------------------- learners

TABLE = networks.value_network(3, (6,))
SETTINGS: dict[str, Any] = {"target_update": periodic_target_update(10)}
LEARNER = make_learner(TABLE, bellman_loss(), optax.adam(1e-2), **SETTINGS)


def make_batch():
    rng = np.random.default_rng(0)
    obs: Any = rng.normal(size=(2, 16, 4)).astype(np.float32)
    scalars: Any = np.float32(rng.normal(size=16)), np.full(16, 0.9, np.float32)
    action: Any = np.arange(16, dtype=np.int32) % 3
    return Transition._make((obs[0], action, *scalars, obs[1], np.zeros(16, bool), {}))


def with_weights(change):
    def update(state, batch, key, weights=None):
        return LEARNER.update(state, batch, key, None if weights is None else change(weights))

    return LEARNER._replace(update=update)


def answering(change, learner=LEARNER):
    """A learner whose answers are `change(state, priorities, metrics)`."""
    return learner._replace(update=lambda *args: change(*learner.update(*args)))


def counting(by):
    return answering(lambda s, p, m: (dataclasses.replace(s, num_updates=by(s.num_updates)), p, m))


def of_optimizer(optimizer):
    return make_learner(TABLE, bellman_loss(), optimizer, **SETTINGS)


def two_steps(state, batch, key, weights=None):
    one, two = jax.random.split(key)
    first = LEARNER.update(state, batch, one, weights)[0]
    second, *rest = LEARNER.update(first, batch, two, weights)
    return dataclasses.replace(second, num_updates=state.num_updates + 1), *rest


BAD_LEARNERS: dict[str, Any] = {
    "weights ignored": (with_weights(lambda w: None), "a transition whose weight is 0 counts"),
    "weights of others": (with_weights(lambda w: w[::-1]), "whose weight is 0 counts"),
    "no count": (counting(lambda n: 0 * n), "num_updates goes from 0 to 0"),
    "counts twice": (counting(lambda n: n + 1), "num_updates goes from 0 to 2"),
    "one priority": (answering(lambda s, p, m: (s, p.mean(), m)), r"float32\[16\] and then"),
    "priorities of others": (answering(lambda s, p, m: (s, p[::-1], m)), "the batch's order"),
    "NaN priorities": (answering(lambda s, p, m: (s, p * jnp.nan, m)), "must be finite"),
    "uphill": (of_optimizer(optax.adam(-1e-2)), "is the sign of the step wrong"),
    "nothing moves": (of_optimizer(optax.set_to_zero()), "it must fall"),
    "metrics of a batch": (answering(lambda s, p, m: (s, p, {"all": p})), "the metric 'all'"),
    "no metrics": (answering(lambda s, p, m: (s, p)), r"must give \(state, priorities, metrics\)"),
    "one seed": (
        LEARNER._replace(init=lambda key, obs: LEARNER.init(jax.random.key(0), obs)),
        "other keys give the same weights",
    ),
}
GOOD_LEARNERS: dict[str, Any] = {
    "adam": LEARNER,
    "no target network": make_learner(TABLE, bellman_loss(), optax.sgd(1e-3)),
    "weight decay": of_optimizer(optax.adamw(1e-2)),
    "unweighted, as told": (with_weights(lambda w: None), {"weighted": False}),
    "two steps in one": LEARNER._replace(update=two_steps),
    "the same priority for all": answering(lambda s, p, m: (s, jnp.ones_like(p), m)),
}
FAST_LEARNERS = {"weights ignored", "no count", "one priority", "uphill", "two steps in one"}


@pytest.mark.parametrize("name", named(BAD_LEARNERS, FAST_LEARNERS))
def test_a_mistake_in_a_learner(name):
    learner, message = BAD_LEARNERS[name]
    with pytest.raises(AssertionError, match=message):
        testing.check_learner(learner, TABLE, make_batch())


@pytest.mark.parametrize("name", named(GOOD_LEARNERS, FAST_LEARNERS))
def test_a_sound_learner(name):
    learner, options = of_pair(GOOD_LEARNERS[name])
    assert testing.learner_report(learner, TABLE, make_batch(), **options).failures == ()


# -------------------------------------------------------------------------------------- training


def of_learner(key, state, **changes):
    return dataclasses.replace(state, learner=dataclasses.replace(state.learner, **changes))


def counted_twice(key, state):
    return of_learner(key, state, num_updates=state.learner.num_updates + 1)


def counted_anew(key, state):
    num_updates = state.learner.num_updates
    return of_learner(key, state, num_updates=jnp.where(num_updates == 100, 0, num_updates))


def away(params, target_params, num_updates):
    return jax.tree.map(lambda x, y: y + 0.1 * (y - x), params, target_params)


BAD_RUNS: dict[str, Any] = {
    "a count of its own": (functools.partial(dqn, after_update=counted_twice), "num_updates 5006"),
    "a target that flees": (functools.partial(dqn, target_update=away), "probe: "),
    "a target that stays": (functools.partial(dqn, target_update=lambda p, t, n: t), "probe: "),
    "uphill": (
        functools.partial(dqn, optimizer=lambda rate: optax.sgd(lambda n: -rate(n))),
        "the optimizer: .* leads away",
    ),
}
GOOD_RUNS: dict[str, Any] = {
    "a count that begins anew": functools.partial(dqn, after_update=counted_anew),
    "weight decay": functools.partial(dqn, optimizer=optax.adamw),
}


@pytest.mark.parametrize("name", named(BAD_RUNS, {"a count of its own"}))
def test_a_mistake_in_a_run(name):
    experiment, message = BAD_RUNS[name]
    with pytest.raises(AssertionError, match=message):
        testing.check_training(experiment, DQNConfig(n_step=3, num_envs=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD_RUNS)
def test_a_sound_run(name):
    report = testing.training_report(GOOD_RUNS[name], DQNConfig(n_step=3, num_envs=2))
    assert report.failures == ()
    rows = {check.name: check.passed for check in report.checks}
    assert rows["counters"] == (None if "count" in name else True)
    assert rows["the optimizer"] == (None if "count" in name else True)
