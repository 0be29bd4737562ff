"""The rows behind the report's numbers: every link leads to rows that add up to its number, and every row is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest
from support.browser import PATIENCE_MS, chromium
from support.tiny_eval import write_corpus
from test_eval_report import EVIL, good, poor, rows

from eval_suite.evidence import page_name
from eval_suite.generate import generate
from eval_suite.report import write_report
from eval_suite.score import score_rows

LOADED = "audio => audio.readyState || new Promise(done => audio.addEventListener('loadedmetadata', done))"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """Two systems under both protocols, their corpus and the report."""
    folder = tmp_path_factory.mktemp("evidence")
    data = write_corpus(folder / "data", rows())
    folders = [generate(function, data, folder / function.__name__, progress=False) for function in (good, poor)]
    scored = [score_rows(one, protocol=protocol, resamples=50) for one in folders for protocol in ("strict", "paper")]
    return {"scored": scored, "report": write_report(scored, folder / "report"), "folder": folder, "data": data}


def embedded(page: Path) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1]
    )


def test_every_row_of_every_system_is_there_with_all_that_was_read(made):
    for one in made["scored"]:
        for file in one.rows.values():
            for scored in file:
                page = embedded(made["report"] / "evidence" / page_name(scored.row.task))
                (row,) = (each for each in page["rows"] if each["id"] == scored.row.id)
                assert (row["file"], row["expected"]) == (scored.row.file, scored.row.reference)
                answer = row["answers"][page["systems"].index(one.system)]
                read = answer["read"][one.protocol]
                assert answer["said"] == scored.row.prediction and read["outcome"] == scored.reading.outcome
                parsed = scored.reading.parsed if scored.reading.parsed != scored.row.prediction else None
                assert read.get("parsed") == parsed and read.get("score") == scored.score
                assert (made["report"] / "evidence" / "audio" / row["audio"][0]).is_file()


def test_labels_are_attributes_of_a_row_whichever_protocol_comes_last(made):
    page = embedded(made["report"] / "evidence" / page_name("SGC"))
    assert all(row["attributes"].get("gender") for row in page["rows"])


def matching(page: dict, wanted: dict[str, str]) -> int:
    """How many rows of a page a link's filters keep, by their definition."""
    kept = 0
    number = page["systems"].index(wanted["system"])
    for row in page["rows"]:
        answer = row["answers"][number]
        read = answer and answer["read"].get(wanted["protocol"])
        values = {name: row.get(name) for name in ("format", "file", "source")}
        values |= {
            "outcome": read["outcome"],
            "label": read.get("label"),
            "read": read.get("answer", "∅"),
            "row": row["id"],
        }
        kept += all(values[name] == value for name, value in wanted.items() if name in values)
    return kept


def test_links_lead_to_as_many_rows_as_their_number_says(made):
    """Outcomes, confusions, formats: the number in the page is the number of rows that the link shows."""
    text = (made["report"] / "index.html").read_text()
    links = re.findall(r'href="evidence/([^"#]+)#([^"]+)"(?: aria-label="\w+: (\d+) \w+")?>([^<]*)</a>', text)
    assert len(links) > 40
    counted = 0
    for page, filters, count, shown in links:
        wanted = {name: values[0] for name, values in parse_qs(filters.replace("&amp;", "&")).items()}
        found = matching(embedded(made["report"] / "evidence" / unquote(page)), wanted)
        assert found > 0
        if count or "label" in wanted:
            assert found == int(count or shown), (filters, count, shown)
            counted += 1
    assert counted > 8
    for name in ("strict", "paper"):
        assert f"protocol={name}" in text


def test_without_rows_or_by_request_there_are_no_pages(made, tmp_path):
    out = write_report([one.content for one in made["scored"]], tmp_path / "scores")
    assert not (out / "evidence").exists() and "evidence/" not in (out / "index.html").read_text()
    out = write_report(made["scored"], tmp_path / "none", examples=False)
    assert not (out / "evidence").exists() and "evidence/" not in (out / "index.html").read_text()


def test_recordings_are_the_corpus_s_and_stay_within_their_limit(made, tmp_path):
    original = {row["audio"][0]["bytes"] for row in rows()}
    copied = {path.read_bytes() for path in (made["report"] / "evidence" / "audio").iterdir()}
    assert copied == original
    limit = sum(map(len, original)) // 3
    out = write_report(made["scored"], tmp_path, audio_bytes=limit)
    files = list((out / "evidence" / "audio").iterdir())
    assert 0 < sum(path.stat().st_size for path in files) <= limit
    shown = [row for task in ("ASR", "SGC", "PP") for row in embedded(out / "evidence" / f"{task}.html")["rows"]]
    left_out = [row for row in shown if "audio" not in row]
    assert left_out and all("--audio-limit" in row["silent"] for row in left_out)
    assert any("audio" in row for row in shown)
    write_report(made["scored"], tmp_path, audio_bytes=0)  # what an earlier report left is removed
    assert not list((out / "evidence" / "audio").iterdir())


# In a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser, made):
    """A blank page that must stay silent: no message, no dialog, no request but files of the report."""
    said: list[str] = []
    root = made["report"].as_uri()
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(root) or said.append(request.url))
        yield page
    assert said == []


def test_a_number_leads_to_its_rows_and_a_row_sounds(page, made):
    page.goto((made["report"] / "index.html").as_uri() + "#outcomes")
    page.get_by_label("ASR: 8 answered").first.click()
    page.wait_for_url("**/evidence/ASR.html#*")
    assert page.locator("article").count() == 8
    assert page.locator("#count").inner_text() == "8 of 8 rows; answers: 8 answered"
    assert page.locator("article h4").count() == 8  # of the one system
    audio = page.locator("article audio").first
    audio.evaluate("audio => { audio.preload = 'metadata'; audio.load(); }")
    audio.evaluate(LOADED)
    assert 0.15 < audio.evaluate("audio => audio.duration") < 3
    page.locator("#filter-system").select_option("")
    assert page.locator("article h4").count() == 16
    evil = page.locator("dd", has_text="alert").first
    assert evil.inner_text().startswith(EVIL[:40]) and page.locator("img").count() == 0
    page.locator("#filter-text").fill("row-005")
    page.locator("#filter-text").press("Enter")
    assert page.locator("article").count() == 1
    page.reload()  # the address keeps the filters
    assert page.locator("article").count() == 1 and "text=row-005" in page.url


def test_worst_first_and_pages(page, made, tmp_path):
    page.goto((made["report"] / "evidence" / "SGC.html").as_uri() + "#system=poor&order=worst+first")
    scores = [one.inner_text() for one in page.locator("dt:text-is('score') + dd").all()]
    assert [score[0] for score in scores] == ["0"] * 8 + ["1"] * 8
    assert not page.locator("nav.pages").first.is_visible()
    page.goto((made["report"] / "evidence" / "SGC.html").as_uri() + "#system=poor&label=female&read=male")
    page.reload()
    assert page.locator("article").count() == 8


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hangs_over_the_edge(page, made, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("index.html", "ASR.html", "SGC.html"):
        page.goto((made["report"] / "evidence" / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        ink, ground = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert ink != ground


def test_ten_thousand_rows_are_paged(page, made, tmp_path):
    """The page of a large task draws 25 rows at once, and filters all of them."""
    name = made["report"] / "evidence" / "SGC.html"
    content = embedded(name)
    content["rows"] = [row | {"id": f"{row['id']}-{n}"} for n in range(700) for row in content["rows"]]
    text = name.read_text()
    start, stop = re.search(r'id="data">(.*?)</script>', text, re.S).span(1)
    large = made["report"] / "evidence" / "large.html"
    large.write_text(text[:start] + json.dumps(content).replace("<", "\\u003c") + text[stop:])
    page.goto(large.as_uri())
    assert page.locator("article").count() == 25
    assert page.locator("#count").inner_text().startswith("11,200 of 11,200 rows")
    page.get_by_role("button", name="later").first.click()
    assert page.locator("nav.pages").first.inner_text().endswith("page 2 of 448")
    page.locator("#filter-label").select_option("female")
    assert page.locator("#count").inner_text().startswith("5,600 of 11,200 rows")
    assert page.locator("nav.pages").first.inner_text().endswith("page 1 of 224")
    large.unlink()
