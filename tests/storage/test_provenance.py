"""Provenance: names of what was trained that last, settings as strict JSON, the right commit."""

import dataclasses
import functools
import json
import re
import subprocess
from functools import partial
from pathlib import Path

import pytest

from purejaxdqn import environments
from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.losses import bellman_loss
from purejaxdqn.storage import provenance
from purejaxdqn.storage.fingerprint import find_file


class Scaled:
    def __call__(self, factor, config):
        return dqn(config)


def test_what_is_trained_has_the_same_name_in_every_process():
    assert provenance.name_experiment(Scaled()) == provenance.name_experiment(Scaled())
    assert "0x" not in provenance.name_experiment(Scaled())["experiment"]
    names = provenance.name_experiment(partial(Scaled(), 3.0))
    assert json.loads(names["experiment_arguments"]) == {"argument 0": "3.0"}


def test_provenance_names_the_code_and_the_settings():
    config = DQNConfig(max_grad_norm=float("inf"))
    env = environments.make("CartPole-v0")
    facts = provenance.collect_provenance(
        dataclasses.asdict(config), partial(dqn, loss_fn=bellman_loss(), env=env)
    )
    assert facts["experiment"] == "purejaxdqn.agents.dqn.dqn.dqn"
    assert json.loads(facts["experiment_arguments"]) == {
        "env": "CartPole-v0",
        "loss_fn": "purejaxdqn.losses.bellman_loss.bellman_loss(q_learning, l2_loss)",
    }
    settings = json.loads(facts["config"], parse_constant=pytest.fail)  # strictly JSON
    assert settings["learning_rate"] == config.learning_rate
    assert float(settings["max_grad_norm"]) == config.max_grad_norm


def test_the_commit_is_this_projects_own(tmp_path, monkeypatch):
    def git(*command):
        names = ("-c", "user.name=a", "-c", "user.email=b")
        subprocess.run(["git", "-C", tmp_path, *names, *command], check=True, capture_output=True)

    git("init")
    (tmp_path / "provenance.py").write_text("")
    commit = functools.partial(provenance._git_commit.__wrapped__, tmp_path / "provenance.py")
    git("commit", "--allow-empty", "--message=another project's")
    assert commit() == "unknown"
    git("add", "provenance.py")
    git("commit", "--message=its own")
    git("tag", "--annotate", "v1", "--message=v1")
    assert re.fullmatch("[0-9a-f]{40}", commit())
    (tmp_path / "provenance.py").write_text("changed")
    assert re.fullmatch("[0-9a-f]{40}-dirty", commit())


class Loss:
    def __call__(self, *args):
        return 0.0


@functools.cache
def cached(*args):
    return 0.0


ENV = environments.make("CartPole-v1")
OURS = {
    "function": cached.__wrapped__,
    "cached": cached,
    "object": Loss(),
    "bound method": Loss().__call__,
    "class": Loss,
    "environment": ENV._replace(step=cached.__wrapped__),
}


@pytest.mark.parametrize("kind", OURS)
def test_the_file_of_what_is_the_users_is_found(kind):
    assert find_file(partial(dqn, part=OURS[kind])) == Path(__file__)  # type: ignore[call-arg]
    assert find_file([dqn, OURS[kind]]) == Path(__file__)
    assert find_file(partial(dqn, env=ENV)) is None
