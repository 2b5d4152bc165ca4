"""Weights of a finished run are loaded, and other runs go on from them."""

import dataclasses
import functools
import json
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from purejaxdqn import ConfigError, dqn, load_params, run_sweep
from tiny import TINY, bits

QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    how: dict[str, Any] = {"learning_rate": [1e-3, 1e-2], "output": folder, **QUIET}
    return folder, run_sweep(dqn, TINY, [3, 5], **how).params


def begins_with(params):
    return functools.partial(dqn, initial_params=params)


def test_the_weights_are_those_that_the_sweep_returned(pretrained):
    folder, params = pretrained
    for place in (folder, str(folder), folder / "results.nc"):
        one = load_params(place, seed=5, learning_rate=1e-2)
        assert bits(one) == bits(jax.tree.map(lambda x: x[1, 1], params))
    found, wanted = (str(jax.tree.structure(tree)) for tree in (one, params))
    assert found == wanted
    # An experiment whose loss has changed since has the same network.
    again = load_params(folder, experiment=begins_with(one), seed=3, learning_rate=1e-3)
    assert bits(again) == bits(jax.tree.map(lambda x: x[0, 0], params))


def test_all_seeds_go_on_from_one_run(pretrained, tmp_path):
    folder, _ = pretrained
    one, other = (load_params(folder, seed=seed, learning_rate=1e-2) for seed in (3, 5))
    for seed in range(2):
        first = jax.jit(begins_with(one)(TINY).init)(jax.random.key(seed)).learner
        assert bits(first.params) == bits(first.target_params) == bits(one)
    slow = dataclasses.replace(TINY, learning_rate=1e-9)
    how: dict[str, Any] = {"output": tmp_path / "x", **QUIET}
    dataset, params = run_sweep(begins_with(one), slow, [0, 1], **how)
    for row in range(2):
        jax.tree.map(
            lambda x, y, row=row: np.testing.assert_allclose(x[row], y, atol=1e-5), params, one
        )
    assert len(json.loads(dataset.attrs["experiment_arguments"])["initial_params"]) < 300
    # The same weights, loaded again, go on; others are noticed.
    same = load_params(folder, seed=3, learning_rate=1e-2)
    again = run_sweep(begins_with(same), slow, [0, 1], resume=True, **how)
    assert bits(again.params) == bits(params)
    with pytest.raises(ConfigError, match=r"experiment\.initial_params.*with bytes"):
        run_sweep(begins_with(other), slow, [0, 1], resume=True, **how)
    tuned = load_params(tmp_path / "x", experiment=begins_with(same), seed=1)
    assert bits(tuned) == bits(jax.tree.map(lambda x: x[1], params))


def test_each_seed_may_begin_with_weights_of_its_own(pretrained):
    _, params = pretrained

    def choose(key):
        row = jax.random.randint(key, (), 0, 2)
        return jax.tree.map(lambda x: jax.numpy.asarray(x)[0, row], params)

    init = jax.jit(begins_with(choose)(TINY).init)
    found = {str(bits(init(jax.random.key(seed)).learner.params)) for seed in range(8)}
    rows = [jax.tree.map(lambda x, row=row: x[0, row], params) for row in range(2)]
    assert found == {str(bits(row)) for row in rows}


def test_what_cannot_be_loaded_is_refused(pretrained, tmp_path):
    folder, _ = pretrained
    refused: list[tuple[dict[str, Any], str]] = [
        ({"seed": 3}, "say which one with learning_rate"),
        ({"seed": 4, "learning_rate": 1e-2}, "no run has seed 4"),
        ({"speed": 3}, "'speed' is no label"),
    ]
    for labels, problem in refused:
        with pytest.raises(ConfigError, match=problem):
            load_params(folder, **labels)
    wider = functools.partial(lambda c: dqn(dataclasses.replace(c, hidden_sizes=(9,))))
    with pytest.raises(ConfigError, match="weights of other settings"):
        load_params(folder, experiment=wider, seed=3, learning_rate=1e-2)
    shutil.copy(folder / "results.nc", tmp_path / "results.nc")
    with pytest.raises(ConfigError, match="does not have the weights"):
        load_params(tmp_path, seed=3, learning_rate=1e-2)
