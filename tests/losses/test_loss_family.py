"""The losses of the DQN family against numbers by hand and double loops in NumPy."""

import functools
import itertools
import math

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
    expected_sarsa,
    fraction_loss,
    munchausen,
    persistent_advantage_learning_loss,
    project,
    q_learning,
    quantile_huber,
    quantile_loss,
    soft_q_learning,
)
from purejaxdqn.losses.bellman_targets import softmax_log_policy
from purejaxdqn.testing.losses.interface import check_interface
from purejaxdqn.types import (
    Categorical,
    LossOutput,
    Network,
    ProposedQuantiles,
    Quantiles,
    Transition,
)

KEY = jax.random.key(0)
NUM_ACTIONS, NUM_OBS, BATCH = 3, 4, 24
SUPPORT = np.linspace(-2, 3, 6)
FRACTIONS = np.array([0.1, 0.3, 0.7, 0.95])
WEIGHTS = np.array([0.2, 0.25, 0.45, 0.1])  # unequal, as FQF's are


# ------------------------------------------------------------------------------------ TD errors


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
        ],
    )
    def test_by_hand(self, td_error, discount_t, expected):
        error = td_error(*td_arguments(discount_t))
        assert error.shape == ()
        assert float(error) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("td_error", [expected_sarsa, soft_q_learning])
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


# --------------------------------------------------------------------- networks for the losses


def linear_network(shape, to_output, to_values):
    """A network whose raw outputs `[A, ...]` are linear in the observation."""

    def init(key, obs):
        return jax.random.normal(key, (*obs.shape, *shape))

    def apply(params, obs, key=None):
        return to_output(jnp.tensordot(obs, params, 1), key)

    return Network(init, apply, to_values)


VALUES = linear_network((NUM_ACTIONS,), lambda raw, key: raw, lambda output: output)
CATEGORICAL = linear_network(
    (NUM_ACTIONS, len(SUPPORT)),
    lambda raw, key: Categorical(raw, jnp.asarray(SUPPORT, jnp.float32)),
    lambda output: jax.nn.softmax(output.logits) @ output.support,
)


def to_quantiles(raw, key):
    fractions, weights = jnp.asarray(FRACTIONS, jnp.float32), jnp.asarray(WEIGHTS, jnp.float32)
    return Quantiles(raw, fractions, weights)


def quantile_means(output):
    return output.values @ output.weights


QUANTILES = linear_network((NUM_ACTIONS, len(FRACTIONS)), to_quantiles, quantile_means)


def implicit_quantiles(raw, key):
    """Fractions that are drawn, as IQN's are."""
    fractions = FRACTIONS if key is None else jax.random.uniform(key, (len(FRACTIONS),))
    values = raw * jnp.asarray(fractions, jnp.float32)[jnp.newaxis, :]
    return Quantiles(values, jnp.asarray(fractions, jnp.float32), jnp.full(4, 0.25))


IMPLICIT = linear_network((NUM_ACTIONS, len(FRACTIONS)), implicit_quantiles, quantile_means)


def proposed_quantiles(raw, key):
    """Quantiles at midpoints, then at boundaries that depend on the weights, as FQF's do."""
    num = len(FRACTIONS)
    boundaries = jnp.sort(jax.nn.sigmoid(raw[0, num:]))
    edges = jnp.concatenate([jnp.zeros(1), boundaries, jnp.ones(1)])
    fractions = (edges[1:] + edges[:-1]) / 2
    return ProposedQuantiles(raw[:, :num], fractions, jnp.diff(edges), boundaries, raw[:, num:])


PROPOSED = linear_network((NUM_ACTIONS, 2 * len(FRACTIONS) - 1), proposed_quantiles, quantile_means)


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    obs_tm1, obs_t = rng.normal(size=(2, BATCH, NUM_OBS)).astype(np.float32)
    a_tm1 = (np.arange(BATCH) % NUM_ACTIONS).astype(np.int32)
    r_t = rng.normal(size=BATCH).astype(np.float32)
    discount_t = np.where(np.arange(BATCH) % 4 == 0, 0, 0.9).astype(np.float32)
    return Transition._make((obs_tm1, a_tm1, r_t, discount_t, obs_t))


def make_params(network):
    """Online and target weights."""
    return [network.init(jax.random.key(seed), jnp.zeros(NUM_OBS)) for seed in (1, 2)]


def raw_outputs(params, obs):
    return np.tensordot(obs.astype(np.float64), np.asarray(params, np.float64), 1)


def losses_of(loss_fn, network, batch):
    """The loss of each transition of a batch, on the host."""
    params, target_params = make_params(network)

    def one_loss(transition, key):
        return loss_fn(network, params, target_params, transition, key)

    output = jax.jit(jax.vmap(one_loss))(batch, jax.random.split(KEY, BATCH))
    return jax.tree.map(np.asarray, output)


def raw_of(network, batch):
    """Online at t - 1, target at t - 1, target at t, online at t: each `[B, A, ...]`."""
    params, target_params = make_params(network)
    return (
        raw_outputs(params, batch.obs_tm1),
        raw_outputs(target_params, batch.obs_tm1),
        raw_outputs(target_params, batch.obs_t),
        raw_outputs(params, batch.obs_t),
    )


def require_equal(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


def numpy_softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def one_transition(a_tm1=1, r_t=0.5, discount_t=0.9):
    scalars = jnp.int32(a_tm1), jnp.float32(r_t), jnp.float32(discount_t)
    return Transition(jnp.ones(1), *scalars, jnp.full(1, 2.0))


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


# ------------------------------------------------------------------ Munchausen and advantage gap


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


# ------------------------------------------------------------------------------- categorical loss


def numpy_project(probabilities, atoms, support):
    """Equation 7 of C51, atom by atom."""
    gap = (support[-1] - support[0]) / (len(support) - 1)
    projected = np.zeros(len(support))
    for i, z in enumerate(support):
        for p, atom in zip(probabilities, atoms, strict=True):
            inside = min(max(atom, support[0]), support[-1])
            projected[i] += min(max(1 - abs(inside - z) / gap, 0), 1) * p
    return projected


SUPPORTS = [
    np.linspace(-2, 3, 6),
    np.linspace(0, 1, 2),
    np.linspace(-10, 10, 51),
    np.linspace(0, 200, 51),
    np.linspace(1000, 1001, 11),
]
compiled_project = jax.jit(project)


@st.composite
def projections(draw):
    """A support, and probabilities of atoms in and around it, some of them on its atoms."""
    support = draw(st.sampled_from(SUPPORTS))
    low, high = support[0], support[-1]
    atom = st.one_of(
        st.sampled_from(support), st.floats(low, high), st.floats(2 * low - high, 2 * high - low)
    )
    size = len(support)
    atoms = draw(st.lists(atom, min_size=size, max_size=size))
    masses = draw(st.lists(st.sampled_from([0, 1, 2, 7]), min_size=size, max_size=size))
    masses = np.array(masses, np.float64) + (sum(masses) == 0)
    return masses / masses.sum(), np.array(atoms), support


class TestProject:
    @pytest.mark.parametrize(
        ("atoms", "expected"),
        [
            ([-1.0, 0.0, 1.0], [0.2, 0.3, 0.5]),  # on the atoms
            ([0.0, 1.0, 2.0], [0.0, 0.2, 0.8]),  # beyond the end
            ([-5.0, -1.0, -0.75], [0.2 + 0.3 + 0.375, 0.125, 0.0]),
            ([0.5, 0.5, 0.5], [0.0, 0.5, 0.5]),  # an end: one atom, the reward
            ([0.25, 0.25, -9.0], [0.5, 0.375, 0.125]),
        ],
    )
    def test_by_hand(self, atoms, expected):
        found = project(jnp.array([0.2, 0.3, 0.5]), jnp.array(atoms), jnp.array([-1.0, 0.0, 1.0]))
        np.testing.assert_allclose(found, expected, atol=1e-7)

    @settings(max_examples=200)
    @given(projections())
    def test_against_a_double_loop(self, case):
        probabilities, atoms, support = (x.astype(np.float32) for x in case)
        found = np.asarray(compiled_project(probabilities, atoms, support), np.float64)
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(1, abs=1e-6)
        # float32 resolves the place of an atom only to what its distance from 0 leaves.
        gap = (support[-1] - support[0]) / (len(support) - 1)
        resolution = 4 * np.spacing(np.abs(support).max()) / gap
        expected = numpy_project(*(x.astype(np.float64) for x in (probabilities, atoms, support)))
        np.testing.assert_allclose(found, expected, atol=1e-6 + resolution)
        inside = np.clip(atoms, support[0], support[-1]).astype(np.float64)
        mean = (found * support).sum()
        scale = float(np.abs(support).max())
        assert mean == pytest.approx((probabilities * inside).sum(), abs=2e-6 * scale + 1e-6)

    def test_from_one_support_to_another(self):
        found = project(jnp.array([0.5, 0.5]), jnp.array([0.0, 1.0]), jnp.linspace(0.0, 1.0, 5))
        np.testing.assert_allclose(found, [0.5, 0, 0, 0, 0.5])

    def test_what_is_refused(self):
        with pytest.raises(AssertionError):
            project(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.arange(3.0))
        with pytest.raises(AssertionError):
            project(jnp.ones(1), jnp.ones(1), jnp.arange(1.0))


class TestCategoricalLoss:
    @pytest.mark.parametrize("double", [False, True])
    def test_against_a_double_loop(self, double):
        batch = make_batch()
        output = losses_of(categorical_loss(double), CATEGORICAL, batch)
        logits_tm1, _, target_logits_t, online_logits_t = raw_of(CATEGORICAL, batch)
        for b in range(BATCH):
            judge = online_logits_t[b] if double else target_logits_t[b]
            action = np.argmax([numpy_softmax(logits) @ SUPPORT for logits in judge])
            atoms = batch.r_t[b] + batch.discount_t[b] * SUPPORT
            target = numpy_project(numpy_softmax(target_logits_t[b, action]), atoms, SUPPORT)
            prediction = numpy_softmax(logits_tm1[b, batch.a_tm1[b]])
            require_equal(output.loss[b], -sum(target * np.log(prediction)))
            divergence = sum(
                p * np.log(p / q) for p, q in zip(target, prediction, strict=True) if p
            )
            require_equal(output.priority[b], divergence)
            require_equal(output.metrics["q_value"][b], prediction @ SUPPORT)

    def test_double_makes_a_difference_while_the_episode_lasts(self):
        batch = make_batch()
        a, b = (losses_of(categorical_loss(double), CATEGORICAL, batch) for double in (True, False))
        differs = ~np.isclose(a.loss, b.loss)
        assert differs.any()
        assert not differs[batch.discount_t == 0].any()

    def test_gradient_by_hand(self):
        """That of the logits is the prediction less the target, for the action taken alone."""
        support = jnp.array([-1.0, 0.0, 1.0])
        network = linear_network(
            (2, 3),
            lambda raw, key: Categorical(raw, support),
            lambda output: jax.nn.softmax(output.logits) @ output.support,
        )
        one = one_transition(a_tm1=1, r_t=0.25, discount_t=0.0)

        def loss(params):
            return categorical_loss()(network, params, jnp.ones((1, 2, 3)), one, KEY).loss

        value, grad = jax.value_and_grad(loss)(jnp.zeros((1, 2, 3)))
        assert float(value) == pytest.approx(math.log(3))
        np.testing.assert_allclose(grad[0, 0], 0)
        np.testing.assert_allclose(grad[0, 1], [1 / 3, 1 / 3 - 0.75, 1 / 3 - 0.25], rtol=1e-5)

    def test_nothing_is_surprising_where_the_prediction_is_right(self):
        logits = jnp.log(jnp.array([[[0.2, 0.5, 0.3]]]))
        network = linear_network(
            (1, 3),
            lambda raw, key: Categorical(raw, jnp.array([-1.0, 0.0, 1.0])),
            lambda output: jax.nn.softmax(output.logits) @ output.support,
        )
        one = one_transition(a_tm1=0, r_t=0.0, discount_t=1.0)._replace(obs_t=jnp.ones(1))
        output = categorical_loss()(network, logits, logits, one, KEY)
        assert 0 <= float(output.priority) < 1e-6
        assert float(output.loss) > 1


# ---------------------------------------------------------------------------------- quantile loss


def numpy_quantile_huber(error, fraction, threshold):
    weight = abs(fraction - (1 if error < 0 else 0))
    if threshold == 0:
        return weight * abs(error)
    if abs(error) <= threshold:
        return weight * 0.5 * error**2
    return weight * threshold * (abs(error) - 0.5 * threshold)


class TestQuantileHuber:
    @pytest.mark.parametrize(
        ("error", "fraction", "threshold", "expected"),
        [
            (0.5, 0.25, 1.0, 0.25 * 0.125),
            (-0.5, 0.25, 1.0, 0.75 * 0.125),
            (3.0, 0.25, 1.0, 0.25 * 2.5),
            (-3.0, 0.25, 2.0, 0.75 * 4),
            (3.0, 0.25, 0.0, 0.75),
            (-3.0, 0.25, 0.0, 2.25),
            (0.0, 0.9, 0.0, 0.0),
        ],
    )
    def test_by_hand(self, error, fraction, threshold, expected):
        found = quantile_huber(jnp.float32(error), jnp.float32(fraction), threshold)
        assert float(found) == pytest.approx(expected, rel=1e-6)

    @settings(max_examples=100)
    @given(
        errors=st.lists(st.floats(-20, 20, width=32), min_size=8, max_size=8),
        fraction=st.floats(0, 1, width=32),
        threshold=st.one_of(st.just(0.0), st.floats(0.0625, 10, width=32)),
    )
    def test_against_a_loop(self, errors, fraction, threshold):
        found = quantile_huber(jnp.array(errors), jnp.full(8, fraction), threshold)
        expected = [numpy_quantile_huber(error, fraction, threshold) for error in errors]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
    def test_the_plain_loss_is_least_at_the_quantile(self, fraction):
        samples = jnp.arange(101.0)
        predictions = jnp.arange(101.0)
        errors = samples[jnp.newaxis, :] - predictions[:, jnp.newaxis]
        losses = quantile_huber(errors, jnp.full((1, 1), fraction), 0.0).sum(axis=1)
        assert int(losses.argmin()) == round(100 * fraction)

    def test_its_gradient_is_that_of_a_clipped_error(self):
        errors = jnp.array([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0])
        grads = jax.vmap(jax.grad(quantile_huber), (0, None))(errors, 0.25)
        np.testing.assert_allclose(grads, [-0.75, -0.75, -0.375, 0.125, 0.25, 0.25])
        grads = jax.vmap(jax.grad(quantile_huber), (0, None, None))(errors, 0.25, 0.0)
        np.testing.assert_allclose(grads, [-0.75, -0.75, -0.75, 0.25, 0.25, 0.25])


class TestQuantileLoss:
    @pytest.mark.parametrize(
        ("double", "threshold", "temperature"),
        [
            (False, 1.0, None),
            (True, 1.0, None),
            (True, 0.0, None),
            (False, 0.3, None),
            (False, 1.0, 0.03),
            (False, 1.0, 0.8),
            (True, 0.5, 0.8),
        ],
    )
    def test_against_a_double_loop(self, double, threshold, temperature):
        batch = make_batch()
        output = losses_of(quantile_loss(double, threshold, temperature), QUANTILES, batch)
        values_tm1, _, target_values_t, online_values_t = raw_of(QUANTILES, batch)
        for b in range(BATCH):
            means = (online_values_t[b] if double else target_values_t[b]) @ WEIGHTS
            if temperature is None:
                following = target_values_t[b, means.argmax()]
            else:
                policy = numpy_softmax(means / temperature)
                following = np.zeros(len(FRACTIONS))
                for j in range(len(FRACTIONS)):
                    for p, values in zip(policy, target_values_t[b], strict=True):
                        if p > 0:
                            following[j] += p * (values[j] - temperature * np.log(p))
            targets = batch.r_t[b] + batch.discount_t[b] * following
            prediction = values_tm1[b, batch.a_tm1[b]]
            loss = 0
            for value, fraction in zip(prediction, FRACTIONS, strict=True):
                for target, weight in zip(targets, WEIGHTS, strict=True):
                    loss += weight * numpy_quantile_huber(target - value, fraction, threshold)
            require_equal(output.loss[b], loss)
            require_equal(output.priority[b], abs(targets @ WEIGHTS - prediction @ WEIGHTS))
            require_equal(output.metrics["q_value"][b], prediction @ WEIGHTS)

    @pytest.mark.parametrize("temperature", [None, 0.5])
    def test_double_makes_a_difference_while_the_episode_lasts(self, temperature):
        batch = make_batch()
        a, b = (
            losses_of(quantile_loss(double, temperature=temperature), QUANTILES, batch)
            for double in (True, False)
        )
        differs = ~np.isclose(a.loss, b.loss)
        assert differs.any()
        assert not differs[batch.discount_t == 0].any()

    def test_a_cold_policy_is_the_greedy_one(self):
        batch = make_batch()
        cold, greedy = (
            losses_of(quantile_loss(temperature=temperature), QUANTILES, batch)
            for temperature in (1e-4, None)
        )
        np.testing.assert_allclose(cold.loss, greedy.loss, rtol=1e-3, atol=1e-3)

    def test_gradient_by_hand(self):
        """One clipped error a pair, weighted; none to the fractions, nor to other actions."""

        def apply(params, obs, key=None):
            weights = jnp.array([0.25, 0.75])
            return Quantiles(obs[0] * params["values"], params["fractions"], weights)

        network = Network(lambda key, obs: None, apply, quantile_means)
        params = {
            "values": jnp.array([[9.0, 9.0], [1.0, 2.0]]),
            "fractions": jnp.array([0.25, 0.75]),
        }
        target_params = {**params, "values": jnp.array([[0.75, 2.5], [-9.0, -9.0]])}
        one = one_transition(a_tm1=1, r_t=-1.0, discount_t=1.0)

        def loss(params, target_params):
            output = quantile_loss(double=False)(network, params, target_params, one, KEY)
            return output.loss, output

        (_, output), (grads, target_grads) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, target_params
        )
        # Targets are 2 * [0.75, 2.5] - 1 = [0.5, 4]; errors [-0.5, 3] of 1, and [-1.5, 2] of 2.
        slopes = [-(0.25 * 0.75 * -0.5 + 0.75 * 0.25 * 1), -(0.25 * 0.25 * -1 + 0.75 * 0.75 * 1)]
        np.testing.assert_allclose(grads["values"], np.array([[0.0, 0.0], slopes]), rtol=1e-6)
        assert not np.any(grads["fractions"])
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(target_grads))
        assert float(output.priority) == pytest.approx(0.125 + 3 - 1.75)


class TestFractionLoss:
    def test_by_hand(self):
        boundaries = jnp.array([0.25, 0.5])
        args = jnp.array([2.0, 5.0]), jnp.array([1.0, 4.0, 5.0])
        loss, grad = jax.value_and_grad(fraction_loss)(boundaries, *args)
        # 2 * 2 - 1 - 4 = -1, and 2 * 5 - 4 - 5 = 1.
        np.testing.assert_allclose(grad, [-1.0, 1.0])
        assert float(loss) == pytest.approx(0.25)
        others = jax.grad(fraction_loss, (1, 2))(boundaries, *args)
        assert not any(np.any(leaf) for leaf in others)

    @pytest.mark.parametrize("num", [2, 3, 6])
    def test_is_the_slope_of_the_wasserstein_error(self, num):
        """Of a quantile function that is known, against differences of the error's integral."""
        rng = np.random.default_rng(num)
        boundaries = np.sort(rng.uniform(0.05, 0.95, num - 1))

        def quantile(fraction):
            return np.exp(2 * fraction) - fraction**2  # increasing

        def error(boundaries):
            edges = np.concatenate([[0], boundaries, [1]])
            total = 0.0
            for low, high in itertools.pairwise(edges):
                middle = (low + high) / 2
                for a, b in ((low, middle), (middle, high)):
                    fractions = a + (b - a) * (np.arange(2000) + 0.5) / 2000
                    total += np.abs(quantile(fractions) - quantile(middle)).mean() * (b - a)
            return total

        edges = np.concatenate([[0], boundaries, [1]])
        grad = jax.grad(fraction_loss)(
            jnp.asarray(boundaries),
            jnp.asarray(quantile(boundaries)),
            jnp.asarray(quantile((edges[1:] + edges[:-1]) / 2)),
        )
        for i in range(num - 1):
            step = np.zeros(num - 1)
            step[i] = 1e-4
            slope = (error(boundaries + step) - error(boundaries - step)) / 2e-4
            assert float(grad[i]) == pytest.approx(slope, rel=1e-3, abs=1e-4)

    def test_is_added_where_fractions_are_proposed(self):
        batch = make_batch()
        values_tm1, *_ = raw_of(PROPOSED, batch)

        def without_proposal(raw, key):
            return Quantiles(*proposed_quantiles(raw, key)[:3])

        fixed = linear_network(
            (NUM_ACTIONS, 2 * len(FRACTIONS) - 1), without_proposal, quantile_means
        )
        a, b = (losses_of(quantile_loss(), network, batch) for network in (PROPOSED, fixed))
        for i in range(BATCH):
            output = proposed_quantiles(jnp.asarray(values_tm1[i], jnp.float32), None)
            action = batch.a_tm1[i]
            added = fraction_loss(
                output.boundaries, output.boundary_values[action], output.values[action]
            )
            require_equal(a.loss[i] - b.loss[i], added)
        require_equal(a.priority, b.priority)
