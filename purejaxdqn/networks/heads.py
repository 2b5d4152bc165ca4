"""Turns features into an output for each action, and outputs into action values."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from purejaxdqn.networks.layers import Dense, DenseLayer, dot, hidden_layers
from purejaxdqn.types import Array, Categorical, ProposedQuantiles, Quantiles, ensure_whole


class ActionOutputs(nn.Module):
    """Outputs for each action: a linear layer, behind hidden layers if there are any.

    `N` outputs are 1 value, or the number of atoms or quantiles. The hidden layers are as in
    `MLPTorso`.
    """

    num_actions: int
    num_outputs: int = 1
    hidden_sizes: Sequence[int] = ()
    layer_norm: bool = False
    dense: DenseLayer = Dense
    last: DenseLayer | None = None

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Maps features `[..., F]` to `[..., A, N]`."""
        sizes = self.hidden_sizes
        x = hidden_layers(self, features, sizes, self.layer_norm, self.dense, self.last)
        outputs = self.dense(self.num_actions * self.num_outputs)(x)
        return outputs.reshape(*outputs.shape[:-1], self.num_actions, self.num_outputs)


class Dueling(nn.Module):
    """Outputs for each action as the state's value plus the action's advantage.

    Wang et al., "Dueling network architectures for deep reinforcement learning" (2016), equation 9:
    see `value_plus_advantages`. In the paper each stream has a hidden layer of 512 units, right
    behind the convolutions. Distributions are added atom by atom, or quantile by quantile: Hessel
    et al., "Rainbow" (2018), "The integrated agent".

    Attributes:
      value: `features [..., F] -> [..., 1, N]`, such as `ActionOutputs(1, N)`.
      advantages: `features [..., F] -> [..., A, N]`, such as `ActionOutputs(A, N)`.
    """

    value: nn.Module
    advantages: nn.Module

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Maps features `[..., F]` to `[..., A, N]`."""
        return value_plus_advantages(self.value(features), self.advantages(features))


def value_plus_advantages(value: Array, advantages: Array) -> Array:
    """Adds advantages `[..., A, N]` to a value `[..., 1, N]`, minus their mean over the actions.

    Wang et al. (2016), equation 9. The value is the mean of the result `[..., A, N]` over actions.
    """
    return value + advantages - jnp.mean(advantages, axis=-2, keepdims=True)


class Head(nn.Module):
    """Base of all heads: a torso, and outputs for each action.

    Each has a method `head`, which maps features `[F]` to the output.
    """

    torso: nn.Module  # obs [*obs] -> features [F]
    outputs: nn.Module  # features [..., F] -> [..., A, N], such as ActionOutputs(A, N)

    def features(self, obs: Array) -> Array:
        """Maps one observation `[*obs]` to features `[F]`."""
        features: Array = self.torso(obs)
        self.sow("intermediates", "features", features)
        return features

    def __call__(self, obs: Array) -> Any:
        """Maps one observation `[*obs]` to the output."""
        return self.head(self.features(obs))


class Values(Head):
    """Action values as they are, with `N = 1`."""

    @nn.compact
    def head(self, features: Array) -> Array:
        """Maps features `[F]` to values `[A]`."""
        return self.outputs(features)[:, 0]


class C51(Head):
    """A categorical distribution of returns on evenly spaced atoms, for each action.

    Bellemare et al., "A distributional perspective on reinforcement learning" (2017), section 4,
    with 51 atoms. The outputs are the logits of `N` atoms, returns from `v_min` to `v_max`.
    """

    v_min: float
    v_max: float

    @nn.compact
    def head(self, features: Array) -> Categorical:
        """Maps features `[F]` to `Categorical`."""
        logits = self.outputs(features)
        return Categorical(logits, jnp.linspace(self.v_min, self.v_max, logits.shape[-1]))


class QRDQN(Head):
    """The return's quantiles at fixed fractions, for each action.

    Dabney et al., "Distributional reinforcement learning with quantile regression" (2018), lemma 2:
    the fractions are the midpoints of `N` equal parts, 200 in the paper. The outputs are quantiles.
    """

    @nn.compact
    def head(self, features: Array) -> Quantiles:
        """Maps features `[F]` to `Quantiles`."""
        values = self.outputs(features)
        return _equal_quantiles(values, midpoints(values.shape[-1]))


class IQN(Head):
    """The return's quantiles at fractions that are drawn, for each action.

    Dabney et al., "Implicit quantile networks for distributional reinforcement learning" (2018),
    section 3.1: the features are multiplied with an embedding of the fraction, unit by unit. The
    fractions are drawn uniformly from the stream "noise"; without it they are the midpoints of
    equal parts. The paper finds 8 fractions enough in the loss, and acts with 32; published code
    learns with 64. The output is one quantile, behind a hidden layer in the paper. `num_cosines` is
    the size of the embedding's basis.
    """

    num_quantiles: int
    num_cosines: int = 64

    @nn.compact
    def head(self, features: Array) -> Quantiles:
        """Maps features `[F]` to `Quantiles`."""
        if self.has_rng("noise"):
            fractions = jax.random.uniform(self.make_rng("noise"), (self.num_quantiles,))
        else:
            fractions = midpoints(self.num_quantiles)
        embedding = FractionEmbedding(features.size, self.num_cosines)(fractions)
        values = self.outputs(features[None] * embedding)  # [N, A, 1]
        return _equal_quantiles(values[..., 0].T, fractions)


class FQF(Head):
    """The return's quantiles at fractions that the network proposes, for each action.

    Yang et al., "Fully parameterized quantile function for distributional reinforcement learning"
    (2019), sections 3.2 and 3.4: the softmax of a linear layer on the features cuts the interval
    from 0 to 1 into `N` parts. The quantiles are those at the midpoints of the parts, computed as
    in `IQN`, and each weighs as much as its part is long. The paper has 32 parts.

    No gradient of the quantiles reaches the proposal (`fraction_proposal` among the parameters),
    and no gradient of the proposal reaches the features: each has a loss of its own.
    """

    num_quantiles: int
    num_cosines: int = 64

    @nn.compact
    def head(self, features: Array) -> ProposedQuantiles:
        """Maps features `[F]` to `ProposedQuantiles`."""
        # Zeros, so that the parts are equal at first, as in QR-DQN.
        zeros = nn.initializers.zeros
        proposal = Dense(self.num_quantiles, kernel_init=zeros, name="fraction_proposal")
        weights = nn.softmax(proposal(jax.lax.stop_gradient(features)))
        ends = jnp.cumsum(weights)
        fractions, boundaries = ends - weights / 2, ends[:-1]

        embedding = FractionEmbedding(features.size, self.num_cosines)

        def quantiles_at(fractions: Array) -> Array:
            embedded = embedding(jax.lax.stop_gradient(fractions))
            return self.outputs(features[None] * embedded)[..., 0].T

        # In two calls, so that acting and targets, which need only the first, compute no more.
        values, boundary_values = quantiles_at(fractions), quantiles_at(boundaries)
        return ProposedQuantiles(values, fractions, weights, boundaries, boundary_values)


class FractionEmbedding(nn.Module):
    """Fractions as vectors: ReLU of a linear layer on their cosines, 64 in the paper.

    Dabney et al., "Implicit quantile networks for distributional reinforcement learning" (2018),
    equation 4.
    """

    num_features: int
    num_cosines: int = 64

    @nn.compact
    def __call__(self, fractions: Array) -> Array:
        """Maps fractions `[N]` to `[N, F]`."""
        basis = cosines(fractions, self.num_cosines)
        embedding = nn.relu(_DenseOfRows(self.num_features, name="Dense_0")(basis))
        self.sow("intermediates", "hidden_embedding", embedding)
        return embedding


class _DenseOfRows(nn.Module):
    """`Dense` on many rows, whose bias is multiplied with a column of ones before it is added.

    So the gradient of the bias is a product too: to sum so many rows takes XLA twice as long.
    """

    num_features: int

    @nn.compact
    def __call__(self, rows: Array) -> Array:
        """Maps `[N, n]` to `[N, F]`."""
        shape, dims = (rows.shape[-1], self.num_features), (((1,), (0,)), ((), ()))
        kernel = self.param("kernel", nn.linear.default_kernel_init, shape)
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, shape[1:]))
        # Behind a barrier, XLA does not see that they are ones.
        ones = jax.lax.optimization_barrier(jnp.ones_like(rows[:, :1]))
        biases = jax.lax.dot_general(ones, bias[jnp.newaxis], dims)
        return dot(rows, kernel, dims) + biases


def cosines(fractions: Array, num_cosines: int) -> Array:
    """Maps fractions `[N]` to `[N, n]`: `cos(pi i fraction)` for `i` up to `n - 1`, within 1e-5."""
    half_turns = jnp.outer(fractions, jnp.arange(num_cosines))
    # A polynomial, because XLA's cosine takes ten times as long on a CPU: half of all IQN's time.
    square = jnp.square(half_turns - 2 * jnp.round(half_turns / 2))
    total = jnp.zeros_like(square)
    for coefficient in reversed(_COSINE):
        total = total * square + coefficient
    return total


# Coefficients of cos(pi sqrt(x)) for x from 0 to 1, the lowest power first.
_COSINE: list[float] = (
    Chebyshev.interpolate(lambda x: np.cos(np.pi * np.sqrt(x)), 8, domain=[0, 1])
    .convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1])
    .coef.tolist()
)


def midpoints(num: int) -> Array:
    """Computes the midpoints `[num]` of `num` equal parts of the interval from 0 to 1."""
    ensure_whole("num", num)
    return (jnp.arange(num) + 0.5) / num


def _equal_quantiles(values: Array, fractions: Array) -> Quantiles:
    return Quantiles(values, fractions, jnp.full(fractions.shape, 1 / fractions.size))


def expected_value(output: Categorical) -> Array:
    """Computes the mean of each action's distribution, `[A]`."""
    scaled = jnp.exp(output.shifted())
    total = jnp.dot(scaled, jnp.ones_like(output.support), precision="highest")
    return jnp.dot(scaled, output.support, precision="highest") / total


def mean_of_quantiles(output: Quantiles | ProposedQuantiles) -> Array:
    """Computes the weighted mean of each action's quantiles, `[A]`."""
    return output.values @ output.weights
