"""The whole's result from those of its parts.

By hand: parts with bounds 0.5 (slack 0.01) and 0.2 (slack 0.02) make a whole with bound 0.2 and slack 0.02, its leaves
those of both.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from some_results import record, result, task

from stbp_milp.batch.split import whole_of
from stbp_milp.batch.task import Task
from stbp_milp.errors import SoundnessError
from stbp_milp.results import WORDS, InstanceResult

WHOLE = task(Path("/batch"))


def part(index: int, word: str = "verified", count: int = 2, whole: Task = WHOLE, **changes: Any) -> InstanceResult:
    lower, decided = 0.5 - 0.3 * index, word in ("verified", "falsified")
    fields = {
        "margin": {"lower": lower, "upper": 3.0},
        "record": record(lower, 0.01 * (index + 1)) if decided else None,
        "reason": None if decided else f"because of {index}",
    }
    return replace(result(whole.of_part(index, count), word), **(fields | changes))


def test_certificates_make_the_wholes() -> None:
    whole = whole_of(WHOLE, [part(1), part(0)], 2)
    assert whole.word == "verified"
    assert whole.bounds() == (pytest.approx(0.2), 3.0)
    assert whole.parts == [WHOLE.of_part(0, 2).key, WHOLE.of_part(1, 2).key]
    assert whole.part is None
    assert whole.record is not None
    certificate = whole.record["certificate"]
    assert (certificate["lower"], certificate["slack"]) == (pytest.approx(0.2), 0.02)
    assert certificate["closed"] == {"split": 4}
    assert [leaf["lower"] for leaf in certificate["leaves"]] == pytest.approx([0.5, 0.5, 0.2, 0.2])
    assert [entry["key"] for entry in certificate["parts"]] == whole.parts
    assert "part" not in whole.record["set"]
    assert whole.record["key"] != record(0.5)["key"]
    assert whole.record["counts"] == {"subproblems": 10}


@pytest.mark.parametrize("words", list(product(WORDS, WORDS)))
def test_the_word_of_the_whole(words: tuple[str, str]) -> None:
    whole = whole_of(WHOLE, [part(index, word) for index, word in enumerate(words)], 2)
    order = ("falsified", "error", "memout", "timeout", "unknown", "verified")
    assert whole.word == min(words, key=order.index)
    assert (whole.record is None) == (whole.word not in ("verified", "falsified"))
    assert (whole.reason is None) == (whole.word in ("verified", "falsified"))


def test_one_counterexample_is_enough() -> None:
    whole = whole_of(WHOLE, [part(1, "falsified", evidence={"clip": "evidence/x.npz"})], 2)
    assert whole.word == "falsified"
    assert whole.evidence == {"clip": "evidence/x.npz"}
    assert whole.bounds()[0] == float("-inf")


@pytest.mark.parametrize(
    "parts",
    [
        [part(0)],
        [part(0), part(0)],
        [part(0), part(1, count=3)],
        [part(0), part(1, whole=task(Path("/batch"), "b" * 64))],
        [part(0), part(1, record=None)],
        [part(0), part(1, record=record(0.2, certificate=None))],
        [part(0), part(1, record=record(0.2, clip={"sha256": "another"}))],
        [part(0), part(1, record=record(0.2, slack=0.3))],
    ],
    ids=[
        "missing",
        "twice",
        "of another number",
        "of another",
        "no record",
        "no proof",
        "another clip",
        "within slack",
    ],
)
def test_what_does_not_cover_the_whole_proves_nothing(parts: list[InstanceResult]) -> None:
    with pytest.raises(SoundnessError):
        whole_of(WHOLE, parts, 2)
