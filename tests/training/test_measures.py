"""Diagnostics of one's own: what they see, when, and where their numbers go."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import dqn, pqn, run_sweep
from purejaxdqn.engine.rounds import _add_outputs, _find_means
from purejaxdqn.storage import results
from purejaxdqn.sweep.run import SweepInterrupted
from purejaxdqn.training.loop import ChunkOutputs
from purejaxdqn.types import ConfigError, Measure
from tiny import TINY, TINY_PQN, assert_same_dataset, bits, compiled

EXPERIMENTS: dict[str, Any] = {"dqn": (dqn, TINY), "pqn": (pqn, TINY_PQN)}


def distance(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum(jnp.sum((a - b) ** 2) for a, b in pairs)


def update(accumulator, before, state, batch, key):
    """Says how far weights have moved in this step, and since the last time that it was asked."""
    count, last = accumulator
    params = state.learner.params
    metrics = {
        "moved": distance(params, before.learner.params),
        "moved_since": distance(params, last),
        "asked": count + 1,
        "updates": state.learner.num_updates,
        "first_obs": batch.obs_tm1[0, 0],
        "drawn": jax.random.uniform(key),
        "odd": jnp.where(count % 2 == 1, 1.0, jnp.nan),
    }
    return (count + 1, params), metrics


def measure(every=1):
    return Measure(update, lambda state: (jnp.int32(0), state.learner.params), every)


def run(name, num_iterations, **parts):
    experiment, config = EXPERIMENTS[name]
    init, chunk = compiled(functools.partial(experiment, **parts), config, as_users_have_it=True)
    state = init(jax.random.key(0))
    first = jax.tree.map(np.asarray, state.learner.params)
    state, outputs = chunk(state, num_iterations, num_iterations)
    return first, state, jax.tree.map(np.asarray, outputs)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_third_update_is_measured_and_training_does_not_change(name):
    num_iterations = 7 if name == "dqn" else 2
    first, plain, before = run(name, num_iterations)
    _, state, outputs = run(name, num_iterations, measure=measure(3))
    per_iteration = EXPERIMENTS[name][1].updates_per_iteration
    asked = outputs.measured["asked"]
    assert asked.shape == (num_iterations, per_iteration)
    assert bits(plain) == bits(dataclasses.replace(state, measured=None))
    assert bits(before.metrics) == bits(outputs.metrics)
    assert before.measured == {}
    due = np.arange(1, asked.size + 1) % 3 == 0
    measured = {name: values.ravel() for name, values in outputs.measured.items()}
    for values in measured.values():
        assert np.isnan(values[~due]).all()
    assert measured["asked"][due].tolist() == [*range(1, due.sum() + 1)]
    assert measured["updates"][due].tolist() == [3.0 * n for n in range(1, due.sum() + 1)]
    assert np.isfinite(measured["odd"][due]).tolist() == [n % 2 == 1 for n in range(due.sum())]
    assert len({*measured["drawn"][due]}) == due.sum()
    assert (measured["moved"][due] > 0).all()
    count, last = state.measured
    assert int(count) == due.sum()
    if due[-1]:
        assert bits(last) == bits(state.learner.params)
    assert distance(last, first) > 0


def test_a_measure_of_each_update_sees_the_weights_of_before():
    first, state, outputs = run("dqn", 1, measure=measure())
    moved = distance(first, state.learner.params)
    np.testing.assert_allclose(outputs.measured["moved"], [[moved]], rtol=1e-5)
    np.testing.assert_allclose(outputs.measured["moved_since"], [[moved]], rtol=1e-5)


@pytest.mark.parametrize("name", ["dqn", pytest.param("pqn", marks=pytest.mark.slow)])
def test_curves_are_in_the_results_and_the_same_after_a_stop(name, tmp_path):
    experiment, config = EXPERIMENTS[name]
    experiment = functools.partial(experiment, measure=measure(3))
    sweep = functools.partial(run_sweep, experiment, config, range(2), progress=False)
    whole = sweep(learning_rate=[1e-3, 1e-2]).dataset
    values = whole["updates"].values
    assert np.isnan(values[..., 0]).all()
    ends = np.asarray(whole["num_updates"].values)
    expected = [np.nan] + [
        float(np.mean([n for n in range(1, ends[-1] + 1) if low < n <= high and n % 3 == 0]))
        for low, high in itertools.pairwise(ends)
    ]
    np.testing.assert_allclose(values, np.broadcast_to(expected, values.shape))
    assert np.isfinite(whole["odd"].values[..., 1:]).all()
    assert_same_dataset(stopped_once(sweep, tmp_path), whole)


def stopped_once(sweep, folder):
    """Stops a sweep before its last evaluation, with its state on disk, and goes on from there."""
    seen = []

    def interrupt(event):
        seen.append(event.metrics)
        if len(seen) == 2:
            raise KeyboardInterrupt

    options = {"output": folder, "resume": True, "learning_rate": [1e-3, 1e-2]}
    with pytest.raises(SweepInterrupted):
        sweep(on_evaluation=interrupt, checkpoint_seconds=0, **options)
    assert "moved" in seen[1]  # which is what trackers are given
    dataset = sweep(**options).dataset
    assert {*dataset.data_vars} == {*results.load(folder).data_vars}
    return dataset


def outputs(measured):
    returns = np.full((len(measured), 1, 1), np.nan)
    rows = {"m": np.asarray(measured)[:, np.newaxis]}
    loss = {"loss": np.zeros(len(measured))}
    return [ChunkOutputs(jnp.asarray(returns), loss, rows)]  # type: ignore[arg-type]


def test_means_are_over_what_was_measured_in_chunks_of_any_size():
    nan = np.nan
    window = _add_outputs({}, outputs([1.0, nan, 4.0]))
    assert _find_means(window)["m"].tolist() == [2.5]
    window = _add_outputs(window, outputs([nan]))
    window = _add_outputs(window, outputs([nan, 7.0]))
    assert _find_means(window)["m"].tolist() == [4.0]
    assert np.isnan(_find_means(_add_outputs({}, outputs([nan])))["m"]).all()
    assert _find_means({}) == {}


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"m": np.zeros(1)}, r"metric m has shape \(1,\).*one real number"),
        ({"loss": 0.0}, "measure has a metric named loss"),
        ({"discount": 0.0}, "measure has a metric named discount"),
        ({"q_value": 0.0}, r"measure has metrics \['q_value'\], as the loss has"),
        ({"a/b": 0.0}, "the name of a metric of measure .'a/b'. must be printable"),
        (None, r"metrics of measure \(None\) must be numbers by name"),
    ],
)
def test_numbers_that_results_could_not_show_are_refused(name, metrics, words):
    experiment, config = EXPERIMENTS[name]
    train = experiment(config, measure=Measure(lambda *args: (None, metrics)))
    state = jax.eval_shape(train.init, jax.random.key(0))
    with pytest.raises(ConfigError, match=words) as caught:
        jax.eval_shape(lambda state: train.chunk(state, jnp.int32(1), 1), state)
    assert "\n" not in str(caught.value)
