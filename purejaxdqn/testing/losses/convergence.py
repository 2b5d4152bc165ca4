"""Checks that a loss, iterated on tabular decision processes, finds the values that it declares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing.losses.single_transitions import FAST_COMPILE, Subject, find_size
from purejaxdqn.testing.report import Check, attempt, expect
from purejaxdqn.testing.tabular import decision_processes as mdps
from purejaxdqn.testing.tabular.decision_processes import BANDIT_REWARDS, MDP
from purejaxdqn.testing.tabular.table_networks import FRACTIONS
from purejaxdqn.types import Array, Transition

_TOLERANCE = 5e-3  # of values up to 10; with 0.99 some 500 copies leave a hundredth of the start
_NUM_COPIES = 600


def check_fixed_point(subject: Subject, discount: float, wrong: str) -> list[Check]:
    """Makes a row for each decision process, and for known quantiles; `wrong` is what is known."""
    mdp = mdps.make_mdps(discount)
    start, bandit = mdps.draw_start_values(mdp), mdp.states_of("bandit")
    expected = mdps.value_iteration(mdp, subject.fixed_point, start)
    # It starts near the expected values, as some losses settle slowly.
    noise = np.random.default_rng(5).normal(size=expected.shape) * 0.3
    near = np.where(mdp.is_final[:, np.newaxis], expected, expected + noise)
    near[bandit] = start[bandit]
    learned, found = _iterate(subject, mdp, near)
    is_mean, is_quantile = _find_minimiser(subject)
    hint = wrong or (
        "what a loss is meant to converge to can be declared: fixed_point=soft(0.1) and others of "
        "purejaxdqn.testing.fixed_points, a function of one's own, or None"
    )
    checks = []
    for name in ("deterministic", "stochastic", "terminal", "time limit"):
        title, used = f"fixed point, {name}", mdp.states_of(name) & ~mdp.is_final
        pair = found[used], expected[used]
        if name == "stochastic" and not is_mean:
            why = "the penalty is no square: its minimiser is not the mean"
            checks.append(Check(title, None, "", why))
        else:
            checks.append(attempt(title, _compare_values, *pair, subject.fixed_point.name, hint))
    if not is_mean:
        why = "its minimiser is neither a mean nor a quantile"
        given = (subject, learned[bandit][0] if is_quantile else None, wrong)
        checks.append(attempt("known quantiles", _check_quantiles, *given, why_not=why))
    return checks


def _iterate(subject: Subject, mdp: MDP, q_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Learns a table `[S, A, ...]`, and its values `[S, A]`, from the process as a whole."""
    table, network = subject.table, subject.table.network
    # Each state has two observations, before and after a step, so that the online network too can
    # be held still at time t.
    observations = np.eye(2 * mdp.num_states, dtype=np.float32)
    process = mdp.process

    def learn(start: Array, noise: Array) -> tuple[Array, Array]:
        obs_tm1, obs_t = observations[mdp.state], observations[mdp.num_states + mdp.next_state]
        fields = (obs_tm1, mdp.action, mdp.reward, mdp.discount, obs_t)
        transitions = Transition._make((*map(jnp.asarray, fields), None, {}))
        over_transitions = jax.vmap(subject.loss_fn, in_axes=(None, None, None, 0, 0))

        def expected_loss(online: Array, still: Array, target: Array, keys: Array) -> Array:
            both = jnp.concatenate([online, still])
            losses = over_transitions(network, both, target, transitions, keys).loss
            return jnp.sum(jnp.asarray(mdp.probability) * losses)

        def step(carry: Any, key: Array) -> tuple[Any, None]:
            state, online, still, target = carry
            keys = jax.random.split(key, len(mdp.state))
            gradient = jax.grad(expected_loss)(online, still, target, keys)
            return (*table.descend(state, online, gradient), still, target), None

        def copy(carry: Any, key: Array) -> tuple[Any, None]:
            online, moved = carry
            # A loss that is said to do without a target network is shown noise in its place.
            target = noise if subject.bootstrap == "online" else jnp.concatenate([online, online])
            keys = jax.random.split(key, table.steps_per_copy)
            # First step size: how far this process moved since the last copy.
            state = table.init(online, moved[process])
            (_, learned, *_), _ = jax.lax.scan(step, (state, online, online, target), keys)
            change = jnp.abs(learned - online).reshape(mdp.num_states, -1).max(1)
            return (learned, jax.ops.segment_max(change, process, len(mdp.names))), None

        keys = jax.random.split(jax.random.key(0), _NUM_COPIES)
        learned = jax.lax.scan(copy, (start, jnp.ones(len(mdp.names))), keys)[0][0]
        over_states = jax.vmap(lambda obs: network.action_values(network.apply(learned, obs)))
        return learned, over_states(jnp.eye(mdp.num_states))

    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        noise = np.random.default_rng(3).normal(size=(2 * len(q_values), q_values.shape[1]))
        tables = [table.from_values(x).astype(np.float64) for x in (q_values, noise)]
        learned, found = jax.jit(learn, compiler_options=FAST_COMPILE)(*tables)
        return np.asarray(learned), np.asarray(found)


def _find_minimiser(subject: Subject) -> tuple[bool, bool]:
    """Tells whether the gradient grows as errors do (a mean), or stays the same (a quantile)."""
    if subject.table.representation == "categorical":
        return True, False  # the minimiser is the targets' mixture, which has their mean
    errors = (0.0, 1.0, 1e3, 1e5, 1e7)
    base, near, far, farther, farthest = (subject.pull(q_tm1=-by) for by in errors)
    is_mean = np.allclose(far - base, 1e3 * (near - base), rtol=1e-3)
    return is_mean, np.allclose(farther, farthest, rtol=1e-3)


def _compare_values(found: np.ndarray, expected: np.ndarray, name: str, hint: str) -> str:
    """Compares action values `[S, A]` of one process with those of the fixed point `name`."""
    error = np.abs(found - expected)
    worst = np.unravel_index(error.argmax(), error.shape)
    wrong = (
        f"the value of action {worst[1]} in state {worst[0]} converges to {found[worst]:.4g}, and "
        f"that of the declared fixed point ({name}) is {expected[worst]:.4g}: {hint}"
    )
    is_right = error[worst] < _TOLERANCE * max(1.0, find_size(expected) / 10)
    return expect(is_right, f"{error[worst]:.1e}", wrong)


def _check_quantiles(subject: Subject, learned: np.ndarray | None, wrong: str) -> str | None:
    """Judges outputs `[A, ...]` of the bandit, whose rewards lie far apart, if there are any."""
    if learned is None:
        return None
    fractions = FRACTIONS if subject.table.representation == "quantile" else np.array([0.5])
    expected = BANDIT_REWARDS[np.floor(fractions * len(BANDIT_REWARDS)).astype(int)]
    found = learned.reshape(len(learned), -1)
    share = np.abs(found - expected).max(0) / np.ptp(BANDIT_REWARDS)
    i = int(share.argmax())
    rule = "the asymmetry must be |fraction - (error < 0)|, with the fraction of the prediction"
    message = (
        f"the quantile {fractions[i]:.4g} of rewards that are all as likely converges to "
        f"{found[0, i]:.6g} and is {expected[i]:.6g}: {wrong or rule}"
    )
    return expect(share[i] < 1e-2, f"{share[i]:.1e}", message)
