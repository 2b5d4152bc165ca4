"""TD errors and losses of the DQN family, against numbers by hand and loops in NumPy."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn.losses import (
    bellman_loss,
    categorical_loss,
    double_q_learning,
    ensemble_loss,
    expected_sarsa,
    gaussian_label,
    hl_gauss_loss,
    minto,
    munchausen,
    persistent_advantage_learning_loss,
    q_learning,
    quantile_loss,
    soft_q_learning,
)
from purejaxdqn.losses.bellman_targets import softmax_log_policy
from purejaxdqn.testing.losses.interface import check_interface
from purejaxdqn.types import LossOutput, Network
from tiny_losses import (
    BATCH,
    CATEGORICAL,
    IMPLICIT,
    KEY,
    PROPOSED,
    QUANTILES,
    SUPPORT,
    VALUES,
    linear_network,
    losses_of,
    make_batch,
    make_params,
    numpy_softmax,
    one_transition,
    raw_of,
    require_equal,
)


def td_arguments(discount_t=0.9, q_t=(4.0, 6.0, 5.0), q_t_selector=(7.0, 1.0, 7.0)):
    q_tm1 = jnp.array([1.0, 2.0, 3.0])
    scalars = jnp.int32(1), jnp.float32(0.5), jnp.float32(discount_t)
    return q_tm1, *scalars, jnp.array(q_t), jnp.array(q_t_selector)


def sarsa(epsilon):
    return functools.partial(expected_sarsa, epsilon=epsilon)


def soft(temperature):
    return functools.partial(soft_q_learning, temperature=temperature)


class TestTDErrors:
    @pytest.mark.parametrize(
        ("td_error", "discount_t", "expected"),
        [
            # Greedy in the online values is action 0 (a tie with 2), the mean of q_t is 5.
            (expected_sarsa, 0.9, 0.5 + 0.9 * (0.95 * 4 + 0.05 * 5) - 2),
            (sarsa(0.3), 0.9, 0.5 + 0.9 * 4.3 - 2),
            (sarsa(1.0), 1.0, 0.5 + 5 - 2),
            (expected_sarsa, 0.0, 0.5 - 2),
            (soft_q_learning, 0.9, 0.5 + 0.9 * 6 - 2),  # others are 33 temperatures below
            (
                soft(2.0),
                0.9,
                0.5 + 0.9 * 2 * math.log(math.exp(2) + math.exp(3) + math.exp(2.5)) - 2,
            ),
            (soft_q_learning, 0.0, 0.5 - 2),
            (minto, 0.9, 0.5 + 0.9 * 5 - 2),  # the smaller values are 4, 1 and 5
            (minto, 0.0, 0.5 - 2),
        ],
    )
    def test_by_hand(self, td_error, discount_t, expected):
        error = td_error(*td_arguments(discount_t))
        assert error.shape == ()
        assert float(error) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("td_error", [expected_sarsa, minto, soft_q_learning])
    def test_batches_are_refused(self, td_error):
        batch = jax.tree.map(lambda x: jnp.stack([x, x]), td_arguments())
        with pytest.raises(AssertionError, match="rank"):
            td_error(*batch)

    def test_expected_sarsa_without_exploration_is_double_q_learning(self):
        args = td_arguments()
        assert sarsa(0.0)(*args) == double_q_learning(*args)

    @pytest.mark.parametrize("offset", [0.0, 1e6, -1e6])
    def test_soft_values_of_any_size_are_finite(self, offset):
        q_t = [offset, offset + 1, offset - 1e6]
        error = soft(1e-3)(*td_arguments(1.0, q_t))
        assert float(error) == pytest.approx(0.5 + offset + 1 - 2, rel=1e-6)
        equal = soft(1.0)(*td_arguments(1.0, [offset] * 3))
        assert float(equal) == pytest.approx(0.5 + offset + math.log(3) - 2, rel=1e-6)

    @settings(max_examples=50)
    @given(
        q_t=st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
        temperature=st.floats(0.01, 10),
    )
    def test_the_soft_value_is_that_of_the_softmax_policy_and_its_entropy(self, q_t, temperature):
        log_policy = np.asarray(softmax_log_policy(jnp.array(q_t), temperature), np.float64)
        assert (log_policy <= 0).all()
        policy = np.exp(log_policy)
        assert policy.sum() == pytest.approx(1, abs=1e-5)
        value = policy @ (np.array(q_t) - temperature * log_policy)
        error = soft(temperature)(*td_arguments(1.0, q_t))
        assert float(error) == pytest.approx(0.5 + value - 2, rel=1e-4, abs=1e-3)
        # Between the maximum and log A temperatures above it.
        assert -1e-4 <= float(error) + 1.5 - max(q_t) <= temperature * math.log(3) + 1e-4


ALL_LOSSES = {
    "expected SARSA": (bellman_loss(expected_sarsa), VALUES),
    "soft": (bellman_loss(soft_q_learning), VALUES),
    "M-DQN": (munchausen(bellman_loss(soft_q_learning)), VALUES),
    "PAL": (persistent_advantage_learning_loss(), VALUES),
    "C51": (categorical_loss(double=False), CATEGORICAL),
    "double C51": (categorical_loss(), CATEGORICAL),
    "Munchausen C51": (munchausen(categorical_loss()), CATEGORICAL),
    "QR": (quantile_loss(double=False), QUANTILES),
    "double QR": (quantile_loss(), QUANTILES),
    "plain QR": (quantile_loss(threshold=0.0), QUANTILES),
    "IQN": (quantile_loss(), IMPLICIT),
    "FQF": (quantile_loss(), PROPOSED),
    "M-FQF": (munchausen(quantile_loss(double=False, temperature=0.03)), PROPOSED),
    "M-QR": (munchausen(quantile_loss(double=False, temperature=0.03)), QUANTILES),
    "M-IQN": (munchausen(quantile_loss(double=False, temperature=0.03)), IMPLICIT),
}


class TestEveryLoss:
    @pytest.mark.parametrize("name", ALL_LOSSES)
    def test_contract(self, name):
        """Compiled, keys used once, no gradient to the target, nothing after a termination."""
        loss_fn, network = ALL_LOSSES[name]
        checks = check_interface(loss_fn, network, None, learns_next_obs=False)
        assert [check for check in checks if check.passed is not True] == []

    @pytest.mark.parametrize("name", ["C51", "QR", "IQN", "M-DQN", "M-IQN", "PAL"])
    def test_each_evaluation_has_noise_of_its_own(self, name):
        loss_fn, network = ALL_LOSSES[name]
        seen: list = []

        def apply(params, obs, key):
            seen.append(jax.random.key_data(key).tolist())
            return network.apply(params, obs, key)

        params, target_params = make_params(network)
        one = jax.tree.map(lambda x: jnp.asarray(x[0]), make_batch())
        for seed in (0, 1):
            spied = network._replace(apply=apply)
            loss_fn(spied, params, target_params, one, jax.random.key(seed))
        assert len(seen) >= 4
        assert len({tuple(key) for key in seen}) == len(seen)

    @pytest.mark.parametrize(
        ("loss_fn", "expected"),
        [
            (
                munchausen(bellman_loss(soft_q_learning)),
                "munchausen(bellman_loss(soft_q_learning, l2_loss))",
            ),
            (persistent_advantage_learning_loss(), "persistent_advantage_learning_loss(l2_loss)"),
            (categorical_loss(), "categorical_loss(double=True)"),
            (quantile_loss(double=False), "quantile_loss(double=False, greedy)"),
            (quantile_loss(temperature=0.1), "quantile_loss(double=True, softmax)"),
        ],
    )
    def test_results_can_name_it(self, loss_fn, expected):
        assert loss_fn.__qualname__ == expected

    def test_every_number_may_be_traced(self):
        params, target_params = make_params(QUANTILES)
        online, target = make_params(VALUES)
        one = jax.tree.map(lambda x: jnp.asarray(x[1]), make_batch())

        def losses(x):
            m_iqn = munchausen(quantile_loss(False, x, x), x, x, -x)
            of_values = (
                munchausen(bellman_loss(soft(x)), x, x, -x),
                bellman_loss(sarsa(x)),
                persistent_advantage_learning_loss(x),
            )
            found = [f(VALUES, online, target, one, KEY).loss for f in of_values]
            return [m_iqn(QUANTILES, params, target_params, one, KEY).loss, *found]

        numbers = jnp.array([0.05, 0.5])
        traced = jax.jit(jax.vmap(losses))(numbers)
        for found, a, b in zip(traced, losses(0.05), losses(0.5), strict=True):
            require_equal(found, [a, b])


class TestMunchausen:
    @pytest.mark.parametrize(
        ("temperature", "coefficient", "log_policy_min"),
        [(0.03, 0.9, -1.0), (0.5, 0.4, -0.3), (2.0, 1.0, -100.0)],
    )
    def test_m_dqn_against_the_papers_target(self, temperature, coefficient, log_policy_min):
        inner = bellman_loss(soft(temperature))
        loss_fn = munchausen(inner, temperature, coefficient, log_policy_min)
        batch = make_batch()
        output = losses_of(loss_fn, VALUES, batch)
        q_tm1, target_q_tm1, target_q_t, _ = raw_of(VALUES, batch)
        clipped = 0
        for b in range(BATCH):
            action = batch.a_tm1[b]
            scaled = target_q_tm1[b] / temperature
            log_policy = scaled - scaled.max() - np.log(np.exp(scaled - scaled.max()).sum())
            bonus = temperature * log_policy[action]
            clipped += bonus < log_policy_min
            policy = numpy_softmax(target_q_t[b] / temperature)
            value = sum(
                p * (q - (temperature * np.log(p) if p > 0 else 0))
                for p, q in zip(policy, target_q_t[b], strict=True)
            )
            reward = batch.r_t[b] + coefficient * min(max(bonus, log_policy_min), 0)
            error = reward + batch.discount_t[b] * value - q_tm1[b, action]
            require_equal(output.priority[b], abs(error))
            require_equal(output.loss[b], 0.5 * error**2)
            require_equal(output.metrics["q_value"][b], q_tm1[b, action])
        assert clipped > 0 or log_policy_min == -100
        assert clipped < BATCH

    def test_by_hand(self):
        # Target values [1, 1 + log 3] at time t - 1: the policy is [1/4, 3/4].
        network = linear_network((2,), lambda raw, key: raw, lambda output: output)
        params, target_params = jnp.array([[3.0, 5.0]]), jnp.array([[1.0, 1 + math.log(3)]])
        loss_fn = munchausen(bellman_loss(q_learning), 1.0, 0.5, -1.0)
        priorities = [
            float(loss_fn(network, params, target_params, one_transition(a, 0.5, 0), KEY).priority)
            for a in (0, 1)
        ]
        # log 1/4 is clipped at -1, log 3/4 is not.
        assert priorities == pytest.approx([3 - 0.5 + 0.5, 5 - 0.5 - 0.5 * math.log(0.75)])

    def test_the_loss_sees_the_same_transition_but_for_the_reward(self):
        batch = make_batch()
        plain, none = (
            losses_of(loss_fn, QUANTILES, batch)
            for loss_fn in (quantile_loss(), munchausen(quantile_loss(), coefficient=0.0))
        )
        require_equal(plain.loss, none.loss)

    def test_no_gradient_flows_through_the_bonus(self):
        def reward_itself(network, params, target_params, transition, key):
            return LossOutput(transition.r_t, transition.r_t, {})

        def loss(target_params):
            one = one_transition(0)
            return munchausen(reward_itself, 1.0)(VALUES, None, target_params, one, KEY).loss

        value, grad = jax.value_and_grad(loss)(jnp.array([[1.0, 0.5, 0.0]]))
        assert float(value) < 0.5
        assert not np.any(grad)

    def test_huge_values_leave_it_finite(self):
        params, target_params = (1e6 * weights for weights in make_params(VALUES))
        one = jax.tree.map(lambda x: jnp.asarray(x[1]), make_batch())
        loss_fn = munchausen(bellman_loss(soft_q_learning), 1e-3)
        assert np.isfinite(loss_fn(VALUES, params, target_params, one, KEY).loss)


class TestPersistentAdvantageLearning:
    @pytest.mark.parametrize(
        ("a_tm1", "discount_t", "expected"),
        [
            # Target values are [1, 4, 3] and then [2, 8, 6]; T Q = 0.5 + 0.9 * 8 = 7.7.
            (0, 0.9, 7.7 - 0.5 * 3),  # gaps 3 and 6
            (1, 0.9, 7.7),  # gaps 0 and 0
            (2, 0.9, 7.7 - 0.5 * 1),  # gaps 1 and 2
            (0, 0.0, 0.5),  # an end: the second gap is 0
        ],
    )
    def test_by_hand(self, a_tm1, discount_t, expected):
        online, target = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[1.0, 4.0, 3.0]])
        one = one_transition(a_tm1, 0.5, discount_t)
        output = persistent_advantage_learning_loss(0.5)(VALUES, online, target, one, KEY)
        assert float(output.priority) == pytest.approx(expected - a_tm1)
        assert float(output.loss) == pytest.approx(0.5 * (expected - a_tm1) ** 2, rel=1e-5)
        assert float(output.metrics["q_value"]) == a_tm1

    def test_against_the_operators(self):
        batch = make_batch()
        huber = functools.partial(optax.huber_loss, delta=0.5)
        output = losses_of(persistent_advantage_learning_loss(0.7, huber), VALUES, batch)
        q_tm1, target_q_tm1, target_q_t, _ = raw_of(VALUES, batch)
        persistent = 0
        for b in range(BATCH):
            action, ended = batch.a_tm1[b], batch.discount_t[b] == 0
            bellman = batch.r_t[b] + batch.discount_t[b] * max(target_q_t[b])
            advantage = bellman - 0.7 * (max(target_q_tm1[b]) - target_q_tm1[b, action])
            following = 0 if ended else max(target_q_t[b]) - target_q_t[b, action]
            persistent += bellman - 0.7 * following > advantage
            error = max(advantage, bellman - 0.7 * following) - q_tm1[b, action]
            require_equal(output.priority[b], abs(error))
            within = min(abs(error), 0.5)
            require_equal(output.loss[b], within * (abs(error) - within / 2))
        assert 0 < persistent < BATCH

    def test_without_the_gap_it_is_q_learning(self):
        batch = make_batch()
        none = losses_of(persistent_advantage_learning_loss(0.0), VALUES, batch)
        require_equal(none.loss, losses_of(bellman_loss(), VALUES, batch).loss)


class TestHLGauss:
    ATOMS = np.linspace(0.0, 10.0, 11)

    @pytest.mark.parametrize("target", [0.0, 3.0, 3.3, 9.9, 10.0])
    def test_a_label_is_the_mass_of_a_gaussian_in_each_bin(self, target):
        label = gaussian_label(jnp.float32(target), jnp.asarray(self.ATOMS, jnp.float32), 0.75)
        edges = np.arange(12) - 0.5
        below = np.array([0.5 * math.erfc((target - x) / (0.75 * math.sqrt(2))) for x in edges])
        np.testing.assert_allclose(label, np.diff(below) / (below[-1] - below[0]), atol=1e-6)
        if target in (3.0, 3.3):  # far from the ends its mean is the target
            assert float(label @ self.ATOMS) == pytest.approx(target, abs=1e-3)

    @pytest.mark.parametrize(("target", "end"), [(-1e6, 0.0), (11.0, 10.0), (1e6, 10.0)])
    def test_a_target_outside_counts_as_the_end(self, target, end):
        support = jnp.asarray(self.ATOMS, jnp.float32)
        labels = [gaussian_label(jnp.float32(x), support) for x in (target, end)]
        np.testing.assert_array_equal(labels[0], labels[1])
        assert float(labels[0].sum()) == pytest.approx(1.0)

    @pytest.mark.parametrize("td_error", [q_learning, double_q_learning, minto])
    def test_the_loss_is_the_cross_entropy_of_the_label_of_its_target(self, td_error):
        batch = make_batch()
        output = losses_of(hl_gauss_loss(td_error, 0.5), CATEGORICAL, batch)
        online_tm1, _, target_t, online_t = raw_of(CATEGORICAL, batch)
        for i in range(BATCH):
            action = batch.a_tm1[i]
            q_tm1, q_t, q_t_selector = (
                np.array([numpy_softmax(row) @ SUPPORT for row in raw[i]])
                for raw in (online_tm1, target_t, online_t)
            )
            value_t = {
                q_learning: q_t.max(),
                double_q_learning: q_t[q_t_selector.argmax()],
                minto: np.minimum(q_t, q_t_selector).max(),
            }[td_error]
            target = batch.r_t[i] + batch.discount_t[i] * value_t
            label = gaussian_label(jnp.float32(target), jnp.asarray(SUPPORT, jnp.float32), 0.5)
            log_p = np.log(numpy_softmax(online_tm1[i, action]))
            require_equal(output.loss[i], -np.sum(label * log_p))
            require_equal(output.priority[i], abs(target - q_tm1[action]))


class TestEnsembleLoss:
    MEMBERS = jnp.array([[1.0, 5.0], [3.0, 2.0], [9.0, 4.0]])  # [K, A], whatever the observation

    def network(self):
        return VALUES_OF_TABLE._replace(action_values=functools.partial(jnp.min, axis=0))

    def test_one_member_learns_towards_the_values_that_are_read(self):
        one = one_transition(a_tm1=0)
        target = 0.5 + 0.9 * 2  # the smallest of each column are 1 and 2
        taught = []
        for seed in range(30):

            def loss(params, seed=seed):
                args = (self.network(), params, self.MEMBERS, one, jax.random.key(seed))
                return ensemble_loss()(*args).loss

            value, gradient = jax.value_and_grad(loss)(self.MEMBERS)
            (member,) = np.flatnonzero(np.abs(gradient).sum(1))
            error = target - float(self.MEMBERS[member, 0])
            assert float(value) == pytest.approx(error**2 / 2, rel=1e-6)
            assert float(gradient[member, 0]) == pytest.approx(-error, rel=1e-6)
            assert (gradient[:, 1] == 0).all()
            taught.append(int(member))
        assert {*taught} == {0, 1, 2}

    def test_of_one_member_it_is_the_bellman_loss(self):
        for td_error in (q_learning, double_q_learning, minto):
            both = [
                losses_of(make(td_error), VALUES, make_batch())
                for make in (bellman_loss, ensemble_loss)
            ]
            np.testing.assert_allclose(both[0].loss, both[1].loss, rtol=1e-6)
            assert (both[1].metrics["member_spread"] == 0).all()


VALUES_OF_TABLE: Network[Any] = Network(
    init=lambda key, obs: TestEnsembleLoss.MEMBERS,
    apply=lambda params, obs, key=None: params,
    action_values=lambda output: output,
)
