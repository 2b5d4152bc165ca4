"""Checks that a replay keeps its contract."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.replay import n_step_transition
from purejaxdqn.testing.compiled_functions import (
    COMPILABLE,
    Program,
    explain_errors,
    find_types,
    to_numpy,
)
from purejaxdqn.testing.replay_draws import check_draws, fill
from purejaxdqn.testing.report import Check, Report, attempt, print_and_raise, without_printing
from purejaxdqn.testing.requirements import require, require_same_types
from purejaxdqn.testing.tabular.probes import (
    MAX_STEPS,
    NUM_OBS,
    check_probes,
    play_probes,
    solve_values,
)
from purejaxdqn.types import Array, Replay, Sample, Step, Transition, Window, run_axes

MakeReplay = Callable[[int, int, int], Replay]  # capacity, batch_size, time_limit

_OBS_SHAPE = (2, 3, 5)  # unusual, so that arrays of observations are recognised by it
_BATCH_SIZE = 16
_DISCOUNT = 0.9  # of the values that are learned
_NUM_STEPS = 3  # length of windows asked of `window_at`
_PROBE_ROWS = 400


@print_and_raise
def check_replay(
    make_replay: MakeReplay, key: Array | None = None, *, num_envs: int = 3, n_step: int = 1
) -> Report:
    """Checks a replay, prints a table with a row a check, and raises if one failed.

    See `Replay`, `Step`, `Sample` and `Window`.

    - Every window in a sample starts with a step that was added, one of the newest `capacity`. An
      entry that was never written is never sampled.
    - Actions, rewards, flags and both observations of a window belong together. `next_obs` is the
      true one, also where the time limit cut an episode off.
    - With `n_step`, a window spans that many steps of one environment, or fewer where its episode
      ends or no more were added; it never reaches into the next episode.
    - Entries are drawn as often as `Sample.probabilities` says, which sum to 1; where priorities
      count, an entry with a higher one is the more likely.
    - `window_at`, where there is one, gives such windows too, at a sample's indices.
    - It works under `jit`, `scan` and `vmap`; it writes in place, also for several runs at once;
      it keeps the dtype of observations.
    - From its samples, with `n_step_transition`, the values of five probe environments come out as
      they are known: no time limit is learned as a death, no window reaches across episodes.

    `replay_report` has the same arguments, and neither prints nor raises.

    Args:
      make_replay: `(capacity, batch_size, time_limit) -> Replay`, such as `uniform_replay`, or
        `lambda *sizes: n_step_replay(uniform_replay(*sizes), 3)`.
      key: `[]` PRNG key of everything that is drawn; always the same one by default.
      num_envs: `E`.
      n_step: the most steps that a window in a sample of this replay spans.

    Returns:
      The `Report`, all of whose rows passed.

    Raises:
      CheckError: an AssertionError with the message of every failure; its `report` has the rows.
    """
    key = jax.random.key(0) if key is None else key
    name = getattr(make_replay, "__qualname__", None) or repr(make_replay)
    return Report(name, tuple(_check_all(make_replay, key, num_envs, n_step)))


replay_report = without_printing(check_replay)


def _check_all(make_replay: MakeReplay, key: Array, num_envs: int, n_step: int) -> list[Check]:
    def make(max_rows: int, time_limit: int) -> Replay:
        # A replay without replacement holds at least one such batch when it is first sampled.
        return make_replay(max_rows * num_envs, 2 * num_envs, time_limit)

    def check_content(max_rows: int, time_limit: int) -> str:
        steps, keys = _draw_steps(29, num_envs, time_limit), jax.random.split(key, 64)
        return _check_content(make(max_rows, time_limit), steps, keys, max_rows, n_step)

    def check_frequencies() -> str:
        # Not yet full, and wrapped around.
        check_draws(make(16, 3), _draw_steps(10, num_envs, 3), key, 10 * num_envs)
        return check_draws(make(8, 3), _draw_steps(21, num_envs, 3), key, 8 * num_envs)

    def check_values() -> str:
        values.extend(_check_probes(make_replay, key, num_envs, n_step))
        return ""

    values: list[Check] = []
    checks = [attempt("shapes and dtypes", lambda: _check_types(make_replay, num_envs, n_step))]
    if not checks[0].passed:
        return checks
    return [
        *checks,
        attempt("what was added is sampled", lambda: check_content(8, 3)),
        attempt("with a time limit of one step", lambda: check_content(4, 1)),
        attempt("probabilities and priorities", check_frequencies),
        attempt("written in place", lambda: _check_in_place(make_replay, num_envs)),
        attempt("the probes are sampled", check_values),
        *values,
    ]


def _check_probes(make_replay: MakeReplay, key: Array, num_envs: int, n_step: int) -> list[Check]:
    """Learns the values of the probes from samples, and compares them with the known ones."""
    stream = play_probes(_PROBE_ROWS, num_envs)
    capacity = _PROBE_ROWS * num_envs
    replay = make_replay(capacity, capacity, MAX_STEPS)
    obs, next_obs = (np.eye(NUM_OBS, dtype=np.float32)[x] for x in (stream.obs, stream.next_obs))
    action = np.asarray(stream.action, np.int32)
    steps: Any = stream._replace(obs=obs, action=action, next_obs=next_obs)

    def sampled(keys: Array) -> Transition:
        windows = jax.vmap(replay.sample, in_axes=(None, 0))(fill(replay, steps), keys).window
        return jax.vmap(jax.vmap(lambda x: n_step_transition(x, _DISCOUNT)))(windows)

    batches = to_numpy(jax.jit(sampled)(jax.random.split(key, 4)))
    flat = jax.tree.map(np.concatenate, batches)
    flat = flat._replace(obs_tm1=flat.obs_tm1.argmax(1), obs_t=flat.obs_t.argmax(1))
    return check_probes(solve_values(*flat), _DISCOUNT, n_step)


def _draw_steps(num_steps: int, num_envs: int, time_limit: int) -> Step:
    """Makes random steps `[T, E, ...]`; each observation holds a number that no other one does.

    Episodes follow each other; both flags also come together; each environment is truncated at
    most once in `time_limit` steps.
    """
    rng = np.random.default_rng(0)
    terminated = rng.random((num_steps, num_envs)) < 0.25
    truncated = np.zeros_like(terminated)
    since = np.full(num_envs, time_limit)
    for t in range(num_steps):
        truncated[t] = (rng.random(num_envs) < 0.5) & (since >= time_limit)
        since = np.where(truncated[t], 1, since + 1)
    obs, last_obs = rng.permutation(2 * num_steps * num_envs).reshape(2, num_steps, num_envs) + 1
    following = np.concatenate([obs[1:], last_obs[-1:]])
    next_obs = np.where(terminated | truncated, last_obs, following)

    def image(numbers: np.ndarray) -> Any:
        return np.multiply.outer(numbers, np.ones(_OBS_SHAPE)).astype(np.float32)

    action, reward = rng.integers(0, 100, obs.shape, np.int32), rng.normal(size=obs.shape)
    fields = (image(obs), action, reward.astype(np.float32), terminated, truncated, image(next_obs))
    return Step._make(fields)


def _list_types(*shape: int) -> list[Any]:
    """Lists the types of actions, rewards, flags and observations with such leading axes."""
    types: list[Any] = [jax.ShapeDtypeStruct(shape, x) for x in (jnp.int32, jnp.float32, bool)]
    return [*types, jax.ShapeDtypeStruct((*shape, *_OBS_SHAPE), jnp.uint8)]


def _list_window_types(n_step: int, *batch: int) -> Window:
    action, reward, flags, _ = _list_types(*batch, n_step)
    obs = _list_types(*batch)[-1]
    return Window(obs, action, reward, flags, flags, flags, obs)


def _check_types(make_replay: MakeReplay, num_envs: int, n_step: int) -> str:
    replay = make_replay(_BATCH_SIZE * num_envs, _BATCH_SIZE, 5)
    action, reward, flag, obs = _list_types(num_envs)
    step = Step(obs, action, reward, flag, flag, obs)
    state = find_types("Replay.init", COMPILABLE, replay.init, step)
    added = find_types("Replay.add", COMPILABLE, replay.add, state, step)
    sample = find_types("Replay.sample", COMPILABLE, replay.sample, added, jax.random.key(0))
    require(
        isinstance(sample, Sample) and isinstance(sample.window, Window),
        f"Replay.sample gives {sample!r}: it must give a Sample of a Window",
    )
    indices, priorities, *_ = _list_types(_BATCH_SIZE)
    require_same_types(
        Sample(_list_window_types(n_step, _BATCH_SIZE), indices, priorities),
        sample,
        f"a batch of {_BATCH_SIZE} windows of {n_step} steps (n_step) with uint8 observations has "
        "the wrong types",
        "give out observations, actions and rewards in the dtypes in which they were added",
    )
    if window_at := replay.window_at:
        index = _list_types()[0]
        require_same_types(
            _list_window_types(_NUM_STEPS),
            find_types(
                "Replay.window_at", COMPILABLE, lambda *x: window_at(*x, _NUM_STEPS), added, index
            ),
            f"Replay.window_at of {_NUM_STEPS} steps gives the wrong types",
            "give ONE window of so many steps, in the dtypes in which they were added",
        )
    updated = find_types("Replay.update", COMPILABLE, replay.update, added, indices, priorities)
    for name, new in (("add", added), ("update", updated)):
        require_same_types(
            state,
            new,
            f"Replay.{name} changes the types of the state, so that scan cannot carry it",
            "keep every shape and dtype",
        )
    return ""


def _check_content(replay: Replay, steps: Step, keys: Array, max_rows: int, n_step: int) -> str:
    def unwritten(x: Array) -> Array:
        return jnp.full_like(x, jnp.nan) if x.shape[-len(_OBS_SHAPE) :] == _OBS_SHAPE else x

    def examine(keys: Array, steps: Step) -> tuple[Sample, Window | None]:
        empty = replay.init(jax.tree.map(lambda x: x[0], steps))
        state = fill(replay, steps, jax.tree.map(unwritten, empty))
        samples = jax.vmap(replay.sample, in_axes=(None, 0))(state, keys)
        if not (window_at := replay.window_at):
            return samples, None
        at_index = jax.vmap(lambda index: window_at(state, index, _NUM_STEPS))
        return samples, jax.vmap(at_index)(samples.indices)

    program = Program("init, add and sample of a replay", COMPILABLE, examine)
    for num_steps in (max_rows - 2, len(steps.action)):
        added = Step._make(x[:num_steps] for x in steps)
        samples, longer = to_numpy(program(keys, added))
        _check_samples(samples, added, max_rows, n_step)
        if longer is not None:
            asked = f"that window_at gave for {_NUM_STEPS} steps, "
            require(
                np.array_equal(longer.obs, samples.window.obs),
                "Replay.window_at gives other windows than Replay.sample at the same indices: "
                "start at the entry that Sample.indices names",
            )
            _check_samples(samples._replace(window=longer), added, max_rows, _NUM_STEPS, asked)
    return f"{max_rows} rows"


def _check_samples(
    samples: Sample, steps: Step, max_rows: int, n_step: int, asked: str = ""
) -> None:
    """Compares samples `[n, B, ...]` with the steps `[T, E, ...]` that were added."""
    num_steps, num_envs = steps.action.shape
    windows, _, probabilities = jax.tree.map(np.concatenate, samples)
    require(
        ((probabilities > 0) & (probabilities <= 1)).all(),
        f"probabilities reach from {probabilities.min():.3g} to {probabilities.max():.3g}: each "
        "must be above 0 and at most 1",
    )

    def numbers(obs: np.ndarray) -> np.ndarray:
        """Reads the number in each observation, NaN where the pixels do not agree."""
        obs = obs.reshape(len(obs), -1)
        return np.where((obs == obs[:, :1]).all(axis=1), obs[:, 0], np.nan)

    added = {float(steps.obs[at][0, 0, 0]): at for at in np.ndindex(num_steps, num_envs)}
    seen = set()
    windows = windows._replace(obs=numbers(windows.obs), next_obs=numbers(windows.next_obs))
    for window in map(Window._make, zip(*windows, strict=True)):
        where = f"after {num_steps} steps of {num_envs} environments with room for {max_rows}, "
        require(
            float(window.obs) in added and not np.isnan(window.next_obs),
            f"{where}a sampled window holds observations that were never added (obs {window.obs}, "
            f"next_obs {window.next_obs}): sample only entries that were written",
        )
        at = added[float(window.obs)]
        seen.add(at)
        where = f"in the window from step {at[0]} of environment {at[1]} on, {asked}{where}"
        require(
            at[0] >= num_steps - max_rows,
            f"{where}the first step is not among the newest {max_rows}: write over the oldest",
        )
        _check_window(window, steps, at, n_step, where)
    num_held = min(num_steps, max_rows) * num_envs
    require(
        2 * len(seen) >= num_held,
        f"{windows.obs.size} draws reached only {len(seen)} of {num_held} steps held: sample "
        "all of them",
    )


def _check_window(
    window: Window, steps: Step, at: tuple[int, int], n_step: int, where: str
) -> None:
    """Compares ONE window, its observations as numbers, with the steps from (t, env) on."""
    t, env = at
    ends = (steps.terminated | steps.truncated)[t : t + n_step, env]
    num_inside = int(ends.argmax()) + 1 if ends.any() else len(ends)
    expected = [k < num_inside for k in range(n_step)]
    require(
        window.is_inside.tolist() == expected,
        f"{where}is_inside is {window.is_inside.tolist()} and not {expected}: a window spans "
        f"{n_step} steps, and ends sooner only with the step that ended the episode or with the "
        "newest one",
    )
    for name in ("action", "reward", "terminated", "truncated"):
        found = getattr(window, name)[:num_inside]
        true = getattr(steps, name)[t : t + num_inside, env]
        require(
            np.array_equal(found, true),
            f"{where}{name} is {found.tolist()} and not {true.tolist()}",
        )
    last = (t + num_inside - 1, env)
    true_next = steps.next_obs[last][0, 0, 0]
    require(
        bool(steps.terminated[last] or window.next_obs == true_next),
        f"{where}next_obs is observation {window.next_obs} and not {true_next} (terminated "
        f"{steps.terminated[last]}, truncated {steps.truncated[last]}): it is Step.next_obs of the "
        "last step, at the time limit too, where the next row holds another episode's",
    )


def _check_in_place(make_replay: MakeReplay, num_envs: int) -> str:
    """Compiles, but does not run, `add` for several runs at once, as a sweep trains them."""
    replay = make_replay(4096 * num_envs, _BATCH_SIZE, 5)
    steps = _draw_steps(6, num_envs, 5)
    runs = jax.tree.map(lambda x: np.stack([x] * 2), steps)
    first = jax.tree.map(lambda x: x[:, 0], runs)
    axes = run_axes(jax.eval_shape(replay.init, jax.tree.map(lambda x: x[0], steps)))
    add_all = jax.vmap(lambda *x: fill(replay, *x), in_axes=(0, axes), out_axes=axes)
    remedy = (
        "A field that purejaxdqn.types.shared_counter() declares must not depend on what is added"
    )
    with explain_errors("Replay.add of several runs under vmap", remedy):
        states = jax.eval_shape(jax.vmap(replay.init, out_axes=axes), first)
        program = jax.jit(add_all, donate_argnums=1).lower(runs, states).compile()
    obs_type = ",".join(map(str, _OBS_SHAPE))
    require(
        not re.search(rf"{obs_type}\]\S* scatter\(", program.as_text() or ""),
        "Replay.add writes with a scatter when several runs are vmapped: declare the index with "
        "purejaxdqn.types.shared_counter(), and write with jax.lax.dynamic_update_slice",
    )
    ring = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(states))
    needed = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
    require(
        needed < ring / 2,
        f"Replay.add copies: it needs {needed} bytes beside a ring of {ring}. Write with "
        "jax.lax.dynamic_update_slice, and read what the write replaces before it, not after",
    )
    return ""
