"""The report in a real browser: it fits two widths, sorts by click, plays, filters, and runs nothing a model said."""

from __future__ import annotations

import pytest
from support.browser import PATIENCE_MS, chromium
from support.tiny_eval import write_corpus
from test_eval_report import good, poor, rows

from eval_suite.generate import generate
from eval_suite.report import write_report
from eval_suite.score import score_rows

LOADED = "audio => audio.readyState || new Promise(done => audio.addEventListener('loadedmetadata', done))"


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> str:
    """Two systems under both protocols, with examples that sound."""
    folder = tmp_path_factory.mktemp("page")
    data = write_corpus(folder / "data", rows())
    answers = {"good": good, "poor-with-a-name-of-some-length": poor}
    folders = [generate(function, data, folder / name, progress=False) for name, function in answers.items()]
    scores = [score_rows(one, protocol=protocol, resamples=50) for one in folders for protocol in ("strict", "paper")]
    return (write_report(scores, folder / "report") / "index.html").as_uri()


@pytest.fixture
def page(browser, url):
    """The page at 1280 pixels; it must stay silent: no message, no dialog, no request but its own."""
    said: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith("data:") or said.append(request.url))
        page.goto(url)
        yield page
    assert said == [url]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hangs_over_the_edge(page, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for heading in page.locator("section h2").all():
        assert heading.is_visible() and heading.bounding_box()["width"] > 100
    ink, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert ink != ground


def test_a_click_sorts_and_another_turns_it_around(page):
    table = page.locator("#tasks table")
    names = lambda: [name.inner_text() for name in table.locator("tbody th b").all()]  # noqa: E731
    assert names() == ["ASR", "SGC", "PP"]
    table.get_by_role("button", name="Task").click()
    assert names() == ["ASR", "PP", "SGC"]
    table.get_by_role("button", name="good").click()
    assert names() == ["PP", "ASR", "SGC"]  # 0, .188, 1
    table.get_by_role("button", name="good").press("Enter")
    assert names() == ["SGC", "ASR", "PP"]
    marked = table.locator("thead th[aria-sort]")
    assert marked.count() == 1 and marked.get_attribute("aria-sort") == "descending"


def test_sorted_rows_keep_the_name_of_their_task(page):
    table = page.locator("#protocols table")
    table.get_by_role("button", name="strict").click()
    values = [row.get_attribute("data-sort") for row in table.locator("tbody td:nth-child(4)").all()]
    assert list(map(float, values)) == sorted(map(float, values)) and len(values) == 6
    tasks = [name.inner_text() for name in table.locator("tbody th").all()]
    assert sorted(tasks) == ["ASR", "ASR", "PP", "PP", "SGC", "SGC"]


def test_examples_sound(page):
    clips = page.locator(".example audio")
    assert clips.count() == page.locator(".example").count() > 0
    for clip in clips.all():
        clip.evaluate(LOADED)
        assert 0.2 <= clip.evaluate("audio => audio.duration") < 3


def test_examples_are_filtered(page):
    shown = lambda: [one.get_attribute("data-task") for one in page.locator(".example:visible").all()]  # noqa: E731
    everything = shown()
    page.locator("#task-filter").select_option("PP")
    assert set(shown()) == {"PP"} and len(shown()) == everything.count("PP")
    page.locator("#kind-filter").select_option("worst")
    assert 0 < len(shown()) < everything.count("PP")
    page.locator("#task-filter").select_option("")
    assert {one.get_attribute("data-kind") for one in page.locator(".example:visible").all()} == {"worst"}


def test_what_a_model_said_is_text(page):
    """The answer holds a script and an image that would open a dialog, which the fixture would see."""
    said = page.locator(".example dd", has_text="alert").first
    assert said.inner_text().startswith('<script>alert("x")</script><img src=x onerror=alert(1)>')
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1
