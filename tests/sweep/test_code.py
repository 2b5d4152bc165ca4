"""A result belongs to the code that made it: another one is refused by the name of what differs."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import xarray as xr

from purejaxdqn import ConfigError, agents, dqn, environments, load, losses, rerun, run_sweep
from purejaxdqn.report.training import find_environment
from purejaxdqn.storage.fingerprint import FORMAT, find_file
from purejaxdqn.sweep import resume
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.plan import plan_sweep
from purejaxdqn.sweep.rerun import load_run
from purejaxdqn.training.settings import config_to_json
from tiny import TINY, assert_same_dataset


def scaled(c):
    def td_error(q_tm1, a_tm1, r_t, discount_t, q_t):
        return c * (r_t + discount_t * jnp.max(q_t) - q_tm1[a_tm1])

    return td_error


def experiment_of(c):
    return functools.partial(dqn, loss_fn=losses.bellman_loss(scaled(c)))


quiet = functools.partial(run_sweep, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    return output, quiet(experiment_of(1.0), TINY, [0], output=output).dataset


def test_a_closure_that_differs_is_named_when_a_finished_sweep_is_resumed(finished):
    output, _ = finished
    with pytest.raises(ConfigError, match=r'begun with other code.*td_error\.c: "1.0" there, "7.0'):
        quiet(experiment_of(7.0), TINY, [0], output=output, resume=True)


def test_another_function_is_named(finished):
    output, _ = finished
    mine = functools.partial(dqn, loss_fn=losses.bellman_loss(losses.double_q_learning))
    with pytest.raises(ConfigError, match=r"code\.experiment.*td_error.* now"):
        quiet(mine, TINY, [0], output=output, resume=True)


def test_the_same_code_goes_on(finished):
    output, dataset = finished
    again = quiet(experiment_of(1.0), TINY, [0], output=output, resume=True).dataset
    assert_same_dataset(again, dataset)


def test_a_file_that_something_else_has_put_there_is_written_again(finished, tmp_path):
    output, dataset = finished
    shutil.copytree(output, tmp_path / "copy")
    xr.Dataset({"mine": 1}).to_netcdf(tmp_path / "copy" / "results.nc")
    quiet(experiment_of(1.0), TINY, [0], output=tmp_path / "copy", resume=True)
    assert_same_dataset(load(tmp_path / "copy"), dataset)


def test_a_rerun_needs_the_code_that_made_the_results(finished):
    _, dataset = finished
    assert_same_dataset(
        rerun(dataset, experiment=experiment_of(1.0), progress=False), dataset.isel(seed=0)
    )
    with pytest.raises(ConfigError, match=r"made by other code.*td_error\.c: .*train anew"):
        rerun(dataset, experiment=experiment_of(7.0), progress=False)


def test_results_of_older_versions_are_rerun_without_the_comparison(finished):
    _, dataset = finished
    older = dataset.drop_attrs().assign_attrs(
        {name: value for name, value in dataset.attrs.items() if name != "code"}
    )
    rerun(older, experiment=experiment_of(1.0), progress=False)


def test_an_agent_whose_code_has_changed_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(agents, "_AGENTS", dict(agents._AGENTS))
    agents.register("mine", TINY, experiment_of(1.0))
    config = agents.configure(agent="mine")
    dataset = quiet(agents.train, config, [0], output=tmp_path).dataset
    assert_same_dataset(rerun(tmp_path, progress=False), dataset.isel(seed=0))
    agents.register("mine", TINY, experiment_of(7.0))
    match = r"code\.agent mine\..*td_error\.c: \"1.0\""
    for act in (
        lambda: quiet(agents.train, config, [0], output=tmp_path, resume=True),
        lambda: rerun(tmp_path, progress=False),
        lambda: load_run(tmp_path, dataset, {}),
    ):
        with pytest.raises(ConfigError, match=match):
            act()


def test_an_environment_and_a_class_of_settings_are_part_of_the_code(monkeypatch):
    before = resume.describe_code(dqn, [TINY])
    make = environments.make
    monkeypatch.setattr(environments, "make", lambda name: make(name)._replace(max_steps=7))
    (line,) = resume.find_differences(before, resume.describe_code(dqn, [TINY]), "code")
    assert line == 'code.env CartPole-v1.max_steps: "500" there, "7" now'
    assert "class DQNConfig" in before


def test_results_say_which_commit_the_users_code_has(finished):
    _, dataset = finished
    assert dataset.attrs["experiment_git_commit"]
    assert json.loads(dataset.attrs["code"]).keys() >= {"experiment", "class DQNConfig"}
    assert find_file(experiment_of(1.0)) == Path(__file__)
    assert find_file(dqn) is None


def test_what_cannot_be_seen_is_said_once(tmp_path, capsys):
    mine = functools.partial(experiment_of(1.0))
    mine.keywords["loss_fn"].__wrapped__ = (i for i in range(3))
    run_sweep(mine, TINY, [0], output=tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("a builtins.generator would go unnoticed") == 1


MINE = environments.make("CartPole-v1")._replace(name="Mine-v0", threshold=20.0, max_steps=77)


def test_results_name_the_environment_that_was_passed(tmp_path):
    mine = functools.partial(dqn, env=MINE)
    dataset = quiet(mine, TINY, [0], output=tmp_path).dataset
    assert (dataset.attrs["env"], dataset.attrs["threshold"]) == ("Mine-v0", 20.0)
    assert "CartPole" not in str({**dataset.attrs, "settings": dataset.settings.item()})
    assert find_environment(load(tmp_path)) == ("Mine-v0", 20.0)
    quiet(mine, TINY, [0], output=tmp_path, resume=True)
    assert_same_dataset(rerun(tmp_path, experiment=mine, progress=False), dataset.isel(seed=0))
    with pytest.raises(ConfigError, match=r"environment \('Mine-v0'\) must be one of"):
        rerun(tmp_path, experiment=dqn, progress=False)
    other = functools.partial(dqn, env=MINE._replace(max_steps=78))
    with pytest.raises(ConfigError, match=r'env\.max_steps: "77" there, "78" now'):
        rerun(tmp_path, experiment=other, progress=False)


def test_an_environment_made_of_the_one_that_the_settings_name_has_its_own_name():
    def sticky(config):
        env = environments.make(config.env)
        return dqn(config, env=env._replace(name=f"Sticky-{env.name}", threshold=None))

    design = grid_design(TINY, [0], {"env": ["CartPole-v0", "CartPole-v1"]})
    assert plan_sweep(sticky, design, jax.devices()).environment == {}
    planned = plan_sweep(sticky, grid_design(TINY, [0], {}), jax.devices())
    assert planned.environment == {"env": "Sticky-CartPole-v1"}
    assert planned.recorded is planned.design


def test_an_older_fingerprint_is_compared_as_far_as_it_goes():
    now = resume.describe_code(experiment_of(1.0), [TINY])
    older = {**now, "env Gone-v0": {"name": "gone"}, "experiment": {**now["experiment"]}}
    del older["format"], older["class DQNConfig"]
    assert resume.find_differences(*resume.compare_code(older, now)) == []
    other = resume.describe_code(experiment_of(7.0), [TINY])
    (line,) = resume.find_differences(*resume.compare_code(older, other))
    assert line.endswith('td_error.c: "1.0" there, "7.0" now')
    assert len(resume.find_differences(*resume.compare_code({**older, "format": FORMAT}, now))) > 1


def test_cartpole_is_the_same_where_an_older_fingerprint_has_it_at_its_first_place():
    """Its file moved, and the contract grew."""
    home = "purejaxdqn.environments.cartpole"
    then = {
        **{"name": "'CartPole-v1'", "reset": f"{home}.reset of purejaxdqn"},
        "step": {"": f"{home}.step of purejaxdqn", "max_steps": "500"},
        **{"num_actions": "2", "threshold": "475.0", "max_steps": "500", "legal_actions": "None"},
    }
    older = {"env CartPole-v1": then, "format": "2"}
    now = resume.describe_code(dqn, [TINY])
    assert resume.find_differences(*resume.compare_code(older, now)) == []
    then["reset"] = f"{home}.other of purejaxdqn"
    (line,) = resume.find_differences(*resume.compare_code(older, now))
    assert "env CartPole-v1.reset" in line


@pytest.mark.parametrize("is_swept", [False, True])
def test_a_setting_that_came_since_is_the_default(is_swept):
    def asked(**changes):
        settings = json.loads(config_to_json(TINY)) | changes
        return {"code": {}, "settings": {"a=1": settings} if is_swept else settings}

    begun = asked()
    for settings in begun["settings"].values() if is_swept else [begun["settings"]]:
        del settings["eval_max_steps"]
    assert resume._compare(begun, asked()) == []
    for changes in {"eval_max_steps": 7}, {"gone": 3}:
        (line,) = resume._compare(begun, asked(**changes))
        assert next(iter(changes)) in line
    (line,) = resume._compare(asked(gone=3), asked())
    assert "gone: 3 there, nothing now" in line
