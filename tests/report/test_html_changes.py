"""Two runs against each other.

The example, by hand:      there                here
    clip-a                 verified 2 s         timeout 60 s     lost
    clip-b                 timeout 60 s         verified 5 s     gained
    clip-c                 verified 1 s         falsified 1 s    contradiction
    clip-d                 verified 1 s         verified 4 s     slower
    clip-e                 falsified 8 s        falsified 2 s    faster
    clip-f                 verified 0.1 s       verified 0.4 s   less than half a second: noise
    clip-g                 -                    verified         only here
    clip-h                 verified             -                only there
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from stbp_milp.report.html.changes import Changes, compare_runs, slowest_first
from stbp_milp.report.html.run import read_run
from tests.report.made_runs import Made, many, write_batch, write_records

THERE = [
    Made("clip-a", "verified", 2.0),
    Made("clip-b", "timeout", 60.0),
    Made("clip-c", "verified", 1.0),
    Made("clip-d", "verified", 1.0),
    Made("clip-e", "falsified", 8.0),
    Made("clip-f", "verified", 0.1),
    Made("clip-h", "verified", 1.0),
]
HERE = [
    Made("clip-a", "timeout", 60.0),
    Made("clip-b", "verified", 5.0),
    Made("clip-c", "falsified", 1.0),
    Made("clip-d", "verified", 4.0),
    Made("clip-e", "falsified", 2.0),
    Made("clip-f", "verified", 0.4),
    Made("clip-g", "verified", 1.0),
]


def _compared(folder: Path, here: list[Made], there: list[Made]) -> Changes:
    return compare_runs(read_run(write_batch(folder / "here", here)), read_run(write_batch(folder / "there", there)))


def test_the_example(tmp_path: Path) -> None:
    changes = _compared(tmp_path, HERE, THERE)
    assert list(changes.pairs) == [0, 1, 2, 3, 4, 5]
    assert [each.name for each in changes.only_there] == ["video / clip-h"]
    assert changes.kinds == {"files": 6}
    assert changes.transitions == {
        ("verified", "timeout"): 1,
        ("timeout", "verified"): 1,
        ("verified", "falsified"): 1,
        ("verified", "verified"): 2,
        ("falsified", "falsified"): 1,
    }
    assert [pair.here.name for pair in changes.contradictions] == ["video / clip-c"]
    assert [pair.pace for pair in changes.pairs.values()] == ["", "", "", "slower", "faster", ""]
    assert changes.pairs[3].ratio == pytest.approx(4)
    # Decided in both: c 1, d 4, e 1/4, f 4.
    assert changes.mean_ratio == pytest.approx(math.sqrt(2))


def test_a_run_against_itself(tmp_path: Path) -> None:
    run = read_run(write_batch(tmp_path / "run", many(60)))
    changes = compare_runs(run, run)
    assert len(changes.pairs) == 60
    assert all(pair.here is pair.there for pair in changes.pairs.values())
    assert not any(pair.changed or pair.pace for pair in changes.pairs.values())
    assert changes.only_there == ()
    assert changes.mean_ratio == pytest.approx(1)


def test_exchanging_the_runs_turns_everything_around(tmp_path: Path) -> None:
    forth = _compared(tmp_path / "forth", HERE, THERE)
    back = _compared(tmp_path / "back", THERE, HERE)
    assert back.transitions == {(now, was): count for (was, now), count in forth.transitions.items()}
    assert (forth.mean_ratio or 0) * (back.mean_ratio or 0) == pytest.approx(1)
    turned = {"slower": "faster", "faster": "slower", "": ""}
    assert [turned[pair.pace] for pair in forth.pairs.values()] == [pair.pace for pair in back.pairs.values()]


def test_single_runs_are_paired_by_question_and_by_name(tmp_path: Path) -> None:
    batch = read_run(write_batch(tmp_path / "batch", [Made("clip-a"), Made("clip-b", "timeout")]))
    single = read_run(write_records(tmp_path / "single", [Made("clip-b"), Made("clip-a")]))
    changes = compare_runs(batch, single)
    assert {i: (pair.there.name, pair.kind) for i, pair in changes.pairs.items()} == {0: ("clip a", "question")}
    retrained = [replace(made, set="everywhere") for made in (Made("clip-a"), Made("clip-b", "falsified"))]
    changes = compare_runs(single, read_run(write_records(tmp_path / "other", retrained)))
    assert changes.kinds == {"name": 2}
    assert changes.pairs[0].changed
    assert changes.contradictions == ()  # not the same question


def test_one_question_asked_twice_is_paired_in_order(tmp_path: Path) -> None:
    here = read_run(write_records(tmp_path / "here", [Made("clip-a", seconds=1.0), Made("clip-a", seconds=2.0)]))
    there = read_run(write_records(tmp_path / "there", [Made("clip-a", seconds=3.0), Made("clip-a", seconds=4.0)]))
    pairs = compare_runs(here, there).pairs
    assert [(pair.here.seconds, pair.there.seconds) for pair in pairs.values()] == [(1.0, 3.0), (2.0, 4.0)]


def test_runs_without_anything_in_common(tmp_path: Path) -> None:
    changes = _compared(tmp_path, [Made("clip-a")], [Made("clip-b"), Made("clip-c")])
    assert changes.pairs == {}
    assert len(changes.only_there) == 2
    assert changes.mean_ratio is None


def test_the_largest_change_comes_first(tmp_path: Path) -> None:
    there = [Made(f"clip-{i}", seconds=10.0) for i in range(4)]
    here = [replace(made, seconds=seconds) for made, seconds in zip(there, (20.0, 80.0, 40.0, 10.0), strict=True)]
    slower = slowest_first(list(_compared(tmp_path, here, there).pairs.values()), "slower")
    assert [pair.here.seconds for pair in slower] == [80.0, 40.0, 20.0]
