"""Checks that a replay keeps its contract."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.replay import n_step_transition
from purejaxdqn.testing import require
from purejaxdqn.testing.programs import COMPILABLE, explain_errors, find_types, pure_jit, to_numpy
from purejaxdqn.testing.report import Check, Report, attempt, print_and_raise, unprinted
from purejaxdqn.testing.tabular import probes
from purejaxdqn.types import Array, ArrayTree, Replay, Sample, Step, Transition, Window, run_axes

MakeReplay = Callable[[int, int, int], Replay]  # capacity, batch_size, time_limit

_OBS_SHAPE = (2, 3, 5)  # unusual, so that arrays of observations are recognised by it
_BATCH_SIZE = 16
_NUM_STEPS = 3  # length of windows asked of `window_at`
_PROBE_ROWS = 400


@print_and_raise
def check_replay(
    make_replay: MakeReplay, key: Array | None = None, *, num_envs: int = 3, n_step: int = 1
) -> Report:
    """Checks a replay, prints a table with a row a check, and raises if one failed.

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

    It returns and raises as `check_loss`. See `Replay`, `Step`, `Sample` and `Window`.

    Args:
      make_replay: `(capacity, batch_size, time_limit) -> Replay`, such as `uniform_replay`, or
        `lambda *sizes: n_step_replay(uniform_replay(*sizes), 3)`.
      key: `[]` PRNG key of everything that is drawn; always the same one by default.
      num_envs: `E`.
      n_step: the most steps that a window in a sample of this replay spans.
    """
    key = jax.random.key(0) if key is None else key
    name = getattr(make_replay, "__qualname__", None) or repr(make_replay)
    return Report(name, tuple(_check_all(make_replay, key, num_envs, n_step)))


replay_report = unprinted(check_replay)


def _check_all(make_replay: MakeReplay, key: Array, num_envs: int, n_step: int) -> list[Check]:
    def make(max_rows: int, time_limit: int) -> Replay:
        # A replay without replacement holds at least one such batch when it is first sampled.
        return make_replay(max_rows * num_envs, 2 * num_envs, time_limit)

    def check_content(max_rows: int, time_limit: int) -> str:
        steps, keys = _draw_steps(29, num_envs, time_limit), jax.random.split(key, 64)
        return _check_content(make(max_rows, time_limit), steps, keys, max_rows, n_step)

    def check_frequencies() -> str:
        # Not yet full, and wrapped around.
        _check_draws(make(16, 3), _draw_steps(10, num_envs, 3), key, 10 * num_envs)
        return _check_draws(make(8, 3), _draw_steps(21, num_envs, 3), key, 8 * num_envs)

    def check_values() -> str:
        values.extend(probes.check_probes(_learn_probes(make_replay, key, num_envs), n_step))
        return ""

    values: list[Check] = []
    types = attempt("shapes and dtypes", _check_types, make_replay, num_envs, n_step)
    if not types.passed:
        return [types]
    return [
        types,
        attempt("what was added is sampled", check_content, 8, 3),
        attempt("with a time limit of one step", check_content, 4, 1),
        attempt("probabilities and priorities", check_frequencies),
        attempt("written in place", _check_in_place, make_replay, num_envs),
        attempt("the probes are sampled", check_values),
        *values,
    ]


def _learn_probes(make_replay: MakeReplay, key: Array, num_envs: int) -> np.ndarray:
    """Learns the values of the probes from samples."""
    steps = probes.play_probes(_PROBE_ROWS, num_envs)
    replay = make_replay(_PROBE_ROWS * num_envs, _PROBE_ROWS * num_envs, probes.MAX_STEPS)

    def sampled(keys: Array) -> Transition:
        batches = jax.vmap(replay.sample, in_axes=(None, 0))(_fill(replay, steps), keys).window
        windows = jax.tree.map(jnp.concatenate, batches)
        return jax.vmap(n_step_transition, in_axes=(0, None))(windows, probes.DISCOUNT)

    transitions = to_numpy(jax.jit(sampled)(jax.random.split(key, 4)))
    return probes.solve_values(transitions)


def _fill(replay: Replay, steps: Step, state: ArrayTree = None) -> ArrayTree:
    """Adds steps `[T, E, ...]` one after another, to an empty replay by default."""
    if state is None:
        state = replay.init(jax.tree.map(lambda x: jnp.asarray(x[0]), steps))
    return jax.lax.scan(lambda state, step: (replay.add(state, step), None), state, steps)[0]


def _draw_steps(num_steps: int, num_envs: int, time_limit: int) -> Step:
    """Makes random steps `[T, E, ...]`; each observation holds a number that no other one does."""
    rng = np.random.default_rng(0)
    # Both flags also come together; each environment is truncated once a `time_limit` at most.
    terminated = rng.random((num_steps, num_envs)) < 0.25
    since = np.arange(num_steps)[:, np.newaxis] + rng.integers(0, time_limit, num_envs)
    truncated = (since % time_limit == 0) & (rng.random(terminated.shape) < 0.75)
    obs, last_obs = rng.permutation(2 * num_steps * num_envs).reshape(2, num_steps, num_envs) + 1
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


def _list_window_types(n_step: int, *batch: int) -> Window:
    (obs, *_), steps = _list_types(*batch), _list_types(*batch, n_step)
    return Window(obs, *steps[1:5], steps.terminated, obs, steps.extras)


def _check_types(make_replay: MakeReplay, num_envs: int, n_step: int) -> str:
    replay = make_replay(_BATCH_SIZE * num_envs, _BATCH_SIZE, 5)

    def find(name: str, *args: Any, static: tuple[int, ...] = ()) -> Any:
        function = getattr(replay, name)
        return find_types(f"Replay.{name}", COMPILABLE, lambda *x: function(*x, *static), *args)

    step, batch = _list_types(num_envs), _list_types(_BATCH_SIZE)
    state = find("init", step)
    added = find("add", state, step)
    sample = find("sample", added, jax.random.key(0))
    is_right = isinstance(sample, Sample) and isinstance(sample.window, Window)
    require.that(is_right, f"Replay.sample gives {sample!r}: it must give a Sample of a Window")
    require.same_types(
        Sample(_list_window_types(n_step, _BATCH_SIZE), batch.action, batch.reward),
        sample._replace(window=sample.window._replace(observations=None)),
        f"a batch of {_BATCH_SIZE} windows of {n_step} steps (n_step) with uint8 observations has "
        "the wrong types",
        "give out observations, actions and rewards in the dtypes in which they were added",
    )
    if replay.window_at:
        require.same_types(
            _list_window_types(_NUM_STEPS),
            find("window_at", added, _list_types().action, static=(_NUM_STEPS,))._replace(
                observations=None
            ),
            f"Replay.window_at of {_NUM_STEPS} steps gives the wrong types",
            "give ONE window of so many steps, in the dtypes in which they were added",
        )
    updated = find("update", added, batch.action, batch.reward)
    for name, new in (("add", added), ("update", updated)):
        message = f"Replay.{name} changes the types of the state, so that scan cannot carry it"
        require.same_types(state, new, message, "keep every shape and dtype")
    return ""


def _check_content(replay: Replay, steps: Step, keys: Array, max_rows: int, n_step: int) -> str:
    def unwritten(x: Array) -> Array:
        return jnp.full_like(x, jnp.nan) if x.shape[-len(_OBS_SHAPE) :] == _OBS_SHAPE else x

    def examine(keys: Array, steps: Step) -> tuple[Sample, Window | None]:
        empty = jax.tree.map(unwritten, replay.init(jax.tree.map(lambda x: x[0], steps)))
        state = _fill(replay, steps, empty)
        samples = jax.vmap(replay.sample, in_axes=(None, 0))(state, keys)
        if not (window_at := replay.window_at):
            return samples, None
        at_index = jax.vmap(lambda index: window_at(state, index, _NUM_STEPS))
        return samples, jax.vmap(at_index)(samples.indices)

    program = pure_jit("init, add and sample of a replay", COMPILABLE, examine)
    for num_steps in (max_rows - 2, len(steps.action)):
        added = jax.tree.map(lambda x, n=num_steps: x[:n], steps)
        samples, longer = to_numpy(program(keys, added))
        _check_samples(samples, added, max_rows, n_step, "")
        if longer is not None:
            asked = f"that window_at gave for {_NUM_STEPS} steps, "
            require.that(
                np.array_equal(longer.obs, samples.window.obs),
                "Replay.window_at gives other windows than Replay.sample at the same indices: "
                "start at the entry that Sample.indices names",
            )
            _check_samples(samples._replace(window=longer), added, max_rows, _NUM_STEPS, asked)
    return f"{max_rows} rows"


def _check_samples(samples: Sample, steps: Step, max_rows: int, n_step: int, asked: str) -> None:
    """Compares samples `[n, B, ...]` with the steps `[T, E, ...]` that were added."""
    num_steps, num_envs = steps.action.shape
    windows, _, probabilities = jax.tree.map(np.concatenate, samples)
    low, high = probabilities.min(), probabilities.max()
    require.that(
        low > 0 and high <= 1,
        f"probabilities reach from {low:.3g} to {high:.3g}: each must be above 0 and at most 1",
    )
    obs, next_obs = (
        np.where(np.ptp(x, axis=(1, 2, 3)) == 0, x[:, 0, 0, 0], np.nan)  # NaN: pixels differ
        for x in (windows.obs, windows.next_obs)
    )
    windows = windows._replace(obs=obs, next_obs=next_obs)
    added = {float(steps.obs[at][0, 0, 0]): at for at in np.ndindex(num_steps, num_envs)}
    when = f"after {num_steps} steps of {num_envs} environments with room for {max_rows}, "
    seen = set()
    for i in range(len(obs)):
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
            t >= num_steps - max_rows,
            f"{where}the first step is not among the newest {max_rows}: write over the oldest",
        )
        played = jax.tree.map(lambda x, t=t, env=env: x[t : t + n_step, env], steps)
        _check_window(window, played, n_step, where)
    num_held = min(num_steps, max_rows) * num_envs
    require.that(
        2 * len(seen) >= num_held,
        f"{obs.size} draws reached only {len(seen)} of {num_held} steps held: sample all of them",
    )


def _check_window(window: Window, steps: Step, n_step: int, where: str) -> None:
    """Compares ONE window, its observations as numbers, with the steps that were played there."""
    ends = steps.terminated | steps.truncated
    num_inside = int(ends.argmax()) + 1 if ends.any() else len(ends)
    own = jax.tree.map(lambda x: x[:num_inside], steps)
    expected = {"is_inside": np.arange(n_step) < num_inside, **own._asdict(), **own.extras}
    given = {**window._asdict(), **window.extras}
    for name in ("is_inside", "action", "reward", "terminated", "truncated", *own.extras):
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


def _check_draws(replay: Replay, steps: Step, key: Array, num_held: int) -> str:
    """Compares `Sample.probabilities` of all `num_held` entries with draws, also after updates."""
    keys_before, keys_after = jax.random.split(key, (2, 512))
    sample = jax.jit(jax.vmap(replay.sample, in_axes=(None, 0)))
    update = jax.jit(replay.update)
    state = jax.jit(lambda steps: _fill(replay, steps))(steps)
    drawn: Sample = to_numpy(sample(state, keys_before))
    _compare_counts(drawn, num_held, "")
    # Gives each entry a priority of its own, unrelated to its index; a batch at a time.
    entries = np.unique(drawn.indices)
    priorities = 1.0 + np.random.default_rng(9).permutation(len(entries)).astype(np.float32)
    size = drawn.indices.shape[1]
    for places in np.resize(np.arange(len(entries)), (-(-len(entries) // size), size)):
        state = update(state, entries[places], priorities[places])
    drawn = to_numpy(sample(state, keys_after))
    _compare_counts(drawn, num_held, "after Replay.update, ")
    _, places, first = np.intersect1d(entries, drawn.indices, return_indices=True)
    found = drawn.probabilities.ravel()[first][np.argsort(priorities[places])]
    if np.ptp(found) < 1e-3 * found.max():
        return "all as likely"
    rises = np.diff(found / found.max())
    rising = np.mean(rises > -1e-3)
    why = (
        "the higher the priority, the lower the probability: is its inverse or its negative taken?"
        if (rises < 1e-3).all()
        else "are they written at the indices that Replay.update is given?"
    )
    require.that(
        rising == 1,
        "after Replay.update with a priority of its own for each entry, the probabilities do not "
        f"rise with the priorities (they do from {rising:.0%} of entries to the next): {why}",
    )
    return "by priority"


def _compare_counts(drawn: Sample, num_held: int, when: str) -> None:
    """Compares how often each entry was drawn with its probability."""
    indices, given = drawn.indices.ravel(), drawn.probabilities.ravel().astype(np.float64)
    _, first, inverse, counts = np.unique(indices, True, True, True)
    probabilities = given[first]
    require.that(
        np.allclose(probabilities[inverse], given, rtol=1e-4, atol=0),
        f"{when}the same entry has several probabilities in Sample.probabilities: one state gives "
        "each entry one",
    )
    total = float(probabilities.sum())
    require.that(
        abs(total - 1) < 1e-3 or len(counts) < num_held,
        f"{when}the probabilities of all {num_held} entries that are held sum to {total:.3g} and "
        "not to 1: each is the probability with which the entry is drawn, among those that were "
        "written",
    )
    expected = len(indices) * probabilities
    sigmas = np.abs(counts - expected) / np.sqrt(expected)
    i = int(sigmas.argmax())
    require.that(
        sigmas[i] < 6,
        f"{when}{counts[i] / len(indices):.3g} of all draws are of an entry whose probability is "
        f"said to be {probabilities[i]:.3g}: Sample.probabilities are to be those with which "
        "entries are drawn",
    )


def _check_in_place(make_replay: MakeReplay, num_envs: int) -> str:
    """Compiles, but does not run, `add` for several runs at once, as a sweep trains them."""
    replay = make_replay(4096 * num_envs, _BATCH_SIZE, 5)
    runs = jax.tree.map(lambda x: np.stack([x] * 2), _draw_steps(6, num_envs, 5))
    first = jax.tree.map(lambda x: x[:, 0], runs)
    axes = run_axes(jax.eval_shape(replay.init, jax.tree.map(lambda x: x[0], first)))
    add_all = jax.vmap(lambda *x: _fill(replay, *x), in_axes=(0, axes), out_axes=axes)
    remedy = (
        "A field that purejaxdqn.types.shared_counter() declares must not depend on what is added"
    )
    with explain_errors("Replay.add of several runs under vmap", remedy):
        states = jax.eval_shape(jax.vmap(replay.init, out_axes=axes), first)
        program = jax.jit(add_all, donate_argnums=1).lower(runs, states).compile()
    obs_type = ",".join(map(str, _OBS_SHAPE))
    require.that(
        not re.search(rf"{obs_type}\]\S* scatter\(", program.as_text() or ""),
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
