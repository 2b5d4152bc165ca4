"""Imports point one way: each room of the package imports exactly the rooms listed here."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each room, and the rooms that it imports; those below come first. A file in the package's root is
# a room of its own.
ROOMS: dict[str, set[str]] = {
    "checks": set(),
    "types": {"checks"},
    "environments": {"checks", "types"},
    "networks": {"types"},
    "losses": {"types"},
    "replay": {"types"},
    "behaviours": {"types"},
    "runtime": {"checks", "types"},
    "storage": {"checks", "runtime"},
    "training": {"checks", "environments", "storage", "types"},
    "agents": {
        "behaviours",
        "checks",
        "environments",
        "losses",
        "networks",
        "replay",
        "training",
        "types",
    },
    "engine": {"runtime", "training", "types"},
    "tracking": {"checks"},
    "report": {"environments", "runtime", "storage", "training", "types"},
    "sweep": {
        "agents",
        "checks",
        "engine",
        "environments",
        "runtime",
        "storage",
        "tracking",
        "training",
        "types",
    },
    "search": {
        "checks",
        "engine",
        "report",
        "runtime",
        "storage",
        "sweep",
        "training",
        "types",
    },
    "testing": {
        "agents",
        "environments",
        "losses",
        "networks",
        "replay",
        "runtime",
        "training",
        "types",
    },
    "cli": {
        "agents",
        "checks",
        "environments",
        "losses",
        "report",
        "runtime",
        "search",
        "storage",
        "sweep",
        "testing",
        "tracking",
        "training",
    },
    "__main__": {"cli"},
}


def room(module: str) -> str:
    """The room of a module by its dotted name."""
    parts = module.split(".")
    if parts[0] != "purejaxdqn":
        return parts[0]
    return parts[1] if len(parts) > 1 else "purejaxdqn"


def imported(module: str, source: str) -> Iterator[str]:
    """What a module imports of the project, anywhere in it, also within functions."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: write the whole name"
            # `from purejaxdqn import losses` names a room, `from purejaxdqn.losses import x` too.
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = below if node.module == "purejaxdqn" else [node.module or ""]
        yield from (n for n in names if n.split(".")[0] in ("purejaxdqn", "experiments", "tests"))


def arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    """The rooms that each room imports."""
    found: dict[str, set[str]] = {}
    for module, source in sources.items():
        here = found.setdefault(room(module), set())
        here |= {room(name) for name in imported(module, source)} - {room(module)}
    return found


def problems(sources: dict[str, str]) -> list[str]:
    """Every import that the list of rooms does not have."""
    return [
        f"{module} imports {name}"
        for module, source in sources.items()
        for name in imported(module, source)
        if room(name) != room(module) and room(name) not in ROOMS.get(room(module), set())
    ]


def package() -> dict[str, str]:
    sources = {}
    for path in (ROOT / "purejaxdqn").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text()
    del sources["purejaxdqn"]  # the package's face hands names on
    return sources


def test_each_room_imports_exactly_what_is_listed():
    assert arrows(package()) == ROOMS


def test_the_list_itself_points_one_way():
    order = [*graphlib.TopologicalSorter(ROOMS).static_order()]  # raises for a circle
    assert {*order} == {*ROOMS}, "a room is imported that is not listed"
    listed = [*ROOMS]
    for name, below in ROOMS.items():
        above = [other for other in below if listed.index(other) > listed.index(name)]
        assert not above, f"{name} imports {above}, which stand above it in the list"


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("purejaxdqn.types", "from purejaxdqn.losses import q_learning", "purejaxdqn.losses"),
        ("purejaxdqn.losses.new", "from purejaxdqn.agents.dqn import x", "purejaxdqn.agents.dqn"),
        ("purejaxdqn.losses.new", "from purejaxdqn import testing", "purejaxdqn.testing"),
        ("purejaxdqn.losses.new", "from purejaxdqn.replay import Replay", "purejaxdqn.replay"),
        ("purejaxdqn.engine.new", "import purejaxdqn.agents as a", "purejaxdqn.agents"),
        (
            "purejaxdqn.engine.new",
            "def f():\n    from purejaxdqn.sweep import x",
            "purejaxdqn.sweep",
        ),
        ("purejaxdqn.sweep.new", "import experiments.cartpole", "experiments.cartpole"),
        ("purejaxdqn.sweep.new", "from tests.conftest import x", "tests.conftest"),
        ("purejaxdqn.unheard_of", "from purejaxdqn.types import Array", "purejaxdqn.types"),
    ],
)
def test_an_import_that_is_not_listed_is_found(module, source, expected):
    assert problems({module: source}) == [f"{module} imports {expected}"]


def test_what_is_listed_is_no_problem():
    sources = {
        "purejaxdqn.environments.new": "from purejaxdqn.environments.base import Environment",
        "purejaxdqn.environments.base": "from purejaxdqn.types import Array\nimport jax",
        "purejaxdqn.agents.new": "from purejaxdqn import losses\nfrom purejaxdqn.training import x",
    }
    assert problems(sources) == []
