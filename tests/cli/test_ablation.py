"""Tests the ablation: the settings of its combinations, its files, resuming and errors."""

import dataclasses
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import purejaxdqn
from purejaxdqn import agents
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.storage import results
from purejaxdqn.sweep import batches
from purejaxdqn.types import ConfigError

PATH = Path(__file__).parents[2] / "experiments" / "ablation.py"
spec = importlib.util.spec_from_file_location("ablation", PATH)
assert spec is not None
assert spec.loader is not None
ablation = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = ablation  # where dataclasses look
spec.loader.exec_module(ablation)
COMPONENTS, PLAIN, configure = ablation.COMPONENTS, ablation.PLAIN, ablation.configure

SHORT = dataclasses.replace(
    agents.get("dqn").config,
    total_steps=600,
    prefill_steps=200,
    batch_size=16,
    hidden_sizes=(8,),
    replay_capacity=400,
    target_period=5,
    eval_interval=200,
    eval_episodes=3,
)


def args(output, components=("double", "constant_learning_rate"), **changes):
    changes = {"num_seeds": 3, "config": SHORT, "width": 3, **changes}
    return ablation.Args(components=components, output=output, **changes)


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", COMPONENTS)
def test_each_component_alone_is_plain_dqn_with_its_own_settings(name, tmp_path):
    with_it = configure(PLAIN, [name], (True,))
    assert configure(PLAIN, [name], (False,)) == PLAIN
    assert with_it != PLAIN
    changed = {k: v for k, v in vars(with_it).items() if v != getattr(PLAIN, k)}
    assert changed == COMPONENTS[name]
    assert len(ablation.plan(args(tmp_path, (name,)))) == 2  # allowed
    listed = PATH.read_text().split("What is put in and left out, of: ")[1].split(".")[0]
    assert name in re.split(r",\s+", listed)


def test_what_the_base_has_already_is_taken_out_of_it():
    rainbow = agents.get("rainbow").config
    names = ["noisy", "categorical", "n_step", "layer_norm"]
    nothing = configure(rainbow, names, (False,) * 4)
    assert not nothing.noisy
    assert nothing.representation == "values"
    assert nothing.adam_epsilon == PLAIN.adam_epsilon
    assert nothing.n_step == 1
    assert nothing.prioritised  # is no component here
    everything = configure(rainbow, names, (True,) * 4)
    assert everything.n_step == 3  # Rainbow's own
    assert everything.layer_norm
    assert vars(everything) == vars(rainbow) | {"layer_norm": True}


def test_a_setting_given_by_hand_goes_before_a_components_own():
    by_hand = DQNConfig(**(vars(PLAIN) | {"n_step": 3, "adam_epsilon": 1e-4}))
    names = ["n_step", "categorical"]
    found = {c: configure(by_hand, names, c) for c in itertools.product((False, True), repeat=2)}
    assert {c: config.n_step for c, config in found.items()} == {c: 3 if c[0] else 1 for c in found}
    assert {config.adam_epsilon for config in found.values()} == {1e-4}


@pytest.mark.parametrize(
    ("components", "words"),
    [
        ((), ["components is empty", "double"]),
        (("duelling",), ["'duelling'", "dueling"]),
        (("double", "double"), ["differ"]),
        (("double", "soft"), ["double and soft both set td_error"]),
        (
            ("munchausen", "categorical", "double"),
            ["munchausen+categorical: munchausen needs", "double+munchausen: munchausen's soft"],
        ),
        (("huber", "quantile"), ["quantile+huber: huber is of values"]),
        (("soft", "quantile"), ["quantile+soft: td_error ('soft_q_learning') must be one of"]),
    ],
)
def test_what_cannot_be_trained_is_named_in_one_error(components, words, tmp_path):
    with pytest.raises(ConfigError) as error:
        ablation.plan(args(tmp_path, components))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_component_beside_a_base_that_has_something_else_in_its_place(tmp_path):
    with pytest.raises(ConfigError, match="representation 'categorical' already"):
        ablation.plan(args(tmp_path, ("quantile",), config=agents.get("c51").config))
    with pytest.raises(ConfigError, match="pqn"):
        ablation.base_config("pqn")


# ------------------------------------------------------------------------------ a run, and going on


@pytest.fixture(scope="module")
def trained(tmp_path_factory, module_patch):
    output = tmp_path_factory.mktemp("ablation")
    compiled = []
    compile_programs = batches.compile_programs

    def counted(experiment, config, *rest, **options):
        compiled.append(config.td_error)
        return compile_programs(experiment, config, *rest, **options)

    module_patch.setattr(batches, "compile_programs", counted)
    ablation.main(args(output))
    return output, compiled


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_one_program_a_structure_and_one_dataset_of_all(trained):
    output, compiled = trained
    assert compiled == ["q_learning", "double_q_learning"]  # four combinations, two programs
    dataset = results.load(output)
    assert dataset.attrs["status"] == "finished"
    assert dataset.double.dtype == dataset.constant_learning_rate.dtype == bool
    assert dataset.evaluation_return.dims[:2] == ("double", "constant_learning_rate")
    assert dataset.seed.values.tolist() == [0, 1, 2]
    assert dataset.evaluation_return.notnull().all()
    falls_to = agents.get("dqn").config.learning_rate_end_fraction
    for double, constant in itertools.product((False, True), repeat=2):
        there = dataset.sel(double=double, constant_learning_rate=constant)
        config = json.loads(there.settings.item())
        assert config["td_error"] == ("double_q_learning" if double else "q_learning")
        assert config["learning_rate_end_fraction"] == (1.0 if constant else falls_to)
    differing = dataset.loss.sel(step=600).std(["double", "constant_learning_rate"])
    assert (differing > 0).all()
    assert {path.name for path in output.iterdir() if path.is_file()} == {
        *("results.nc", "effects.png", "effects.svg", "effects.html"),
        *("learning_curves.html", "summary.json"),
    }
    facts = json.loads((output / "summary.json").read_text())
    assert list(facts["effects"]) == ["double", "constant_learning_rate"]
    assert len(facts["combinations"]) == 4


def test_a_run_of_it_again_has_the_same_bits(trained):
    dataset = results.load(trained[0])
    again = purejaxdqn.rerun(dataset, double=True, constant_learning_rate=False, seed=1)
    there = dataset.sel(double=True, constant_learning_rate=False, seed=1)
    np.testing.assert_array_equal(again.evaluation_return, there.evaluation_return)


def test_what_is_finished_is_not_trained_again(trained, capsys):
    output, compiled = trained
    before = len(compiled)
    numbers = results.load(output)
    ablation.main(args(output, ("constant_learning_rate", "double"), resume=True))  # in any order
    assert len(compiled) == before
    assert results.load(output).identical(numbers)
    assert "Effect of each component" in capsys.readouterr().out


def test_other_components_or_seeds_are_not_mixed_in(trained):
    output, compiled = trained
    before = len(compiled)
    with pytest.raises(ConfigError, match="--resume"):
        ablation.main(args(output))
    for changes in (
        {"num_seeds": 2},
        {"first_seed": 1},
        {"width": 2},
        {"components": ("constant_learning_rate", "dueling")},
    ):
        with pytest.raises(ConfigError, match=r"seeds: |width: |axes\.double: \[.*\] there"):
            ablation.main(args(output, resume=True, **changes))
    assert len(compiled) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--components", "munchausen", "double"], "double+munchausen"),
        (["--base=pqn"], "base ('pqn')"),
        (["--num-seeds=0"], "num_seeds (0)"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(flags, words, run_script, tmp_path):
    answer = run_script("ablation.py", *flags, "--output", tmp_path / "out")
    assert answer.returncode == 2
    assert words in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert answer.stdout == ""
    assert not (tmp_path / "out").exists()
