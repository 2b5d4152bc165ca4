"""Tests the ablation: the settings of its combinations, its files, resuming and errors."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest

import purejaxdqn
from purejaxdqn import agents
from purejaxdqn.agents.components import (
    COMPONENTS,
    configure,
    configure_all,
    find_components,
)
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.cli.commands.ablate import run
from purejaxdqn.cli.flags import format_value
from purejaxdqn.storage import results
from purejaxdqn.sweep import batches
from purejaxdqn.types import ConfigError

PLAIN = agents.get("dqn").config
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


def combine(base, names, combination):
    return configure(base, {name: COMPONENTS[name] for name in names}, combination)


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", COMPONENTS)
def test_each_component_alone_is_plain_dqn_with_its_own_settings(name):
    with_it = combine(PLAIN, [name], (True,))
    assert combine(PLAIN, [name], (False,)) == PLAIN
    assert with_it != PLAIN
    changed = {k: v for k, v in vars(with_it).items() if v != getattr(PLAIN, k)}
    assert changed == COMPONENTS[name]
    assert len(configure_all(SHORT, find_components([name], SHORT))) == 2  # allowed


def test_what_the_base_has_already_is_taken_out_of_it():
    rainbow = agents.get("rainbow").config
    names = ["noisy", "categorical", "n_step", "layer_norm"]
    nothing = combine(rainbow, names, (False,) * 4)
    assert not nothing.noisy
    assert nothing.representation == "values"
    assert nothing.adam_epsilon == PLAIN.adam_epsilon
    assert nothing.n_step == 1
    assert nothing.prioritised  # is no component here
    everything = combine(rainbow, names, (True,) * 4)
    assert everything.n_step == 3  # Rainbow's own
    assert everything.layer_norm
    assert vars(everything) == vars(rainbow) | {"layer_norm": True}


def test_a_setting_given_by_hand_goes_before_a_components_own():
    by_hand = DQNConfig(**(vars(PLAIN) | {"n_step": 3, "adam_epsilon": 1e-4}))
    names = ["n_step", "categorical"]
    found: dict[Any, Any] = {
        c: combine(by_hand, names, c) for c in itertools.product((False, True), repeat=2)
    }
    assert {c: config.n_step for c, config in found.items()} == {c: 3 if c[0] else 1 for c in found}
    assert {config.adam_epsilon for config in found.values()} == {1e-4}


def test_a_setting_with_its_value_is_a_component_of_any_agent():
    pqn = agents.get("pqn").config
    components = find_components(["q_lambda=0.5", "layer_norm"], pqn)
    assert components == {"layer_norm": {"layer_norm": True}, "q_lambda=0.5": {"q_lambda": 0.5}}
    found: dict[Any, Any] = configure_all(pqn, components)
    assert found[False, True].q_lambda == found[True, True].q_lambda == 0.5
    assert found[True, False].q_lambda == 0.9


@pytest.mark.parametrize(
    ("components", "words"),
    [
        ((), ["components is empty", "double"]),
        (("duelling",), ["'duelling'", "dueling"]),
        (("double", "double"), ["differ"]),
        (("double", "soft"), ["double and soft both set td_error"]),
        (("discunt=0.9",), ["must name a setting of DQNConfig", "discount"]),
        (("discount=high",), ["discount ('high') must be a number"]),
        (
            ("munchausen", "categorical", "double"),
            [
                "munchausen+categorical: munchausen needs",
                "double+munchausen: double changes nothing: td_error is read only where munchausen",
            ],
        ),
        (
            ("huber", "quantile"),
            ["quantile+huber: huber changes nothing: penalty is read only where representation"],
        ),
        (("soft", "quantile"), ["quantile+soft: td_error ('soft_q_learning') must be one of"]),
    ],
)
def test_what_cannot_be_trained_is_named_in_one_error(components, words):
    with pytest.raises(ConfigError) as error:
        configure_all(SHORT, find_components(components, SHORT))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_a_component_beside_a_base_that_has_something_else_in_its_place():
    with pytest.raises(ConfigError, match="representation 'categorical' already"):
        find_components(["quantile"], agents.get("c51").config)
    with pytest.raises(ConfigError, match="the settings of pqn have no dueling"):
        find_components(["dueling"], agents.get("pqn").config)


# ------------------------------------------------------------------------------ a run, and going on


COMPONENTS_OF_A_RUN = ("double", "constant_learning_rate")


def flags(output, components=COMPONENTS_OF_A_RUN, *more):
    """Returns the words of a short ablation; of a flag that stands among `more`, those count."""
    short = {"num_seeds": 3, "width": 3} | {
        name: value for name, value in vars(SHORT).items() if value != getattr(PLAIN, name)
    }
    given = {word.partition("=")[0] for word in more}
    words = [
        f"--{name.replace('_', '-')}={format_value(value)}"
        for name, value in short.items()
        if f"--{name.replace('_', '-')}" not in given
    ]
    return ["--components", *components, "--output", str(output), *words, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, module_patch):
    output = tmp_path_factory.mktemp("ablation")
    compiled = []
    compile_programs = batches.compile_programs

    def counted(experiment, config, *rest, **options):
        compiled.append(config.td_error)
        return compile_programs(experiment, config, *rest, **options)

    module_patch.setattr(batches, "compile_programs", counted)
    run(flags(output))
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
    run(flags(output, ("constant_learning_rate", "double"), "--resume"))  # in any order
    assert len(compiled) == before
    assert results.load(output).identical(numbers)
    assert "Effect of each component" in capsys.readouterr().out


def test_other_components_or_seeds_are_not_mixed_in(trained):
    output, compiled = trained
    before = len(compiled)
    with pytest.raises(ConfigError, match="--resume"):
        run(flags(output))
    for changes in (["--num-seeds=2"], ["--first-seed=1"], ["--width=2"]):
        with pytest.raises(ConfigError, match=r"seeds: |width: "):
            run(flags(output, COMPONENTS_OF_A_RUN, "--resume", *changes))
    with pytest.raises(ConfigError, match=r"axes\.double: \[.*\] there"):
        run(flags(output, ("constant_learning_rate", "dueling"), "--resume"))
    assert len(compiled) == before
