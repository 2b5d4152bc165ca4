"""An agent in a file outside the package goes through every command."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from purejaxdqn import ConfigError, DQNConfig, RunConfig, agents, dqn, load, setting
from purejaxdqn.cli.main import main
from purejaxdqn.engine.programs import make_run_functions
from purejaxdqn.sweep import batches
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


def test_settings_of_no_registered_agent_are_refused():
    with pytest.raises(ConfigError, match="settings of Own with agent '' belong to no registered"):
        agents.train(Own())
    with pytest.raises(ConfigError, match="agent 'dqn' is registered already"):
        agents.register("dqn", Own(), lambda config: dqn(config))
    with pytest.raises(ConfigError, match="must be a name of letters"):
        agents.register("my agent", Own(), dqn)
    with pytest.raises(ConfigError, match="must be of a class derived from RunConfig"):
        agents.register("mine", object(), dqn)  # type: ignore[arg-type]


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
