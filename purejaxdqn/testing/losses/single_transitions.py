"""Evaluates a loss on single transitions with chosen values, and with tables for networks.

The pull of a loss is how far one gradient step moves the value of the action taken. To settle is to
repeat such steps, with all else held fixed, until the value no longer moves: it is then the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from purejaxdqn.testing.fixed_points import Bootstrap
from purejaxdqn.testing.require import find_size as find_size
from purejaxdqn.testing.tabular.decision_processes import NUM_ACTIONS
from purejaxdqn.testing.tabular.table_networks import Table
from purejaxdqn.types import Array, LossFn, Transition

_NUM_CASES = 48
_SETTLING_STEPS = 160
FAST_COMPILE = {"xla_backend_optimization_level": 1}


class Cases(NamedTuple):
    """`N` transitions, each between two observations of its own."""

    q_tm1: np.ndarray  # [N, A] the online network's values at obs_tm1
    q_t_selector: np.ndarray  # [N, A] and at obs_t
    target_q_tm1: np.ndarray  # [N, A] the target network's at obs_tm1
    q_t: np.ndarray  # [N, A] and at obs_t
    a_tm1: np.ndarray  # [N]
    r_t: np.ndarray
    discount_t: np.ndarray

    @property
    def is_taken(self) -> np.ndarray:
        """`[N, A]` which action is `a_tm1`."""
        return np.arange(self.q_tm1.shape[1]) == self.a_tm1[:, np.newaxis]

    def shift(self, **fields: np.ndarray | float) -> Cases:
        """Adds to fields, a number or `[N]` to the values of all actions alike."""
        moved = {name: (getattr(self, name).T + np.transpose(by)).T for name, by in fields.items()}
        return self._replace(**moved)

    def set(self, **scalars: float) -> Cases:
        """Sets `r_t` or `discount_t` to a number in every case."""
        return self._replace(**{name: np.full_like(self.r_t, x) for name, x in scalars.items()})

    def scale(self, by: float) -> Cases:
        """Multiplies all values and rewards."""
        scalars = (self.a_tm1, by * self.r_t, self.discount_t)
        return Cases._make((*(by * x for x in self[:4]), *scalars))

    def predict(self, values: np.ndarray) -> Cases:
        """Sets the online network's values of the actions taken to `values` `[N]`."""
        return self._replace(q_tm1=np.where(self.is_taken, values[:, np.newaxis], self.q_tm1))

    def equate_networks(self) -> Cases:
        """Sets the online network's values to the target network's."""
        return self._replace(q_tm1=self.target_q_tm1, q_t_selector=self.q_t)

    def make_tables(self, table: Table) -> list[np.ndarray]:
        """Makes both networks' tables `[N, 2, A, ...]`, of outputs at `obs_tm1` and at `obs_t`."""
        return [table.from_values(np.stack(values, 1)) for values in (self[:2], self[2:4])]


def draw_cases(num_actions: int = NUM_ACTIONS) -> Cases:
    """Draws cases in which all values differ, and so do the greedy actions: the same each time."""
    rng, num = np.random.default_rng(2), _NUM_CASES
    rows = rng.uniform(-2, 2, (2, num, 2, num_actions)).swapaxes(1, 2).reshape(4, num, num_actions)
    a_tm1 = np.arange(num, dtype=np.int32) % num_actions
    return Cases._make((*rows, a_tm1, rng.uniform(-1, 1, num), rng.uniform(0.3, 0.95, num)))


class Answers(NamedTuple):
    """How a loss answers to `N` cases."""

    loss: np.ndarray  # [N]
    priority: np.ndarray  # [N]
    grad: np.ndarray  # [N, 2, A, ...] of the online network's table
    target_grad: np.ndarray
    taken: np.ndarray  # [N, ...] of the online network's outputs for a_tm1
    pull: np.ndarray  # [N]

    @property
    def sizes(self) -> np.ndarray:
        """`[N, A]` the gradient's size at `obs_tm1`."""
        grad = self.grad[:, 0]
        return np.abs(grad).reshape(*grad.shape[:2], -1).max(-1)


class Subject(NamedTuple):
    """A loss that is checked: what `check_loss` was told of it, and how it answers to cases."""

    loss_fn: LossFn[Any]
    table: Table  # the kind of network that the loss works with
    fixed_point: Any  # a `FixedPoint`, or None where that is not judged
    bootstrap: Bootstrap
    learns_other_actions: bool
    learns_next_obs: bool
    # Both take cases, and both networks' tables if those are not made of the cases' values.
    evaluate: Callable[..., Answers]
    # -> values [N] and outputs [N, ...] of a_tm1 at which the loss settles
    settle_both: Callable[..., tuple[np.ndarray, np.ndarray]]
    cases: Cases  # `draw_cases`; the last two fields are the loss's answers and values for them
    answers: Answers
    settled: np.ndarray

    def settle(self, cases: Cases) -> np.ndarray:
        """Finds the value `[N]` at which the loss settles: its target, whatever its penalty."""
        return self.settle_both(cases)[0]

    def pull(self, **shift: np.ndarray | float) -> np.ndarray:
        """Finds the pull `[N]` in the subject's cases, shifted."""
        return self.evaluate(self.cases.shift(**shift)).pull

    def compare(self, one: Cases, other: Cases, of: str = "loss", scale: float = 1.0) -> float:
        """Returns how far the losses, or the priorities, of two cases differ, as a share."""
        x, y = (getattr(self.evaluate(cases), of) for cases in (one, other))
        return find_size((x - y) / (scale + np.abs(x)))


def make_subject(loss_fn: LossFn[Any], table: Table, *declared: Any) -> Subject:
    """Compiles a loss; `declared` is what `Subject` has from `fixed_point` to `learns_next_obs`."""
    obs_tm1, obs_t = np.eye(2, dtype=np.float32)

    def loss(online: Array, target: Array, key: Array, *scalars: Array) -> tuple[Array, Array]:
        transition = Transition._make(
            (jnp.asarray(obs_tm1), *scalars, jnp.asarray(obs_t), None, {})
        )
        output = loss_fn(table.network, online, target, transition, key)
        return output.loss, output.priority

    def answer(online: Array, target: Array, key: Array, *scalars: Array) -> Any:
        find_gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)
        answers, (grad, target_grad) = find_gradients(online, target, key, *scalars)
        taken = grad[0, scalars[0]]
        pull = -jnp.sum(taken * table.pull.astype(grad.dtype))
        return Answers._make((*answers, grad, target_grad, taken, pull))

    def settle(online: Array, target: Array, key: Array, *scalars: Array) -> tuple[Array, Array]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            state, online = carry
            grad = jax.grad(loss, has_aux=True)(online, target, key, *scalars)[0]
            moved = jnp.zeros_like(grad).at[0].set(grad[0])  # values at obs_t are held fixed
            return table.descend(state, online, moved), None

        start = (table.init(online, jnp.full((), 0.1)), online)
        (_, online), _ = jax.lax.scan(step, start, length=_SETTLING_STEPS)
        output = table.network.apply(online, jnp.asarray(obs_tm1))
        return table.network.action_values(output)[scalars[0]], online[0, scalars[0]]

    evaluate, settle_both = (_map_over_cases(function, table) for function in (answer, settle))
    cases = draw_cases()
    answers = evaluate(cases)
    scale = _find_scale(answers, cases.make_tables(table)[0], table)
    if np.isfinite(scale) and scale > 0 and not 0.5 < scale < 2:

        def scaled(*args: Any) -> Any:
            output = loss_fn(*args)
            return output._replace(loss=output.loss / scale)

        return make_subject(scaled, table, *declared)
    known = (cases, answers, settle_both(cases)[0])
    return Subject._make((loss_fn, table, *declared, evaluate, settle_both, *known))


def _find_scale(answers: Answers, online: np.ndarray, table: Table) -> float:
    """Finds the factor of a cross-entropy's loss, whose descent needs it to be 1."""
    if table.representation != "categorical":
        return 1.0
    # Its gradient is the factor times (probabilities - target), and most atoms have no target.
    return float(np.max(answers.grad[:, 0] / np.maximum(softmax(online[:, 0], axis=-1), 1e-12)))


def _map_over_cases(function: Callable[..., Any], table: Table) -> Callable[..., Any]:
    """Compiles `(online, target, key, a_tm1, r_t, discount_t) -> ...` as a function of `Cases`."""
    program = jax.jit(jax.vmap(function), compiler_options=FAST_COMPILE)

    def run(cases: Cases, tables: Any = None, dtype: Any = np.float64) -> Any:
        with jax.enable_x64(dtype == np.float64), jax.numpy_rank_promotion("raise"):
            inputs = (*(tables or cases.make_tables(table)), cases.r_t, cases.discount_t)
            online, target, r_t, discount_t = (np.asarray(x, dtype) for x in inputs)
            keys = jax.random.split(jax.random.key(0), len(r_t))
            answers = program(online, target, keys, cases.a_tm1, r_t, discount_t)
            return jax.tree.map(np.asarray, answers)

    return run
