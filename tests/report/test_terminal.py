"""The live line and the tables: what they say, and that they keep silent where there is no terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from stbp_milp.query import Query
from stbp_milp.report.terminal import (
    BenchRow,
    LiveLine,
    bench_table,
    explanation,
    progress_text,
    question,
    summary,
    verdict_line,
)
from stbp_milp.verdict import Progress
from tests.example_runs import CLEAN_OUTPUTS, falsified, query, unknown, verified, write_model

PROGRESS = Progress("relu search", -0.25, 0.75, 12, 3456, 7.5)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Query:
    return query(write_model(tmp_path_factory.mktemp("model") / "example.onnx"))


def _printed(part: RenderableType, width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(part)
    return stream.getvalue()


def test_progress_in_a_line() -> None:
    text = progress_text(PROGRESS, 60, since=0.25)
    for part in ("relu search", "proved -0.25", "seen 0.75", "12 parts", "3,456 bounded", "7.8/60 s"):
        assert part in text
    assert len(text) < 100
    assert "proved -inf, seen inf" in progress_text(Progress("attack", float("-inf"), float("inf"), 1, 0, 0), 60)


def test_live_line_is_silent_without_a_terminal() -> None:
    stream = io.StringIO()
    with LiveLine(Console(file=stream), 60) as live:
        live.update(PROGRESS)
    assert stream.getvalue() == ""
    assert live.latest == PROGRESS


def test_live_line_on_a_terminal_leaves_nothing_behind() -> None:
    stream = io.StringIO()
    with LiveLine(Console(file=stream, force_terminal=True, width=40), 60) as live:
        live.update(PROGRESS)
    assert "relu search" in stream.getvalue()
    assert "3,456" not in stream.getvalue()  # a line stays a line
    assert stream.getvalue().endswith("\x1b[2K")  # the line is erased


def test_question(asked: Query) -> None:
    text = _printed(question(asked, CLEAN_OUTPUTS))
    assert "example, input 1x4x6x6" in text
    assert "class 0, score 43.2" in text
    assert "window:2, eps 0.25, domain [0, 1]" in text
    assert "class 0 stays first" in text


def test_summary(asked: Query) -> None:
    text = _printed(summary(asked, verified(), {"record": Path("results/[bold]a.json")}))
    for part in (
        "verified",
        "at least 0.4 (proved), at most 7.2 (observed)",
        "attack 0.50, milp 1.00",
        "1 programs",
        "results/[bold]a.json",
    ):
        assert part in text
    assert "2 pieces closed: 1 by union bound, 1 by milp" in text


def test_explanations(asked: Query) -> None:
    assert "the model says class 1, score 36 (found by attack)" in explanation(asked, falsified(asked))
    clean = explanation(asked, falsified(asked, "clean"))
    assert "clean clip itself" in clean
    assert "without any perturbation" in clean
    assert "out of time" in explanation(asked, unknown())


def test_verdict_line(asked: Query) -> None:
    assert verdict_line(falsified(asked)) == "falsified [-inf, -10.8] 0.10 s"


@pytest.mark.parametrize(
    ("expected", "got", "mark"),
    [
        ("verified", "verified", "ok"),
        ("unknown", "verified", "decided"),
        ("", "verified", "decided"),
        ("", "unknown", "open"),
        ("verified", "unknown", "open"),
        ("verified", "falsified", "WRONG"),
        ("falsified", "verified", "WRONG"),
    ],
)
def test_marks(asked: Query, expected: str, got: str, mark: str) -> None:
    outcome = {"verified": verified(), "falsified": falsified(asked), "unknown": unknown()}[got]
    row = BenchRow("moving left", "window:2", 4 / 255, expected, "net.onnx", outcome)
    assert row.mark == mark
    text = _printed(bench_table([row, BenchRow("later", "everywhere", 1.0, "verified")]), width=110)
    assert "moving left" in text
    assert "net.onnx" in text
    assert "4/255" in text
    assert "1 of 2 instances" in text
    assert (f"({mark})" in text) == (mark != "ok")
