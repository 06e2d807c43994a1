"""A result appears once and stays; what is put aside is not lost; the mirror says what the files say."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from stbp_milp.batch.folder import Folder
from stbp_milp.batch.mirror import FILE, Mirror, in_file
from stbp_milp.errors import InputError
from stbp_milp.results import read_result
from tests.batch.some_results import record, result, task


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "batch").prepared()


def test_what_is_kept_is_read_again(folder: Folder) -> None:
    bounds = {"lower": "-inf", "upper": 2.5}
    known = record(0.5, verdict="unknown", margin=bounds, certificate=None, counterexample=None)
    one = result(task(folder.path), "unknown", margin={"lower": -math.inf, "upper": 2.5}, record=known)
    folder.keep(one)
    again = folder.result(one.key)
    assert again is not None
    assert again.bounds() == (-math.inf, 2.5)
    assert replace(again, margin=one.margin) == one


def test_the_first_of_many_writers_wins(folder: Folder) -> None:
    writers = [result(task(folder.path), worker=f"worker {number}") for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        kept = list(pool.map(folder.keep, writers))
    assert len({one.worker for one in kept}) == 1
    assert folder.keep(writers[7]) == kept[0]
    assert folder.keys() == {writers[0].key}
    assert [path.name for path in (folder.path / "records").iterdir()] == [f"{writers[0].key}.json"]


def test_evidence_of_the_loser_goes(folder: Folder) -> None:
    names = {}
    for attempt in ("first", "second"):
        names[attempt] = {"clip": f"evidence/{attempt}.npz"}
        (folder.path / names[attempt]["clip"]).touch()
        folder.keep(result(task(folder.path), "falsified", evidence=names[attempt]))
    assert [path.name for path in (folder.path / "evidence").iterdir()] == ["first.npz"]


def test_results_are_put_aside_with_those_of_parts_to_run_again(folder: Folder) -> None:
    whole = task(folder.path)
    words = ("verified", "timeout")
    parts = [result(whole.of_part(i, 2), word) for i, word in enumerate(words)]
    for one in parts:
        folder.keep(one)
    for round in (1, 2):
        folder.keep(result(whole, "timeout", parts=[one.key for one in parts]))
        folder.mark(whole.key, {})
        folder.put_aside(whole.key, ["timeout"])
        assert folder.keys() == set()
        assert folder.marks(whole.key) == []
        assert (folder.path / "retried" / f"{whole.key}-{round}.json").exists()
    assert folder.result(parts[0].key, is_part=True) is not None
    assert folder.result(parts[1].key, is_part=True) is None


def test_marks_count_attempts(folder: Folder) -> None:
    first, second = folder.mark("key", {"node": "a"}), folder.mark("key", {"node": "b"})
    assert folder.marks("key") == [first, second]
    first.unlink()
    assert folder.marks("key") == [second]
    folder.clear_marks("key")
    assert folder.marks("key") == []


def test_what_killed_writers_left_goes_when_the_batch_goes_on(folder: Folder) -> None:
    kept = folder.keep(result(task(folder.path)))
    old, fresh = (folder.path / "records" / f".{kept.key}.json.{name}.part" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.write_text("{")
    an_hour_ago = time.time() - 3600
    os.utime(old, (an_hour_ago, an_hour_ago))
    os.utime(folder.path / "records" / f"{kept.key}.json", (an_hour_ago, an_hour_ago))
    folder.prepared()
    assert (old.exists(), fresh.exists()) == (False, True)
    assert folder.result(kept.key) == kept


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"schema": 2}'):
        (tmp_path / "one.json").write_text(content)
        with pytest.raises(InputError, match=r"one\.json"):
            read_result(tmp_path / "one.json")


def test_the_mirror_is_made_again_from_the_files(folder: Folder) -> None:
    tasks = [replace(task(folder.path, question=name), expected="verified") for name in "abc"]
    with Mirror(folder) as mirror:
        mirror.begin(tasks)
        bounds = {"lower": 0.5, "upper": 2.0}
        known = record(0.5, margin=bounds, counterexample=None)
        mirror.add([folder.keep(result(tasks[0], margin=bounds, record=known))])
        folder.keep(result(tasks[1], "falsified"))  # the driver died before it heard of it
    query = "SELECT position, word, lower, upper, set_text FROM instances LEFT JOIN results USING (key) ORDER BY 1"
    assert in_file(folder.path / FILE, query)[1] == (1, None, None, None, None)
    with Mirror(folder) as mirror:
        mirror.begin(tasks)
        assert mirror.words() == {tasks[0].key: ("verified", False), tasks[1].key: ("falsified", True)}
    rows = in_file(folder.path / FILE, query)
    assert rows[0] == (0, "verified", 0.5, 2.0, "window:2")
    assert [row[1] for row in rows] == ["verified", "falsified", None]
    (folder.path / FILE).unlink()
    with Mirror(folder) as mirror:
        mirror.begin(tasks)
    assert in_file(folder.path / FILE, query) == rows


def test_the_mirror_forgets_what_is_no_longer_there(folder: Folder) -> None:
    one = task(folder.path)
    folder.keep(result(one))
    with Mirror(folder) as mirror:
        mirror.begin([one])
        folder.put_aside(one.key, ["verified"])
    with Mirror(folder) as mirror:
        mirror.begin([one])
        assert mirror.words() == {}


def test_a_damaged_mirror_is_named(folder: Folder) -> None:
    (folder.path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=r"batch\.sqlite"):
        Mirror(folder)
