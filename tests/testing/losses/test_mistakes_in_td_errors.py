"""Each mistake that is planted in a TD error is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.losses import double_q_learning, q_learning, soft_q_learning

stop = jax.lax.stop_gradient


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


def first_three(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t[:3].max()) - q_tm1[a_tm1]


def capped_discount(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + jnp.minimum(discount_t, 0.99) * q_t.max()) - q_tm1[a_tm1]


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
    (times_swapped, "flows through the target to obs_t|prediction is taken from obs_t"),
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
    (first_three, "with 6 actions .* a number of actions is written into the loss"),
    (capped_discount, "where discount_t is 0.9999 .* capped"),
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
def test_a_mistake_in_a_td_error_is_named(td_error, pattern, assert_named):
    assert_named(td_error, pattern)
