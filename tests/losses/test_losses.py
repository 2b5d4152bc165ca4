"""Losses, the learner around them, and what they converge to, against numbers by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn.losses import bellman_loss, double_q_learning, masked_squared_error, q_learning
from purejaxdqn.training.learner import make_learner, periodic_target_update
from purejaxdqn.types import ConfigError, LearnerState, Network, Transition

Q_TM1 = jnp.array([1.0, 2.0, 3.0])
Q_T = jnp.array([4.0, 6.0, 5.0])
Q_T_SELECTOR = jnp.array([7.0, 1.0, 2.0])
FLOATS = (0, 2, 3, 4, 5)  # every argument but the action


def arguments(a_tm1=1, r_t=0.5, discount_t=0.9):
    return Q_TM1, jnp.int32(a_tm1), jnp.float32(r_t), jnp.float32(discount_t), Q_T, Q_T_SELECTOR


class TestTDErrors:
    @pytest.mark.parametrize(
        ("td_error", "a_tm1", "r_t", "discount_t", "expected"),
        [
            (q_learning, 1, 0.5, 0.9, 0.5 + 0.9 * 6 - 2),
            (q_learning, 2, -1.0, 1.0, -1 + 6 - 3),
            (q_learning, 0, 0.5, 0.0, 0.5 - 1),
            # The online network picks action 0, the target network judges it.
            (double_q_learning, 1, 0.5, 0.9, 0.5 + 0.9 * 4 - 2),
            (double_q_learning, 2, -1.0, 1.0, -1 + 4 - 3),
            (double_q_learning, 0, 0.5, 0.0, 0.5 - 1),
        ],
    )
    def test_by_hand(self, td_error, a_tm1, r_t, discount_t, expected):
        error = td_error(*arguments(a_tm1, r_t, discount_t))
        assert error.shape == ()
        assert float(error) == pytest.approx(expected)

    @pytest.mark.parametrize("td_error", [q_learning, double_q_learning])
    def test_gradient_reaches_the_taken_value_alone(self, td_error):
        q_tm1, *rest = jax.grad(td_error, argnums=FLOATS)(*arguments(a_tm1=2))
        np.testing.assert_array_equal(q_tm1, [0, 0, -1])
        for grad in rest:
            assert not np.any(grad)

    @pytest.mark.parametrize("td_error", [q_learning, double_q_learning])
    def test_batches_are_refused(self, td_error):
        batch = jax.tree.map(lambda x: jnp.stack([x, x]), arguments())
        with pytest.raises(AssertionError, match="rank"):
            td_error(*batch)
        one = arguments()
        for i in range(len(one)):
            mixed = [*one[:i], batch[i], *one[i + 1 :]]
            with pytest.raises(AssertionError, match="rank"):
                td_error(*mixed)
        with pytest.raises(AssertionError, match="type"):
            td_error(one[0], jnp.float32(1), *one[2:])
        np.testing.assert_allclose(jax.vmap(td_error)(*batch), [td_error(*one)] * 2)


# A network whose action values are linear in the observation: kernel [3, 2] and bias [2].
def linear_apply(params, obs, key=None):
    del key
    return obs @ params["kernel"] + params["bias"]


def linear_init(key, obs):
    return {"kernel": jax.random.normal(key, (*obs.shape, 2)), "bias": jnp.zeros(2)}


LINEAR = Network(linear_init, linear_apply, action_values=lambda output: output)


def linear_params(seed):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}


def as_jax(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def batch_of_transitions(num=6, seed=0):
    rng = np.random.default_rng(seed)
    obs_tm1, obs_t = rng.normal(size=(2, num, 3))
    discount_t = np.where(np.arange(num) % 3 == 0, 0.0, 0.9)
    fields = (obs_tm1, rng.integers(0, 2, num), rng.normal(size=num), discount_t, obs_t)
    return Transition._make((*fields, None, {}))


def on_device(transitions):
    as_floats = as_jax(transitions)
    return as_floats._replace(a_tm1=jnp.asarray(transitions.a_tm1, jnp.int32))


def numpy_values(params, obs):
    return obs @ params["kernel"] + params["bias"]


def numpy_td_errors(params, target_params, batch, double):
    rows = np.arange(len(batch.r_t))
    q_t = numpy_values(target_params, batch.obs_t)
    chosen = numpy_values(params if double else target_params, batch.obs_t).argmax(axis=1)
    target = batch.r_t + batch.discount_t * q_t[rows, chosen]
    return target - numpy_values(params, batch.obs_tm1)[rows, batch.a_tm1]


def numpy_sgd_step(params, target_params, batch, double, clip, learning_rate):
    """The gradient of a penalty with respect to the weights is -penalty'(error) obs."""
    errors = np.clip(numpy_td_errors(params, target_params, batch, double), -clip, clip)
    kernel, bias = np.zeros((3, 2)), np.zeros(2)
    for error, obs, action in zip(errors, batch.obs_tm1, batch.a_tm1, strict=True):
        kernel[:, action] -= error * obs / len(errors)
        bias[action] -= error / len(errors)
    return {
        "kernel": params["kernel"] - learning_rate * kernel,
        "bias": params["bias"] - learning_rate * bias,
    }


class TestBellmanLoss:
    @pytest.mark.parametrize(
        ("penalty", "expected", "slope"),
        [
            (optax.l2_loss, 0.5 * 3.9**2, 3.9),
            (optax.huber_loss, 3.9 - 0.5, 1.0),
            (functools.partial(optax.huber_loss, delta=2.0), 2 * 3.9 - 2, 2.0),
            (functools.partial(optax.huber_loss, delta=5.0), 0.5 * 3.9**2, 3.9),
        ],
    )
    def test_by_hand(self, penalty, expected, slope):
        params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([0.0, 0.0])}
        target_params = {"kernel": jnp.array([[2.0, 3.0]]), "bias": jnp.array([0.0, 0.0])}
        one = Transition(
            jnp.ones(1), jnp.int32(1), jnp.float32(0.5), jnp.float32(0.9), jnp.full(1, 2.0)
        )
        loss_fn = bellman_loss(q_learning, penalty)

        def loss(params, target_params):
            output = loss_fn(LINEAR, params, target_params, one, jax.random.key(0))
            return output.loss, output

        # Target 0.5 + 0.9 * 6, prediction 2.
        (_, output), (grad, target_grad) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            params, target_params
        )
        assert float(output.loss) == pytest.approx(expected, rel=1e-6)
        assert float(output.priority) == pytest.approx(3.9, rel=1e-6)
        assert float(output.metrics["q_value"]) == pytest.approx(2.0)
        np.testing.assert_allclose(grad["kernel"], [[0, -slope]], rtol=1e-6)
        np.testing.assert_allclose(grad["bias"], [0, -slope], rtol=1e-6)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(target_grad))

    def test_priority_is_the_magnitude(self):
        params = {"kernel": jnp.array([[9.0, 9.0]]), "bias": jnp.zeros(2)}
        one = Transition(jnp.ones(1), jnp.int32(0), jnp.float32(1), jnp.float32(0), jnp.ones(1))
        output = bellman_loss()(LINEAR, params, params, one, jax.random.key(0))
        assert float(output.priority) == pytest.approx(8.0)

    def test_a_batched_error_is_refused(self):
        def batched(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
            return r_t - q_tm1

        one = jax.tree.map(lambda x: x[0], on_device(batch_of_transitions()))
        params = as_jax(linear_params(0))
        with pytest.raises(AssertionError, match="rank"):
            bellman_loss(batched)(LINEAR, params, params, one, jax.random.key(0))

    def test_its_default_is_squared_q_learning(self):
        one = jax.tree.map(lambda x: x[0], on_device(batch_of_transitions()))
        params, target_params = as_jax(linear_params(0)), as_jax(linear_params(1))
        a, b = (
            loss_fn(LINEAR, params, target_params, one, jax.random.key(0))
            for loss_fn in (bellman_loss(), bellman_loss(q_learning, optax.l2_loss))
        )
        assert a.loss == b.loss

    def test_noise_of_the_three_evaluations_is_independent(self):
        """The keys of prediction, target and online target must differ."""

        def noisy_apply(params, obs, key=None):
            return jnp.ones(2) * jax.random.uniform(key) + params

        def td_error(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
            seen.append((q_tm1[0], q_t[0], q_t_selector[0]))
            return q_tm1[a_tm1]

        seen: list = []
        network = Network(lambda key, obs: jnp.zeros(()), noisy_apply, lambda output: output)
        one = jax.tree.map(lambda x: x[0], on_device(batch_of_transitions()))
        for seed in (0, 1):
            key = jax.random.key(seed)
            bellman_loss(td_error)(network, jnp.zeros(()), jnp.zeros(()), one, key)
        assert len({float(value) for values in seen for value in values}) == 6


class TestNamedArguments:
    """A TD error is called by the names of its arguments, which are rlax's."""

    @staticmethod
    def loss_of(td_error, network=LINEAR):
        one = jax.tree.map(lambda x: x[0], on_device(batch_of_transitions()))
        params, target_params = as_jax(linear_params(0)), as_jax(linear_params(1))
        return bellman_loss(td_error)(network, params, target_params, one, jax.random.key(0)).loss

    def test_rlaxs_five_arguments_will_do_and_save_a_forward_pass(self):
        def rlax_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, stop_target_gradients=True):
            assert stop_target_gradients is True
            return q_learning(q_tm1, a_tm1, r_t, discount_t, q_t)

        def apply(params, obs, key=None):
            passes.append(obs)
            return LINEAR.apply(params, obs, key)

        passes: list = []
        network = LINEAR._replace(apply=apply)
        assert self.loss_of(rlax_q_learning, network) == self.loss_of(q_learning)
        assert len(passes) == 2
        self.loss_of(double_q_learning, network)
        assert len(passes) == 5

    def test_rlaxs_names_of_double_q_learning_will_do_in_any_order(self):
        def rlax_double(q_t_selector, q_t_value, q_tm1, a_tm1, r_t, discount_t, *, more=0):
            return double_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector)

        assert self.loss_of(rlax_double) == self.loss_of(double_q_learning)

    def test_what_wraps_a_td_error_is_called_as_it(self):
        @functools.wraps(double_q_learning)
        def wrapped(*args, **kwargs):
            return double_q_learning(*args, **kwargs)

        for same in (wrapped, jax.jit(double_q_learning), functools.partial(double_q_learning)):
            assert self.loss_of(same) == self.loss_of(double_q_learning)

    @pytest.mark.parametrize(
        ("td_error", "words"),
        [
            (
                lambda q_tm1, a_tm1, r_t, discount_t, q_t, probs_a_t: r_t,
                "needs probs_a_t, which bellman_loss does not know",
            ),
            (
                lambda q_tm1, a_tm1, r_t, discount_t, q_t, *, temperature: r_t,
                "needs temperature.*a value with functools.partial",
            ),
            (lambda v_tm1, r_t, discount_t, v_t: r_t, "without q_tm1, a_tm1, q_t:"),
            (lambda q_tm1, a_tm1, r_t, q_t: r_t, "without discount_t:"),
            (lambda *arguments: arguments[2], "without q_tm1, a_tm1, r_t, discount_t, q_t:"),
            (max, "does not say what arguments it takes"),
        ],
    )
    def test_another_name_is_refused_at_once(self, td_error, words):
        with pytest.raises(ConfigError, match=words):
            bellman_loss(td_error)


class TestLearner:
    @pytest.mark.parametrize("clip", [np.inf, 0.7])
    @pytest.mark.parametrize("double", [False, True])
    def test_sgd_steps(self, double, clip):
        penalty = (
            optax.l2_loss if np.isinf(clip) else functools.partial(optax.huber_loss, delta=clip)
        )
        loss_fn = bellman_loss(double_q_learning if double else q_learning, penalty)
        learning_rate = 0.3
        learner = make_learner(LINEAR, loss_fn, optax.sgd(learning_rate), periodic_target_update(2))
        params, target_params = linear_params(0), linear_params(1)
        state = LearnerState(
            as_jax(params), as_jax(target_params), optax.sgd(learning_rate).init(()), jnp.int32(0)
        )
        update = jax.jit(learner.update)
        for num_updates in (1, 2, 3):
            batch = batch_of_transitions(seed=num_updates)
            errors = numpy_td_errors(params, target_params, batch, double)
            clipped = np.minimum(np.abs(errors), clip)
            loss = np.mean(clipped * (np.abs(errors) - 0.5 * clipped))
            prediction = numpy_values(params, batch.obs_tm1)[np.arange(6), batch.a_tm1]
            params = numpy_sgd_step(params, target_params, batch, double, clip, learning_rate)
            target_params = params if num_updates == 2 else target_params

            state, priorities, metrics = update(state, on_device(batch), jax.random.key(0))
            np.testing.assert_allclose(priorities, np.abs(errors), rtol=1e-5, atol=1e-6)
            assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
            assert float(metrics["q_value"]) == pytest.approx(prediction.mean(), rel=1e-5)
            assert int(state.num_updates) == num_updates
            for name in params:
                np.testing.assert_allclose(state.params[name], params[name], rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(
                    state.target_params[name], target_params[name], rtol=1e-5, atol=1e-6
                )

    def test_init_starts_with_equal_networks_in_two_buffers(self):
        learner = make_learner(LINEAR, bellman_loss(), optax.adam(1e-3), periodic_target_update(1))
        state = jax.jit(learner.init)(jax.random.key(0), jnp.zeros(3))
        np.testing.assert_array_equal(state.params["kernel"], state.target_params["kernel"])
        assert np.any(state.params["kernel"])
        a, b = (tree["kernel"] for tree in (state.params, state.target_params))
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
        assert int(state.num_updates) == 0

    def test_each_transition_has_a_key_of_its_own(self):
        def loss_fn(network, params, target_params, transition, key):
            output = bellman_loss()(network, params, target_params, transition, key)
            return output._replace(priority=jax.random.uniform(key))

        learner = make_learner(LINEAR, loss_fn, optax.sgd(0.1), periodic_target_update(1))
        state = jax.jit(learner.init)(jax.random.key(0), jnp.zeros(3))
        batch, update = on_device(batch_of_transitions()), jax.jit(learner.update)
        priorities = [update(state, batch, jax.random.key(seed))[1] for seed in (0, 1)]
        assert len(np.unique(priorities)) == 12


@pytest.mark.parametrize("num_actions", [2, 3, 5])
def test_masked_squared_error_is_the_mean_over_masked_outputs(num_actions):
    rng = np.random.default_rng(0)
    weights = jnp.array(rng.normal(size=(4, num_actions)), jnp.float32)
    obs_tm1, obs_t = jnp.array(rng.normal(size=(2, 6, 4)), jnp.float32)
    actions = jnp.array(rng.integers(0, num_actions, 6), jnp.int32)
    rewards, discounts = jnp.array(rng.uniform(size=(2, 6)), jnp.float32)
    network = Network(lambda key, obs: weights, lambda w, obs, key=None: obs @ w, lambda q: q)
    loss_fn = bellman_loss(q_learning, masked_squared_error(num_actions))
    batch = Transition(obs_tm1, actions, rewards, discounts, obs_t)
    keys = jax.random.split(jax.random.key(0), 6)

    def ours(w):
        over_batch = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
        return over_batch(network, w, weights, batch, keys).loss.mean()

    def with_a_mask(w):
        mask = jax.nn.one_hot(actions, num_actions)
        targets = rewards + discounts * (obs_t @ weights).max(axis=1)
        return jnp.mean(jnp.square((obs_tm1 @ w) * mask - targets[:, None] * mask))

    for one, other in zip(
        jax.value_and_grad(ours)(weights + 0.1),
        jax.value_and_grad(with_a_mask)(weights + 0.1),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
