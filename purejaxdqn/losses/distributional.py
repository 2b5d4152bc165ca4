"""Losses of ONE transition for networks that put out a distribution over returns."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from purejaxdqn.losses.bellman_loss import (
    Outputs,
    TDError,
    check_arguments,
    find_error,
    loss_of_outputs,
    name_part,
    takes_selector,
    write_recipe,
)
from purejaxdqn.losses.bellman_targets import double_q_learning, softmax_log_policy
from purejaxdqn.types import (
    TINY,
    Array,
    Categorical,
    LossFn,
    LossOutput,
    ProposedQuantiles,
    Quantiles,
    Transition,
    ensure_number,
)

AnyQuantiles = Quantiles | ProposedQuantiles


def project(probabilities: Array, atoms: Array, support: Array) -> Array:
    """Moves a categorical distribution onto a fixed support: each atom's mass to its neighbours.

    Bellemare, Dabney and Munos, "A distributional perspective on reinforcement learning" (2017),
    equation 7. An atom between two of the support gives mass to each in proportion to how near it
    is. An atom outside gives all its mass to the end, and one that falls on an atom of the support
    gives all its mass to that.

    Args:
      probabilities: `[N]` the mass of each atom.
      atoms: `[N]` where the mass lies, in any order, such as `r_t + discount_t * support`.
      support: `[M]` at least two atoms, evenly spaced and increasing.

    Returns:
      `[M]` the mass on each atom of the support; its sum is that of `probabilities`.
    """
    chex.assert_rank([probabilities, atoms, support], 1)
    chex.assert_equal_shape([probabilities, atoms])
    chex.assert_axis_dimension_gteq(support, 0, 2)
    last = support.shape[0] - 1
    position = jnp.clip((atoms - support[0]) * (last / (support[-1] - support[0])), 0, last)
    places = jnp.arange(-(-support.size // 16) * 16.0)  # whole vectors of a CPU

    def move(j: Array, moved: Array) -> Array:
        # Distances to whole numbers and not to the atoms, whose rounding would lose mass.
        return moved + jnp.maximum(1 - jnp.abs(position[j] - places), 0) * probabilities[j]

    # One atom after another: a table of all distances would not fit into a core's cache.
    moved = jax.lax.fori_loop(0, probabilities.size, move, jnp.zeros_like(places), unroll=4)
    return moved[: support.size]


def _sum(x: Array, weights: Array | float = 1.0) -> Array:
    """Sums `[N]` with weights: as a product, which a CPU does several times as fast."""
    return jnp.dot(x, jnp.broadcast_to(weights, x.shape), precision="highest")


def _cross_entropy(target: Array, prediction: Categorical) -> tuple[Array, Array]:
    """Computes the cross-entropy `[]` between masses `[N]` and logits `[N]`; also its mean `[]`."""
    logits = prediction.shifted()
    scaled = jnp.exp(logits)
    total = _sum(scaled)
    mean = _sum(scaled, prediction.support) / total
    return _sum(target) * jnp.log(total) - _sum(target, logits), mean


def categorical_loss(double: bool = True) -> LossFn[Categorical]:
    """Makes the loss of C51: cross-entropy between a projected target and the prediction.

    Bellemare, Dabney and Munos (2017), algorithm 1. The paper chooses the next action by the target
    network's means. To choose it by those of the online network, with `double`, is the double
    Q-learning of Rainbow (Hessel et al. 2018).

    Returns:
      A `LossFn` whose priority is the Kullback-Leibler divergence of the prediction from the
      target, as in Rainbow: cross-entropy minus the target's entropy, which is 0 at a perfect
      prediction.
    """

    def measure(outputs: Outputs[Categorical], transition: Transition) -> LossOutput:
        online_tm1, target_t, _, _, q_t_selector = outputs
        chex.assert_rank([online_tm1.logits, target_t.logits], 2)
        # Of all actions, as for their values, so that it is computed once.
        masses = jnp.exp(target_t.shifted())[jnp.argmax(q_t_selector)]
        atoms = transition.r_t + transition.discount_t * target_t.support
        target_tm1 = project(masses / _sum(masses), atoms, online_tm1.support)
        target_tm1 = jax.lax.stop_gradient(target_tm1)
        taken = online_tm1._replace(logits=online_tm1.logits[transition.a_tm1])
        loss, q_value = _cross_entropy(target_tm1, taken)
        divergence = loss - jnp.sum(jax.scipy.special.entr(target_tm1))
        # Rounding may leave it below 0.
        return LossOutput(loss, jnp.maximum(divergence, 0), {"q_value": q_value})

    loss_fn, name = loss_of_outputs(measure, double), f"categorical_loss(double={double})"
    return write_recipe(loss_fn, name, categorical_loss, double=double)


def gaussian_label(target: Array, support: Array, width: Array | float = 0.75) -> Array:
    """Spreads a target `[]` over a fixed support `[N]`: a Gaussian's mass in the bin of each atom.

    Imani and White, "Improving regression performance with distributional losses" (2018). The
    deviation is `width` bins, `[]` above 0. A bin reaches half way to the atoms beside it, and as
    far beyond the last one, which a target outside of the support is moved to. What the Gaussian
    has outside of all bins is shared out in proportion, so that the label `[N]` sums to 1.
    """
    bin_width = support[1] - support[0]
    edges = jnp.append(support, support[-1] + bin_width) - bin_width / 2
    centre = jnp.clip(target, support[0], support[-1])
    below = jax.scipy.stats.norm.cdf(edges, centre, width * bin_width)
    return jnp.diff(below) / (below[-1] - below[0])


def hl_gauss_loss(
    td_error: TDError = double_q_learning, width: Array | float = 0.75
) -> LossFn[Categorical]:
    """Makes the loss of HL-Gauss: values are learned by classification.

    Farebrother et al., "Stop regressing: training value functions via classification for scalable
    deep RL" (2024), section 3.1: the cross-entropy between the `gaussian_label` of a target, which
    is one number, and the prediction.

    Args:
      td_error: whose target it is, as for `bellman_loss`.
      width: `[]` of the label, in bins.

    Returns:
      A `LossFn` whose priority is the absolute TD error.
    """
    check_arguments(td_error)
    ensure_number("width", width, TINY)

    def measure(outputs: Outputs[Categorical], transition: Transition) -> LossOutput:
        online_tm1, a_tm1 = outputs.online_tm1, transition.a_tm1
        q_value = outputs.q_tm1[a_tm1]
        error = find_error(td_error, outputs, transition)
        label = gaussian_label(q_value + error, online_tm1.support, width)
        taken = online_tm1._replace(logits=online_tm1.logits[a_tm1])
        loss, _ = _cross_entropy(jax.lax.stop_gradient(label), taken)
        return LossOutput(loss, jnp.abs(error), {"q_value": q_value})

    loss_fn = loss_of_outputs(measure, takes_selector(td_error))
    name = f"hl_gauss_loss({name_part(td_error)})"
    return write_recipe(loss_fn, name, hl_gauss_loss, td_error=td_error, width=width)


def quantile_huber(error: Array, fraction: Array, threshold: Array | float = 1.0) -> Array:
    """Computes the quantile Huber loss, elementwise: asymmetric, its minimum is at a quantile.

    Dabney, Rowland, Bellemare and Munos, "Distributional reinforcement learning with quantile
    regression" (2018), equations 9 and 10: `|fraction - (error < 0)| * huber(error)`, where the
    Huber loss is half the square up to `threshold` and `threshold * (|error| - threshold / 2)`
    beyond. Dabney, Ostrovski, Silver and Munos, "Implicit quantile networks" (2018), divide it by
    the threshold: a constant factor, 1 at the usual threshold.

    Args:
      error: target less prediction, of any shape.
      fraction: between 0 and 1, which quantile the prediction is; of the same rank as `error`.
      threshold: `[]` from which error on the loss grows linearly; 0 stands for the plain quantile
        loss `|fraction - (error < 0)| * |error|` (QR-DQN-0).
    """
    return _quantile_huber_and_slope(error, fraction, threshold)[0]


def _quantile_huber_and_slope(
    error: Array, fraction: Array, threshold: Array | float
) -> tuple[Array, Array]:
    """Computes `quantile_huber` and its slope, elementwise, in as few steps as there can be."""
    is_huber = jnp.asarray(threshold) > 0
    # The Huber loss has the slope of its error up to the threshold; for want of one, the sign.
    factor, limit = jnp.where(is_huber, 1.0, 1e38), jnp.where(is_huber, threshold, 1.0)
    slope = jnp.clip(error * factor, -limit, limit)
    weighted = jnp.where(error < 0, 1 - fraction, fraction) * slope
    return weighted * (error - jnp.where(is_huber, 0.5, 0.0) * slope), weighted


def fraction_loss(boundaries: Array, boundary_values: Array, values: Array) -> Array:
    """Computes the loss `[]` of FQF's proposal of fractions; only its gradient has a meaning.

    Yang et al., "Fully parameterized quantile function for distributional reinforcement learning"
    (2019), proposition 1: `N` quantiles, each at the midpoint of a part, differ from the
    distribution by a 1-Wasserstein error. It changes with the boundary `tau_i` between two parts
    by `2 F(tau_i) - F(midpoint before) - F(midpoint after)`, with the quantile function `F` held
    fixed.

    Args:
      boundaries: `[N - 1]` between the parts; the gradient goes through them alone, and is that of
        the error.
      boundary_values: `[N - 1]` the quantiles there.
      values: `[N]` the quantiles at the parts' midpoints.
    """
    chex.assert_rank([boundaries, boundary_values, values], 1)
    slope = 2 * boundary_values - values[1:] - values[:-1]
    return jnp.sum(jax.lax.stop_gradient(slope) * boundaries)


@jax.custom_jvp
def quantile_regression(
    values: Array, targets: Array, fractions: Array, weights: Array, threshold: Array | float
) -> Array:
    """Computes the loss `[N]` of each predicted quantile towards weighted ones of a target.

    Dabney, Rowland, Bellemare and Munos (2018), equation 10: `sum_j weights[j]
    quantile_huber(targets[j] - values[i], fractions[i])`. Its gradient goes through the `values`
    alone, as though all else were constant.

    Args:
      values: `[N]` the predictions.
      targets: `[M]` the target's quantiles.
      fractions: `[N]` between 0 and 1, which quantiles the predictions are.
      weights: `[M]` what each quantile of the target counts.
      threshold: `[]` of `quantile_huber`.
    """
    return _regress(values, targets, fractions, weights, threshold)[0]


@quantile_regression.defjvp
def _differentiate_regression(primals: Any, tangents: Any) -> tuple[Array, Array]:
    loss, slope = _regress(*primals)
    return loss, slope * tangents[0]


def _regress(
    values: Array, targets: Array, fractions: Array, weights: Array, threshold: Array | float
) -> tuple[Array, Array]:
    """Computes the losses `[N]` and their slopes `[N]`, touching each pair once.

    A table of all pairs would not fit into a core's cache: so one target after another.
    """

    def add_target(j: Array, sums: Array) -> Array:
        loss, slope = _quantile_huber_and_slope(targets[j] - values, fractions, threshold)
        return sums + jax.lax.complex(weights[j] * loss, -weights[j] * slope)

    # As one complex number, since XLA would compute two sums apart on a CPU.
    zeros = jnp.zeros_like(values)
    sums = jax.lax.fori_loop(0, targets.size, add_target, jax.lax.complex(zeros, zeros), unroll=4)
    return sums.real, sums.imag


def quantile_loss(
    double: bool = True, threshold: Array | float = 1.0, temperature: Array | float | None = None
) -> LossFn[AnyQuantiles]:
    """Makes the loss of QR-DQN, of IQN and of FQF: quantile regression of the target.

    Dabney, Rowland, Bellemare and Munos (2018), equation 10 and algorithm 1: over all pairs of a
    predicted quantile `i` and one `j` of the target, `sum_i mean_j quantile_huber(r_t + discount_t
    * z_t[j] - z_tm1[i], fraction[i])`, where the network says how much quantile `j` weighs in the
    mean. Equation 3 of IQN (Dabney et al. 2018) is the same over a constant, see `quantile_huber`.
    The gradient does not reach the fractions. Where the network proposes them (FQF), their own
    `fraction_loss` is added, whose gradient reaches nothing else.

    With a temperature the next action is drawn from the softmax policy `pi`, whose entropy is part
    of the target: `z_t[j] = sum_a pi(a) (z_t[a, j] - temperature * log pi(a))`, as in M-IQN
    (Vieillard, Pietquin and Geist 2020, appendix), which is `double=False` with `munchausen`.

    Args:
      double: whether the policy at time t is that of the online network's action values, or of
        the target network's.
      threshold: `[]` of `quantile_huber`.
      temperature: `[]` above 0, of the policy at time t, in the unit of the reward; None for the
        greedy policy.

    Returns:
      A `LossFn` whose priority is the absolute difference between the means of target and
      prediction.
    """
    ensure_number("threshold", threshold, 0)
    if temperature is not None:
        ensure_number("temperature", temperature, TINY)

    def measure(outputs: Outputs[AnyQuantiles], transition: Transition) -> LossOutput:
        online_tm1, target_t, q_tm1, _, q_t_selector = outputs
        chex.assert_rank([online_tm1.values, target_t.values], 2)
        if temperature is None:
            values_t = target_t.values[jnp.argmax(q_t_selector)]
        else:
            log_policy = softmax_log_policy(q_t_selector, temperature)[:, jnp.newaxis]
            values_t = target_t.values - temperature * log_policy
            values_t = jnp.sum(jnp.exp(log_policy) * values_t, axis=0)
        target_tm1 = jax.lax.stop_gradient(transition.r_t + transition.discount_t * values_t)
        weights = jax.lax.stop_gradient(target_t.weights)
        q_value = q_tm1[transition.a_tm1]
        values = online_tm1.values[transition.a_tm1]
        fractions = online_tm1.fractions
        losses = quantile_regression(values, target_tm1, fractions, weights, threshold)
        loss = jnp.sum(losses)
        if isinstance(online_tm1, ProposedQuantiles):
            boundary_values = online_tm1.boundary_values[transition.a_tm1]
            loss += fraction_loss(online_tm1.boundaries, boundary_values, values)
        return LossOutput(
            loss=loss,
            priority=jnp.abs(jnp.sum(weights * target_tm1) - q_value),
            metrics={"q_value": q_value},
        )

    name = f"quantile_loss(double={double}, {'greedy' if temperature is None else 'softmax'})"
    arguments = {"double": double, "threshold": threshold, "temperature": temperature}
    return write_recipe(loss_of_outputs(measure, double), name, quantile_loss, **arguments)
