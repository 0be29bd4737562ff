"""Processor of LLaSO: conversations and recordings in, token ids with one placeholder per audio token and log-mel out.

The prompt is the released one to the token for Llama 3; other language models keep their own turn marks. All audio
arithmetic is here: windows, frames, tokens. This file travels with checkpoints, so it imports nothing of ours.
"""

import io
import itertools
import math
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from .compatibility_llaso import SANITIZES_SINCE_5_23
from .configuration_llaso import check_padding, count_audio_tokens, warn_of_other_padding

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the "
    "audio content that the user provides, and assist the user with a variety of tasks using natural language."
    "The audio content will be provided with the following format: <Audio>audio content</Audio>."
)
AUDIO_TAGS = ("<Audio>", "</Audio>", "<audio_start>", "<audio_end>")
AUDIO_TOKEN = "<audio>"
UNUSED_TOKEN = "<audio_unused>"
EMBEDDING_ROWS = 64
"""vLLM pads embeddings to a multiple of so many rows, and looks the placeholder's id up in them. The placeholder comes
after the last row, so the number of rows must not be such a multiple itself."""
UNK_TOKEN = "<unk>"
DEFAULT_TRANSCRIPTION_PROMPT = "Transcribe the spoken words from the following audio clip."

AUTO_MAP = {"AutoProcessor": "processing_llaso.LlasoProcessor"}

RELEASED_SLICE_GAP = 1
"""Samples that the released code drops between two windows of long audio; dropped in `full` only."""
MAX_AUDIO_LEN = 600
"""Longest audio, in seconds: twenty windows of 30 s, as released."""
SILENT_PEAK = 1e-4
"""Peak amplitude below which a recording is silent: -80 dB of full scale."""
SHORTEST_BASE64 = 1000
"""Characters from which a text that is no URL is audio in base64; a shorter one is a path."""


class TurnMarks(NamedTuple):
    """The text that a language model's chat puts before and after each message."""

    system: tuple[str, str] | None  # None: the system text opens the first user message
    user: tuple[str, str]
    assistant: tuple[str, str]  # part of the labels: the model learns to end its answer with it
    after_assistant: str = ""


LLAMA_3 = TurnMarks(
    system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
)
CHATML = TurnMarks(
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>"),
    after_assistant="\n",
)
GEMMA = TurnMarks(
    system=None,
    user=("<start_of_turn>user\n", "<end_of_turn>\n"),
    assistant=("<start_of_turn>model\n", "<end_of_turn>"),
    after_assistant="\n",
)
INST = TurnMarks(system=None, user=("[INST] ", " [/INST]"), assistant=(" ", "</s>"))
TURN_MARKS = {"<|start_header_id|>": LLAMA_3, "<|im_start|>": CHATML, "<start_of_turn>": GEMMA, "</s>": INST}
"""Turn marks by the token that identifies them: Llama 3, Qwen, Gemma, and Mistral with Llama 2."""

# The released rule for a user's text: strip it; then every audio becomes its tag, on lines of its own if text
# precedes the first audio, else followed by one line break.
CHAT_TEMPLATE = r"""
@REFUSE_TYPED@
{%- macro write(content) -%}
    {%- if content is string -%}
        {{- refuse_typed(content) -}}
        {{- content.strip() -}}
    {%- else -%}
        {%- set ns = namespace(texts=[], text='') -%}
        {%- for part in content -%}
            {%- if part['type'] == 'audio' -%}
                {%- set ns.texts = ns.texts + [ns.text] -%}
                {%- set ns.text = '' -%}
            {%- else -%}
                {{- refuse_typed(part['text']) -}}
                {%- set ns.text = ns.text ~ part['text'] -%}
            {%- endif -%}
        {%- endfor -%}
        {%- set ns.texts = ns.texts + [ns.text] -%}
        {%- set text_first = ns.texts[0].strip() != '' -%}
        {%- for text in ns.texts -%}
            {%- set text = text.lstrip() if loop.first else text -%}
            {{- text.rstrip() if loop.last else text -}}
            {%- if not loop.last -%}
                {{- '\n' if text_first -}}
                {{- '<Audio><audio_start>@AUDIO@<audio_end></Audio>' -}}
                {{- '\n\n' if text_first else '\n' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = write(messages[0]['content']) -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system = @SYSTEM_PROMPT@ -%}
{%- endif -%}
@BEGIN@
@SYSTEM_TURN@
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- @USER_OPEN@ -}}
        @SYSTEM_IN_USER@
        {{- write(message['content']) -}}
        {{- @USER_CLOSE@ -}}
    {%- else -%}
        {{- @ASSISTANT_OPEN@ -}}
        {%- generation -%}
            {{- write(message['content']) ~ @ASSISTANT_CLOSE@ -}}
        {%- endgeneration -%}
        {{- @ASSISTANT_AFTER@ -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- @ASSISTANT_OPEN@ -}}
{%- endif -%}
""".strip()

TYPED_TOKEN = (
    "the text holds the special token {token!r}, which would break the prompt. Write it differently; audio goes in a "
    "part of its own"
)
"""Why a special token in a message's text is refused, by the processor and by the chat template."""

# For programs that render the template themselves, such as vLLM; the processor refuses all special tokens before.
REFUSE_TYPED = r"""
{%- macro refuse_typed(text) -%}
    {%- if '@AUDIO@' in text and not control_tokens_are_text -%}
        {{- raise_exception(@TYPED_TOKEN@) -}}
    {%- endif -%}
{%- endmacro -%}
""".strip()


def add_audio_tokens(tokenizer, rows_are_fixed: bool = False) -> None:
    """Give a language model's tokenizer LLaSO's tokens, in the released order, and the placeholder after them.

    `<unk>` becomes the pad and unk token if the tokenizer has no pad token. Tokens that are there already stay. If the
    placeholder's id would be a multiple of 64, an unused token comes before it.

    Args:
        tokenizer: any fast tokenizer; changed in place.
        rows_are_fixed: add no unused token, because a checkpoint's embeddings have no row for it.
    """
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": UNK_TOKEN, "unk_token": UNK_TOKEN})
    tokenizer.add_tokens(list(AUDIO_TAGS), special_tokens=True)
    fits = AUDIO_TOKEN in tokenizer.get_vocab() or len(tokenizer) % EMBEDDING_ROWS
    if not fits and not rows_are_fixed:
        tokenizer.add_tokens([UNUSED_TOKEN], special_tokens=True)
    tokenizer.add_tokens([AUDIO_TOKEN], special_tokens=True)


def turn_marks(tokenizer) -> TurnMarks:
    """Find the turn marks of a tokenizer's own chat by its vocabulary.

    Raises:
        ValueError: it has the turn marks of no known family.
    """
    vocabulary = tokenizer.get_vocab()
    for token, marks in TURN_MARKS.items():
        if token in vocabulary:
            return marks
    raise ValueError(
        f"the tokenizer has none of the turn marks {', '.join(TURN_MARKS)}; pass chat_template to LlasoProcessor"
    )


def begin_of_text(tokenizer) -> str:
    """Return the token that a tokenizer puts before every text, or an empty text if it puts none.

    Chat templates write it too: programs such as vLLM tokenize what a template wrote as it is.
    """
    begins = tokenizer("")["input_ids"][:1]
    return tokenizer.bos_token if begins and begins[0] == tokenizer.bos_token_id else ""


def default_chat_template(tokenizer, audio_token: str = AUDIO_TOKEN) -> str:
    """Write the released prompt as a Jinja template, in the tokenizer's own turn marks."""
    marks = turn_marks(tokenizer)
    system_turn, system_in_user = "", "{{- system ~ '\\n\\n' if loop.first and system -}}"
    if marks.system is not None:
        opening, closing = (repr(mark) for mark in marks.system)
        system_turn, system_in_user = f"{{{{- {opening} ~ system ~ {closing} -}}}}", ""
    replacements = {
        "@BEGIN@\n": f"{{{{- {begin!r} -}}}}\n" if (begin := begin_of_text(tokenizer)) else "",
        "@REFUSE_TYPED@": REFUSE_TYPED,
        "@TYPED_TOKEN@": repr(TYPED_TOKEN.format(token=audio_token)),
        "@AUDIO@": audio_token,
        "@SYSTEM_PROMPT@": repr(SYSTEM_PROMPT),
        "@SYSTEM_TURN@": system_turn,
        "@SYSTEM_IN_USER@": system_in_user,
        "@USER_OPEN@": repr(marks.user[0]),
        "@USER_CLOSE@": repr(marks.user[1]),
        "@ASSISTANT_OPEN@": repr(marks.assistant[0]),
        "@ASSISTANT_CLOSE@": repr(marks.assistant[1]),
        "@ASSISTANT_AFTER@": repr(marks.after_assistant),
    }
    template = CHAT_TEMPLATE
    for name, value in replacements.items():
        template = template.replace(name, value)
    return template


TEXT_DEFAULTS: Any = {"padding": True, "return_tensors": "pt"}
AUDIO_DEFAULTS: Any = {"sampling_rate": 16_000}
AUDIO_KEYS = ("audio", "path", "url")
"""Keys of an audio part that may hold its audio."""
NOT_FOR_THE_TEMPLATE = ("tokenize", "return_dict", "return_tensors", "load_audio_from_video", "processor_kwargs")
"""Arguments of `apply_chat_template` that the template itself does not see."""


class LlasoProcessorKwargs(ProcessingKwargs, total=False):
    """Default keyword arguments; older versions of transformers read them here, newer ones from the processor."""

    _defaults = {"text_kwargs": TEXT_DEFAULTS, "audio_kwargs": AUDIO_DEFAULTS}  # type: ignore[misc]


class LlasoProcessor(ProcessorMixin):
    r"""Prompts, audio windows and placeholders for LLaSO.

    Args:
        feature_extractor (`WhisperFeatureExtractor`): the encoder's; its sizes are used, its padding is not.
        tokenizer (`PreTrainedTokenizerFast`): the language model's, after `add_audio_tokens`. Set to pad on the left,
            for generation; pass `padding_side="right"` for training.
        chat_template (`str`, *optional*): Jinja; by default the released prompt in the tokenizer's own turn marks.
        audio_token (`str`): the placeholder.
        audio_padding (`str`): `"full"` or `"trim"`, as in the model's configuration.
        audio_tail (`float`): seconds of silence that follow each recording in `"trim"`, as far as its last window has
            room; the encoder hears where the speech ends. Train and answer with the same.
        projector_stride (`int`): as in the model's configuration.
        default_transcription_prompt (`str`): the instruction of `apply_transcription_request`.
        max_audio_len (`float`): seconds of one audio at most. Longer audio is an error, never cut. The language
            model's context may hold less: `generate` then refuses the prompt.

    Raises:
        ValueError: a token is missing from the tokenizer, or a setting is unknown.
    """

    _auto_class = "AutoProcessor"
    valid_processor_kwargs = LlasoProcessorKwargs
    text_kwargs = TEXT_DEFAULTS
    audio_kwargs = AUDIO_DEFAULTS

    @staticmethod
    def read_file(source: str | bytes | bytearray | memoryview, rate: int, name: str) -> np.ndarray:
        """Decode a file into mono samples at `rate`.

        Importing the package `modeling_llaso` replaces this method by a reader of more formats, which also refuses
        files that are cut off. This simple one is for checkpoints that are loaded without the package.

        Raises:
            ValueError: libsndfile does not read it, or is not installed.
        """
        try:
            import soundfile
        except ImportError:
            raise ValueError(f"{name}: reading files needs soundfile: pip install soundfile soxr") from None
        file = source if isinstance(source, str) else io.BytesIO(source)
        try:
            samples, found = soundfile.read(file, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{name}: not readable as audio: {error.error_string.rstrip('.')}") from None
        return _at_rate(_checked_clip(samples.mean(axis=1), name), found, rate, name)

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        chat_template: str | None = None,
        audio_token: str = AUDIO_TOKEN,
        audio_padding: str = "full",
        projector_stride: int = 1,
        default_transcription_prompt: str = DEFAULT_TRANSCRIPTION_PROMPT,
        max_audio_len: float = MAX_AUDIO_LEN,
        audio_tail: float = 0.0,
    ):
        check_padding(audio_padding, audio_tail)
        if feature_extractor.dither != 0.0:
            raise ValueError("the feature extractor dithers; LLaSO's log-mel is exact, so set its dither to 0")
        missing = [token for token in (audio_token, *AUDIO_TAGS) if token not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(f"the tokenizer lacks {', '.join(missing)}; call add_audio_tokens(tokenizer) first")
        if chat_template is None:
            chat_template = default_chat_template(tokenizer, audio_token)
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        tokenizer.padding_side = "left"
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        self.audio_padding = audio_padding
        self.projector_stride = projector_stride
        self.default_transcription_prompt = default_transcription_prompt
        self.max_audio_len = max_audio_len
        self.audio_tail = audio_tail

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict[str, Any], **kwargs):
        """Make a processor of its saved settings, two of which once had other names; warn of another padding."""
        processor_dict = dict(processor_dict)
        warn_of_other_padding(processor_dict, kwargs)
        if (windows := processor_dict.pop("max_windows", None)) is not None:
            extractor = args[0]
            processor_dict["max_audio_len"] = windows * extractor.n_samples // extractor.sampling_rate
        if (prompt := processor_dict.pop("transcription_prompt", None)) is not None:
            processor_dict["default_transcription_prompt"] = prompt
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    def __call__(self, text=None, audio=None, output_labels: bool | None = None, **kwargs) -> BatchFeature:
        """Turn prompts and recordings into the model's inputs.

        Args:
            text: prompts, with one placeholder per audio.
            audio: one recording or a list of them, in reading order: a path, a URL, the bytes of a file, samples at
                the encoder's rate as an array or a tensor, a `datasets` Audio value (`{"array", "sampling_rate"}` or
                `{"bytes", "path"}`), or a decoder of torchcodec.
            output_labels: add `labels`: the token ids, -100 at audio and padding. To learn the answers only, use the
                mask that `apply_chat_template(…, return_assistant_tokens_mask=True)` returns.
            **kwargs: see `ProcessorMixin`.

        Raises:
            ValueError: a recording cannot be read, is silent or too long, or there are not as many recordings as
                placeholders.
        """
        inputs = super().__call__(text=text, audio=audio, **kwargs)
        if output_labels:
            if not isinstance(inputs["input_ids"], torch.Tensor):
                raise ValueError("output_labels needs return_tensors='pt'")
            ignored = (inputs["input_ids"] == self.audio_token_id) | (inputs["attention_mask"] == 0)
            inputs["labels"] = inputs["input_ids"].masked_fill(ignored, -100)
        return inputs

    # ---- Audio arithmetic: samples → windows → frames → tokens ----

    def audio_windows(self, num_samples: int) -> list[tuple[int, int]]:
        """Cut an audio into windows.

        `trim` loses nothing. `full` cuts as the released code does, which drops one sample at each boundary.

        Args:
            num_samples: length of the audio.

        Returns:
            `(start, stop)` of each window, in samples; with `audio_tail` the last may stop after the audio.

        Raises:
            ValueError: the audio is empty or longer than `max_audio_len`.
        """
        size, rate = self.feature_extractor.n_samples, self.feature_extractor.sampling_rate
        step = size + RELEASED_SLICE_GAP if self.audio_padding == "full" else size
        windows = [(start, min(start + size, num_samples)) for start in range(0, num_samples, step)]
        if not windows:
            raise ValueError("the recording holds no samples")
        if sum(stop - start for start, stop in windows) > self.max_audio_len * rate:
            seconds = math.ceil(10 * num_samples / rate) / 10
            raise ValueError(
                f"the recording lasts {seconds} s, longer than max_audio_len, {self.max_audio_len:g} s. Cut it, or "
                "raise max_audio_len"
            )
        if self.audio_tail:
            start, stop = windows[-1]
            windows[-1] = start, min(stop + round(self.audio_tail * rate), start + size)
        return windows

    def window_samples(self, clip: np.ndarray) -> list[np.ndarray]:
        """Cut a recording into the windows of `audio_windows`, the last with its tail of silence.

        Args:
            clip: mono samples, `(samples,)`.

        Returns:
            Samples of each window.

        Raises:
            ValueError: see `audio_windows`.
        """
        spans = self.audio_windows(len(clip))
        return [np.pad(clip[start:stop], (0, max(0, stop - len(clip)))) for start, stop in spans]

    def window_frames(self, num_samples: int) -> list[int]:
        """Count the mel frames of each window of an audio: whole windows in `full`, real frames in `trim`."""
        whole, hop = self.feature_extractor.nb_max_frames, self.feature_extractor.hop_length
        windows = self.audio_windows(num_samples)
        return [whole if self.audio_padding == "full" else -(-(stop - start) // hop) for start, stop in windows]

    def count_audio_tokens(self, num_samples: int) -> int:
        """Count the tokens that an audio of so many samples becomes."""
        return sum(count_audio_tokens(frames, self.projector_stride) for frames in self.window_frames(num_samples))

    def expanded_length(self, messages: list[dict[str, Any]], durations: Sequence[float] = ()) -> int:
        """Count the tokens of a conversation after audio expansion, from its text and durations alone.

        Args:
            messages: one conversation, its audio parts without audio.
            durations: seconds of each audio, in reading order.

        Raises:
            ValueError: there are more or fewer durations than audio parts.
        """
        text = self.apply_chat_template(messages, tokenize=False)
        placeholders = text.count(self.audio_token)
        if placeholders != len(durations):
            raise ValueError(f"the conversation has {placeholders} audio parts, but {len(durations)} durations came")
        rate = self.feature_extractor.sampling_rate
        audio = sum(self.count_audio_tokens(round(duration * rate)) for duration in durations)
        return len(self.tokenizer(text)["input_ids"]) - placeholders + audio

    def expand_text(self, text: str | Sequence[str], num_audio_tokens: Sequence[int]) -> list[str]:
        """Repeat every placeholder of prompts, for audio that was encoded before.

        Args:
            text: prompts, one placeholder an audio.
            num_audio_tokens: tokens of each audio, in reading order over all prompts.

        Raises:
            ValueError: there are more or fewer numbers than placeholders.
        """
        prompts = [text] if isinstance(text, str) else list(text)
        placeholders = sum(prompt.count(self.audio_token) for prompt in prompts)
        if placeholders != len(num_audio_tokens):
            raise ValueError(
                f"the text has {placeholders} placeholders, but {len(num_audio_tokens)} audios were named"
            )
        return self.get_text_with_replacements(
            prompts, audio_replacements=[self.audio_token * count for count in num_audio_tokens]
        )[0]

    def log_mel(self, windows: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Compute Whisper's log-mel of each window, on its real frames only, all windows in one transform.

        Padding with silence is known without computing it, so `full` costs no more than `trim`.

        Args:
            windows: mono float32 samples, at most one window's worth each.

        Returns:
            One `(num_mel_bins, frames)` tensor a window: whole windows in `full`, real frames in `trim`.
        """
        extractor = self.feature_extractor
        n_fft, hop, half = extractor.n_fft, extractor.hop_length, extractor.n_fft // 2
        counts, pieces, starts, start = [], [], [], 0
        for window in windows:
            frames = -(-len(window) // hop)
            if self.audio_padding == "full":
                # Frames that begin up to half a transform after the last sample still overlap it.
                frames = min(frames + half // hop + 1, extractor.nb_max_frames)
            # The samples under these frames, as if the window were padded with silence and reflected at both ends.
            piece = np.zeros(-(-((frames - 1) * hop + n_fft) // hop) * hop, dtype=np.float32)
            piece[half : half + len(window)] = window[: len(piece) - half]
            piece[:half] = piece[half + 1 : n_fft + 1][::-1]
            beyond = len(piece) - half - extractor.n_samples
            if beyond > 0:
                piece[-beyond:] = piece[-2 * beyond - 1 : -beyond - 1][::-1]
            counts.append(frames)
            pieces.append(piece)
            starts.append(start)
            start += len(piece) // hop
        signal = torch.from_numpy(np.concatenate(pieces))
        # In double precision: the logarithm of faint bands would show how a machine's float32 transform rounds.
        spectrum = torch.fft.rfft(signal.unfold(0, n_fft, hop) * torch.hann_window(n_fft, dtype=torch.float64))
        power = (spectrum.real.square() + spectrum.imag.square()).float()
        log_spec = (power @ torch.from_numpy(extractor.mel_filters).float()).clamp(min=1e-10).log10()

        whole = extractor.nb_max_frames
        features = []
        for start, frames in zip(starts, counts, strict=True):
            mel = log_spec[start : start + frames].T
            if self.audio_padding == "full":
                mel = torch.nn.functional.pad(mel, (0, whole - frames), value=-10.0)  # log10 of the 1e-10 floor
            mel = torch.maximum(mel, mel.max() - 8.0)
            features.append((mel + 4.0) / 4.0)
        return features

    def _process_audio(self, audio: Any, **kwargs) -> tuple[dict[str, Any], list[str]]:
        rate = self.feature_extractor.sampling_rate
        if kwargs.get("sampling_rate") != rate:
            raise ValueError(
                f"the audio's sampling rate is {kwargs.get('sampling_rate')} Hz, but the encoder hears {rate} Hz. "
                "Resample it, or pass a path: files are resampled as they are read"
            )
        windows: list[np.ndarray] = []
        cuts, counts = [], []
        for index, clip in enumerate(audio):
            clip = _checked_clip(clip, f"audio {index}")
            try:
                of_clip = self.window_samples(clip)
            except ValueError as error:
                raise ValueError(f"audio {index}: {error}") from None
            windows += of_clip
            cuts.append(len(of_clip))
            counts.append(self.count_audio_tokens(len(clip)))
        mels = iter(self.log_mel(windows))
        features, mask = stack_windows([torch.cat([next(mels) for _ in range(count)], dim=1) for count in cuts])
        inputs = {"input_features": features, "input_features_mask": mask, "num_audio_tokens": counts}
        return inputs, [self.replace_audio_token(inputs, audio_idx=index) for index in range(len(counts))]

    def replace_audio_token(self, audio_inputs: dict[str, Any], audio_idx: int, **kwargs) -> str:
        return self.audio_token * audio_inputs["num_audio_tokens"][audio_idx]

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        if audio is not None:
            rate = self.feature_extractor.sampling_rate
            loads = "load_audio_backend" in kwargs
            clips = enumerate(as_clips(audio))
            audio = [read_clip(clip, rate, f"audio {index}", self.read_file, loads) for index, clip in clips]
        return super().prepare_inputs_layout(images=images, text=text, videos=videos, audio=audio, **kwargs)

    # ---- Text ----

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs) -> None:
        if text is not None and audio is not None:
            placeholders = sum(sample.count(self.audio_token) for sample in text)
            if placeholders != len(audio):
                raise ValueError(
                    f"the number of {self.audio_token} tokens in the prompts should be the same as the number of "
                    f"audio inputs passed: {placeholders} and {len(audio)}"
                )
        super().validate_inputs(images=images, text=text, videos=videos, audio=audio, **kwargs)
        for row, sample in enumerate(text or []):
            if not sample.strip():
                raise ValueError(f"text {row} is empty; a prompt needs at least an audio placeholder")

    def check_messages(self, conversations: list[list[dict[str, Any]]], special_tokens: bool = True) -> None:
        """Refuse what would break a prompt: malformed or empty messages, unknown parts, special tokens typed as text.

        An earlier answer may be empty, because a model may have given it.

        Args:
            conversations: a batch of them.
            special_tokens: refuse special tokens in the text.

        Raises:
            ValueError: naming the conversation, the message and what is wrong with it.
        """
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        typed = _any_of(frozenset(special | {self.audio_token}))
        if not conversations:
            raise ValueError("there is no conversation")
        for row, conversation in enumerate(conversations):
            if not isinstance(conversation, list | tuple) or not conversation:
                raise ValueError(f'conversation {row} is no list of messages such as {{"role": …, "content": …}}')
            for turn, message in enumerate(conversation):
                if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                    raise ValueError(f'conversation {row}, message {turn}: it has no "role", such as "user"')
                place = f"conversation {row}, message {turn} ({message['role']})"
                if message["role"] not in ("system", "user", "assistant") or (message["role"] == "system" and turn):
                    raise ValueError(
                        f"{place}: the roles are user and assistant, with at most one system message first"
                    )
                content = message.get("content")
                parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
                if not isinstance(parts, list | tuple) or not all(isinstance(part, dict) for part in parts):
                    raise ValueError(f"{place}: its content is neither a text nor a list of parts")
                for part in parts:
                    if part.get("type") == "audio" and message["role"] == "user":
                        if sum(part.get(key) is not None for key in AUDIO_KEYS) > 1:
                            raise ValueError(f"{place}: an audio part names its audio more than once")
                        continue
                    if part.get("type") != "text":
                        raise ValueError(
                            f"{place}: a {part.get('type')!r} part; messages hold text, and a user's audio too"
                        )
                    if not isinstance(part.get("text"), str):
                        raise ValueError(f"{place}: a text part without its text")
                    if special_tokens and (found := typed.search(part["text"])):
                        raise ValueError(f"{place}: {TYPED_TOKEN.format(token=found.group())}")
                answered_before = message["role"] == "assistant" and turn + 1 < len(conversation)
                if not answered_before and all(part["type"] == "text" and not part["text"].strip() for part in parts):
                    raise ValueError(f"{place}: the message is empty")

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        audio: Sequence[Any] | None = None,
        **kwargs,
    ):
        """Apply the chat template as transformers does; messages are checked, and `audio` may be passed apart.

        A prompt that is returned as text lacks the begin of text, which the tokenizer adds.

        Args:
            conversation: messages (dicts, or objects with the same attributes), or a batch of them. An audio part
                holds its audio (`{"type": "audio", "audio": …}`, or `"path"` or `"url"`), or takes the next item of
                `audio`.
            chat_template: a template to use instead of the processor's.
            audio: a recording, or a list of them in reading order, for the audio parts without one; see `__call__`.
            **kwargs: see `ProcessorMixin.apply_chat_template`: `tokenize`, `return_dict`, `add_generation_prompt`,
                `return_assistant_tokens_mask`, `processor_kwargs` and others.

        Raises:
            ValueError: a malformed or empty message, a special token typed as text, too few or too many audios, or one
                that cannot be read.
        """
        if not isinstance(conversation, list | tuple):
            raise ValueError(f"a conversation is a list of messages, not {type(conversation).__name__}")
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        conversations: list[Any] = [
            [_as_dict(message) for message in one] for one in (conversation if batched else [conversation])
        ]
        sanitized = bool(kwargs.get("sanitize_control_tokens"))
        self.check_messages(conversations, special_tokens=not sanitized)
        if sanitized and not SANITIZES_SINCE_5_23:
            raise ValueError("sanitize_control_tokens needs a newer transformers: pip install 'transformers>=5.23'")
        if sanitized:
            kwargs["control_tokens_are_text"] = True
        if audio is not None:
            conversations = _with_audio(conversations, as_clips(audio))
        processor_kwargs = dict(kwargs.pop("processor_kwargs", None) or {})
        if "output_labels" in kwargs:
            processor_kwargs["output_labels"] = kwargs.pop("output_labels")
        if kwargs.get("tokenize"):
            loads = "load_audio_backend" in {**kwargs, **processor_kwargs}
            conversations = self._read_parts(conversations, loads)
        masked = kwargs.get("return_assistant_tokens_mask") and not kwargs.get("sanitize_control_tokens")
        masked = masked and kwargs.get("tokenize") and kwargs.get("return_dict")
        if masked:
            if kwargs.get("continue_final_message"):
                raise ValueError("continue_final_message leaves the answer open, so it has no assistant mask")
            kwargs["return_assistant_tokens_mask"] = False
            processor_kwargs |= {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        output: Any = super().apply_chat_template(
            conversations if batched else conversations[0],
            chat_template=chat_template,
            processor_kwargs=processor_kwargs,
            **kwargs,
        )
        if masked:
            self._add_assistant_masks(output, conversations, chat_template, kwargs)
        if not kwargs.get("tokenize"):
            begin = begin_of_text(self.tokenizer)
            return [text.removeprefix(begin) for text in output] if batched else output.removeprefix(begin)
        return output

    def _read_parts(
        self, conversations: list[list[dict[str, Any]]], transformers_loads: bool
    ) -> list[list[dict[str, Any]]]:
        """Read the recordings of audio parts into samples; a part without one stays as it is."""
        rate, numbers = self.feature_extractor.sampling_rate, itertools.count()

        def read(part: dict[str, Any]) -> dict[str, Any]:
            source = next((part[key] for key in AUDIO_KEYS if part.get(key) is not None), None)
            if part["type"] != "audio" or source is None:
                return part
            clip = read_clip(source, rate, f"audio {next(numbers)}", self.read_file, transformers_loads)
            return {"type": "audio", "audio": clip}

        return _with_parts(conversations, read)

    def _add_assistant_masks(
        self,
        inputs: BatchFeature,
        conversations: list[list[dict[str, Any]]],
        chat_template: str | None,
        kwargs: dict[str, Any],
    ) -> None:
        """Put `assistant_masks` in the place of the offsets: 1 for the tokens that the template's assistant wrote.

        transformers has its own, whose result has differed from version to version if audio stands before the
        answer.
        """
        if "offset_mapping" not in inputs:
            raise ValueError("pass what is meant for the processor in processor_kwargs, not beside it")
        if chat_template is None:
            chat_template = (
                self.chat_template["default"] if isinstance(self.chat_template, dict) else self.chat_template
            )
        elif isinstance(self.chat_template, dict):
            chat_template = self.chat_template.get(chat_template, chat_template)
        seen = {name: value for name, value in kwargs.items() if name not in NOT_FOR_THE_TEMPLATE}
        seen["return_assistant_tokens_mask"] = True
        rendered: Any = render_jinja_template(
            conversations=conversations, chat_template=chat_template, **{**self.tokenizer.special_tokens_map, **seen}
        )
        _, answers = rendered
        offsets = inputs.pop("offset_mapping")
        replaced = inputs.pop("text_replacement_offsets", None) or [[]] * len(offsets)
        masks = []
        for row, spans in enumerate(answers):
            first, end = np.asarray(offsets[row]).reshape(-1, 2).T
            # The spans are places in the text before its placeholders were repeated.
            ends = [one["span"][1] for one in replaced[row]]
            gained = [0, *(one["new_span"][1] - one["span"][1] for one in replaced[row])]
            mask = np.zeros(len(first), dtype=np.int64)
            for span in spans:
                start, stop = (place + gained[bisect_right(ends, place)] for place in span)
                mask |= (first < stop) & (end > start)  # padding has no width, so it is never inside
            masks.append(mask)
        input_ids = inputs["input_ids"]
        if isinstance(input_ids, torch.Tensor):
            inputs["assistant_masks"] = torch.from_numpy(np.stack(masks))
        elif isinstance(input_ids, np.ndarray):
            inputs["assistant_masks"] = np.stack(masks)
        else:
            inputs["assistant_masks"] = [mask.tolist() for mask in masks]

    def apply_transcription_request(
        self, audio: Any, prompt: str | Sequence[str | None] | None = None, **kwargs
    ) -> BatchFeature | list[str]:
        """Make inputs that ask for a transcription of each recording.

        Args:
            audio: one recording or a list of them; see `__call__`.
            prompt: an instruction for all, or one for each; `default_transcription_prompt` instead of None.
            **kwargs: for `apply_chat_template`.

        Raises:
            ValueError: no audio, or not as many prompts as audios.
        """
        if isinstance(audio, list | tuple) and not audio:
            raise ValueError("there is no audio to transcribe")
        clips = as_clips(audio)
        prompts = [prompt] * len(clips) if prompt is None or isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(clips):
            raise ValueError(f"{len(prompts)} prompts came for {len(clips)} audios; give one for all, or one for each")
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": instruction or self.default_transcription_prompt},
                        {"type": "audio", "audio": clip},
                    ],
                }
            ]
            for instruction, clip in zip(prompts, clips, strict=True)
        ]
        kwargs = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, **kwargs}
        return self.apply_chat_template(conversations, **kwargs)

    # The code that travels is named once, in the processor. As it saves, transformers writes it into the parts too,
    # and takes it back from the tokenizer only.
    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["auto_map"] = dict(AUTO_MAP)
        output["feature_extractor"].pop("auto_map", None)
        return output

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        saved = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        vars(self.feature_extractor).pop("auto_map", None)
        return saved

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "input_features_mask"]

    @property
    def unused_input_names(self) -> list[str]:
        return ["num_audio_tokens"]


def stack_windows(windows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack windows, or whole audios, of any length into one batch, padded at the end with zeros.

    Args:
        windows: `(width, length)` each; at least one.

    Returns:
        `(windows, width, longest)`, and its mask `(windows, longest)`: 0 for padding, otherwise 1.
    """
    width, longest = windows[0].shape[0], max(window.shape[1] for window in windows)
    stacked = windows[0].new_zeros(len(windows), width, longest)
    mask = torch.zeros(len(windows), longest, dtype=torch.long, device=stacked.device)
    for row, window in enumerate(windows):
        stacked[row, :, : window.shape[1]] = window
        mask[row, : window.shape[1]] = 1
    return stacked, mask


@lru_cache(maxsize=8)
def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """Compile a pattern that finds any of the tokens; Llama 3 has hundreds of special ones."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens)))


def as_clips(audio: Any) -> list[Any]:
    """Make a flat list of one or several recordings; a sequence of numbers is one."""
    single = str | bytes | bytearray | memoryview
    if isinstance(audio, Sequence) and not isinstance(audio, single) and not (audio and _is_number(audio[0])):
        return [clip for item in audio for clip in as_clips(item)]
    return [audio]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def read_clip(
    source: Any, rate: int, name: str, reader: Callable[..., np.ndarray], transformers_loads: bool = False
) -> Any:
    """Read a recording into mono samples.

    Args:
        source: see `LlasoProcessor.__call__`.
        rate: Hz of the samples to return; samples that state another are resampled.
        name: what to call the recording in errors, if it has no path.
        reader: decodes files; see `LlasoProcessor.read_file`.
        transformers_loads: leave a file to transformers, which was told how to load it.

    Returns:
        Samples at `rate`; a URL or base64 text as it came, since transformers loads it.

    Raises:
        ValueError: it holds no recording, or one that cannot be read.
    """
    found = rate
    if isinstance(source, dict):
        if source.get("array") is not None:
            if not source.get("sampling_rate"):
                raise ValueError(f"{name}: an array without its sampling_rate")
            source, found = source["array"], source["sampling_rate"]
        elif (source := source.get("path") if source.get("bytes") is None else source["bytes"]) is None:
            raise ValueError(f'{name}: it has neither "bytes" nor a "path", nor an "array" with its "sampling_rate"')
    if hasattr(source, "get_all_samples"):  # a decoder of torchcodec
        source = source.get_all_samples()
    if hasattr(source, "sample_rate") and hasattr(source, "data"):  # its samples: (channels, samples)
        source, found = source.data.mean(0), source.sample_rate
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str):
        if source.startswith(("http://", "https://", "data:")) or len(source) >= SHORTEST_BASE64:
            return source
        if os.path.isdir(source):
            raise ValueError(f"{source}: a folder; name the files in it")
        if not os.path.isfile(source):
            raise ValueError(f"{source}: there is no such file")
        return source if transformers_loads else reader(source, rate, source)
    if isinstance(source, bytes | bytearray | memoryview):
        return reader(source, rate, name)
    if isinstance(source, Sequence):
        source = np.asarray(source, dtype=np.float32)
    if not isinstance(source, np.ndarray | torch.Tensor):
        raise ValueError(f"{name}: {type(source).__name__} is neither a recording nor samples")
    return _at_rate(_checked_clip(source, name), found, rate, name)


def _at_rate(samples: np.ndarray, found: int, rate: int, name: str) -> np.ndarray:
    """Resample mono samples from the rate `found` to `rate`."""
    if not isinstance(found, int | float | np.number) or not 100 <= found <= 10_000_000 or found != int(found):
        raise ValueError(f"{name}: its sampling rate is {found!r}; it is a whole number of Hz, such as 16000")
    if found == rate:
        return samples
    found = int(found)
    try:
        import soxr
    except ImportError:
        raise ValueError(f"{name}: its sampling rate is {found} Hz; pip install soxr, or resample to {rate}") from None
    length = -(-len(samples) * rate // found)
    samples = soxr.resample(samples, found, rate, quality="HQ")
    return np.pad(samples, (0, max(0, length - len(samples))))[:length]


def _checked_clip(clip: Any, name: str) -> np.ndarray:
    """Return mono float32 samples, or raise a `ValueError` that says what is wrong with the recording."""
    samples = (
        clip.detach().cpu().float().numpy()
        if isinstance(clip, torch.Tensor) and clip.is_floating_point()
        else np.asarray(clip)
    )
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    if samples.ndim != 1:
        raise ValueError(f"{name} has the shape {samples.shape}; average its channels to one row of samples")
    if samples.size == 0:
        raise ValueError(f"{name}: the recording holds no samples")
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"{name} holds {samples.dtype}; scale it to floats between -1 and 1")
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise ValueError(f"{name}: the recording holds NaN or infinite samples")
    if np.abs(samples).max() < SILENT_PEAK:
        raise ValueError(f"{name}: the recording is silent")
    return samples


def _as_dict(message: Any) -> Any:
    """Turn a message, or a part of one, that came as an object into a dict; leave everything else to the checks."""
    if hasattr(message, "__dict__") and not isinstance(message, dict | type):
        message = {name: value for name, value in vars(message).items() if value is not None}
    if isinstance(message, dict) and isinstance(message.get("content"), list | tuple):
        return {**message, "content": [_as_dict(part) for part in message["content"]]}
    return message


def _with_parts(
    conversations: list[list[dict[str, Any]]], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Return conversations with each part replaced by `change` of it, in order; a content that is a string stays."""
    return [
        [
            message
            if isinstance(message["content"], str)
            else {**message, "content": [change(part) for part in message["content"]]}
            for message in conversation
        ]
        for conversation in conversations
    ]


def _with_audio(conversations: list[list[dict[str, Any]]], audio: Sequence[Any]) -> list[list[dict[str, Any]]]:
    """Put `audio` into the empty audio parts of conversations, in reading order."""
    clips, needed = iter(audio), 0

    def fill(part: dict[str, Any]) -> dict[str, Any]:
        nonlocal needed
        if part["type"] != "audio" or any(part.get(key) is not None for key in AUDIO_KEYS):
            return part
        needed += 1
        return {"type": "audio", "audio": next(clips, None)}

    filled = _with_parts(conversations, fill)
    if needed != len(audio):
        raise ValueError(
            f"the conversations have {needed} audio parts without a recording, but {len(audio)} recordings were passed"
        )
    return filled


__all__ = ["LlasoProcessor", "add_audio_tokens", "default_chat_template", "turn_marks"]
