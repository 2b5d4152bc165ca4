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

from purejaxdqn.testing.fixed_points import Bootstrap, FixedPoint
from purejaxdqn.testing.tabular.decision_processes import NUM_ACTIONS
from purejaxdqn.testing.tabular.table_networks import Table
from purejaxdqn.types import Array, LossFn, Transition

_NUM_CASES = 48
_SETTLING_STEPS = 160
FAST_COMPILE = {"xla_backend_optimization_level": 1}


class Cases(NamedTuple):
    """`N` transitions, each between two observations of its own.

    The online network has the values `q_tm1` at `obs_tm1` and `q_t_selector` at `obs_t`, the target
    network `target_q_tm1` and `q_t`: all `[N, A]`. The others are `[N]`.
    """

    q_tm1: np.ndarray
    q_t_selector: np.ndarray
    target_q_tm1: np.ndarray
    q_t: np.ndarray
    a_tm1: np.ndarray
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

    def set(self, **fields: np.ndarray | float) -> Cases:
        """Sets fields; a number counts in each case."""
        full = {name: np.broadcast_to(x, getattr(self, name).shape) for name, x in fields.items()}
        return self._replace(**full)

    def scale(self, factor: float) -> Cases:
        """Multiplies all values and rewards."""
        values = [factor * x for x in self[:4]]
        return Cases._make((*values, self.a_tm1, factor * self.r_t, self.discount_t))

    def predict(self, values: np.ndarray) -> Cases:
        """Sets the online network's values of the actions taken to `values` `[N]`."""
        q_tm1 = np.where(self.is_taken, values[:, np.newaxis], self.q_tm1)
        return self._replace(q_tm1=q_tm1)

    def equate_networks(self) -> Cases:
        """Sets the online network's values to the target network's."""
        return self._replace(q_tm1=self.target_q_tm1, q_t_selector=self.q_t)

    def make_tables(self, table: Table) -> list[np.ndarray]:
        """Makes both networks' tables `[N, 2, A, ...]`, of outputs at `obs_tm1` and at `obs_t`."""
        online, target = self[:2], self[2:4]
        return [table.from_values(np.stack(values, 1)) for values in (online, target)]


def draw_cases(num: int, num_actions: int) -> Cases:
    """Draws cases in which all values differ, and so do the greedy actions: the same each time."""
    rng = np.random.default_rng(2)
    values = rng.uniform(-2, 2, (2, num, 2, num_actions))
    rows = np.moveaxis(values, 2, 1).reshape(4, num, num_actions)
    a_tm1 = (np.arange(num) % num_actions).astype(np.int32)
    scalars = (a_tm1, rng.uniform(-1, 1, num), rng.uniform(0.3, 0.95, num))
    return Cases._make((*rows, *scalars))


def find_size(x: np.ndarray) -> float:
    """Returns the largest magnitude."""
    return float(np.abs(x).max(initial=0))


class Answers(NamedTuple):
    """A loss, its priority and its pull in `N` cases, all `[N]`, and its gradients.

    `grad` and `target_grad` `[N, 2, A, ...]` are those of the networks' tables, `taken` `[N, ...]`
    is that of the online network's outputs for `a_tm1`.
    """

    loss: np.ndarray
    priority: np.ndarray
    grad: np.ndarray
    target_grad: np.ndarray
    taken: np.ndarray
    pull: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """`[N, A]` the gradient's size at `obs_tm1`."""
        grad = self.grad[:, 0]
        return np.abs(grad).reshape(*grad.shape[:2], -1).max(-1)


class Subject(NamedTuple):
    """A loss that is checked: what `check_loss` was told of it, and how it answers to cases.

    Attributes:
      loss_fn: the loss; `table` is the kind of network that it works with.
      fixed_point: what it is declared to converge to, None where that is not judged; this and the
        next three are as `check_loss` has them.
      evaluate: `(Cases, tables=None, dtype=float64) -> Answers`; tables are those of both networks
        where they are not made of the cases' values.
      settle_both: `(Cases, tables=None) -> (values [N], outputs [N, ...])` of `a_tm1` at which the
        loss settles.
      cases: cases in which all values differ; `answers` and `settled` `[N]` are those to them.
    """

    loss_fn: LossFn[Any]
    table: Table
    fixed_point: FixedPoint | None
    bootstrap: Bootstrap
    learns_other_actions: bool
    learns_next_obs: bool
    evaluate: Callable[..., Answers]
    settle_both: Callable[..., tuple[np.ndarray, np.ndarray]]
    cases: Cases
    answers: Answers
    settled: np.ndarray

    def settle(self, cases: Cases) -> np.ndarray:
        """Finds the value `[N]` at which the loss settles: its target, whatever its penalty."""
        return self.settle_both(cases)[0]

    def pull(self, **shift: np.ndarray | float) -> np.ndarray:
        """Finds the pull `[N]` in the subject's cases, shifted."""
        return self.evaluate(self.cases.shift(**shift)).pull

    def compare(self, one: Cases, other: Cases) -> float:
        """Returns how far the losses of two cases differ, as a share."""
        loss = self.evaluate(one).loss
        return find_size((loss - self.evaluate(other).loss) / (1 + np.abs(loss)))


def make_subject(loss_fn: LossFn[Any], table: Table, *declared: Any) -> Subject:
    """Compiles a loss with tables for networks, and evaluates it.

    What is `declared` are the fields of `Subject` from `fixed_point` to `learns_next_obs`.
    """
    obs_tm1, obs_t = np.eye(2, dtype=np.float32)

    def loss(online: Array, target: Array, key: Array, *scalars: Array) -> tuple[Array, Array]:
        transition = Transition._make((jnp.asarray(obs_tm1), *scalars, jnp.asarray(obs_t)))
        output = loss_fn(table.network, online, target, transition, key)
        return output.loss, output.priority

    def answer(online: Array, target: Array, key: Array, *scalars: Array) -> Any:
        answers, (grad, target_grad) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            online, target, key, *scalars
        )
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
    cases = draw_cases(_NUM_CASES, NUM_ACTIONS)
    known = (cases, evaluate(cases), settle_both(cases)[0])
    return Subject._make((loss_fn, table, *declared, evaluate, settle_both, *known))


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
