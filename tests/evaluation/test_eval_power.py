"""Power: the forecast against repeated subsampling, and against textbook cases."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from support.paths import shared_fixture
from support.released import answers
from test_eval_compare import system

from eval_suite.compare import compare, scored_systems
from eval_suite.metrics import FileMetrics
from eval_suite.power import detectable, forecast, influence, read_errors, rows_needed, shipped_errors, standard_error
from eval_suite.power import task_errors as errors_of
from eval_suite.score import read_rows
from llaso.cli import main


def test_jackknife_of_a_mean_is_the_textbook_error():
    values = np.random.default_rng(0).normal(size=50)
    delta = np.array([np.delete(values, index).mean() - values.mean() for index in range(50)])
    assert standard_error(delta) == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert math.isnan(standard_error(np.zeros(1)))


def test_sample_size_is_that_of_the_z_test():
    """Cohen 1988: 2.80 standard errors for 80 % power at 5 %, 3.24 for 90 %."""
    assert detectable(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert detectable(1.0, power=0.9) == pytest.approx(1.959964 + 1.281552, abs=1e-5)
    assert rows_needed(100, 0.05, detectable(0.05)) == 100
    assert rows_needed(100, 0.05, detectable(0.05) / 2) == 400


@pytest.fixture(scope="module")
def pair() -> dict[str, list]:
    """Two systems' rows of the emotions of CREMA-D and of the pitches."""
    files = ("CREMAD_ER_classification_test", "slurp_Intent_Prediction_test")
    return {
        file: [read_rows(answers(name).files[file], "strict") for name in ("LLaSO-Base", "Kimi-Audio")]
        for file in files
    }


@pytest.mark.parametrize("file", ["CREMAD_ER_classification_test", "slurp_Intent_Prediction_test"])
def test_forecast_holds_under_repeated_subsampling(pair, file):
    """The spread of the difference over small draws of recordings is what the jackknife over all of them forecasts."""
    one, other = (influence([rows], "strict") for rows in pair[file])
    error = standard_error(one.delta - other.delta)
    clusters = np.unique([row.row.cluster for row in pair[file][0]], return_inverse=True)[1]
    tables = [FileMetrics([row.quantities for row in rows], "strict", ["accuracy"]) for rows in pair[file]]
    columns = [table.statistics["accuracy"].columns for table in tables]
    count, random, differences = clusters.max() + 1, np.random.default_rng(0), []
    sums = [np.stack([np.bincount(clusters, part[:, k]) for k in range(2)], axis=1) for part in columns]
    for _ in range(3000):
        drawn = random.integers(count, size=count // 4)
        values = [part[drawn].sum(axis=0) for part in sums]
        differences.append(values[0][0] / values[0][1] - values[1][0] / values[1][1])
    forecast_error = error * math.sqrt(count / (count // 4))
    print(
        f"{file}: {count // 4} of {count} recordings, forecast {forecast_error:.4f}, drawn {np.std(differences):.4f}"
    )
    assert np.std(differences) == pytest.approx(forecast_error, rel=0.06)


def test_rows_needed_give_the_power_they_promise(pair):
    """As many rows as forecast for the true difference find it in about 80 % of draws."""
    rows = pair["CREMAD_ER_classification_test"]
    one, other = (influence([part], "strict") for part in rows)
    difference = abs(one.value - other.value)
    error = standard_error(one.delta - other.delta)
    needed = rows_needed(len(rows[0]), error, difference)
    points = [np.array([row.reading.parsed == row.quantities["label"] for row in part], dtype=float) for part in rows]
    paired = points[0] - points[1]  # one row a recording: a plain mean
    assert len({row.row.cluster for row in rows[0]}) == len(rows[0])
    random = np.random.default_rng(1)
    found = 0
    for _ in range(2000):
        drawn = paired[random.integers(len(paired), size=needed)]
        found += abs(drawn.mean()) / (drawn.std(ddof=1) / math.sqrt(needed)) > NormalDist().inv_cdf(0.975)
    print(f"difference {difference:.3f}: {needed} rows forecast for 80 %, found in {found / 2000:.1%} of draws")
    assert 0.75 < found / 2000 < 0.87


def test_repeats_of_a_recording_add_no_power(tmp_path):
    errors = {}
    for repeats in (1, 10):
        folders = [
            system(tmp_path / f"{side}{repeats}", 0.8 - 0.3 * side, n=40 * repeats, repeats=repeats, seed=side)
            for side in range(2)
        ]
        errors[repeats] = errors_of(scored_systems(folders))["SGC"]["errors"][0]
    assert errors[10] == pytest.approx(errors[1], rel=1e-9)


def test_one_recording_forecasts_nothing(tmp_path, capsys):
    folders = [str(system(tmp_path / name, 0.8, n=12, repeats=12)) for name in "ab"]
    assert main(["eval", "power", *folders]) == 0
    assert "no task has two recordings" in capsys.readouterr().out


def test_systems_that_never_differ_forecast_nothing(tmp_path, capsys):
    """Their difference has no variance here, which does not mean that no rows are needed."""
    folders = [str(system(tmp_path / name, 0.8)) for name in "ab"]
    assert main(["eval", "power", *folders]) == 0
    assert "no task has two recordings" in capsys.readouterr().out
    assert main(["eval", "compare", *folders, "--resamples", "50"]) == 0
    assert "detectable unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--power", "0.01"], "give more than the level 0.05"),
        (["--level", "0.9"], "power 0.8: give more than the level 0.9"),
        (["--difference", "1e-300"], "difference 1e-300: give 1e-06 or more"),
    ],
)
def test_a_question_without_an_answer_is_refused(options, said, capsys):
    assert main(["eval", "power", *options]) == 2 and said in capsys.readouterr().err


def test_comparison_says_what_it_could_have_found(tmp_path):
    folders = [system(tmp_path / "a", 0.8), system(tmp_path / "b", 0.7, seed=1)]
    found = compare(folders, resamples=4000)["pairs"][0]["tasks"]["SGC"]
    error = errors_of(scored_systems(folders))["SGC"]["errors"][0]
    assert found["detectable"] == pytest.approx(detectable(error), rel=0.1)


def test_command(tmp_path, capsys):
    folders = [str(system(tmp_path / "a", 0.8)), str(system(tmp_path / "b", 0.7, seed=1))]
    out = tmp_path / "errors.json"
    assert main(["eval", "power", *folders, "--difference", "0.1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    (line,) = [line.split() for line in said.split("\n") if line.startswith("SGC")]
    made = forecast(read_errors(out)["tasks"], 0.1)["SGC"]
    assert line[:3] == ["SGC", "accuracy", "120"] and line[5] == f"{made['rows_needed']:,}"
    assert main(["eval", "power", "--errors", str(out), "--difference", "0.1"]) == 0
    assert "\n".join(said.split("\n")[:4]) in capsys.readouterr().out
    assert main(["eval", "power"]) == 0 and "10 systems" in capsys.readouterr().out
    assert main(["eval", "power", folders[0]]) == 2 and "needs two systems" in capsys.readouterr().err
    assert main(["eval", "power", "--difference", "0"]) == 2
    out.write_text('{"protocol": "strict", "systems": [1], "tasks": {"ASR": {"primary": {}}}}')  # as scores.json
    assert main(["eval", "power", "--errors", str(out)]) == 2 and "not a file of" in capsys.readouterr().err
    out.write_text("{}")
    assert main(["eval", "power", "--errors", str(out)]) == 2 and "not a file of" in capsys.readouterr().err


def test_shipped_errors_are_made_by_the_command():
    """Two of the ten released systems: their error stands among the shipped ones."""
    folders = [shared_fixture("official_outputs") / name for name in ("Mini-Omni", "Llama-Omni")]
    shipped = shipped_errors()
    assert len(shipped["systems"]) == 10
    made = errors_of(scored_systems(folders))
    for task in ("SGC", "PP", "EE"):
        assert made[task]["rows"] == shipped["tasks"][task]["rows"]
        nearest = min(shipped["tasks"][task]["errors"], key=lambda error: abs(error - made[task]["errors"][0]))
        assert nearest == pytest.approx(made[task]["errors"][0], rel=1e-9)
    assert json.dumps(shipped).count("null") == 0
