"""The contract of a loss, on networks and transitions such as it is trained with."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.losses.bellman import TD_ERROR_ARGUMENTS, TDError, call_by_name
from purejaxdqn.networks import value_network
from purejaxdqn.testing.common import (
    COMPILABLE,
    NUM_LANES,
    Program,
    largest,
    on_host,
    output_types,
    pairs,
    require,
    require_finite,
    require_float_scalar,
)
from purejaxdqn.testing.report import Check, attempt, expect
from purejaxdqn.testing.tables import TABLES, Table
from purejaxdqn.training.settings import reserved_names
from purejaxdqn.types import (
    Array,
    Categorical,
    LossFn,
    LossOutput,
    Network,
    Params,
    Quantiles,
    Transition,
)

ONE_TRANSITION = "takes one transition"
_REMEDY = (
    "It is a function of ONE transition: scalars without a batch axis, mapped over a batch with "
    f"vmap. {COMPILABLE}"
)
_NUM_ACTIONS = 3


def table_of(loss_fn: LossFn[Any], network: Network[Any] | None) -> Table | None:
    """The kind of table that a loss works with; None where it is of another representation."""
    if network is not None:
        obs = jnp.zeros(4)  # of any network only the type of its answer counts
        try:
            output = jax.eval_shape(
                lambda key: network.apply(network.init(key, obs), obs), jax.random.key(0)
            )
        except Exception:
            output = None
        kinds = {Quantiles: "quantile", Categorical: "categorical"}
        if type(output) in kinds:
            return TABLES[kinds[type(output)]]
    return next((t for t in TABLES.values() if _error_with(loss_fn, t) is None), None)


def _error_with(loss_fn: LossFn[Any], table: Table) -> Exception | None:
    """What a loss raises with a kind of table."""
    obs, key = jnp.eye(2), jax.random.key(0)
    transition = Transition(obs[0], jnp.int32(0), jnp.float32(0), jnp.float32(0.9), obs[1])
    params = jnp.asarray(table.from_values(np.zeros((2, _NUM_ACTIONS))), jnp.float32)
    try:
        jax.eval_shape(lambda *args: loss_fn(table.network, *args), params, params, transition, key)
    except Exception as error:
        return error
    return None


def _network_for(loss_fn: LossFn[Any]) -> Network[Any]:
    """A small network of the representation that a loss works with."""
    table = table_of(loss_fn, None)
    representation = table.representation if table else "values"
    if table is None:
        # Broken with all of them: the one whose parts it asks for says more.
        error = str(_error_with(loss_fn, TABLES["values"]))
        asked = re.search(r"has no attribute '(\w+)'", error)
        parts = {"logits": "categorical", "support": "categorical"}
        parts |= dict.fromkeys(Quantiles._fields, "quantile")
        representation = parts.get(asked[1], "values") if asked else "values"
    return value_network(
        _NUM_ACTIONS,
        (16,),
        representation=representation,  # type: ignore[arg-type]
        num_atoms=11,
        v_min=-5.0,
        v_max=5.0,
        num_quantiles=8,
    )


def _random_transitions() -> Transition:
    rng = np.random.default_rng(0)
    obs_tm1, obs_t = rng.normal(size=(2, NUM_LANES, 4)).astype(np.float32)
    discount_t: Any = np.where(np.arange(NUM_LANES) % 4 == 3, 0.0, 0.99).astype(np.float32)
    a_tm1: Any = rng.integers(0, _NUM_ACTIONS, NUM_LANES, np.int32)
    r_t: Any = rng.normal(size=NUM_LANES).astype(np.float32)
    return Transition(obs_tm1, a_tm1, r_t, discount_t, obs_t)


def check_contract(
    loss_fn: LossFn[Any],
    network: Network[Any] | None,
    transitions: Transition | None,
    learns_next_obs: bool,
) -> list[Check]:
    """The rows of the contract; the arguments are those of `check_loss`."""
    network = network or _network_for(loss_fn)
    batch = jax.tree.map(np.asarray, transitions or _random_transitions())
    key, init_key, target_key = jax.random.split(jax.random.key(0), 3)
    init = jax.jit(network.init)
    params, target_params = (init(k, batch.obs_tm1[0]) for k in (init_key, target_key))
    one = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
    keys = jax.random.split(key, len(batch.r_t))
    num_actions = network.action_values(network.apply(params, one.obs_tm1)).shape[0]

    def loss(*args: Any) -> LossOutput:
        return loss_fn(network, *args)

    def types() -> str:
        # An index that is out of range would be clamped without a word.
        require(
            batch.a_tm1.max() < num_actions,
            f"a_tm1 reaches {batch.a_tm1.max()}, but the network has {num_actions} actions: pass "
            "the network and the transitions that belong together",
        )
        name = "the loss of one transition"
        output = output_types(name, _REMEDY, loss, params, target_params, one, keys[0])
        _require_types(output)
        return f"{output.loss.dtype}[]"

    checks = [attempt(ONE_TRANSITION, types)]
    if not checks[0].passed:
        return checks

    order = np.random.default_rng(1).permutation(len(batch.r_t))
    # Nothing follows an end, so what is there may be anything.
    elsewhere = np.roll(batch.obs_t, 1, axis=0)

    def examine(params: Params, target_params: Params, keys: Array) -> Any:
        over_batch = jax.vmap(loss, in_axes=(None, None, 0, 0))

        def gradient(batch: Transition, keys: Array) -> Any:
            def mean_loss(params: Params) -> tuple[Array, LossOutput]:
                output = over_batch(params, target_params, batch, keys)
                return jnp.mean(output.loss), output

            grad, output = jax.grad(mean_loss, has_aux=True)(params)
            return output, grad

        ended = batch._replace(discount_t=np.zeros_like(batch.discount_t))
        ordered = jax.tree.map(lambda x: x[order], batch)
        variants = (batch, ordered, ended, ended._replace(obs_t=elsewhere))
        orders = np.stack([order * 0 + np.arange(len(order)), order, *[np.arange(len(order))] * 2])
        found = jax.vmap(gradient)(
            jax.tree.map(lambda *x: np.stack(x), *variants), jax.random.clone(keys)[orders]
        )
        names = ("batch", "ordered", "ended", "elsewhere")
        split = {name: jax.tree.map(lambda x, i=i: x[i], found) for i, name in enumerate(names)}
        return {"alone": loss(params, target_params, one, keys[0]), **split}

    found: dict[str, Any] = {}

    def pure() -> str:
        answers = on_host(Program("the loss", _REMEDY, examine)(params, target_params, keys))
        output, grad = answers["batch"]
        require_finite(output, "LossOutput")
        require_finite(grad, "the gradient of the loss")
        found.update(answers)
        lowest = output.priority.min()
        require(
            lowest >= 0, f"a priority is {lowest:.3g}: it must not be negative; take jnp.abs of it"
        )
        require(largest(grad) > 0, "no gradient reaches the online network's weights (params)")
        return "same bits"

    def agree() -> str:
        eager = on_host(loss(params, target_params, one, keys[0]))
        mapped = jax.tree.map(lambda x: x[0], found["batch"][0])
        _difference(
            eager,
            found["alone"],
            "eager and compiled give different losses",
            "what Python decides is decided once, when it is compiled: jnp.where in its place",
        )
        return _difference(
            found["alone"],
            mapped,
            "one transition alone and in a batch have different losses",
            "write the loss for ONE transition: no mean over a batch, no state outside",
        )

    def any_order() -> str:
        output, grad = found["batch"]
        remedy = "the loss of a transition must not depend on its place in the batch"
        message = "the order of the batch changes the loss or its gradient"
        expected = jax.tree.map(lambda x: x[order], output)
        return _difference((expected, grad), found["ordered"], message, remedy)

    def terminal() -> str:
        return _difference(
            found["ended"],
            found["elsewhere"],
            "with discount_t = 0 (a terminated episode) the loss, the priority or the gradient "
            "depends on obs_t: a terminal transition bootstraps",
            "multiply everything that comes from obs_t by discount_t. For a loss that is meant to "
            "learn from it all the same: learns_next_obs=True",
        )

    checks.append(attempt("same arguments, same answer", pure))
    if not found:
        return checks
    checks.append(attempt("eager, jitted and vmapped agree", agree))
    checks.append(attempt("the order of the batch", any_order))
    if not learns_next_obs:
        checks.append(attempt("a terminal transition ignores obs_t", terminal))
    return checks


def _require_types(output: Any) -> None:
    require(
        isinstance(output, LossOutput),
        f"the loss returns {output!r}: it must return a LossOutput(loss, priority, metrics)",
    )
    for name, leaf in (("loss", output.loss), ("priority", output.priority)):
        require_float_scalar(leaf, f"LossOutput.{name}")
        require(
            leaf.dtype == jnp.float32,
            f"LossOutput.{name} is {leaf.dtype} where the network is float32: drop the cast",
        )
    require(
        isinstance(output.metrics, dict),
        f"LossOutput.metrics is {output.metrics!r}: it must be a dict of scalars, if only {{}}",
    )
    for name, metric in output.metrics.items():
        require(
            name not in reserved_names(),
            f"LossOutput.metrics has {name!r}, which names something else in results: rename it",
        )
        require_float_scalar(metric, f"LossOutput.metrics[{name!r}]")


def _difference(one: Any, other: Any, message: str, remedy: str) -> str:
    """The largest relative difference of two trees, which must be what rounding leaves."""
    largest_difference = 0.0
    for path, x, y in pairs(one, other):
        scale = 1e-2 + np.abs(x).max(initial=0)
        difference = float(np.abs(np.float64(x) - y).max(initial=0) / scale)
        largest_difference = max(largest_difference, difference)
        figure = f"{difference:.1e}"
        expect(difference < 1e-3, figure, f"{message} ({path} by a share of {figure}); {remedy}")
    return f"{largest_difference:.1e}"


def check_error_sign(td_error: TDError) -> str:
    """Whether a TD error is above 0 where the target is above the prediction, and below 0 below."""
    q_tm1, q_t = np.random.default_rng(3).normal(size=(2, NUM_LANES, _NUM_ACTIONS))
    action = np.arange(NUM_LANES, dtype=np.int32) % _NUM_ACTIONS
    discount = np.full(NUM_LANES, 0.9, np.float32)

    mapped = jax.jit(jax.vmap(functools.partial(call_by_name, td_error)))

    def at(reward: float, more: float = 0.0) -> np.ndarray:
        r_t = np.full(NUM_LANES, reward, np.float32)
        values = (np.float32(q_tm1 + more), action, r_t, discount, *[np.float32(q_t)] * 2)
        return np.asarray(mapped(dict(zip(TD_ERROR_ARGUMENTS, values, strict=True))))

    above, below = at(1e3), at(-1e3)
    share = float(((above > 0) & (below < 0)).mean())
    if (above < 0).all() and (below > 0).all():
        why = (
            "it is the prediction less the target: the wrong sign. Under a penalty that is the "
            "same on both sides nothing changes, under any other everything does"
        )
    elif (above * below > 0).all():
        why = (
            "it has the same sign on both sides: the square or the size of the error is taken in "
            "it, but that is for the penalty to do (bellman_loss)"
        )
    else:
        why = "it must be above 0 where r_t is large, and below 0 where it is small"
    expect(share == 1, f"{share:.0%}", why)
    factors = at(0.0) - at(0.0, 1.0)
    factor = float(factors.mean())
    is_scaled = np.ptp(factors) < 1e-3 and abs(factor - 1) > 1e-3
    whose = " (a mean over the actions?)" if abs(factor * _NUM_ACTIONS - 1) < 1e-3 else ""
    return expect(
        not is_scaled,
        f"{factor:.3g} times",
        f"1 more of q_tm1 lowers it by {factor:.3g}: it is {factor:.3g} times the target less the "
        f"prediction{whose}. The error is to be 1 of them, of which the penalty is taken",
    )
