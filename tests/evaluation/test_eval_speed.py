"""Speed beside quality: what is timed, what is kept apart, and what the report and the comparison say of it."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.tiny_eval import FAMILIES, chat_server, default_rows, write_corpus

from eval_suite.backends import _generated
from eval_suite.charts import scatter_svg
from eval_suite.compare import compare
from eval_suite.endpoint import ChatEndpoint, RequestRefusedError
from eval_suite.generate import generate
from eval_suite.report import write_report
from eval_suite.score import score_rows
from eval_suite.speed import compare_speed, figures, read_speed, summarize_speed


def took(seconds: float, *, run: str = "0", warm_up: bool = False, tokens: int | None = 10, first: float | None = 0.5):
    return {"run": run, "seconds": seconds, "latency": 2 * seconds, "first_token": first, "tokens": tokens,
            "warm_up": warm_up, "peak_memory": int(seconds * 1000)}  # fmt: skip


def test_figures_by_hand():
    """Two rows of 3 s and 5 s of audio in 1 s and 3 s: twice real time, 5 tokens a second."""
    made = figures([took(1.0), took(3.0, first=None)], [3.0, 5.0])
    assert (made["rows"], made["seconds"], made["audio_seconds"], made["rtfx"]) == (2, 4, 8, 2)
    assert made["tokens_per_second"] == 5 and made["first_token"] == {"median": 0.5, "p95": 0.5}
    assert made["latency"]["median"] == 4
    unknown = figures([took(1.0, tokens=None), took(1.0)], [0.0, 0.0])
    assert unknown["rtfx"] is None and unknown["tokens_per_second"] is None


def test_warm_up_and_machines_are_apart():
    runs = {"0": {"device": "A"}, "1": {"device": "A"}, "2": {"device": "B"}}
    times = {
        "a": took(9.0, warm_up=True),
        "b": took(1.0),
        "c": took(2.0, run="1"),
        "d": took(4.0, run="2", warm_up=True),
    }
    made = summarize_speed(times, dict.fromkeys("abcd", 6.0), runs)
    one, other = made["runs"]
    assert (one["device"], one["rows"], one["rtfx"], one["peak_memory"]) == ("A", 2, 12 / 3, 9000)
    assert one["warm_up"] == {"rows": 1, "seconds": 9.0, "counted": False}
    assert (other["device"], other["rtfx"], other["warm_up"]["counted"]) == ("B", 6 / 4, True)
    assert set(made["rows"]) == set("abcd") and "run" not in made["rows"]["a"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), default_rows())


def test_a_model_is_timed(corpus, tmp_path):
    import torch

    torch.manual_seed(0)
    FAMILIES["qwen2_audio"](tmp_path / "model")
    out = generate(tmp_path / "model", corpus, tmp_path / "out", batch_size=4, max_new_tokens=5, progress=False)
    made = read_speed(out)
    (run,) = made["runs"]
    assert run["precision"] == "float32" and run["batch_size"] == 4 and run["device"] and run["peak_memory"] > 0
    assert run["rows"] == 8 and run["warm_up"]["rows"] == 4  # three batches, the first of them the warm-up
    assert run["audio_seconds"] < sum(0.2 + 0.07 * number for number in range(12))
    assert run["rtfx"] == pytest.approx(run["audio_seconds"] / run["seconds"])
    assert len(made["rows"]) == 12
    for time in made["rows"].values():
        assert 0 < time["first_token"] <= time["latency"] and 1 <= time["tokens"] <= 5
        assert time["latency"] <= 4 * time["seconds"] * 1.000001  # the batch's share counts its preparation too
    before = (out / "speed.json").read_bytes()
    generate(tmp_path / "model", corpus, out, batch_size=4, max_new_tokens=5, progress=False)
    assert (out / "speed.json").read_bytes() == before  # nothing was asked, so nothing was timed
    scored = score_rows(out, resamples=20)
    assert scored.content["speed"] == made["runs"]
    assert all(one.row.speed == made["rows"][one.row.id] for rows in scored.rows.values() for one in rows)


def test_generated_tokens_end_where_the_padding_starts():
    assert [_generated(row, 0) for row in ([5, 6, 0, 0], [5, 0, 6, 0], [0, 0], [])] == [2, 3, 0, 0]


@contextmanager
def streaming_server(events: list[str]):
    """A server that sends these events, whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write("".join(f"data: {event}\n\n" for event in events).encode())

        def log_message(self, *arguments) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield ChatEndpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", retries=0)
    finally:
        server.shutdown()
        server.server_close()


def event(text: str | None = None, **more) -> str:
    return json.dumps({"choices": [{"delta": {} if text is None else {"content": text}}]} | more)


def test_a_streamed_answer_has_a_first_token_and_its_tokens():
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 7}})
    with streaming_server([event(), event("Good "), event("day\u2028."), usage, "[DONE]"]) as endpoint:
        made = endpoint.ask([], stream=True)
    assert made.text == "Good day\u2028." and made.tokens == 7
    assert made.first_token is not None and 0 < made.first_token <= made.seconds


def test_a_stream_that_breaks_off_is_no_answer():
    with streaming_server([event("Good ")]) as endpoint, pytest.raises(ConnectionError, match="IncompleteRead"):
        endpoint.ask([], stream=True)
    with streaming_server(["{"]) as endpoint, pytest.raises(RequestRefusedError, match="not an event"):
        endpoint.ask([], stream=True)
    broken = json.dumps({"error": {"message": "out of memory"}})
    with (
        streaming_server([event("Good "), broken]) as endpoint,
        pytest.raises(RequestRefusedError, match="out of mem"),
    ):
        endpoint.ask([], stream=True)


def test_endpoints_are_timed_also_if_they_do_not_stream(corpus, tmp_path):
    def answer(body: dict) -> tuple[int, object]:
        if body.get("stream"):
            return 400, {"error": {"message": "stream is not supported"}}
        return 200, {"choices": [{"message": {"content": "fine"}}], "usage": {"completion_tokens": 3}}

    with chat_server(answer) as (url, received):
        out = generate("m", corpus, tmp_path / "out", endpoint=url, batch_size=6, progress=False)
    assert len(received) == 24 and sum("stream" in one["body"] for one in received) == 12
    made = read_speed(out)
    assert made["runs"][0]["device"] == "a server" and made["runs"][0]["first_token"] is None
    assert all(time["tokens"] == 3 and time["latency"] > 0 for time in made["rows"].values())


def test_report_and_comparison_state_both(corpus, tmp_path):
    def slow(requests):
        return ["male"] * len(requests)

    def quick(requests):
        return [request.row.reference for request in requests]

    folders = [generate(one, corpus, tmp_path / one.__name__, batch_size=3, progress=False) for one in (slow, quick)]
    for folder, rtfx in zip(folders, (12.5, 50.0), strict=True):
        made = json.loads((folder / "speed.json").read_text())
        made["runs"][0] |= {"rtfx": rtfx, "device": "H100", "precision": "bfloat16"}
        (folder / "speed.json").write_text(json.dumps(made))
    scored = [score_rows(folder, resamples=20) for folder in folders]
    page = (write_report(scored, tmp_path / "report") / "index.html").read_text("utf-8")
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(r"slow\s+H100, bfloat16, batch 3\s+12\.5", text) and 'class="scatter"' in page
    assert "| quick | H100, bfloat16, batch 3 | 50.0 |" in (tmp_path / "report" / "report.md").read_text("utf-8")
    found = compare(scored, resamples=20)["pairs"][0]["speed"]
    assert found["ratio"] == 0.25 and found["same_machine"]
    assert found["verdict"] == "quick answers 4.00 times as fast as slow, both on H100, bfloat16, batch 3"
    other = [{**scored[1].content["speed"][0], "batch_size": 8}]
    said = compare_speed(scored[0].content["speed"], other, ("slow", "quick"))
    assert (
        not said["same_machine"] and "but on H100, bfloat16, batch 3 and on H100, bfloat16, batch 8" in said["verdict"]
    )
    assert compare_speed([], other, ("a", "b")) is None


def test_the_picture_puts_fast_to_the_right_and_good_above():
    drawing = scatter_svg([(1.0, 0.2, (0.1, 0.3), "a<", 0), (100.0, 0.9, (None, None), "b", 1)], ("speed", "skill"))
    (x1, y1), (x2, y2) = [
        map(float, dot) for dot in re.findall(r'class="dot[^>]*cx="([\d.]+)" cy="([\d.]+)"', drawing)
    ]
    assert x1 < x2 and y1 > y2 and drawing.count("whisker") == 1 and "a&lt;" in drawing
