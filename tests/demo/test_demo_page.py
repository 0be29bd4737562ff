"""The served page: asked by gradio's own client, by several at once, and in a browser from upload to answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gradio_client
import numpy as np
import pytest
import soundfile
from support.browser import chromium, open_page
from support.served_page import served
from support.tiny_demo import direct_answer, talking_llaso
from support.tiny_llaso import RATE, tone

from llaso.demo.menu import Menu, MenuExample, MenuTask
from llaso.demo.question import DemoModel

TOKENS = 20
WIDTHS = (1280, 400)
AUDIO = {"type": "audio"}


@pytest.fixture(scope="module")
def demo_model() -> DemoModel:
    return DemoModel(*talking_llaso(), max_new_tokens=TOKENS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, samples in {"low": tone(0.6), "high": tone(0.4, 900.0), "silent": np.zeros(RATE)}.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def url(demo_model, clips) -> Iterator[str]:
    """A page with one closed task, one open one and an example of each format, served on loopback."""
    tasks = (
        MenuTask("Pitch", "High or low? {choices}.", ("high", "low")),
        MenuTask("Transcription", "Write it down."),
    )
    examples = (
        MenuExample(
            "A tone", "text_audio", "low.wav", "Pitch", "Which is it, low or high?", ("low", "high"), target="low"
        ),
        MenuExample("A text", "audio_text", "high.wav", content="the <b>red</b> book"),
        MenuExample("A story", "audio", "high.wav"),
    )
    with served(demo_model, Menu(tasks, examples, clips), "owner/<model>") as url:
        yield url


def answer_to(demo_model: DemoModel, content: list[dict], clip: np.ndarray) -> str:
    return direct_answer(demo_model.model, demo_model.processor, content, clip, TOKENS)


def written(text: str) -> dict:
    return {"type": "text", "text": text}


def test_a_client_asks_in_three_formats(url, demo_model, clips):
    client = gradio_client.Client(url, verbose=False)
    low, high = (gradio_client.handle_file(clips / name) for name in ("low.wav", "high.wav"))

    def ask(*inputs) -> str:
        answer, status = client.predict(*inputs, api_name="/ask")
        assert "tokens read" in status
        return answer

    assert ask("text_audio", "what", low, None, "") == answer_to(demo_model, [written("what"), AUDIO], tone(0.6))
    assert ask("audio_text", "", high, None, "it") == answer_to(demo_model, [AUDIO, written("it")], tone(0.4, 900.0))
    both = demo_model.read_recordings((str(clips / "low.wav"), str(clips / "high.wav")))
    assert ask("audio", "", low, high, "") == answer_to(demo_model, [AUDIO], both)
    assert 'src="data:image/png;base64,' in client.predict("text_audio", low, None, api_name="/look")


def test_bad_questions_are_refused_with_a_message(url, clips):
    client = gradio_client.Client(url, verbose=False)
    silent = gradio_client.handle_file(clips / "silent.wav")
    answer, status = client.predict("text_audio", "what", silent, None, "", api_name="/ask")
    assert answer == "" and 'role="alert"' in status and "silent.wav: the recording is silent" in status
    assert "the recording is silent" in client.predict("text_audio", silent, None, api_name="/look")
    assert "no recording yet" in client.predict("audio", "", None, None, "", api_name="/ask")[1]


def test_visitors_at_once_get_their_own_answers(url, demo_model, clips):
    client = gradio_client.Client(url, verbose=False)
    sounds = {"low.wav": tone(0.6), "high.wav": tone(0.4, 900.0)}
    asked = [(question, name) for question in ("what", "who was it, and where, and when") for name in sounds]
    jobs = [
        client.submit("text_audio", question, gradio_client.handle_file(clips / name), None, "", api_name="/ask")
        for question, name in asked
    ]
    answers = [job.result(timeout=300)[0] for job in jobs]
    assert answers == [answer_to(demo_model, [written(question), AUDIO], sounds[name]) for question, name in asked]
    assert len(set(answers)) > 1
    assert all(len(job.outputs()) > 2 for job in jobs)  # streamed


@pytest.mark.parametrize("width", WIDTHS)
def test_in_a_browser_upload_ask_and_the_answer_appears(url, demo_model, clips, width):
    with chromium() as browser, open_page(browser, url, width) as page:
        instruction, answer = page.locator("#instruction textarea"), page.locator("#answer textarea")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("alert").get_by_text("The instruction is empty").wait_for()

        page.locator("#task input").click()
        page.get_by_role("option", name="Pitch").click()
        page.wait_for_function("document.querySelector('#instruction textarea').value == 'High or low? high or low.'")
        page.locator("#choices textarea").fill("up, down, still")
        page.locator("#choices textarea").blur()
        page.wait_for_function(
            "document.querySelector('#instruction textarea').value == 'High or low? up, down or still.'"
        )
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("alert").get_by_text("There is no recording yet").wait_for()

        page.locator("#recording input[type=file]").set_input_files(clips / "low.wav")
        page.locator("#seen img").wait_for()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("status").get_by_text("tokens read").wait_for()
        expected = answer_to(demo_model, [written("High or low? up, down or still."), AUDIO], tone(0.6))
        assert answer.input_value() == expected

        page.get_by_role("button", name="A text").click()
        page.locator("#content textarea").wait_for()
        assert page.locator("#content textarea").input_value() == "the <b>red</b> book"
        assert instruction.count() == 0 or not instruction.is_visible()
        assert answer.input_value() == ""
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("status").get_by_text("tokens read").wait_for()
        content = [AUDIO, written("the <b>red</b> book")]
        assert answer.input_value() == answer_to(demo_model, content, tone(0.4, 900.0))

        page.get_by_role("button", name="A tone").click()
        page.get_by_text("Right answer: low").wait_for()
        instruction.press_sequentially("!")
        page.get_by_text("Right answer: low").wait_for(state="hidden")
        assert page.locator("h1 + p code").inner_text() == "owner/<model>"
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_in_a_browser_an_answer_can_be_stopped(url, demo_model, clips, monkeypatch):
    monkeypatch.setattr(demo_model, "max_new_tokens", 6000)
    monkeypatch.setattr(demo_model.model.generation_config, "no_repeat_ngram_size", None)
    steps = []
    hook = demo_model.model.register_forward_hook(lambda *passed: steps.append(1))
    with chromium() as browser, open_page(browser, url, WIDTHS[0]) as page:
        answer = page.locator("#answer textarea")
        page.get_by_role("button", name="A story").click()
        page.locator("#seen img").wait_for()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("status").get_by_text("Answering").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("status").get_by_text("Stopped.").wait_for()
        with demo_model.lock:  # free again: the generation has ended
            made = len(steps)
        shown = answer.input_value()
        monkeypatch.undo()
        hook.remove()
        assert 1 <= made < 6000
        # What is shown is the beginning of the answer, and the page goes on answering.
        whole = direct_answer(demo_model.model, demo_model.processor, [AUDIO], tone(0.4, 900.0), TOKENS)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("status").get_by_text("tokens read").wait_for()
        assert answer.input_value() == whole
        assert len(shown) <= made
