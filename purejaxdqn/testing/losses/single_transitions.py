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

NUM_CASES = 48
_SETTLING_STEPS = 160
FAST_COMPILE = {"xla_backend_optimization_level": 1}


class Cases(NamedTuple):
    """`N` transitions, each between two observations of its own.

    Attributes:
      online: `[N, 2, A]` the online network's values at `obs_tm1` and at `obs_t`.
      target: `[N, 2, A]` the target network's.
      a_tm1: `[N]` int32.
      r_t: `[N]`.
      discount_t: `[N]`.
    """

    online: np.ndarray
    target: np.ndarray
    a_tm1: np.ndarray
    r_t: np.ndarray
    discount_t: np.ndarray

    def shift(self, **fields: np.ndarray | float) -> Cases:
        """Adds to fields: `q_tm1`, `q_t`, `q_t_selector`, `target_q_tm1` or `r_t`."""
        online, target = self.online.copy(), self.target.copy()
        rows = {
            "q_tm1": online[:, 0],
            "q_t_selector": online[:, 1],
            "target_q_tm1": target[:, 0],
            "q_t": target[:, 1],
        }
        r_t = self.r_t
        for name, by in fields.items():
            if name == "r_t":
                r_t = r_t + by
            else:
                rows[name] += np.reshape(by, (*np.shape(by), *(1,) * (2 - np.ndim(by))))
        return self._replace(online=online, target=target, r_t=r_t)

    def terminate(self) -> Cases:
        """Ends the episode in each case."""
        return self._replace(discount_t=0 * self.discount_t)

    def equate_networks(self) -> Cases:
        """Sets the online network's values to the target network's."""
        return self._replace(online=self.target)

    def read_predictions(self) -> np.ndarray:
        """Returns `[N]` the online network's values of the actions taken."""
        return self.online[np.arange(len(self.r_t)), 0, self.a_tm1]


def draw_cases(num: int, num_actions: int) -> Cases:
    """Draws cases in which all values differ, and so do the greedy actions: the same each time."""
    rng = np.random.default_rng(2)
    online, target = rng.uniform(-2, 2, (2, num, 2, num_actions))
    a_tm1 = (np.arange(num) % num_actions).astype(np.int32)
    return Cases(online, target, a_tm1, rng.uniform(-1, 1, num), rng.uniform(0.3, 0.95, num))


class Answers(NamedTuple):
    """A loss and its gradients in `N` cases.

    Attributes:
      loss: `[N]`.
      priority: `[N]`.
      grad: `[N, 2, A, ...]` of the online network's table.
      target_grad: `[N, 2, A, ...]` of the target network's.
      pull: `[N]` of each case.
    """

    loss: np.ndarray
    priority: np.ndarray
    grad: np.ndarray
    target_grad: np.ndarray
    pull: np.ndarray


class Subject(NamedTuple):
    """A loss that is checked: what is declared of it, and how it answers to cases.

    Attributes:
      loss_fn: the loss.
      table: the kind of network that it works with.
      fixed_point: what it is declared to converge to; None where that is not judged.
      bootstrap: the network whose values at time t are in the target.
      learns_other_actions: as `check_loss` has it.
      learns_next_obs: as `check_loss` has it.
      evaluate: `(Cases, dtype=float64, scale=1, nudge=0, outputs=None) -> Answers`; `scale`
        multiplies the tables, `nudge` `[N, 2, A, ...]` is added to the online network's; with
        `outputs` `[N, 2, A, ...]` both networks are these tables.
      settle: `Cases -> [N]` the value of `a_tm1` at which the loss settles: its target,
        whatever its penalty.
      settle_outputs: `(Cases, tables [N, 2, A, ...]) -> [N, ...]` the network's output for `a_tm1`
        in the end, where both networks are these tables and not those of the cases' values.
      cases: cases in which all values differ.
      answers: to these cases.
      settled: `[N]` the targets of these cases.
    """

    loss_fn: LossFn[Any]
    table: Table
    fixed_point: FixedPoint | None
    bootstrap: Bootstrap
    learns_other_actions: bool
    learns_next_obs: bool
    evaluate: Callable[..., Answers]
    settle: Callable[[Cases], np.ndarray]
    settle_outputs: Callable[[Cases, np.ndarray], np.ndarray]
    cases: Cases
    answers: Answers
    settled: np.ndarray


def make_subject(
    loss_fn: LossFn[Any],
    table: Table,
    fixed_point: FixedPoint | None,
    bootstrap: Bootstrap,
    learns_other_actions: bool,
    learns_next_obs: bool,
) -> Subject:
    """Compiles a loss with tables for networks, and evaluates it: see `Subject`."""
    network = table.network
    obs_tm1, obs_t = np.eye(2, dtype=np.float32)

    def loss(
        online: Array, target: Array, key: Array, a_tm1: Array, r_t: Array, discount_t: Array
    ) -> tuple[Array, Array]:
        transition = Transition(jnp.asarray(obs_tm1), a_tm1, r_t, discount_t, jnp.asarray(obs_t))
        output = loss_fn(network, online, target, transition, key)
        return output.loss, output.priority

    def answer(online: Array, target: Array, key: Array, *scalars: Array) -> Answers:
        (found, priority), (grad, target_grad) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(online, target, key, *scalars)
        pull = -jnp.sum(grad[0, scalars[0]] * table.pull.astype(grad.dtype))
        return Answers._make((found, priority, grad, target_grad, pull))

    def settle(online: Array, target: Array, key: Array, *scalars: Array) -> tuple[Array, Array]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            state, online = carry
            grad = jax.grad(loss, has_aux=True)(online, target, key, *scalars)[0]
            moved = jnp.zeros_like(grad).at[0].set(grad[0])  # values at obs_t are held fixed
            return table.descend(state, online, moved), None

        start = (table.init(online, jnp.full((), 0.1)), online)
        (_, online), _ = jax.lax.scan(step, start, length=_SETTLING_STEPS)
        values = network.action_values(network.apply(online, jnp.asarray(obs_tm1)))
        return values[scalars[0]], online[0, scalars[0]]

    evaluate, settle_both = (_map_over_cases(f, table) for f in (answer, settle))
    cases = draw_cases(NUM_CASES, NUM_ACTIONS)
    return Subject(
        loss_fn,
        table,
        fixed_point,
        bootstrap,
        learns_other_actions,
        learns_next_obs,
        evaluate,
        lambda cases: settle_both(cases)[0],
        lambda cases, tables: settle_both(cases, outputs=tables)[1],
        cases,
        evaluate(cases),
        settle_both(cases)[0],
    )


def _map_over_cases(function: Callable[..., Any], table: Table) -> Callable[..., Any]:
    """Compiles `(online, target, key, a_tm1, r_t, discount_t) -> ...` as a function of `Cases`."""
    program = jax.jit(jax.vmap(function), compiler_options=FAST_COMPILE)

    def run(
        cases: Cases,
        dtype: Any = np.float64,
        scale: float = 1.0,
        nudge: np.ndarray | float = 0.0,
        outputs: np.ndarray | None = None,
    ) -> Any:
        with jax.enable_x64(dtype == np.float64), jax.numpy_rank_promotion("raise"):
            values = (cases.online, cases.target)
            made = [table.from_values(x) if outputs is None else outputs for x in values]
            tables = [(scale * x).astype(dtype) for x in made]
            tables[0] = tables[0] + np.asarray(nudge, dtype)
            scalars = (cases.a_tm1, cases.r_t.astype(dtype), cases.discount_t.astype(dtype))
            keys = jax.random.split(jax.random.key(0), len(cases.r_t))
            return jax.tree.map(np.asarray, program(*tables, keys, *scalars))

    return run
