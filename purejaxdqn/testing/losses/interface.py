"""Checks that a loss is a `LossFn`: types, purity, the same answer alone and in any batch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.networks import value_network
from purejaxdqn.testing.programs import COMPILABLE, Program, find_types, to_numpy
from purejaxdqn.testing.report import Check, attempt, expect
from purejaxdqn.testing.requirements import (
    NUM_LANES,
    find_largest,
    pair_leaves,
    require,
    require_finite,
    require_float_scalar,
)
from purejaxdqn.testing.tabular.table_networks import TABLES, Table
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

_REMEDY = (
    "It is a function of ONE transition: scalars without a batch axis, mapped over a batch with "
    f"vmap. {COMPILABLE}"
)
_NUM_ACTIONS = 3


def choose_table(loss_fn: LossFn[Any], network: Network[Any] | None) -> Table | None:
    """Chooses the kind of table that a loss works with; None for another representation."""
    if network is not None:
        obs = jnp.zeros(4)  # only the type of the output counts
        try:
            output = jax.eval_shape(
                lambda key: network.apply(network.init(key, obs), obs), jax.random.key(0)
            )
        except Exception:
            output = None
        kinds = {Quantiles: "quantile", Categorical: "categorical"}
        if type(output) in kinds:
            return TABLES[kinds[type(output)]]
    return next((t for t in TABLES.values() if _find_error(loss_fn, t) is None), None)


def _find_error(loss_fn: LossFn[Any], table: Table) -> Exception | None:
    """Returns what a loss raises with a kind of table."""
    obs, key = jnp.eye(2), jax.random.key(0)
    transition = Transition(obs[0], jnp.int32(0), jnp.float32(0), jnp.float32(0.9), obs[1])
    params = jnp.asarray(table.from_values(np.zeros((2, _NUM_ACTIONS))), jnp.float32)
    try:
        jax.eval_shape(lambda *args: loss_fn(table.network, *args), params, params, transition, key)
    except Exception as error:
        return error
    return None


def _make_network(loss_fn: LossFn[Any]) -> Network[Any]:
    """Makes a small network of the representation that a loss works with."""
    table = choose_table(loss_fn, None)
    representation = table.representation if table else "values"
    if table is None:
        # It raises with each of them: the network that has the field it asks for shows why.
        error = str(_find_error(loss_fn, TABLES["values"]))
        asked = re.search(r"has no attribute '(\w+)'", error)
        fields = {"logits": "categorical", "support": "categorical"}
        fields |= dict.fromkeys(Quantiles._fields, "quantile")
        representation = fields.get(asked[1], "values") if asked else "values"
    return value_network(
        _NUM_ACTIONS,
        (16,),
        representation=representation,  # type: ignore[arg-type]
        num_atoms=11,
        v_min=-5.0,
        v_max=5.0,
        num_quantiles=8,
    )


def _draw_transitions() -> Transition:
    rng = np.random.default_rng(0)
    obs_tm1, obs_t = rng.normal(size=(2, NUM_LANES, 4)).astype(np.float32)
    discount_t: Any = np.where(np.arange(NUM_LANES) % 4 == 3, 0.0, 0.99).astype(np.float32)
    a_tm1: Any = rng.integers(0, _NUM_ACTIONS, NUM_LANES, np.int32)
    r_t: Any = rng.normal(size=NUM_LANES).astype(np.float32)
    return Transition(obs_tm1, a_tm1, r_t, discount_t, obs_t)


class _Problem(NamedTuple):
    """A loss with arguments for it; `batch` and `keys` have a leading axis `[B]`."""

    loss: Callable[..., LossOutput]  # without its argument network
    params: Params
    target_params: Params
    batch: Any  # a Transition of NumPy arrays
    keys: Array
    order: np.ndarray  # [B] another order of the batch

    def one(self) -> Transition:
        """Returns the first transition alone."""
        return jax.tree.map(lambda x: jnp.asarray(x[0]), self.batch)

    def arguments(self) -> tuple[Any, ...]:
        """Returns the loss's arguments for the first transition alone."""
        return self.params, self.target_params, self.one(), self.keys[0]


def check_interface(
    loss_fn: LossFn[Any],
    network: Network[Any] | None,
    transitions: Transition | None,
    learns_next_obs: bool,
) -> list[Check]:
    """Makes the rows on a loss's interface; the arguments are those of `check_loss`.

    The first row says whether it takes one transition; without that there is no other.
    """
    network = network or _make_network(loss_fn)
    batch = jax.tree.map(np.asarray, transitions or _draw_transitions())
    key, init_key, target_key = jax.random.split(jax.random.key(0), 3)
    init = jax.jit(network.init)
    params, target_params = (init(k, batch.obs_tm1[0]) for k in (init_key, target_key))
    problem = _Problem(
        lambda *args: loss_fn(network, *args),
        params,
        target_params,
        batch,
        jax.random.split(key, len(batch.r_t)),
        np.random.default_rng(1).permutation(len(batch.r_t)),
    )
    output = network.apply(params, jnp.asarray(batch.obs_tm1[0]))
    num_actions = network.action_values(output).shape[0]
    checks = [attempt("takes one transition", lambda: _check_types(problem, num_actions))]
    if not checks[0].passed:
        return checks
    found: dict[str, Any] = {}
    checks.append(attempt("same arguments, same answer", lambda: _check_purity(problem, found)))
    if not found:
        return checks
    rows = {
        "eager, jitted and vmapped agree": lambda: _check_eager(problem, found),
        "the order of the batch": lambda: _check_order(problem, found),
        "a terminal transition ignores obs_t": lambda: _check_terminal(found),
    }
    if learns_next_obs:
        del rows["a terminal transition ignores obs_t"]
    return [*checks, *(attempt(name, look) for name, look in rows.items())]


def _check_types(problem: _Problem, num_actions: int) -> str:
    # An index that is out of range would be clamped without a word.
    highest = int(problem.batch.a_tm1.max())
    require(
        highest < num_actions,
        f"a_tm1 reaches {highest}, but the network has {num_actions} actions: pass the network and "
        "the transitions that belong together",
    )
    output = find_types("the loss of one transition", _REMEDY, problem.loss, *problem.arguments())
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
    return f"{output.loss.dtype}[]"


def _examine(problem: _Problem, params: Params, target_params: Params, keys: Array) -> Any:
    """Computes `{variant of the batch: (outputs, gradient)}`, and the output of one alone."""
    loss, batch, order = problem.loss, problem.batch, problem.order
    over_batch = jax.vmap(loss, in_axes=(None, None, 0, 0))

    def gradient(batch: Transition, keys: Array) -> Any:
        def mean_loss(params: Params) -> tuple[Array, LossOutput]:
            output = over_batch(params, target_params, batch, keys)
            return jnp.mean(output.loss), output

        grad, output = jax.grad(mean_loss, has_aux=True)(params)
        return output, grad

    ended = batch._replace(discount_t=np.zeros_like(batch.discount_t))
    variants = {
        "batch": batch,
        "ordered": jax.tree.map(lambda x: x[order], batch),
        "ended": ended,
        # Nothing follows an end, so that obs_t may be anything.
        "elsewhere": ended._replace(obs_t=np.roll(batch.obs_t, 1, axis=0)),
    }
    same = order * 0 + np.arange(len(order))
    orders = np.stack([same, order, same, same])
    found = jax.vmap(gradient)(
        jax.tree.map(lambda *x: np.stack(x), *variants.values()), jax.random.clone(keys)[orders]
    )
    split = {name: jax.tree.map(lambda x, i=i: x[i], found) for i, name in enumerate(variants)}
    return {"alone": loss(params, target_params, problem.one(), keys[0]), **split}


def _check_purity(problem: _Problem, found: dict[str, Any]) -> str:
    """Checks the answers; puts what `_examine` gives into `found` if they are finite."""

    def examine(params: Params, target_params: Params, keys: Array) -> Any:
        return _examine(problem, params, target_params, keys)

    program = Program("the loss", _REMEDY, examine)
    answers = to_numpy(program(problem.params, problem.target_params, problem.keys))
    output, grad = answers["batch"]
    require_finite(output, "LossOutput")
    require_finite(grad, "the gradient of the loss")
    found.update(answers)
    lowest = output.priority.min()
    require(lowest >= 0, f"a priority is {lowest:.3g}: it must not be negative; take jnp.abs of it")
    require(find_largest(grad) > 0, "no gradient reaches the online network's weights (params)")
    return "same bits"


def _check_eager(problem: _Problem, found: dict[str, Any]) -> str:
    _compare(
        to_numpy(problem.loss(*problem.arguments())),
        found["alone"],
        "eager and compiled give different losses",
        "what Python decides is decided once, when it is compiled: jnp.where in its place",
    )
    return _compare(
        found["alone"],
        jax.tree.map(lambda x: x[0], found["batch"][0]),
        "one transition alone and in a batch have different losses",
        "write the loss for ONE transition: no mean over a batch, no state outside",
    )


def _check_order(problem: _Problem, found: dict[str, Any]) -> str:
    output, grad = found["batch"]
    return _compare(
        (jax.tree.map(lambda x: x[problem.order], output), grad),
        found["ordered"],
        "the order of the batch changes the loss or its gradient",
        "the loss of a transition must not depend on its place in the batch",
    )


def _check_terminal(found: dict[str, Any]) -> str:
    return _compare(
        found["ended"],
        found["elsewhere"],
        "with discount_t = 0 (a terminated episode) the loss, the priority or the gradient "
        "depends on obs_t: a terminal transition bootstraps",
        "multiply everything that comes from obs_t by discount_t. For a loss that is meant to "
        "learn from it all the same: learns_next_obs=True",
    )


def _compare(one: Any, other: Any, message: str, remedy: str) -> str:
    """Returns the largest relative difference of two trees; fails beyond what rounding leaves."""
    largest_difference = 0.0
    for path, x, y in pair_leaves(one, other):
        scale = 1e-2 + np.abs(x).max(initial=0)
        difference = float(np.abs(np.float64(x) - y).max(initial=0) / scale)
        largest_difference = max(largest_difference, difference)
        measured = f"{difference:.1e}"
        expect(
            difference < 1e-3, measured, f"{message} ({path} by a share of {measured}); {remedy}"
        )
    return f"{largest_difference:.1e}"
