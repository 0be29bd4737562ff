"""The demo's transcripts with times: pieces as they are done, files of them, stopping, and what is refused."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import gradio_client
import numpy as np
import pytest
import soundfile
from support.browser import chromium, open_page
from support.served_page import served
from support.tiny_demo import talking_llaso
from support.tiny_llaso import RATE, tone

from llaso.demo.menu import Menu, MenuTask
from llaso.demo.question import TIMED_TASK, DemoModel, DemoQuestion
from llaso.demo.timed_transcript import PIECES_AT_ONCE, GrowingTranscript, stream_transcript
from llaso.demo.transcript_view import time_text, transcript_html
from llaso.transcription.speech_finders import available_finders, speech_finder
from llaso.transcription.transcriber import Transcriber
from llaso.transcription.transcript_formats import Segment, transcript

TOKENS = 12
PIECES = 10


@pytest.fixture(scope="module")
def demo_model() -> DemoModel:
    model, processor = talking_llaso()
    model.generation_config.no_repeat_ngram_size = 5  # with fewer, three letters soon leave no token to go on with
    return DemoModel(model, processor, max_new_tokens=TOKENS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Recordings: a long one of ten tones with pauses, one that is silent, and one that holds a click only."""
    folder = tmp_path_factory.mktemp("clips")
    pause, click = np.zeros(3 * RATE, np.float32), np.zeros(31 * RATE, np.float32)
    click[RATE : RATE + 20] = 0.5
    parts = [part for number in range(PIECES) for part in (tone(0.4 + 0.1 * number, 200.0 + 60 * number), pause)]
    for name, samples in {"long talk": np.concatenate(parts), "silent": pause, "click": click}.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def expected(demo_model, clips) -> tuple[list[Segment], float]:
    """What `llaso transcribe` gives for the long recording, in batches of the same size."""
    transcriber = Transcriber(demo_model.model, demo_model.processor, TOKENS, PIECES_AT_ONCE)
    segments, seconds = transcriber.transcribe_file(clips / "long talk.wav")
    assert len(segments) == PIECES and seconds > transcriber.window_seconds
    return segments, seconds


@pytest.fixture(scope="module")
def url(demo_model, clips):
    tasks = (MenuTask("Pitch", "High or low? {choices}.", ("high", "low")),)
    with served(demo_model, Menu(tasks, (), clips)) as url:
        yield url


def linked_files(page: str) -> dict[str, str]:
    """The files that the links of a transcript hold, by name."""
    links = re.findall(r'<a download="([^"]+)" href="data:[\w/-]+;charset=utf-8;base64,([^"]+)"', page)
    return {name: base64.b64decode(content).decode() for name, content in links}


def test_pieces_come_batch_by_batch_and_are_those_of_the_command(demo_model, clips, expected):
    segments, seconds = expected
    *growing, last = stream_transcript(demo_model, str(clips / "long talk.wav"))
    assert last.done and not any(one.done for one in growing)
    assert list(last.segments) == segments and (last.audio_s, last.pieces) == (seconds, PIECES)
    counts = sorted({len(one.segments) for one in growing})
    assert counts == [0, PIECES_AT_ONCE, 2 * PIECES_AT_ONCE, PIECES]
    assert all(one.segments == last.segments[: len(one.segments)] for one in growing)


def test_a_question_is_answered_between_two_batches(demo_model, clips):
    transcripts = stream_transcript(demo_model, str(clips / "long talk.wav"))
    order: list[int | str] = []

    def asked() -> None:
        list(demo_model.stream(DemoQuestion("text_audio", (str(clips / "click.wav"),), "what")))
        order.append("answer")

    visitor = threading.Thread(target=asked)
    for growing in transcripts:
        if growing.pieces and not visitor.ident:
            visitor.start()
        order.append(len(growing.segments))
    visitor.join()
    assert order.index("answer") < order.index(PIECES)


def test_it_stops_when_its_reader_leaves(clips):
    model, processor = talking_llaso()
    model.generation_config.no_repeat_ngram_size = None
    steps = []
    model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    transcripts = stream_transcript(DemoModel(model, processor, max_new_tokens=3000), str(clips / "long talk.wav"))
    while not steps:
        next(transcripts)
    transcripts.close()
    assert len(steps) < 3000
    assert not [thread for thread in threading.enumerate() if thread.name == "transcript"]


def test_an_error_of_the_model_is_raised_to_the_reader(clips):
    model, processor = talking_llaso()

    def broken(*_):
        raise RuntimeError("broken")

    model.lm_head.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        list(stream_transcript(DemoModel(model, processor), str(clips / "long talk.wav")))


def test_the_page_is_a_table_with_files_of_what_is_done():
    segments = (
        Segment(0.25, 1.5, "one & <two>", -0.5),
        Segment(2, 3, "", -1.0),
        Segment(3599.96, 3605, "three", -2.0),
    )
    growing = GrowingTranscript(segments, 4, 3700.0)
    page = transcript_html(growing, "/kept/my talk.wav")
    assert "<tr><td>0:00.2</td><td>0:01.5</td><td>one &amp; &lt;two&gt;</td></tr>" in page
    assert "<tr><td>1:00:00.0</td><td>1:00:05.0</td><td>three</td></tr>" in page and page.count("<tr><td>") == 2
    assert f'value="{3605 / 3700:.4f}"' in page
    assert linked_files(page) == {
        f"my talk.{'txt' if format == 'text' else format}": transcript(segments, format, 3700.0, "my talk.wav")
        for format in ("srt", "vtt", "json", "text")
    }
    assert 'value="1.0000"' in transcript_html(replace(growing, done=True), "x.wav")
    assert not linked_files(transcript_html(GrowingTranscript(), "x.wav"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00.0"), (59.96, "1:00.0"), (3599, "59:59.0"), (7265.2, "2:01:05.2")]
)
def test_times_have_tenths(seconds, text):
    assert time_text(seconds) == text


def test_a_client_transcribes(url, clips, expected):
    client = gradio_client.Client(url, verbose=False)
    job = client.submit(gradio_client.handle_file(clips / "long talk.wav"), "energy", api_name="/transcribe")
    page, status = job.result(timeout=300)
    assert re.search(
        rf"{expected[1]:.1f} s of sound, {PIECES} pieces, [\d.]+ s; \d+ texts were cut at {TOKENS}", status
    )
    record = json.loads(linked_files(page)["long talk.json"])
    assert [Segment(**segment) for segment in record["segments"]] == expected[0]
    assert record["file"] == "long talk.wav" and record["duration"] == expected[1]
    assert len({output[0] for output in job.outputs()}) > 2  # streamed


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("silent.wav", "silent.wav: the recording is silent"),
        ("click.wav", "click.wav: no speech was found"),
        (None, "no recording yet"),
    ],
)
def test_what_cannot_be_transcribed_is_told(url, clips, file, message):
    client = gradio_client.Client(url, verbose=False)
    sound = None if file is None else gradio_client.handle_file(clips / file)
    page, status = client.predict(sound, "energy", api_name="/transcribe")
    assert message in status and 'role="alert"' in status and "<table" not in page


def test_a_question_about_a_recording_that_is_too_long_names_the_task(clips):
    model, processor = talking_llaso()
    processor.max_audio_len = 30
    with pytest.raises(ValueError, match=f"at most: cut it.*“{TIMED_TASK}” takes recordings of any length"):
        DemoModel(model, processor).read_recordings((str(clips / "click.wav"),))


def test_finders_are_those_that_are_installed(monkeypatch):
    assert set(available_finders()) <= {"energy", "silero"} and available_finders()[0] == "energy"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert available_finders() == ("energy",)
    with pytest.raises(ValueError, match=r"llaso\[vad\]"):
        speech_finder("silero")


@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_a_recording_becomes_a_transcript_and_a_file(url, clips, expected, width):
    with chromium() as browser, open_page(browser, url, width) as page:
        choose_task(page)
        page.locator("#instruction textarea").wait_for(state="detached")
        assert page.locator("#finder").is_visible() == (len(available_finders()) > 1)
        page.get_by_role("button", name="Transcribe").click()
        page.get_by_role("alert").get_by_text("There is no recording yet").wait_for()
        page.locator("#recording input[type=file]").set_input_files(clips / "long talk.wav")
        page.locator("#recording").get_by_role("button", name="Play", exact=True).wait_for()
        page.get_by_role("button", name="Transcribe").click()
        page.get_by_role("status").get_by_text(f"{PIECES} pieces").wait_for()
        rows = [row.inner_text().split("\t") for row in page.locator("#timed tbody tr").all()]
        assert [row[2].strip() for row in rows] == [segment.text for segment in expected[0]]
        assert rows[0][0] == time_text(expected[0][0].start)
        for format in ("srt", "vtt", "json"):
            with page.expect_download() as downloading:
                page.locator("#timed").get_by_text(format, exact=True).click()
            saved = downloading.value
            assert saved.suggested_filename == f"long talk.{format}"
            assert Path(saved.path()).read_text(encoding="utf-8") == transcript(
                expected[0], format, expected[1], "long talk.wav"
            )
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        page.locator("#task input").click()
        page.get_by_role("option", name="Pitch").click()
        page.locator("#instruction textarea").wait_for()
        assert page.get_by_role("button", name="Ask", exact=True).is_visible()
        assert not page.locator("#timed").is_visible() and page.locator("#answer").is_visible()
        choose_task(page)
        page.locator("#timed table").wait_for()
        page.get_by_text("Speak throughout").click()
        page.get_by_role("button", name="Ask", exact=True).wait_for()
        assert not page.get_by_role("button", name="Transcribe").is_visible()


def test_in_a_browser_a_transcription_can_be_stopped_and_what_is_done_stays(url, demo_model, clips, monkeypatch):
    batches = []
    transcribe = Transcriber.transcribe

    def last_takes_long(self, sounds):
        batches.append(len(sounds))
        if len(batches) == 2:
            self.max_new_tokens = 6000
            monkeypatch.setattr(self.model.generation_config, "no_repeat_ngram_size", None)
        return transcribe(self, sounds)

    monkeypatch.setattr(Transcriber, "transcribe", last_takes_long)
    with chromium() as browser, open_page(browser, url, 1280) as page:
        choose_task(page)
        page.locator("#recording input[type=file]").set_input_files(clips / "long talk.wav")
        page.locator("#recording").get_by_role("button", name="Play", exact=True).wait_for()
        page.get_by_role("button", name="Transcribe").click()
        page.locator("#timed tbody tr").nth(PIECES_AT_ONCE - 1).wait_for()
        started = time.monotonic()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("status").get_by_text("Stopped.").wait_for()
        with demo_model.lock:  # free again: the generation has ended
            assert batches == [PIECES_AT_ONCE, PIECES_AT_ONCE]
        assert time.monotonic() - started < 60
        assert page.locator("#timed tbody tr").count() == PIECES_AT_ONCE
        with page.expect_download() as downloading:
            page.locator("#timed").get_by_text("srt", exact=True).click()
        assert Path(downloading.value.path()).read_text(encoding="utf-8").count("-->") == PIECES_AT_ONCE


def choose_task(page) -> None:
    page.locator("#task input").click()
    page.get_by_role("option", name=TIMED_TASK).click()
    page.get_by_role("button", name="Transcribe").wait_for()
