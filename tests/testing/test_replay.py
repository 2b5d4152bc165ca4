"""`check_replay`: good replays pass, and each kind of broken one is found."""

import functools
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from purejaxdqn.replay import (
    independent_batches,
    n_step_replay,
    prioritised_replay,
    sequence_replay,
    uniform_replay,
)
from purejaxdqn.testing import check_replay, replay_report

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from recipes.rank_based import rank_based_replay
from recipes.reservoir import reservoir_replay

KEY = jax.random.key(0)
HIDDEN = itertools.count(1)  # no function of its arguments


def changed_replay(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """A `make_replay` with functions replaced by `change(replay, capacity, *arguments)`."""

    def make_replay(capacity, batch_size, time_limit):
        replay = uniform_replay(capacity, batch_size, time_limit)
        return replay._replace(
            **{name: functools.partial(f, replay, capacity) for name, f in changes.items()}
        )

    return make_replay


def changed_sample(change: Callable[..., Any]) -> Callable[..., Any]:
    """`change(state, sample)` of what is sampled."""
    return changed_replay(
        sample=lambda replay, capacity, state, key: change(state, replay.sample(state, key))
    )


def changed_window(**fields: Callable[..., Any]) -> Callable[..., Any]:
    """Fields of the windows replaced by `f(state, sample)`."""

    def change(state, sample):
        new = {name: f(state, sample) for name, f in fields.items()}
        return sample._replace(window=sample.window._replace(**new))

    return changed_sample(change)


def changed_window_at(change: Callable[..., Any]) -> Callable[..., Any]:
    """`change(window_at, state, index, num_steps)` in its place."""
    return changed_replay(window_at=lambda replay, capacity, *at: change(replay.window_at, *at))


def all_of_the_ring(replay, capacity, state, key):
    max_rows = jnp.full_like(state.num_rows, state.max_rows)
    return replay.sample(state.replace(num_rows=max_rows), key)


def next_row(state, sample):
    """The usual mistake: what lies in the next row, whatever the time limit did in between."""
    row, env = sample.indices // state.num_envs, sample.indices % state.num_envs
    is_newest = row == (state.insert_row - 1) % state.max_rows
    following = jnp.where(is_newest, state.max_rows, (row + 1) % state.max_rows)
    return state.obs[following, env]


def stuck(replay, capacity, state, key):
    sample = replay.sample(state, jax.random.key(1))
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), sample)


def add_without_overwriting(replay, capacity, state, step, key):
    """Once it is full, it takes nothing more; but it counts on."""
    return jax.tree.map(
        lambda new, old: jnp.where(state.num_rows < state.max_rows, new, old),
        replay.add(state, step),
        state,
    )


def add_actions_late(replay, capacity, state, step, key):
    return replay.add(state, step._replace(action=jnp.roll(step.action, 1)))


def add_with_a_copy(replay, capacity, state, step, key):
    """The old ring is read after the new one was written."""
    new = replay.add(state, step)
    both = jnp.sum(jnp.flip(state.obs, 0) * new.obs)
    return new.replace(reward=jnp.where(both == 1e30, 0.0, new.reward))


def add_with_a_scatter(replay, capacity, state, step, key):
    """The row to be written depends on what is added, so that it differs from run to run."""
    rows = state.insert_row + jnp.zeros_like(step.action)
    new = replay.add(state, step)
    return new.replace(obs=new.obs.at[rows, jnp.arange(state.num_envs)].set(step.obs))


def add_with_a_counter_of_its_own(replay, capacity, state, step, key):
    is_always = step.action[0] > -1
    return replay.add(state, step).replace(
        num_rows=jnp.minimum(state.num_rows + is_always, state.max_rows)
    )


def update_to_float(replay, capacity, state, indices, priorities):
    return state.replace(action=state.action.astype(jnp.float32))


def sample_with_one_key_for_all(replay, capacity, state, key):
    sample = replay.sample(state, key)
    noise = jax.random.uniform(key, sample.probabilities.shape)
    return sample._replace(probabilities=sample.probabilities * noise)


def prioritised(update=None, add=None):
    """Prioritised replay with `update(replay, state, ...)` or `add(replay, state, ...)`."""

    def make_replay(*sizes):
        replay = prioritised_replay(*sizes)
        changes = {"update": update, "add": add}
        new = {name: functools.partial(f, replay) for name, f in changes.items() if f}
        return replay._replace(**new)

    return make_replay


def keeps_nan(replay, state, indices, priorities):
    new = replay.update(state, indices, priorities)
    is_nan = jnp.isnan(priorities).any()
    return new.replace(tree=jax.tree.map(lambda x: jnp.where(is_nan, jnp.nan, x), new.tree))


def of_positive_ones(replay, state, indices, priorities):
    """A root of priorities that may be below 0 is NaN, and spreads."""
    root = jnp.sum(jnp.sqrt(priorities) * 0)
    return state.replace(
        tree=jax.tree.map(lambda x: x + root, replay.update(state, indices, priorities).tree)
    )


def spreads_nan_to_new_ones(replay, state, indices, priorities):
    new = replay.update(state, indices, priorities)
    is_nan = jnp.isnan(priorities).any()
    return new.replace(max_priority=jnp.where(is_nan, jnp.nan, new.max_priority))


def new_ones_at_one(replay, state, step, key):
    new = replay.add(state.replace(max_priority=jnp.ones(())), step, key)
    return new.replace(max_priority=state.max_priority)


def new_ones_as_what_they_overwrite(replay, state, step, key):
    return state.replace(replay=replay.add(state, step, key).replay)


def reservoir_of_one_stream(*sizes):
    replay = reservoir_replay(*sizes)
    return replay._replace(
        add=lambda state, step, key: replay.add(state, step, jax.random.key(0)),
    )


def add_without_a_key(replay, capacity, state, step):
    return replay.add(state, step)


BROKEN_REPLAYS = {
    "new entries at 1": (
        prioritised(add=new_ones_at_one),
        r"a new entry is drawn with a probability of .* the largest priority so far",
    ),
    "new entries at what they overwrite": (
        prioritised(add=new_ones_as_what_they_overwrite),
        "probabilities reach from nan",
    ),
    "NaN for all": (prioritised(keeps_nan), "after one NaN .* probabilities reach from nan"),
    "negative ones": (prioritised(of_positive_ones), "after negative priorities .* from nan"),
    "NaN for what is new": (
        prioritised(spreads_nan_to_new_ones),
        "after a NaN in Replay.update a new entry is never drawn",
    ),
    "add without a key": (changed_replay(add=add_without_a_key), "Replay.add raises TypeError"),
    "a reservoir of one stream": (reservoir_of_one_stream, "two seeds hold the same all the same"),
    "a reservoir for a ring": (reservoir_replay, "Where others are meant .* newest=False"),
    "unwritten entries": (
        changed_replay(sample=all_of_the_ring),
        "a sampled window holds observations that were never added",
    ),
    "the next row's observation": (
        changed_window(next_obs=next_row),
        r"next_obs is observation \S+ and not \S+ \(terminated False, truncated True\)",
    ),
    "the same observation twice": (
        changed_window(next_obs=lambda state, sample: sample.window.obs),
        "next_obs is observation .* and not",
    ),
    "a time limit taken for an end": (
        changed_window(
            terminated=lambda state, sample: sample.window.terminated | sample.window.truncated
        ),
        r"terminated is \[True\] and not \[False\]",
    ),
    "an end that is none": (
        changed_window(terminated=lambda state, sample: jnp.zeros_like(sample.window.terminated)),
        r"terminated is \[False\] and not \[True\]",
    ),
    "a time limit that is none": (
        changed_window(truncated=lambda state, sample: jnp.zeros_like(sample.window.truncated)),
        r"truncated is \[False\] and not \[True\]",
    ),
    "a window of no steps": (
        changed_window(is_inside=lambda state, sample: jnp.zeros_like(sample.window.is_inside)),
        r"is_inside is \[False\] and not \[True\]",
    ),
    "nothing is overwritten": (
        changed_replay(add=add_without_overwriting),
        r"after 29 steps .* is not among the newest 8: write over the oldest",
    ),
    "actions of another environment": (
        changed_replay(add=add_actions_late),
        r"in the window from step \d+ of environment \d.* action is \[\d+\] and not \[\d+\]",
    ),
    "rewards of another entry": (
        changed_window(
            reward=lambda state, sample: state.reward.ravel()[sample.indices - 1][:, None]
        ),
        r"reward is \S+ and not \S+",
    ),
    "impossible probabilities": (
        changed_sample(lambda state, s: s._replace(probabilities=s.probabilities * 0)),
        "probabilities reach from 0 to 0: each must be above 0",
    ),
    "probabilities of another capacity": (
        changed_sample(lambda state, s: s._replace(probabilities=s.probabilities / 2)),
        "the probabilities of all .* entries that are held sum to 0.5 and not to 1",
    ),
    "always the same": (changed_replay(sample=stuck), "draws reached only .* steps held"),
    "observations made floats": (
        changed_window(obs=lambda state, sample: sample.window.obs / 255.0),
        r"the part .window.obs is uint8\[16, 2, 3, 5\] and then float32\[16, 2, 3, 5\]",
    ),
    "no batch": (
        changed_sample(lambda state, sample: jax.tree.map(lambda x: x[0], sample)),
        r"a batch of 16 windows of 1 steps .* has the wrong types",
    ),
    "window_at of as many steps as it likes": (
        changed_window_at(lambda read, state, index, num_steps: read(state, index, 1)),
        r"window_at of 3 steps gives the wrong types.* int32\[3\] and then int32\[1\]",
    ),
    "window_at that ends too soon": (
        changed_window_at(lambda read, *at: read(*at)._replace(is_inside=jnp.arange(3) < 1)),
        r"that window_at gave for 3 steps.* is_inside is \[True, False, False\] and not",
    ),
    "window_at that goes on into the next episode": (
        changed_window_at(lambda read, *at: read(*at)._replace(is_inside=jnp.ones(3, bool))),
        r"that window_at gave for 3 steps.* is_inside is \[True, True, True\] and not",
    ),
    "window_at of another entry": (
        changed_window_at(lambda read, state, index, num_steps: read(state, 0, num_steps)),
        "window_at gives other windows than Replay.sample at the same indices",
    ),
    "window_at of other dtypes": (
        changed_window_at(
            lambda read, *at: read(*at)._replace(next_obs=read(*at).next_obs / jnp.float32(255))
        ),
        r"the part .next_obs is uint8\[2, 3, 5\] and then float32\[2, 3, 5\]",
    ),
    "no Sample": (changed_sample(lambda state, s: s.window), "it must give a Sample"),
    "an update that changes a dtype": (
        changed_replay(update=update_to_float),
        r"Replay.update changes the types of the state.*\.action is int32.* and then float32",
    ),
    "a key used twice": (changed_replay(sample=sample_with_one_key_for_all), "PRNG key twice"),
    "hidden randomness": (
        changed_sample(
            lambda state, s: s._replace(probabilities=s.probabilities * (1 - next(HIDDEN) / 1000))
        ),
        "different answers to the same arguments",
    ),
    "a copy": (changed_replay(add=add_with_a_copy), r"Replay.add copies: it needs \d+ bytes"),
    "a scatter": (changed_replay(add=add_with_a_scatter), "Replay.add writes with a scatter"),
    "a shared counter that is not shared": (
        changed_replay(add=add_with_a_counter_of_its_own),
        r"(?s)several runs under vmap raises ValueError.*shared_counter\(\) declares must not",
    ),
}


@pytest.fixture
def users_emitters(monkeypatch, compile_as_user):
    """Has `check_replay` read programs as a user's machine compiles them."""
    plain = jax.stages.Lowered.compile

    def compile_lowered(lowered):
        return compile_as_user(SimpleNamespace(compile=functools.partial(plain, lowered)))

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_lowered)


@pytest.mark.usefixtures("users_emitters")
class TestCheckReplay:
    def test_good(self):
        check_replay(uniform_replay, KEY)
        check_replay(uniform_replay, KEY, num_envs=1)
        distinct = functools.partial(uniform_replay, with_replacement=False)
        check_replay(distinct, KEY)
        check_replay(distinct, KEY, num_envs=1)

    def test_without_window_at(self):
        check_replay(lambda *sizes: uniform_replay(*sizes)._replace(window_at=None), KEY)

    def test_several_steps(self):
        three = lambda *sizes: n_step_replay(uniform_replay(*sizes), 3)  # noqa: E731
        check_replay(three, KEY, n_step=3)
        with pytest.raises(AssertionError, match=r"windows of 1 steps .* int32\[16, 3\]"):
            check_replay(three, KEY)
        with pytest.raises(AssertionError, match=r"windows of 2 steps .* int32\[16, 1\]"):
            check_replay(uniform_replay, KEY, n_step=2)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("make_replay", "options"),
        [
            (prioritised_replay, {}),
            (rank_based_replay, {}),
            (reservoir_replay, {"newest": False}),
            (lambda *sizes: sequence_replay(prioritised_replay(*sizes), 4), {"n_step": 4}),
        ],
    )
    def test_others(self, make_replay, options):
        check_replay(make_replay, KEY, **options)

    def test_batches_drawn_each_for_itself(self):
        def make_replay(capacity, batch_size, *rest):
            return independent_batches(uniform_replay(capacity, batch_size // 4, *rest), 4)

        check_replay(make_replay, KEY)

    def test_a_sequence(self):
        check_replay(lambda *sizes: sequence_replay(uniform_replay(*sizes), 3), KEY, n_step=3)

    @pytest.mark.parametrize("name", BROKEN_REPLAYS)
    def test_broken(self, name):
        make_replay, message = BROKEN_REPLAYS[name]
        options = {"newest": False} if name == "a reservoir of one stream" else {}
        with pytest.raises(AssertionError, match=message):
            check_replay(make_replay, KEY, **options)


# ---------------------------------------------------------------------------- the probes' values


def replay_of_windows(change, n_step=3):
    """A `make_replay` whose windows are `change(window)`."""

    def make_replay(*sizes):
        replay = n_step_replay(uniform_replay(*sizes), n_step)

        def sample(state, key):
            sample = replay.sample(state, key)
            return sample._replace(window=change(sample.window))

        return replay._replace(sample=sample)

    return make_replay


def without_ends(window):
    return window._replace(terminated=jnp.zeros_like(window.terminated))


def with_deaths(window):
    return window._replace(terminated=window.terminated | window.truncated)


MISTAKES = {
    "no end": (replay_of_windows(without_ends), 3, "a terminal transition bootstraps"),
    "death": (replay_of_windows(with_deaths, 1), 1, "time limit: .*is learned as a death"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_replay_is_named(name):
    make_replay, n_step, pattern = MISTAKES[name]
    report = replay_report(make_replay, n_step=n_step)
    text = "\n".join(f"{check.name}: {check.message}" for check in report.failures)
    assert re.search(pattern, text), text
