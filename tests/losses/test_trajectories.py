"""Losses of trajectories: returns by hand and by their definitions, and where they end."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn import losses, networks
from purejaxdqn.types import ConfigError, Trajectory

DISCOUNT = 0.9


def make_trajectory(length, num_valid, terminated=False, truncated=False, seed=0):
    """A trajectory, and the target network's values `[T, 3]`; what is behind the end is NaN."""
    rng = np.random.default_rng(seed)
    is_valid = np.arange(length) < num_valid
    ends = np.arange(length) == num_valid - 1
    unknown = np.where(is_valid, 0.0, np.nan).astype(np.float32)
    trajectory = Trajectory(
        obs_tm1=jnp.asarray(rng.normal(size=(length, 2)), jnp.float32),
        a_tm1=jnp.asarray(rng.integers(0, 3, length), jnp.int32),
        r_t=jnp.asarray(rng.normal(size=length) + unknown, jnp.float32),
        discount_t=jnp.asarray(np.where(ends & terminated, 0.0, DISCOUNT), jnp.float32),
        obs_t=jnp.asarray(rng.normal(size=(length, 2)), jnp.float32),
        truncated_t=jnp.asarray(ends & truncated),
        extras={"probability": jnp.asarray(rng.uniform(0.1, 1, length), jnp.float32)},
        is_valid=jnp.asarray(is_valid),
    )
    q_t = rng.normal(size=(length, 3)) + unknown[:, np.newaxis]
    return trajectory, jnp.asarray(q_t, jnp.float32)


def by_definition(trajectory, q_t, trace):
    """Munos et al. (2016), equation 3, forwards, in float64: a sum of corrections.

    `trace(k)` is `(c, baseline)` of the action at time t of step k.
    """
    num_valid = int(trajectory.is_valid.sum())
    r, gamma, q = (np.asarray(x, np.float64) for x in (*trajectory[2:4], q_t))
    returns = []
    for start in range(num_valid):
        total = r[start] + gamma[start] * q[start].max()
        weight = 1.0
        for k in range(start, num_valid - 1):
            if trajectory.truncated_t[k]:
                break
            c, baseline = trace(k)
            weight *= gamma[k] * c
            total += weight * (r[k + 1] + gamma[k + 1] * q[k + 1].max() - baseline)
        returns.append(total)
    return returns


def next_action(trajectory, k):
    return int(trajectory.a_tm1[k + 1])


TRACES = {
    "peng": (losses.peng_q_lambda(0.7), lambda x, q: lambda k: (0.7, q[k].max())),
    "n_step": (losses.n_step_returns(), lambda x, q: lambda k: (1.0, q[k].max())),
    "watkins": (
        losses.watkins_q_lambda(0.7),
        lambda x, q: lambda k: (0.7 * (next_action(x, k) == q[k].argmax()), q[k].max()),
    ),
    "retrace": (
        losses.retrace(0.7),
        lambda x, q: (
            lambda k: (
                0.7
                * min(
                    1, (next_action(x, k) == q[k].argmax()) / x.extras["probability"][k + 1].item()
                ),
                q[k][next_action(x, k)],
            )
        ),
    ),
}
COMPILED = {name: jax.jit(returns) for name, (returns, _) in TRACES.items()}


@pytest.mark.parametrize("name", TRACES)
class TestReturns:
    @settings(max_examples=30)
    @given(
        num_valid=st.integers(1, 6),
        end=st.sampled_from(["", "terminated", "truncated"]),
        seed=st.integers(0, 2**16),
    )
    def test_they_are_their_definition(self, name, num_valid, end, seed):
        ends = {end: True} if end else {}
        trajectory, q_t = make_trajectory(6, num_valid, **ends, seed=seed)
        found = COMPILED[name](trajectory, q_t)[:num_valid]
        expected = by_definition(trajectory, q_t, TRACES[name][1](trajectory, np.asarray(q_t)))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_peng_is_what_pqn_learns():
    trajectory, q_t = make_trajectory(6, 6, truncated=True)
    own = losses.peng_q_lambda(0.65)(trajectory, q_t)
    fields = (trajectory.r_t, trajectory.discount_t, trajectory.truncated_t, q_t.max(axis=1), 0.65)
    np.testing.assert_allclose(own, losses.q_lambda_returns(*fields), rtol=1e-5)


def test_retrace_by_hand():
    """Two steps: the second action is greedy and was taken with probability 0.5."""
    trajectory, _ = make_trajectory(2, 2)
    trajectory = trajectory._replace(
        a_tm1=jnp.array([0, 2]),
        r_t=jnp.array([1.0, 10.0]),
        extras={"probability": jnp.array([1.0, 0.5])},
    )
    q_t = jnp.array([[0.0, 1.0, 4.0], [2.0, 0.0, 0.0]])
    last = 10 + 0.9 * 2
    # c = min(1, 1 / 0.5) = 1
    expected = [1 + 0.9 * (4 + (last - 4)), last]
    np.testing.assert_allclose(losses.retrace()(trajectory, q_t), expected, rtol=1e-6)
    # An action that is not greedy cuts it.
    other = trajectory._replace(a_tm1=jnp.array([0, 1]))
    np.testing.assert_allclose(losses.retrace()(other, q_t), [1 + 0.9 * 4, last], rtol=1e-6)


def test_retrace_without_probabilities_is_refused():
    trajectory, q_t = make_trajectory(3, 3)
    with pytest.raises(ConfigError, match=r"extras are \['mask'\].*write_probability"):
        losses.retrace()(trajectory._replace(extras={"mask": jnp.ones(3)}), q_t)


class TestLoss:
    def test_only_valid_steps_count(self):
        """The loss and its gradient are the same whatever lies behind the end."""
        network = networks.value_network(3, (4,))
        trajectory, _ = make_trajectory(5, 3)
        params = network.init(jax.random.key(0), trajectory.obs_tm1[0])
        loss_fn = losses.trajectory_loss(losses.peng_q_lambda(0.5))

        def value(params, trajectory):
            output = loss_fn(network, params, params, trajectory, jax.random.key(1))
            return output.loss, output

        short = jax.tree.map(lambda x: x[:3], trajectory)
        grads, output = jax.grad(value, has_aux=True)(params, trajectory)
        expected_grads, expected = jax.grad(value, has_aux=True)(params, short)
        chex.assert_trees_all_close((grads, output), (expected_grads, expected), rtol=1e-5)
