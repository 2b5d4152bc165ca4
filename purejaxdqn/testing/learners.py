"""Checks that a learner of one's own keeps its contract."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing import require
from purejaxdqn.testing.programs import COMPILABLE, find_types, pure_jit, to_numpy
from purejaxdqn.testing.report import Check, Report, attempt, expect, print_and_raise, unprinted
from purejaxdqn.training.settings import reserved_names
from purejaxdqn.types import Array, Learner, LearnerState, Network, Transition

_REMEDY = f"It is a pure function of the state, a batch [B, ...], a key and weights. {COMPILABLE}"
_NUM_STEPS = 30
_ONE = 2  # a transition of the batch


@print_and_raise
def check_learner(
    learner: Learner,
    network: Network[Any],
    transitions: Transition,
    key: Array | None = None,
    *,
    weighted: bool = True,
) -> Report:
    """Checks a learner, prints a table with a row a check, and raises if one failed.

    - It works under `jit` and `scan`: `update` keeps the state's types, and gives a priority for
      each transition and metrics that are numbers. No key is used twice; seeds differ.
    - `num_updates` counts gradient steps.
    - Without weights each transition counts 1; with one of 0 it does not count at all.
    - The priority of a transition is its own: that of one with another reward changes most.
    - Gradient steps on the batch, as if all of it were terminal, lead to its rewards.

    It returns and raises as `check_loss`. See `Learner`.

    Args:
      learner: such as `make_learner` makes.
      network: the one that the learner learns with; its first weights are the state's `params`.
      transitions: `[B, ...]` a batch, of at least 4.
      key: `[]` PRNG key of everything that is drawn; always the same one by default.
      weighted: False for a learner that is meant to count all transitions alike.
    """
    key = jax.random.key(0) if key is None else key
    batch = jax.tree.map(jnp.asarray, transitions)
    types = attempt("shapes and dtypes", _check_types, learner, batch, key)
    checks = [types]
    if types.passed:
        checks += _check_steps(learner, network, batch, key, weighted)
    return Report(getattr(learner.update, "__qualname__", "learner"), tuple(checks))


learner_report = unprinted(check_learner)


def _check_types(learner: Learner, batch: Transition, key: Array) -> str:
    obs, size = batch.obs_tm1[0], len(batch.r_t)
    state = find_types("Learner.init", _REMEDY, learner.init, key, obs)
    wrong = f"Learner.init gives {state!r:.60}: it must give a LearnerState"
    require.that(isinstance(state, LearnerState), wrong)
    for weights in (None, jnp.ones(size)):
        found = find_types("Learner.update", _REMEDY, learner.update, state, batch, key, weights)
        is_right = isinstance(found, tuple) and len(found) == 3 and isinstance(found[2], dict)
        wrong = f"Learner.update gives {found!r:.60}: it must give (state, priorities, metrics)"
        require.that(is_right, wrong)
        new, priorities, metrics = found
        wrong = "Learner.update changes the types of the state, so that scan cannot carry it"
        require.same_types(state, new, wrong, "keep every shape and dtype")
        wanted = jax.ShapeDtypeStruct((size,), jnp.float32)
        wrong = f"the priorities of a batch of {size} have the wrong type"
        require.same_types(wanted, priorities, wrong, "give one number for each transition")
        for name, metric in metrics.items():
            require.float_scalar(metric, f"the metric {name!r}")
            wrong = f"the metric {name!r} names something else in results: rename it"
            require.that(name == "loss" or name not in reserved_names(), wrong)
    return f"float32[{size}]"


class _Steps(NamedTuple):
    """What a learner made of one batch and its variants: (state, priorities, metrics) each."""

    learner: Learner
    network: Network[Any]
    batch: Transition
    keys: Array  # [3] of the first weights, of others, and of the step
    first: LearnerState
    taken: dict[str, Any]

    def is_same(self, one: str, other: str) -> bool:
        """Tells whether two variants lead to the same weights."""
        both = (jax.tree.leaves(self.taken[name][0].params) for name in (one, other))
        return all(np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(*both, strict=True))


def _check_steps(
    learner: Learner, network: Network[Any], batch: Transition, key: Array, weighted: bool
) -> list[Check]:
    keys = jax.random.split(key, 3)
    found: list[_Steps] = []

    def run() -> str:
        program = pure_jit("the learner", _REMEDY, functools.partial(_take_steps, learner, batch))
        first, taken = to_numpy(program(keys[0], keys[2]))
        require.finite(taken, "what Learner.update gives")
        found.append(_Steps(learner, network, batch, keys, first, taken))
        return "same bits"

    checks = [attempt("same keys, same step", run)]
    if not found:
        return checks
    steps = found[0]
    return [
        *checks,
        attempt("seeds", _check_seeds, steps),
        attempt("counts gradient steps", _check_count, steps),
        attempt("weights", _check_weights, steps if weighted else None, why_not="as told"),
        attempt("priorities", _check_priorities, steps, why_not="all are the same"),
        attempt("leads to the rewards", _check_direction, steps),
    ]


def _take_steps(learner: Learner, batch: Transition, init_key: Array, key: Array) -> Any:
    """Takes one step from the first weights, in several ways."""
    is_one = jnp.arange(len(batch.r_t)) == _ONE
    changed = batch._replace(r_t=jnp.where(is_one, batch.r_t + 10, batch.r_t))
    state = learner.init(init_key, batch.obs_tm1[0])

    def step(given: Transition, weights: Array | None) -> Any:
        return learner.update(state, given, jax.random.clone(key), weights)

    return state, {
        "plain": step(batch, None),
        "ones": step(batch, jnp.ones(len(batch.r_t))),
        "changed": step(changed, None),
        "left out": step(batch, 1.0 - is_one),
        "left out, changed": step(changed, 1.0 - is_one),
    }


def _check_seeds(steps: _Steps) -> str:
    other = to_numpy(jax.jit(steps.learner.init)(steps.keys[1], steps.batch.obs_tm1[0]))
    pairs = zip(jax.tree.leaves(steps.first.params), jax.tree.leaves(other.params), strict=True)
    differ = any(not np.array_equal(*pair) for pair in pairs)
    return expect(differ, "differ", "other keys give the same weights: draw them from init's key")


def _check_count(steps: _Steps) -> str:
    first, later = (int(x.num_updates) for x in (steps.first, steps.taken["plain"][0]))
    wrong = f"num_updates goes from {first} to {later}: it begins at 0, and a step is one more"
    return expect((first, later) == (0, 1), f"{later}", wrong)


def _check_weights(steps: _Steps | None) -> str | None:
    if steps is None:
        return None
    wrong = "weights of 1 give another step than none: without any, each transition counts 1"
    expect(steps.is_same("plain", "ones"), "differ", wrong)
    wrong = (
        "a transition whose weight is 0 counts: multiply its loss by it. Where all are meant to "
        "count alike: weighted=False"
    )
    return expect(steps.is_same("left out", "left out, changed"), "0 is 0", wrong)


def _check_priorities(steps: _Steps) -> str | None:
    one, other = steps.taken["plain"][1], steps.taken["changed"][1]
    if np.ptp(np.concatenate([one, other])) < 1e-9:
        return None
    moved = np.abs(other - one)
    wrong = (
        f"another reward of transition {_ONE} changes the priority of transition {moved.argmax()} "
        "most: give them in the batch's order"
    )
    return expect(moved.argmax() == _ONE, f"{moved.max():.2g}", wrong)


def _check_direction(steps: _Steps) -> str:
    learner, network, batch = steps.learner, steps.network, steps.batch
    ended = batch._replace(discount_t=jnp.zeros_like(batch.r_t))

    def error(params: Any) -> Array:
        output = jax.vmap(network.apply, in_axes=(None, 0))(params, batch.obs_tm1)
        values = jax.vmap(network.action_values)(output)
        taken = jnp.take_along_axis(values, batch.a_tm1[:, jnp.newaxis], 1)[:, 0]
        return jnp.abs(batch.r_t - taken).mean()

    def run(init_key: Array, key: Array) -> tuple[Array, Array]:
        state = learner.init(init_key, batch.obs_tm1[0])
        step = lambda state, key: (learner.update(state, ended, key, None)[0], None)  # noqa: E731
        last, _ = jax.lax.scan(step, state, jax.random.split(key, _NUM_STEPS))
        return error(state.params), error(last.params)

    before, after = map(float, jax.jit(run)(steps.keys[0], steps.keys[2]))
    wrong = (
        f"{_NUM_STEPS} steps on one batch of terminal transitions change the mean distance of its "
        f"values to its rewards from {before:.4g} to {after:.4g}: it must fall; is the sign of the "
        "step wrong?"
    )
    return expect(after < before, f"{before:.3g} to {after:.3g}", wrong)
