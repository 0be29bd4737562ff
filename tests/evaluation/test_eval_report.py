"""The report: one page that needs nothing else, escapes what models say, and says what the scores say."""

from __future__ import annotations

import base64
import copy
import html.parser
import io
import json
import re
import shutil

import pytest
import soundfile
from support.paths import ROOT
from support.tiny_eval import corpus_row, write_corpus

from eval_suite.charts import bar_svg, radar_svg
from eval_suite.generate import generate
from eval_suite.report import collect, number, percent, write_report
from eval_suite.score import score, score_rows
from eval_suite.summary import summarize, verdict
from llaso.cli import main

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>"\'&| **bold** `code`'
LABELS = ("male", "female")


def rows() -> list[dict]:
    """ASR in two formats, a closed set, and pitches."""
    made = [corpus_row(n, "ASR", ("text_audio", "audio")[n % 2], "hello world") for n in range(8)]
    made += [corpus_row(n, "SGC", "text_audio", LABELS[n % 2], LABELS) for n in range(8, 24)]
    made += [corpus_row(n, "PP", "audio", str(40 + n)) for n in range(24, 30)]
    return made


def good(requests):
    """Right, but for one transcript that tries to break out of the page."""
    return [EVIL if request.row.id == "row-003" else request.row.reference for request in requests]


def poor(requests):
    """One label for all, one number for all, silence for speech."""
    return [{"ASR": "", "SGC": "male", "PP": "no idea"}[request.row.task] for request in requests]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """A corpus, two systems' answers and their scores under both protocols."""
    folder = tmp_path_factory.mktemp("report")
    content: dict = {"folder": folder, "data": write_corpus(folder / "data", rows())}
    for name, function in (("good", good), ("poor", poor)):
        content[name] = generate(function, content["data"], folder / name, progress=False)
        for protocol in ("strict", "paper"):
            scored = score_rows(content[name], protocol=protocol, resamples=200)
            content[name, protocol] = scored.content
            content[name, protocol, "rows"] = scored
    return content


@pytest.fixture(scope="module")
def page(made) -> str:
    out = write_report([made["good", "strict", "rows"]], made["folder"] / "one")
    return (out / "index.html").read_text("utf-8")


class Page(html.parser.HTMLParser):
    """Collects tags with their attributes, and whether tags are closed in order."""

    VOID = {"meta", "img", "input", "br", "hr", "link", "source"}

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def named(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


# The page ------------------------------------------------------------------------------------------------------


def test_page_is_well_formed_and_needs_no_network(page):
    parsed = Page(page)
    assert parsed.open == []
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "action", "poster"):
            address = attributes.get(name)
            beside = tag == "a" and address is not None and address.startswith("evidence/")
            assert address is None or beside or address.startswith(("data:audio/mpeg;base64,", "#")), (tag, address)
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_what_a_model_says_never_becomes_markup(made, page):
    assert "&lt;script&gt;alert" in page
    parsed = Page(page)
    assert len(parsed.named("script")) == 1 and not parsed.named("img")
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    markdown = (made["folder"] / "one" / "report.md").read_text("utf-8")
    assert "<script" not in markdown and "&lt;script&gt;" in markdown and r"\`code\`" in markdown
    columns = {line.replace(r"\|", "").count("|") for line in markdown.split("\n") if line.startswith("| ASR |")}
    assert columns == {7}


def test_names_from_scores_are_escaped_as_well(made, tmp_path):
    scores = copy.deepcopy(made["good", "strict"])
    scores["system"] = EVIL
    scores["tasks"]["ASR"]["name"] = EVIL
    parsed = Page((write_report([scores], tmp_path) / "index.html").read_text("utf-8"))
    assert len(parsed.named("script")) == 1 and not parsed.named("img")


def test_examples_play_and_are_bounded(made, page, tmp_path, monkeypatch):
    players = Page(page).named("audio")
    content = json.loads((made["folder"] / "one" / "report.json").read_text("utf-8"))
    # Two at random of each of three tasks, and the one answer that is not perfect.
    assert len(players) == len(content["examples"]) == 7
    assert [example["id"] for example in content["examples"] if example["kind"] == "worst"] == ["row-003"]
    sound = base64.b64decode(players[0]["src"].split(",")[1])
    samples, rate = soundfile.read(io.BytesIO(sound))
    assert rate == 16000 and 0.15 < len(samples) / rate < 3
    monkeypatch.setattr("eval_suite.examples.AUDIO_BYTES", len(sound) + 100)
    few = (write_report([made["good", "strict", "rows"]], tmp_path) / "index.html").read_text()
    assert 0 < len(Page(few).named("audio")) < 4


def test_worst_examples_come_first_and_the_draw_repeats(made, page, tmp_path):
    content = json.loads((made["folder"] / "one" / "report.json").read_text("utf-8"))
    assert content["examples"][0]["prediction"] == EVIL and content["examples"][0]["kind"] == "worst"
    again = write_report([made["good", "strict", "rows"]], tmp_path / "again")
    assert (again / "index.html").read_text("utf-8") == page
    assert (again / "radar.png").read_bytes() == (made["folder"] / "one" / "radar.png").read_bytes()
    other = write_report([made["good", "strict", "rows"]], tmp_path / "other", seed=1)
    drawn = [e["id"] for e in json.loads((other / "report.json").read_text())["examples"] if e["kind"] == "random"]
    assert drawn != [e["id"] for e in content["examples"] if e["kind"] == "random"]


def test_report_without_rows_has_no_examples(made, tmp_path):
    out = write_report([made["good", "strict"]], tmp_path)
    assert json.loads((out / "report.json").read_text())["examples"] == []
    assert not Page((out / "index.html").read_text()).named("audio")


# What it says --------------------------------------------------------------------------------------------------


def test_closed_sets_not_clear_of_their_baseline_are_named(made):
    (clear,) = [f for f in summarize([made["good", "strict"]])["findings"] if f["statement"].startswith("Closed-set")]
    assert clear["systems"] == [{"system": "good", "what": "all 1"}]
    assert "above" in clear["statement"]
    findings = {f["statement"]: f["systems"] for f in summarize([made["poor", "strict"]])["findings"]}
    assert findings["Closed-set tasks whose interval is not clear of the majority baseline"] == [
        {"system": "poor", "what": "SGC (1 of 1)"}
    ]
    assert findings["Tasks in which fewer than 90 % of the rows could be read as an answer"][0]["what"] == "ASR, PP"


def test_table_shows_score_interval_baseline_and_formats(made, page):
    text = re.sub(r"<[^>]+>", " ", page)
    task = made["good", "strict"]["tasks"]["SGC"]["primary"]
    assert number(task["value"]) == "1.000" and number(task["baseline"]["value"]) == "0.500"
    assert re.search(
        r"SGC\s+speaker gender\s+accuracy\s+↑\s+1\.000\s+1\.000 – 1\.000\s+0\.500\s+clear of it\s+100 %", text
    )
    markdown = (made["folder"] / "one" / "report.md").read_text("utf-8")
    assert re.search(
        r"\| SGC speaker gender \| accuracy ↑ \| 1\.000 \| 1\.000 – 1\.000 \| 0\.500 \| clear of it", markdown
    )
    content = json.loads((made["folder"] / "one" / "report.json").read_text("utf-8"))
    asr = content["tasks"][0]["scores"][0]
    assert set(asr["modalities"]) == {"text_audio", "audio"}
    assert asr["modalities"]["text_audio"]["value"] == 0.0 < asr["modalities"]["audio"]["value"]


@pytest.mark.parametrize(
    ("direction", "low", "high", "expected"),
    [
        ("higher", 0.6, 0.8, "above"),
        ("higher", 0.5, 0.8, "unclear"),
        ("higher", 0.1, 0.4, "below"),
        ("lower", 0.1, 0.4, "above"),
        ("lower", 0.4, 0.5, "unclear"),
        ("lower", 0.6, 0.8, "below"),
        ("higher", None, None, "unknown"),
    ],
)
def test_verdict_against_the_baseline(direction, low, high, expected):
    primary = {"value": 0.5, "low": low, "high": high, "direction": direction, "baseline": {"value": 0.5}}
    assert verdict(primary) == expected
    assert verdict({**primary, "baseline": {"value": None}}) == "unknown"
    assert verdict(None) == "unknown"


def test_two_systems_and_both_protocols_side_by_side(made, tmp_path):
    keys = [(name, protocol) for name in ("good", "poor") for protocol in ("paper", "strict")]
    out = write_report([made[*key, "rows"] for key in keys], tmp_path)
    content = json.loads((out / "report.json").read_text("utf-8"))
    assert content["protocol"] == "strict"
    assert [system["name"] for system in content["systems"]] == ["good", "poor"]
    assert {entry["system"]: entry["best"] for entry in content["tasks"][1]["scores"]} == {"good": True, "poor": False}
    assert content["detectable"]["SGC"] > 0 and "Detectable:" in (out / "index.html").read_text("utf-8")
    shared = {part["modality"]: part["systems"][0]["shared_tasks"] for part in content["modalities"]}
    assert shared == {"text_audio": ["ASR"], "audio": ["ASR"]}
    rows_ = content["protocols"]["rows"]
    assert [(row["task"], row["system"]) for row in rows_][:2] == [("ASR", "good"), ("ASR", "poor")]
    assert rows_[0]["strict"]["rank"] == 1 and rows_[1]["strict"]["rank"] == 2
    pitch = next(row for row in rows_ if row["task"] == "PP" and row["system"] == "good")
    assert pitch["paper"]["value"] == pitch["strict"]["value"] == 0
    text = (out / "index.html").read_text("utf-8")
    assert Page(text).open == []
    assert "Whisper’s" not in text and "Whisper&#39;s English normalizer" in text  # why WER changed
    matrix = next(one for one in content["confusions"] if one["system"] == "poor")
    assert matrix["counts"] == [[0, 8], [0, 8]] and matrix["labels"] == ["female", "male"]


def test_folders_of_answers_are_scored_under_both_protocols(made, tmp_path):
    for name in ("good", "poor"):
        shutil.copytree(made[name], tmp_path / "systems" / name)
    scored = collect([tmp_path / "systems"], resamples=20)
    assert [(one.system, one.protocol) for one in scored] == [
        (name, protocol) for name in ("good", "poor") for protocol in ("strict", "paper")
    ]
    made["good", "strict", "rows"].write(tmp_path / "scores.json")
    mixed = collect([tmp_path / "scores.json", tmp_path / "systems" / "poor"], resamples=0)
    assert [one.system for one in mixed] == ["good", "poor", "poor"] and all(one.rows for one in mixed)


def test_the_page_in_docs_is_what_the_command_makes(official_outputs, tmp_path):
    """One system stands for all: what its released answers give now is, line by line, what docs say of it."""
    scores = score(official_outputs / "LLaSO-Base")
    made = (write_report([scores], tmp_path) / "report.md").read_text("utf-8")
    shown = (ROOT / "docs" / "released_systems.md").read_text("utf-8")
    tasks = shown.partition("### LLaSO-Base\n")[2].partition("### ")[0].split("\n")
    assert sum(line.startswith("| ") for line in tasks) >= 21 and set(tasks) <= set(made.split("\n"))
    (system,) = (line for line in made.split("\n") if line.startswith("| LLaSO-Base |") and line.endswith(" % |"))
    assert system in shown.split("\n")


def test_one_or_two_tasks_have_no_radar_but_a_picture(made, tmp_path):
    scores = copy.deepcopy(made["good", "strict"])
    for task in ("SGC", "PP"):
        del scores["tasks"][task]
        del scores["normalized"]["skill"]["tasks"][task]
    out = write_report([scores], tmp_path)
    assert "A radar needs three tasks" in (out / "index.html").read_text()
    assert (out / "radar.png").read_bytes().startswith(b"\x89PNG")


def test_scores_without_intervals_or_values_are_shown_as_missing(made, tmp_path):
    scores = score(made["good"], intervals=False)
    scores["tasks"]["PP"]["primary"] = None
    scores["tasks"]["ASR"]["primary"] |= {"value": None}
    page = (write_report([scores], tmp_path) / "index.html").read_text()
    assert Page(page).open == [] and "no ranking metric has a value" in page and ">nan" not in page.lower()
    json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_what_the_user_gets_wrong_is_said_plainly(made, tmp_path):
    strict = made["good", "strict"]
    with pytest.raises(ValueError, match="at least one scores.json"):
        write_report([], tmp_path)
    other = copy.deepcopy(strict) | {"system": "other"}
    other["normalized"]["panel"]["version"] -= 1
    with pytest.raises(ValueError, match="scores 2: measured against the panel released-10, version 1.*--panel"):
        write_report([strict, other], tmp_path)
    with pytest.raises(ValueError, match="occurs twice under protocol strict.*--system"):
        write_report([strict, strict], tmp_path)
    with pytest.raises(ValueError, match="scores 1: no protocol"):
        write_report([{"schema": 1, "system": "x"}], tmp_path)
    with pytest.raises(ValueError, match="schema 3; this version reads schema 2"):
        write_report([strict | {"schema": 3}], tmp_path)
    with pytest.raises(ValueError, match="scores 1: schema 1, .*score the answers again"):
        write_report([strict | {"schema": 1}], tmp_path)
    (tmp_path / "scores.json").write_text('{"schema": 1,')
    with pytest.raises(ValueError, match="scores.json:1: "):
        write_report([tmp_path / "scores.json"], tmp_path)


# Small parts ---------------------------------------------------------------------------------------------------


def test_numbers_as_readers_see_them():
    assert [number(value) for value in (None, 0.07312, 9.9996, 12.34, 1234.5, -0.5)] == [
        "–", "0.073", "10.000", "12.3", "1,234", "-0.500",
    ]  # fmt: skip
    assert number(9.025, 10.3) == "9.0"
    assert [percent(share) for share in (None, 1.0, 0.9999, 0.123, 0.0)] == ["–", "100 %", "99.9 %", "12.3 %", "0 %"]


def test_bars_stay_inside_their_drawing():
    drawing = bar_svg(1.8, (1.2, 9.0), 0.5, 2.0)
    numbers = [float(value) for value in re.findall(r'x[12]?="([\d.]+)"', drawing)]
    assert max(numbers) <= 220 and min(numbers) >= 0
    assert "whisker" not in bar_svg(0.5, (None, None), None, 1.0) and "fill" not in bar_svg(None, (None, None), 0.1, 1)


def test_radar_puts_one_at_the_rim_and_zero_in_the_centre():
    drawing = radar_svg(["a", "b", "c<"], [[1.0, 0.0, None]])
    dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawing)
    assert dots == [("200.0", "35.0"), ("200.0", "200.0")]
    assert "c&lt;" in drawing


@pytest.mark.parametrize("command", ["report", "board"])
def test_pages_are_written_over_only_when_asked(command, made, tmp_path, capsys):
    out = tmp_path / "page"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    asked = ["eval", command, str(made["good"]), str(made["poor"]), "--out", str(out), "--resamples", "50"]
    assert main(asked) == 2
    assert "it holds mine.txt" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert main([*asked, "--overwrite"]) == 0
    assert (out / "index.html").is_file() and (out / "mine.txt").read_text() == "kept"
