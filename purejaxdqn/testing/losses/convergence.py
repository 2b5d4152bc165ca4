"""Checks that a loss, iterated on tabular decision processes, finds the values that it declares."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing.fixed_points import FixedPoint
from purejaxdqn.testing.losses.single_transitions import FAST_COMPILE, Subject
from purejaxdqn.testing.report import Check
from purejaxdqn.testing.tabular.decision_processes import (
    BANDIT_REWARDS,
    MDP,
    draw_start_values,
    make_mdps,
    value_iteration,
)
from purejaxdqn.testing.tabular.table_networks import FRACTIONS, Table
from purejaxdqn.types import Array, Transition

_TOLERANCE = 5e-3  # of values up to 10; with 0.99 some 500 copies leave a hundredth of the start
_PROCESSES = ("deterministic", "stochastic", "terminal", "time limit")
_NUM_COPIES = 600


def check_fixed_point(
    subject: Subject, fixed_point: FixedPoint, discount: float, wrong: str
) -> list[Check]:
    """Makes a row for each decision process, and one for known quantiles.

    Args:
      subject: the loss.
      fixed_point: what it is declared to converge to.
      discount: the largest gamma.
      wrong: a mistake that was found already, as the reason for values that are wrong.

    Raises:
      ConfigError: if what is declared has no values.
    """
    mdp = make_mdps(discount)
    expected = value_iteration(mdp, fixed_point, draw_start_values(mdp))
    learned = _iterate(subject, mdp, _draw_near(mdp, expected))
    found = _read_action_values(subject.table, learned)
    is_mean, is_quantile = _find_minimiser(subject)
    hint = wrong or (
        "what a loss is meant to converge to can be declared: fixed_point=soft(0.1) and others of "
        "purejaxdqn.testing.fixed_points, a function of one's own, or None"
    )
    checks = []
    for name in _PROCESSES:
        title = f"fixed point, {name}"
        if name == "stochastic" and not is_mean:
            why = "the penalty is no square: its minimiser is not the mean"
            checks.append(Check(title, None, "", why))
            continue
        rows = mdp.states_of(name)
        used = ~mdp.is_final[rows]
        pair = found[rows][used], expected[rows][used]
        scale = max(1.0, np.abs(expected[rows]).max() / 10)
        checks.append(_compare_values(title, *pair, _TOLERANCE * scale, fixed_point.name, hint))
    if not is_mean:
        bandit = learned[mdp.states_of("bandit")][0]
        checks.append(_check_quantiles(subject.table, bandit, is_quantile, wrong))
    return checks


def _draw_near(mdp: MDP, expected: np.ndarray) -> np.ndarray:
    """Draws values near the expected ones to start from, as some losses settle slowly."""
    noise = np.random.default_rng(5).normal(size=expected.shape) * 0.3
    start = np.where(mdp.is_final[:, np.newaxis], expected, expected + noise)
    start[mdp.states_of("bandit")] = draw_start_values(mdp)[mdp.states_of("bandit")]
    return start


def _iterate(subject: Subject, mdp: MDP, q_values: np.ndarray) -> np.ndarray:
    """Learns a table from every transition at once, each as often as its probability says.

    Without a target network (bootstrap "online") the target network holds noise instead.

    Args:
      subject: the loss.
      mdp: the transitions.
      q_values: `[S, A]` to start from.

    Returns:
      `[S, A, ...]` the table that was learned, in 64 bits.
    """
    loss_fn, table = subject.loss_fn, subject.table
    # Each state has two observations, before and after a step, so that the online network too can
    # be held still at time t.
    observations = np.eye(2 * mdp.num_states, dtype=np.float32)
    process = mdp.process

    def learn(start: Array, noise: Array) -> Array:
        transitions = Transition(
            jnp.asarray(observations[mdp.state]),
            jnp.asarray(mdp.action),
            jnp.asarray(mdp.reward),
            jnp.asarray(mdp.discount),
            jnp.asarray(observations[mdp.num_states + mdp.next_state]),
        )

        def expected_loss(online: Array, still: Array, target: Array, keys: Array) -> Array:
            both = jnp.concatenate([online, still])
            over_transitions = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
            losses = over_transitions(table.network, both, target, transitions, keys).loss
            return jnp.sum(jnp.asarray(mdp.probability) * losses)

        def step(carry: Any, key: Array) -> tuple[Any, None]:
            state, online, still, target = carry
            keys = jax.random.split(key, len(mdp.state))
            gradient = jax.grad(expected_loss)(online, still, target, keys)
            return (*table.descend(state, online, gradient), still, target), None

        def copy(carry: Any, key: Array) -> tuple[Any, None]:
            online, moved = carry
            target = noise if subject.bootstrap == "online" else jnp.concatenate([online, online])
            keys = jax.random.split(key, table.steps_per_copy)
            # First step size: how far this process moved since the last copy.
            state = table.init(online, moved[process])
            (_, learned, *_), _ = jax.lax.scan(step, (state, online, online, target), keys)
            change = jnp.abs(learned - online).reshape(mdp.num_states, -1).max(1)
            return (learned, jax.ops.segment_max(change, process, len(mdp.names))), None

        keys = jax.random.split(jax.random.key(0), _NUM_COPIES)
        return jax.lax.scan(copy, (start, jnp.ones(len(mdp.names))), keys)[0][0]

    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        noise = np.random.default_rng(3).normal(size=(2 * len(q_values), q_values.shape[1]))
        tables = [table.from_values(x).astype(np.float64) for x in (q_values, noise)]
        return np.asarray(jax.jit(learn, compiler_options=FAST_COMPILE)(*tables))


def _read_action_values(table: Table, learned: np.ndarray) -> np.ndarray:
    """Reads action values `[S, A]` out of a table `[S, A, ...]`."""
    with jax.enable_x64(True):
        observations = jnp.eye(len(learned))
        network = table.network
        values = jax.vmap(lambda obs: network.action_values(network.apply(learned, obs)))
        return np.asarray(values(observations))


def _find_minimiser(subject: Subject) -> tuple[bool, bool]:
    """Finds out whether the loss's minimiser is the mean, and whether it is a quantile.

    It is the mean where the gradient grows as the error does. It is a quantile of targets that lie
    far apart where the gradient of large errors stays the same.
    """
    if subject.table.representation == "categorical":
        return True, False  # the minimiser is the targets' mixture, which has their mean
    base, near, far, farther, farthest = (
        subject.evaluate(subject.cases.shift(q_tm1=-by)).pull for by in (0.0, 1.0, 1e3, 1e5, 1e7)
    )
    is_mean = np.allclose(far - base, 1e3 * (near - base), rtol=1e-3)
    return bool(is_mean), bool(np.allclose(farther, farthest, rtol=1e-3))


def _compare_values(
    title: str, found: np.ndarray, expected: np.ndarray, tolerance: float, name: str, hint: str
) -> Check:
    """Compares action values `[S, A]` of one process with those of the fixed point `name`."""
    error = np.abs(found - expected)
    error = np.where(np.isfinite(error), error, np.inf)
    state, action = np.unravel_index(error.argmax(), error.shape)
    worst = float(error.max())
    if worst < tolerance:
        return Check(title, True, f"{worst:.1e}")
    message = (
        f"the value of action {action} in state {state} converges to {found[state, action]:.4g}, "
        f"and that of the declared fixed point ({name}) is {expected[state, action]:.4g}: {hint}"
    )
    return Check(title, False, f"{worst:.3g}", message)


def _check_quantiles(table: Table, learned: np.ndarray, is_quantile: bool, wrong: str) -> Check:
    """Makes the row of the bandit, whose rewards lie far apart; `learned` is `[A, ...]`."""
    title = "known quantiles"
    if not is_quantile:
        why = "its minimiser is neither a mean nor a quantile"
        return Check(title, None, "", why)
    fractions = FRACTIONS if table.representation == "quantile" else np.array([0.5])
    expected = BANDIT_REWARDS[np.floor(fractions * len(BANDIT_REWARDS)).astype(int)]
    found = learned.reshape(len(learned), -1)
    scale = float(np.ptp(BANDIT_REWARDS))
    error = np.abs(found - expected[np.newaxis]) / scale
    worst = float(np.where(np.isfinite(error), error, np.inf).max())
    if worst < 1e-2:
        return Check(title, True, f"{worst:.1e}")
    i = int(error.max(0).argmax())
    mirrored = np.abs(found - expected[::-1][np.newaxis]).max() / scale < 1e-2
    same = len(fractions) > 1 and np.ptp(found, axis=1).max() / scale < 1e-2
    why = (
        "it learns the quantile of 1 - fraction: the sign of the error, or the asymmetry "
        "|fraction - (error < 0)|, is the wrong way round"
        if mirrored
        else "all quantiles are the same: is the fraction that of the prediction, on its own axis?"
        if same
        else "the asymmetry must be |fraction - (error < 0)|, with the fraction of the prediction"
    )
    message = (
        f"the quantile {fractions[i]:.4g} of rewards that are all as likely converges to "
        f"{found[0, i]:.6g} and is {expected[i]:.6g}: {wrong or why}"
    )
    return Check(title, False, f"{worst:.3g}", message)
