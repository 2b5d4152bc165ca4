"""More mistakes that are planted in losses, which all are found, and sound losses that all pass."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn.losses import (
    bellman_loss,
    categorical_loss,
    peng_q_lambda,
    q_learning,
    quantile_huber,
    trajectory_loss,
    watkins_q_lambda,
)
from purejaxdqn.testing import OutputTable, loss_report
from purejaxdqn.training.learner import over_batch
from purejaxdqn.types import LossOutput

stop = jax.lax.stop_gradient


def of_target(target):
    """The TD error whose target is `target(r_t, discount_t, q_t, q_t_selector)`."""

    def td_error(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
        return stop(target(r_t, discount_t, q_t, q_t_selector)) - q_tm1[a_tm1]

    return td_error


def of_error(output):
    """The loss whose output is `output(error, transition)`."""

    def loss_fn(network, params, target_params, transition, key):
        q_tm1 = network.action_values(network.apply(params, transition.obs_tm1))
        q_t = network.action_values(network.apply(target_params, transition.obs_t))
        target = stop(transition.r_t + transition.discount_t * q_t.max())
        return output(target - q_tm1[transition.a_tm1], transition)

    return loss_fn


def weighted(weight):
    def output(error, transition):
        return LossOutput(weight(error, transition) * error**2 / 2, jnp.abs(error), {})

    return of_error(output)


def with_transition(change, loss_fn=None):
    """The loss, by default Bellman's, of `change(transition)`."""

    def loss(network, params, target_params, transition, key):
        changed = change(transition)
        return (loss_fn or bellman_loss())(network, params, target_params, changed, key)

    return loss


def stop_in_one_branch(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    target = r_t + discount_t * q_t.max()
    return jnp.where(r_t > 0, stop(target), target) - q_tm1[a_tm1]


def quantiles(penalty=None, pick=None):
    """QR-DQN, with what may be wrong in it, or unusual."""

    def loss_fn(network, params, target_params, transition, key):
        online = network.apply(params, transition.obs_tm1)
        target = network.apply(target_params, transition.obs_t)
        values = (pick or network.action_values)(target)
        target_tm1 = transition.r_t + transition.discount_t * target.values[values.argmax()]
        errors = stop(target_tm1)[None] - online.values[transition.a_tm1][:, None]
        pairs = (penalty or quantile_huber)(errors, stop(online.fractions)[:, None])
        loss = jnp.sum(pairs * stop(target.weights)[None])
        return LossOutput(loss, jnp.abs(errors).mean(), {})

    return loss_fn


def scaled(loss_fn, by):
    def loss(*args):
        output = loss_fn(*args)
        return output._replace(loss=by * output.loss)

    return loss


EACH = over_batch(bellman_loss())


def discounted_later(trajectory, q_t):
    later = trajectory.discount_t.at[1:].multiply(0.9)
    return watkins_q_lambda(0.8)(trajectory._replace(discount_t=later), q_t)


def shifted_values(trajectory, q_t):
    return trajectory.r_t + trajectory.discount_t * jnp.roll(q_t.max(1), 1)


def all_valid(trajectory):
    return trajectory._replace(is_valid=jnp.ones_like(trajectory.is_valid))


def rest_of(changed, name):
    """A batch whose field is changed by `f(array)`."""
    return with_transition(lambda b: b._replace(**{name: changed(getattr(b, name))}), EACH)


def highest_of_all(network, params, target_params, batch, key):
    q_tm1, q_t = (
        jax.vmap(lambda obs, w=w: network.action_values(network.apply(w, obs)))(each)
        for w, each in ((params, batch.obs_tm1), (target_params, batch.obs_t))
    )
    taken = jnp.take_along_axis(q_tm1, batch.a_tm1[:, None], 1)[:, 0]
    errors = stop(batch.r_t + batch.discount_t * q_t.max()) - taken
    return LossOutput(errors**2 / 2, jnp.abs(errors), {})


MISTAKES: dict[str, Any] = {
    "stop in one branch": (stop_in_one_branch, "reaches target_params"),
    "a time limit for a death": (
        with_transition(lambda t: t._replace(discount_t=t.discount_t * ~t.truncated_t)),
        "a time limit is no death",
    ),
    "away from the target at a time limit": (
        weighted(lambda error, t: jnp.where(t.truncated_t, -1.0, 1.0)),
        "a time limit is no death",
    ),
    "a discount of at least a quarter": (
        of_target(lambda r, d, q, _: r + jnp.where(d > 0, jnp.maximum(d, 0.25), 0) * q.max()),
        "discount_t is capped, or bent",
    ),
    "ends count double": (
        weighted(lambda error, t: jnp.where(t.discount_t > 0, 1.0, 2.0)),
        "each transition counts alike: .* where the episode terminated 2 to 2 times as much",
    ),
    "weighted by the discount": (weighted(lambda error, t: 2 - t.discount_t), "counts alike"),
    "weighted by its own error": (weighted(lambda e, t: stop(jnp.abs(e))), "finite differences"),
    "no action but the first": (of_target(lambda r, d, q, _: r + d * q[1:].max()), "action 0"),
    "rewards clipped far out": (
        of_target(lambda r, d, q, _: jnp.clip(r, -100, 100) + d * q.max()),
        "at values of a thousand the target is clipped",
    ),
    "half of either network": (
        of_target(lambda r, d, q, online: r + d * (q.max() + online.max()) / 2),
        "the discount counts once",
    ),
    "less than half precision": (
        of_target(lambda r, d, q, _: (r + d * q.max()).astype(jnp.bfloat16).astype(q.dtype)),
        "it is rounded",
    ),
    "QR picks by the lower half": (
        quantiles(pick=lambda output: output.values[:, :4].mean(1)),
        "the whole distribution",
    ),
    "QR with the error's sign": (
        quantiles(lambda errors, tau: quantile_huber(-errors, tau)),
        "1 - fraction",
    ),
    "a batch by one": (rest_of(lambda x: jnp.roll(x, 1, 0), "obs_t"), "its target reads theirs"),
    "the first reward for all": (
        rest_of(lambda x: jnp.broadcast_to(x[0], x.shape), "r_t"),
        "its target reads theirs",
    ),
    "the highest value of all": (highest_of_all, "its target reads theirs"),
    "the mean reward": (rest_of(lambda x: x.mean() + 0 * x, "r_t"), "its target reads theirs"),
    "behind the last valid step": (
        with_transition(all_valid, trajectory_loss(peng_q_lambda(0.8))),
        "several steps, greedy ones: .* what lies behind the last valid step",
    ),
    "later steps discounted more": (trajectory_loss(discounted_later), "several steps, greedy"),
    "values of another step": (trajectory_loss(shifted_values), "several steps, greedy"),
}


def squared(error):
    return LossOutput(error**2 / 2, jnp.abs(error), {})


def residual(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return r_t + discount_t * q_t_selector.max() - q_tm1[a_tm1]


def of_heads(network, params, target_params, transition, key):
    """Maxmin of two heads."""
    q_tm1 = network.apply(params, transition.obs_tm1)[:, transition.a_tm1]
    value = network.apply(target_params, transition.obs_t).min(0).max()
    errors = stop(transition.r_t + transition.discount_t * value) - q_tm1
    return LossOutput(jnp.mean(errors**2) / 2, jnp.abs(errors.mean()), {})


def mellowmax(q_t, numpy):
    return numpy.log(numpy.mean(numpy.exp(5 * q_t), axis=-1)) / 5


def stable_mellowmax(q_t):
    return (jax.nn.logsumexp(5 * q_t) - jnp.log(len(q_t))) / 5


def log_cosh(error):
    return jnp.logaddexp(error, -error) - jnp.log(2.0)


def centred(network, params, target_params, batch, key):
    output = EACH(network, params, target_params, batch, key)
    return output._replace(loss=output.loss + 1e-3 * output.metrics["q_value"].mean() ** 2)


def without_limits(error, transition):
    output = squared(error)
    return output._replace(loss=output.loss * ~transition.truncated_t)


SOUND: dict[str, Any] = {
    "the last of equal actions": of_target(
        lambda r, d, q, _: r + d * q[len(q) - 1 - q[::-1].argmax()]
    ),
    "log cosh": bellman_loss(q_learning, log_cosh),
    "the size": bellman_loss(q_learning, jnp.abs),
    "a fourth power": bellman_loss(q_learning, lambda error: error**4),
    "a thousandth": scaled(bellman_loss(), 1e-3),
    "mellowmax": (
        of_target(lambda r, d, q, _: r + d * stable_mellowmax(q)),
        {"fixed_point": lambda q_tm1, a, r, d, q_t: r + d * mellowmax(q_t, np)},
    ),
    "rewards clipped, and declared": (
        of_target(lambda r, d, q, _: jnp.clip(r, -1, 1) + d * q.max()),
        {"fixed_point": lambda q_tm1, a, r, d, q_t: np.clip(r, -1, 1) + d * q_t.max(-1)},
    ),
    "rewards scaled, and declared": (
        of_target(lambda r, d, q, _: 0.1 * r + d * q.max()),
        {"fixed_point": lambda q_tm1, a, r, d, q_t: 0.1 * r + d * q_t.max(-1)},
    ),
    "residual gradient": (residual, {"bootstrap": "online", "learns_next_obs": True}),
    "maxmin": (
        of_heads,
        {"outputs": OutputTable(lambda q: jnp.stack([q, q]), lambda output: output.min(0))},
    ),
    "one hot": of_error(lambda error, transition: squared(error)),
    "time limits left out": of_error(without_limits),
    "C51 as a mean of atoms": scaled(categorical_loss(double=False), 1 / 81),
    "QR as a mean": scaled(quantiles(), 1 / 8),
    "QR with another threshold": quantiles(
        lambda e, tau: jnp.abs(tau - (e < 0)) * optax.huber_loss(e, delta=5.0)
    ),
    "a batch": EACH,
    "a batch with a regulariser": (centred, {"fixed_point": None}),
    "n steps": trajectory_loss(peng_q_lambda(1.0)),
}
FAST = {
    *("a time limit for a death", "a discount of at least a quarter", "ends count double"),
    *("a batch by one", "behind the last valid step", "log cosh", "residual gradient", "n steps"),
    *("a batch", "time limits left out"),
}


def marked(names):
    return [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in names]


@pytest.mark.parametrize("name", marked(MISTAKES))
def test_a_mistake_is_found(name, assert_named):
    assert_named(*MISTAKES[name])


@pytest.mark.parametrize("name", marked(SOUND))
def test_a_sound_loss_passes(name):
    loss, options = SOUND[name] if isinstance(SOUND[name], tuple) else (SOUND[name], {})
    assert loss_report(loss, **options).failures == ()


def test_what_other_steps_count_is_said_to_be_not_judged():
    report = loss_report(trajectory_loss(functools.partial(watkins_q_lambda(0.8))))
    assert report.verdict == "passes; not judged: several steps, others"
