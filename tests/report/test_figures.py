"""Tests figures and pages; the pages in a browser without a network."""

import gzip
import hashlib
import html
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from plotly.graph_objects import Figure as Page

from purejaxdqn.report import figures, files, pages
from purejaxdqn.report.statistics import Interval, bootstrap_curve, mean_return
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
    assert 1_000_000 < page.stat().st_size < 1_500_000  # all that draws it is inside
    paths = files.save_figure(figures.plot_panels(curves(), "A title", 195), tmp_path / "a")
    assert [path.suffix for path in paths] == [".png", ".svg"]
    assert all(path.stat().st_size > 1_000 for path in paths)


RISE = np.linspace(0.0, 1.0, 5)
CASES = {
    "negative": (RISE * 400 - 500 + np.arange(10)[:, None], -100.0),
    "mixed": (RISE * 300 - 200 + np.arange(10)[:, None], 200.0),
    "below the threshold": (RISE * 10 - 500 + np.arange(3)[:, None], -100.0),
    "above the threshold": (RISE * 10 + 500 + np.arange(3)[:, None], -100.0),
    "positive": (RISE * 400 + np.arange(3)[:, None], 475.0),
    "equal": (np.full((4, 5), -97.3), -97.3),
    "zero": (np.zeros((4, 5)), None),
    "one step": (np.array([[-500.0], [-400.0], [-450.0]]), -100.0),
    "one seed": (RISE[None] * 400 - 500, None),
    "unfinished": (np.where(np.tri(5, dtype=bool), RISE - 2, np.nan), -1.5),
    "infinite": (np.array([[-1.0, np.inf], [-2.0, -3.0], [-np.inf, -1.0]]), -2.0),
    "all NaN": (np.full((3, 5), np.nan), -100.0),
}


@pytest.mark.parametrize("name", CASES)
def test_axes_are_the_right_way_up_with_everything_inside(name):
    values, threshold = CASES[name]
    dataset = xr.Dataset(
        {"evaluation_return": (("seed", "step", "episode"), values[..., None])},
        {"seed": range(len(values)), "step": np.arange(values.shape[1]) * 100},
    )
    curve = mean_return(dataset, "evaluation_return")
    both = {"this": curve, "positive": abs(curve)}
    alone = figures.plot_learning_curve(dataset, "A title", threshold)
    panels = figures.plot_panels(both, "A title", threshold)
    page = pages.plot_interactive_curves({"this": curve}, "A title", threshold)
    shown = values[np.isfinite(values)].tolist() + ([] if threshold is None else [threshold])
    for axes in (*alone.axes, *panels.axes):
        low, high = axes.get_ylim()
        assert low < high
        assert low <= min(shown) <= max(shown) <= high
        assert (low == 0) == (min(shown) >= 0)
    assert page.layout.yaxis.rangemode == ("tozero" if min(shown) >= 0 else "normal")
    (axes,) = alone.axes
    assert axes.get_xlabel() == page.layout.xaxis.title.text == "environment steps per seed"
    assert axes.get_ylabel() == page.layout.yaxis.title.text == curve.name
    labels = [text.get_text() for text in alone.legends[0].get_texts()]
    assert f"interquartile mean of {figures.count_present(figures.keep_known(curve))}" in labels
    assert page.data[-1].name == f"this: {figures.count_present(figures.keep_known(curve))}"


def test_a_page_has_the_interval_and_gaps_are_not_shaded():
    values = np.arange(5.0)[:, None] + np.zeros(6)
    values[2:, 2] = np.nan  # two seeds are left
    curve = xr.DataArray(values, {"seed": range(5), "step": range(6)}, ("seed", "step"), name="r")
    first, second, mean = pages.plot_interactive_curves({"a": curve}, "A title").data[-3:]
    low, high = bootstrap_curve(curve, np.random.default_rng(0), num_resamples=2_000)[1:]
    assert first.fill == second.fill == "toself"
    assert (*first.x,) == (0, 1, 1, 0)
    assert (*second.x,) == (3, 4, 5, 5, 4, 3)
    np.testing.assert_allclose(second.y, [*high[3:], *low[:2:-1]], rtol=1e-6)
    assert (*mean.y,) == (2, 2, 0.5, 2, 2, 2)
    assert mean.customdata[0] == f"5 seeds<br>95 % bootstrap interval {low[0]:.1f} to {high[0]:.1f}"
    assert "interval none" in mean.customdata[2]
    assert mean.name == "a: 2 to 5 of 5 seeds (the others are NaN)"


def test_a_page_stays_small_and_says_that_it_leaves_seeds_out(tmp_path):
    rng = np.random.default_rng(0)
    for num_settings, num_seeds, has_seeds in ((12, 10, True), (6, 100, False)):
        coords = {"seed": range(num_seeds), "step": np.arange(0, 50_000, 1_000)}
        one = xr.DataArray(rng.normal(size=(num_seeds, 50)), coords, ("seed", "step"), name="r")
        page = pages.plot_interactive_curves({f"rate={i}": one for i in range(num_settings)}, "A")
        assert files.save_page(page, tmp_path / "a.html").stat().st_size < 1_500_000
        assert len(page.data) == num_settings * (2 + num_seeds * has_seeds)
        words = page.layout.legend.title.text
        assert ("thin: each seed" in words, "too many to draw" in words) == (
            has_seeds,
            not has_seeds,
        )
        styles = {(line.line.color, line.line.dash) for line in page.data}
        assert len(styles) == num_settings


def test_other_charts_have_all_of_plotly(tmp_path):
    page = Page().add_heatmap(z=[[1, 2]]).update_layout(title="<b>")
    text = files.save_page(page, tmp_path / "a.html").read_text()
    assert len(text) > 4_000_000
    assert "<title>&lt;b&gt;</title>" in text


def test_the_bundle_is_the_one_that_its_readme_names():
    folder = files._BUNDLE.parent
    bundle = gzip.decompress(files._BUNDLE.read_bytes())
    assert hashlib.sha256(bundle).hexdigest() in (folder / "README.md").read_text()
    assert b"plotly.js (basic - minified) v4.1.1" in bundle[:100]
    assert "MIT License" in (folder / "plotly-LICENSE").read_text()
    assert b"</script" not in bundle


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
            assert html.unescape(curve.name).startswith(show_controls(HOSTILE))


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
    (line,) = drawn[3].lines  # a point alone, which no line would show
    assert np.asarray(line.get_xydata()).tolist() == [[500, 103.5]]
    assert line.get_marker() == "o"


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
    # Two seeds of two settings, and the mean over them; two are too few for an interval.
    assert page.locator(".scatterlayer .trace").count() == 6
    assert page.locator(".legend .traces").count() == 2
    assert page.title() == "A title"
    words = "".join(page.locator(".infolayer text").all_text_contents())
    for shown in ("A title", "greedy return", "environment steps per seed", "solved at 195"):
        assert shown in words
    assert "defaults: 2 seeds, too few for an interval" in words
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
    page.wait_for_function("document.querySelectorAll('.scatterlayer .trace').length == 3")
    page.wait_for_timeout(500)  # two clicks at once are a double click, which isolates
    toggle.click()
    page.wait_for_function("document.querySelectorAll('.scatterlayer .trace').length == 6")
    assert traces.count() == 6
    assert seen["problems"] == []
