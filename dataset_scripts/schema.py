"""The one row of LLaSO-Align, -Instruct and -Eval.

Builders write it, the trainer and the evaluation read it; nothing else crosses between these rooms.
A row carries its conversation already written (`messages`), so that it feeds a chat template as it is.
"""

from __future__ import annotations

from datasets import Audio, Features, List, Value

SAMPLE_RATE = 16_000
"""Hz. Every clip of every corpus is stored at this rate, mono, as FLAC."""

CORPORA = ("align", "instruct", "eval")
MODALITIES = ("text_audio", "audio_text", "audio")
"""Modality formats: X(t,a) text instruction + audio; X(a,t) spoken instruction + text; X(a) audio alone."""
SPLITS = ("train", "validation", "test")

FEATURES = Features(
    {
        "id": Value("string"),  # unique in the corpus, stable over rebuilds
        "corpus": Value("string"),  # one of CORPORA
        "task": Value("string"),  # code of dataset_scripts.tasks.TASKS, e.g. "ASR"
        "category": Value("string"),  # linguistic | semantic | paralinguistic
        "modality": Value("string"),  # one of MODALITIES
        "source": Value("string"),  # the corpus it came from, e.g. "vctk"
        "split": Value("string"),  # one of SPLITS
        "messages": List(
            {
                "role": Value("string"),  # system | user | assistant
                # Parts in reading order. A text part has `text`; an audio part has text None and takes the
                # next item of `audio`.
                "content": List({"type": Value("string"), "text": Value("string")}),
            }
        ),
        "audio": List(Audio(sampling_rate=SAMPLE_RATE, decode=False)),  # {"bytes": FLAC, "path": name}
        "target": Value("string"),  # the reference answer, equal to the last assistant text
        "choices": List(Value("string")),  # closed sets only; else empty
        "template_id": Value("string"),  # which instruction, e.g. "SGC/07"
        "style": Value("string"),  # standardised | contextualised | stylistic | fine_grained; "" without
        "voice": Value("string"),  # synthetic voice, or "" for a recording
        "speaker": Value("string"),  # "<source>:<speaker>" of a recording, or ""
        "duration": Value("float64"),  # seconds, all clips of the row together
        "length": Value("int32"),  # tokens after audio expansion; 0 where no processor was named
        "license": Value("string"),  # SPDX id or the source's own name
        "sha256": Value("string"),  # of the clips' bytes, joined; "" without audio
    }
)
