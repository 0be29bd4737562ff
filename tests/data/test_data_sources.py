"""Every corpus reader on a miniature tree laid out exactly as the public corpus, with its oddities."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from support.paths import ROOT

from dataset_scripts import conversations, corpus_plan, instructions, labels, sources_file
from dataset_scripts.instructions import FOLDER, STYLES, templates
from dataset_scripts.musical_notes import VELOCITIES
from dataset_scripts.questions import question
from dataset_scripts.sources import accentdb, base, common_voice, cremad, fake_or_real, meld, nsynth, vctk, vocalsound
from dataset_scripts.sources.base import Item, Reject
from dataset_scripts.task_forms import GRANULARITIES
from llaso.cli import main
from llaso_common.schema import SPLITS
from llaso_common.tasks import TASKS


def audio(path: Path, seconds: float = 0.2, rate: int = 16_000) -> None:
    """A short tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(int(seconds * rate)) * 0.2), rate)


def text(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def read(name: str, root: Path, **options) -> tuple[list[Item], list[Reject]]:
    """Items and rejects of a source; whatever comes as an item can be written as rows."""
    source = base.load(name).at(root, **options)
    found = list(source.items())
    for item, fact in ((x, fact) for x in found if isinstance(x, Item) for fact in x.facts):
        assert not conversations.fault(item, fact) and fact.task in source.tasks
        row = conversations.write("instruct", source, item, fact, "train", 0, ["en-us+f1"])
        assert row["target"] == fact.target and sorted(row["choices"]) == sorted(fact.choices)
    return [x for x in found if isinstance(x, Item)], [x for x in found if isinstance(x, Reject)]


def reasons(rejects: list[Reject]) -> dict[str, list[str]]:
    """Where things were rejected, by reason; of paths their last part."""
    found: dict[str, list[str]] = defaultdict(list)
    for reject in rejects:
        found[reject.reason].append(re.sub(r"^/\S*/", "", reject.where))
    return dict(found)


def facts(item: Item) -> dict[str, str]:
    """Targets by task, with the variant."""
    return {f"{fact.task}.{fact.granularity}".rstrip("."): fact.target for fact in item.facts}


def test_librispeech(tmp_path: Path):
    text(tmp_path / "train-clean-100/19/198/19-198.trans.txt", "19-198-0000 NORTHANGER ABBEY\n19-198-0001 \n")
    for name in ("19/198/19-198-0000", "19/198/19-198-0002", "26/495/26-495-0000"):
        audio(tmp_path / f"train-clean-100/{name}.flac")
    text(tmp_path / "test-other/20/1/20-1.trans.txt", b"20-1-0000 CAF\xc9\n20-1-0001 THE END\n")
    text(tmp_path / "LICENSE.TXT", "")
    items, rejects = read("librispeech", tmp_path)
    assert [(i.id, i.split, i.speaker, facts(i)) for i in items] == [
        ("test-other/20-1-0001", "test", "librivox:20", {"ASR": "the end"}),
        ("train-clean-100/19-198-0000", "train", "librivox:19", {"ASR": "northanger abbey"}),
    ]
    assert items[1].sound[0].path.endswith("train-clean-100/19/198/19-198-0000.flac")
    assert items[1].where.endswith("19-198.trans.txt:1")
    assert reasons(rejects) == {
        "text is not UTF-8": ["20-1.trans.txt:1"],
        "no transcript": ["19-198.trans.txt:2"],
        # One beside its chapter's transcripts, one in a chapter that lost its file.
        "recording without a transcript": ["19-198-0002.flac", "26-495-0000.flac"],
    }


def test_ljspeech(tmp_path: Path):
    lines = 'LJ001-0001|In 1455, "print|In fourteen fifty-five, "print\nLJ001-0002||\nLJ001-0003|Only one text\n'
    text(tmp_path / "metadata.csv", lines)
    for name in ("LJ001-0001", "LJ050-0278"):
        audio(tmp_path / f"wavs/{name}.wav", rate=22_050)
    items, rejects = read("ljspeech", tmp_path)
    assert [(i.id, facts(i)) for i in items] == [("LJ001-0001", {"ASR": 'In fourteen fifty-five, "print'})]
    assert reasons(rejects) == {
        "no transcript": ["metadata.csv:2"],
        "not id|text|normalized text": ["metadata.csv:3"],
        "recording without a transcript": ["LJ050-0278.wav"],
    }


def test_gigaspeech(tmp_path: Path):
    def segment(sid: str, said: str, *subsets: str) -> dict:
        times = {"begin_time": 159.0, "end_time": 167.52}
        return {"sid": sid, "speaker": "N/A", **times, "text_tn": said, "subsets": list(subsets)}

    manifest = {
        "dataset": "GigaSpeech",
        "audios": [
            {
                "aid": "POD1",
                "path": "audio/podcast/P0000/POD1.opus",
                "subsets": ["{XL}"],
                "segments": [
                    segment("POD1_S0", "AS IT <COMMA> WAS <PERIOD>", "{XL}", "{L}"),
                    segment("POD1_S1", "<MUSIC>"),
                    segment("POD1_S2", "<COMMA> WHY<QUESTIONMARK>"),
                    segment("POD1_S3", "<PERIOD>"),
                    segment("POD1_S4", "A <NEWTAG> B"),
                    segment("POD1_S5", "HELD", "{DEV}"),
                ],
            },
            {"aid": "YOU2", "path": "audio/y/YOU2.opus", "subsets": ["{TEST}"], "segments": [segment("Y_S0", "SO")]},
        ],
    }
    text(tmp_path / "GigaSpeech.json", json.dumps(manifest))
    (tmp_path / "audio").mkdir()
    items, rejects = read("gigaspeech", tmp_path)
    assert [(facts(i)["ASR"], i.split, i.speaker) for i in items] == [
        ("as it, was.", "train", "POD1"),
        (", why?", "train", "POD1"),
        ("held", "validation", "POD1"),
        ("so", "test", "YOU2"),
    ]
    assert (items[0].sound[0].start, items[0].sound[0].end) == (159.0, 167.52)
    assert reasons(rejects) == {
        "no speech (garbage tag)": ["GigaSpeech.json: POD1_S1"],
        "no transcript": ["GigaSpeech.json: POD1_S3"],
        "a tag that is no punctuation mark": ["GigaSpeech.json: POD1_S4 (A <NEWTAG> B)"],
    }
    text(tmp_path / "GigaSpeech.json", json.dumps({"audios": ["POD1"]}))
    with pytest.raises(ValueError, match="gigaspeech: .*an entry is of another kind .string indices.*Expected"):
        read("gigaspeech", tmp_path)
    del manifest["audios"][1]["path"]
    text(tmp_path / "GigaSpeech.json", json.dumps(manifest))
    with pytest.raises(ValueError, match="gigaspeech: .*an entry has no 'path'"):
        read("gigaspeech", tmp_path)
    text(tmp_path / "GigaSpeech.json", json.dumps(manifest)[:-40])
    with pytest.raises(ValueError, match="GigaSpeech.json"):
        read("gigaspeech", tmp_path)


def test_mls(tmp_path: Path):
    text(tmp_path / "train/transcripts.txt", "12_34_000001\tthe park\nbroken line\n12_34_000002\tgone\n")
    for name in ("12/34/12_34_000001.flac", "12/34/12_34_000003.flac", "12/56/12_56_000001.opus"):
        audio(tmp_path / f"train/audio/{name.removesuffix('.opus')}{'.ogg' * name.endswith('.opus')}")
    (tmp_path / "train/audio/12/56/12_56_000001.ogg").rename(tmp_path / "train/audio/12/56/12_56_000001.opus")
    text(tmp_path / "train/audio/12/34/12_34_000001.opus", "the same as .flac")
    text(tmp_path / "test/transcripts.txt", "9_8_000001\tan end\n")
    audio(tmp_path / "test/audio/9/8/9_8_000001.flac")
    items, rejects = read("mls", tmp_path, phoneme_share=1.0)
    assert facts(items[0]) == {"ASR": "the park", "PR": "ðə pɑːɹk"}
    assert (
        items[0].sound[0].path.endswith(".flac")
        and items[0].speaker == "librivox:12"
        and [i.split for i in items] == ["train", "test"]
    )
    assert reasons(rejects) == {
        "not {speaker}_{book}_{number}<tab>transcript": ["transcripts.txt:2"],
        "no recording": ["transcripts.txt:3"],
        "recording without a transcript": ["12_34_000003", "12_56_000001"],
        "no such file": ["transcripts.txt"],  # of dev
    }
    assert facts(read("mls", tmp_path, phoneme_share=0.0)[0][0]) == {"ASR": "the park"}


def test_vctk(tmp_path: Path):
    info = (
        "ID  AGE  GENDER  ACCENTS  REGION COMMENTS \n"
        "p225  23  F    English    Southern  England\n"
        "p315  18  M    American   New  England (no text)\n"
        "p280  25  F    Unknown    France (mic2 files unavailable)\n"
        "s5    31  M    NewZealand \n"
        "p362  29  F    American \n"
        "p999  M\n"
    )
    text(tmp_path / "speaker-info.txt", info)
    text(tmp_path / "txt/p225/p225_001.txt", "Please call Stella.\n")
    text(tmp_path / "txt/p225/p225_002.txt", b"caf\xe9\n")
    text(tmp_path / "wav48_silence_trimmed/log.txt", "")
    names = ("p225_001_mic1", "p225_001_mic2", "p225_002_mic1", "p225_odd", "p315_001_mic1", "p280_001_mic1")
    for name in (*names, "s5_001_mic2", "p000_001_mic1"):
        audio(tmp_path / "wav48_silence_trimmed" / name.split("_")[0] / f"{name}.flac", rate=48_000)
    items, rejects = read("vctk", tmp_path)
    by_id = {item.id: facts(item) for item in items}
    assert by_id["p225_001"] == {
        "ASR": "Please call Stella.", "SGC": "female", "AC.fine": "British", "AC.coarse": "British Isles",
        "AR.fine": "20-24", "AR.coarse": "young",
    }  # fmt: skip
    assert by_id["p315_001"] == {
        "SGC": "male", "AC.fine": "American", "AC.coarse": "North America", "AR.fine": "15-19", "AR.coarse": "young"
    }  # fmt: skip
    assert "AC.fine" not in by_id["p280_001"]
    assert by_id["s5_001"]["AC.fine"] == "New Zealand" and by_id["s5_001"]["AR.fine"] == "30+"
    assert next(i for i in items if i.id == "s5_001").sound[0].path.endswith("_mic2.flac")
    assert "ASR" not in by_id["p225_002"] and by_id["p225_002"]["SGC"] == "female"
    # Nothing is known of p000: neither who it is nor what is said.
    assert set(by_id) == {"p225_001", "p225_002", "p280_001", "p315_001", "s5_001"}
    assert reasons(rejects) == {
        "not ID AGE GENDER ACCENT ...": ["speaker-info.txt:7"],
        "accent of the speaker is outside the set": [
            "speaker-info.txt:4 (p280  25  F    Unknown    France (mic2 files unavailable))"
        ],
        "speaker is not in speaker-info.txt": ["p000"],
        "not {speaker}_{number}_mic{1,2}.flac": ["p225_odd.flac"],
        "text is not UTF-8": ["p225_002.txt"],
        "no transcript": ["p000_001.txt", "p280_001.txt", "p315_001.txt", "s5_001.txt"],
    }


def test_common_voice(tmp_path: Path):
    head = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment\n"
    rows = (
        ("a1", "common_voice_en_1.mp3", 'She said "no.', "fourties", "male_masculine", "England English"),
        ("a2", "common_voice_en_2.mp3", "Nothing known.", "", "", ""),
        ("a3", "common_voice_en_3.mp3", "Two accents.", "teens", "other", "United States English,German English"),
        ("a4", "common_voice_en_4.mp3", "One, told twice.", "", "", "German English,Non native speaker"),
        ("a5", "common_voice_en_5.mp3", "Brackets.", "", "", "India and South Asia (India, Pakistan, Sri Lanka)"),
        ("a6", "common_voice_en_6.mp3", "A bar.", "", "", "England English|my own"),
    )
    train = "".join(f"{c}\t{p}\t{s}\t2\t0\t{age}\t{g}\t{accents}\ten\t\n" for c, p, s, age, g, accents in rows)
    odd = b"a7\tx.mp3\tcaf\xe9\t2\t0\tteens\tmale\t\ten\t\na8\tx.mp3\tcut off\n"
    text(tmp_path / "train.tsv", (head + train).encode() + odd)
    old = "client_id\tpath\tsentence\tage\tgender\taccent\na9\t0a1b2c\tOld.\ttwenties\tfemale\tus\n"
    text(tmp_path / "test.tsv", old)
    (tmp_path / "clips").mkdir()
    items, rejects = read("common_voice", tmp_path)
    assert {item.id: facts(item) for item in items} == {
        "common_voice_en_1": {
            "SGC": "male", "AC.fine": "England English", "AC.coarse": "British Isles", "AR.fine": "fourties",
            "AR.coarse": "middle-aged",
        },
        "common_voice_en_3": {"AR.fine": "teens", "AR.coarse": "young"},
        "common_voice_en_4": {"AC.fine": "German English", "AC.coarse": "Continental Europe"},
        "common_voice_en_5": {"AC.fine": "Indian English", "AC.coarse": "South Asia"},
        "common_voice_en_6": {"AC.fine": "England English", "AC.coarse": "British Isles"},
        "0a1b2c": {
            "SGC": "female", "AC.fine": "United States English", "AC.coarse": "North America", "AR.fine": "twenties",
            "AR.coarse": "young",
        },
    }  # fmt: skip
    assert items[0].sentence == 'She said "no.' and items[0].speaker == "a1" and items[-1].split == "test"
    assert items[-1].sound[0].path == str(tmp_path / "clips/0a1b2c.mp3")
    # Every row without a label, or with one outside the set, is accounted for.
    assert reasons(rejects) == {
        "not said: gender, accent, age": ["train.tsv:3"],
        "not said: gender, age": ["train.tsv:5", "train.tsv:6", "train.tsv:7"],
        "gender is outside the set": ["train.tsv:4 (other)"],
        "accent is outside the set": ["train.tsv:4 (United States English,German English)"],
        "text is not UTF-8": ["train.tsv:8"],
        "not as many cells as the header has": ["train.tsv:9"],
        "no such file": ["dev.tsv"],
    }
    text(tmp_path / "train.tsv", "path\tsentence\n")
    with pytest.raises(ValueError, match="no column client_id, age, gender"):
        read("common_voice", tmp_path)


def test_genders_are_read_whole():
    """A word that merely begins with f or m is no gender."""
    assert [[fact.target for fact in labels.gender(word)] for word in ("F", " male ", "female_feminine")] == [
        ["female"], ["male"], ["female"]
    ]  # fmt: skip
    assert not any(map(labels.gender, ("", "mixed", "fluid", "do_not_wish_to_say", "non-binary")))


def test_voxceleb(tmp_path: Path):
    text(
        tmp_path / "vox1_meta.csv",
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tA.J._Buckley\tm\tIreland\tdev\n"
        "id10270\tEartha_Kitt\tf\tUSA\ttest\nid10300\tX\t?\tUSA\tdev\nid10301\tY\tf\tUSA\tdev\nid10302\tm\n",
    )
    text(tmp_path / "vox2_meta.csv", "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012\t,n000012 ,m\t,dev \n")
    audio(tmp_path / "vox1/dev/wav/id10001/1zcIwhmdeo4/00001.wav")
    audio(tmp_path / "test/wav/id10270/x/00002.wav")
    audio(tmp_path / "test/wav/id99999/x/00002.wav")
    audio(tmp_path / "dev/aac/id00012/y/00003.flac")
    for name in ("00003", "00004"):
        text(tmp_path / f"dev/aac/id00012/y/{name}.m4a", b"\0\0\0 ftypM4A ")
    items, rejects = read("voxceleb", tmp_path)
    assert [(i.id, facts(i), i.split) for i in items] == [
        ("id10001/1zcIwhmdeo4/00001", {"SGC": "male"}, ""),
        ("id10270/x/00002", {"SGC": "female"}, "test"),
        ("id00012/y/00003", {"SGC": "male"}, ""),
        ("id00012/y/00004", {"SGC": "male"}, ""),
    ]
    kinds = [Path(item.sound[0].path).suffix for item in items]  # .m4a only if there is nothing else
    assert kinds == [".wav", ".wav", ".flac", ".m4a"]
    assert reasons(rejects) == {
        "gender is neither f nor m": ["vox1_meta.csv:4 (?)"],
        "no clips of this speaker": ["vox1_meta.csv:5 (id10301)"],
        "not as many cells as the header has": ["vox1_meta.csv:6"],
        "speaker is in no table": ["id99999"],
    }
    text(tmp_path / "vox1_meta.csv", "id10001,A,m,Ireland,dev\n")
    with pytest.raises(ValueError, match="vox1_meta.csv: no column Gender or Set"):
        read("voxceleb", tmp_path)


def test_accentdb(tmp_path: Path):
    audio(tmp_path / "data/telugu/speaker_01/telugu_s01_004.wav")
    audio(tmp_path / "data/klingon/speaker_01/klingon_s01_004.wav")
    items, rejects = read("accentdb", tmp_path)
    assert facts(items[0]) == {"AC.fine": "Telugu", "AC.coarse": "South Asia"} and items[0].sentence == "accentdb 004"
    assert "klingon" in rejects[0].reason


def test_vocalsound(tmp_path: Path):
    text(tmp_path / "meta/tr_meta.csv", "f0003,female,26,USA,EN,no\nm0004,male,83,India,TA,no\n\nm0005,male,?,USA\n")
    text(tmp_path / "meta/te_meta.csv", "m0009,male,40,USA,EN,yes\n")
    for name in ("f0003_0_throatclearing", "m0004_0_sneeze", "m0009_0_cough", "m0011_0_cough", "f0003_0_song"):
        audio(tmp_path / f"audio_16k/{name}.wav")
    items, rejects = read("vocalsound", tmp_path)
    assert {i.id: (facts(i), i.split) for i in items} == {
        "f0003_0_throatclearing": ({"VSC": "throat clearing", "SGC": "female", "AR.number": "26"}, "train"),
        "m0004_0_sneeze": ({"VSC": "sneeze", "SGC": "male"}, "train"),
        "m0009_0_cough": ({"VSC": "cough", "SGC": "male", "AR.number": "40"}, "test"),
    }
    named = "laughter, sigh, cough, throatclearing, sneeze, sniff"
    assert reasons(rejects) == {
        "age of the speaker is outside the set": ["tr_meta.csv:2 (m0004,male,83,India,TA,no)"],
        "not speaker,gender,age,...": ["tr_meta.csv:4"],
        "no such file": ["val_meta.csv"],
        f"not {{speaker}}_{{n}}_{{sound}}.wav with a sound of {named}": ["f0003_0_song.wav"],
        "speaker is not in meta/": ["m0011_0_cough.wav"],
    }


def test_meld(tmp_path: Path):
    head = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
    line = '1,"I was, it\x92s \x96 “so” it…",Chandler,neutral,neutral,0,0,8,21,"00:16:16,059","00:16:21,731"\n'
    hi = '2,Hi,The Interviewer,joy,positive,0,1,8,21,"0:16:21","0:16:23"\n'
    text(tmp_path / "train/train_sent_emo.csv", head + line + hi + "3,Cut,Joey,joy,positive,125,3,8,21,,\n")
    bored = "1,Bye,Ross,bored,negative,3,1,8,21,,\n2,Yes,Ross,joy,positive,3,2,8,21,,\n"
    text(tmp_path / "test_sent_emo.csv", head + bored + "3,No,Ross,joy\n")
    for name in ("train_splits/dia0_utt0", "train_splits/dia0_utt1"):
        audio(tmp_path / f"train/{name}.wav")
    text(tmp_path / "train/train_splits/dia125_utt3.mp4", b"\0\0\0 ftypmp42")
    audio(tmp_path / "wav/test/dia3_utt1.wav")
    audio(tmp_path / "test/output_repeated_splits_test/final_videos_testdia3_utt2.wav")
    items, rejects = read("meld", tmp_path)
    assert facts(items[0]) == {"ER": "neutrality", "EIE.sentiment": "neutral", "SV": "Chandler"}
    assert items[0].sentence == "I was, it’s – “so” it…"
    assert facts(items[1]) == {"ER": "joy", "EIE.sentiment": "positive"}
    assert items[2].id == "train/dia125_utt3" and items[2].sound[0].path.endswith("dia125_utt3.mp4")
    assert facts(items[3]) == {"EIE.sentiment": "negative", "SV": "Ross"} and items[3].split == "test"
    assert items[4].id == "test/dia3_utt2" and items[4].sound[0].path.endswith("final_videos_testdia3_utt2.wav")
    assert reasons(rejects) == {
        "SV: speaker is none of the six": ["train_sent_emo.csv:3 (The Interviewer)"],
        "no such file": ["dev_sent_emo.csv"],
        "ER: label is not among anger, disgust, fear, joy, neutrality, sadness, surprise": [
            "test_sent_emo.csv:2 (bored)"
        ],
        "not as many cells as the header has": ["test_sent_emo.csv:4"],
    }


def test_cremad(tmp_path: Path):
    for name in ("1001_DFA_ANG_XX", "1040_ITH_SAD_X", "1040_IEO_HAP_HI", "readme_x"):
        audio(tmp_path / f"AudioWAV/{name}.wav")
    items, rejects = read("cremad", tmp_path)
    assert [facts(i) for i in items] == [
        {"ER": "anger", "EIE.intensity": "unspecified"},
        {"ER": "happiness", "EIE.intensity": "high"},
        {"ER": "sadness", "EIE.intensity": "unspecified"},
    ]
    assert items[0].facts[1].choices == ("low", "medium", "high", "unspecified") and len(rejects) == 1


def test_slurp(tmp_path: Path):
    recordings = [
        {"file": "audio-1502099775-headset.flac", "wer": 0.0, "ent_wer": 0.0, "status": "correct"},
        {"file": "audio-1502099775.flac", "wer": 0.57, "ent_wer": None, "status": "correct"},
        {"file": "audio--1504194195.flac", "wer": 1.0, "ent_wer": None, "status": "unclear"},
    ]
    entry = {
        "slurp_id": 4489, "sentence": "wake me up at five am", "intent": "alarm_set", "action": "set",
        "sentence_annotation": "wake me up at [time : five am]", "scenario": "alarm", "recordings": recordings,
        "tokens": [], "entities": [{"span": [4, 5], "type": "time"}],
    }  # fmt: skip
    people = {"audio-1502099775-headset.flac": {"status": "correct", "usrid": "FO-460"}}
    text(tmp_path / "dataset/slurp/metadata.json", json.dumps({"4489": {"nlub_id": 5027, "recordings": people}}))
    text(tmp_path / "dataset/slurp/train.jsonl", json.dumps(entry) + "\n{broken\n" + json.dumps({"sentence": "x"}))
    other = {**entry, "scenario": "iot", "action": "hue_lighton", "recordings": recordings[:1]}
    silent = {**entry, "recordings": [], "sentence_annotation": "wake me up at five am"}
    text(tmp_path / "dataset/slurp/devel.jsonl", json.dumps(other) + "\n" + json.dumps(silent))
    made = {**entry, "recordings": [{"file": "audio-synth-1.flac", "wer": 0.0}]}
    text(tmp_path / "dataset/slurp/train_synthetic.jsonl", json.dumps(made))
    (tmp_path / "audio/slurp_real").mkdir(parents=True)
    items, rejects = read("slurp", tmp_path)
    assert [(i.id, i.speaker) for i in items][:2] == [
        ("audio-1502099775-headset", "FO-460"), ("audio-1502099775", "")
    ]  # fmt: skip
    assert facts(items[0]) == {"IP": "alarm set", "EE": "wake me up at [time : five am]"}
    assert items[0].facts[0].input == "wake me up at five am"
    assert items[0].sound[0].path == str(tmp_path / "audio/slurp_real/audio-1502099775-headset.flac")
    # SLURP's parts share their speakers, so none of its own splits is kept.
    assert facts(items[2])["IP"] == "iot hue lighton" and {i.split for i in items} == {""} and len(items) == 3
    assert reasons(rejects) == {
        "the recording is not marked correct": ["train.jsonl:1 (audio--1504194195.flac: unclear)"],
        "not JSON: Expecting property name enclosed in double quotes": ["train.jsonl:2"],
        "no sentence, annotation, scenario or action": ["train.jsonl:3"],
        "EE: no entity in the sentence": ["devel.jsonl:2"],
        "no recordings": ["devel.jsonl:2"],
        "no such file": ["test.jsonl"],
    }
    synthetic = read("slurp", tmp_path, synthetic=True)[0][-1]
    assert synthetic.sound[0].path == str(tmp_path / "audio/slurp_synth/audio-synth-1.flac")
    assert (synthetic.split, synthetic.speaker) == ("train", "")


def test_speechocean762(tmp_path: Path):
    word = {"accuracy": 10, "stress": 10, "total": 10, "phones": ["M"], "phones-accuracy": [2.0]}
    scores = {
        "000010011": {
            "text": "MARK IS", "accuracy": 9, "completeness": 10.0, "fluency": 9, "prosodic": 9, "total": 9,
            "words": [{**word, "text": "MARK"}, {**word, "text": "IS", "accuracy": 8}],
        }
    }  # fmt: skip
    odd = {**scores["000010011"], "fluency": "good"}
    text(tmp_path / "resource/scores.json", json.dumps({**scores, "000010012": odd, "000010013": odd}))
    lines = "".join(f"00001001{n}\tWAVE/SPEAKER0001/00001001{n}.WAV\n" for n in (1, 2))
    text(tmp_path / "train/wav.scp", lines + "1\tnowhere\n")
    text(tmp_path / "test/wav.scp", "")
    audio(tmp_path / "WAVE/SPEAKER0001/000010011.WAV")
    items, rejects = read("speechocean762", tmp_path)
    # The wording of the released rows.
    assert facts(items[0]) == {
        "PSSL": "Mark is. For the sentence: accuracy is 9, prosodic is 9, fluency is 9 total score is 9.",
        "PSWL": 'Mark is. For "mark", accuracy is 10, stress is 10, and total score is 10. '
        'For "is", accuracy is 8, stress is 10, and total score is 10.',
    }
    assert items[0].speaker == "SPEAKER0001" and len(items) == 1
    assert reasons(rejects) == {
        "a score is missing or is no number": ["scores.json: 000010012"],
        "no such id in resource/scores.json": ["wav.scp:3"],
        "in neither train/wav.scp nor test/wav.scp": ["scores.json: 000010013"],
    }
    for broken, message in (
        ("{", "premature|incomplete"),
        ("[]", "no JSON object"),
        ('{"1": 2}', "1 is no JSON object"),
    ):
        text(tmp_path / "resource/scores.json", broken)
        with pytest.raises(ValueError, match=f"scores.json.*({message})"):
            read("speechocean762", tmp_path)


def test_nsynth(tmp_path: Path):
    note = {
        "note": 1, "instrument_family_str": "synth_lead", "instrument_source_str": "synthetic", "pitch": 22,
        "velocity": 50, "instrument_str": "synth_lead_synthetic_033", "qualities_str": ["dark"],
    }  # fmt: skip
    odd = {**note, "velocity": 60, "pitch": 128}
    examples = {"synth_lead_synthetic_033-022-050": note, "synth_lead_synthetic_033-128-060": odd}
    text(tmp_path / "nsynth-valid/examples.json", json.dumps(examples))
    (tmp_path / "nsynth-valid/audio").mkdir()
    items, rejects = read("nsynth", tmp_path)
    assert facts(items[0]) == {"IC": "synth lead", "ISC": "synthetic", "PP": "22", "VC": "50"}
    assert items[0].split == "validation" and items[0].speaker == "synth_lead_synthetic_033"
    assert facts(items[1]) == {"IC": "synth lead", "ISC": "synthetic"}
    assert reasons(rejects) == {
        "PP: not a number from 0 to 127": ["examples.json: synth_lead_synthetic_033-128-060 (128)"],
        "VC: label is not among 25, 50, 75, 100, 127": ["examples.json: synth_lead_synthetic_033-128-060 (60)"],
        "no such file": ["examples.json", "examples.json"],
    }
    text(tmp_path / "nsynth-valid/examples.json", json.dumps(examples)[:-9])
    with pytest.raises(ValueError, match="nsynth-valid/examples.json"):
        read("nsynth", tmp_path)


def test_fake_or_real(tmp_path: Path):
    for part, kind in (("training", "fake"), ("training", "real"), ("testing", "real")):
        audio(tmp_path / part / kind / "file1.wav_16k.wav_norm.wav_mono.wav_silence.wav")
    items, _ = read("fake_or_real", tmp_path)
    assert [(facts(i)["SSD"], i.split) for i in items] == [("fake", "train"), ("real", "train"), ("real", "test")]


def test_speech_commands(tmp_path: Path):
    for name in ("cat/43fc47a7_nohash_0", "cat/43fc47a7_nohash_1", "dog/0a_nohash_0", "dog/odd"):
        audio(tmp_path / f"{name}.wav")
    audio(tmp_path / "_background_noise_/pink_noise.wav")
    text(tmp_path / "testing_list.txt", "dog/0a_nohash_0.wav\ndog/0b_nohash_0.wav\n")
    text(tmp_path / "validation_list.txt", "cat/43fc47a7_nohash_1.wav\n")
    items, rejects = read("speech_commands", tmp_path)
    assert [(facts(i)["SCR"], i.speaker, i.split) for i in items] == [
        ("cat", "43fc47a7", "train"), ("cat", "43fc47a7", "validation"), ("dog", "0a", "test")
    ]  # fmt: skip
    assert reasons(rejects) == {
        "not {speaker}_nohash_{n}.wav": ["odd.wav"],
        "in the list of test, but not there": ["0b_nohash_0.wav"],
    }


def test_fsdd(tmp_path: Path):
    for name in ("3_ann_0", "0_bob_1", "x_bob_1"):
        audio(tmp_path / f"recordings/{name}.wav", rate=8_000)
    items, rejects = read("fsdd", tmp_path)
    assert [(facts(i)["ASR"], i.split) for i in items] == [("three", "train"), ("zero", "test")] and len(rejects) == 1
    assert [i.split for i in read("fsdd", tmp_path, held_out="ann")[0]] == ["test", "train"]
    with pytest.raises(ValueError, match="no speaker 'zoe'; there are ann, bob"):
        read("fsdd", tmp_path, held_out="zoe")

    again, _ = read("fsdd", tmp_path, strings=3)
    assert [(i.speaker, list(facts(i)), i.sound[0].acoustics is None) for i in again] == [
        ("ann", ["ASR", "SSD"], True), ("ann", ["ASR"], False), ("ann", ["ASR"], False), ("bob", ["ASR", "SSD"], True)
    ]  # fmt: skip
    assert len({i.id for i in again}) == 4


ALPACA = [{"instruction": "Name a fruit.", "input": "", "output": "Apple"}, {"instruction": "", "output": "x"}]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("alpaca_gpt4", "alpaca_gpt4_data.json"),
        ("code_alpaca", "code_alpaca_20k.json"),
        ("alpaca_dan", "anything.json"),
        ("orca_15k", "orca_15k.json"),
    ],
)
def test_alpaca_lists(name: str, file: str, tmp_path: Path):
    text(tmp_path / file, json.dumps(ALPACA, indent=1))
    items, rejects = read(name, tmp_path)
    asked = [(i.facts[0].instruction, i.facts[0].input, i.facts[0].target) for i in items]
    assert asked == [("Name a fruit.", "", "Apple")]
    assert [r.reason for r in rejects] == ["no question"]


@pytest.mark.parametrize("name", ["tigerbot_alpaca", "tigerbot_multichat"])
def test_tigerbot_is_a_row_a_line(name: str, tmp_path: Path):
    file = base.load(name).needs[0]
    text(tmp_path / file, "\n".join(map(json.dumps, ALPACA)) + "\n{oops\n")
    items, rejects = read(name, tmp_path)
    assert len(items) == 1 and [r.reason.split(":")[0] for r in rejects] == ["no question", "not JSON"]


def test_question_files_at_fault(tmp_path: Path):
    """Rows that cannot be used are listed by line; a file of another shape stops the build."""
    rows = [
        {"instruction": "Count.", "input": None, "output": 0},
        {"instruction": "Name.", "output": {"text": ["a"]}},
        {"instruction": "Name.", "input": "a", "output": " "},
        "no object",
        {"instruction": "", "input": "Why?", "output": "So."},
        {"instruction": "Count.", "input": "", "output": "0"},
        {"instruction": "Count.", "input": "", "output": "1"},
    ]
    text(tmp_path / "a.json", json.dumps(rows))
    text(
        tmp_path / "b.jsonl",
        json.dumps({**rows[0], "output": 2}).encode() + b'\n{"instruction": "caf\xe9", "output": "x"}\n',
    )
    text(tmp_path / "c.json.gz", b"\x1f\x8b")
    items, rejects = read("alpaca_dan", tmp_path)
    asked = [(i.id, i.facts[0].instruction, i.facts[0].input, i.facts[0].target) for i in items]
    assert asked == [
        ("a-0000001", "Count.", "", "0"), ("a-0000005", "Why?", "", "So."), ("a-0000007", "Count.", "", "1"),
        ("b-0000001", "Count.", "", "2"),
    ]  # fmt: skip
    assert reasons(rejects) == {
        "question, input or answer is not text": ["a.json:2"],
        "no answer": ["a.json:3"],
        "not a JSON object": ["a.json:4"],
        "question and answer of an earlier row": ["a.json:6"],
        "text is not UTF-8": ["b.jsonl:2"],
    }
    text(tmp_path / "b.jsonl", json.dumps({"prompt": "Hi", "completion": "Ho"}))
    with pytest.raises(
        ValueError, match="b.jsonl:1: no field 'instruction' or 'output'; the row has prompt, completion"
    ):
        read("alpaca_dan", tmp_path)
    text(tmp_path / "b.jsonl", "")
    text(tmp_path / "a.json", json.dumps(rows)[:-20])
    with pytest.raises(ValueError, match="a.json is not JSON in UTF-8: "):
        read("alpaca_dan", tmp_path)
    text(tmp_path / "a.json", b'\xef\xbb\xbf[{"instruction": "Count.", "output": "1"}]')
    assert len(read("alpaca_dan", tmp_path)[0]) == 1
    text(tmp_path / "a.json", b'[{"instruction": "caf\xe9", "output": "1"}]')
    with pytest.raises(ValueError, match="a.json is not JSON in UTF-8: .*(invalid bytes|can't decode)"):
        read("alpaca_dan", tmp_path)
    text(tmp_path / "orca/1M-GPT4-Augmented.parquet", "no parquet")
    with pytest.raises(ValueError, match="1M-GPT4-Augmented.parquet: .*magic"):
        read("openorca_gpt4", tmp_path / "orca")


def test_what_is_too_long_to_speak(tmp_path: Path):
    """A question is only put into formats in which it can be said in time; one that fits none is rejected."""
    long = "word " * 200
    items = [question(f"{n}", "", *fields) for n, fields in enumerate((("Sum up.", long, "x"), (long, "Hi", "x")))]
    assert [set(conversations.formats(item, item.facts[0])) for item in items] == [{"audio_text"}, {"text_audio"}]
    assert set(conversations.formats(items[0], items[0].facts[0], 120.0)) == {"text_audio", "audio_text", "audio"}
    both = question("2", "", long, long, "x")
    assert conversations.fault(both, both.facts[0]) == "AQA: too long to be spoken in 30 s"
    assert not conversations.fault(both, both.facts[0], 300.0)
    rows = [
        conversations.write("instruct", base.load("dolly"), items[0], items[0].facts[0], "train", n, [])
        for n in range(9)
    ]
    assert {row["modality"] for row in rows} == {"audio_text"}


def test_long_lists_of_choices_are_not_read_out():
    """Sixteen accents take twenty seconds to say, which leaves too little of a row's thirty for the recording."""
    sound = (base.Recording("x.wav"),)
    many, few = (labels.accent(accents[0], accents) for accents in (common_voice.ACCENTS, vctk.ACCENTS))
    asked = {fact: set(conversations.formats(Item("x", (fact,), sound), fact)) for fact in (*many, *few)}
    assert asked == {
        many[0]: {"text_audio"}, many[1]: {"text_audio", "audio"}, few[0]: {"text_audio", "audio"},
        few[1]: {"text_audio", "audio"},
    }  # fmt: skip


def test_dolly(tmp_path: Path):
    row = {"instruction": "When?", "context": "In 1998.", "response": "1998", "category": "closed_qa"}
    text(tmp_path / "databricks-dolly-15k.jsonl", json.dumps(row))
    assert read("dolly", tmp_path)[0][0].facts[0].input == "In 1998."


@pytest.mark.parametrize("name", ["openorca_gpt4", "openorca_gpt35"])
def test_openorca(name: str, tmp_path: Path):
    rows = [{"id": "niv.242684", "system_prompt": "", "question": "Is it?", "response": "Yes"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / base.load(name).needs[0])
    assert read(name, tmp_path)[0][0].id == "niv.242684"


def test_unnatural_instructions(tmp_path: Path):
    instances = [{"instruction_with_input": "…", "input": "A ____", "output": "B", "constraints": "None."}]
    row = {"instruction": "Fill in. {INPUT}", "instances": [*instances, {"input": "<noinput>", "output": "C"}]}
    text(tmp_path / "core_data.jsonl", json.dumps(row))
    text(tmp_path / "more_data.jsonl", "")
    items, _ = read("unnatural_instructions", tmp_path)
    assert [(i.facts[0].instruction, i.facts[0].input) for i in items] == [("Fill in.", "A ____"), ("Fill in.", "")]
    # The full data has paraphrases too; they count as the sentence they paraphrase.
    other = {"instruction": "Complete this. {INPUT}", "input": "A ____", "output": "B", "instruction_with_input": "…"}
    full = [{**row, "reformulations": [other, {**other, "output": ""}, other]}, {**row, "instances": []}]
    text(tmp_path / "full_data.jsonl", "\n".join(map(json.dumps, full)))
    items, rejects = read("unnatural_instructions", tmp_path)
    assert [i.facts[0].instruction for i in items] == ["Fill in.", "Fill in.", "Complete this."]
    assert items[2].sentence == items[0].sentence == "Fill in. A ____" and len({i.id for i in items}) == 3
    assert reasons(rejects) == {
        "no answer": ["full_data.jsonl:1"],
        "question and answer of an earlier row": ["full_data.jsonl:1"],
        "no instances": ["full_data.jsonl:2"],
    }


# --- what all sources share ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in base.names() if base.load(name).needs])
def test_another_layout_is_named(name: str, tmp_path: Path):
    text(tmp_path / "something_else.txt", "")
    with pytest.raises(ValueError) as error:
        read(name, tmp_path)
    source = base.load(name)
    assert source.layout in str(error.value) and "something_else.txt" in str(error.value) and name in str(error.value)
    assert "name that folder" not in str(error.value)
    with pytest.raises(ValueError, match="no such folder"):
        read(name, tmp_path / "nowhere")
    lay_out(name, tmp_path / "unpacked")
    with pytest.raises(ValueError, match=f"{tmp_path}/unpacked is laid out so: name that folder"):
        read(name, tmp_path)


@pytest.mark.parametrize("name", ["cremad", "dolly", "speechocean762"])
def test_git_lfs_pointers_are_named(name: str, tmp_path: Path):
    """Some corpora are distributed by Git, which leaves pointers in place of large files if LFS is not installed."""
    for file in (path for path in lay_out(name, tmp_path).rglob("*") if path.is_file()):
        text(file, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match=f"{name}: {tmp_path}/.* is a Git LFS pointer.*git lfs pull"):
        read(name, tmp_path)


def test_every_source_declares_licence_home_page_layout_and_tasks():
    for name in base.names():
        source = base.load(name)
        assert source.name == name and set(source.tasks) <= set(TASKS) and source.license and source.layout is not None
        assert source.needs or source.synthetic
        assert set(source.benchmark) <= set(source.tasks) and set(source.expected) <= set(source.tasks)
        assert source.homepage.startswith("https://") and source.title
        # Common Voice grows with every release, AlpacaDan's size is unpublished, and the last two are not the paper's.
        assert source.expected or name in ("common_voice", "alpaca_dan", "fsdd", "quickstart")
    with pytest.raises(ValueError, match="no source 'timit'; there are accentdb"):
        base.load("timit")
    with pytest.raises(ValueError, match="no source 'libri_speech'; did you mean librispeech. there are"):
        base.load("libri_speech")


def test_only_open_licences_allow_audio_to_be_published_again():
    """Whatever is not surely open is closed: for non-commercial use, mixed, on request, or unknown."""
    closed = {source.name for source in map(base.load, base.names()) if not source.redistributable}
    assert closed == {
        "accentdb", "alpaca_dan", "alpaca_gpt4", "code_alpaca", "fake_or_real", "gigaspeech", "meld", "orca_15k",
        "slurp", "voxceleb",
    }  # fmt: skip
    assert not any(mark in license for license in base.OPEN_LICENSES for mark in ("NC", "ND", ";", "see"))


def test_labels_are_those_that_the_evaluation_scores():
    """Every closed set that was released is asked with the same labels, and aliases belong to labels that exist."""
    data = ROOT / "eval_suite" / "data"
    released = json.loads((data / "released_files.json").read_text())["files"]
    ours: dict[str, Iterable[str]] = {
        "CREMAD_EIE_classification_test": cremad.LEVELS.values(),
        "CREMAD_ER_classification_test": cremad.EMOTIONS.values(),
        "NSynth_instrument_classification_test": nsynth.FAMILIES,
        "NSynth_music_source_classification_test": nsynth.KINDS,
        "Synthetic_Audio_Classification_test": fake_or_real.KINDS,
        "accentdb_AI_classification_test": accentdb.ACCENTS,
        "common-voice_accent_classification_test": common_voice.ACCENTS,
        "common-voice_age_classification_test": labels.DECADES,
        "common-voice_gender_classification_test": labels.GENDERS,
        "meld_EIE_classification_test": meld.SENTIMENTS,
        "meld_ER_classification_test": meld.EMOTIONS.values(),
        "meld_SV_classification_test": meld.FRIENDS,
        "vctk_accent_classification_test": set(vctk.ACCENTS) - {"Welsh"},  # one speaker, none of the released rows
        "vctk_age_classification_test": labels.AGE_GROUPS,
        "vctk_gender_classification_test": labels.GENDERS,
        "velocity_classification_test": map(str, VELOCITIES),
        "vocalsound_gender_classification_test": labels.GENDERS,
        "vocalsound_vocal_classification_test": vocalsound.SOUNDS.values(),
        "voxceleb_gender_classification_test": labels.GENDERS,
    }
    closed = {name for name, file in released.items() if "choices" in file and file["task"] not in ("IP", "SCR")}
    assert closed == set(ours)
    for name, found in ours.items():
        assert {word.casefold() for word in found} == {word.casefold() for word in released[name]["choices"]}, name
    known = {word.casefold() for name in closed for word in released[name]["choices"]}
    aliases = json.loads((data / "aliases.json").read_text())["tasks"]
    assert {label for task in aliases.values() for label in task} <= known


def test_every_fine_label_has_a_coarse_one():
    """Every fine label of every corpus has a coarse one, and the coarse choices are those the corpus can have."""
    for accents in (accentdb.ACCENTS, common_voice.ACCENTS, vctk.ACCENTS):
        for accent in accents:
            fine, coarse = labels.accent(accent, accents)
            assert (fine.granularity, coarse.granularity) == ("fine", "coarse")
            assert fine.target == accent and fine.choices == accents and coarse.target in coarse.choices
        assert {labels.accent(accent, accents)[1].target for accent in accents} == set(coarse.choices)
    ages = [[fact.target for fact in labels.age_in_years(years)] for years in (14, 15, 24, 29, 30, 59, 60)]
    assert ages == [
        [], ["15-19", "young"], ["20-24", "young"], ["25-29", "young"], ["30+", "middle-aged"],
        ["30+", "middle-aged"], ["30+", "senior"],
    ]  # fmt: skip
    assert [labels.age_in_decades(decade)[1].target for decade in labels.DECADES] == (
        ["young"] * 2 + ["middle-aged"] * 3 + ["senior"] * 4
    )
    assert not labels.age_in_decades("forties") and not labels.accent("Klingon", vctk.ACCENTS)


def test_benchmark_weights_are_the_released_counts(golden: Path):
    """The sources' shares of the evaluation, by task, are the rows that were released."""
    manifest = json.loads((golden / "eval_manifest.json").read_text())
    released = Counter[str]()
    for name, entry in manifest.items():
        if name != "_meta":
            released[entry["task"]] += entry["n"]
    weights = Counter[str]()
    for name in set(base.names()) - {"fsdd", "quickstart"}:
        weights.update(base.load(name).benchmark)
    assert weights == released and weights.total() == manifest["_meta"]["total_samples"]


def lay_out(name: str, root: Path) -> Path:
    """A folder that looks like the source's, if only from afar."""
    for need in base.load(name).needs:
        text(root / re.sub(r"\[(.).*?\]", r"\1", need.split("|")[0]).replace("*", "x"), "")
    return root


def test_a_sources_file_gives_folders_options_and_settings(tmp_path: Path):
    lay_out("dolly", tmp_path / "dolly")
    digits = lay_out("fsdd", tmp_path / "elsewhere/fsdd")
    text(tmp_path / "s.yaml", f"sources:\n  dolly: dolly\n  fsdd: {{path: {digits}, held_out: theo}}\neval_rows: 7\n")
    chosen = sources_file.read(tmp_path / "s.yaml")
    assert [str(s.root) for s in chosen.sources] == [str(tmp_path / "dolly"), str(digits)]
    assert chosen.sources[1].options == {"held_out": "theo"} and chosen.settings == {"eval_rows": 7}
    text(tmp_path / "s.yaml", "sources: {dolly: dolly}\nprocessor: dolly\nmax_seconds: 20\n")
    assert sources_file.read(tmp_path / "s.yaml").settings == {"processor": str(tmp_path / "dolly"), "max_seconds": 20}
    (tmp_path / "espeak").mkdir()
    for speech, meant in (("dolly", str(tmp_path / "dolly")), ("espeak", "espeak"), ("some/model", "some/model")):
        text(tmp_path / "s.yaml", f"sources: {{dolly: dolly}}\nspeech: {speech}\n")
        assert sources_file.read(tmp_path / "s.yaml").settings == {"speech": meant}


def test_a_missing_sources_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "plan", "align", "--sources", str(tmp_path / "s.yaml")]) == 2
    assert f"no sources file {tmp_path}/s.yaml: `llaso data sources` prints one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sources: {dolly: 3}", "sources: dolly: say its folder, as `dolly: /data/dolly`"),
        ("sources: [a]", "say which corpora"),
        ("a: [", "not YAML"),
        ("sources: {dolly: a, fsdd: b, dolly: c}", "dolly is given twice"),
        (
            "sources: {dolly: dolly}\neval_row: 3",
            "unknown key eval_row; did you mean eval_rows. there are eval_rows, ",
        ),
        ("sources: {doly: x}", "sources: no source 'doly'; did you mean dolly. there are accentdb, "),
        ("sources: {timit: x}", "no source 'timit'; there are accentdb"),
        ("sources: {dolly: x, fsdd: y}", r"(?s)s.yaml: dolly: no such folder: .*/x\. .*fsdd: no such folder: .*/y\. "),
        ("sources: {dolly: .}", "(?s)another layout: nothing matches databricks.*Found: dolly/, fsdd/"),
        (
            "sources: {fsdd: {path: fsdd, heldout: a}}",
            "fsdd: unknown option heldout; did you mean held_out. there are held_out, strings",
        ),
        ("sources: {dolly: {path: dolly, seed: 1}}", "dolly: unknown option seed; there are none"),
        ("sources: {fsdd: {path: fsdd, strings: two}}", "fsdd: strings: 'two' is not a whole number"),
        ("sources: {dolly: dolly}\neval_rows: many", "s.yaml: eval_rows: 'many' is not a whole number of 0 or more"),
        ("sources: {dolly: dolly}\neval_rows: true", "s.yaml: eval_rows: True is not a whole number"),
        ("sources: {dolly: dolly}\neval_rows: -1", "s.yaml: eval_rows: -1 is not"),
        ("sources: {dolly: dolly}\nrows_per_shard: 0", "s.yaml: rows_per_shard: 0 is not a whole number of 1 or more"),
        ("sources: {dolly: dolly}\nmax_seconds: long", "s.yaml: max_seconds: 'long' is not a number above 0"),
        ("sources: {dolly: dolly}\nspeech: 3", "speech: 3 is not text"),
        ("sources: {dolly: dolly}\nslurm: cpu", "slurm: give its options"),
        ("sources: {dolly: dolly}\nvoices: [en]", "voices: give a list of names for each split"),
        ("sources: {dolly: dolly}\nvoices: {train: en}", "voices: give a list of names for each split"),
        ("sources: {dolly: dolly}\nvoices: {trian: [en]}", "voices: no split trian; did you mean train. "),
        ("sources: {dolly: dolly}\nvoices: {train: [en]}", "voices: none for validation, test"),
    ],
)
def test_a_wrong_sources_file_is_explained(content: str, message: str, tmp_path: Path):
    lay_out("dolly", tmp_path / "dolly")
    lay_out("fsdd", tmp_path / "fsdd")
    text(tmp_path / "s.yaml", content)
    with pytest.raises(ValueError, match=message):
        sources_file.read(tmp_path / "s.yaml")


def test_a_file_is_read_by_one_source_only(tmp_path: Path):
    """Two sources may share a folder (OpenOrca's two files do), but no file in it."""
    for name in ("openorca_gpt4", "openorca_gpt35", "alpaca_gpt4"):
        lay_out(name, tmp_path / "qa")
    text(tmp_path / "s.yaml", "sources: {openorca_gpt4: qa, openorca_gpt35: qa/../qa, alpaca_gpt4: qa}\n")
    assert len(sources_file.read(tmp_path / "s.yaml").sources) == 3
    text(tmp_path / "s.yaml", "sources: {alpaca_gpt4: qa, alpaca_dan: qa/../qa}\n")
    with pytest.raises(
        ValueError, match="alpaca_gpt4 and alpaca_dan both name .*would both read alpaca_gpt4_data.json"
    ):
        sources_file.read(tmp_path / "s.yaml")


def test_two_blocks_do_not_read_the_same_column_of_a_file_for_the_same_task(tmp_path: Path):
    text(tmp_path / "a.jsonl", '{"audio": "a.wav", "text": "x", "raw": "X"}\n')
    block = "{manifest: %s, tasks: {ASR: %s}}"
    text(tmp_path / "s.yaml", f"sources: {{one: {block % ('a.jsonl', 'text')}, two: {block % ('a.jsonl', 'raw')}}}")
    assert len(sources_file.read(tmp_path / "s.yaml").sources) == 2
    text(tmp_path / "s.yaml", f"sources: {{one: {block % ('a.jsonl', 'text')}, two: {block % ('./a.jsonl', 'text')}}}")
    with pytest.raises(ValueError, match=r"one and two both read .*a.jsonl for ASR: its rows would count twice"):
        sources_file.read(tmp_path / "s.yaml")


@pytest.mark.parametrize("name", ["~", "yes", "3"])
def test_a_source_whose_name_yaml_reads_as_something_else_is_refused(tmp_path: Path, name: str):
    text(tmp_path / "s.yaml", f"sources: {{{name}: {{manifest: a.jsonl}}}}")
    with pytest.raises(ValueError, match="the name .* is not text; write it in quotes"):
        sources_file.read(tmp_path / "s.yaml")


def test_the_printed_sources_file_can_be_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With every corpus and setting uncommented it is read, and says what the code says by default."""
    assert main(["data", "sources"]) == 0
    printed = capsys.readouterr().out
    entry = re.compile(r"^( *)# ((?!https:)\w+: ?[{/\"\d].*)$", re.MULTILINE)
    filled = entry.sub(r"\1\2", printed).replace("/data/", f"{tmp_path}/")
    text(tmp_path / "s.yaml", filled)
    on_disk = [name for name in base.names() if base.load(name).needs]
    for name in on_disk:
        lay_out(name, tmp_path / name)
    chosen = sources_file.read(tmp_path / "s.yaml")
    assert [s.name for s in chosen.sources] == on_disk
    assert all(str(s.root) == f"{tmp_path}/{s.name}" for s in chosen.sources)
    voices = chosen.settings.pop("voices")
    assert corpus_plan.Settings("align", **chosen.settings) == corpus_plan.Settings("align") and set(voices) == set(
        SPLITS
    )
    assert set(chosen.executors["slurm"]) >= {"partition", "time"}


def test_every_task_has_its_instructions():
    assert len(TASKS) == 20 and len(templates("ASR", "align")) == 18
    assert {t.style for t in templates("ASR", "align")} == {""}
    files = {"ASR.align"}
    for task in TASKS.values():
        for granularity in ("", *GRANULARITIES.get(task.code, ())):
            if task.code == "EIE" and not granularity:
                continue
            found = templates(task.code, granularity)
            files.add(found[0].id.rpartition("/")[0])
            assert len(found) == 20 and Counter(t.style for t in found) == dict.fromkeys(STYLES, 5)
            closed = task.answer == "closed" and granularity != "number"
            assert all(t.text.count("{choices}") == closed for t in found), task.code
    assert {file.stem for file in FOLDER.glob("*.txt")} == files  # none is left over


def test_instruction_texts_are_unique_and_clean():
    """No text is there twice, in whichever file, and none holds what was left over from writing it."""
    texts = Counter[str]()
    for file in sorted(FOLDER.glob("*.txt")):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("[")]
        texts.update("".join(filter(str.isalnum, line.casefold())) for line in lines)
        for line in lines:
            bare = line.replace("{choices}", "")
            assert line == line.strip() and "  " not in line and not set(bare) & set("{}<>_"), line
            assert line[-1] in ".?!:" and line.isascii() and not re.search(r"TODO|FIXME|XXX", line), line
    assert texts.total() == len(texts) == 18 + 20 * 22, [text for text, count in texts.items() if count > 1]


def test_unknown_styles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text(tmp_path / "ODD.txt", "[standardised]\nDo it.\n[cheerful]\nDo it!\n")
    monkeypatch.setattr(instructions, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="ODD.txt:3: no style 'cheerful'; there are standardised, "):
        templates("ODD")
