"""The defaults for each task: what `--env` alone trains with."""

import pytest

from purejaxdqn import agents, environments
from purejaxdqn.agents import tasks
from purejaxdqn.cli.commands.sweep import read_sweep
from purejaxdqn.cli.commands.train import read_training
from purejaxdqn.cli.sweeps import sweep_flags
from purejaxdqn.training.declaration import settings_of

MINE = {"CartPole-v0": {tasks.ALL: {"discount": 0.5, "batch_size": 7}, "dqn": {"discount": 0.6}}}


@pytest.fixture
def tuned(monkeypatch):
    monkeypatch.setattr(tasks, "TUNED", MINE)


@pytest.mark.parametrize(
    ("task", "agent"), [(task, agent) for task, of_task in tasks.TUNED.items() for agent in of_task]
)
def test_each_entry_names_a_task_an_agent_and_settings_that_differ(task, agent):
    assert environments.is_known(task)
    settings = tasks.TUNED[task][agent]
    named = agents.names() if agent == tasks.ALL else [agent]
    configs = [agents.get(name).config for name in named]
    for setting, value in settings.items():
        assert any(getattr(config, setting, value) != value for config in configs), setting


@pytest.mark.parametrize("task", tasks.TUNED)
@pytest.mark.parametrize("agent", agents.names())
def test_all_agents_can_be_trained_with_them(task, agent):
    config = agents.defaults(agent, task)
    assert config.env == task
    declared = settings_of(type(config)).values()
    assert not [p for one in declared if (p := one.problem(getattr(config, one.name)))]
    assert not [*config.problems_together()]


def test_a_task_s_settings_are_defaults_and_what_is_given_goes_first(tuned):
    assert agents.configure(env="CartPole-v0").discount == 0.5
    assert agents.configure(agent="dqn", env="CartPole-v0").discount == 0.6
    assert vars(agents.configure(agent="dqn", env="CartPole-v0"))["batch_size"] == 7
    variant = "CartPole-v0?sticky_actions=0.1"
    assert vars(agents.configure(agent="dqn", env=variant))["batch_size"] == 7
    assert agents.configure(agent="dqn", env=variant).env == variant
    assert agents.configure(env="CartPole-v0", discount=0.7).discount == 0.7
    assert agents.configure(agent="pqn", env="CartPole-v0").discount == 0.5  # has no batch_size
    assert agents.configure() == agents.get(agents.DEFAULT).config


@pytest.mark.parametrize("argv", [["--env", "CartPole-v0"], ["--env=CartPole-v0"]])
def test_the_command_line_has_them(argv, tuned):
    def read(*more):
        return read_training([*argv, *more], "train", None, sweep_flags("results"))[0]

    assert (read().discount, read().batch_size) == (0.5, 7)
    assert read("--agent", "dqn").discount == 0.6
    assert read("--discount", "0.7").discount == 0.7


def test_each_task_of_a_sweep_has_its_own(tuned):
    design, _ = read_sweep(["--env", "CartPole-v0", "CartPole-v1"], "sweep")
    assert [point.config.discount for point in design.points] == [0.5, 0.99]
