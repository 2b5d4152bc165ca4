"""Each mistake that is planted in a whole loss, its penalty or its priority is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.losses import (
    bellman_loss,
    munchausen,
    project,
    q_learning,
    quantile_huber,
    soft_q_learning,
)
from purejaxdqn.testing import loss_report
from purejaxdqn.types import LossOutput, ProposedQuantiles

stop = jax.lax.stop_gradient


def changed(loss_fn, change):
    """A loss whose output is `change(output, network, params, target_params, transition, key)`."""

    def mine(network, params, target_params, transition, key):
        loss_key, own_key = jax.random.split(key)
        output = loss_fn(network, params, target_params, transition, loss_key)
        return change(output, network, params, target_params, transition, own_key)

    return mine


def networks_swapped(network, params, target_params, transition, key):
    return bellman_loss()(network, target_params, params, transition, key)


def observations_swapped(network, params, target_params, transition, key):
    swapped = transition._replace(obs_tm1=transition.obs_t, obs_t=transition.obs_tm1)
    return bellman_loss()(network, params, target_params, swapped, key)


def one_key(network, params, target_params, transition, key):
    output = bellman_loss()(network, params, target_params, transition, key)
    return output._replace(loss=output.loss * jax.random.uniform(key))


def next_values_beside(output, network, params, target_params, transition, key):
    values = network.action_values(network.apply(params, transition.obs_t, key))
    return output._replace(loss=output.loss + 0.01 * jnp.square(values).sum())


def of_the_batch(output, network, params, target_params, transition, key):
    # Single precision always, as the callback's thread does not see `jax.enable_x64`.
    scale = jax.pure_callback(
        lambda r: np.full(r.shape, 1.0 + r.size, np.float32),
        jax.ShapeDtypeStruct((), np.float32),
        transition.r_t,
        vmap_method="broadcast_all",
    )
    return output._replace(loss=output.loss * jax.lax.stop_gradient(scale))


def categorical(project_target=project, stops=True, log=jax.nn.log_softmax):
    def loss_fn(network, params, target_params, transition, key):
        online = network.apply(params, transition.obs_tm1)
        target = network.apply(target_params, transition.obs_t)
        probabilities = jax.nn.softmax(target.logits[network.action_values(target).argmax()])
        atoms = transition.r_t + transition.discount_t * target.support
        projected = project_target(probabilities, atoms, online.support)
        projected = stop(projected) if stops else projected
        loss = -jnp.sum(projected * log(online.logits[transition.a_tm1]))
        return LossOutput(loss, jnp.abs(loss), {})

    return loss_fn


def to_the_atom_below(probabilities, atoms, support):
    width = support[1] - support[0]
    index = jnp.clip(((atoms - support[0]) / width).astype(int), 0, len(support) - 1)
    return jnp.zeros_like(support).at[index].add(probabilities)


def losing_mass_on_atoms(probabilities, atoms, support):
    position = jnp.clip((atoms - support[0]) / (support[1] - support[0]), 0, len(support) - 1)
    low, high = jnp.floor(position).astype(int), jnp.ceil(position).astype(int)
    mass = jnp.zeros_like(support).at[low].add(probabilities * (high - position))
    return mass.at[high].add(probabilities * (position - low))


def quantiles(penalty=lambda e, tau: quantile_huber(e, tau[:, None]), sign=1.0):
    def loss_fn(network, params, target_params, transition, key):
        online = network.apply(params, transition.obs_tm1)
        target = network.apply(target_params, transition.obs_t)
        values_t = target.values[network.action_values(target).argmax()]
        target_tm1 = stop(transition.r_t + transition.discount_t * values_t)
        errors = sign * (target_tm1[None] - online.values[transition.a_tm1][:, None])
        loss = penalty(errors, online.fractions).mean(1).sum()
        return LossOutput(loss, jnp.abs(errors.mean()), {})

    return loss_fn


LOSSES = {
    "networks swapped": (networks_swapped, "networks swapped|reaches target_params"),
    "observations swapped": (
        observations_swapped,
        "the gradient flows through the target to obs_t|through the target",
    ),
    "loss's sign": (
        changed(bellman_loss(), lambda o, *_: o._replace(loss=-o.loss)),
        "the loss has the wrong sign",
    ),
    "no gradient": (
        changed(bellman_loss(), lambda o, *_: o._replace(loss=stop(o.loss))),
        "no gradient reaches",
    ),
    "a tuple": (changed(bellman_loss(), lambda o, *_: tuple(o)), "must return a LossOutput"),
    "signed priority": (
        changed(bellman_loss(), lambda o, *_: o._replace(priority=-o.priority)),
        "a priority is .* must not be negative",
    ),
    "a metric with a name that is taken": (
        changed(bellman_loss(), lambda o, *_: o._replace(metrics={"training_return": o.loss})),
        r"LossOutput.metrics has 'training_return', which names something else",
    ),
    "metrics that are no dict": (
        changed(bellman_loss(), lambda o, *_: o._replace(metrics=o.loss)),
        "it must be a dict",
    ),
    "half precision": (
        changed(bellman_loss(), lambda o, *_: o._replace(loss=o.loss.astype(jnp.float16))),
        "is float16 where the network is float32",
    ),
    "root of the square": (
        changed(bellman_loss(), lambda o, *_: o._replace(loss=jnp.sqrt(o.loss))),
        "values that are all 0.* is not finite",
    ),
    "key used twice": (one_key, "uses a PRNG key twice"),
    "obs_t beside": (changed(bellman_loss(), next_values_beside), "a terminal transition"),
    "the batch's size": (changed(bellman_loss(), of_the_batch), "alone and in a batch"),
    "C51 to the atom below": (categorical(to_the_atom_below), "converges to"),
    "C51 loses mass": (categorical(losing_mass_on_atoms), "converges to|settle|reward"),
    "C51 without stop": (categorical(stops=False), "reaches target_params"),
    "C51 log of softmax": (
        categorical(log=lambda x: jnp.log(jax.nn.softmax(x))),
        "is not finite",
    ),
    "QR with 1 - fraction": (quantiles(sign=-1.0), "1 - fraction"),
    "QR on the wrong axis": (
        quantiles(lambda e, tau: quantile_huber(e, tau[None, :])),
        "all are the same: is the fraction that of the prediction, on its own axis",
    ),
    "munchausen of the online network": (
        lambda network, params, target_params, transition, key: munchausen(
            bellman_loss(soft_q_learning)
        )(network, params, params, transition, key),
        "the target takes values of the online network",
    ),
}


def fqf(sign=1.0, fractions=stop, weights=stop, has_proposal=True, boundary_values=stop):
    """The loss of FQF for networks that propose fractions, and for others."""

    def loss_fn(network, params, target_params, transition, key):
        online = network.apply(params, transition.obs_tm1)
        target = network.apply(target_params, transition.obs_t)
        values_t = target.values[network.action_values(target).argmax()]
        target_tm1 = stop(transition.r_t + transition.discount_t * values_t)
        values = online.values[transition.a_tm1]
        errors = target_tm1[None] - values[:, None]
        pairs = quantile_huber(errors, fractions(online.fractions)[:, None])
        loss = jnp.sum(pairs * weights(target.weights)[None])
        if has_proposal and isinstance(online, ProposedQuantiles):
            slope = 2 * online.boundary_values[transition.a_tm1] - values[1:] - values[:-1]
            loss += sign * jnp.sum(boundary_values(slope) * online.boundaries)
        return LossOutput(loss, jnp.abs(errors.mean()), {})

    return loss_fn


def midpoints(fractions):
    return (jnp.arange(len(fractions)) + 0.5) / len(fractions)


FRACTIONS = {
    "wrong sign": (fqf(sign=-1.0), "the proposal of fractions: .* it has the wrong sign"),
    "gradient to the fractions": (
        fqf(fractions=lambda x: x),
        "the quantile loss reaches the fractions or weights too",
    ),
    "weights ignored": (
        fqf(weights=lambda x: jnp.full_like(x, 1 / len(x))),
        "the weights are ignored",
    ),
    "midpoints assumed": (fqf(fractions=midpoints), r"the midpoints \(i \+ 0.5\) / N are assumed"),
    "gradient to the quantiles": (
        fqf(boundary_values=lambda x: x),
        "the proposal of fractions|finite differences",
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x != "wrong sign")) for x in FRACTIONS]
)
def test_a_mistake_in_fractions_is_named(name, assert_named):
    assert_named(*FRACTIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("has_proposal", [True, False])
def test_a_loss_of_fractions(has_proposal):
    report = loss_report(fqf(has_proposal=has_proposal))
    assert report.failures == ()
    judged = {check.name: check.passed for check in report.checks}
    assert judged["the proposal of fractions"] == (True if has_proposal else None)


def penalised(penalty):
    return bellman_loss(q_learning, penalty)


def with_priority(priority):
    """`priority(error, q_tm1, transition)` in the place of the error's size."""

    def change(output, network, params, target_params, transition, key):
        q_tm1, q_t = (
            network.action_values(network.apply(weights, obs))
            for weights, obs in ((params, transition.obs_tm1), (target_params, transition.obs_t))
        )
        target = transition.r_t + transition.discount_t * q_t.max()
        error = target - q_tm1[transition.a_tm1]
        return output._replace(priority=priority(error, q_tm1, transition))

    return changed(bellman_loss(), change)


def asymmetric(penalty):
    return lambda e, tau: jnp.abs(tau[:, None] - (e < 0)) * penalty(e)


def of_fractions(fractions):
    def penalty(errors, tau):
        return quantile_huber(errors, fractions(jnp.arange(len(tau)), len(tau))[:, None])

    return quantiles(penalty)


def pairs_of_quantiles(network, params, target_params, transition, key):
    online = network.apply(params, transition.obs_tm1)
    target = network.apply(target_params, transition.obs_t)
    values_t = jnp.sort(target.values[network.action_values(target).argmax()])
    target_tm1 = stop(transition.r_t + transition.discount_t * values_t)
    errors = target_tm1 - online.values[transition.a_tm1]
    loss = quantile_huber(errors, online.fractions).sum()
    return LossOutput(loss, jnp.abs(errors.mean()), {})


MORE_LOSSES = {
    "Huber with a jump": (
        penalised(lambda e: jnp.where(jnp.abs(e) < 1, e**2 / 2, jnp.abs(e))),
        "the penalty: what an error costs jumps from 0.4.* to 1.* the pieces .* do not meet",
    ),
    "Huber without the half": (
        penalised(lambda e: jnp.where(jnp.abs(e) < 1, e**2, jnp.abs(e) - 0.5)),
        "the penalty: (what an error costs jumps|the slope of the penalty drops)",
    ),
    "Huber without its threshold": (
        penalised(lambda e: jnp.where(jnp.abs(e) < 10, e**2 / 2, jnp.abs(e) + 40)),
        "the penalty: the slope of the penalty drops from .*: its pieces are scaled differently",
    ),
    "Huber the wrong way round": (
        penalised(lambda e: jnp.where(jnp.abs(e) > 1, e**2 / 2, jnp.abs(e) - 0.5)),
        "the pieces of the Huber loss are swapped",
    ),
    "no penalty": (penalised(lambda e: -e), "the error itself is minimised"),
    "cubed": (penalised(lambda e: -(e**3)), "the penalty is an odd power of the error"),
    "priority of one side": (
        with_priority(lambda e, q_tm1, transition: jnp.maximum(e, 0)),
        "the priority: .*it does not grow with the error where the prediction is above it",
    ),
    "priority that falls": (
        with_priority(lambda e, q_tm1, transition: 1 / (jnp.abs(e) + 0.01)),
        "the priority: .*it falls as the error grows",
    ),
    "priority of the reward": (
        with_priority(lambda e, q_tm1, transition: jnp.abs(transition.r_t)),
        "the priority: .*it does not depend on the prediction",
    ),
    "priority of the prediction": (
        with_priority(lambda e, q_tm1, transition: jnp.abs(q_tm1[transition.a_tm1])),
        "the priority: .*depends on the target or the prediction alone",
    ),
    "priority of the first action": (
        with_priority(lambda e, q_tm1, t: jnp.abs(e + q_tm1[t.a_tm1] - q_tm1[0])),
        "the priority",
    ),
    "QR with a jump": (
        quantiles(asymmetric(lambda e: jnp.where(jnp.abs(e) < 1, e**2 / 2, jnp.abs(e)))),
        "the penalty: what an error costs jumps",
    ),
    "QR with the square": (quantiles(asymmetric(jnp.square)), "expectiles and not quantiles"),
    "QR with lower ends": (of_fractions(lambda i, n: i / n), "those are i / N, and the midpoints"),
    "QR with upper ends": (
        of_fractions(lambda i, n: (i + 1) / n),
        r"those are \(i \+ 1\) / N, and the midpoints",
    ),
    "QR by sorted pairs": (pairs_of_quantiles, "compared with one of the target alone"),
}
FAST = ("Huber without the half", "priority of one side")


@pytest.mark.parametrize("name", LOSSES)
def test_a_mistake_in_a_loss_is_named(name, assert_named):
    assert_named(*LOSSES[name])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in MORE_LOSSES]
)
def test_a_mistake_in_a_penalty_or_a_priority_is_named(name, assert_named):
    assert_named(*MORE_LOSSES[name])
