"""What the evaluation tests share: a small corpus on disk, random audio LLMs of several families, a chat server."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile

from llaso_common.audio import SAMPLE_RATE
from llaso_common.schema import FEATURES

CARD = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: data/*/test-*.parquet
- config_name: audio
  data_files:
  - split: test
    path: data/audio/test-*.parquet
---
"""


def tone(seconds: float, pitch: float = 220.0) -> bytes:
    """Return a FLAC file with a sine."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * pitch * time), SAMPLE_RATE, format="FLAC")
    return buffer.getvalue()


def corpus_row(number: int, task: str, modality: str, target: str, choices: tuple[str, ...] = ()) -> dict:
    """Return a row of the schema; its audio, length and wording depend on `number` alone."""
    clip = tone(0.2 + 0.07 * number, 200 + 10 * number)
    audio = {"type": "audio", "text": None}
    text = {"type": "text", "text": f"Question {number} about this clip:"}
    content = {"text_audio": [text, audio], "audio_text": [audio, text], "audio": [audio]}[modality]
    return {
        "id": f"row-{number:03d}",
        "corpus": "eval",
        "task": task,
        "category": "linguistic" if task == "ASR" else "paralinguistic",
        "modality": modality,
        "source": "tones",
        "split": "test",
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": target}]},
        ],
        "audio": [{"bytes": clip, "path": f"{number}.flac"}],
        "target": target,
        "choices": list(choices),
        "template_id": f"{task}/01",
        "style": "standardised",
        "voice": "sine",
        "speaker": "",
        "duration": 0.2 + 0.07 * number,
        "length": 0,
        "license": "CC0-1.0",
        "sha256": hashlib.sha256(clip).hexdigest(),
    }


def default_rows(count: int = 12) -> list[dict]:
    """Return rows of three tasks in all three modality formats."""
    kinds = [
        ("ASR", "text_audio", "hello world", ()),
        ("SGC", "text_audio", "male", ("male", "female")),
        ("ASR", "audio_text", "good morning", ()),
        ("SGC", "audio", "female", ("male", "female")),
    ]
    return [corpus_row(number, *kinds[number % len(kinds)]) for number in range(count)]


def write_corpus(folder: Path, rows: list[dict]) -> Path:
    """Write a corpus folder as `dataset_scripts` lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(CARD)
    for modality in sorted({row["modality"] for row in rows}):
        part = [row for row in rows if row["modality"] == modality]
        path = folder / "data" / modality / "test-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part, schema=FEATURES.arrow_schema), path)
    return folder


# Random audio LLMs ---------------------------------------------------------------------------------------------

AUDIO = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 80}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
}


def _byte_tokenizer(special: list[str]):
    """Return a byte-level tokenizer: 256 bytes and the named special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    inner.add_special_tokens(tokens)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _chat_template(audio: str) -> str:
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
        "{% if c['type'] == 'audio' %}" + audio + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _features(**more):
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=80, **more)


def save_qwen2_audio(folder: Path) -> None:
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

    tokenizer = _byte_tokenizer(["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"])
    audio_id = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **AUDIO, "max_source_positions": 100},
        text_config={"model_type": "qwen2", **TEXT},
        audio_token_index=audio_id,
    )
    Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    Qwen2AudioProcessor(_features(chunk_length=2), tokenizer).save_pretrained(folder)


def save_audioflamingo3(folder: Path) -> None:
    from transformers import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Processor

    tokenizer = _byte_tokenizer(["<sound>"])
    config = AudioFlamingo3Config(
        audio_config={"model_type": "audioflamingo3_encoder", **AUDIO, "max_source_positions": 100},
        text_config={"model_type": "qwen2", **TEXT},
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    AudioFlamingo3ForConditionalGeneration(config).save_pretrained(folder)
    processor = AudioFlamingo3Processor(
        _features(chunk_length=2), tokenizer, chat_template=_chat_template("<sound>"), max_audio_len=2
    )
    processor.save_pretrained(folder)


def save_qwen2_5_omni(folder: Path) -> None:
    """Save the thinker only: the released processor's video half needs torchvision, so the audio half stands alone."""
    import torch
    from transformers import AutoProcessor, Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    tokenizer = _byte_tokenizer(
        ["<|IMAGE|>", "<|AUDIO|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>", "<|audio_bos|>", "<|audio_eos|>"]
    )
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
    thinker = {
        "audio_config": {**AUDIO, "output_dim": TEXT["hidden_size"], "n_window": 100},
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": TEXT["hidden_size"],
            "fullatt_block_indexes": [0],
        },
        "text_config": {
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
        },
        "audio_token_index": ids["<|AUDIO|>"],
        "image_token_index": ids["<|IMAGE|>"],
        "video_token_index": ids["<|VIDEO|>"],
        "audio_start_token_id": ids["<|audio_bos|>"],
        "audio_end_token_id": ids["<|audio_eos|>"],
        "vision_start_token_id": ids["<|vision_bos|>"],
        "vision_end_token_id": ids["<|vision_eos|>"],
    }
    config = Qwen2_5OmniConfig(thinker_config=thinker, enable_audio_output=False)
    Qwen2_5OmniForConditionalGeneration(config).save_pretrained(folder)
    torch.save({}, folder / "spk_dict.pt")
    template = _chat_template("<|audio_bos|><|AUDIO|><|audio_eos|>")
    _omni_processor_class()(_features(chunk_length=2), tokenizer, chat_template=template).save_pretrained(folder)
    AutoProcessor.register(Qwen2_5OmniConfig, _omni_processor_class(), exist_ok=True)


def _omni_processor_class():
    from transformers import ProcessorMixin, Qwen2_5OmniProcessor

    class AudioOmniProcessor(Qwen2_5OmniProcessor):
        def __init__(self, feature_extractor=None, tokenizer=None, chat_template=None):
            ProcessorMixin.__init__(self, feature_extractor, tokenizer, chat_template=chat_template)
            for name in ("image", "audio", "video"):
                token = f"<|{name.upper()}|>"
                setattr(self, f"{name}_token", token)
                setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))

    return AudioOmniProcessor


def save_voxtral(folder: Path) -> None:
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration, VoxtralProcessor
    from transformers.tokenization_mistral_common import MistralCommonBackend

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps(_tekken()))
    tokenizer = MistralCommonBackend.from_pretrained(folder)
    config = VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "num_mel_bins": 80,
        },
        text_config={"model_type": "llama", **TEXT, "vocab_size": 296, "head_dim": 8},
        audio_token_id=24,
    )
    VoxtralForConditionalGeneration(config).save_pretrained(folder)
    VoxtralProcessor(_features(), tokenizer).save_pretrained(folder)


def _tekken() -> dict:
    """Return mistral-common's tokenizer file with 256 bytes for a vocabulary and audio switched on."""
    import base64

    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
    names += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"]
    names += ["[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
    names += [f"<SPECIAL_{number}>" for number in range(20, 24)]
    names += ["[AUDIO]", "[BEGIN_AUDIO]"] + [f"<SPECIAL_{number}>" for number in range(26, 34)] + ["[TRANSCRIBE]"]
    names += [f"<SPECIAL_{number}>" for number in range(35, 40)]
    return {
        "config": {
            "pattern": r"[^\s]+|\s+",
            "num_vocab_tokens": 256,
            "default_vocab_size": 296,
            "default_num_special_tokens": 40,
            "version": "v7",
        },
        "vocab": [
            {"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode(), "token_str": None}
            for byte in range(256)
        ],
        "special_tokens": [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)],
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "chunk_length_s": 30.0,
            "audio_encoding_config": {"num_mel_bins": 80, "hop_length": 160, "window_size": 400},
        },
    }


def save_llaso(folder: Path) -> None:
    import modeling_llaso  # noqa: F401  registers the Auto classes, as the `llaso` command does
    from support.tiny_llaso import tiny_llaso

    model, processor = tiny_llaso()
    model.generation_config.suppress_tokens = list(range(94, processor.audio_token_id))  # all but visible ASCII
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "qwen2_audio": save_qwen2_audio,
    "qwen2_5_omni": save_qwen2_5_omni,
    "audioflamingo3": save_audioflamingo3,
    "voxtral": save_voxtral,
    "llaso": save_llaso,
}


# A chat server -------------------------------------------------------------------------------------------------


@contextmanager
def chat_server(answer: Callable[[dict], tuple[int, object]]) -> Iterator[tuple[str, list[dict]]]:
    """Serve the OpenAI chat interface on loopback.

    Args:
        answer: from a request's body to a status and either the answer's text or a whole body.

    Yields:
        Its base address, and the list to which every request's body and headers are appended.
    """
    received: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append({"path": self.path, "headers": dict(self.headers), "body": body})
            status, content = answer(body)
            if isinstance(content, str) and status == 200:
                content = {"choices": [{"message": {"role": "assistant", "content": content}}]}
            payload = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *arguments) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", received
    finally:
        server.shutdown()
        server.server_close()
