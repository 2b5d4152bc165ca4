"""Behaviours: how often each action is taken, what is held on to, and what is written down."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from scipy import stats

from purejaxdqn import behaviours
from purejaxdqn.types import ConfigError, Situation

NUM = 20_000
Q_VALUES = jnp.array([1.0, 3.0, 2.0, 0.0])
LEGAL = jnp.array([True, False, True, True])


def situation(is_legal=None, is_prefill=False, is_first=False, output=Q_VALUES, q_values=Q_VALUES):
    num_steps = jnp.int32(10)
    return Situation(
        jnp.zeros(2), output, q_values, jnp.asarray(is_first), num_steps, is_prefill, is_legal
    )


def act_often(behaviour, situation, num=NUM, seed=0):
    """Acts of `num` environments, each once: `(states, actions, extras)`."""

    def act(key):
        init_key, act_key = jax.random.split(key)
        return behaviour.act(behaviour.init(init_key), act_key, situation)

    return jax.vmap(act)(jax.random.split(jax.random.key(seed), num))


def play(behaviour, first, num_steps, num=200, q_values=Q_VALUES):
    """Actions `[num, num_steps]` of episodes that begin where `first` `[num_steps]` says."""

    def step(carry, is_first):
        state, key = carry
        key, act_key = jax.random.split(key)
        state, action, _ = behaviour.act(
            state, act_key, situation(is_first=is_first, q_values=q_values)
        )
        return (state, key), action

    def episode(key):
        init_key, key = jax.random.split(key)
        return jax.lax.scan(step, (behaviour.init(init_key), key), jnp.asarray(first))[1]

    return np.asarray(jax.vmap(episode)(jax.random.split(jax.random.key(1), num)))


def half(num_steps):
    return jnp.where(num_steps == 10, 0.5, jnp.nan)


def test_a_random_action_that_is_certain_needs_no_values():
    def act(key, q_values, epsilon):
        return behaviours.epsilon_greedy(key, q_values, epsilon, LEGAL)

    keys = jax.random.split(jax.random.key(0), NUM)
    certain = jax.vmap(lambda key: act(key, Q_VALUES, 1.0))(keys)
    drawn = jax.vmap(lambda key: act(key, Q_VALUES, jnp.float32(1.0)))(keys)
    np.testing.assert_array_equal(certain, drawn)
    for epsilon, needed in ((1.0, False), (0.9, True)):
        closed = jax.make_jaxpr(functools.partial(act, epsilon=epsilon))(keys[0], Q_VALUES)
        assert dce_jaxpr(closed.jaxpr, [True])[1] == [True, needed]


ALL = {
    "epsilon_greedy": behaviours.epsilon_greedy_behaviour(half, write_probability=True),
    "boltzmann": behaviours.boltzmann_behaviour(half, write_probability=True),
    "epsilon_z": behaviours.epsilon_z_behaviour(half, longest=8),
    "head": behaviours.head_behaviour(half, 1, lambda output: output[jnp.newaxis]),
}


@pytest.mark.parametrize("name", ALL)
class TestAll:
    def test_the_prefill_is_uniform(self, name):
        actions = act_often(ALL[name], situation(is_prefill=True))[1]
        assert stats.chisquare(np.bincount(actions, minlength=4)).pvalue > 1e-3
        legal = np.bincount(act_often(ALL[name], situation(LEGAL, is_prefill=True))[1], minlength=4)
        assert legal[1] == 0
        assert stats.chisquare(legal[[0, 2, 3]]).pvalue > 1e-3

    def test_only_legal_actions_are_taken(self, name):
        found = np.bincount(act_often(ALL[name], situation(LEGAL))[1], minlength=4)
        assert found[1] == 0
        assert found[2] > found[0] > 0  # the best legal one is taken most

    def test_actions_and_states_have_one_type(self, name):
        behaviour = ALL[name]
        state = behaviour.init(jax.random.key(0))
        after, action, extras = behaviour.act(state, jax.random.key(1), situation())
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
        assert (action.shape, action.dtype) == ((), jnp.int32)
        assert all(x.shape == () for x in extras.values())


@pytest.mark.parametrize("name", ["epsilon_greedy", "boltzmann"])
@pytest.mark.parametrize("is_legal", [None, LEGAL])
@pytest.mark.parametrize("is_prefill", [False, True])
def test_probabilities_are_those_of_the_actions(name, is_legal, is_prefill):
    _, actions, extras = act_often(ALL[name], situation(is_legal, is_prefill))
    written = dict(zip(actions.tolist(), extras["probability"].tolist(), strict=True))
    assert sum(written.values()) == pytest.approx(1.0)
    found = np.bincount(actions, minlength=4)
    taken = sorted(written)
    expected = np.array([written[a] for a in taken])
    assert stats.chisquare(found[taken], NUM * expected / expected.sum()).pvalue > 1e-3


def test_boltzmann_probabilities_by_hand():
    """At a temperature of 0.5: exp(2), exp(6), exp(4), exp(0) over their sum."""
    weights = np.exp([2.0, 6.0, 4.0, 0.0])
    _, actions, extras = act_often(ALL["boltzmann"], situation())
    np.testing.assert_allclose(extras["probability"], (weights / weights.sum())[actions], rtol=1e-5)


class TestEpsilonZ:
    def test_how_long_actions_last(self):
        """With an epsilon of 1, lengths follow the zeta distribution up to the longest."""
        behaviour = behaviours.epsilon_z_behaviour(lambda _: 1.0, exponent=2.0, longest=3)
        weights = np.array([1, 1 / 4, 1 / 9])
        _, actions, _ = act_often(behaviour, situation())
        (left, held), _, _ = act_often(behaviour, situation())
        np.testing.assert_array_equal(held, actions)
        found = np.bincount(left, minlength=3)  # of the steps that come after this one
        assert stats.chisquare(found, NUM * weights / weights.sum()).pvalue > 1e-3

    def test_an_action_is_held_on_to(self):
        """Beginning rarely, whatever is not greedy lasts as long as was drawn."""
        behaviour = behaviours.epsilon_z_behaviour(lambda _: 0.02, exponent=1.01, longest=5)
        actions = play(behaviour, np.zeros(100, bool), 100, num=400)
        runs = []
        for row in actions:
            changes = np.flatnonzero(np.diff(row)) + 1
            pieces = np.split(row, changes)[1:-1]
            runs += [len(piece) for piece in pieces if piece[0] != 1]
        assert max(runs) >= 5
        assert np.mean(np.array(runs) > 1) > 0.5

    def test_an_episode_begins_afresh(self):
        behaviour = behaviours.epsilon_z_behaviour(lambda _: 0.02, exponent=1.01, longest=1000)
        first = np.arange(200) % 2 == 0  # episodes of two steps
        actions = play(behaviour, first, 200)
        held = (actions[:, 1:-1:2] != 1) & (actions[:, 2::2] != 1)
        # Two random actions at the seam of two episodes are a coincidence.
        assert held.mean() < 0.002

    def test_what_is_held_must_be_legal(self):
        behaviour = behaviours.epsilon_z_behaviour(lambda _: 0.0)
        held = (jnp.int32(3), jnp.int32(1))
        assert behaviour.act(held, jax.random.key(0), situation())[1] == 1
        (left, _), action, _ = behaviour.act(held, jax.random.key(0), situation(LEGAL))
        assert (int(action), int(left)) == (2, 0)


class TestHeads:
    OUTPUT = jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])

    def test_a_head_is_followed_through_an_episode(self):
        behaviour = behaviours.head_behaviour(lambda _: 0.0, 3)

        def step(carry, is_first):
            state, key = carry
            key, act_key = jax.random.split(key)
            here = situation(is_first=is_first, output=self.OUTPUT)
            state, action, _ = behaviour.act(state, act_key, here)
            return (state, key), action

        first = np.arange(3000) % 10 == 0
        start = (behaviour.init(jax.random.key(0)), jax.random.key(1))
        actions = np.asarray(jax.lax.scan(step, start, jnp.asarray(first))[1]).reshape(300, 10)
        assert (actions == actions[:, :1]).all()
        assert stats.chisquare(np.bincount(actions[:, 0])[[0, 1, 3]]).pvalue > 1e-3


class TestWrittenExtras:
    def test_they_stand_beside_the_behaviours_own(self):
        plain = ALL["epsilon_greedy"]
        both = behaviours.write_extras(
            plain, lambda key, here, action: {"mask": jax.random.bernoulli(key, 0.25, (5,))}
        )
        _, _, extras = act_often(both, situation())
        assert sorted(extras) == ["mask", "probability"]
        assert extras["mask"].mean() == pytest.approx(0.25, abs=0.01)

    def test_a_name_twice_is_refused(self):
        both = behaviours.write_extras(
            ALL["boltzmann"], lambda key, here, action: {"probability": jnp.ones(())}
        )
        with pytest.raises(ConfigError, match=r"'probability'.*choose other names"):
            both.act(None, jax.random.key(0), situation())
