"""Epsilon-greedy actions and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purejaxdqn.behaviours import epsilon_greedy
from purejaxdqn.training.schedules import linear_schedule, multiplicative_schedule

NUM_DRAWS = 30_000


def counts(q_values, epsilon, seed=0):
    keys = jax.random.split(jax.random.key(seed), NUM_DRAWS)
    actions = jax.vmap(epsilon_greedy, in_axes=(0, None, None))(keys, jnp.array(q_values), epsilon)
    assert actions.dtype == jnp.int32
    return np.bincount(actions, minlength=len(q_values))


class TestEpsilonGreedy:
    @pytest.mark.parametrize("epsilon", [0, 0.0, jnp.float32(0)])
    def test_zero_never_explores(self, epsilon):
        assert counts([0.0, -1.0, 3.0, 2.0], epsilon).tolist() == [0, 0, NUM_DRAWS, 0]

    @pytest.mark.parametrize("num_actions", [1, 2, 3, 7])
    def test_one_is_uniform(self, num_actions):
        found = counts(np.arange(num_actions, dtype=np.float32), 1.0)
        assert found.sum() == NUM_DRAWS
        assert len(found) == num_actions
        if num_actions > 1:
            assert stats.chisquare(found).pvalue > 1e-3

    @pytest.mark.parametrize("epsilon", [0.04, 0.5])
    def test_frequencies_between(self, epsilon):
        found = counts([1.0, 5.0, 2.0], epsilon)
        expected = np.full(3, epsilon / 3)
        expected[1] += 1 - epsilon
        assert stats.chisquare(found, expected * NUM_DRAWS).pvalue > 1e-3

    def test_exploring_and_the_random_action_are_independent(self):
        """Conditional on exploring, the action must not depend on how small epsilon is."""
        for epsilon in (0.01, 0.1):
            found = counts([1.0, 0.0, 0.0, 0.0], epsilon, seed=1)[1:]
            assert stats.chisquare(found).pvalue > 1e-3

    def test_ties_go_to_the_lowest_action(self):
        assert counts([0.0, 2.0, 2.0], 0.0).tolist() == [0, NUM_DRAWS, 0]

    def test_the_same_key_gives_the_same_action(self):
        np.testing.assert_array_equal(counts([1.0, 2.0], 0.5, 3), counts([1.0, 2.0], 0.5, 3))
        assert np.any(counts([1.0, 2.0], 0.5, 3) != counts([1.0, 2.0], 0.5, 4))


def values(schedule, steps):
    return [float(jax.jit(schedule)(jnp.int32(step))) for step in steps]


class TestLinearSchedule:
    def test_exact_values(self):
        schedule = linear_schedule(1.0, 0.5, 8)
        assert values(schedule, [0, 1, 2, 4, 8, 9, 10**9]) == [
            1.0,
            0.9375,
            0.875,
            0.75,
            0.5,
            0.5,
            0.5,
        ]

    def test_the_end_is_exact(self):
        assert values(linear_schedule(1.0, 0.04, 20_000), [20_000, 10**6]) == [np.float32(0.04)] * 2
        assert values(linear_schedule(0.3, 0.3, 7), range(9)) == pytest.approx([0.3] * 9)

    def test_upwards(self):
        assert values(linear_schedule(0.0, 1.0, 4), range(6)) == [0, 0.25, 0.5, 0.75, 1, 1]

    @pytest.mark.parametrize("duration", [0, 0.0, jnp.float32(0)])
    def test_a_duration_of_zero_is_the_end_from_the_start(self, duration):
        assert values(linear_schedule(1.0, 0.25, duration), [0, 1, 100]) == [0.25] * 3

    @pytest.mark.parametrize("duration", [0.5, 1, 1.0])
    def test_a_duration_of_at_most_one_step(self, duration):
        assert values(linear_schedule(1.0, 0.25, duration), [0, 1, 2]) == [1.0, 0.25, 0.25]

    def test_everything_may_be_traced(self):
        def at_two(start, end, duration):
            return linear_schedule(start, end, duration)(jnp.int32(2))

        columns = [[1.0, 0.5, 4.0], [2.0, 0.0, 8.0], [1.0, 0.5, 0.0]]
        found = jax.jit(jax.vmap(at_two))(*jnp.array(columns).T)
        np.testing.assert_array_equal(found, [0.75, 1.5, 0.5])


class TestMultiplicativeSchedule:
    def test_exact_values(self):
        schedule = multiplicative_schedule(1.0, 0.5, 0.1)
        assert values(schedule, range(6)) == [1, 0.5, 0.25, 0.125, np.float32(0.1), np.float32(0.1)]

    def test_without_an_end(self):
        assert values(multiplicative_schedule(0.8, 0.5), [0, 1, 2]) == pytest.approx(
            [0.8, 0.4, 0.2]
        )
        assert values(multiplicative_schedule(1.0, 0.0), [0, 1]) == [1, 0]
        assert values(multiplicative_schedule(0.5, 1.0), [0, 1000]) == [0.5, 0.5]
