"""Reading a run's folder: order, names, what was killed, what is missing or broken.

The example: a batch lists clip-b before clip-a, and clip-c has no result yet.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from stbp_milp.errors import InputError
from stbp_milp.report.html.run import read_run
from tests.report.made_runs import WORDS, Made, digest, record, result, write_batch, write_records

EXAMPLE = (
    Made("clip-b", "falsified", 0.5),
    Made("clip-a", "timeout", 60.2),
    Made("clip-d", "verified", 3.0, 0.25, 7.0),
)


def _key(specification: str) -> str:
    return digest(f"video {specification}")


def test_a_batch_in_the_order_of_its_list(tmp_path: Path) -> None:
    run = read_run(write_batch(tmp_path / "run", EXAMPLE, pending=["clip-c"]))
    assert [each.name for each in run.instances] == ["video / clip-b", "video / clip-a", "video / clip-d"]
    assert [each.word for each in run.instances] == ["falsified", "timeout", "verified"]
    assert run.pending == ("video / clip-c",)
    assert run.broken == ()
    assert run.commands[0] == "run_batch instances.csv"
    assert run.made_by["node"] == ("node-a",)
    falsified, killed, verified = run.instances
    assert falsified.evidence["clip"].is_file()
    assert (falsified.lower, falsified.upper) == (-math.inf, -1.0)
    assert (verified.lower, verified.upper, verified.seconds, verified.memory) == (0.25, 7.0, 3.0, 300_000_000)
    assert verified.question["set"] == "window:2"
    assert killed.question == {"model": "video"}
    assert killed.details["ended_by"] == "timeout"


def test_a_killed_instance_is_asked_for_in_its_specification(tmp_path: Path) -> None:
    folder = write_batch(tmp_path / "run", EXAMPLE)
    (folder / "specs").mkdir()
    (folder / "specs" / "clip-a.json").write_text('{"schema": 1, "set": "patch:3x3@2", "epsilon": 0.5}')
    assert read_run(folder).instances[1].question == {"model": "video", "set": "patch:3x3@2", "epsilon": "0.5"}


@pytest.mark.parametrize("spoil", ["remove", "garbage"])
def test_a_batch_without_its_mirror(tmp_path: Path, spoil: str) -> None:
    folder = write_batch(tmp_path / "run", EXAMPLE, pending=["clip-c"])
    (folder / "batch.sqlite").unlink()
    if spoil == "garbage":
        (folder / "batch.sqlite").write_text("no database")
    run = read_run(folder)
    assert sorted(each.name for each in run.instances) == ["video / clip-a", "video / clip-b", "video / clip-d"]
    assert run.pending == ()


def test_records_of_single_runs(tmp_path: Path) -> None:
    run = read_run(write_records(tmp_path / "run", [Made("moving-left", "falsified"), Made("second", "unknown")]))
    assert [each.name for each in run.instances] == ["moving left", "second"]
    assert run.instances[0].evidence["clip"].is_file()
    assert run.instances[0].details["attacked"]["says"] == "class 1, score 2"
    assert run.instances[1].details["reason"].startswith("out of time")


def test_a_record_without_a_label_is_called_by_its_question(tmp_path: Path) -> None:
    (tmp_path / "20261124T120000000Z-0123abcd.json").write_text(json.dumps(record(Made("clip-a"))))
    assert read_run(tmp_path).instances[0].name == "video, clips.npz:clip-a"


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_read(tmp_path: Path, word: str) -> None:
    assert read_run(write_batch(tmp_path / "run", [Made("clip", word)])).instances[0].word == word


@pytest.mark.parametrize(
    ("spoiled", "problem"),
    [
        ("{", "cannot be read"),
        ("[]", "schema None"),
        ({"schema": 7}, "schema 7"),
        ({"word": "maybe"}, "its verdict is 'maybe'"),
        ({"seconds": "long"}, "could not convert"),
        ({"seconds": float("nan")}, "it took nan seconds"),
        ({"margin": {"lower": "nan", "upper": "inf"}}, "not a number"),
        ({"instance": None}, "not a whole result"),
        ({"node": ...}, "missing or unknown fields node"),
        ({"more": 1}, "missing or unknown fields more"),
    ],
)
def test_a_broken_file_is_named_and_left_out(tmp_path: Path, spoiled: object, problem: str) -> None:
    folder = write_batch(tmp_path / "run", EXAMPLE)
    path = folder / "records" / f"{_key('clip-a')}.json"
    if isinstance(spoiled, dict):
        changed = result(EXAMPLE[1]) | spoiled
        spoiled = json.dumps({name: value for name, value in changed.items() if value is not ...})
    path.write_text(str(spoiled))
    run = read_run(folder)
    assert len(run.instances) == 2
    (sentence,) = run.broken
    assert path.name in sentence
    assert problem in sentence
    assert "\n" not in sentence
    assert run.pending == ()  # it has a result, if a broken one


def test_evidence_stays_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.npz").write_bytes(b"")
    folder = write_batch(tmp_path / "run", EXAMPLE)
    path = folder / "records" / f"{_key('clip-b')}.json"
    path.write_text(json.dumps(result(EXAMPLE[0], {"clip": "../secret.npz", "picture": "evidence/gone.png"})))
    assert read_run(folder).instances[0].evidence == {}


def test_a_batch_without_results_is_empty(tmp_path: Path) -> None:
    run = read_run(write_batch(tmp_path / "run", [], pending=["clip-a", "clip-b"]))
    assert run.instances == ()
    assert run.pending == ("video / clip-a", "video / clip-b")
    assert run.commands == ("run_batch instances.csv",)


def test_parts_are_not_shown_as_wholes(tmp_path: Path) -> None:
    folder = write_batch(tmp_path / "run", EXAMPLE)
    (folder / "records").rename(folder / "parts")
    with pytest.raises(InputError, match="none of its 3 files"):
        read_run(folder / "parts")


def test_folders_without_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no results"):
        read_run(tmp_path)
    (tmp_path / "note.json").write_text("{}")
    with pytest.raises(InputError, match=r"none of its 1 files can be read: 'note.json' has schema None"):
        read_run(tmp_path)
