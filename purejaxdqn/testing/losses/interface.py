"""Checks that a loss is a `LossFn`: types, purity, the same answer alone and in any batch."""

import contextlib
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.losses.bellman_loss import TD_ERROR_ARGUMENTS, TDError, call_by_name
from purejaxdqn.networks import value_network
from purejaxdqn.testing import require
from purejaxdqn.testing.programs import (
    COMPILABLE,
    explain_errors,
    find_types,
    pure_jit,
    to_numpy,
)
from purejaxdqn.testing.report import Check, attempt, expect, find_true
from purejaxdqn.testing.require import NUM_LANES, find_size, pair_leaves
from purejaxdqn.testing.tabular.table_networks import TABLES, OutputTable, Table, make_output_table
from purejaxdqn.training.settings import reserved_names
from purejaxdqn.types import (
    Array,
    Categorical,
    LossFn,
    LossOutput,
    Network,
    ProposedQuantiles,
    Quantiles,
    Trajectory,
    Transition,
)

_REMEDY = (
    "It is a function of ONE transition: scalars without a batch axis, mapped over a batch with "
    f"vmap. {COMPILABLE}"
)
_NUM_ACTIONS = 3
_OUTPUTS: dict[str, Any] = {"quantile": Quantiles, "categorical": Categorical}
_OUTPUTS["proposed_quantile"] = ProposedQuantiles


def check_error_sign(td_error: TDError) -> str:
    """Checks that a TD error is target less prediction, by its sign and by how its size changes."""
    q_tm1, q_t = np.random.default_rng(3).normal(size=(2, NUM_LANES, _NUM_ACTIONS))
    action = np.arange(NUM_LANES, dtype=np.int32) % _NUM_ACTIONS
    mapped = jax.jit(jax.vmap(functools.partial(call_by_name, td_error)))

    def evaluate(more: float) -> np.ndarray:
        r_t, discount_t = (np.full(NUM_LANES, x, np.float32) for x in (0.0, 0.9))
        values = (np.float32(q_tm1 + more), action, r_t, discount_t, *[np.float32(q_t)] * 2)
        return np.asarray(mapped(dict(zip(TD_ERROR_ARGUMENTS, values, strict=True))))

    above, below = evaluate(-1e3), evaluate(1e3)
    share = float(((above > 0) & (below < 0)).mean())
    why = {
        "it is the prediction less the target: the wrong sign. Under a penalty that is the same on "
        "both sides nothing changes, under any other everything does": max(*above, *-below) < 0,
        "it has the same sign on both sides: the square or the size of the error is taken in it, "
        "but that is for the penalty to do (bellman_loss)": (above * below > 0).all(),
        "it must be above 0 where q_tm1 is small, and below 0 where it is large": True,
    }
    expect(share == 1, f"{share:.0%}", find_true(why)[0])
    factors = evaluate(0.0) - evaluate(1.0)
    factor = float(factors.mean())
    is_scaled = np.ptp(factors) < 1e-3 and abs(factor - 1) > 1e-3
    whose = " (a mean over the actions?)" if abs(factor * _NUM_ACTIONS - 1) < 1e-3 else ""
    wrong = (
        f"1 more of q_tm1 lowers it by {factor:.3g}: it is {factor:.3g} times the target less the "
        f"prediction{whose}. It must be target - prediction, unscaled"
    )
    return expect(not is_scaled, f"{factor:.3g} times", wrong)


def choose_table(
    loss_fn: LossFn[Any], network: Network[Any] | None, outputs: OutputTable | None = None
) -> Table | None:
    """Chooses the kind of table that a loss works with; None for another representation."""
    if outputs is not None:
        table = make_output_table(outputs)
        return table if _find_error(loss_fn, table) is None else None
    if network is not None:
        obs, key = jnp.zeros(4), jax.random.key(0)  # only the type of the output counts
        with contextlib.suppress(Exception):
            output = jax.eval_shape(lambda: network.apply(network.init(key, obs), obs))
            known = (TABLES[name] for name, kind in _OUTPUTS.items() if isinstance(output, kind))
            table = next(known, None) or make_output_table(_repeat(network, output))
            return table if _find_error(loss_fn, table) is None else None
    return next((t for t in TABLES.values() if _find_error(loss_fn, t) is None), None)


def check_outputs(outputs: OutputTable) -> str:
    """Checks that an output that was encoded is read as the values that it was made of."""
    remedy = "encode takes action values [A] in jnp, and decode what it gives; any A must do"
    largest = 0.0
    for num_actions in (2, _NUM_ACTIONS, 6):
        q_values = jnp.asarray(np.random.default_rng(0).normal(size=num_actions), jnp.float32)
        with explain_errors("outputs", remedy):
            read = np.asarray(outputs.decode(outputs.encode(q_values)))
        is_right = read.shape == q_values.shape
        error = float(np.abs(read - q_values).max()) if is_right else np.inf
        wrong = f"decode(encode(q)) is off by {error:.2g}: it must be q, the action values [A]"
        expect(error < 1e-3, f"{error:.1e}", wrong)
        largest = max(largest, error)
    return f"{largest:.1e}"


def _repeat(network: Network[Any], output: Any) -> OutputTable:
    """Makes outputs that repeat the action values, for a network that reads them as these."""
    num_actions = jax.eval_shape(network.action_values, output).shape[0]
    if any(x.shape[-1:] != (num_actions,) for x in jax.tree.leaves(output)):
        raise ValueError("its last axis is not that of the actions")

    def encode(q_values: Array) -> Any:
        num = q_values.shape[0]
        return jax.tree.map(lambda x: jnp.broadcast_to(q_values, (*x.shape[:-1], num)), output)

    outputs = OutputTable(encode, network.action_values)
    check_outputs(outputs)
    return outputs


def _take_one(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)


def of_batch(loss_fn: Any) -> LossFn[Any]:
    """Makes the loss of ONE transition of a loss of batches, such as `dqn` takes as batch_loss."""

    def one(network: Any, params: Any, target: Any, transition: Transition, key: Array) -> Any:
        batch = jax.tree.map(lambda x: x[jnp.newaxis], transition)
        return _take_one(loss_fn(network, params, target, batch, key))

    return one


def of_trajectory(loss_fn: Any) -> LossFn[Any]:
    """Makes the loss of ONE transition of a loss of trajectories: of those of one step."""

    def one(network: Any, params: Any, target: Any, transition: Transition, key: Array) -> Any:
        extras = {"probability": jnp.ones((), jnp.float32), **transition.extras}
        fields = jax.tree.map(lambda x: x[jnp.newaxis], transition._replace(extras=extras))
        trajectory = Trajectory._make((*fields, jnp.ones(1, bool)))
        return loss_fn(network, params, target, trajectory, key)

    return one


def fill_in(loss_fn: LossFn[Any], transitions: Transition | None) -> LossFn[Any]:
    """Shows a loss the extras of the first transition, and no time limit, where there are none."""
    extras = {} if transitions is None else take_first(transitions.extras)

    def filled(network: Any, params: Any, target: Any, transition: Transition, key: Array) -> Any:
        if transition.truncated_t is None:
            transition = transition._replace(truncated_t=jnp.zeros((), bool))
        transition = transition._replace(extras=transition.extras or extras)
        return loss_fn(network, params, target, transition, key)

    return filled


def _find_error(loss_fn: LossFn[Any], table: Table) -> Exception | None:
    """Returns what a loss raises with a kind of table."""
    one = take_first(_draw_transitions())
    params = table.from_values(np.zeros((len(one.obs_t), _NUM_ACTIONS))).astype(np.float32)
    try:
        key = jax.random.key(0)
        jax.eval_shape(functools.partial(loss_fn, table.network), params, params, one, key)
    except Exception as error:
        return error
    return None


def _make_network(loss_fn: LossFn[Any], outputs: OutputTable | None) -> Network[Any]:
    """Makes a small network of the representation that a loss works with."""
    representation: Any = "values"
    if outputs is not None:
        plain, encode = value_network(_NUM_ACTIONS, (16,)), outputs.encode
        apply = lambda *x: encode(plain.apply(*x))  # noqa: E731
        return Network(plain.init, apply, outputs.decode)
    if table := choose_table(loss_fn, None):
        representation = next(name for name, other in TABLES.items() if other is table)
    # It raises with each of them: the network that has the field it asks for shows why.
    elif asked := re.search(r"no attribute '(\w+)'", str(_find_error(loss_fn, TABLES["values"]))):
        owners = (name for name, kind in _OUTPUTS.items() if asked[1] in kind._fields)
        representation = next(owners, "values")
    sizes: Any = {"num_atoms": 11, "v_min": -5.0, "v_max": 5.0, "num_quantiles": 8}
    return value_network(_NUM_ACTIONS, (16,), representation=representation, **sizes)


def take_first(tree: Any) -> Any:
    """Takes the first transition of a batch."""
    return jax.tree.map(lambda x: jnp.asarray(x[0]), tree)


def _draw_transitions() -> Transition:
    rng = np.random.default_rng(0)
    obs_tm1, obs_t = rng.normal(size=(2, NUM_LANES, 4)).astype(np.float32)
    a_tm1 = rng.integers(0, _NUM_ACTIONS, NUM_LANES, np.int32)
    discount_t = np.where(np.arange(NUM_LANES) % 4 == 3, 0.0, 0.99)
    scalars: Any = np.stack([rng.normal(size=NUM_LANES), discount_t]).astype(np.float32)
    return Transition._make((obs_tm1, a_tm1, *scalars, obs_t, None, {}))


def check_interface(
    loss_fn: LossFn[Any],
    network: Network[Any] | None,
    transitions: Transition | None,
    learns_next_obs: bool,
    outputs: OutputTable | None = None,
    has_fixed_point: bool = True,
) -> list[Check]:
    """Makes the rows on a loss's interface: one alone if it does not take one transition."""
    network = network or _make_network(loss_fn, outputs)
    loss = functools.partial(loss_fn, network)
    batch: Any = jax.tree.map(np.asarray, transitions or _draw_transitions())
    batch = batch._replace(truncated_t=np.zeros(len(batch.r_t), bool))  # a row of its own asks
    key, *init_keys = jax.random.split(jax.random.key(0), 3)
    init = jax.jit(network.init)
    weights = [init(init_key, batch.obs_tm1[0]) for init_key in init_keys]
    keys = jax.random.split(key, len(batch.r_t))
    order = np.random.default_rng(1).permutation(len(batch.r_t))
    arguments = (*weights, take_first(batch), keys[0])
    checks = [attempt("takes one transition", _check_types, network, loss, arguments, batch.a_tm1)]
    if not checks[0].passed:
        return checks
    found: dict[str, Any] = {}
    examine, row = functools.partial(_examine, loss, batch, order), "same arguments, same answer"
    checks.append(attempt(row, _check_purity, examine, (*weights, keys), found))
    if not found:
        return checks
    grad, output = found["batch"]
    orders = ((grad, jax.tree.map(lambda x: x[order], output)), found["ordered"])
    wrong = (
        "the order of the batch changes the loss or its gradient ({}); the loss of a transition "
        "must not depend on its place in the batch"
    )
    checks += [
        attempt("eager, jitted and vmapped agree", _check_eager, loss, arguments, found),
        attempt("the order of the batch", _compare, *orders, wrong),
    ]
    if not learns_next_obs:
        wrong = (
            "with discount_t = 0 (a terminated episode) the loss, the priority or the gradient "
            "depends on obs_t: a terminal transition bootstraps ({}); multiply everything that "
            "comes from obs_t by discount_t. For a loss that is meant to learn from it all the "
            "same: learns_next_obs=True"
        )
        row, ends = "a terminal transition ignores obs_t", (found["ended"], found["elsewhere"])
        checks.append(attempt(row, _compare, *ends, wrong))
    if has_fixed_point:
        checks.append(attempt("a time limit is no end", _check_limit, found))
    return checks


def _check_limit(found: Any) -> str:
    """Checks that a transition whose episode was cut off counts like any other, or not at all."""
    if find_size(found["cut"][0]) == 0:
        return "left out"
    wrong = (
        "where truncated_t is True the loss, the priority or the gradient is another one ({}): a "
        "time limit is no death, and the target bootstraps. Where it is meant: fixed_point=None"
    )
    return _compare(found["uncut"], found["cut"], wrong)


def _check_types(network: Network[Any], loss: Any, arguments: Any, a_tm1: np.ndarray) -> str:
    params, _, one, _ = arguments
    num_actions = len(network.action_values(network.apply(params, one.obs_tm1)))
    # An index that is out of range would be clamped without a word.
    wrong = (
        f"a_tm1 reaches {a_tm1.max()}, but the network has {num_actions} actions: pass the network "
        "and the transitions that belong together"
    )
    require.that(a_tm1.max() < num_actions, wrong)
    output = find_types("the loss of one transition", _REMEDY, loss, *arguments)
    wrong = f"the loss returns {output!r}: it must return a LossOutput(loss, priority, metrics)"
    require.that(isinstance(output, LossOutput), wrong)
    for name, leaf in (("loss", output.loss), ("priority", output.priority)):
        require.float_scalar(leaf, f"LossOutput.{name}")
        wrong = f"LossOutput.{name} is {leaf.dtype} where the network is float32: drop the cast"
        require.that(leaf.dtype == jnp.float32, wrong)
    wrong = f"LossOutput.metrics is {output.metrics!r}: it must be a dict of scalars, if only {{}}"
    require.that(isinstance(output.metrics, dict), wrong)
    for name, metric in output.metrics.items():
        wrong = f"LossOutput.metrics has {name!r}, which names something else in results: rename it"
        require.that(name not in reserved_names(), wrong)
        require.float_scalar(metric, f"LossOutput.metrics[{name!r}]")
    return f"{output.loss.dtype}[]"


def _examine(loss: Any, batch: Any, order: Any, params: Any, target: Any, keys: Array) -> Any:
    """Computes `{variant of the batch: (gradient, outputs)}`, and the output of one alone."""
    over_batch = jax.vmap(loss, in_axes=(None, None, 0, 0))

    def gradient(batch: Transition, keys: Array) -> Any:
        def mean_loss(params: Any) -> tuple[Array, LossOutput]:
            output = over_batch(params, target, batch, keys)
            return jnp.mean(output.loss), output

        return jax.grad(mean_loss, has_aux=True)(params)

    ended = batch._replace(discount_t=np.zeros_like(batch.discount_t))
    uncut = batch._replace(discount_t=np.full_like(batch.discount_t, 0.9))
    variants = {
        "batch": batch,
        "ordered": jax.tree.map(lambda x: x[order], batch),
        "ended": ended,
        # Nothing follows an end, so that obs_t may be anything.
        "elsewhere": ended._replace(obs_t=np.roll(batch.obs_t, 1, axis=0)),
        "uncut": uncut,
        "cut": uncut._replace(truncated_t=~uncut.truncated_t),
    }
    same = np.arange(len(order))
    orders = np.stack([order if name == "ordered" else same for name in variants])
    stacked = jax.tree.map(lambda *x: np.stack(x), *variants.values())
    found = jax.vmap(gradient)(stacked, jax.random.clone(keys)[orders])
    split = {name: jax.tree.map(lambda x, i=i: x[i], found) for i, name in enumerate(variants)}
    return {"alone": loss(params, target, take_first(batch), keys[0]), **split}


def _check_purity(examine: Callable[..., Any], arguments: tuple[Any, ...], found: Any) -> str:
    """Checks the answers; puts what `_examine` gives into `found` if they are finite."""
    answers = to_numpy(pure_jit("the loss", _REMEDY, examine)(*arguments))
    grad, output = answers["batch"]
    require.finite(output, "LossOutput")
    require.finite(grad, "the gradient of the loss")
    found.update(answers)
    lowest = output.priority.min()
    wrong = f"a priority is {lowest:.3g}: it must not be negative; take jnp.abs of it"
    require.that(lowest >= 0, wrong)
    require.that(find_size(grad) > 0, "no gradient reaches the online network's weights (params)")
    return "same bits"


def _check_eager(loss: Callable[..., Any], arguments: tuple[Any, ...], found: Any) -> str:
    wrong = (
        "eager and compiled give different losses ({}); what Python decides is decided once, when "
        "it is compiled: jnp.where in its place"
    )
    _compare(to_numpy(loss(*arguments)), found["alone"], wrong)
    wrong = (
        "one transition alone and in a batch have different losses ({}); write the loss for ONE "
        "transition: no mean over a batch, no state outside"
    )
    return _compare(found["alone"], take_first(found["batch"][1]), wrong)


def _compare(one: Any, other: Any, wrong: str) -> str:
    """Returns the largest relative difference of two trees; fails beyond what rounding leaves."""
    largest = 0.0
    for path, x, y in pair_leaves(one, other):
        scale = 1e-2 + np.abs(x).max(initial=0)
        difference = float(np.abs(np.float64(x) - y).max(initial=0) / scale)
        largest, measured = max(largest, difference), f"{difference:.1e}"
        expect(difference < 1e-3, measured, wrong.format(f"{path} by a share of {measured}"))
    return f"{largest:.1e}"
