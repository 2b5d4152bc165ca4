"""An agent in a file outside the package goes through every command."""

import dataclasses
import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from purejaxdqn import ConfigError, DQNConfig, RunConfig, agents, dqn, load, setting
from purejaxdqn.agents.components import configure_all, find_components
from purejaxdqn.cli.main import main
from purejaxdqn.cli.main import run as run_command_line
from purejaxdqn.engine.programs import compile_programs, make_run_functions
from purejaxdqn.runtime.devices import make_plan
from purejaxdqn.sweep import batches
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.training.declaration import settings_of

FILE = Path(__file__).parents[2] / "experiments" / "my_agent.py"
SHORT = "--total-steps 240 --prefill-steps 80 --replay-capacity 160 --batch-size 8 --hidden-sizes 8"
SHORT += " --target-period 5 --eval-interval 80 --eval-episodes 2 --num-seeds 2 --width 2"


def call(command, output, *flags):
    """Runs a command on the agent; gives its exit code."""
    words = [command, "--import", str(FILE), "--agent", "cautious", *SHORT.split()]
    with pytest.raises(SystemExit) as caught:
        main([*words, *flags, "--output", str(output)])
    return caught.value.code or 0


def test_the_file_is_short():
    code = FILE.read_text().split('"""', 2)[2].splitlines()
    assert len([line for line in code if line.strip()]) <= 60


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    output = tmp_path_factory.mktemp("own") / "sweep"
    assert call("sweep", output, "--caution", "0", "1", "--weight-decay", "0.01") == 0
    return output


def test_it_is_swept_over_its_own_settings(swept):
    dataset = load(swept)
    assert dataset.caution.values.tolist() == [0, 1]
    settings = json.loads(dataset.sel(caution=1).settings.item())
    assert (settings["agent"], settings["weight_decay"]) == ("cautious", 0.01)
    assert (dataset.loss.sel(step=240, caution=0) != dataset.loss.sel(step=240, caution=1)).all()


def test_a_sweep_of_it_resumes_and_a_run_of_it_is_the_same_again(swept, capsys, monkeypatch):
    monkeypatch.setattr(batches, "compile_programs", None)
    flags = ("--caution", "0", "1", "--weight-decay", "0.01", "--resume")
    assert call("sweep", swept, *flags) == 0
    monkeypatch.undo()
    with pytest.raises(SystemExit) as caught:
        main(["rerun", str(swept), "--import", str(FILE), "--caution", "1", "--seed", "1"])
    assert not caught.value.code
    assert "the same numbers as in the file, to the bit" in capsys.readouterr().out


def test_it_is_trained_played_and_filmed(tmp_path, capsys):
    assert call("train", tmp_path / "run", "--caution", "0.25") == 0
    assert json.loads(load(tmp_path / "run").settings.item())["caution"] == 0.25
    assert (tmp_path / "run" / "policy.gif").exists()
    film = tmp_path / "film.gif"
    flags = ["--seed", "1", "--num-episodes", "2", "--film", str(film), "--import", str(FILE)]
    with pytest.raises(SystemExit) as caught:
        main(["play", str(tmp_path / "run"), *flags])
    assert not caught.value.code
    assert film.exists()
    assert "mean return" in capsys.readouterr().out


def test_it_is_ablated(tmp_path):
    components = ("--components", "caution=1", "layer_norm", "--n-step", "1")
    assert call("ablate", tmp_path / "out", *components) == 0
    dataset = load(tmp_path / "out")
    for is_in, caution in itertools.product((False, True), repeat=2):
        there = dataset.sel({"layer_norm": is_in, "caution=1": caution})
        settings = json.loads(there.settings.item())
        assert settings["layer_norm"] == is_in
        assert settings["caution"] == (1.0 if caution else 0.05)
    # The labels of an ablation are flags like any others.
    labels = ["--caution-1", "true", "--layer-norm", "False", "--seed", "1"]
    with pytest.raises(SystemExit) as caught:
        main(["rerun", str(tmp_path / "out"), "--import", str(FILE), *labels])
    assert not caught.value.code


def test_it_is_searched(tmp_path):
    flags = ("--caution", "uniform:0:1", "--num-trials", "2")
    assert call("search", tmp_path / "out", *flags) == 0
    assert load(tmp_path / "out").caution.size == 2


def test_it_is_listed_with_its_settings(capsys):
    with pytest.raises(SystemExit):
        main(["agents", "cautious", "--import", str(FILE)])
    out = capsys.readouterr().out
    assert "weight_decay" in out
    assert "0.0001" in out


# ----------------------------------------------------------------------------- what is refused


@dataclasses.dataclass(frozen=True)
class Own(DQNConfig):
    power: float = setting(2.0, "Some float that Python has to know.", static=True)
    num_warm: int = setting(0, "A whole number that may be 0.", at_least=0)
    mix: float = setting(0.5, "Some float of the compiled program.", at_least=0, at_most=1)


def test_floats_may_be_static_and_whole_numbers_zero():
    declared = settings_of(Own)
    assert not declared["power"].is_traced
    assert declared["mix"].is_traced
    Own(num_warm=0).validate()
    with pytest.raises(ConfigError, match=r"num_warm \(-1\) must be at least 0"):
        Own(num_warm=-1).validate()
    structure: Any = jax.tree.structure
    assert structure(Own(mix=0.1)) == structure(Own(mix=0.9))
    assert structure(Own(power=1.0)) != structure(Own(power=2.0))


def test_a_stack_of_settings_is_a_config_of_arrays():
    stack: Any = jax.tree.map(lambda *x: np.array(x), Own(mix=0.1), Own(mix=0.9))
    assert stack.mix.tolist() == [0.1, 0.9]
    assert stack.num_warm == 0
    doubled = jax.vmap(lambda config: 2 * config.mix)(stack)
    np.testing.assert_allclose(doubled, [0.2, 1.8])


def test_an_experiment_that_branches_on_a_traced_setting_is_told_its_name():
    def branches(config):
        return dqn(dataclasses.replace(config, n_step=1 if config.mix > 0.3 else 2))

    with pytest.raises(ConfigError, match="value of mix while it is traced") as error:
        make_run_functions(branches, Own())
    assert "mix: float = setting(0.5, help, static=True)" in str(error.value)

    def branches_on_a_static_one(config):
        return dqn(dataclasses.replace(config, n_step=1 if config.power > 1 else 2))

    make_run_functions(branches_on_a_static_one, Own())


@pytest.mark.parametrize("part", ["policy", "probe"])
def test_so_is_one_whose_policy_or_probe_does(part):
    def branches(config):
        train = dqn(config)
        assert train.probe is not None

        def asking(function):
            return lambda *args: function(*args) if config.mix > 0.3 else None

        if part == "policy":
            return train._replace(policy=asking(train.policy))
        return train._replace(probe=train.probe._replace(observe=asking(train.probe.observe)))

    with pytest.raises(ConfigError, match="value of mix while it is traced"):
        compile_programs(branches, Own(), make_plan(1, 1), jax.devices()[:1], diagnostics=True)


def test_settings_of_no_registered_agent_are_refused():
    with pytest.raises(ConfigError, match="settings of Own with agent '' belong to no registered"):
        agents.train(Own())
    with pytest.raises(ConfigError, match="agent 'dqn' is registered already"):
        agents.register("dqn", Own(), lambda config: dqn(config))
    with pytest.raises(ConfigError, match="must be a name of letters"):
        agents.register("my agent", Own(), dqn)
    with pytest.raises(ConfigError, match="must be of a class derived from RunConfig"):
        agents.register("mine", object(), dqn)  # type: ignore[arg-type]


def test_a_name_is_registered_again_only_by_its_own_module():
    rainbow = agents.get("rainbow")
    with pytest.raises(ConfigError, match="agent 'rainbow' is registered already"):
        agents.register("rainbow", DQNConfig(), dqn)
    assert agents.get("rainbow") == rainbow
    first = agents.register("again", Own(), dqn)  # as a notebook's cell that runs twice
    assert agents.register("again", Own(mix=0.1), dqn).config.mix == 0.1
    assert first.config.mix == 0.5


def test_the_agent_cannot_be_swept_over_the_settings_of_one():
    with pytest.raises(ConfigError, match=r"agents\.configure in the place of config"):
        grid_design(DQNConfig(), [0], {"agent": ["dqn", "rainbow"]})


def test_components_of_a_class_of_ones_own_are_beside_plain_dqn():
    base = Own()
    found: Any = configure_all(base, find_components(["double", "mix=0.1"], base))
    assert [config.td_error for config in found.values()][:2] == ["q_learning"] * 2
    assert found[True, True].mix == 0.1
    with pytest.raises(ConfigError, match=r"mix=0.5 changes nothing"):
        configure_all(base, find_components(["mix=0.5"], base))


def test_settings_out_of_a_pickle_are_a_pytree_where_no_other_was_made():
    """As those that a worker on another node is given."""
    code = "import pickle, sys, jax; settings = pickle.load(sys.stdin.buffer); "
    code += "assert len(jax.tree.leaves(settings)) == 9"
    content = pickle.dumps(agents.get("pqn").config)
    subprocess.run([sys.executable, "-c", code], input=content, check=True)


def test_a_setting_with_the_name_of_a_flag_or_of_a_result_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Width(DQNConfig):
        width: int = 7

    agents.register("wide", Width(), dqn)
    with pytest.raises(ConfigError, match="the settings width have the names of flags"):
        run_command_line(["train", "--agent", "wide", "--width", "9"])

    @dataclasses.dataclass(frozen=True)
    class Step(DQNConfig):
        step: int = 7

    with pytest.raises(ConfigError, match=r"Step\.step has a name of the results"):
        Step()


def test_declarations_that_nothing_could_keep_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Optional(DQNConfig):
        perhaps: float | None = None

    with pytest.raises(ConfigError, match=r"Optional\.perhaps \(None\) must be a bool, a number"):
        Optional()

    @dataclasses.dataclass(frozen=True)
    class Depends(DQNConfig):
        odd: float = setting(1.0, "Read never.", read_if={"nope": True})

    with pytest.raises(ConfigError, match="read only where nope has some value"):
        Depends()


def test_a_class_of_settings_that_is_no_dataclass_is_refused():
    class Forgotten(DQNConfig):
        more: float = 1.0

    with pytest.raises(ConfigError, match="Forgotten must be a frozen dataclass"):
        Forgotten()

    @dataclasses.dataclass(frozen=True)
    class Odd(RunConfig):
        names: dict[str, int] = dataclasses.field(default_factory=dict)

    with pytest.raises(ConfigError, match=r"Odd\.names .* must be of type bool, int, float"):
        Odd()
