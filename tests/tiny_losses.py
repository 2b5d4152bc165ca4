"""Small networks, transitions and loops in NumPy, which the tests of losses share."""

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.types import Categorical, Network, ProposedQuantiles, Quantiles, Transition

KEY = jax.random.key(0)
NUM_ACTIONS, NUM_OBS, BATCH = 3, 4, 24
SUPPORT = np.linspace(-2, 3, 6)
FRACTIONS = np.array([0.1, 0.3, 0.7, 0.95])
WEIGHTS = np.array([0.2, 0.25, 0.45, 0.1])  # unequal, as FQF's are


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
    return Transition._make((obs_tm1, a_tm1, r_t, discount_t, obs_t, None, {}))


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
