"""`check_loss`: every loss of the package passes, and each planted mistake is named."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn.losses import (
    bellman_loss,
    categorical_loss,
    double_q_learning,
    expected_sarsa,
    masked_squared_error,
    munchausen,
    persistent_advantage_learning_loss,
    project,
    q_learning,
    quantile_huber,
    quantile_loss,
    return_error,
    soft_q_learning,
)
from purejaxdqn.networks import MLP, make_network
from purejaxdqn.testing import CheckError, check_loss, converges_to, fixed_points, loss_report
from purejaxdqn.testing.cases import random_cases
from purejaxdqn.testing.contract import check_contract
from purejaxdqn.testing.fixed_points import OPTIMAL, soft
from purejaxdqn.testing.known_losses import find_declared
from purejaxdqn.testing.naming import name_target
from purejaxdqn.types import LossOutput, Transition

stop = jax.lax.stop_gradient
huber = functools.partial(optax.huber_loss, delta=1.0)

GOOD: dict[str, Any] = {
    "q_learning": q_learning,
    "double_q_learning": double_q_learning,
    "return_error": return_error,
    "expected_sarsa": functools.partial(expected_sarsa, epsilon=0.3),
    "soft_q_learning": soft_q_learning,
    "huber": bellman_loss(double_q_learning, huber),
    "masked_squared": bellman_loss(q_learning, masked_squared_error(3)),
    "munchausen": munchausen(bellman_loss(soft_q_learning, huber)),
    "persistent": persistent_advantage_learning_loss(),
    "C51": categorical_loss(double=False),
    "double C51": categorical_loss(double=True),
    "QR-DQN": quantile_loss(double=False),
    "double QR-DQN-0": quantile_loss(double=True, threshold=0.0),
    "soft QR-DQN": quantile_loss(temperature=0.5),
    "M-IQN": munchausen(quantile_loss(double=False, temperature=0.03)),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_loss_of_the_package_passes(name):
    report = loss_report(GOOD[name])
    assert report.failures == ()
    judged = {check.name for check in report.checks if check.passed}
    assert {f"fixed point, {p}" for p in ("deterministic", "terminal", "time limit")} <= judged
    assert {"fixed point, stochastic", "known quantiles"} & judged


# ----------------------------------------------------------------------- planted in TD errors


def no_stop(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return r_t + discount_t * q_t_selector.max() - q_tm1[a_tm1]


def no_stop_target(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return r_t + discount_t * q_t.max() - q_tm1[a_tm1]


def wrong_stop(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return r_t + discount_t * q_t_selector.max() - stop(q_tm1[a_tm1])


def online_target(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t_selector.max()) - q_tm1[a_tm1]


def roles_swapped(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return double_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t_selector, q_t)


def reward_and_discount_swapped(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return q_learning(q_tm1, a_tm1, discount_t, r_t, q_t, q_t_selector)


def times_swapped(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return q_learning(q_t_selector, a_tm1, r_t, discount_t, q_tm1, q_tm1)


def prediction_sign(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t.max()) + q_tm1[a_tm1]


def reward_sign(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(-r_t + discount_t * q_t.max()) - q_tm1[a_tm1]


def value_sign(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t - discount_t * q_t.max()) - q_tm1[a_tm1]


def lost_discount(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + q_t.max()) - q_tm1[a_tm1]


def lost_discount_but_at_the_end(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + (discount_t > 0) * q_t.max()) - q_tm1[a_tm1]


def own_discount(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + 0.99 * (discount_t > 0) * q_t.max()) - q_tm1[a_tm1]


def twice_discounted(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + 0.99 * discount_t * q_t.max()) - q_tm1[a_tm1]


def discounted_reward(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(discount_t * (r_t + q_t.max())) - q_tm1[a_tm1]


def terminal_bootstraps(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    discount_t = jnp.where(discount_t > 0, discount_t, 0.9)
    return q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector)


def flag_inverted(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + (1 - discount_t) * q_t.max()) - q_tm1[a_tm1]


def maximum_of_now(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_tm1.max()) - q_tm1[a_tm1]


def picked_now(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t[q_tm1.argmax()]) - q_tm1[a_tm1]


def minimum(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t.min()) - q_tm1[a_tm1]


def mean(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t.mean()) - q_tm1[a_tm1]


def same_action(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t[a_tm1]) - q_tm1[a_tm1]


def action_itself(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t.argmax()) - q_tm1[a_tm1]


def first_action(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t.max()) - q_tm1[0]


def greedy_action(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t.max()) - q_tm1.max()


def all_actions(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t.max()) - q_tm1[a_tm1] + 0.1 * q_tm1.mean()


def no_reward(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(discount_t * q_t.max()) - q_tm1[a_tm1]


def no_bootstrap(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t) - q_tm1[a_tm1]


def clipped_error(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return jnp.clip(q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector), -1, 1)


def clipped_reward(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return q_learning(q_tm1, a_tm1, jnp.sign(r_t), discount_t, q_t, q_t_selector)


def overflowing(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    value = 0.1 * jnp.log(jnp.sum(jnp.exp(q_t / 0.1)))
    return stop(r_t + discount_t * value) - q_tm1[a_tm1]


def undeclared_soft(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return soft_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector, 0.5)


def per_action(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t.max()) - q_tm1


def branching(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    bootstrap = q_t.max() if discount_t > 0 else 0.0
    return stop(r_t + discount_t * bootstrap) - q_tm1[a_tm1]


def in_numpy(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return r_t + discount_t * np.max(np.asarray(q_t)) - q_tm1[a_tm1]


def rounded(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return q_learning(jnp.round(q_tm1, 1), a_tm1, r_t, discount_t, q_t, q_t_selector)


def half_stopped(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    half = q_tm1[a_tm1] / 2
    return stop(r_t + discount_t * q_t.max()) - stop(half) - half


def state_outside(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector, seen=[0.0]):  # noqa: B006
    seen[0] += 0.1
    return q_learning(q_tm1, a_tm1, r_t + seen[0], discount_t, q_t, q_t_selector)


def another_name(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_online):
    return double_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_online)


def five(q_tm1, a_tm1, r_t):
    return r_t - q_tm1[a_tm1]


# Each with a pattern that some failure's message, with the name of its row, must match.
TD_ERRORS = [
    (no_stop, "flows through the target to the online .*stop_gradient"),
    (no_stop_target, "a gradient .* reaches target_params .*stop_gradient"),
    (wrong_stop, "stop_gradient on the wrong side"),
    (online_target, "bootstraps from the online network .* and not from the target network"),
    (roles_swapped, r"q_t and q_t_selector swapped"),
    (reward_and_discount_swapped, "r_t and discount_t are swapped"),
    (times_swapped, "goes to obs_t|prediction is taken from obs_t"),
    (prediction_sign, "the prediction .* has the wrong sign"),
    (reward_sign, "the reward has the wrong sign"),
    (value_sign, "what comes from time t has the wrong sign"),
    (lost_discount, "the discount is lost"),
    (lost_discount_but_at_the_end, "the discount is lost"),
    (own_discount, "a discount of 0.99 is written into it"),
    (twice_discounted, "the discount is applied twice"),
    (discounted_reward, "the reward is discounted"),
    (terminal_bootstraps, "a terminal transition bootstraps"),
    (flag_inverted, "takes discount_t for a flag"),
    (maximum_of_now, r"it takes values at time t - 1"),
    (picked_now, "q_tm1 picks the action at time t"),
    (minimum, "it takes the min of q_t where the maximum belongs"),
    (mean, "it takes the mean of q_t where the maximum belongs"),
    (same_action, r"it takes q_t\[a_tm1\] where the maximum belongs"),
    (action_itself, "the number of the best action"),
    (first_action, r"another action's value is trained: index q_tm1 with a_tm1"),
    (greedy_action, r"another action's value is trained: index q_tm1 with a_tm1"),
    (all_actions, "reaches q_tm1 of actions that were not taken"),
    (no_reward, "the reward r_t is lost"),
    (no_bootstrap, "there is no bootstrap"),
    (clipped_error, r"a large error has no gradient: clip the gradient \(Huber\)"),
    (clipped_reward, "the reward is clipped to its sign"),
    (overflowing, "is not finite: look for an exponential"),
    (undeclared_soft, r"converges to \S+, and that of the declared fixed point \(optimal\)"),
    (per_action, r"float32\[3\]|rank"),
    (branching, "TracerBoolConversionError"),
    (in_numpy, "TracerArrayConversionError"),
    (rounded, "no gradient reaches|finite differences"),
    (half_stopped, "finite differences.*behind a stop_gradient"),
    (state_outside, "gives different answers to the same arguments|eager and compiled"),
    (another_name, "needs q_t_online, which bellman_loss does not know.*q_t_selector.*default"),
    (five, "without discount_t, q_t: a TD error takes"),
]


def assert_named(loss, pattern, **options):
    report = loss_report(loss, **options)
    assert not report.passed
    text = "\n".join(f"{check.name}: {check.message}" for check in report.failures)
    assert re.search(pattern, text), text


# The others are much like them, and all of them take a minute.
SLOW = {
    *(times_swapped, value_sign, lost_discount_but_at_the_end, twice_discounted, flag_inverted),
    *(picked_now, mean, action_itself, greedy_action, all_actions, no_reward, no_bootstrap),
    *(clipped_reward, per_action, branching, rounded, undeclared_soft),
}


@pytest.mark.parametrize(
    ("td_error", "pattern"),
    [
        pytest.param(*(loss, pattern), marks=[pytest.mark.slow] * (loss in SLOW), id=loss.__name__)
        for loss, pattern in TD_ERRORS
    ],
)
def test_a_mistake_in_a_td_error_is_named(td_error, pattern):
    assert_named(td_error, pattern)


# ------------------------------------------------------------------------ planted in whole losses


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
    # The callback's thread does not see `jax.enable_x64`: its type is that of the reward here.
    scale = jax.pure_callback(
        lambda r: np.full(r.shape, 1.0 + r.size, transition.r_t.dtype),
        jax.ShapeDtypeStruct((), transition.r_t.dtype),
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
    "observations swapped": (observations_swapped, "the gradient goes to obs_t|through the target"),
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
        "the priority: .*hangs on the target or the prediction alone",
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
def test_a_mistake_in_a_loss_is_named(name):
    assert_named(*LOSSES[name])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in MORE_LOSSES]
)
def test_a_mistake_in_a_penalty_or_a_priority_is_named(name):
    assert_named(*MORE_LOSSES[name])


@pytest.mark.parametrize(
    "fixed_point",
    [soft(0.1), fixed_points.munchausen(soft(0.1), 0.1, 0.9, -1.0), fixed_points.persistent(0.9)],
)
def test_each_near_miss_of_a_fixed_point_has_its_name(fixed_point):
    cases = random_cases(48, 3)
    lanes = np.arange(48)
    for wrong, off in fixed_point.near_misses:
        arguments = (cases.a_tm1, cases.r_t, cases.discount_t, cases.target[:, 1])
        settled = off.target(cases.target[:, 0], *arguments)
        q_tm1 = cases.online[:, 0].copy()
        q_tm1[lanes, cases.a_tm1] = settled
        formula = name_target(settled, q_tm1, cases, fixed_point, "target")
        assert formula is not None
        assert wrong in formula.mistakes


# ------------------------------------------------------------------------------- what is declared


def persistent(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector, scale=0.1):
    value_t = (1 - scale) * q_t.max() + scale * q_t[a_tm1]
    return stop(r_t + discount_t * value_t) - q_tm1[a_tm1]


def persistent_target(q_tm1, a_tm1, r_t, discount_t, q_t):
    same = np.take_along_axis(q_t, a_tm1[:, np.newaxis], 1)[:, 0]
    return r_t + discount_t * (0.9 * q_t.max(-1) + 0.1 * same)


def test_a_fixed_point_of_ones_own(capsys):
    with pytest.raises(CheckError, match="fixed point, stochastic") as failure:
        check_loss(persistent)
    assert not failure.value.report.passed
    assert "FAIL" in capsys.readouterr().out
    report = check_loss(persistent, fixed_point=persistent_target)
    assert report.passed
    assert "fixed point, time limit" in capsys.readouterr().out


def test_a_loss_without_a_target_network():
    assert loss_report(online_target, bootstrap="online").failures == ()
    assert_named(q_learning, "although bootstrap='online'", bootstrap="online")


def conservative(network, params, target_params, transition, key):
    output = bellman_loss()(network, params, target_params, transition, key)
    q_tm1 = network.action_values(network.apply(params, transition.obs_tm1))
    gap = jax.nn.logsumexp(q_tm1) - q_tm1[transition.a_tm1]
    return output._replace(loss=output.loss + 0.1 * gap)


def test_a_regulariser():
    assert loss_report(conservative, fixed_point=None, learns_other_actions=True).failures == ()
    assert_named(conservative, "learns_other_actions=True", fixed_point=None)


def test_a_network_and_transitions_of_ones_own():
    network = make_network(MLP((8,), 2))
    images = np.random.default_rng(0).integers(0, 255, (2, 5, 3, 3), np.uint8)
    actions = np.arange(5, dtype=np.int32) % 2
    ones = np.ones(5, np.float32)
    fields: Any = (images[0], actions, ones, ones, images[1])
    transitions: Any = Transition._make(fields)
    checks = check_contract(bellman_loss(), network, transitions, learns_next_obs=False)
    assert all(check.passed for check in checks)
    wrong = transitions._replace(a_tm1=actions + 1)
    check = check_contract(bellman_loss(), network, wrong, learns_next_obs=False)[0]
    assert "a_tm1 reaches 2, but the network has 2 actions" in check.message


def name_of(loss):
    fixed_point, _ = find_declared(loss)
    assert fixed_point is not None
    return fixed_point.name


def test_what_a_loss_declares():
    assert find_declared(q_learning) == (OPTIMAL, "target")
    assert name_of(functools.partial(soft_q_learning, temperature=2.0)) == "soft(2.0)"
    assert name_of(bellman_loss(expected_sarsa)) == "epsilon_greedy(0.05)"
    assert name_of(munchausen(bellman_loss(soft_q_learning))).startswith("munchausen(soft")
    assert find_declared(lambda: None) == (None, "target")
    mine = converges_to(soft(0.5))(functools.partial(undeclared_soft).func)
    try:
        assert loss_report(mine).failures == ()
    finally:
        vars(undeclared_soft).clear()


def test_what_a_loss_declares_is_found_behind_what_wraps_it():
    wrapped = functools.wraps(soft_q_learning)(lambda *arguments: soft_q_learning(*arguments))
    assert name_of(bellman_loss(wrapped)) == "soft(0.03)"
    assert name_of(functools.partial(bellman_loss(q_learning))) == "optimal"
    assert find_declared(bellman_loss(return_error)).bootstrap == "none"
    assert find_declared(munchausen(bellman_loss(undeclared_soft))) == (None, "target")
    doubled = quantile_loss(temperature=0.5)
    assert name_of(munchausen(doubled, 0.5)) == "munchausen(soft(0.5), 0.5, 0.9)"
    assert name_of(persistent_advantage_learning_loss(0.3)) == "persistent(0.3)"
