"""One round of runs on the devices: trained chunk by chunk, evaluated, kept and taken up again.

A run is a function of its config, its seed and the width (runs per device program). Neither the
runs beside it, nor its slot, nor the number of devices, nor the chunking changes a bit of it; nor
does an interruption, when it goes on from what was kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from purejaxdqn.engine.programs import Programs
from purejaxdqn.engine.run import Run
from purejaxdqn.training.diagnostics import effective_rank
from purejaxdqn.training.loop import ChunkOutputs
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ArrayTree, Params, TrainState

_CHUNK_SECONDS = 0.5  # a signal is heard only between chunks


class Games(NamedTuple):
    """Training episodes of one run, in the order in which they ended.

    Attributes:
      step: `[G]` environment steps of the run when the episode ended.
      episode_return: `[G]` undiscounted returns.
    """

    step: np.ndarray
    episode_return: np.ndarray


class Kept(NamedTuple):
    """Everything that a round needs to go on, on the host; arrays have an entry per slot `[slots]`.

    Attributes:
      step: environment steps of each run so far.
      state: `TrainState`.
      params_before: the weights at the evaluation before, for diagnostics; None without.
      window: the sums since then.
    """

    step: int
    state: TrainState
    params_before: Params
    window: dict[str, np.ndarray]


class Event(NamedTuple):
    """What `train_round` says after a chunk and at each evaluation; arrays have an entry per run.

    Attributes:
      step: environment steps of each run so far.
      train_seconds: seconds of training since the event before.
      evaluation_seconds: seconds of evaluation since the event before.
      training_return: `[n]` mean return of the training episodes that ended since the
        evaluation before, NaN if none.
      games: per run, the training episodes that ended since the event before; those of the
        prefill are not among them.
      episode_return: `[n, N]` greedy returns, or None where nothing was evaluated.
      metrics: `[n]` the learner's metrics, means since the evaluation before; and the
        diagnostics, if there are any.
      params: the weights, where something was evaluated.
      kept: after a chunk, what the round would go on from: to be read before the next event.
    """

    step: int
    train_seconds: float
    evaluation_seconds: float
    training_return: np.ndarray
    games: list[Games]
    episode_return: np.ndarray | None
    metrics: dict[str, np.ndarray]
    params: Params
    kept: Kept | None = None


def evaluation_steps(config: RunConfig) -> list[int]:
    """The steps at which a run is evaluated: before learning, at each interval, and at the end."""
    first = config.prefill_steps
    multiples = range(config.eval_interval, config.total_steps, config.eval_interval)
    return [first, *(step for step in multiples if step > first), config.total_steps]


def train_round(
    programs: Programs,
    config: RunConfig,
    runs: Sequence[Run],
    steps: Sequence[int] | None = None,
    kept: Kept | None = None,
    wanted: Callable[[], np.ndarray] | None = None,
) -> Iterator[Event]:
    """Trains one round of runs, at most as many as there are slots, an event at a time.

    Args:
      programs: compiled for the config.
      config: the settings that all runs share.
      runs: the runs.
      steps: at which to evaluate, in environment steps; `evaluation_steps(config)` by default.
        Training ends at the last one. Beyond `config.total_steps` the schedules stay at their ends.
      kept: where to go on from; from the start by default.
      wanted: asked before each chunk which runs are still wanted, `[n]` bool; by default all are. A
        device of whose runs none is stands still, and what events say of these is void from then
        on; the round ends where none is wanted at all. No bit of the others changes.

    Yields:
      An `Event` for each chunk and each evaluation.
    """
    plan, num_runs = programs.plan, len(runs)
    # Slots without a run of their own repeat the last one; devices without a run stand still.
    slots = [*runs, *[runs[-1]] * (plan.slots_per_round - num_runs)]
    configs = jax.tree.map(
        lambda *values: programs.place(np.array(values, np.float32)), *[run.config for run in slots]
    )
    seeds = programs.place(np.array([run.seed for run in slots], np.uint32))

    def to_host(tree: ArrayTree) -> ArrayTree:
        return jax.tree.map(lambda x: np.array(x[:num_runs]), jax.device_get(tree))

    def diagnose(params_before: Params) -> dict[str, np.ndarray]:
        if programs.diagnose is None:
            return {}
        before = state.learner.params if params_before is None else params_before
        values = to_host(programs.diagnose(configs, state, before, seeds, np.int32(step)))
        # The threads of NumPy's BLAS wait for each other: for seconds, where the cores are busy.
        with threadpool_limits(limits=1, user_api="blas"):
            values["effective_rank"] = effective_rank(values.pop("features"))
        if params_before is None:  # nothing has changed that could be counted
            values["policy_churn"] = np.full(num_runs, np.nan, np.float32)
        return values

    def active() -> np.ndarray:
        """Which devices have a run that is wanted, `[devices]`."""
        by_slot = np.zeros(plan.slots_per_round, bool)
        by_slot[:num_runs] = True if wanted is None else wanted()
        return np.asarray(by_slot.reshape(plan.num_devices, plan.width).any(axis=1))

    lap = _Lap()
    if kept is None:
        state = jax.block_until_ready(programs.init(configs, seeds))
        kept = Kept(config.prefill_steps, state, None, {})
    step, state, params_before, sums = kept
    window = Window(sums)
    iterations = 1  # the first chunk is short: nothing is known of the speed yet
    # What is kept comes from between two evaluations, or from right before one.
    for next_step in [at for at in steps or evaluation_steps(config) if at >= step]:
        while step < next_step:
            running = active()
            if not running.any():
                return
            left = (next_step - step) // config.steps_per_update
            iterations = min(iterations, left, programs.max_iterations)
            counts = programs.place(np.where(running, iterations, 0).astype(np.int32))
            state, outputs = programs.chunk(configs, state, counts)
            outputs = jax.tree.map(lambda x, n=iterations: x[:, :n], to_host(outputs))
            window.add(outputs)
            games = _games(outputs.episode_return, step)
            step += iterations * config.steps_per_update
            seconds = lap()
            yield Event(
                step,
                seconds,
                0.0,
                window.training_return(num_runs),
                games,
                None,
                {},
                None,
                Kept(step, state, params_before, window.sums),
            )
            lap()
            # Double at most, so that one quick chunk does not make the next one long.
            iterations = max(1, min(2 * iterations, int(iterations * _CHUNK_SECONDS / seconds)))
        params = state.learner.params
        train_seconds = lap()
        episode_return = to_host(programs.evaluate(configs, params, seeds, np.int32(step)))
        diagnostics = diagnose(params_before)
        if programs.diagnose is not None:
            params_before = jax.tree.map(jnp.copy, params)  # a chunk donates its state
        yield Event(
            step,
            train_seconds,
            lap(),
            window.training_return(num_runs),
            [],
            episode_return,
            window.metrics() | diagnostics,
            to_host(params),
        )
        window = Window({})
        lap()


def _games(episode_return: np.ndarray, step: int) -> list[Games]:
    """The episodes in a chunk's outputs `[n, iterations, k, E]` that began after `step` steps."""
    num_envs = episode_return.shape[-1]
    games = []
    for returns in episode_return.reshape(len(episode_return), -1):
        (ended,) = np.nonzero(~np.isnan(returns))
        games.append(Games(step + (ended // num_envs + 1) * num_envs, returns[ended]))
    return games


class _Lap:
    """A stopwatch: each call gives the seconds since the one before."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last


_RETURN, _EPISODES, _ITERATIONS = "episode_return/sum", "episode_return/count", "iterations"


class Window:
    """Sums over what happened since the last evaluation.

    In float64 and in order, so that chunking changes no bit.

    Args:
      sums: `[n]` each, by name; those of an earlier window to go on from it.
    """

    def __init__(self, sums: Mapping[str, np.ndarray]) -> None:
        self._sums = dict(sums)

    @property
    def sums(self) -> dict[str, np.ndarray]:
        """`[n]` float64 each, by name."""
        return dict(self._sums)

    def add(self, outputs: ChunkOutputs) -> None:
        """Takes the rows `[n, iterations, ...]` that were run."""
        num_runs, iterations = outputs.episode_return.shape[:2]
        returns = np.asarray(outputs.episode_return).reshape(num_runs, -1)
        ended = ~np.isnan(returns)
        self._add(_EPISODES, ended.sum(axis=1, keepdims=True))
        self._add(_RETURN, np.where(ended, returns, 0.0))
        self._add(_ITERATIONS, np.full((num_runs, 1), iterations))
        for name, rows in outputs.metrics.items():
            self._add(name, np.asarray(rows))

    def _add(self, name: str, rows: np.ndarray) -> None:
        """Adds each column of `rows [n, M]` in turn; `sum` would pair them up."""
        total = self._sums.get(name, np.zeros(len(rows)))
        columns = np.column_stack([total, rows]).astype(np.float64)
        self._sums[name] = np.add.accumulate(columns, axis=1)[:, -1]

    def training_return(self, num_runs: int) -> np.ndarray:
        """`[n]`, NaN where no episode has ended."""
        count = self._sums.get(_EPISODES, np.zeros(num_runs))
        total = self._sums.get(_RETURN, np.zeros(num_runs))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def metrics(self) -> dict[str, np.ndarray]:
        """`[n]` each."""
        own = (_RETURN, _EPISODES, _ITERATIONS)
        return {
            name: total / self._sums[_ITERATIONS]
            for name, total in self._sums.items()
            if name not in own
        }
