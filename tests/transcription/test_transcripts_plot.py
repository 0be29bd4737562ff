"""`python -m benchmarks transcripts_plot`: what was measured is where it is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import transcripts_plot


def rates(**programs: float) -> transcripts_plot.Rates:
    """Rates of programs on two sources; on the second they are twice as high."""
    return {
        name.replace("_", " "): {
            source: {"clips": 3, "wer": times * rate, "interval": [times * rate - 0.1, times * rate + 0.2]}
            for source, times in (("readers", 1), ("talkers", 2))
        }
        for name, rate in programs.items()
    }


def test_a_point_lies_at_its_rate_within_its_interval_and_the_target_at_a_multiple():
    whisper = {transcripts_plot.WHISPER: rates(whisper=0.1)["whisper"]}
    figure = transcripts_plot.draw(
        {"old": rates(LLaSO=0.4, best_path=0.5), "new": rates(LLaSO=0.3) | whisper}, {"readers": 2.5}
    )
    readers, talkers = figure.axes
    assert readers.get_title() == "readers, 3 clips" and talkers.get_title() == "talkers, 3 clips"
    assert [label.get_text() for label in readers.get_yticklabels()] == ["old", "new"]
    for panel, times in ((readers, 1), (talkers, 2)):
        llaso, best_path = (container.lines for container in panel.containers)
        assert llaso[0].get_xdata() == pytest.approx([times * 0.4, times * 0.3])
        assert list(llaso[0].get_ydata()) == [0, 1]
        ends = [segment[:, 0].tolist() for segment in llaso[2][0].get_segments()]
        assert ends == [pytest.approx([times * rate - 0.1, times * rate + 0.2]) for rate in (0.4, 0.3)]
        assert best_path[0].get_xdata() == pytest.approx([times * 0.5])
        down = {line.get_label(): line.get_xdata()[0] for line in panel.lines if len(set(line.get_xdata())) == 1}
        assert down[transcripts_plot.WHISPER] == pytest.approx(times * 0.1)
        assert down.get("target") == (pytest.approx(0.25) if panel is readers else None)
    assert readers.get_ylim()[0] > readers.get_ylim()[1]  # the first model is on top


def test_the_command_writes_a_picture_and_refuses_folders_that_cannot_be_drawn(tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/transcripts.json").write_text(json.dumps({"rates": rates(LLaSO=0.4)}))
    picture = tmp_path / "new/rates.png"
    transcripts_plot.main([f"first={tmp_path / 'one'}", "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"rates\.png exists. .*--overwrite"):
        transcripts_plot.main([f"first={tmp_path / 'one'}", "--out", str(picture)])
    picture = tmp_path / "other.png"
    with pytest.raises(ValueError, match=r"none.transcripts\.json is missing"):
        transcripts_plot.main([f"first={tmp_path / 'none'}", "--out", str(picture)])
    with pytest.raises(ValueError, match="two folders have the same name"):
        transcripts_plot.main([*[f"first={tmp_path / 'one'}"] * 2, "--out", str(picture)])
    with pytest.raises(SystemExit):
        transcripts_plot.main([f"first={tmp_path / 'one'}", "--target", "readers=x", "--out", str(picture)])
    for content in ("{", "[]", "{}", '{"rates": {}}', '{"rates": {"LLaSO": {"talkers": 1}}}'):
        (tmp_path / "transcripts.json").write_text(content)
        with pytest.raises(ValueError, match=r"transcripts\.json has no rates; measure again"):
            transcripts_plot.main([f"bad={tmp_path}", "--out", str(picture)])
    with pytest.raises(ValueError, match="a target needs Whisper's own decoder"):
        transcripts_plot.main([f"first={tmp_path / 'one'}", "--target", "readers=2", "--out", str(picture)])
    with pytest.raises(ValueError, match="a target is for singers, but the sources are readers, talkers"):
        transcripts_plot.draw({"old": rates(LLaSO=0.4)}, {"singers": 2})
    other = rates(LLaSO=0.4)
    other["LLaSO"]["talkers"]["clips"] = 4
    with pytest.raises(ValueError, match="new and old were not measured on the same clips"):
        transcripts_plot.draw({"old": rates(LLaSO=0.4), "new": other})
