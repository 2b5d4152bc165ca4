"""Trains one round of runs on the devices, chunk by chunk, and records its numbers.

A run is a function of its config, its seed and the width: no neighbour, slot, device, chunk or
interruption changes a bit of it.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from purejaxdqn.engine.programs import Programs, Run, max_iterations_of
from purejaxdqn.training.diagnostics import compare_with_optimal, effective_rank
from purejaxdqn.training.loop import ChunkOutputs
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ArrayTree, Params, TrainState

_CHUNK_SECONDS = 0.5  # signals are handled between chunks
_FORECAST_SECONDS = 1.0  # of training, from which a forecast is made


class Games(NamedTuple):
    """Training episodes of one run, in the order in which they ended."""

    step: np.ndarray  # [G] environment steps of the run when the episode ended
    episode_return: np.ndarray  # [G] undiscounted returns


class Kept(NamedTuple):
    """Everything that one round needs to go on; arrays have an entry per slot `[slots]`.

    The state stays on the devices. A sweep's `Paused` is the copy of one batch of it on the host.
    """

    step: int  # environment steps of each run so far
    state: TrainState
    params_before: Params  # the weights at the last evaluation, for diagnostics; None without
    window: dict[str, np.ndarray]  # sums of the training numbers since then, [n] float64


class Event(NamedTuple):
    """The numbers of a round after a chunk, or at an evaluation; arrays have an entry per run."""

    step: int  # environment steps of each run so far
    train_seconds: float  # since the event before
    evaluation_seconds: float  # since the event before
    training_return: np.ndarray  # [n] mean of training episodes since the last evaluation, or NaN
    games: list[Games]  # per run, those that ended since the event before, without the prefill's
    episode_return: np.ndarray | None  # [n, N] greedy returns; None after a chunk
    metrics: dict[str, np.ndarray]  # [n] means of the learner's, diagnostics; {} after a chunk
    params: Params  # the weights; None after a chunk
    kept: Kept | None = None  # after a chunk; to be read before the next event
    longest: int = 0  # steps of the longest greedy episode


def evaluation_steps(config: RunConfig) -> list[int]:
    """Lists the steps of a run's evaluations: before learning, at each interval, and at the end."""
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
    """Trains at most as many runs as there are slots; yields events of chunks and evaluations.

    Args:
      programs: compiled for the config.
      config: the settings that all runs share.
      runs: with seeds and settings of their own.
      steps: at which to evaluate, in environment steps; `evaluation_steps(config)` by default.
        Training ends at the last one. Beyond `config.total_steps` the schedules stay at their ends.
      kept: where to go on from; from the start by default.
      wanted: asked before each chunk which runs are still wanted, `[n]` bool; by default all are. A
        device without a wanted run stands still, and its runs' numbers in later events are
        meaningless. The round ends when no run is wanted. No bit of the others changes.
    """
    wanted = wanted or functools.partial(np.ones, len(runs), bool)
    plan, padding = programs.plan, programs.plan.slots_per_round - len(runs)
    trained = _Round(programs, config, runs, kept)
    iterations = 1  # the first chunk is short, because the speed is not known yet
    # A checkpoint lies before the evaluation at its own step, so that one is still to be done.
    for next_step in [at for at in steps or evaluation_steps(config) if at >= trained.step]:
        while trained.step < next_step:
            by_slot = np.pad(wanted(), (0, padding))
            active = np.asarray(by_slot.reshape(plan.num_devices, plan.width).any(axis=1))
            if not active.any():
                return
            left = (next_step - trained.step) // config.steps_per_update
            iterations = min(iterations, left, max_iterations_of(config))
            event = trained.train_chunk(active, iterations)
            yield event
            trained.lap()
            # Double at most, so that one quick chunk does not make the next one long.
            wished = int(iterations * _CHUNK_SECONDS / event.train_seconds)
            iterations = max(1, min(2 * iterations, wished))
        yield trained.evaluate()
        trained.lap()


class Forecast(NamedTuple):
    """The seconds that the parts of a round take."""

    begin: float  # until the first step that is learned from, with the evaluation before it
    evaluation: float
    step: float  # of all runs together

    def seconds_left(self, config: RunConfig, step: int | None = None) -> float:
        """Computes the seconds of a round, or those that are left of it at a step."""
        at = config.prefill_steps if step is None else step
        later = [one for one in evaluation_steps(config)[1:] if one >= at]
        seconds = (config.total_steps - at) * self.step + len(later) * self.evaluation
        return seconds + (self.begin if step is None else 0.0)


def forecast_round(programs: Programs, config: RunConfig, runs: Sequence[Run]) -> Forecast:
    """Trains a round for about a second, evaluates it, and forecasts how long the whole takes."""
    events = train_round(programs, config, runs)
    first, chunks, evaluations, kept = next(events), [], [], None
    begin, step = time.perf_counter(), config.prefill_steps
    for event in events:
        if event.kept is not None:
            chunks.append((event.step - step, event.train_seconds))
            step, kept = event.step, event.kept
        else:
            evaluations.append(event.evaluation_seconds)
        if time.perf_counter() - begin > _FORECAST_SECONDS:
            break
    evaluated = next(train_round(programs, config, runs, [step], kept))
    if step < config.total_steps:  # most of the time of a short chunk is not spent in training
        chunks = [one for one in chunks if 4 * one[0] >= max(chunks)[0]]
    steps, seconds = np.sum(chunks, axis=0)
    begin_seconds = first.train_seconds + first.evaluation_seconds
    # What is to come lies half way between episodes as they are now and as long as they may get.
    later = evaluated.evaluation_seconds * (1 + programs.max_steps / evaluated.longest) / 2
    seen = np.mean([*evaluations, evaluated.evaluation_seconds])
    unseen = (config.total_steps - step) / (config.total_steps - config.prefill_steps)
    evaluation_seconds = float(seen + unseen * (later - seen))
    return Forecast(begin_seconds, evaluation_seconds, float(seconds / steps))


class _Round:
    """The state of a round on the devices; slots without a run of their own repeat the last run."""

    def __init__(
        self, programs: Programs, config: RunConfig, runs: Sequence[Run], kept: Kept | None
    ) -> None:
        self._last_lap = time.perf_counter()
        self._programs, self._num_runs = programs, len(runs)
        self._steps_per_update = config.steps_per_update
        slots = [*runs, *[runs[-1]] * (programs.plan.slots_per_round - len(runs))]
        configs = jax.tree.map(lambda *x: np.array(x, np.float32), *[run.config for run in slots])
        self._configs = programs.place(configs)
        self._seeds = programs.place(np.array([run.seed for run in slots], np.uint32))
        if kept is None:
            state = jax.block_until_ready(programs.init(self._configs, self._seeds))
            kept = Kept(config.prefill_steps, state, None, {})
        self.step, self._state, self._params_before, self._window = kept

    def lap(self) -> float:
        """Returns the seconds since the call before, or since the beginning."""
        last, self._last_lap = self._last_lap, time.perf_counter()
        return self._last_lap - last

    def train_chunk(self, active: np.ndarray, iterations: int) -> Event:
        """Trains the `active [devices]` for some iterations; the others stand still."""
        counts = self._programs.place(np.where(active, iterations, 0).astype(np.int32))
        self._state, outputs = self._programs.chunk(self._configs, self._state, counts)
        by_run = [jax.tree.map(lambda x: x[:iterations], one) for one in self._split_runs(outputs)]
        self._window = _add_outputs(self._window, by_run)
        games = [_find_ended_episodes(one.episode_return, self.step) for one in by_run]
        self.step += iterations * self._steps_per_update
        kept = Kept(self.step, self._state, self._params_before, self._window)
        returns = self._training_return()
        return Event(self.step, self.lap(), 0.0, returns, games, None, {}, None, kept)

    def evaluate(self) -> Event:
        """Evaluates the greedy policies, measures the diagnostics, and begins a new window."""
        train_seconds, params = self.lap(), self._state.learner.params
        step = np.int32(self.step)
        stats = self._to_host(
            self._programs.evaluate(self._configs, self._state, self._seeds, step)
        )
        returns, longest = stats.episode_return, int(stats.length.max())
        metrics = _find_means(self._window)
        if self._programs.diagnose is not None:
            metrics |= self._diagnose(self._programs.diagnose, step)
            self._params_before = jax.tree.map(jax.numpy.copy, params)  # a chunk donates its state
        seconds, training_return = (train_seconds, self.lap()), self._training_return()
        self._window = {}
        return Event(
            self.step,
            *seconds,
            training_return,
            [],
            returns,
            metrics,
            self._to_host(params),
            longest=longest,
        )

    def _diagnose(self, diagnose: Callable[..., Any], step: np.int32) -> dict[str, np.ndarray]:
        """Measures the diagnostics `[n]` by name."""
        is_first = self._params_before is None
        before = self._state.learner.params if is_first else self._params_before
        measured = diagnose(self._configs, self._state, before, self._seeds, step)
        values: dict[str, np.ndarray] = self._to_host(measured)
        # The threads of NumPy's BLAS wait for each other: for seconds, if the cores are busy.
        with threadpool_limits(limits=1, user_api="blas"):
            values["effective_rank"] = effective_rank(values.pop("features"))
            if (optimal_values := self._programs.optimal_values) is not None:
                table, discounts = values.pop("table"), values.pop("discount").tolist()
                optimal = np.stack([optimal_values(discount) for discount in discounts])
                values |= compare_with_optimal(table, optimal)
        if is_first:  # there are no two evaluations to compare yet
            values["policy_churn"] = np.full(self._num_runs, np.nan, np.float32)
        return values

    def _training_return(self) -> np.ndarray:
        """Computes the mean return `[n]` of the episodes that ended, NaN where none has."""
        none = np.zeros(self._num_runs)
        count, total = (self._window.get(name, none) for name in (_EPISODES, _RETURN))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def _split_runs(self, tree: ArrayTree) -> list[Any]:
        """Lists the trees of the runs on the host; on a CPU they are views of what is there."""
        structure = jax.tree.structure(tree)
        return [
            jax.tree.unflatten(structure, rows)
            for leaves in self._programs.split(tree)
            for rows in zip(*leaves, strict=True)
        ][: self._num_runs]

    def _to_host(self, tree: ArrayTree) -> ArrayTree:
        """Copies the rows of the runs `[n, ...]` to the host, once: `device_get` keeps a copy."""
        by_device = zip(*self._programs.split(tree), strict=True)
        rows = [np.concatenate(parts)[: self._num_runs] for parts in by_device]
        return jax.tree.unflatten(jax.tree.structure(tree), rows)


def _find_ended_episodes(episode_return: Any, step: int) -> Games:
    """Finds the episodes in the outputs `[iterations, k, E]` of a chunk that began at `step`."""
    returns, num_envs = episode_return.ravel(), episode_return.shape[-1]
    (ended,) = np.nonzero(~np.isnan(returns))
    return Games(step + (ended // num_envs + 1) * num_envs, returns[ended])


_RETURN, _EPISODES, _ITERATIONS = "episode_return/sum", "episode_return/count", "iterations"
_TAKEN = "/count"  # behind a name, how often that was measured; no metric's own name has a slash
_COUNTS = (_RETURN, _EPISODES, _ITERATIONS)  # in a window, beside the learner's metrics


def _find_means(window: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Computes the means `[n]` by name of a window, NaN of what was never measured in it."""
    names = [name for name in window if name not in _COUNTS and not name.endswith(_TAKEN)]
    counts = {name: window.get(name + _TAKEN, window[_ITERATIONS]) for name in names}
    with np.errstate(invalid="ignore"):
        return {name: window[name] / count for name, count in counts.items()}


def _add_outputs(
    window: Mapping[str, np.ndarray], by_run: Sequence[ChunkOutputs]
) -> dict[str, np.ndarray]:
    """Adds the outputs of a chunk, a run at a time, to the sums since the last evaluation."""
    sums = [
        _add_run({name: values[i] for name, values in window.items()}, outputs)
        for i, outputs in enumerate(by_run)
    ]
    return {name: np.array([one[name] for one in sums]) for name in sums[0]}


def _add_run(window: Mapping[str, float], outputs: ChunkOutputs) -> dict[str, float]:
    """Adds the outputs `[iterations, ...]` of a run to its sums."""
    returns: Any = np.ravel(outputs.episode_return)
    ended = ~np.isnan(returns)
    added: dict[str, Any] = {
        _EPISODES: [ended.sum()],
        _RETURN: np.where(ended, returns, 0.0),
        _ITERATIONS: [len(outputs.episode_return)],
        **outputs.metrics,
    }
    for name, values in outputs.measured.items():
        row: Any = np.ravel(values)
        taken = ~np.isnan(row)
        added |= {name: np.where(taken, row, 0.0), name + _TAKEN: taken}
    # In float64 and in order, where `sum` would add in pairs: chunking changes no bit.
    return {
        name: np.add.accumulate(np.append(window.get(name, 0.0), row).astype(np.float64))[-1]
        for name, row in added.items()
    }


class Record:
    """The numbers so far of `n` runs, which share all static settings."""

    def __init__(self, config: RunConfig, num_runs: int) -> None:
        self.steps = evaluation_steps(config)
        shape = (num_runs, len(self.steps))
        # [n, S, N], NaN from the step that a run has not reached.
        self.evaluation_return = np.full((*shape, config.eval_episodes), np.nan, np.float32)
        # [n, S] each: the learner's metrics and diagnostics too.
        self.curves = {"training_return": np.full(shape, np.nan)}
        self.diverged = np.zeros(num_runs, bool)  # whether weights or returns ever were not finite
        self.params: list[np.ndarray] = []  # the last weights [n, ...], after the last evaluation

    def add(self, event: Event, rows: slice) -> np.ndarray:
        """Adds these runs' rows of an evaluation; returns which have diverged in it, `[n]`."""
        before = self.diverged.copy()
        at = self.steps.index(event.step)
        assert event.episode_return is not None
        self.evaluation_return[:, at] = event.episode_return[rows]
        for name, values in {"training_return": event.training_return, **event.metrics}.items():
            curve = self.curves.setdefault(name, np.full(self.evaluation_return.shape[:2], np.nan))
            curve[:, at] = values[rows]
        params = [leaf[rows] for leaf in jax.tree.leaves(event.params)]
        for leaf in [self.evaluation_return[:, at], *params]:
            if np.issubdtype(leaf.dtype, np.floating):
                self.diverged |= ~np.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
        if event.step == self.steps[-1]:
            self.params = params
        return self.diverged & ~before

    def to_arrays(self) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Converts the numbers to arrays, and the facts that `from_arrays` needs beside them."""
        arrays = [self.evaluation_return, self.diverged, *self.curves.values(), *self.params]
        return arrays, {"curves": list(self.curves)}

    @classmethod
    def from_arrays(
        cls, config: RunConfig, arrays: Sequence[np.ndarray], facts: Mapping[str, Any]
    ) -> Self:
        """Makes a record of the arrays and facts that `to_arrays` returned."""
        record, end = cls(config, len(arrays[0])), 2 + len(facts["curves"])
        record.evaluation_return, record.diverged, *curves = map(np.array, arrays[:end])
        record.curves = dict(zip(facts["curves"], curves, strict=True))
        record.params = [*arrays[end:]]
        return record
