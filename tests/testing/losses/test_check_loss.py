"""`check_loss`: every loss of the package passes, and what a loss declares is what counts."""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from purejaxdqn.losses import (
    bellman_loss,
    categorical_loss,
    double_q_learning,
    ensemble_loss,
    expected_sarsa,
    hl_gauss_loss,
    masked_squared_error,
    minto,
    munchausen,
    persistent_advantage_learning_loss,
    q_learning,
    quantile_loss,
    return_error,
    soft_q_learning,
)
from purejaxdqn.networks import MLP, make_network
from purejaxdqn.testing import CheckError, check_loss, converges_to, fixed_points, loss_report
from purejaxdqn.testing.fixed_points import OPTIMAL, soft
from purejaxdqn.testing.losses.check_loss import find_declared
from purejaxdqn.testing.losses.interface import check_interface
from purejaxdqn.testing.losses.single_transitions import draw_cases
from purejaxdqn.testing.losses.target_formulas import name_target
from purejaxdqn.types import Transition

stop = jax.lax.stop_gradient
huber = functools.partial(optax.huber_loss, delta=1.0)

GOOD: dict[str, Any] = {
    "q_learning": q_learning,
    "double_q_learning": double_q_learning,
    "return_error": return_error,
    "expected_sarsa": functools.partial(expected_sarsa, epsilon=0.3),
    "soft_q_learning": soft_q_learning,
    "minto": minto,
    "HL-Gauss": hl_gauss_loss(),
    "an ensemble of one": ensemble_loss(q_learning),
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


@pytest.mark.parametrize(
    "fixed_point",
    [soft(0.1), fixed_points.munchausen(soft(0.1), 0.1, 0.9, -1.0), fixed_points.persistent(0.9)],
)
def test_each_near_miss_of_a_fixed_point_has_its_name(fixed_point):
    cases = draw_cases()
    for wrong, off in fixed_point.near_misses:
        arguments = (cases.a_tm1, cases.r_t, cases.discount_t, cases.q_t)
        settled = off.target(cases.target_q_tm1, *arguments)
        formula = name_target(settled, cases.predict(settled), fixed_point, "target")
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


def online_target(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return stop(r_t + discount_t * q_t_selector.max()) - q_tm1[a_tm1]


def test_a_loss_without_a_target_network(assert_named):
    assert loss_report(online_target, bootstrap="online").failures == ()
    assert_named(q_learning, "although bootstrap='online'", bootstrap="online")


def conservative(network, params, target_params, transition, key):
    output = bellman_loss()(network, params, target_params, transition, key)
    q_tm1 = network.action_values(network.apply(params, transition.obs_tm1))
    gap = jax.nn.logsumexp(q_tm1) - q_tm1[transition.a_tm1]
    return output._replace(loss=output.loss + 0.1 * gap)


def test_a_regulariser(assert_named):
    assert loss_report(conservative, fixed_point=None, learns_other_actions=True).failures == ()
    assert_named(conservative, "learns_other_actions=True", fixed_point=None)


def test_a_network_and_transitions_of_ones_own():
    network = make_network(MLP((8,), 2))
    images = np.random.default_rng(0).integers(0, 255, (2, 5, 3, 3), np.uint8)
    actions = np.arange(5, dtype=np.int32) % 2
    ones = np.ones(5, np.float32)
    fields: Any = (images[0], actions, ones, ones, images[1])
    transitions: Any = Transition._make((*fields, None, {}))
    checks = check_interface(bellman_loss(), network, transitions, learns_next_obs=False)
    assert all(check.passed for check in checks)
    wrong = transitions._replace(a_tm1=actions + 1)
    check = check_interface(bellman_loss(), network, wrong, learns_next_obs=False)[0]
    assert "a_tm1 reaches 2, but the network has 2 actions" in check.message


def name_of(loss):
    fixed_point, _ = find_declared(loss)
    assert fixed_point is not None
    return fixed_point.name


def undeclared_soft(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return soft_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector, 0.5)


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
