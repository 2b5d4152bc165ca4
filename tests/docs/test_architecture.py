"""The pages about the package's layout say what the code says."""

import ast
import json
import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
GROUND = {"checks", "types"}
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"


@pytest.fixture(scope="module")
def drawing():
    return runpy.run_path(str(ROOT / "docs/draw_rooms.py"))


@pytest.fixture(scope="module")
def rooms(drawing):
    return drawing["read_rooms"]()


@pytest.fixture(scope="module")
def picture():
    return ElementTree.parse(ROOT / "docs/rooms.svg").getroot()


def rows(page, header):
    """The cells of the rows of a table, below its header and its rule."""
    table = page.split(f"| {header} |", 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def defined_in(path):
    """The names of all classes and functions in a file, and of what is assigned in its classes."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_picture_was_drawn_from_the_code_as_it_is(rooms, picture):
    (description,) = picture.iter(DESCRIPTION)
    drawn = json.loads(description.text)
    again = "run python docs/draw_rooms.py"
    assert drawn["imports"] == rooms.imports, again
    assert drawn["floors"] == rooms.floors, again
    for room, lines in rooms.lines.items():  # the picture says "about"
        assert abs(drawn["lines"][room] - lines) <= max(100, 0.2 * lines), f"{room}: {again}"


def test_the_picture_shows_every_room_with_its_lines_and_an_arrow_for_each_import(
    drawing, rooms, picture
):
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {*rooms.imports} <= {*texts}
    assert sum(text.startswith("about ") for text in texts) == len(rooms.imports)
    axes = drawing["draw"](rooms).axes[0]
    arrows = [patch for patch in axes.patches if type(patch).__name__ == "FancyArrowPatch"]
    assert len(arrows) == sum(len({*below} - GROUND) for below in rooms.imports.values())
    for patch in arrows:  # every one points down
        (_, start), (_, end) = patch._posA_posB
        assert start > end


def test_the_table_of_rooms_is_the_list_of_imports(rooms):
    table = {row[0].strip("`"): row[2] for row in rows(ARCHITECTURE, "room")}
    listed = {room: re.findall(r"`(\w+)`", text) for room, text in table.items()}
    assert listed == {
        room: [name for name in below if name not in GROUND]
        for room, below in rooms.imports.items()
    }
    assert [*table] == sorted(table, key=lambda room: (rooms.floors[room], room))
    others = {*rooms.imports} - GROUND
    assert all(GROUND & {*rooms.imports[room]} for room in others), "the header says so"


@pytest.mark.parametrize("table", ["what happens", "station"])
def test_every_place_on_the_page_is_in_the_code(table):
    places = rows(ARCHITECTURE, table)
    assert len(places) > 10
    for _, path, name in places:
        assert name.strip("`") in defined_in(path.strip("`")), (path, name)


def test_every_word_of_the_glossary_is_where_it_is_said_to_be():
    for word, _, places in rows(GLOSSARY, "word"):
        found = re.findall(r"`(\w+)` in `([\w/.]+)`", places)
        assert found, word
        for name, path in found:
            assert name in defined_in(path), (word, name, path)


def test_the_files_and_names_of_the_guide_for_contributors_exist():
    guide = rows(CONTRIBUTING, "part")
    assert len(guide) > 10
    for path in re.findall(r"`((?:purejaxdqn|tests|docs)/[\w/.]*)`", CONTRIBUTING):
        assert (ROOT / path).exists(), path
    pattern = r"(?:of|in) `(\w+)` (?:in|there)(?: `([\w/]+\.py)`)?"
    found = [(row, hit) for row in guide for hit in re.findall(pattern, " ".join(row[1:3]))]
    assert len(found) > 5
    for row, (name, path) in found:
        path = path or re.findall(r"`([\w/]+\.py)`", row[1])[0]
        assert name in defined_in(path), (name, path)
    public = (ROOT / "purejaxdqn/testing/__init__.py").read_text()
    for name in re.findall(r"`testing\.(\w+)`", CONTRIBUTING):
        assert f" as {name}\n" in public


def test_the_pages_name_no_module_that_is_gone():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = page.read_text()
        if page.name == "CHANGELOG.md":  # says what things were called before
            continue
        for path in re.findall(r"`((?:purejaxdqn|experiments|tests|docs)/[\w/.]+)`", text):
            assert (ROOT / path).exists(), (page.name, path)
        for dotted in re.findall(r"\bpurejaxdqn\.([a-z_]+(?:\.[a-z_]+)*)", text):
            parts = dotted.split(".")
            base = ROOT / "purejaxdqn" / parts[0]
            assert (
                base.is_dir()
                or base.with_suffix(".py").exists()
                or parts[0]
                in (
                    "load",
                    "rerun",
                )
            ), (page.name, dotted)
