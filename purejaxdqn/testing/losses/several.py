"""Checks what losses of batches and of trajectories make of several transitions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing.fixed_points import take_value
from purejaxdqn.testing.losses.single_transitions import FAST_COMPILE, Subject, find_size
from purejaxdqn.testing.report import Check, attempt, expect
from purejaxdqn.types import Array, Extras, Trajectory, Transition

_NUM = 6  # steps of the longest trajectory
_FAR = 50.0  # what stands where nothing may be read


def check_batch(subject: Subject, batch_loss: Any, extras: Extras) -> list[Check]:
    """Makes the row on a loss of batches: no transition's target is another's."""

    def look() -> str:
        cases = subject.cases.predict(subject.settled)
        num, at = len(cases.r_t), len(cases.r_t) // 2  # neither the first nor the last
        online, target = (x.reshape(-1, *x.shape[2:]) for x in cases.make_tables(subject.table))
        rows = np.eye(2 * num)
        is_own = np.arange(num) == at
        given = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), extras)

        def gradient(online: Array, target: Array, r_t: Array, obs_t: Array) -> Array:
            fields: Any = (rows[::2], cases.a_tm1, r_t, cases.discount_t, obs_t)
            batch = Transition._make((*map(jnp.asarray, fields), jnp.zeros(num, bool), given))

            def mean(online: Array) -> Array:
                key = jax.random.key(0)
                return batch_loss(subject.table.network, online, target, batch, key).loss.mean()

            return num * jax.grad(mean)(online)[2 * at]

        same = np.repeat(rows[[2 * at + 1]], num, axis=0)
        with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
            find = jax.jit(gradient, compiler_options=FAST_COMPILE)
            one = find(online, target, cases.r_t, rows[1::2])
            other = find(online, target, np.where(is_own, cases.r_t, cases.r_t + 3), same)
        change = find_size(np.asarray(one - other))
        wrong = (
            f"where a prediction is at its target, other rewards and obs_t of the other "
            f"transitions give it a gradient of {change:.2g}: its target reads theirs. Where that "
            "is meant: fixed_point=None"
        )
        return expect(change < 1e-6, f"{change:.1e}", wrong)

    return [attempt("targets of others in the batch", look)]


def check_trajectory(subject: Subject, trajectory_loss: Any, extras: Extras) -> list[Check]:
    """Makes the rows on a loss of trajectories, of several steps."""
    why = "only greedy actions were played: what others cut or correct is not known"
    return [
        attempt("several steps, greedy ones", _check_greedy, subject, trajectory_loss, extras),
        Check("several steps, others", None, "", why),
    ]


def _check_greedy(subject: Subject, trajectory_loss: Any, extras: Extras) -> str:
    """Checks that nothing is to be learned where each action is greedy and each value is right."""
    table, q = subject.table, subject.cases.q_t[: _NUM + 1].copy()
    # Behind an end, or the last valid step, there may be anything.
    ends = {
        "at the newest step": (_NUM, 0.9),
        "at a terminal one": (4, 0.0),
        "at a limit": (3, 0.9),
    }
    action = q.argmax(1)[:-1].astype(np.int32)
    best, rows = take_value(q[:-1], action), np.eye(_NUM + 1)
    given = {"probability": np.ones(()), **extras}
    given = jax.tree.map(lambda x: jnp.broadcast_to(x, (_NUM, *jnp.shape(x))), given)

    def gradient(online: Array, *steps: Array) -> Array:
        r_t, discount_t, truncated_t, is_valid = steps
        obs = jnp.asarray(rows, online.dtype)
        fields = (obs[:-1], jnp.asarray(action), r_t, discount_t, obs[1:], truncated_t)
        trajectory = Trajectory._make((*fields, given, is_valid))

        def loss(online: Array, target: Array) -> Array:
            network = table.network
            return trajectory_loss(network, online, target, trajectory, jax.random.key(0)).loss

        return jax.grad(loss)(online, online)

    largest = 0.0
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        find = jax.jit(gradient, compiler_options=FAST_COMPILE)
        for where, (num, last) in ends.items():
            is_valid, is_last = np.arange(_NUM) < num, np.arange(_NUM) == num - 1
            discount_t = np.where(is_last, last, 0.9)
            r_t = np.where(is_valid, best - discount_t * q[1:].max(1), _FAR)
            truncated_t = is_last & (where == "at a limit")
            values = np.where(np.arange(_NUM + 1)[:, np.newaxis] > num, _FAR, q)
            online = table.from_values(values).astype(np.float64)
            size = find_size(np.asarray(find(online, r_t, discount_t, truncated_t, is_valid)))
            wrong = (
                f"where all actions are greedy and all values right, a trajectory that ends {where}"
                f" gives a gradient of {size:.2g}: rewards, discounts or values of other steps are "
                "read, or what lies behind the last valid step"
            )
            expect(size < 1e-4, f"{size:.1e}", wrong)
            largest = max(largest, size)
    return f"{largest:.1e}"
