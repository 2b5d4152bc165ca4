"""The gallery lists every recipe as it is, and each example of a seam makes a training run."""

import functools
import json
import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from purejaxdqn import dqn, losses, networks
from purejaxdqn.training import learner as learning
from purejaxdqn.types import Transition
from tiny import TINY

ROOT = Path(__file__).parents[2]
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
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


def test_the_gallery_says_how_each_recipe_ended_as_the_picture_does():
    (description,) = ElementTree.parse(ROOT / "docs" / "recipes.svg").iter(DESCRIPTION)
    drawn = json.loads(description.text or "")
    script = runpy.run_path(str(ROOT / "docs" / "draw_recipes.py"))
    assert script["write_ends"](drawn, PAGE) == PAGE
    other = script["write_ends"](dict.fromkeys(drawn, "7 (6 to 8)"), PAGE)
    assert other.count("7 (6 to 8)") == len(drawn)
    assert "plain `dqn` is 7 (6 to 8).\n" in other


def test_the_picture_has_a_panel_for_each_recipe_with_plain_dqn_behind():
    def results(level):
        returns = level + np.arange(2 * 3 * 4.0).reshape(2, 3, 4)
        dims, steps = ("seed", "step", "episode"), [0, 5, 10]
        return xr.Dataset({"evaluation_return": (dims, returns)}, {"seed": [1, 2], "step": steps})

    draw = runpy.run_path(str(ROOT / "docs" / "draw_recipes.py"))["draw"]
    figure = draw({"dqn": results(0), "one": results(100), "other": results(200)})
    panels = [panel for panel in figure.axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == ["one", "other"]
    shown = [[line.get_ydata().tolist() for line in panel.lines] for panel in panels]
    plain = np.array([7.5, 11.5, 15.5])  # the mean over episodes and both seeds
    assert shown == [[[*plain], [*plain + 100]], [[*plain], [*plain + 200]]]


def test_the_page_has_a_section_for_every_part_of_dqn():
    parts = {*(dqn.__kwdefaults__ or {})} - {"env"}
    assert parts == {*re.findall(r"`(\w+)`", " ".join(SECTIONS))} - {
        "sequence_replay",
        "trajectory_loss",
        "independent_batches",
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
    if "own_batches" in names:
        check_own_batches(names["own_batches"])


def check_own_batches(loss):
    """Each member of the page's ensemble is taught by its own batch, as DQN alone would be."""
    member = networks.value_network(2, (4,))
    network = networks.ensemble(member, 3, functools.partial(jnp.mean, axis=0))
    keys = iter(jax.random.split(jax.random.key(1), 6))
    obs_tm1, obs_t = (jax.random.normal(next(keys), (6, 4)) for _ in range(2))
    actions = jax.random.randint(next(keys), (6,), 0, 2)
    batch = Transition(obs_tm1, actions, jnp.arange(6.0), jnp.full(6, 0.9), obs_t)
    params, target_params = (network.init(next(keys), obs_t[0]) for _ in range(2))
    found = loss(network, params, target_params, batch, next(keys))
    alone = learning.over_batch(losses.bellman_loss(losses.q_learning))
    for k in range(3):
        own = slice(2 * k, 2 * k + 2)
        pick = lambda tree, at: jax.tree.map(lambda x: x[at], tree)  # noqa: E731
        weights = pick(params, k), pick(target_params, k)
        output = alone(member, *weights, pick(batch, own), jax.random.key(0))
        np.testing.assert_allclose(found.priority[own], output.priority, rtol=1e-5)
