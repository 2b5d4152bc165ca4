"""`check_loss`: every loss of the package passes, and what a loss declares is what counts."""

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
    retrace,
    return_error,
    soft_q_learning,
    trajectory_loss,
)
from purejaxdqn.networks import MLP, make_network
from purejaxdqn.testing import (
    CheckError,
    OutputTable,
    check_loss,
    converges_to,
    fixed_points,
    loss_report,
)
from purejaxdqn.testing.fixed_points import OPTIMAL, soft
from purejaxdqn.testing.losses.check_loss import find_declared
from purejaxdqn.testing.losses.interface import check_interface
from purejaxdqn.testing.losses.single_transitions import draw_cases
from purejaxdqn.testing.losses.target_formulas import name_target
from purejaxdqn.types import LossOutput, Network, Transition

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


# ------------------------------------------------------------------- other outputs and other shapes


def of_heads(reward=1.0, power=1, stops=True):
    """A loss of `K` heads `[K, A]`, with what may be wrong in it."""

    def loss_fn(network, params, target_params, transition, key):
        q_tm1 = network.apply(params, transition.obs_tm1)[:, transition.a_tm1]
        v_t = network.apply(target_params, transition.obs_t).max(1)
        target = reward * transition.r_t + transition.discount_t**power * v_t
        errors = (stop(target) if stops else target) - q_tm1
        return LossOutput(jnp.mean(errors**2) / 2, jnp.abs(errors.mean()), {})

    return loss_fn


HEADS = OutputTable(lambda q: jnp.stack([q, q + 1, q - 1]), lambda output: output.mean(0))


def network_of_heads():
    one = make_network(MLP((8,), 3))
    return Network(one.init, lambda *x: HEADS.encode(one.apply(*x)), HEADS.decode)


def test_a_loss_of_another_output():
    report = loss_report(of_heads(), outputs=HEADS)
    assert report.failures == ()
    assert len([check for check in report.checks if check.passed]) > 20
    assert report.verdict == "passes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        ({"reward": -3.0}, "the reward is scaled by -3"),
        ({"power": 2}, "the discount is applied twice"),
        ({"stops": False}, "reaches target_params"),
    ],
)
def test_mistakes_in_a_loss_of_another_output(wrong, pattern, assert_named):
    """Told of the output, or of the network alone, whose values are those that are repeated."""
    assert_named(of_heads(**wrong), pattern, outputs=HEADS)


@pytest.mark.slow
def test_a_network_alone_says_how_its_output_is_read(assert_named):
    assert loss_report(of_heads(), network=network_of_heads()).failures == ()
    assert_named(of_heads(reward=-3.0), "scaled by -3", network=network_of_heads())


def test_what_cannot_be_judged_says_so(capsys):
    """A network whose output is none that is known."""
    one = make_network(MLP((8,), 3))
    by_name = Network(one.init, lambda *x: {"q": one.apply(*x)[:, None]}, lambda x: x["q"][:, 0])

    def loss_fn(network, params, target_params, transition, key):
        plain = network._replace(apply=lambda *x: network.action_values(network.apply(*x)))
        assert "q" in network.apply(params, transition.obs_t)
        plain = plain._replace(action_values=lambda q: q)
        return bellman_loss()(plain, params, target_params, transition, key)

    report = check_loss(loss_fn, network=by_name)
    assert "the reward counts once" in report.verdict.partition("not judged: ")[2]
    out = capsys.readouterr().out
    assert "not judged" in out
    assert "outputs=OutputTable(encode, decode)" in " ".join(out.split())


def test_an_output_that_is_read_otherwise_is_refused(assert_named):
    wrong = OutputTable(HEADS.encode, lambda output: output.max(0))
    assert_named(of_heads(), r"decode\(encode\(q\)\) is off by 1", outputs=wrong)


def test_a_loss_of_trajectories_is_judged_on_one_step():
    report = loss_report(trajectory_loss(retrace()))
    assert report.failures == ()
    assert report.checks[0].measured == "a loss of trajectories"
    assert report.verdict == "passes; not judged: several steps, others"


def of_masks(network, params, target_params, batch, key):
    """A loss of a batch whose transitions have a mask."""
    each = jax.vmap(bellman_loss(), in_axes=(None, None, None, 0, None))
    output = each(network, params, target_params, batch, key)
    return output._replace(loss=output.loss * batch.extras["mask"])


@pytest.mark.slow
def test_a_loss_of_batches_with_extras():
    rng, num = np.random.default_rng(0), 8
    obs: Any = rng.normal(size=(2, num, 4)).astype(np.float32)
    ones: Any = np.ones(num, np.float32)
    fields: Any = (obs[0], np.arange(num, dtype=np.int32) % 3, ones, 0.9 * ones, obs[1])
    transitions = Transition._make((*fields, None, {"mask": ones}))
    report = loss_report(of_masks, transitions=transitions)
    assert report.failures == ()
    assert report.checks[0].measured == "a loss of batches"


def rescale(x, m=np):
    return m.sign(x) * (m.sqrt(m.abs(x) + 1) - 1) + 0.01 * x


def restore(x, m=np):
    root = m.sqrt(1 + 0.04 * (m.abs(x) + 1.01)) - 1
    return m.sign(x) * ((root / 0.02) ** 2 - 1)


def r2d2(q_tm1, a_tm1, r_t, discount_t, q_t, power=1):
    value = restore(q_t.max(), jnp)
    return stop(rescale(r_t + discount_t**power * value, jnp)) - q_tm1[a_tm1]


def test_rescaled_values(assert_named):
    known = fixed_points.rescaled(OPTIMAL, rescale, restore)
    assert loss_report(r2d2, fixed_point=known).failures == ()
    twice = functools.partial(r2d2, power=2)
    assert_named(twice, "the discount counts once: .* does not move the target", fixed_point=known)
