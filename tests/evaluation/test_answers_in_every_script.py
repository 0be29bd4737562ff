"""Answers in any script under `strict`: what is read beside letters, digits and punctuation of other scripts."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import shared_fixture
from support.released import table

from eval_suite.parsing import (
    ABSTAINED,
    AMBIGUOUS,
    ANSWERED,
    MALFORMED,
    LabelSet,
    Parsed,
    find_sentence_scores,
    find_slots,
    parse_number,
)
from eval_suite.readers import AnsweredRow
from eval_suite.task_metrics import TASKS
from eval_suite.text_normalization import UNSPACED_SCRIPTS, fold, plain_forms, stands_alone

PITCH, AGE = TASKS["PP"].scale.usable, TASKS["AR_years"].scale.usable
VELOCITIES = LabelSet(["127", "100", "75", "50", "25"])
GENDERS = LabelSet(["Male", "Female"])
AGE_GROUPS = LabelSet(["15-19", "20-24", "25-29", "30+"])


def read(labels: LabelSet, text: str) -> Parsed:
    return labels.parse(text)


@pytest.mark.parametrize(
    ("labels", "text", "label"),
    [
        # Chinese and Japanese: no blanks between words
        (VELOCITIES, "力度是100。", "100"),
        (VELOCITIES, "值是100哦", "100"),
        (VELOCITIES, "「１２７」です", "127"),
        (VELOCITIES, "ベロシティー75ー", "75"),
        (GENDERS, "说话人是Ｍａｌｅ，不确定", "male"),
        (GENDERS, "これはFEMALEの声", "female"),
        (AGE_GROUPS, "大概20到24岁", "20-24"),
        (AGE_GROUPS, "２０～２４歳", "20-24"),
        (AGE_GROUPS, "15岁至19岁之间", "15-19"),
        (AGE_GROUPS, "30+岁", "30+"),
        # Hangul: particles follow without a blank
        (VELOCITIES, "답은 100입니다", "100"),
        (GENDERS, "화자는 Male이에요", "male"),
        (LabelSet(["남성", "여성"]), "화자는 남성입니다", "남성"),
        # Thai, Lao, Khmer, Burmese
        (VELOCITIES, "ค่าคือ๑๒๗ครับ", "127"),
        (VELOCITIES, "ຄ່າ100ແມ່ນ", "100"),
        (VELOCITIES, "តម្លៃ៥០គឺ", "50"),
        (VELOCITIES, "တန်ဖိုး၂၅ဖြစ်", "25"),
        (LabelSet(["ชาย", "หญิง"]), "เสียงผู้ชายครับ", "ชาย"),
        (LabelSet(["男性", "女性"]), "说话人是女性。", "女性"),
        # digits of other scripts; Arabic puts "and" before its word without a blank
        (VELOCITIES, "القيمة ١٠٠", "100"),
        (VELOCITIES, "القيمة و100", "100"),
        (VELOCITIES, "मान १२७ है।", "127"),
        (VELOCITIES, "𝟏𝟐𝟕", "127"),
        # a label's own accent, however it is written
        (LabelSet(["Café", "Cafe"]), "Cafe\u0301", "café"),
        (LabelSet(["Café", "Cafe"]), "是Cafe的", "cafe"),
    ],
)
def test_labels_that_are_read(labels, text, label):
    assert read(labels, text) == Parsed(ANSWERED, label)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (VELOCITIES, "大约1000"),
        (VELOCITIES, "约１０００"),
        (VELOCITIES, "١٠٠٠"),
        (VELOCITIES, "一共100万"),
        (VELOCITIES, "25．5"),
        (VELOCITIES, "7点50"),
        (VELOCITIES, "型号MP100的"),
        (VELOCITIES, "100мс"),
        (GENDERS, "这是femalemale"),
        (GENDERS, "Ｆｅｍａｌｅｓ"),
        (GENDERS, "ma\u0301le"),
        (GENDERS, "male\u0302\u0323"),
        (GENDERS, "Maleຳ"),  # Lao AM begins with a mark, which belongs to the "e"
        (LabelSet(["Ire", "Ice"]), "是Ireland的"),
        (LabelSet(["Ире", "Айс"]), "Иреланд"),
        (LabelSet(["남성", "여성"]), "비남성"),
        (LabelSet(["ชาย", "หญิง"]), "ชายู"),
        (LabelSet(["ذكر", "أنثى"]), "تذكرة"),
        (GENDERS, "男"),  # another language's word is no spelling of the label
    ],
)
def test_labels_that_are_not_read(labels, text):
    assert read(labels, text) == Parsed(ABSTAINED)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (VELOCITIES, "可能是25，也可能是50。"),
        (VELOCITIES, "２５，５０"),
        (VELOCITIES, "不是100，而是127"),
        (GENDERS, "不是Male而是Female"),
        (LabelSet(["男", "女"]), "男女都有"),
        (AGE_GROUPS, "15到19岁或者20到24岁"),
    ],
)
def test_negations_and_lists_stay_ambiguous(labels, text):
    assert read(labels, text) == Parsed(AMBIGUOUS)


@pytest.mark.parametrize(
    ("text", "usable", "parsed"),
    [
        ("音高是60。", PITCH, Parsed(ANSWERED, 60)),
        ("ピッチは６０です", PITCH, Parsed(ANSWERED, 60)),
        ("音名是C4，也就是60", PITCH, Parsed(ANSWERED, 60)),
        ("这个音是A#4吗", PITCH, Parsed(ANSWERED, 70)),
        ("是60．5吧", PITCH, Parsed(ANSWERED, 60.5)),
        ("60点5", PITCH, Parsed(ANSWERED, 60.5)),
        ("٦٠٫٥", PITCH, Parsed(ANSWERED, 60.5)),
        ("在F2到F3之间", PITCH, Parsed(ANSWERED, 47)),
        ("不是60就是62", PITCH, Parsed(AMBIGUOUS)),
        ("60，100", PITCH, Parsed(AMBIGUOUS)),
        ("频率是440赫兹，MIDI是69", PITCH, Parsed(AMBIGUOUS)),
        ("型号MP60的", PITCH, Parsed(MALFORMED)),
        ("60万", PITCH, Parsed(MALFORMED)),
        ("−60", PITCH, Parsed(MALFORMED)),
        ("音高：-60", PITCH, Parsed(MALFORMED)),
        ("1百", PITCH, Parsed(ANSWERED, 100)),
        ("10²", PITCH, Parsed(ANSWERED, 10)),
        ("大概30岁", AGE, Parsed(ANSWERED, 30)),
        ("٤٢ سنة", AGE, Parsed(ANSWERED, 42)),
        ("४२ साल", AGE, Parsed(ANSWERED, 42)),
        ("อายุ๓๕ปี", AGE, Parsed(ANSWERED, 35)),
        ("30살입니다", AGE, Parsed(ANSWERED, 30)),
        ("20到30岁之间", AGE, Parsed(ANSWERED, 25)),
        ("20岁到30岁之间", AGE, Parsed(ANSWERED, 25)),
        ("２０〜３０歳", AGE, Parsed(ANSWERED, 25)),
        ("20歳から30歳", AGE, Parsed(ANSWERED, 25)),
        ("20세에서 30세", AGE, Parsed(ANSWERED, 25)),
        ("介于20和30之间", AGE, Parsed(ANSWERED, 25)),
        ("20和30", AGE, Parsed(AMBIGUOUS)),
        ("بين 20 و30", AGE, Parsed(AMBIGUOUS)),
        ("20代です", AGE, Parsed(ANSWERED, 24.5)),
        ("30대 남성", AGE, Parsed(ANSWERED, 34.5)),
        ("20多岁到40多岁之间", AGE, Parsed(ANSWERED, 34.5)),
        ("三十岁", AGE, Parsed(MALFORMED)),  # number words are not read in any language
    ],
)
def test_numbers(text, usable, parsed):
    assert parse_number(text, usable) == parsed


def test_structures_in_full_width():
    assert find_slots("［time ： five am。］") == {("time", "five am"): 1}
    assert find_sentence_scores("句子的accuracy：８，prosodic是7，fluency为9。") == {
        ("accuracy",): 8,
        ("prosodic",): 7,
        ("fluency",): 9,
    }
    assert find_sentence_scores("inaccuracy: 8") == {}


def test_shared_cases():
    path = shared_fixture("../cases") / "answers_in_other_scripts.jsonl"
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, case in enumerate(cases):
        row = AnsweredRow(
            file="f",
            id="0",
            where=f"case {number}",
            task=case["task"],
            modality="text_audio",
            source="",
            prediction=case["prediction"],
            reference=case["reference"],
            choices=tuple(case["choices"]),
            error=None,
            cluster="0",
        )
        scored = table([row], "strict")
        wanted = case["read"].lower() if isinstance(case["read"], str) else case["read"]
        assert (scored.outcomes[0], scored.parsed[0]) == (case["outcome"], wanted), case["prediction"]
    assert len(cases) >= 18


# Properties ------------------------------------------------------------------------------------------------------


def named(*scripts: str) -> st.SearchStrategy[str]:
    """Texts of a script's letters, found by the first word of their Unicode names; no digits.

    Thai and Lao AM count as letters but are a combining mark and a vowel: the mark belongs to the letter before it.
    """
    letters = [
        character
        for character in map(chr, range(0x530, 0xFB00))
        if character.isalpha()
        and unicodedata.name(character, "-").split()[0] in scripts
        and not unicodedata.category(unicodedata.normalize("NFKC", character)[0]).startswith("M")
    ]
    return st.text(st.sampled_from(letters), max_size=6)


UNSPACED = named(*UNSPACED_SCRIPTS)
FOREIGN = named("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "ARABIC", "HEBREW", "DEVANAGARI")
LATIN = st.text("abcdefghijklmnopqrstuvwxyzéß0123456789", min_size=1, max_size=6)


@given(UNSPACED, UNSPACED, st.sampled_from(["Male", "Female", "ＭＡＬＥ"]))
def test_a_label_among_unspaced_letters_is_read(before, after, label):
    assert read(GENDERS, before + label + after) == Parsed(ANSWERED, fold(label))


@given(FOREIGN, FOREIGN)
def test_a_note_and_its_number_among_letters_of_other_scripts_are_read(before, after):
    assert parse_number(f"{before}C4{after} {before}60.", PITCH) == Parsed(ANSWERED, 60)


@given(LATIN, LATIN, st.sampled_from(["male", "100"]))
def test_a_label_inside_a_longer_latin_word_is_not_read(before, after, label):
    labels = LabelSet([label, "xylophone"])
    for text in (before + label + after, before + label, label + after):
        assert read(labels, f"是{text}的") == Parsed(ABSTAINED) or fold(text) == label


@given(st.sampled_from([chr(i) for i in range(sys.maxunicode + 1) if chr(i).isdecimal()]), st.integers(0, 127))
def test_digits_of_every_script_are_digits(zero, number):
    first = ord(zero) - unicodedata.decimal(zero)
    written = "".join(chr(first + int(digit)) for digit in str(number))
    assert plain_forms(written) == str(number)
    assert parse_number(f"是{written}。", PITCH) == Parsed(ANSWERED, number)


@given(st.text())
def test_plain_forms_are_stable_and_leave_ascii_alone(text):
    once = plain_forms(text)
    assert plain_forms(once) == once
    assert text.isascii() is False or once == text


@given(st.text("aé1 是ก한ب०-_.\u0301", min_size=1, max_size=12), st.data())
def test_boundaries_hold_for_any_text(text, data):
    """A whole text stands alone, and what blanks fence off does."""
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    assert stands_alone(text, 0, len(text))
    fenced = f"{text[:start]} {text[start:end]} {text[end:]}"
    if not unicodedata.category(text[start]).startswith("M") and text[end : end + 1] != "\u0301":
        assert stands_alone(fenced, start + 1, end + 1)
