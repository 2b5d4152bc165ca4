"""The gallery lists every recipe as it is, and each example of a seam makes a training run."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from purejaxdqn import dqn
from tiny import TINY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS: dict[str, str] = dict(
    re.findall(r"^### (.*?)\n.*?^```python\n(.*?)^```$", PAGE, re.M | re.S)
)
SHARED = re.findall(r"^## The seams\n.*?^```python\n(.*?)^```$", PAGE, re.M | re.S)[0]


def test_the_gallery_lists_every_recipe_with_its_seams():
    rows = re.findall(r"^\| [^|]+ \| (\d+) \| ([^|]+) \| \[`(\w+)`\]\(([^)]+)\) ", PAGE, re.M)
    recipes = {path.stem for path in (ROOT / "experiments" / "recipes").glob("*.py")} - {"__init__"}
    assert {name for _, _, name, _ in rows} == recipes
    for _, seams, name, link in rows:
        source = (ROOT / "docs" / link).read_text()
        assert link.endswith(f"/{name}.py")
        passed = {seam for seam in re.findall(r"`(\w+)`", seams) if seam != "pqn"}
        assert all(f"{seam}=" in source for seam in passed), (name, passed)


def test_the_page_has_a_section_for_every_part_of_dqn():
    parts = {*(dqn.__kwdefaults__ or {})} - {"env"}
    assert parts == {*re.findall(r"`(\w+)`", " ".join(SECTIONS))} - {
        "sequence_replay",
        "trajectory_loss",
    }


@pytest.mark.parametrize("title", SECTIONS)
def test_each_example_makes_a_run(title):
    names: dict[str, Any] = {}
    exec(SHARED + SECTIONS[title], names)
    train = names["experiment"](TINY)
    state = jax.eval_shape(train.init, jax.random.key(0))
    after, outputs = jax.eval_shape(lambda s: train.chunk(s, jnp.int32(1), 1), state)
    structure: Any = jax.tree.structure
    assert structure(after) == structure(state)
    assert "loss" in outputs.metrics
