"""Seeds times hyper-parameters to one labelled dataset: many runs over every device, in chunks.

A run is a function of its config, its seed and the plan's width (runs per device program). Neither
the runs beside it, nor its slot, nor the number of devices, nor the chunking changes a bit of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from purejaxdqn import results
from purejaxdqn.config import RunConfig
from purejaxdqn.devices import ensure_devices, make_plan, max_width
from purejaxdqn.diagnostics import DIAGNOSTICS, effective_rank
from purejaxdqn.programs import Experiment, Programs, compile_programs, float_fields
from purejaxdqn.progress import SweepProgress
from purejaxdqn.training import ChunkOutputs
from purejaxdqn.types import ArrayTree, ConfigError, Params

SeedMode = Literal["vmap", "map"]

_CHUNK_SECONDS = 0.5  # a signal reaches Python only between chunks
_SAVE_SECONDS = 5.0  # between two writes of results that are not finished


class SweepResult(NamedTuple):
    """What a sweep found.

    Attributes:
      dataset: the numbers, labelled; see `run_sweep`.
      params: the final weights as NumPy arrays `[*grid, num_seeds, ...]`; NaN for runs that
        were not finished.
    """

    dataset: xr.Dataset
    params: Params


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep; `result` holds what was finished."""

    def __init__(self, result: SweepResult) -> None:
        super().__init__("the sweep was interrupted")
        self.result = result


class Evaluated(NamedTuple):
    """One evaluation of the runs that are training, as it comes.

    Attributes:
      step: environment steps of each run so far.
      runs: `[n]` which runs these are, counted over the grid with the seeds running fastest.
      episode_return: `[n, N]` greedy returns.
      training_return: `[n]` mean return of the training episodes that ended since the evaluation
        before; NaN if none.
    """

    step: int
    runs: np.ndarray
    episode_return: np.ndarray
    training_return: np.ndarray


def run_sweep(
    experiment: Experiment,
    config: RunConfig,
    seeds: Sequence[int],
    *,
    width: int | None = None,
    seed_mode: SeedMode = "vmap",
    devices: Sequence[jax.Device] | None = None,
    output: Path | None = None,
    on_evaluation: Callable[[Evaluated], None] | None = None,
    progress: bool = True,
    diagnostics: bool = False,
    **grid: Sequence[float],
) -> SweepResult:
    """Trains every seed at every combination of the swept settings, on every device.

    Args:
      experiment: `config -> Train`, such as `purejaxdqn.dqn.dqn` or `purejaxdqn.pqn.pqn`.
      config: the settings that all runs share.
      seeds: whole numbers from 0 to 2**32 - 1, no two the same.
      width: runs per device program, to repeat an earlier result bit for bit; by default the plan's
        own choice. It stands in the dataset's attributes.
      seed_mode: "vmap" batches the runs of a device; "map" trains them one after another, each
        bitwise as if alone.
      devices: what to train on; by default every core, or the accelerators there are.
      output: a folder in which `results.nc` is kept up to date while the sweep runs.
      on_evaluation: called with each `Evaluated` as it comes.
      progress: whether to show progress on standard error.
      diagnostics: whether to look inside the learner at each evaluation: see
        `purejaxdqn.diagnostics`. It changes no bit of anything else, and takes one more program.
      **grid: float settings by name with the values to sweep, such as `learning_rate=[1e-4, 1e-3]`.

    Returns:
      A `SweepResult` whose dataset has the dimensions `(*grid, seed, step, episode)` and
      these variables:
        - `evaluation_return (*grid, seed, step, episode)`: greedy returns, undiscounted;
        - `final_return (*grid, seed, episode)`: those of the last step;
        - `training_return (*grid, seed, step)`: mean return of the training episodes that ended
          since the step before, NaN if none did;
        - one variable `(*grid, seed, step)` for each metric of the learner, its mean since
          the step before;
        - `num_updates (step)`: gradient steps taken;
        - with `diagnostics`, a variable `(*grid, seed, step)` for each of
          `purejaxdqn.diagnostics.DIAGNOSTICS`.
      Runs that were not finished have NaN where they did not get to.

    Raises:
      ConfigError: for settings that cannot be kept, before anything is compiled.
      SweepInterrupted: on Ctrl-C, with everything that was finished.
    """
    runs = list_runs(config, seeds, grid)
    width = width_of(seed_mode, width)
    devices = devices or ensure_devices()
    plan = make_plan(len(runs), len(devices), width, max_width())
    record = _Record(config, len(runs))
    facts = {
        "seed_mode": seed_mode,
        "width": plan.width,
        "device": devices[0].device_kind,
        "num_devices": plan.num_devices,
        "compile_seconds": 0.0,
        "train_seconds": 0.0,
        "evaluation_seconds": 0.0,
        "env_steps_per_second": 0.0,
    }

    def snapshot(status: str) -> SweepResult:
        dataset = record.to_dataset(seeds, grid)
        shape = (*map(len, grid.values()), len(seeds))
        params = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), record.params)
        return SweepResult(
            dataset.assign_attrs(results.provenance(config, experiment), status=status, **facts),
            params,
        )

    with SweepProgress(len(runs) * config.total_steps, enabled=progress) as bar:
        try:
            bar.message(
                f"{len(runs)} runs of {config.total_steps:,} steps: {plan.num_rounds} round(s) on "
                f"{plan.num_devices} of {len(devices)} device(s), {plan.width} run(s) side by side "
                "on each; compiling ..."
            )
            programs = compile_programs(experiment, config, plan, devices, diagnostics)
            facts["compile_seconds"] = programs.compile_seconds
            bar.message(f"compiled in {programs.compile_seconds:.1f} s")
            last_save = time.perf_counter()
            for members in plan.rounds(len(runs)):
                for event in train_round(programs, config, [runs[i] for i in members]):
                    facts["train_seconds"] += event.train_seconds
                    facts["evaluation_seconds"] += event.evaluation_seconds
                    env_steps = members[0] * config.total_steps + len(members) * event.step
                    speed = facts["env_steps_per_second"] = env_steps / facts["train_seconds"]
                    bar.update(env_steps, event.training_return, speed)
                    if event.episode_return is None:
                        continue
                    record.add(members, event)
                    bar.evaluated(event.step, event.episode_return)
                    if on_evaluation is not None:
                        on_evaluation(
                            Evaluated(
                                event.step, members, event.episode_return, event.training_return
                            )
                        )
                    if output is not None and time.perf_counter() - last_save > _SAVE_SECONDS:
                        bar.attempt(lambda: results.save(snapshot("running").dataset, output))
                        last_save = time.perf_counter()
            result = snapshot("finished")
        except KeyboardInterrupt:
            result = snapshot("interrupted")
    if output is not None and not record.is_empty:
        results.save_or_rescue(result.dataset, output)
    if result.dataset.attrs["status"] == "interrupted":
        raise SweepInterrupted(result)
    return result


def width_of(seed_mode: SeedMode, width: int | None) -> int | None:
    """The runs per device program that a mode and a wish ask for; None leaves the choice open."""
    if seed_mode not in ("vmap", "map"):
        raise ConfigError(f"seed_mode ({seed_mode!r}) must be 'vmap' or 'map'")
    if seed_mode == "map" and width not in (None, 1):
        raise ConfigError(f"width ({width}) must be 1 with seed_mode 'map': leave it out")
    return 1 if seed_mode == "map" else width


class Run(NamedTuple):
    """One run of a sweep: its seed, and the values of all its float settings."""

    seed: int
    floats: Mapping[str, float]


def list_runs(
    config: RunConfig, seeds: Sequence[int], grid: Mapping[str, Sequence[float]]
) -> list[Run]:
    """Every run of a sweep, the seeds running fastest; refuses what cannot be run."""
    config.validate()
    names = float_fields(config)
    for what, values in {"seeds": seeds, **grid}.items():
        if not isinstance(values, (Sequence, np.ndarray)) or isinstance(values, str):
            raise ConfigError(
                f"{what} ({values!r}) must be a sequence, such as "
                + (f"range({values!r})" if what == "seeds" else f"[{values!r}]")
            )
    if not len(seeds):
        raise ConfigError("seeds is empty: give at least one, such as range(10)")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {list(seeds)} must differ from each other")
    for seed in seeds:
        if not (isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32):
            raise ConfigError(f"seed ({seed!r}) must be a whole number from 0 to {2**32 - 1}")
    for name, values in grid.items():
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=3)
            raise ConfigError(
                f"{name!r} cannot be swept within one program: only the float settings can "
                f"({', '.join(nearest or names)}). For any other, call run_sweep once for each "
                "value."
            )
        if not len(values):
            raise ConfigError(f"the values of {name} are empty: give at least one")
        if len(set(values)) < len(values):
            raise ConfigError(f"the values of {name} {list(values)} must differ from each other")
    runs = []
    for values in itertools.product(*grid.values()):
        swept: dict[str, Any] = dict(zip(grid, values, strict=True))
        setting = dataclasses.replace(config, **swept)
        setting.validate()
        floats = {name: float(getattr(setting, name)) for name in names}
        runs += [Run(int(seed), floats) for seed in seeds]
    return runs


class Games(NamedTuple):
    """Training episodes of one run, in the order in which they ended.

    Attributes:
      step: `[G]` environment steps of the run when the episode ended.
      episode_return: `[G]` undiscounted returns.
    """

    step: np.ndarray
    episode_return: np.ndarray


class Event(NamedTuple):
    """What `train_round` says after a chunk and at each evaluation; arrays have an entry per slot.

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
    """

    step: int
    train_seconds: float
    evaluation_seconds: float
    training_return: np.ndarray
    games: list[Games]
    episode_return: np.ndarray | None
    metrics: dict[str, np.ndarray]
    params: Params


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
) -> Iterator[Event]:
    """Trains one round of runs, at most as many as there are slots, an event at a time.

    Args:
      programs: compiled for the config.
      config: the settings that all runs share.
      runs: the runs.
      steps: at which to evaluate, in environment steps; `evaluation_steps(config)` by default.
        Training ends at the last one. Beyond `config.total_steps` the schedules stay at their ends.

    Yields:
      An `Event` for each chunk and each evaluation.
    """
    plan, num_runs = programs.plan, len(runs)
    # Slots without a run of their own repeat the last one; devices without a run stand still.
    slots = [*runs, *[runs[-1]] * (plan.slots_per_round - num_runs)]
    active = np.arange(plan.num_devices) * plan.width < num_runs
    floats = {
        name: programs.place(np.array([run.floats[name] for run in slots], np.float32))
        for name in float_fields(config)
    }
    seeds = programs.place(np.array([run.seed for run in slots], np.uint32))

    def to_host(tree: ArrayTree) -> ArrayTree:
        return jax.tree.map(lambda x: np.array(x[:num_runs]), jax.device_get(tree))

    def diagnose(params_before: Params) -> dict[str, np.ndarray]:
        if programs.diagnose is None:
            return {}
        before = state.learner.params if params_before is None else params_before
        values = to_host(programs.diagnose(floats, state, before, seeds, np.int32(step)))
        # The threads of NumPy's BLAS wait for each other: for seconds, where the cores are busy.
        with threadpool_limits(limits=1, user_api="blas"):
            values["effective_rank"] = effective_rank(values.pop("features"))
        if params_before is None:  # nothing has changed that could be counted
            values["policy_churn"] = np.full(num_runs, np.nan, np.float32)
        return values

    window = _Window(num_runs)
    lap = _Lap()
    params_before = None
    state = jax.block_until_ready(programs.init(floats, seeds))
    step = config.prefill_steps
    iterations = 1  # the first chunk is short: nothing is known of the speed yet
    for next_step in steps or evaluation_steps(config):
        while step < next_step:
            left = (next_step - step) // config.steps_per_update
            iterations = min(iterations, left, programs.max_iterations)
            counts = programs.place(np.where(active, iterations, 0).astype(np.int32))
            state, outputs = programs.chunk(floats, state, counts)
            outputs = jax.tree.map(lambda x, n=iterations: x[:, :n], to_host(outputs))
            window.add(outputs)
            games = _games(outputs.episode_return, step)
            step += iterations * config.steps_per_update
            seconds = lap()
            yield Event(step, seconds, 0.0, window.training_return(), games, None, {}, None)
            lap()
            # Double at most, so that one quick chunk does not make the next one long.
            iterations = max(1, min(2 * iterations, int(iterations * _CHUNK_SECONDS / seconds)))
        params = state.learner.params
        train_seconds = lap()
        episode_return = to_host(programs.evaluate(floats, params, seeds, np.int32(step)))
        diagnostics = diagnose(params_before)
        if programs.diagnose is not None:
            params_before = jax.tree.map(jnp.copy, params)  # a chunk donates its state
        yield Event(
            step,
            train_seconds,
            lap(),
            window.training_return(),
            [],
            episode_return,
            window.metrics() | diagnostics,
            to_host(params),
        )
        window = _Window(num_runs)
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


class _Window:
    """Sums over what happened since the last evaluation.

    In float64 and in order, so that chunking changes no bit.
    """

    def __init__(self, num_runs: int) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._iterations = 0
        self._return_sum = np.zeros(num_runs)
        self._num_episodes = np.zeros(num_runs)

    def add(self, outputs: ChunkOutputs) -> None:
        """Takes the rows `[n, iterations, ...]` that were run."""
        returns = np.asarray(outputs.episode_return).reshape(len(self._return_sum), -1)
        ended = ~np.isnan(returns)
        self._num_episodes += ended.sum(axis=1)
        self._return_sum = _add_in_order(self._return_sum, np.where(ended, returns, 0.0))
        for name, rows in outputs.metrics.items():
            total = self._sums.get(name, np.zeros(len(rows)))
            self._sums[name] = _add_in_order(total, np.asarray(rows))
        self._iterations += returns.shape[1] // outputs.episode_return[0, 0].size

    def training_return(self) -> np.ndarray:
        """`[n]`, NaN where no episode has ended."""
        ended = self._num_episodes > 0
        return np.where(ended, self._return_sum / np.maximum(self._num_episodes, 1), np.nan)

    def metrics(self) -> dict[str, np.ndarray]:
        """`[n]` each."""
        return {name: total / self._iterations for name, total in self._sums.items()}


def _add_in_order(total: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`total [n]` plus each column of `rows [n, M]` in turn; `sum` would pair them up."""
    columns = np.column_stack([total, rows]).astype(np.float64)
    return np.add.accumulate(columns, axis=1)[:, -1]


class _Record:
    """The numbers of a whole sweep, by run, as they come in."""

    def __init__(self, config: RunConfig, num_runs: int) -> None:
        self._config = config
        self._steps = evaluation_steps(config)
        shape = (num_runs, len(self._steps))
        self._evaluation = np.full((*shape, config.eval_episodes), np.nan, np.float32)
        self._curves = {"training_return": np.full(shape, np.nan)}
        self.params: Params = None

    @property
    def is_empty(self) -> bool:
        """Whether no evaluation has come in."""
        return bool(np.isnan(self._evaluation).all())

    def add(self, members: np.ndarray, event: Event) -> None:
        """Keeps one evaluation of some runs."""
        at = self._steps.index(event.step)
        self._evaluation[members, at] = event.episode_return
        for name, values in {"training_return": event.training_return, **event.metrics}.items():
            curve = self._curves.setdefault(name, np.full(self._evaluation.shape[:2], np.nan))
            curve[members, at] = values
        if event.step == self._config.total_steps:
            self._keep_params(members, event.params)

    def _keep_params(self, members: np.ndarray, params: ArrayTree) -> None:
        if self.params is None:
            num_runs = len(self._evaluation)
            self.params = jax.tree.map(
                lambda x: np.full((num_runs, *x.shape[1:]), np.nan, x.dtype), params
            )
        for kept, new in zip(jax.tree.leaves(self.params), jax.tree.leaves(params), strict=True):
            kept[members] = new

    def to_dataset(self, seeds: Sequence[int], grid: Mapping[str, Sequence[float]]) -> xr.Dataset:
        """Everything so far, labelled."""
        dims = (*grid, "seed")
        shape = (*map(len, grid.values()), len(seeds))
        num_steps, num_episodes = self._evaluation.shape[1:]
        evaluation = self._evaluation.reshape(*shape, num_steps, num_episodes)
        config = self._config
        iterations = (np.array(self._steps) - config.prefill_steps) // config.steps_per_update
        return xr.Dataset(
            {
                "evaluation_return": ((*dims, "step", "episode"), evaluation),
                "final_return": ((*dims, "episode"), evaluation[..., -1, :]),
                "num_updates": ("step", iterations * config.updates_per_iteration),
                **{
                    name: (
                        (*dims, "step"),
                        curve.reshape(*shape, num_steps),
                        DIAGNOSTICS.get(name, {}),
                    )
                    for name, curve in self._curves.items()
                },
            },
            coords={
                **{name: list(values) for name, values in grid.items()},
                "seed": np.array(seeds, np.int64),
                "step": ("step", np.array(self._steps), {"units": "environment steps"}),
                "episode": np.arange(num_episodes),
            },
        )
