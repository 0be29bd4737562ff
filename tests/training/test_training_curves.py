"""`llaso curves`: what is drawn of several runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llaso.cli import main
from llaso.training.run.curves import curves_of


def write_history(folder: Path, losses: list[float], rates: dict[int, float]) -> Path:
    """Write a run's history: a record for each step, and the word error rates measured after some of them."""
    records = []
    for step, loss in enumerate(losses, 1):
        records.append({"kind": "step", "step": step, "loss": loss})
        if step in rates:
            records.append({"kind": "held_out", "step": step, "wer": rates[step]})
    folder.mkdir()
    (folder / "history.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


def drawn(axes) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def test_losses_and_word_error_rates_of_all_runs_are_drawn(tmp_path):
    one = write_history(tmp_path / "one", [4.0, 2.0], {2: 0.5})
    other = write_history(tmp_path / "other", [3.0, 3.0, 3.0], {})
    figure = curves_of([one, other, one])
    losses, rates = figure.axes
    assert drawn(losses) == [([1, 2], [4.0, pytest.approx(0.95 * 4 + 0.05 * 2)]), ([1, 2, 3], [3.0, 3.0, 3.0])]
    assert drawn(rates) == [([2], [0.5])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(one), str(other)]
    assert losses.lines[0].get_color() == rates.lines[0].get_color()


def test_runs_without_held_out_rows_have_one_panel(tmp_path):
    assert len(curves_of([write_history(tmp_path / "run", [1.0], {})]).axes) == 1


@pytest.mark.parametrize(("name", "begins"), [("c.png", b"\x89PNG"), ("new/c.svg", b"<?xml"), ("c.PDF", b"%PDF")])
def test_the_ending_decides_the_form_of_the_picture(name, begins, tmp_path):
    run, file = write_history(tmp_path / "run", [1.0], {1: 0.9}), tmp_path / name
    assert main(["curves", str(run), "--out", str(file)]) == 0
    assert file.read_bytes().startswith(begins)
    assert main(["curves", str(run), "--out", str(file)]) == 2
    assert main(["curves", str(run), "--out", str(file), "--overwrite"]) == 0


def test_what_cannot_be_drawn_is_named(tmp_path, capsys):
    run = write_history(tmp_path / "run", [1.0], {})
    (tmp_path / "empty").mkdir()
    damaged = write_history(tmp_path / "damaged", [1.0, 2.0], {})
    (damaged / "history.jsonl").write_text("{nothing\n")
    for folder, out, message in (
        ("run", "curves.txt", "has to end in .png, .svg, .pdf"),
        ("empty", "curves.png", "empty has no history.jsonl with a step in it"),
        ("damaged", "curves.png", "history.jsonl is damaged and cannot be drawn"),
    ):
        assert main(["curves", str(run), str(tmp_path / folder), "--out", str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / out).exists()
