"""One run of a results file again: the same bits, whichever it is, or a clear refusal."""

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

import purejaxdqn
from purejaxdqn import agents
from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.storage import provenance
from purejaxdqn.sweep.design import grid_design, random_design
from purejaxdqn.sweep.run import run_design, run_sweep
from purejaxdqn.training.settings import config_from_json, config_to_json
from purejaxdqn.types import ConfigError
from tiny import TINY

CURVES = ("evaluation_return", "training_return", "loss", "q_value")
again = functools.partial(purejaxdqn.rerun, progress=False)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    output = tmp_path_factory.mktemp("grid")
    run_sweep(
        dqn,
        TINY,
        range(3),
        width=2,
        output=output,
        progress=False,
        learning_rate=[1e-3, 3e-3],
        dueling=[False, True],
    )
    return output


def assert_same_curves(one, other):
    for name in CURVES:
        assert one[name].values.tobytes() == other[name].values.tobytes(), name


def test_a_run_of_a_grid_again(grid):
    dataset = purejaxdqn.load(grid)
    several: tuple[dict[str, Any], ...] = (
        {"learning_rate": 3e-3, "dueling": True, "seed": 1},
        {"learning_rate": 1e-3, "dueling": False, "seed": 2},
    )
    for labels in several:
        alone = again(dataset, **labels)
        assert alone.evaluation_return.dims == ("step", "episode")
        assert_same_curves(alone, dataset.sel(labels))
    assert_same_curves(
        again(grid, learning_rate=1e-3, dueling=True, seed=0),
        dataset.sel(learning_rate=1e-3, dueling=True, seed=0),
    )


def test_labels_may_be_coordinates_of_the_dataset(grid):
    dataset = purejaxdqn.load(grid)
    run = dataset.isel(learning_rate=1, dueling=0, seed=2)
    labels: dict[str, Any] = {n: run[n] for n in ("learning_rate", "dueling", "seed")}
    assert_same_curves(again(dataset, **labels), run)


def test_what_was_chosen_before_may_be_named_again(grid):
    dataset = purejaxdqn.load(grid).sel(dueling=True)
    whole = again(grid, learning_rate=1e-3, dueling=True, seed=1)
    assert_same_curves(again(dataset, learning_rate=1e-3, seed=1), whole)
    assert_same_curves(again(dataset, learning_rate=1e-3, dueling=True, seed=1), whole)
    with pytest.raises(ConfigError, match="no run has dueling False"):
        again(dataset, learning_rate=1e-3, dueling=False, seed=1)


@dataclasses.dataclass(frozen=True)
class Mine(DQNConfig):
    bonus: float = 0.0


def mine(config):
    return dqn(config)


def test_settings_of_a_class_of_ones_own_are_run_again():
    config = Mine(**vars(TINY))
    dataset = run_sweep(mine, config, [3, 7], width=2, bonus=[0.5, 1.0], progress=False).dataset
    with pytest.raises(ConfigError, match=r"settings of Mine .* belong to no registered agent"):
        again(dataset, bonus=1.0, seed=7)  # nothing is imported because a file names it
    one = again(dataset, experiment=mine, bonus=1.0, seed=7)
    assert_same_curves(one, dataset.sel(bonus=1.0, seed=7))
    settings = json.loads(dataset.settings.values[0])
    moved = dataset.copy()
    moved["settings"] = ("bonus", [json.dumps({**settings, "kind": "nowhere.Mine"})] * 2)
    with pytest.raises(ConfigError, match=r"nowhere.Mine is not known here.*config_class"):
        again(moved, bonus=1.0, seed=7)
    given = again(moved, experiment=mine, config_class=Mine, bonus=1.0, seed=7)
    assert_same_curves(given, again(dataset, experiment=mine, bonus=0.5, seed=7))


def test_what_has_one_value_may_be_left_out(grid):
    part = purejaxdqn.load(grid).isel(dueling=[1], seed=[2])
    assert_same_curves(
        again(part, learning_rate=3e-3), part.sel(learning_rate=3e-3).isel(dueling=0, seed=0)
    )


def test_a_run_of_a_random_search_again():
    space = {"learning_rate": stats.loguniform(1e-4, 1e-2)}
    design = random_design(TINY, range(2), space, 3, np.random.default_rng(0))
    dataset = run_design(dqn, design, width=3, progress=False).dataset
    assert dataset.evaluation_return.dims == ("run", "step", "episode")
    assert dataset["sample"].values.tolist() == [0, 0, 1, 1, 2, 2]
    rate = float(dataset.learning_rate[4])
    alone = again(dataset, learning_rate=rate, seed=1)
    assert_same_curves(alone, dataset.isel(run=5))
    assert_same_curves(again(dataset, run=0), dataset.isel(run=0))
    frame = dataset.final_return.mean("episode").to_dataframe().reset_index()
    assert {"run", "learning_rate", "seed", "final_return"} <= {*frame.columns}
    assert len(frame) == 6


def test_a_run_of_a_sweep_over_agents_again():
    changes = {
        "total_steps": 800,
        "hidden_sizes": (8,),
        "eval_interval": 400,
        "eval_episodes": 2,
        "num_envs": 4,
    }

    def configure(agent):
        own = {"num_steps": 10} if agent == "pqn" else {"prefill_steps": 400}
        return agents.configure(agent=agent, **changes, **own)

    design = grid_design(configure, [0, 1], {"agent": ["double", "pqn"]})
    result = run_design(agents.train, design, progress=False)
    dataset = result.dataset
    assert dataset.step.values.tolist() == [0, 400, 800]
    assert np.isnan(dataset.evaluation_return.sel(agent="double", step=0)).all()
    assert np.isfinite(dataset.evaluation_return.sel(agent="pqn")).all()
    assert np.isfinite(dataset.final_return).all()
    assert dataset.num_updates.dims == ("agent", "seed", "step")
    assert result.params is None  # these networks have layers of their own
    alone = again(dataset, agent="pqn", seed=1)
    assert (
        alone.evaluation_return.values == dataset.evaluation_return.sel(agent="pqn", seed=1).values
    ).all()


def test_a_dataset_can_be_selected_from_and_put_in_a_table(grid):
    dataset = purejaxdqn.load(grid / "results.nc")
    assert dataset.sel(learning_rate=1e-3).evaluation_return.dims == (
        "dueling",
        "seed",
        "step",
        "episode",
    )
    frame = dataset.evaluation_return.mean("episode").to_dataframe().reset_index()
    assert [*frame.columns][:4] == ["learning_rate", "dueling", "seed", "step"]
    assert len(frame) == 2 * 2 * 3 * dataset.sizes["step"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, "12 runs have these labels: say which one with learning_rate, dueling, seed"),
        ({"learning_rate": 1e-3}, "6 runs"),
        ({"learning_rate": 2e-3, "dueling": True, "seed": 0}, "no run has learning_rate 0.002"),
        ({"discount": 0.9}, "'discount' is no label"),
        ({"seed": 7}, "no run has seed 7: there are 0, 1, 2"),
    ],
)
def test_labels_that_name_no_run_or_several_are_refused(grid, labels, words, monkeypatch):
    monkeypatch.setattr("purejaxdqn.sweep.batches.compile_programs", None)
    with pytest.raises(ConfigError, match=words):
        again(grid, **labels)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("width", value) for value in ("2", -1, None, 2.5)],
        *[("versions", value) for value in ("", "{", "[]", 5, "[" * 30_000)],
        *[("code", value) for value in ("x", "null", 5)],
        *[("experiment_arguments", value) for value in ("[]", np.array([1, 2]))],
        *[("git_commit", value) for value in (5, np.array([1, 2]))],
    ],
)
def test_attributes_that_cannot_be_read_are_named(grid, name, value):
    dataset = purejaxdqn.load(grid).assign_attrs({name: value})
    with pytest.raises(ConfigError, match=rf"its {name} cannot be read"):
        again(dataset, seed=0)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", "null", "[" * 30_000])
def test_settings_that_cannot_be_read_are_a_line(text):
    with pytest.raises(ConfigError, match=r"the settings .* cannot be read") as caught:
        config_from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [1], {}, True, "x"])
def test_values_that_a_setting_does_not_take_are_named(value):
    facts = json.loads(config_to_json(DQNConfig())) | {"learning_rate": value}
    with pytest.raises(ConfigError, match=r"learning_rate \(.*\) must be"):
        config_from_json(json.dumps(facts))


def test_what_was_trained_must_be_known(grid):
    dataset = purejaxdqn.load(grid)
    which: dict[str, Any] = {"learning_rate": 1e-3, "dueling": True, "seed": 0}
    lost = dataset.assign_attrs(experiment="nowhere.mine")
    with pytest.raises(ConfigError, match=r"made by nowhere.mine, which is not the experiment of"):
        again(lost, **which)
    assert_same_curves(again(lost, experiment=dqn, **which), dataset.sel(which))
    with pytest.raises(ConfigError, match="with loss_fn=mine, which is not the experiment of"):
        again(dataset.assign_attrs(experiment_arguments='{"loss_fn": "mine"}'), **which)
    for name in ("__main__.train", "mine.dqn"):  # only the last name is the package's
        with pytest.raises(ConfigError, match=f"made by {name}, which is not"):
            again(dataset.assign_attrs(experiment=name), **which)
    old = dataset.assign_attrs(experiment="purejaxdqn.dqn.dqn")  # before files were moved
    assert_same_curves(again(old, **which), dataset.sel(which))
    with pytest.raises(ConfigError, match="not one of a sweep"):
        again(dataset.drop_vars("settings"))


def test_other_versions_are_warned_about(grid, monkeypatch):
    known = provenance.collect_versions()
    monkeypatch.setattr(provenance, "collect_versions", lambda: {**known, "processor": "another"})
    with pytest.warns(UserWarning, match="other bits than it had: processor"):
        again(grid, learning_rate=1e-3, dueling=True, seed=0)


def test_the_package_has_no_other_names_of_its_own():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        purejaxdqn.lode  # noqa: B018


def test_the_package_runs_again_also_after_the_first_time(grid):
    """The module of that name takes the function's place in the package once it is imported."""
    with pytest.raises(ConfigError, match="is no label"):
        purejaxdqn.rerun(grid, discount=0.9)
