"""Tests figures and pages; the pages in a browser without a network."""

import html
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

from purejaxdqn.report import figures, files, pages
from purejaxdqn.report.statistics import Interval
from purejaxdqn.runtime.console import show_controls

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
VALUES = np.array([[1.0, 2.0, 30.0], [4.0, 5.0, 6.5]])


def curves():
    coords = {"seed": [7, 8], "step": [0, 500, 1000]}
    one = xr.DataArray(VALUES, coords, ("seed", "step"), name="greedy return")
    other = (one + 100).where(one.step < 1000)  # ends early
    return {"tutorial": one, "defaults": other}


def test_files_are_written(tmp_path):
    page = files.save_page(
        pages.plot_interactive_curves(curves(), "A title", 195), tmp_path / "a.html"
    )
    assert page.stat().st_size > 1_000_000  # all that draws it is inside
    paths = files.save_figure(figures.plot_panels(curves(), "A title", 195), tmp_path / "a")
    assert [path.suffix for path in paths] == [".png", ".svg"]
    assert all(path.stat().st_size > 1_000 for path in paths)


HOSTILE = "</script><b>a $\\foo$ $ %{x} \x1b \u202e --"


def test_texts_of_a_file_are_drawn_as_they_are(tmp_path):
    drawn = {HOSTILE: xr.DataArray(VALUES, dims=("seed", "step"), name=HOSTILE)}
    drawn[HOSTILE] = drawn[HOSTILE].assign_coords(seed=[7, 8], step=[0, 1, 2])
    effects = {HOSTILE: {HOSTILE: Interval(5.0, 1.0, 9.0, 0.95, HOSTILE)}}
    for figure in (
        figures.plot_panels(drawn, HOSTILE),
        figures.plot_comparison({HOSTILE: drawn}, HOSTILE),
        figures.plot_effects(effects, HOSTILE),
    ):
        # Formulas would fail, and control characters are no XML.
        _, svg = files.save_figure(figure, tmp_path / "a")
        ElementTree.parse(svg)
        assert "foo$" in svg.read_text()
    for page in (
        pages.plot_interactive_curves(drawn, HOSTILE),
        pages.plot_interactive_effects(effects, HOSTILE),
    ):
        own = {"<br>", "<extra>", "</extra>"}
        assert {*re.findall(r"<[^>]*>", str(page.to_dict()))} <= own
        assert "\x1b" not in str(page.layout.title.text)
        for curve in page.data:
            assert "%{x}" not in curve.hovertemplate
            assert html.unescape(curve.name) == show_controls(HOSTILE)


def intervals():
    return {
        "final return": {
            "double": Interval(5.0, 1.0, 9.0, 0.95, ""),
            "dueling": Interval(-2.0, None, None, 0.95, "only 2 seeds"),
        },
        "area": {
            "double": Interval(0.5, 0.0, 2.0, 0.95, ""),
            "dueling": Interval(1.0, -3.0, 1.0, 0.95, ""),
        },
    }


def test_effects_are_dots_with_their_intervals_in_the_order_given():
    figure = figures.plot_effects(intervals(), "A title")
    final, area = figure.axes
    assert [label.get_text() for label in final.get_yticklabels()] == ["double", "dueling"]
    zero, *lines = (np.asarray(line.get_xdata()).tolist() for line in final.lines)
    assert zero == [0, 0]
    assert lines == [[1.0, 9.0], [5.0], [-2.0]]  # without an interval the dot alone
    assert len(area.lines) == 5
    assert final.get_ylim()[0] > final.get_ylim()[1]  # the first one on top


def test_interactive_effects_hold_the_same_numbers(tmp_path):
    figure = pages.plot_interactive_effects(intervals(), "A title")
    final, area = figure.data
    assert (final.name, area.name) == ("final return", "area")
    assert (*final.x,) == (5.0, -2.0)
    assert (*final.y,) == ("double", "dueling")
    assert (*final.error_x.array,) == (4.0, 0)
    assert (*final.error_x.arrayminus,) == (4.0, 0)
    assert "only 2 seeds" in final.customdata[1]
    assert (*area.error_x.arrayminus,) == (0.5, 4.0)
    page = files.save_page(figure, tmp_path / "a.html")
    assert page.stat().st_size > 1_000_000


def test_a_comparison_has_a_panel_per_quantity_and_a_line_per_setting():
    both = curves()
    gap = both["defaults"].where(both["defaults"].step > 0, np.inf)
    panels = {f"quantity {n}": both for n in range(3)} | {"other": {"gap": gap}}
    figure = figures.plot_comparison(panels, "A title")
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in drawn] == list(panels)
    assert len(figure.axes) == 6
    assert [line.get_label() for line in drawn[0].lines] == ["tutorial", "defaults"]
    np.testing.assert_allclose(np.asarray(drawn[0].lines[0].get_ydata()), VALUES.mean(axis=0))
    assert np.isnan(np.asarray(drawn[3].lines[0].get_ydata())).tolist() == [True, False, True]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install it to look at the pages in a browser")
    from playwright.sync_api import sync_playwright

    path = tmp_path_factory.mktemp("html") / "curves.html"
    files.save_page(pages.plot_interactive_curves(curves(), "A title", 195), path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic"],
            timeout=0,  # none but the suite's own
        )
        page = browser.new_page(viewport={"width": 900, "height": 600})
        page.set_default_timeout(0)
        seen: dict[str, list[str]] = {"requests": [], "problems": []}
        page.on("request", lambda request: seen["requests"].append(request.url))
        page.on(
            "console",
            lambda message: (
                seen["problems"].append(message.text) if message.type == "error" else None
            ),
        )
        page.on("pageerror", lambda error: seen["problems"].append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector(".scatterlayer .trace")
        yield page, seen, path
        browser.close()


def test_it_draws_without_a_request_and_without_an_error(page):
    page, seen, path = page
    # Two seeds of two settings, and the mean over those of the one that is whole.
    assert page.locator(".scatterlayer .trace").count() == 5
    assert page.locator(".legend .traces").count() == 2
    assert seen["requests"] == [path.as_uri()]
    assert seen["problems"] == []


def test_hovering_shows_a_seeds_value(page):
    page, seen, _ = page
    # Where the data lie on the screen, as the figure's own axes say.
    x, y = page.evaluate(
        """() => {
          const figure = document.querySelector('.plotly-graph-div');
          const box = figure.getBoundingClientRect();
          const {xaxis, yaxis} = figure._fullLayout;
          const [x, y] = [xaxis.d2p(500), yaxis.d2p(5)];
          return [box.left + xaxis._offset + x, box.top + yaxis._offset + y];
        }"""
    )
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.wait_for_selector(".hoverlayer .hovertext")
    text = "".join(page.locator(".hoverlayer .hovertext").all_text_contents())
    assert "seed 8" in text
    assert "5.0" in text
    assert "step 500" in text
    assert seen["problems"] == []


def test_the_legend_hides_a_setting_and_shows_it_again(page):
    page, seen, _ = page
    traces = page.locator(".scatterlayer .trace")
    toggle = page.locator(".legend .legendtoggle").first
    toggle.click()
    page.wait_for_function("document.querySelectorAll('.scatterlayer .trace').length == 2")
    page.wait_for_timeout(500)  # two clicks at once are a double click, which isolates
    toggle.click()
    page.wait_for_function("document.querySelectorAll('.scatterlayer .trace').length == 5")
    assert traces.count() == 5
    assert seen["problems"] == []
