"""All corpora of the paper, in miniature and in their own formats, built into Align, Instruct and Eval together."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from dataset_scripts.sources import base, cremad, meld, nsynth, vocalsound
from llaso.cli import main
from llaso_common.tasks import TASKS

PARTS = ("train", "dev", "test")
WORDS = tuple("amber birch cedar delta ember fjord grove haven inlet jetty knoll lagoon".split())
FORMATS = {".wav": ("WAV", "PCM_16"), ".WAV": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"),
           ".mp3": ("MP3", "MPEG_LAYER_III"), ".opus": ("OGG", "OPUS")}  # fmt: skip
_number = itertools.count(1)


def audio(path: Path, seconds: float = 0.4, rate: int = 16_000) -> None:
    """A tone like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.3 * np.sin(np.arange(int(seconds * rate)) * (0.02 + 0.0007 * next(_number)))
    kind, subtype = FORMATS[path.suffix]
    soundfile.write(path, tone, rate, format=kind, subtype=subtype)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def sentence() -> str:
    """Words said nowhere else."""
    number = next(_number)
    return " ".join(WORDS[number // 12**place % 12] for place in range(4))


def write_speech_corpora(root: Path) -> None:
    """The five corpora of transcribed speech."""
    for part, speaker in zip(("train-clean-100", "dev-clean", "test-clean"), (11, 12, 13), strict=True):
        folder = root / f"librispeech/{part}/{speaker}/1"
        text(folder / f"{speaker}-1.trans.txt", *(f"{speaker}-1-{n:04d} {sentence().upper()}" for n in range(2)))
        for n in range(2):
            audio(folder / f"{speaker}-1-{n:04d}.flac")
    text(root / "ljspeech/metadata.csv", *(f"LJ001-{n:04d}|Dr. {n}|Doctor {sentence()}" for n in range(6)))
    for n in range(6):
        audio(root / f"ljspeech/wavs/LJ001-{n:04d}.wav", rate=22_050)
    audios = []
    for n, subset in enumerate(("{XL}", "{DEV}", "{TEST}")):
        path = f"audio/podcast/P0000/POD{n}.opus"
        audio(root / "gigaspeech" / path, 2.0)
        times = ((0.0, 0.9), (1.0, 1.9))
        segments = [
            {"sid": f"POD{n}_S{k}", "speaker": "N/A", "begin_time": begin, "end_time": end, "subsets": [subset],
             "text_tn": f"{sentence().upper()} <PERIOD>"}
            for k, (begin, end) in enumerate(times)
        ]  # fmt: skip
        audios.append({"aid": f"POD{n}", "path": path, "subsets": [subset], "segments": segments})
    text(root / "gigaspeech/GigaSpeech.json", json.dumps({"dataset": "GigaSpeech", "audios": audios}))
    for part, speaker in zip(PARTS, (21, 22, 23), strict=True):
        names = [f"{speaker}_5_{n:06d}" for n in range(4)]
        text(root / f"mls/{part}/transcripts.txt", *(f"{name}\t{sentence()}" for name in names))
        for name in names:
            audio(root / f"mls/{part}/audio/{speaker}/5/{name}.flac")
    people = ("p225  23  F    English    Southern  England", "p226  41  M    Scottish", "p245  17  F    Irish  Dublin")
    text(root / "vctk/speaker-info.txt", "ID  AGE  GENDER  ACCENTS  REGION COMMENTS", *people)
    for speaker, n in itertools.product(("p225", "p226", "p245"), range(2)):
        text(root / f"vctk/txt/{speaker}/{speaker}_{n:03d}.txt", f"{sentence()}.")
        audio(root / f"vctk/wav48_silence_trimmed/{speaker}/{speaker}_{n:03d}_mic1.flac", rate=48_000)


def write_speaker_corpora(root: Path) -> None:
    """Those that say who speaks, and how."""
    head = "client_id\tpath\tsentence\tage\tgender\taccents"
    for part in PARTS:
        names = [f"common_voice_en_{next(_number)}.mp3" for _ in range(2)]
        rows = (f"{name}\t{name}\t{sentence()}\ttwenties\tfemale_feminine\tScottish English" for name in names)
        text(root / f"common_voice/{part}.tsv", head, *rows)
        for name in names:
            audio(root / "common_voice/clips" / name)
    people = (f"id1000{n}\tX\t{'mf'[n % 2]}\tUSA\t{'dev' if n < 2 else 'test'}" for n in range(4))
    text(root / "voxceleb/vox1_meta.csv", "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet", *people)
    for n in range(4):
        audio(root / f"voxceleb/wav/id1000{n}/video/00001.wav")
    for accent, n in itertools.product(("american", "telugu", "welsh"), range(3)):
        audio(root / f"accentdb/data/{accent}/speaker_01/{accent}_s01_{n:03d}.wav")
    for part, speaker, sound in zip(("tr", "val", "te"), ("f01", "m02", "f03"), vocalsound.SOUNDS, strict=False):
        gender = "female" if speaker[0] == "f" else "male"
        text(root / f"vocalsound/meta/{part}_meta.csv", f"{speaker},{gender},4{speaker[-1]},USA,EN,no")
        audio(root / f"vocalsound/audio_16k/{speaker}_0_{sound}.wav")
    columns = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    for part in PARTS:
        rows = (f'{n},"{sentence()}",{meld.FRIENDS[n]},joy,positive,0,{n},8,21,"0:0:1","0:0:2"' for n in range(2))
        text(root / f"meld/{part}_sent_emo.csv", columns, *rows)
        for n in range(2):
            audio(root / f"meld/wav/{part}/dia0_utt{n}.wav")
    for actor, emotion in itertools.product((1001, 1002, 1003), cremad.EMOTIONS):
        audio(root / f"cremad/AudioWAV/{actor}_DFA_{emotion}_HI.wav")
    for part, kind in itertools.product(("training", "validation", "testing"), ("fake", "real")):
        audio(root / f"fake_or_real/{part}/{kind}/file{next(_number)}.wav_16k.wav_norm.wav_mono.wav_silence.wav")
    scores: dict[str, dict] = {}
    for part, speaker in (("train", "0001"), ("test", "0002")):
        names = [f"{speaker}{n:05d}" for n in range(2)]
        text(root / f"speechocean762/{part}/wav.scp", *(f"{n}\tWAVE/SPEAKER{speaker}/{n}.WAV" for n in names))
        for name in names:
            audio(root / f"speechocean762/WAVE/SPEAKER{speaker}/{name}.WAV")
            said = sentence().upper()
            words = [{"text": word, "accuracy": 10, "stress": 10, "total": 9} for word in said.split()]
            scores[name] = {"text": said, "accuracy": 9, "fluency": 8, "prosodic": 7, "total": 8, "words": words}
    text(root / "speechocean762/resource/scores.json", json.dumps(scores))


def write_content_corpora(root: Path) -> None:
    """Those of commands, requests and notes."""
    for part in ("train", "valid", "test"):
        notes = {}
        for n, family in enumerate(("bass", "synth_lead")):
            name = f"{family}_electronic_00{n}-0{60 + n}-100"
            notes[f"{name}-{part}"] = {
                "pitch": 60 + n, "velocity": 100, "instrument_str": f"{family}_{part}",
                "instrument_family_str": family, "instrument_source_str": nsynth.KINDS[1],
            }  # fmt: skip
            audio(root / f"nsynth/nsynth-{part}/audio/{name}-{part}.wav")
        text(root / f"nsynth/nsynth-{part}/examples.json", json.dumps(notes))
    for word, speaker in itertools.product(("yes", "no"), ("0a", "0b", "0c")):
        audio(root / f"speech_commands/{word}/{speaker}_nohash_0.wav")
    for name, speaker in (("validation_list.txt", "0b"), ("testing_list.txt", "0c")):
        text(root / "speech_commands" / name, f"yes/{speaker}_nohash_0.wav", f"no/{speaker}_nohash_0.wav")
    metadata = {}
    for part in ("train", "devel", "test"):
        entries = []
        for _ in range(12):
            number = next(_number)
            said, name = sentence(), f"audio-{number}.flac"
            audio(root / "slurp/audio/slurp_real" / name)
            metadata[str(number)] = {"recordings": {name: {"usrid": f"FE-{number}", "status": "correct"}}}
            entries.append(
                {"slurp_id": number, "sentence": said, "sentence_annotation": f"[place : {said}]", "scenario": "alarm",
                 "action": "set", "recordings": [{"file": name, "wer": 0.0, "status": "correct"}]}
            )  # fmt: skip
        text(root / f"slurp/dataset/slurp/{part}.jsonl", *map(json.dumps, entries))
    text(root / "slurp/dataset/slurp/metadata.json", json.dumps(metadata))


def write_question_corpora(root: Path) -> None:
    """The ten sets of questions."""
    files = {
        "alpaca_gpt4": "alpaca_gpt4_data.json", "alpaca_dan": "alpaca.jsonl", "orca_15k": "orca.json",
        "code_alpaca": "code_alpaca_20k.json", "tigerbot_alpaca": "tigerbot-alpaca-en-50k.json",
        "tigerbot_multichat": "tigerbot-OIG-multichat-en-50k.json",
    }  # fmt: skip
    for name, file in files.items():
        rows = [{"instruction": f"Say {sentence()}", "input": sentence(), "output": "Yes"} for _ in range(12)]
        as_lines = name in ("alpaca_dan", "tigerbot_alpaca", "tigerbot_multichat")
        text(root / name / file, *map(json.dumps, rows) if as_lines else (json.dumps(rows),))
    rows = [{"instruction": sentence(), "context": "", "response": "No", "category": "open_qa"} for _ in range(12)]
    text(root / "dolly/databricks-dolly-15k.jsonl", *map(json.dumps, rows))
    for name in ("openorca_gpt4", "openorca_gpt35"):
        rows = [{"id": f"flan.{n}", "system_prompt": "", "question": sentence(), "response": "No"} for n in range(12)]
        (root / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), root / name / base.load(name).needs[0])
    entries = [
        {"instruction": f"{sentence()} {{INPUT}}", "instances": [{"input": sentence(), "output": "A"}],
         "reformulations": [{"instruction": f"{sentence()}: {{INPUT}}", "input": "it", "output": "A"}]}
        for _ in range(6)
    ]  # fmt: skip
    text(root / "unnatural_instructions/full_data.jsonl", *map(json.dumps, entries))


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three corpora, by the three commands."""
    root = tmp_path_factory.mktemp("all")
    for write in (write_speech_corpora, write_speaker_corpora, write_content_corpora, write_question_corpora):
        write(root)
    names = [name for name in base.names() if name not in ("fsdd", "quickstart")]
    sources = "\n".join(f"  {name}: {name}" for name in names).replace(
        "mls: mls", "mls: {path: mls, phoneme_share: 1.0}"
    )
    voices = "{train: [en-us+f1, en+m1], validation: [en-us+f2], test: [en+f4]}"
    text(root / "sources.yaml", f"sources:\n{sources}\neval_rows: 120\nvalidation_rows: 40\nvoices: {voices}")
    common = ["--sources", str(root / "sources.yaml"), "--clips", str(root / "clips")]
    for corpus in ("align", "instruct", "eval"):
        against = ["--against", str(root / "align"), str(root / "instruct")] * (corpus == "eval")
        assert main(["data", "build", corpus, *common, "--out", str(root / corpus), *against]) == 0
    return {corpus: root / corpus for corpus in ("align", "instruct", "eval")}


def test_every_task_and_every_source_is_built(built: dict[str, Path]):
    rows = {corpus: rows_of(folder) for corpus, folder in built.items()}
    found = {corpus: Counter(row["source"] for row in some) for corpus, some in rows.items()}
    assert {row["task"] for row in rows["align"]} == {"ASR"}
    assert set(found["align"]) == {"librispeech", "ljspeech", "gigaspeech", "mls", "vctk"}
    assert {row["task"] for row in rows["instruct"]} == set(TASKS)
    everything = set(base.names()) - {"fsdd", "quickstart"}
    assert set(found["align"]) | set(found["instruct"]) == everything
    assert {row["modality"] for row in rows["instruct"]} == {"text_audio", "audio_text", "audio"}
    for source in everything:
        asked = {row["task"] for some in rows.values() for row in some if row["source"] == source}
        assert asked == set(base.load(source).tasks), source


def test_nothing_is_set_aside(built: dict[str, Path]):
    for folder in built.values():
        summary = json.loads((folder / "build.json").read_text())
        assert summary["rejects"] == {} and json.loads((folder / "leakage.json").read_text())["clean"]
        assert main(["data", "validate", str(folder)]) == 0
    terms = {name: source["redistributable"] for name, source in summary["sources"].items()}
    assert terms == {name: base.load(name).redistributable for name in terms} and len(set(terms.values())) == 2
