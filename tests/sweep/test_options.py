"""Options of a sweep: refused at once where they are wrong, the same for every way to run one."""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.search.search import search
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.options import SweepOptions, split_keywords, take_options
from purejaxdqn.sweep.ray.cluster import run_on_cluster
from purejaxdqn.sweep.run import print_plan, run_design, run_sweep
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.types import ConfigError

CONFIG = DQNConfig()
DESIGN = grid_design(CONFIG, [0], {})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("width", 0, r"width \(0\) must be a whole number of at least 1"),
        ("width", 2.0, r"width \(2.0\) must be a whole number of at least 1"),
        ("width", True, r"width \(True\)"),
        ("seed_mode", "pmap", r"seed_mode \('pmap'\) must be one of vmap, map"),
        ("seed_mode", [], r"seed_mode \(\[\]\)"),
        ("devices", "cpu", r"devices \('cpu'\) must be different devices of JAX"),
        ("devices", [], r"devices \(\[\]\)"),
        ("devices", jax.devices()[:1] * 2, "different devices of JAX"),
        ("output", 5, r"output \(5\) must be a path, such as"),
        ("resume", "yes", r"resume \('yes'\) must be True or False"),
        ("overwrite", 1, r"overwrite \(1\) must be True or False"),
        (
            "checkpoint_seconds",
            -1,
            r"checkpoint_seconds \(-1\) must be at least 0.*: give seconds, such as 60",
        ),
        ("checkpoint_seconds", math.nan, r"checkpoint_seconds \(nan\)"),
        ("checkpoint_seconds", "60", r"checkpoint_seconds \('60'\)"),
        ("memory_budget", 0, r"memory_budget \(0\) must be at least 1.*: give bytes, such as 4e9"),
        ("memory_budget", "4GB", r"memory_budget \('4GB'\)"),
        ("memory_budget", math.inf, r"memory_budget \(inf\)"),
        ("on_evaluation", "wandb", r"on_evaluation \('wandb'\) must be a function"),
        ("progress", 3, r"progress \(3\) must be True or False"),
        ("diagnostics", "yes", r"diagnostics \('yes'\) must be True or False"),
    ],
)
def test_a_bad_value_is_refused_wherever_it_is_given(name, value, words):
    with pytest.raises(ConfigError, match=words) as caught:
        SweepOptions(**{name: value})
    assert "\n" not in str(caught.value)
    for call in (
        lambda **names: run_sweep(dqn, CONFIG, [0], **names),
        lambda **names: run_design(dqn, DESIGN, **names),
        lambda **names: print_plan(dqn, DESIGN, **names),
        lambda **names: run_on_cluster(dqn, DESIGN, **names),
        lambda **names: search(dqn, CONFIG, {"discount": [0.9]}, seeds=[0], num_trials=1, **names),
    ):
        with pytest.raises(ConfigError, match=words):
            call(**{name: value})


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"seed_mode": "map", "width": 2}, r"width \(2\) must be 1 with seed_mode 'map'"),
        ({"resume": True}, r"resume \(True\) needs an output folder"),
        ({"overwrite": True}, r"overwrite \(True\) needs an output folder"),
        ({"output": "x", "resume": True, "overwrite": True}, "exclude each other"),
    ],
)
def test_options_that_exclude_each_other_are_refused(names, words):
    with pytest.raises(ConfigError, match=words):
        SweepOptions(**names)


def test_every_field_is_documented_once():
    text, declared = SweepOptions.__doc__ or "", settings_of(SweepOptions)
    for field in dataclasses.fields(SweepOptions):
        in_text = text.count(f"\n      {field.name}: ")
        assert in_text + (field.name in declared and bool(declared[field.name].help)) == 1


def test_options_may_be_written_as_people_write_them():
    assert SweepOptions(output="a/b").output == Path("a/b")  # type: ignore[arg-type]
    assert SweepOptions(memory_budget=4e9, checkpoint_seconds=np.float64(1)).memory_budget == 4e9
    assert SweepOptions(seed_mode="map").runs_per_batch == 1
    assert SweepOptions(width=3).runs_per_batch == 3
    assert SweepOptions().runs_per_batch is None


def test_keywords_are_options_or_settings():
    options, settings = split_keywords(None, {"width": 2, "learning_rate": [1e-3]})
    assert options == SweepOptions(width=2)
    assert settings == {"learning_rate": [1e-3]}
    whole = SweepOptions(width=2, progress=False)
    assert split_keywords(whole, {}) == (whole, {})
    assert split_keywords(whole, {"seed_mode": "vmap", "output": "x"})[0] == dataclasses.replace(
        whole, output=Path("x")
    )


def test_what_is_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"width is given twice, in options \(2\) and as a key"):
        run_sweep(dqn, CONFIG, [0], options=SweepOptions(width=2), width=2)


def test_what_are_no_options_is_refused():
    with pytest.raises(ConfigError, match=r"options \(\{'width': 2\}\) must be SweepOptions"):
        run_design(dqn, DESIGN, options={"width": 2})  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [run_design, print_plan, run_on_cluster])
def test_a_misspelt_option_is_named_with_what_was_meant(call):
    with pytest.raises(ConfigError, match=rf"'outptu' is no option of {call.__name__}: .*output"):
        call(dqn, DESIGN, outptu="x")
    with pytest.raises(ConfigError, match=r"'xyz' is no option of f: choose one of output, over"):
        take_options(None, {"xyz": 1}, "f")


def test_a_cluster_takes_no_devices_and_needs_a_folder():
    with pytest.raises(
        ConfigError, match=r"devices .* is no option of run_on_cluster: .*_per_task"
    ):
        run_on_cluster(dqn, DESIGN, devices=jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"output \(None\) must be a folder that all nodes"):
        run_on_cluster(dqn, DESIGN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed_mode", "map"),
        ("resume", True),
        ("checkpoint_seconds", 5),
        ("on_evaluation", print),
        ("diagnostics", True),
    ],
)
def test_a_search_refuses_options_that_it_has_no_use_for(name, value, tmp_path):
    pytest.importorskip("optuna")
    asked = {"seeds": [0], "num_trials": 1, "output": tmp_path, name: value}
    with pytest.raises(ConfigError, match=rf"{name} \(.*\) is no option of search: "):
        search(dqn, CONFIG, {"discount": [0.9]}, **asked)
    with pytest.raises(ConfigError, match=r"output \(None\) must be the folder of the search"):
        search(dqn, CONFIG, {"discount": [0.9]}, seeds=[0], num_trials=1)
