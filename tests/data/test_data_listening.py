"""Labels that can be believed: a listener's transcripts against the corpus's texts, resumed, reported, set aside."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_eval import save_llaso

from dataset_scripts import disagreement, listeners
from dataset_scripts.build import build
from dataset_scripts.disagreement import KINDS, compare
from dataset_scripts.listeners import open_listener
from dataset_scripts.sources.base import Fact, Item, Recording, Reject, Source
from dataset_scripts.validate import validate
from llaso.cli import main
from llaso_common.audio import SAMPLE_RATE, read_audio

ROWS = 24
WRONG = {
    3: "",
    5: "this is",
    7: "something that nobody has asked",
    9: "this is sentence number nine and then some more words",
}
"""What the recordings of some rows say instead of their text."""


def text_of(number: int) -> str:
    return f"this is sentence number {number}"


def recordings(root: Path) -> Iterator[Item | Reject]:
    """Rows whose recording is a sine of a length of its own, by which the stand-in listener knows it."""
    for n in range(ROWS):
        facts = (Fact("ASR", text_of(n), modality="text_audio"), Fact("SGC", "male", ("female", "male")))
        yield Item(
            f"r-{n:02d}", facts[: 2 if n % 2 else 1], (Recording(str(root / f"{n}.wav")),), f"s{n}", split="train"
        )


SOURCE = Source(
    "heard", "Heard", "CC0-1.0", "https://example.org", ("ASR", "SGC"), "{number}.wav", ("*.wav",), recordings
)


def number_of(samples: int) -> int:
    """The row whose recording has so many samples."""
    return round(samples / SAMPLE_RATE * 10) - 2


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "wav").mkdir()
    for n in range(ROWS):
        wave = 0.3 * np.sin(np.arange((n + 2) * SAMPLE_RATE // 10) * (0.05 + 0.01 * n))
        soundfile.write(tmp_path / "wav" / f"{n}.wav", wave, SAMPLE_RATE)
    return build("align", [SOURCE.at(tmp_path / "wav")], tmp_path / "corpus", eval_rows=0, validation_rows=0)


class StandIn:
    """A listener that hears what `WRONG` says, and may die after some batches."""

    identity = {"name": "stand-in", "revision": "1"}

    def __init__(self, dies_after: int = 99) -> None:
        self.batches: list[int] = []
        self._dies_after = dies_after

    def transcribe(self, clips: Sequence[np.ndarray]) -> list[str | None]:
        if len(self.batches) == self._dies_after:
            raise ConnectionError("the server has gone")
        self.batches.append(len(clips))
        return [said(len(clip)) for clip in clips]


def said(samples: int) -> str:
    number = number_of(samples)
    return WRONG.get(number, text_of(number).capitalize() + ".")


@contextlib.contextmanager
def transcription_server(answer: Callable[[bytes], tuple[int, dict]], models: Sequence[str] = ("tiny",)):
    """A server on loopback with OpenAI's transcriptions; yields its address and the forms it received."""
    received: list[dict[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": name} for name in models]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = BytesParser().parsebytes(head + body).get_payload()
            form = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts
            }
            received.append(form)
            self._send(*answer(form["file"]))

        def _send(self, status: int, content: dict) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hears(wav: bytes) -> tuple[int, dict]:
    return 200, {"text": said(len(read_audio(wav)))}


def listed(corpus: Path) -> dict[int, dict]:
    lines = (corpus / "heard.jsonl").read_text().splitlines()
    return {int(line["text"].split()[-1]): line for line in map(json.loads, lines)}


def test_a_server_finds_the_known_mistakes(corpus: Path, capsys: pytest.CaptureFixture[str]):
    with transcription_server(hears) as (url, received):
        command = ["data", "validate", str(corpus), "--listen", url, "--listen-language", "en"]
        assert main([*command, "--listen-batch-size", "5"]) == 0
        assert len(received) == ROWS and {form["model"] for form in received} == {b"tiny"}
        assert {form["language"] for form in received} == {b"en"}
        assert main(command) == 0  # nothing is heard twice
        assert len(received) == ROWS
    kinds = {n: line["kind"] for n, line in listed(corpus).items()}
    assert len(kinds) == ROWS
    assert {n: kind for n, kind in kinds.items() if kind != "the same"} == {
        3: "empty", 5: "truncated", 7: "something else", 9: "more is said",
    }  # fmt: skip
    assert listed(corpus)[5]["wer"] == 0.6 and listed(corpus)[3]["edit_rate"] == 1.0
    heard = json.loads((corpus / "validation.json").read_text())["listening"]
    assert heard["rows"] == ROWS and sum(heard["wer_of_rows"].values()) == ROWS
    assert heard["wer"] == round((5 + 3 + 5 + 5) / (5 * 10 + 6 * 14), 4)  # numbers count by digit
    assert heard["sources"] == {"heard": {"rows": ROWS, "wer": heard["wer"]}}
    said = capsys.readouterr().out
    assert f"{ROWS} transcripts heard by tiny" in said and "1 × truncated" in said
    page = (corpus / "validation.html").read_text()
    worst = page.partition("The largest differences")[2].partition("Examples, drawn by chance")[0]
    assert worst.count("<audio") == len(WRONG) and "something that nobody has asked" in worst


def test_rows_above_the_limit_are_listed_and_set_aside(corpus: Path):
    before = {path: path.read_bytes() for path in corpus.glob("data/*/*")}
    report = validate(corpus, listener=StandIn(), max_wer=0.5)
    assert report["found"] == 4 and report["reasons"] == {"heard otherwise": 4}
    assert {path: path.read_bytes() for path in corpus.glob("data/*/*")} == before  # only listed
    reasons = [
        reason
        for line in (corpus / "bad_rows.jsonl").read_text().splitlines()
        for reason in json.loads(line)["reasons"]
    ]
    assert "heard otherwise: truncated, word error rate 0.60 above 0.5: 'this is'" in reasons
    assert validate(corpus, listener=StandIn(), max_wer=0.5, set_aside=True)["set_aside"] == 4
    left = [row["id"] for file in corpus.glob("data/*/*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(left) == ROWS - 4 and not {f"heard/r-{n:02d}/ASR" for n in WRONG} & set(left)
    assert json.loads((corpus / "build.json").read_text())["rows"] == ROWS - 4
    again = StandIn()
    assert validate(corpus, listener=again, max_wer=0.5)["found"] == 0 and not again.batches


def test_an_interrupted_run_goes_on(corpus: Path):
    with pytest.raises(ConnectionError):
        validate(corpus, listener=StandIn(dies_after=2), clips_at_once=4)
    (records,) = (corpus / ".build" / "heard").glob("*/*.jsonl")
    with records.open("a") as torn:
        torn.write('{"sha256": "abc", "hea')
    second = StandIn()
    report = validate(corpus, listener=second, clips_at_once=4)
    assert sum(second.batches) == ROWS - 8 and max(second.batches) == 4
    assert report["listening"]["rows"] == ROWS
    other = StandIn()
    other.identity = {"name": "stand-in", "revision": "2"}
    validate(corpus, listener=other)
    assert sum(other.batches) == ROWS  # another listener hears for itself


def test_refused_clips_are_counted(corpus: Path):
    def refusing(wav: bytes) -> tuple[int, dict]:
        return (422, {"error": "no"}) if number_of(len(read_audio(wav))) == 0 else hears(wav)

    with transcription_server(refusing) as (url, _):
        heard = validate(corpus, listener=open_listener(url))["listening"]
    assert (heard["rows"], heard["not_heard"]) == (ROWS - 1, 1)
    assert "1 rows could not be heard" in (corpus / "validation.html").read_text()


def test_a_spoken_instruction_before_the_words_does_not_count():
    heard = "Write down what you hear. This is sentence number 5."
    assert compare(text_of(5), heard, after_instruction=True).errors == 0
    assert compare(text_of(5), heard).kind == "more is said"


@pytest.mark.parametrize(
    ("text", "heard", "kind"),
    [
        ("Turn it off, please.", "turn it off please", "the same"),
        ("twenty one", "21", "the same"),
        ("seven three four nine", "7-3, 4, 9.", "the same"),
        ("we saw the old red house on the hill", "we saw the old red horse on the hill", "some words differ"),
        ("we saw the old red house on the hill", "we saw the old", "truncated"),
        ("we saw the old red house on the hill", "on the hill", "truncated"),
        ("yes", "yes yes yes", "more is said"),
        ("we saw it", "and then we saw it again", "more is said"),
        ("we saw it", "", "empty"),
        ("we saw it", "good morning", "something else"),
    ],
)
def test_kinds_of_disagreement(text: str, heard: str, kind: str):
    assert compare(text, heard).kind == kind


WORDS = st.lists(st.sampled_from("one red fish sees two blue birds".split()), max_size=12).map(" ".join)


@given(WORDS, WORDS)
def test_a_comparison_is_consistent(text: str, heard: str):
    found = compare(text, heard)
    assert found.kind in KINDS and (found.kind == "the same") == (found.errors == 0)
    assert found.errors <= max(len(disagreement._normalize(text).split()), len(disagreement._normalize(heard).split()))
    after = compare(text, heard, after_instruction=True)
    assert after.errors <= found.errors
    assert compare(text, f"please write this down {text}", after_instruction=True).errors == 0


def save_whisper(folder: Path) -> None:
    """A tiny random Whisper with a tokenizer of bytes."""
    import torch
    from support.tiny_llaso import tiny_tokenizer, whisper_config
    from transformers import (
        GenerationConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizerFast,
    )

    torch.manual_seed(0)
    tokens = tiny_tokenizer()
    tokenizer = WhisperTokenizerFast(tokenizer_object=tokens.backend_tokenizer, eos_token=tokens.eos_token)
    model = WhisperForConditionalGeneration(whisper_config(vocab_size=len(tokenizer)))
    model.generation_config = GenerationConfig(max_new_tokens=4, decoder_start_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer).save_pretrained(folder)


@pytest.mark.parametrize("save", [save_whisper, save_llaso])
def test_models_of_transformers_listen(corpus: Path, tmp_path: Path, save: Callable[[Path], None]):
    save(tmp_path / "model")
    listener = open_listener(str(tmp_path / "model"))
    report = validate(corpus, listener=listener, clips_at_once=16)
    assert report["listening"]["rows"] == ROWS and not report["listening"]["not_heard"]
    clips = [read_audio(tmp_path / "wav" / f"{n}.wav") for n in (4, 20)]
    assert listener.transcribe(clips) == [listener.transcribe([clip])[0] for clip in clips]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--max-wer", "0.5"], "say how to listen: name a --listen MODEL"),
        (
            ["--listen", "nowhere", "--listen-model", "x"],
            "names a model on a server, but nowhere is a folder or an id",
        ),
        (["--listen", "URL"], "serves a, b: choose one with --listen-model NAME"),
    ],
)
def test_wrong_options_are_one_line(corpus: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str):
    with transcription_server(hears, models=("a", "b")) as (url, _):
        assert main(["data", "validate", str(corpus), *(url if word == "URL" else word for word in options)]) == 2
    assert reason in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named(corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(listeners, "RETRIES", 0)
    with transcription_server(hears) as (url, _):
        pass
    assert main(["data", "validate", str(corpus), "--listen", url]) == 2
    assert re.search(r"/models cannot be asked \(.*\); start the server", capsys.readouterr().err)


def test_a_corpus_without_transcripts_is_refused(tmp_path: Path):
    def labels(root: Path) -> Iterator[Item | Reject]:
        for item in recordings(root):
            if len(item.facts) > 1:
                yield Item(item.id, item.facts[1:], item.sound, item.speaker, split="train")

    (tmp_path / "wav").mkdir()
    for n in range(ROWS):
        soundfile.write(tmp_path / "wav" / f"{n}.wav", 0.3 * np.sin(np.arange(3200) * (0.1 + 0.01 * n)), SAMPLE_RATE)
    source = Source("heard", "Heard", "CC0-1.0", "x", ("SGC",), "{number}.wav", ("*.wav",), labels)
    out = build("instruct", [source.at(tmp_path / "wav")], tmp_path / "out", eval_rows=0, validation_rows=0)
    with pytest.raises(ValueError, match="no row is a transcript, so there is nothing to listen for"):
        validate(out, listener=StandIn())
