"""Lists the agents and the environments that every command knows.

purejaxdqn agents
purejaxdqn agents rainbow
purejaxdqn environments --import my_environment.py

Settings and wrappers stand behind a name: CartPole-v1?time_limit=200&mask_observation=1,3
"""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from purejaxdqn import agents, environments
from purejaxdqn.cli.flags import format_value, read_command_line
from purejaxdqn.runtime.console import make_console
from purejaxdqn.training.declaration import Setting, settings_of


def run_agents(argv: Sequence[str]) -> int:
    """Prints a row for each agent, or the settings of one, with defaults where these differ."""
    asked = Setting("agent", str, "", "an agent, whose settings are listed")
    name = read_command_line(argv, "purejaxdqn agents", __doc__, positional=asked).flags.agent
    if name:
        table = Table("setting", "value", "default", "what it is", box=box.SIMPLE_HEAD)
        config = agents.get(name).config
        for one in settings_of(type(config)).values():
            value = getattr(config, one.name)
            default = "" if value == one.default else format_value(one.default)
            table.add_row(one.name, format_value(value), default, one.help)
    else:
        table = Table("agent", "settings", "what it is", box=box.SIMPLE_HEAD)
        for name in agents.names():
            agent = agents.get(name)
            table.add_row(name, type(agent.config).__name__, agent.help)
    make_console().print(table)
    return 0


def run_environments(argv: Sequence[str]) -> int:
    """Prints a row for each environment and each library of them, and one for each wrapper."""
    read_command_line(argv, "purejaxdqn environments", __doc__)
    columns = ("environment", "actions", "observation", "steps", "solved at", "settings behind ?")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    before: Any = None
    for name in environments.names():
        env = environments.describe(name)
        solved = "" if env.threshold is None else f"{env.threshold:g}"
        steps = "no limit" if env.max_steps is None else f"at most {env.max_steps:,}"
        own = environments.options_of(name)
        settings = "\n".join(f"{key}: {one.help or one.wanted}" for key, one in own.items())
        settings, before = ("as above" if own and own is before else settings), own
        table.add_row(name, str(env.num_actions), env.observation, steps, solved, settings)
    for prefix in environments.prefixes():
        table.add_row(f"{prefix}:NAME", *4 * [""], f"any environment of {prefix}")
    console = make_console()
    console.print(table)
    wrappers = Table("wrapper behind ?", "value", "what it is", box=box.SIMPLE_HEAD)
    for name, option in environments.naming.WRAPPERS.items():
        wrappers.add_row(name, option.wanted, option.help)
    console.print(wrappers)
    return 0
