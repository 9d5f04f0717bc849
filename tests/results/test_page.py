"""The report as a page: its HTML, and what it does in a real browser."""

import json
import shutil
import sys
from html.parser import HTMLParser

import pytest

from fedjax8.errors import UserError
from fedjax8.results.comparison import compare_runs
from fedjax8.results.page import html_page, search_text, standing
from fedjax8.results.report import table
from fedjax8.results.runs import read_run
from fedjax8.results.tables import as_csv, as_latex

VOID = {"meta", "br", "hr", "img", "link", "input", "line"}
MEGABYTES = 6
LABELS = {"tags": ["paper", "3 values"], "note": "<i>slow</i>"}


@pytest.fixture(scope="module")
def found(tmp_path_factory, write_run):
    folder = tmp_path_factory.mktemp("runs")
    full, eight, three = {"name": "<b>none</b> & %{x}"}, {"name": "fp8"}, {"name": "terngrad"}
    folders = [
        write_run(folder / "a0", [0.2, 0.5, 0.8], (600, 400), seed=0, uplink=full),
        write_run(folder / "a1", [0.4, 0.7, 0.8], (600, 400), seed=1, uplink=full),
        write_run(folder / "b0", [0.1, 0.5, 0.7], (150, 100), seed=0, uplink=eight, finished=False),
        write_run(folder / "c0", [0.1, 0.2, 0.6], (180, 100), seed=0, uplink=three, document={"labels": LABELS}),
    ]
    split = {"clients": 2, "rows": 30, "classes": 2, "sizes": [10, 20]}
    labels = {"clients": [0, 1], "counts": [[10, 0], [5, 15]]}
    for seed, run in enumerate(folders[:2]):
        about = {"split": split | {"rows": 30 + seed, "labels": labels, "skew": None}, "messages": []}
        (run / "about.json").write_text(json.dumps(about))
    return compare_runs(folders)


@pytest.fixture(scope="module")
def page(found):
    pytest.importorskip("plotly", reason="the report needs plotly")
    return html_page(found)


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects tags, ids, attribute values and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.values, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.values += [(name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_well_formed_and_names_nothing_to_load(page):
    read = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert len(read.ids) == len(set(read.ids))
    assert "http:" not in page and "https:" not in page
    assert [value for name, value in read.values if name in ("src", "href")] == ["data:,"]
    (policy,) = [value for name, value in read.values if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none';")
    assert len(page) < MEGABYTES * 1e6


def test_the_page_holds_every_cell_config_folder_and_warning_escaped(page, found):
    read = Page(page)
    for cell in [*table(found).columns, *(cell for row in table(found).rows for cell in row)]:
        assert cell in read.text
    assert "uplink.name" in read.text
    for result in found.results:
        for run in result.setting.runs:
            assert str(run.path) in read.text
    assert "<b>none</b>" not in page and "&lt;b&gt;none&lt;/b&gt; &amp; %{x}" in page
    assert "the run is unfinished" in read.text


def test_nothing_in_the_data_can_end_its_script_element(tmp_path, write_run):
    pytest.importorskip("plotly", reason="the report needs plotly")
    bad = {"name": "</script><script>alert(1)</script>"}
    folders = [write_run(tmp_path / "a", [0.5], seed=0, uplink=bad), write_run(tmp_path / "b", [0.5], seed=0)]
    assert Page(html_page(compare_runs(folders))).tags.count("script") == 3


def test_the_filter_looks_in_label_fields_folders_and_seeds(found):
    text = search_text(found.results[0].setting)
    for part in ("uplink.name=<b>none</b>", "a1", "seed=1"):
        assert part in text


def test_tags_and_notes_are_shown_and_searched_for(page, found):
    read = Page(page)
    assert ("data-tag", "paper") in read.values and ("data-tag", "3 values") in read.values
    assert "<i>slow" not in page and "<i>slow</i>" in read.text
    assert "tag=paper tag=3-values <i>slow</i>" in search_text(found.results[2].setting)


def test_a_run_at_work_is_told_with_its_share_of_rounds_and_its_page_loads_itself_anew(
    page, found, tmp_path, write_run
):
    assert 'http-equiv="refresh"' not in page
    assert '<meta http-equiv="refresh" content="2.5">' in html_page(found, reload=2.5)
    done = read_run(write_run(tmp_path / "a", [0.5], rounds=1))
    at_work = read_run(write_run(tmp_path / "b", [0.5, 0.6, 0.7], finished=False, rounds=12))
    assert (standing(done), standing(at_work)) == ("yes", "no, 25%")


def test_headings_of_a_regression_are_of_its_metric(tmp_path, write_run):
    pytest.importorskip("plotly", reason="the report needs plotly")
    made = {"metric": "mae", "document": {"task": {"metric": "mae", "directions": {"mae": "lower"}}}}
    folders = [write_run(tmp_path / f"{bits}", [2.0, 1.0], (bits, 0), bits=bits, **made) for bits in (32, 8)]
    text = Page(html_page(compare_runs(folders))).text
    for heading in ("To the same MAE", "MAE against bytes sent", "MAE against cost", "Gain in bytes against MAE"):
        assert heading in text
    assert '"lower":true' in text


def test_without_plotly_the_error_says_how_to_get_it(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UserError, match=r"pip install 'fedjax8\[report\]'"):
        html_page(found)


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    """A headless Chromium with the page open from disk and everything drawn."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the page is tried in a browser by selenium")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("the page is tried in Chromium: chromium and chromedriver are needed")
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page, encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_script_timeout(60)
    opened.get(file.as_uri())
    opened.execute_async_script(
        """const done = arguments[0];
        const wait = () => window.fedjax8 ? window.fedjax8.drawAll().then(() => done()) : setTimeout(wait, 50);
        wait();"""
    )
    yield opened
    opened.quit()


def type_filter(browser, text):
    browser.execute_async_script(
        "document.getElementById('filter').value = arguments[0]; fedjax8.update().then(arguments[1])", text
    )


def drawn(browser, panel):
    """Numbers of the settings whose traces can be seen, and how many bands there are."""
    return browser.execute_script(
        """const plot = document.querySelector(`[data-panel="${arguments[0]}"]`);
        fedjax8.draw(plot);
        const seen = plot.data.filter((t) => t.visible !== false && t.meta !== undefined);
        return [[...new Set(seen.filter((t) => !t.band).map((t) => t.meta))], seen.filter((t) => t.band).length];""",
        panel,
    )


def test_every_panel_is_drawn_and_the_browser_complains_of_nothing(browser):
    count = browser.execute_script("return document.querySelectorAll('.plot').length")
    assert count == browser.execute_script("return document.querySelectorAll('.plot.js-plotly-plot').length") > 5
    # Of three settings the first has two seeds, and so a spread.
    assert drawn(browser, "metric-bytes") == [[0, 1, 2], 1]
    assert browser.get_log("browser") == []


def test_the_filter_hides_settings_in_plots_tables_and_chips(browser):
    type_filter(browser, "terngrad")
    assert drawn(browser, "metric-rounds") == [[2], 0]
    assert drawn(browser, "directions")[0] == [2]
    visible = "return [...document.querySelectorAll('#summary tbody tr')].filter((r) => !r.hidden).length"
    assert browser.execute_script(visible) == 1
    assert browser.execute_script("return document.getElementById('shown').textContent") == "1 of 3 settings shown"
    type_filter(browser, "-terngrad seed=0")
    assert drawn(browser, "metric-rounds")[0] == [0, 1]
    type_filter(browser, "")
    assert drawn(browser, "metric-rounds")[0] == [0, 1, 2]


def test_a_chip_switches_its_setting_off_and_on(browser):
    chip = browser.find_element("css selector", ".chip[data-setting='1']")
    browser.execute_script("arguments[0].click()", chip)
    assert drawn(browser, "loss-rounds")[0] == [0, 2]
    assert chip.get_attribute("aria-pressed") == "false"
    browser.execute_script("arguments[0].click()", chip)
    assert drawn(browser, "loss-rounds")[0] == [0, 1, 2]


def test_a_tag_is_a_word_of_the_filter_and_off_again(browser):
    tag = browser.find_element("css selector", ".tag[data-tag='3 values']")
    browser.execute_script("arguments[0].click()", tag)
    assert drawn(browser, "metric-rounds")[0] == [2]
    assert browser.execute_script("return document.getElementById('filter').value") == "tag=3-values"
    assert tag.get_attribute("aria-pressed") == "true"
    browser.execute_script("arguments[0].click()", tag)
    assert drawn(browser, "metric-rounds")[0] == [0, 1, 2]
    assert tag.get_attribute("aria-pressed") == "false"


def test_the_tables_to_save_are_of_the_settings_shown(browser, found):
    for kind, lines in (("csv", as_csv(found)), ("tex", as_latex(found))):
        type_filter(browser, "")
        assert browser.execute_script("return fedjax8.table(arguments[0])", kind) == lines.text
        type_filter(browser, "-fp8")
        kept = lines.head + lines.of_settings[0] + lines.of_settings[2] + lines.foot
        assert browser.execute_script("return fedjax8.table(arguments[0])", kind) == kept
        type_filter(browser, "")


def test_the_page_is_dark_where_the_system_is_and_can_be_switched(browser):
    def look():
        return browser.execute_async_script(
            """const done = arguments[0], plot = document.querySelector('[data-panel="metric-rounds"]');
            fedjax8.draw(plot).then(() => done([getComputedStyle(document.body).backgroundColor,
              plot.layout.paper_bgcolor, plot.layout.font.color, plot.querySelector('.plotly .bg')?.style.fill]));"""
        )

    light, dark = "rgb(255, 255, 255)", "rgb(21, 24, 27)"
    assert look()[:2] == [light, light]
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert look()[:3] == [dark, dark, "rgb(228, 231, 234)"]
    browser.execute_script("document.getElementById('theme').click()")
    assert look()[:2] == [light, light]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_script("document.getElementById('theme').click()")
    assert look()[:2] == [dark, dark]
    browser.execute_script("document.getElementById('theme').click()")
    assert look()[:2] == [light, light]


def test_labels_of_bytes_have_their_unit_and_are_few(browser):
    labels = """const plot = document.querySelector(`[data-panel="${arguments[0]}"]`), done = arguments[1];
        fedjax8.draw(plot).then(() => done([...plot.querySelectorAll('.xtick text')].map((t) => t.textContent)));"""
    for panel in ("metric-bytes", "front", "directions"):
        for logarithmic in (True, False):
            browser.execute_script(
                "const box = document.getElementById('logarithmic'); if (box.checked !== arguments[0]) box.click()",
                logarithmic,
            )
            shown = browser.execute_async_script(labels, panel)
            assert 2 <= len(shown) <= 7 and all(text.endswith("B") for text in shown), (panel, shown)


def test_the_front_is_of_the_settings_shown(browser):
    """Points are (3000 B, 0.8), (750, 0.7), (840, 0.6): the third is beaten by the second, until that is hidden."""
    front = """const plot = document.querySelector('[data-panel="front"]');
        fedjax8.draw(plot);
        const [line, ...points] = plot.data;
        return [line.x, line.y, points.map((t) => t.marker.symbol)]"""
    assert browser.execute_script(front) == [[750, 3000], [0.7, 0.8], ["circle", "circle", "circle-open"]]
    type_filter(browser, "-fp8")
    assert browser.execute_script(front)[:2] == [[840, 3000], [0.6, 0.8]]
    type_filter(browser, "")


def test_a_band_reaches_one_deviation_to_each_side_and_can_be_switched_off(browser):
    band = """const plot = document.querySelector('[data-panel="metric-rounds"]');
        fedjax8.draw(plot);
        return plot.data.filter((t) => t.band).map((t) => [t.x, t.y])[0] ?? null"""
    x, y = browser.execute_script(band)
    assert x == [1, 2, 3, 3, 2, 1]
    assert y == pytest.approx([0.4414, 0.7414, 0.8, 0.8, 0.4586, 0.1586])
    browser.execute_script("document.getElementById('spread').click()")
    assert browser.execute_script(band) is None
    browser.execute_script("document.getElementById('spread').click()")


def test_the_split_chosen_in_one_panel_is_shown_in_the_other(browser):
    browser.execute_script(
        """const choice = document.querySelector('#labels select'); choice.value = choice.options[1].value;
        choice.dispatchEvent(new Event('change'));"""
    )
    assert browser.execute_script("return document.querySelector('#sizes .fact').textContent") == "31 rows in all"


@pytest.mark.parametrize(
    ("panel", "trace", "text"),
    [("metric-bytes", "!t.band", "30.00% ± 14.14%1.00kB, round 1"), ("directions", "t.type === 'bar'", "up 1.80kB")],
)
def test_the_pointer_on_a_value_tells_setting_and_numbers_as_they_are(browser, panel, trace, text):
    shown = browser.execute_async_script(
        f"""const plot = document.querySelector('[data-panel="{panel}"]'), done = arguments[0];
        const text = () => plot.querySelector('.hovertext')?.textContent;
        const wait = () => text() ? done(text()) : setTimeout(wait, 20);
        fedjax8.draw(plot).then(() => {{
          const curveNumber = plot.data.findIndex((t) => {trace} && t.meta === 0);
          Plotly.Fx.hover(plot, [{{ curveNumber, pointNumber: 0 }}]);
          wait();
        }});"""
    )
    assert shown == "uplink=<b>none</b> & %{x}" + text
