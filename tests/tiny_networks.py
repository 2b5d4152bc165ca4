"""Small networks and their weights, which the tests of networks share."""

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.networks import value_network

OBS = jnp.array([0.5, -1.0, 2.0, 0.1])
REPRESENTATIONS = ("values", "categorical", "quantile", "implicit_quantile", "proposed_quantile")


def small(representation="values", **kwargs):
    """Three actions; the counts differ, so that no axis is taken for another."""
    kwargs = {"hidden_sizes": (6,), "num_atoms": 5, "num_quantiles": 4, "num_cosines": 7, **kwargs}
    return value_network(3, representation=representation, **kwargs)


def shapes(network, obs=OBS):
    """Weights' shapes by path, without computing any."""
    params = jax.eval_shape(network.init, jax.random.key(0), obs)["params"]
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in paths}


def random_like(shapes, seed=0):
    """Weights that hide nothing, no bias of 0 and no scale of 1; in NumPy, to compute by hand."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def random_params(network, obs=OBS, seed=0):
    return random_like(jax.eval_shape(network.init, jax.random.key(0), obs), seed)


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]
