"""Imports point one way, from what is built on others to what they build on."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The lowest layer first. What is not listed lies above them, and below the experiments.
LAYERS = [
    {"types"},
    {
        *{"losses", "networks", "exploration", "replay", "environments"},
        *{"statistics", "devices"},
    },
    {"config", "evaluation", "diagnostics"},
    {"learner", "training"},
    {"dqn", "pqn"},
    {"agents"},
]
TOOLS, EXPERIMENTS = len(LAYERS), len(LAYERS) + 1


def layer(module: str) -> int:
    """Of a module by its dotted name; a folder is one module."""
    parts = module.split(".")
    if parts[0] != "purejaxdqn":
        return EXPERIMENTS
    name = parts[1] if len(parts) > 1 else ""
    return next((i for i, names in enumerate(LAYERS) if name in names), TOOLS)


def family(module: str) -> str:
    """The module or the folder right below `purejaxdqn`."""
    return ".".join(module.split(".")[:2])


def imported(module: str, source: str) -> Iterator[str]:
    """What a module imports of the project, anywhere in it, also within functions."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: write the whole name"
            # `from purejaxdqn import dqn` names a module, `from purejaxdqn.dqn import dqn` none.
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = below if node.module == "purejaxdqn" else [node.module or ""]
        yield from (n for n in names if n.split(".")[0] in ("purejaxdqn", "experiments", "tests"))


def problems(sources: dict[str, str]) -> list[str]:
    """Every import that points the wrong way, and every cycle."""
    found = []
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        for name in imported(module, source):
            if family(name) == family(module):
                continue
            graph.setdefault(family(module), set()).add(family(name))
            siblings = layer(module) == layer(name) == TOOLS
            if layer(name) >= layer(module) and not siblings:
                found.append(f"{module} imports {name}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"a cycle: {' -> '.join(error.args[1])}")
    return found


def project() -> dict[str, str]:
    paths = [*(ROOT / "purejaxdqn").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    sources = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text()
    return sources


def test_the_project():
    sources = project()
    assert {"purejaxdqn.types", "purejaxdqn.dqn", "purejaxdqn.losses.bellman"} <= set(sources)
    # The layers speak of modules that are there.
    assert {"types", "losses", "environments", "evaluation", "dqn"} <= {
        family(name).split(".")[-1] for name in sources
    }
    assert problems(sources) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("purejaxdqn.types", "from purejaxdqn.losses import q_learning", "purejaxdqn.losses"),
        ("purejaxdqn.losses.new", "from purejaxdqn.dqn import DQNConfig", "purejaxdqn.dqn"),
        ("purejaxdqn.losses.new", "from purejaxdqn import dqn", "purejaxdqn.dqn"),
        ("purejaxdqn.losses.new", "from purejaxdqn.replay import Replay", "purejaxdqn.replay"),
        ("purejaxdqn.evaluation", "import purejaxdqn.dqn as d", "purejaxdqn.dqn"),
        ("purejaxdqn.dqn", "def f():\n    from purejaxdqn.sweep import x", "purejaxdqn.sweep"),
        ("purejaxdqn.sweep", "import experiments.cartpole", "experiments.cartpole"),
        ("purejaxdqn.sweep", "from tests.conftest import x", "tests.conftest"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_found(module, source, expected):
    assert problems({module: source}) == [f"{module} imports {expected}"]


def test_a_cycle_among_the_tools_is_found():
    sources = {
        "purejaxdqn.sweep": "from purejaxdqn import results",
        "purejaxdqn.results": "from purejaxdqn.sweep import run_sweep",
    }
    assert "a cycle" in problems(sources)[0]


def test_what_is_allowed():
    sources = {
        "purejaxdqn.environments": "from purejaxdqn.environments.base import Environment",
        "purejaxdqn.environments.base": "from purejaxdqn.types import Array\nimport jax",
        "purejaxdqn.dqn": "from purejaxdqn import losses\nfrom purejaxdqn.evaluation import x",
        "purejaxdqn.sweep": "from purejaxdqn import dqn, results",
        "experiments.cartpole": "from purejaxdqn import sweep",
    }
    assert problems(sources) == []
