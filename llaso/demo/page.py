"""The page: the question on the left, the answer and the picture of the recording on the right, examples below.

Questions wait in a queue for the model; each answer is streamed to the visitor who asked. One task is not a question:
it transcribes a recording of any length, with times.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..transcription.speech_finders import available_finders
from .menu import Menu, MenuTask
from .pictures import picture
from .question import TIMED_TASK, DemoModel, DemoQuestion
from .timed_transcript import stream_transcript
from .transcript_view import EMPTY_TRANSCRIPT, transcript_html

FORMATS = {
    "text_audio": "Write, about a recording",
    "audio_text": "Speak, about a text",
    "audio": "Speak throughout",
}
FREE = "Your own instruction"
QUEUE_SIZE = 32
"""Number of questions that may wait for the model; later visitors see that the page is busy."""
MAX_FILE = "1gb"
"""An hour of stereo at 48 kHz in a WAV file has 691 MB."""
EMPTY_PICTURE = '<div class="seen empty">The waveform, and what the encoder sees of it, appear here.</div>'
FINDER_LABELS = {"energy": "by its loudness", "silero": "among music and noise, by silero-vad"}
RECORDING_LABELS = {
    "text_audio": "Recording",
    "audio_text": "Recording of the instruction",
    "audio": "Recording of the instruction, with or without the content",
}


def build_page(demo_model: DemoModel, menu: Menu, name: str) -> gr.Blocks:
    """Build the page of one model.

    Args:
        demo_model: answers the questions.
        menu: tasks and examples.
        name: name of the model on the page.
    """
    tasks = {task.name: task for task in menu.tasks}
    with gr.Blocks(title=f"LLaSO · {name}", analytics_enabled=False) as page:
        gr.HTML(
            f"<h1>LLaSO</h1><p>Ask <code>{html.escape(name)}</code> about speech and sound, in writing or aloud.</p>",
            elem_id="head",
        )
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                modality = gr.Radio(
                    [(label, value) for value, label in FORMATS.items()],
                    value="text_audio",
                    label="Format",
                    elem_id="format",
                )
                task = gr.Dropdown([FREE, TIMED_TASK, *tasks], value=FREE, label="Task", elem_id="task")
                instruction = gr.Textbox(
                    label="Instruction", lines=2, placeholder="What should be done with it?", elem_id="instruction"
                )
                choices = gr.Textbox(
                    label="Choices", info="Separated by commas", visible=False, elem_id="choices", interactive=True
                )
                recording = _recorder(RECORDING_LABELS["text_audio"], "recording")
                about = _recorder("Recording of the content, heard after the instruction (optional)", "about", False)
                content = gr.Textbox(
                    label="Content",
                    lines=3,
                    visible=False,
                    placeholder="The text that the spoken instruction is about",
                    elem_id="content",
                )
                asked_hint = gr.HTML(
                    '<p class="hint">Any usual audio format, '
                    f"up to {demo_model.max_audio_seconds / 60:.3g} minutes.</p>",
                )
                timed_hint = gr.HTML(
                    '<p class="hint">Any usual audio format, of any length. It is cut at pauses.</p>', visible=False
                )
                finders = available_finders()
                with gr.Column(visible=False) as finding:
                    finder = gr.Radio(
                        [(FINDER_LABELS[name], name) for name in finders],
                        value=finders[0],
                        label="Speech is found",
                        visible=len(finders) > 1,
                        elem_id="finder",
                    )
                with gr.Row(elem_id="buttons"):
                    ask = gr.Button("Ask", variant="primary", scale=3, elem_id="ask")
                    transcribe = gr.Button(
                        "Transcribe", variant="primary", scale=3, visible=False, elem_id="transcribe"
                    )
                    stop = gr.Button("Stop", scale=1, elem_id="stop")
            with gr.Column(min_width=320):
                with gr.Column() as answered:
                    answer = gr.Textbox(
                        label="Answer", lines=4, max_lines=12, interactive=False, buttons=["copy"], elem_id="answer"
                    )
                status = gr.HTML('<p class="status"></p>', elem_id="status")
                with gr.Column() as pictured:
                    target = gr.HTML(elem_id="target")
                    seen = gr.HTML(EMPTY_PICTURE, elem_id="seen")
                timed = gr.HTML(EMPTY_TRANSCRIPT, visible=False, elem_id="timed")
        examples = gr.Dataset(
            components=[gr.Number(visible=False)],
            samples=[[number] for number in range(len(menu.examples))],
            sample_labels=[example.title for example in menu.examples],
            type="index",
            label="Examples",
            visible=bool(menu.examples),
            elem_id="examples",
        )

        shown = [task, instruction, choices, recording, about, content]
        for_asking, for_times = [asked_hint, ask, answered, pictured], [timed_hint, finding, transcribe, timed]

        def switched(timed: bool) -> list[Any]:
            """Return the updates that show what asking needs, or what a transcript with times needs."""
            return [gr.update(visible=not timed) for _ in for_asking] + [gr.update(visible=timed) for _ in for_times]

        modality.input(
            lambda chosen, name: [
                *_field_updates(chosen, name, tasks.get(name)),
                *switched(chosen == "text_audio" and name == TIMED_TASK),
            ],
            [modality, task],
            [*shown, *for_asking, *for_times],
            **_IMMEDIATE,
        )
        task.input(
            lambda name: [*_task_updates(name, tasks.get(name)), *switched(name == TIMED_TASK)],
            task,
            [instruction, choices, *for_asking, *for_times],
            **_IMMEDIATE,
        )
        gr.on(
            [choices.input, choices.blur],  # gradio 6.31 sends no `input` event for the first paste
            lambda name, written: tasks[name].with_choices(_split_choices(written)) if name in tasks else gr.skip(),
            [task, choices],
            instruction,
            **_IMMEDIATE,
        )
        examples.click(
            lambda number: [*_example_updates(menu, number), *switched(False)],
            examples,
            [modality, *shown, answer, status, target, *for_asking, *for_times],
            **_IMMEDIATE,
        )
        gr.on(
            [recording.change, about.change, modality.change],
            partial(_draw, demo_model),
            [modality, recording, about],
            seen,
            show_progress="hidden",
            api_name="look",
        )
        inputs = [part.input for part in (modality, task, instruction, choices, recording, about, content)]
        gr.on(inputs, lambda: "", None, target, **_IMMEDIATE)  # the question is no longer the example
        asking = gr.on(
            [ask.click, instruction.submit, content.submit],
            partial(_ask, demo_model),
            [modality, instruction, recording, about, content],
            [answer, status],
            concurrency_limit=1,
            concurrency_id="model",
            api_name="ask",
        )
        transcribing = transcribe.click(
            partial(_transcribe, demo_model),
            [recording, finder],
            [timed, status],
            show_progress="hidden",
            concurrency_limit=1,
            concurrency_id="transcript",  # of its own, so that questions are answered between its batches
            api_name="transcribe",
        )
        stop.click(lambda: _status("Stopped."), None, status, cancels=[asking, transcribing], **_IMMEDIATE)
    return page.queue(max_size=QUEUE_SIZE, default_concurrency_limit=4)


def launch(page: gr.Blocks, **options: Any) -> Any:
    """Serve a page with its theme; `options` are those of `Blocks.launch`."""
    style: dict[str, Any] = {"theme": _theme(), "css_paths": Path(__file__).with_name("style.css"), "footer_links": []}
    return page.launch(**style, max_file_size=MAX_FILE, **options)


def _theme() -> gr.themes.Base:
    """Return a theme with one colour and system fonts, so that nothing is loaded from other hosts."""
    return gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_500",
        block_label_border_width="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="*primary_950",
        checkbox_label_border_color_selected="*primary_400",
        checkbox_label_border_color_selected_dark="*primary_400",
        checkbox_label_text_color_selected="*primary_800",
        checkbox_label_text_color_selected_dark="*primary_100",
    )


_IMMEDIATE: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
"""Options of events that only change the page and do not call the model."""


def _recorder(label: str, name: str, visible: bool = True) -> gr.Audio:
    return gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label=label,
        visible=visible,
        elem_id=name,
        buttons=["download"],
    )


def _ask(
    demo_model: DemoModel, modality: str, instruction: str, recording: str | None, about: str | None, content: str
) -> Iterator[tuple[str, Any]]:
    """Yield the growing answer and a status line, or a notice if the question is invalid."""
    question = DemoQuestion(modality, _used_recordings(modality, recording, about), instruction, content)
    try:
        status: Any = _status("Answering…")
        for answer in demo_model.stream(question):
            if answer.done:
                status = _status(
                    f"{answer.audio_s:.1f} s of sound, {answer.prompt_tokens:,} tokens read, {answer.seconds:.1f} s"
                )
            yield answer.text, status
            status = gr.skip()  # sent once, so that it does not replace "Stopped."
    except ValueError as error:
        yield "", _notice(error)


def _transcribe(demo_model: DemoModel, recording: str | None, finder: str) -> Iterator[tuple[Any, Any]]:
    """Yield the growing transcript and a status line, or a notice if there is nothing to transcribe."""
    before, status = None, _status("Transcribing…")
    try:
        for growing in stream_transcript(demo_model, recording, finder):
            if growing.done:
                cut = sum(segment.finish_reason == "length" for segment in growing.segments)
                status = _status(
                    f"{growing.audio_s:.1f} s of sound, {growing.pieces:,} pieces, {growing.seconds:.1f} s"
                    + (f"; {cut:,} texts were cut at {demo_model.max_new_tokens} tokens" if cut else "")
                )
            reached = growing.done, growing.audio_s, len(growing.segments)
            yield gr.skip() if reached == before else transcript_html(growing, str(recording)), status
            before, status = reached, gr.skip()  # sent once, so that it does not replace "Stopped."
    except ValueError as error:
        yield EMPTY_TRANSCRIPT, _notice(error)


def _draw(demo_model: DemoModel, modality: str, recording: str | None, about: str | None) -> str:
    """Return the picture of the recordings, or a notice if they cannot be read."""
    recordings = _used_recordings(modality, recording, about)
    if not any(recordings):
        return EMPTY_PICTURE
    try:
        clip = demo_model.read_recordings(recordings)
    except ValueError as error:
        return _notice(error)
    png = base64.b64encode(picture(clip, demo_model.processor)).decode()
    tokens = demo_model.processor.count_audio_tokens(len(clip))
    return (
        f'<figure class="seen"><img alt="Waveform and log-mel spectrogram" src="data:image/png;base64,{png}">'
        f"<figcaption>Waveform, and log-mel as the encoder sees it: {len(clip) / demo_model.rate:.1f} s become "
        f"{tokens:,} tokens</figcaption></figure>"
    )


def _used_recordings(modality: str, recording: str | None, about: str | None) -> tuple[str | None, ...]:
    """Return the recordings that a format uses; only the spoken format uses the second."""
    return (recording, about) if modality == "audio" else (recording,)


def _field_updates(modality: str, name: str, task: MenuTask | None) -> list[Any]:
    """Return the updates that show the fields of a format."""
    written = modality == "text_audio"
    return [
        gr.update(visible=written),
        gr.update(visible=written and name != TIMED_TASK),
        gr.update(visible=written and bool(task and task.choices)),
        gr.update(label=RECORDING_LABELS[modality]),
        gr.update(visible=modality == "audio"),
        gr.update(visible=modality == "audio_text"),
    ]


def _task_updates(name: str, task: MenuTask | None) -> list[Any]:
    """Return the updates for a task's instruction and choices; no task of the menu belongs to the first two names."""
    if task is None:
        return [gr.update(value="", visible=name != TIMED_TASK), gr.update(value="", visible=False)]
    return [
        gr.update(value=task.with_choices(task.choices), visible=True),
        gr.update(value=", ".join(task.choices), visible=bool(task.choices)),
    ]


def _example_updates(menu: Menu, number: int) -> list[Any]:
    """Return the updates that show an example."""
    example = menu.examples[number]
    task = next((task for task in menu.tasks if task.name == example.task), None)
    values = (
        example.task or FREE,
        example.instruction,
        ", ".join(example.choices),
        str(menu.folder / example.recording),
        None,
        example.content,
    )
    places = [
        {**place, "value": value}
        for place, value in zip(_field_updates(example.modality, example.task, task), values, strict=True)
    ]
    expected = f'<p class="hint">Right answer: <b>{html.escape(example.target)}</b></p>' if example.target else ""
    return [example.modality, *places, "", _status(""), expected]


def _split_choices(written: str) -> list[str]:
    return [choice.strip() for choice in written.split(",") if choice.strip()]


def _status(text: str) -> str:
    return f'<p class="status" role="status">{html.escape(text)}</p>'


def _notice(error: ValueError) -> str:
    return f'<p class="notice" role="alert">{html.escape(str(error))}</p>'
