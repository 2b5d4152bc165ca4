"""A loss on single transitions whose values are all chosen: what it says, and where it settles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing.tables import Table
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

    def shifted(self, **fields: np.ndarray | float) -> Cases:
        """With something added to fields: `q_tm1`, `q_t`, `q_t_selector`, `target_q_tm1`, `r_t`."""
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


def random_cases(num: int, num_actions: int) -> Cases:
    """Cases in which all values differ, and so does who is greedy: the same each time."""
    rng = np.random.default_rng(2)
    online, target = rng.uniform(-2, 2, (2, num, 2, num_actions))
    a_tm1 = (np.arange(num) % num_actions).astype(np.int32)
    return Cases(online, target, a_tm1, rng.uniform(-1, 1, num), rng.uniform(0.3, 0.95, num))


class Answers(NamedTuple):
    """What a loss says of `N` cases.

    Attributes:
      loss: `[N]`.
      priority: `[N]`.
      grad: `[N, 2, A, ...]` of the online network's table.
      target_grad: `[N, 2, A, ...]` of the target network's.
      pull: `[N]` how far a gradient step moves the value of the action taken.
    """

    loss: np.ndarray
    priority: np.ndarray
    grad: np.ndarray
    target_grad: np.ndarray
    pull: np.ndarray


class Bench(NamedTuple):
    """A loss with a table for its network, compiled, on cases.

    Attributes:
      answers: `(Cases, dtype=float64, scale=1, nudge=0) -> Answers`; `scale` multiplies the tables,
        `nudge` `[N, 2, A, ...]` is added to the online network's.
      settled: `Cases -> [N]` to which action value of `a_tm1` the loss pulls in the end, all else
        held fixed: its target, whatever its penalty.
      outputs: `(Cases, tables [N, 2, A, ...]) -> [N, ...]` the network's output for `a_tm1` then,
        where both networks are these tables and not those of the cases' values.
    """

    answers: Callable[..., Answers]
    settled: Callable[[Cases], np.ndarray]
    outputs: Callable[[Cases, np.ndarray], np.ndarray]


def make_bench(loss_fn: LossFn[Any], table: Table) -> Bench:
    """Makes the bench of a loss with a kind of table."""
    network = table.network
    obs_tm1, obs_t = np.eye(2, dtype=np.float32)

    def transition(a_tm1: Array, r_t: Array, discount_t: Array) -> Transition:
        return Transition(jnp.asarray(obs_tm1), a_tm1, r_t, discount_t, jnp.asarray(obs_t))

    def loss(online: Array, target: Array, key: Array, *scalars: Array) -> tuple[Array, Array]:
        output = loss_fn(network, online, target, transition(*scalars), key)
        return output.loss, output.priority

    def value(online: Array, a_tm1: Array) -> Array:
        return network.action_values(network.apply(online, jnp.asarray(obs_tm1)))[a_tm1]

    def answer(online: Array, target: Array, key: Array, *scalars: Array) -> Any:
        (found, priority), (grad, target_grad) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(online, target, key, *scalars)
        pull = -jnp.sum(grad[0, scalars[0]] * table.pull.astype(grad.dtype))
        return Answers._make((found, priority, grad, target_grad, pull))

    def settle(online: Array, target: Array, key: Array, *scalars: Array) -> tuple[Array, Array]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            state, online = carry
            grad = jax.grad(loss, has_aux=True)(online, target, key, *scalars)[0]
            moved = jnp.zeros_like(grad).at[0].set(grad[0])  # what is held fixed does not move
            return table.descend(state, online, moved), None

        start = (table.init(online, jnp.full((), 0.1)), online)
        (_, online), _ = jax.lax.scan(step, start, length=_SETTLING_STEPS)
        return value(online, scalars[0]), online[0, scalars[0]]

    def over_cases(function: Callable[..., Any]) -> Callable[..., Any]:
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

    settled = over_cases(settle)
    return Bench(
        over_cases(answer),
        lambda cases: settled(cases)[0],
        lambda cases, tables: settled(cases, outputs=tables)[1],
    )
