"""Checks that a replay keeps its contract."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.replay import n_step_transition
from purejaxdqn.testing import require
from purejaxdqn.testing.programs import COMPILABLE, explain_errors, find_types, pure_jit, to_numpy
from purejaxdqn.testing.replay_draws import check_draws, check_odd_priorities, check_streams, fill
from purejaxdqn.testing.report import Check, Report, attempt, print_and_raise, unprinted
from purejaxdqn.testing.tabular import probes
from purejaxdqn.types import (
    Array,
    Replay,
    Sample,
    Step,
    Trajectory,
    Transition,
    Window,
    run_axes,
)

MakeReplay = Callable[[int, int, int], Replay]  # capacity, batch_size, time_limit

_OBS_SHAPE = (2, 3, 5)  # unusual, so that arrays of observations are recognised by it
_BATCH_SIZE = 16
_NUM_STEPS = 3  # length of windows asked of `window_at`
_PROBE_ROWS = 400


@print_and_raise
def check_replay(
    make_replay: MakeReplay,
    key: Array | None = None,
    *,
    num_envs: int = 3,
    n_step: int = 1,
    newest: bool = True,
) -> Report:
    """Checks a replay, prints a table with a row a check, and raises if one failed.

    - Every window in a sample starts with a step that was added, one of the newest `capacity`. An
      entry that was never written is never sampled.
    - Actions, rewards, flags and both observations of a window belong together. `next_obs` is the
      true one, also where the time limit cut an episode off.
    - With `n_step`, a window spans that many steps of one environment, or fewer where its episode
      ends or no more were added; it never reaches into the next episode.
    - Entries are drawn as often as `Sample.probabilities` says, which sum to 1, and none is left
      out; where priorities count, an entry with a higher one is the more likely, and a new one as
      likely as the likeliest. Negative priorities and a NaN leave all probabilities above 0.
    - What `init` and `add` draw comes from their keys, so that seeds differ.
    - `window_at`, where there is one, gives such windows too, at a sample's indices.
    - It works under `jit`, `scan` and `vmap`; it writes in place, also for several runs at once;
      it keeps the dtype of observations.
    - From its samples, with `n_step_transition`, the values of five probe environments come out as
      they are known: no time limit is learned as a death, no window reaches across episodes.

    It returns and raises as `check_loss`. See `Replay`, `Step`, `Sample` and `Window`.

    Args:
      make_replay: `(capacity, batch_size, time_limit) -> Replay`, such as `uniform_replay`, or
        `lambda *sizes: n_step_replay(uniform_replay(*sizes), 3)`.
      key: `[]` PRNG key of everything that is drawn; always the same one by default.
      num_envs: `E`.
      n_step: the most steps that a window in a sample of this replay spans, such as the length of
        a `sequence_replay`.
      newest: False for a replay that forgets others than the oldest, such as a reservoir, or that
        does not draw all that it holds. It may write with a scatter, too.
    """
    key = jax.random.key(0) if key is None else key
    name = getattr(make_replay, "__qualname__", None) or repr(make_replay)
    return Report(name, tuple(_check_all(make_replay, key, num_envs, n_step, newest)))


replay_report = unprinted(check_replay)


def _check_all(
    make_replay: MakeReplay, key: Array, num_envs: int, n_step: int, newest: bool
) -> list[Check]:
    def make(max_rows: int, time_limit: int) -> Replay:
        # A replay without replacement holds at least one such batch when it is first sampled.
        return make_replay(max_rows * num_envs, 2 * num_envs, time_limit)

    def check_content(max_rows: int, time_limit: int) -> str:
        steps, keys = _draw_steps(29, num_envs, time_limit), jax.random.split(key, 64)
        wanted = (max_rows, n_step, newest)
        return _check_content(make(max_rows, time_limit), steps, keys, *wanted)

    def check(look: Callable[..., str]) -> str:
        # Not yet full, and wrapped around; a row more is added in the end.
        look(make(16, 3), _draw_steps(11, num_envs, 3), key, 10 * num_envs)
        return look(make(8, 3), _draw_steps(22, num_envs, 3), key, 8 * num_envs)

    def check_values() -> str:
        learned, num_steps = _learn_probes(make_replay, key, num_envs, n_step)
        values.extend(probes.check_probes(learned, num_steps))
        return ""

    values: list[Check] = []
    types = attempt("shapes and dtypes", _check_types, make_replay, num_envs, n_step)
    if not types.passed:
        return [types]
    drawn, why = (make(8, 3), _draw_steps(29, num_envs, 3), key), "init and add draw nothing"
    look = functools.partial(check_draws, draws_all=newest and n_step == 1)
    return [
        types,
        attempt("what was added is sampled", check_content, 8, 3),
        attempt("with a time limit of one step", check_content, 4, 1),
        attempt("probabilities and priorities", check, look),
        attempt("odd priorities", check, functools.partial(check_odd_priorities, newest=newest)),
        attempt("streams of seeds", check_streams, *drawn, why_not=why),
        attempt("written in place", _check_in_place, make_replay, num_envs, newest),
        attempt("the probes are sampled", check_values),
        *values,
    ]


def _learn_probes(
    make_replay: MakeReplay, key: Array, num_envs: int, n_step: int
) -> tuple[np.ndarray, int]:
    """Learns the values of the probes from samples; returns them, and the steps of a transition."""
    steps = probes.play_probes(_PROBE_ROWS, num_envs)
    replay = make_replay(_PROBE_ROWS * num_envs, _PROBE_ROWS * num_envs, probes.MAX_STEPS)
    to_transition = replay.to_transition or n_step_transition

    def sampled(keys: Array) -> Any:
        batches = jax.vmap(replay.sample, in_axes=(None, 0))(fill(replay, steps), keys).window
        windows = jax.tree.map(jnp.concatenate, batches)
        over = [jax.vmap(x, in_axes=(0, None)) for x in (to_transition, n_step_transition)]
        return windows, *(make(windows, probes.DISCOUNT) for make in over)

    windows, found, single = to_numpy(jax.jit(sampled)(jax.random.split(key, 4)))
    is_step, limits = windows.is_inside, windows.truncated
    if isinstance(found, Transition):
        is_step, limits = np.ones_like(single.truncated_t), single.truncated_t
        begins = np.array_equal(found.obs_tm1, single.obs_tm1)
        wrong = "a_tm1 is not the action that was taken in obs_tm1"
        require.that(not begins or np.array_equal(found.a_tm1, single.a_tm1), wrong)
    given = getattr(found, "truncated_t", None)
    wrong = "truncated_t is not whether the time limit cut the episode off at obs_t"
    require.that(given is None or np.array_equal(given[is_step], limits[is_step]), wrong)
    if isinstance(found, Trajectory):  # each valid step of it is a transition
        *fields, extras, is_valid = found
        valid = [x[is_valid] for x in fields]
        found, n_step = Transition._make((*valid, extras)), 1
    return probes.solve_values(found), n_step


def _draw_steps(num_steps: int, num_envs: int, time_limit: int) -> Step:
    """Makes random steps `[T, E, ...]`; each observation holds a number that no other one does."""
    rng = np.random.default_rng(0)
    # Both flags also come together; each environment is truncated once a `time_limit` at most.
    terminated = rng.random((num_steps, num_envs)) < 0.25
    since = np.arange(num_steps)[:, np.newaxis] + rng.integers(0, time_limit, num_envs)
    truncated = (since % time_limit == 0) & (rng.random(terminated.shape) < 0.75)
    numbers = 1 + rng.permutation(2 * num_steps * num_envs).reshape(2, num_steps, num_envs)
    obs, last_obs = 100.25 * numbers  # no type but their own holds them
    following = np.concatenate([obs[1:], last_obs[-1:]])
    next_obs = np.where(terminated | truncated, last_obs, following)

    def image(numbers: np.ndarray) -> Any:
        return np.multiply.outer(numbers, np.ones(_OBS_SHAPE)).astype(np.float32)

    action, reward = rng.integers(0, 100, obs.shape, np.int32), rng.normal(size=obs.shape)
    extras = {"number": obs.astype(np.int16), "vector": image(-obs)[..., 0, 0]}
    played = (action, reward.astype(np.float32), terminated, truncated)
    return Step._make((image(obs), *played, image(next_obs), extras))


def _list_types(*shape: int) -> Step:
    """Makes the types of steps with such leading axes."""
    types = (jnp.int32, jnp.float32, bool, bool, jnp.int16)
    *played, number = (jax.ShapeDtypeStruct(shape, x) for x in types)
    obs = jax.ShapeDtypeStruct((*shape, *_OBS_SHAPE), jnp.uint8)
    return Step._make((obs, *played, obs, {"number": number}))


def _list_window_types(window: Window, n_step: int, *batch: int) -> Window:
    """Makes the types that a window must have, with its steps' observations if it holds them."""
    (obs, *_), steps = _list_types(*batch), _list_types(*batch, n_step)
    observations = None if window.observations is None else steps.obs
    return Window(obs, *steps[1:5], steps.terminated, obs, steps.extras, observations)


def _check_types(make_replay: MakeReplay, num_envs: int, n_step: int) -> str:
    replay = make_replay(_BATCH_SIZE * num_envs, _BATCH_SIZE, 5)

    def find(name: str, *args: Any, static: tuple[int, ...] = ()) -> Any:
        function = getattr(replay, name)
        return find_types(f"Replay.{name}", COMPILABLE, lambda *x: function(*x, *static), *args)

    step, batch = _list_types(num_envs), _list_types(_BATCH_SIZE)
    key = jax.random.key(0)
    state = find("init", step, key)
    added = find("add", state, step, key)
    sample = find("sample", added, key)
    is_right = isinstance(sample, Sample) and isinstance(sample.window, Window)
    require.that(is_right, f"Replay.sample gives {sample!r}: it must give a Sample of a Window")
    require.same_types(
        Sample(_list_window_types(sample.window, n_step, _BATCH_SIZE), batch.action, batch.reward),
        sample,
        f"a batch of {_BATCH_SIZE} windows of {n_step} steps (n_step) with uint8 observations has "
        "the wrong types",
        "give out observations, actions and rewards in the dtypes in which they were added",
    )
    if replay.window_at:
        window = find("window_at", added, _list_types().action, static=(_NUM_STEPS,))
        require.same_types(
            _list_window_types(window, _NUM_STEPS),
            window,
            f"Replay.window_at of {_NUM_STEPS} steps gives the wrong types",
            "give ONE window of so many steps, in the dtypes in which they were added",
        )
    updated = find("update", added, batch.action, batch.reward)
    for name, new in (("add", added), ("update", updated)):
        message = f"Replay.{name} changes the types of the state, so that scan cannot carry it"
        require.same_types(state, new, message, "keep every shape and dtype")
    return ""


def _check_content(
    replay: Replay, steps: Step, keys: Array, max_rows: int, n_step: int, newest: bool
) -> str:
    def unwritten(x: Array) -> Array:
        return jnp.full_like(x, jnp.nan) if x.shape[-len(_OBS_SHAPE) :] == _OBS_SHAPE else x

    def examine(keys: Array, steps: Step) -> tuple[Sample, Window | None]:
        first = jax.tree.map(lambda x: x[0], steps)
        empty = jax.tree.map(unwritten, replay.init(first, jax.random.key(2)))
        state = fill(replay, steps, state=empty)
        samples = jax.vmap(replay.sample, in_axes=(None, 0))(state, keys)
        if not (window_at := replay.window_at):
            return samples, None
        at_index = jax.vmap(lambda index: window_at(state, index, _NUM_STEPS))
        return samples, jax.vmap(at_index)(samples.indices)

    program = pure_jit("init, add and sample of a replay", COMPILABLE, examine)
    for num_steps in (max_rows - 2, len(steps.action)):
        added = jax.tree.map(lambda x, n=num_steps: x[:n], steps)
        samples, longer = to_numpy(program(keys, added))
        oldest = num_steps - max_rows if newest else 0
        _check_samples(samples, added, max_rows, oldest, n_step, "")
        if longer is not None:
            asked = f"that window_at gave for {_NUM_STEPS} steps, "
            require.that(
                np.array_equal(longer.obs, samples.window.obs),
                "Replay.window_at gives other windows than Replay.sample at the same indices: "
                "start at the entry that Sample.indices names",
            )
            longer = samples._replace(window=longer)
            _check_samples(longer, added, max_rows, oldest, _NUM_STEPS, asked)
    return f"{max_rows} rows"


def _check_samples(
    samples: Sample, steps: Step, max_rows: int, oldest: int, n_step: int, asked: str
) -> None:
    """Compares samples `[n, B, ...]` with the steps `[T, E, ...]` that were added."""
    num_steps, num_envs = steps.action.shape
    windows, _, probabilities = jax.tree.map(np.concatenate, samples)
    low, high = probabilities.min(), probabilities.max()
    require.that(
        low > 0 and high <= 1,
        f"probabilities reach from {low:.3g} to {high:.3g}: each must be above 0 and at most 1",
    )
    images = {name: getattr(windows, name) for name in ("obs", "next_obs", "observations")}
    numbers = {  # NaN: pixels differ
        name: np.where(np.ptp(x, axis=(-3, -2, -1)) == 0, x[..., 0, 0, 0], np.nan)
        for name, x in images.items()
        if x is not None
    }
    windows = windows._replace(**numbers)
    added = {float(steps.obs[at][0, 0, 0]): at for at in np.ndindex(num_steps, num_envs)}
    when = f"after {num_steps} steps of {num_envs} environments with room for {max_rows}, "
    seen = set()
    for i in range(len(windows.obs)):
        window = jax.tree.map(lambda x, i=i: x[i], windows)
        require.that(
            float(window.obs) in added and not np.isnan(window.next_obs),
            f"{when}a sampled window holds observations that were never added (obs {window.obs}, "
            f"next_obs {window.next_obs}): sample only entries that were written",
        )
        t, env = added[float(window.obs)]
        seen.add((t, env))
        where = f"in the window from step {t} of environment {env} on, {asked}{when}"
        require.that(
            t >= oldest,
            f"{where}the first step is not among the newest {max_rows}: write over the oldest. "
            "Where others are meant to be forgotten: newest=False",
        )
        played = jax.tree.map(lambda x, t=t, env=env: x[t : t + n_step, env], steps)
        _check_window(window, played, n_step, where)
    num_held = min(num_steps, max_rows) * num_envs
    require.that(
        2 * len(seen) >= num_held,
        f"{windows.obs.size} draws reached only {len(seen)} of {num_held} steps held: sample all "
        "of them",
    )


def _check_window(window: Window, steps: Step, n_step: int, where: str) -> None:
    """Compares ONE window, its observations as numbers, with the steps that were played there."""
    ends = steps.terminated | steps.truncated
    num_inside = int(ends.argmax()) + 1 if ends.any() else len(ends)
    own = jax.tree.map(lambda x: x[:num_inside], steps)
    expected = {"is_inside": np.arange(n_step) < num_inside, **own._asdict(), **own.extras}
    given = {**window._asdict(), **window.extras}
    names = ["is_inside", "action", "reward", "terminated", "truncated", *own.extras]
    if window.observations is not None:
        expected["observations"] = own.obs[:, 0, 0, 0]
        names.append("observations")
    for name in names:
        true = expected[name]
        found = given[name][: len(true)]
        require.that(
            np.array_equal(found, true),
            f"{where}{name} is {found.tolist()} and not {true.tolist()}: a window spans {n_step} "
            "steps, and ends sooner only with the step that ended the episode or the newest one",
        )
    true_next = own.next_obs[-1, 0, 0, 0]
    require.that(
        bool(own.terminated[-1] or window.next_obs == true_next),
        f"{where}next_obs is observation {window.next_obs} and not {true_next} (terminated "
        f"{own.terminated[-1]}, truncated {own.truncated[-1]}): it is Step.next_obs of the last "
        "step, at the time limit too, where the next row holds another episode's",
    )


def _check_in_place(make_replay: MakeReplay, num_envs: int, newest: bool) -> str:
    """Compiles, but does not run, `add` for several runs at once, as a sweep trains them."""
    replay = make_replay(4096 * num_envs, _BATCH_SIZE, 5)
    runs = jax.tree.map(lambda x: np.stack([x] * 2), _draw_steps(6, num_envs, 5))
    first = jax.tree.map(lambda x: x[:, 0], runs)
    keys = jax.random.split(jax.random.key(0), 2)
    one, key = jax.tree.map(lambda x: x[0], (first, keys))
    axes = run_axes(jax.eval_shape(replay.init, one, key))
    add_all = jax.vmap(lambda *x: fill(replay, *x), in_axes=(0, 0, axes), out_axes=axes)
    remedy = (
        "A field that purejaxdqn.types.shared_counter() declares must not depend on what is added"
    )
    with explain_errors("Replay.add of several runs under vmap", remedy):
        states = jax.eval_shape(jax.vmap(replay.init, out_axes=axes), first, keys)
        program = jax.jit(add_all, donate_argnums=2).lower(runs, keys, states).compile()
    obs_type = ",".join(map(str, _OBS_SHAPE))
    require.that(
        not (newest and re.search(rf"{obs_type}\]\S* scatter\(", program.as_text() or "")),
        "Replay.add writes with a scatter when several runs are vmapped: declare the index with "
        "purejaxdqn.types.shared_counter(), and write with jax.lax.dynamic_update_slice",
    )
    ring = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(states))
    needed = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
    require.that(
        needed < ring / 2,
        f"Replay.add copies: it needs {needed} bytes beside a ring of {ring}. Write with "
        "jax.lax.dynamic_update_slice, and read what the write replaces before it, not after",
    )
    return ""
