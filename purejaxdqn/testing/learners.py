"""Checks that a learner of one's own keeps its contract."""

from typing import Any

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


def _check_steps(
    learner: Learner, network: Network[Any], batch: Transition, key: Array, weighted: bool
) -> list[Check]:
    size, at = len(batch.r_t), 2
    init_key, other_key, step_key = jax.random.split(key, 3)
    is_one = jnp.arange(size) == at
    changed = batch._replace(r_t=jnp.where(is_one, batch.r_t + 10, batch.r_t))
    found: dict[str, Any] = {}

    def take(init_key: Array, step_key: Array) -> Any:
        state = learner.init(init_key, batch.obs_tm1[0])

        def step(given: Transition, weights: Array | None) -> Any:
            return learner.update(state, given, jax.random.clone(step_key), weights)

        return {
            "plain": step(batch, None),
            "ones": step(batch, jnp.ones(size)),
            "changed": step(changed, None),
            "left out": step(batch, 1.0 - is_one),
            "left out, changed": step(changed, 1.0 - is_one),
        }, state

    def run() -> str:
        program = pure_jit("the learner", _REMEDY, take)
        found["steps"], found["state"] = to_numpy(program(init_key, step_key))
        found["other"] = to_numpy(jax.jit(learner.init)(other_key, batch.obs_tm1[0]))
        require.finite(found["steps"], "what Learner.update gives")
        return "same bits"

    checks = [attempt("same keys, same step", run)]
    if not checks[0].passed:
        return checks
    steps = found["steps"]

    def is_same(one: Any, other: Any) -> bool:
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return all(np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in pairs)

    def params(name: str) -> Any:
        return steps[name][0].params

    def check_count() -> str:
        first, later = (int(x.num_updates) for x in (found["state"], steps["plain"][0]))
        wrong = f"num_updates goes from {first} to {later}: it begins at 0, and a step is one more"
        return expect((first, later) == (0, 1), f"{later}", wrong)

    def check_seeds() -> str:
        same = is_same(found["state"].params, found["other"].params)
        return expect(not same, "differ", "other keys give the same weights: use init's key")

    def check_weights() -> str | None:
        if not weighted:
            return None
        wrong = "weights of 1 give another step than none: without any, each transition counts 1"
        expect(is_same(params("plain"), params("ones")), "differ", wrong)
        wrong = "a transition whose weight is 0 counts: multiply its loss by it (weighted=False?)"
        return expect(is_same(params("left out"), params("left out, changed")), "0 is 0", wrong)

    def check_priorities() -> str | None:
        one, other = steps["plain"][1], steps["changed"][1]
        moved = np.abs(other - one)
        if np.ptp(np.concatenate([one, other])) < 1e-9:
            return None
        wrong = (
            f"another reward of transition {at} changes the priority of transition "
            f"{moved.argmax()} most: give them in the batch's order"
        )
        return expect(moved.argmax() == at, f"{moved.max():.2g}", wrong)

    def check_direction() -> str:
        ended = batch._replace(discount_t=jnp.zeros_like(batch.r_t))

        def error(params: Any) -> Array:
            output = jax.vmap(network.apply, in_axes=(None, 0))(params, batch.obs_tm1)
            values = jax.vmap(network.action_values)(output)
            taken = jnp.take_along_axis(values, batch.a_tm1[:, jnp.newaxis], 1)[:, 0]
            return jnp.abs(batch.r_t - taken).mean()

        def step(state: LearnerState, key: Array) -> tuple[LearnerState, None]:
            return learner.update(state, ended, key, None)[0], None

        keys = jax.random.split(step_key, _NUM_STEPS)
        state = learner.init(init_key, batch.obs_tm1[0])
        last = jax.jit(lambda state: jax.lax.scan(step, state, keys)[0])(state)
        before, after = float(error(state.params)), float(error(last.params))
        wrong = (
            f"{_NUM_STEPS} steps on one batch of terminal transitions change the mean distance of "
            f"its values to its rewards from {before:.4g} to {after:.4g}: it must fall; is the "
            "sign of the step wrong?"
        )
        return expect(after < before, f"{after / before:.2f} times", wrong)

    return [
        *checks,
        attempt("seeds", check_seeds),
        attempt("counts gradient steps", check_count),
        attempt("weights of transitions", check_weights, why_not="as told (weighted)"),
        attempt("priorities", check_priorities, why_not="all are the same"),
        attempt("leads to the rewards", check_direction),
    ]
