"""The board: ranks and their uncertainty by plain computation, tasks that some lack, and the page in a browser."""

from __future__ import annotations

import html.parser
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.browser import PATIENCE_MS, chromium
from support.paths import ROOT

from eval_suite.board import board, ranks, render_board, write_board
from eval_suite.report import collect
from eval_suite.score import score_rows
from llaso.cli import main

EVIL = "<script>alert(1)</script>"


def system(
    folder: Path, right: float, seed: int, n: int = 120, tasks=("SGC", "SCR"), speed: float | None = None
) -> Path:
    """A folder of closed-set answers in two formats, a share of them right, on recordings that all systems share."""
    folder.mkdir(parents=True, exist_ok=True)
    luck = random.Random(seed)
    for task, choices in {"SGC": ["Male", "Female"], "SCR": ["yes", "no", "up", "down"]}.items():
        for modality in ("text_audio", "audio") if task in tasks else ():
            lines = []
            for index in range(n):
                wanted = choices[index % len(choices)]
                row = {
                    "id": str(index),
                    "file": f"{task}_{modality}",
                    "task": task,
                    "modality": modality,
                    "source": "made",
                }
                row |= {
                    "prediction": wanted if luck.random() < right else "?",
                    "reference": wanted,
                    "choices": choices,
                }
                lines.append(json.dumps(row | {"error": None, "cluster": str(index)}))
            (folder / f"{task}_{modality}.jsonl").write_text("\n".join(lines))
    if speed is not None:
        run = {"device": "H100", "precision": "bfloat16", "batch_size": 8, "processes": 1, "rows": n, "seconds": 1.0}
        run |= {"audio_seconds": speed, "rtfx": speed, "tokens": None, "tokens_per_second": None, "first_token": None}
        run |= {"latency": None, "peak_memory": None, "warm_up": {"rows": 0, "seconds": 0.0, "counted": False}}
        (folder / "speed.json").write_text(json.dumps({"schema": 1, "runs": [run], "rows": {}}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Three systems: one good, two alike; the third was not asked the spoken commands."""
    folder = tmp_path_factory.mktemp("systems")
    system(folder / "good", 0.9, 1, speed=40.0)
    system(folder / "alike-one", 0.6, 2, speed=300.0)
    system(folder / "alike-two", 0.6, 3, tasks=("SGC",))
    return folder


@pytest.fixture(scope="module")
def content(folders) -> dict:
    return board(collect([folders], resamples=50), resamples=500)


def view(content: dict, task: str | None, modality: str | None = None) -> dict:
    (found,) = [one for one in content["views"] if (one["task"], one["modality"]) == (task, modality)]
    return found


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3, float("nan")]), min_size=1, max_size=6))
def test_ranks_count_who_is_better(values):
    for better, key in (("higher", lambda x: -x), ("lower", lambda x: x)):
        keys = [np.inf if np.isnan(value) else key(value) for value in values]
        wanted = [1 + sum(other < mine for other in keys) for mine in keys]
        assert ranks(np.array(values)[:, None], better)[:, 0].tolist() == wanted


def test_values_are_those_of_the_scores(content, folders):
    for name in ("good", "alike-one", "alike-two"):
        scored = score_rows(folders / name, intervals=False).content
        entry = next(one for one in view(content, "SGC")["entries"] if one["system"] == name)
        assert entry["value"] == scored["tasks"]["SGC"]["primary"]["value"]
        part = next(one for one in view(content, "SGC", "audio")["entries"] if one["system"] == name)
        assert part["value"] == scored["modalities"]["audio"]["tasks"]["SGC"]["primary"]["value"]


def test_rank_intervals_against_a_plain_bootstrap(content, folders):
    """Recordings drawn one by one, rows counted by hand: the same shares of first places, within chance."""
    right = {}
    for name in ("good", "alike-one", "alike-two"):
        rows = score_rows(folders / name, intervals=False).rows
        right[name] = np.array([[one.score for one in rows[f"SGC_{form}"]] for form in ("text_audio", "audio")])
    random_, first = np.random.default_rng(7), dict.fromkeys(right, 0)
    places: dict[str, list[int]] = {name: [] for name in right}
    for _ in range(3000):
        drawn = random_.integers(120, size=120)
        values = {name: points[:, drawn].mean() for name, points in right.items()}
        for name, value in values.items():
            places[name].append(1 + sum(other > value for other in values.values()))
            first[name] += places[name][-1] == 1
    for entry in view(content, "SGC")["entries"]:
        place = places[entry["system"]]
        assert entry["best_share"] == pytest.approx(first[entry["system"]] / 3000, abs=0.06)
        low, high = np.quantile(place, [0.025, 0.975], method="inverted_cdf")
        assert (entry["rank_low"], entry["rank_high"]) == (low, high)
    good, *others = view(content, "SGC")["entries"]
    assert (good["system"], good["rank"], good["rank_low"], good["rank_high"]) == ("good", 1, 1, 1)
    assert all((one["rank_low"], one["rank_high"]) == (2, 3) for one in others)


def test_the_mean_ranks_on_what_all_answered(content):
    everything = view(content, None)
    assert everything["tasks"] == ["SGC"] and len(everything["entries"]) == 3
    assert len(view(content, "SCR")["entries"]) == 2
    assert [one["paper"]["metric"] for one in view(content, "SGC")["entries"]] == ["accuracy"] * 3
    assert {one["name"]: one["gap"] is None for one in content["systems"]} == dict.fromkeys(
        ("alike-one", "alike-two", "good"), False
    )


def test_command_and_what_cannot_be_shown(folders, tmp_path, capsys):
    assert main(["eval", "board", str(folders), "--out", str(tmp_path / "out"), "--resamples", "50"]) == 0
    assert "board: " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "board.json"}
    again = json.loads((tmp_path / "out" / "board.json").read_text())
    assert again["settings"] == {"resamples": 50, "seed": 0, "level": 0.95}
    one = score_rows(folders / "good", resamples=10)
    with pytest.raises(ValueError, match="at least two systems scored under strict, found 1"):
        board([one])
    with pytest.raises(ValueError, match="systems of one name: good, good"):
        board([one, one])
    bare = score_rows(folders / "alike-one", resamples=10)
    bare.rows = {}
    with pytest.raises(ValueError, match="alike-one: the scores have no rows"):
        board([one, bare])
    with pytest.raises(ValueError, match="at least one resample"):
        board([one, score_rows(folders / "alike-one", resamples=10)], resamples=0)


class Tags(html.parser.HTMLParser):
    """Counts tags and collects their addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action")]


def test_the_page_needs_nothing_and_escapes_names(content):
    renamed = json.loads(json.dumps(content).replace('"good"', json.dumps(EVIL)))
    page = Tags(render_board(renamed))
    assert page.names.count("script") == 1 and page.addresses == []


def test_the_board_in_docs_is_of_the_eleven(official_outputs):
    """One task stands for all: what two systems' answers give now is what the page in docs says of them."""
    shown = json.loads((ROOT / "docs" / "released_board" / "board.json").read_text("utf-8"))
    assert len(shown["systems"]) == 11 and view(shown, "ASR")["entries"][0]["system"] == "Kimi-Audio"
    for name in ("Kimi-Audio", "Mini-Omni"):
        made = score_rows(official_outputs / name, intervals=False).content
        for task in ("SGC", "PP", "EE"):
            entry = next(one for one in view(shown, task)["entries"] if one["system"] == name)
            assert entry["value"] == pytest.approx(made["tasks"][task]["primary"]["value"], abs=1e-12)
    page = (ROOT / "docs" / "released_board" / "index.html").read_text("utf-8")
    body = lambda text: text.partition("<body>")[2]  # noqa: E731 - the style may have moved on
    assert body(render_board(shown)) == body(page)


# In a browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser, folders, tmp_path):
    """The board at 1280 pixels; it must say nothing and ask for nothing but itself."""
    url = (write_board(collect([folders], resamples=20), tmp_path, resamples=50) / "index.html").as_uri()
    said: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url))
        page.goto(url)
        yield page
    assert said == [url]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(page, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for cell in page.locator(".view:visible td:visible, .view:visible tbody th").all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth + 1"), cell.inner_text()
    ink, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert ink != ground


def test_task_and_format_are_chosen_and_kept_in_the_address(page):
    names = lambda: [one.inner_text() for one in page.locator(".view:visible tbody th").all()]  # noqa: E731
    assert names()[0] == "good" and len(names()) == 3
    page.locator("#task").select_option("SCR")
    assert names() == ["good", "alike-one"]
    page.locator("#format").select_option("audio")
    assert page.locator(".view:visible").get_attribute("data-format") == "audio"
    page.evaluate("history.replaceState(null, '', location.href)")
    assert "task=SCR&format=audio" in page.url
    page.locator("#task").select_option("")
    assert page.locator(".view:visible").count() == 1 and page.locator("#missing").is_hidden()


def test_quality_is_drawn_against_speed(page):
    dots = page.locator(".scatter circle")
    assert dots.count() == 2  # the third was not timed
    assert dots.nth(0).evaluate("dot => dot.cx.baseVal.value") > dots.nth(1).evaluate("dot => dot.cx.baseVal.value")
