"""What the trainer opens: the corpus it was pointed at, whatever datasets has in its cache."""

from __future__ import annotations

import shutil

from tiny_training import row, save_corpus

from modeling_llaso.training.config import DataChoice
from modeling_llaso.training.data import open_corpus


def ids(folder) -> list[str]:
    corpus = open_corpus(DataChoice(path=str(folder)), seed=0)
    return sorted(corpus[number]["id"] for number in range(len(corpus.lengths)))


def test_corpora_of_one_name_are_told_apart(tmp_path):
    first = save_corpus(tmp_path / "a" / "corpus", {"train": [row(1), row(2)]})
    second = save_corpus(tmp_path / "b" / "corpus", {"train": [row(3), row(4), row(5)]})
    assert len(ids(first)) == 2 and len(ids(second)) == 3


def test_a_rebuilt_corpus_is_read_anew(tmp_path):
    folder = save_corpus(tmp_path / "corpus", {"train": [row(1), row(2)]})
    before = ids(folder)
    shutil.rmtree(folder)
    save_corpus(tmp_path / "corpus", {"train": [row(7), row(8), row(9)]})
    assert len(before) == 2 and len(ids(folder)) == 3
