"""The whole's result from those of its parts.

By hand: parts with bounds 0.5 and 0.2 make a whole with bound 0.2, its leaves
those of both.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from stbp_milp.batch.split import whole_of
from stbp_milp.batch.task import Part, Task
from stbp_milp.errors import InputError, SoundnessError
from stbp_milp.results import WORDS, InstanceResult, read_result
from tests.batch.some_results import record, result, task

WHOLE = task(Path("/batch"))


def asked(index: int, count: int = 2, phases: object = None) -> dict[str, Any]:
    """The set as the record of a part has it."""
    words = {"text": "window:2", "epsilon": 0.1, "domain": [0.0, 1.0], "part": [index, count]}
    return words | {"phases": phases} if phases else words


def part(index: int, word: str = "verified", count: int = 2, whole: Task = WHOLE, **changes: Any) -> InstanceResult:
    lower, decided = 0.5 - 0.3 * index, word in ("verified", "falsified")
    fields = {
        "margin": {"lower": lower, "upper": 3.0},
        "record": record(lower, set=asked(index, count)) if decided else None,
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
    assert certificate["lower"] == pytest.approx(0.2)
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
        [part(0), part(1, record=record(0.2, set=asked(1), certificate=None))],
        [part(0), part(1, record=record(0.2, set=asked(1), clip={"sha256": "another"}))],
        [part(0), part(1, record=record(-0.2, set=asked(1)))],
        [part(0), part(1, record=record(0.2, set=asked(0)))],
        [part(0), part(1, part={"index": 1, "whole": WHOLE.key})],
        [part(0), part(1, part=None)],
        [part(0), part(1), part(1, part={"index": 2, "of": 2, "whole": WHOLE.key})],
        [part(0), part(1, margin={"lower": 0.2, "upper": 0.1})],
    ],
    ids=[
        "missing",
        "twice",
        "of another number",
        "of another",
        "no record",
        "no proof",
        "another clip",
        "not positive",
        "a record of another part",
        "no number of parts",
        "no part",
        "one too many",
        "a smaller margin was seen",
    ],
)
def test_what_does_not_cover_the_whole_proves_nothing(parts: list[InstanceResult]) -> None:
    with pytest.raises(SoundnessError):
        whole_of(WHOLE, parts, 2)


NEURONS = ((3, 1), (5, 0))
CUT = WHOLE.subtrees(1, 2, NEURONS)
CUT_WORDS = {"index": 1, "of": 2, "whole": WHOLE.key}


def subtree(task: Task, phases: object = None, **changes: Any) -> InstanceResult:
    """A verified subtree of part 1, as its record has it; `phases`: that the record has instead."""
    assert task.part is not None
    own = [list(phase) for phase in task.part.phases] if phases is None else phases
    fields = {"margin": {"lower": 0.2, "upper": 3.0}, "record": record(0.2, set=asked(1, 2, own)), "reason": None}
    return replace(result(task, "verified"), **(fields | changes))


def test_subtrees_are_all_ways_to_fix_the_phases() -> None:
    assert [task.part and task.part.phases for task in CUT] == [
        ((3, 1, first), (5, 0, second)) for first, second in ((1, 1), (1, -1), (-1, 1), (-1, -1))
    ]
    assert len({task.key for task in CUT}) == 4
    assert WHOLE.subtrees(1, 2, ()) == [WHOLE.of_part(1, 2)]


@pytest.mark.parametrize("task", [WHOLE.of_part(0, 1), WHOLE.of_part(1, 2), *CUT])
def test_a_part_survives_its_result(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(result(task).to_json())
    assert Part.of_words(read_result(path).part) == task.part


def test_subtrees_make_the_wholes_certificate() -> None:
    subtrees = [subtree(task) for task in CUT]
    whole = whole_of(WHOLE, [*reversed(subtrees), part(0)], 2)
    assert whole.word == "verified"
    assert whole.record is not None
    assert whole.record["set"] == {"text": "window:2", "epsilon": 0.1, "domain": [0.0, 1.0]}
    entries = whole.record["certificate"]["parts"]
    assert [entry.get("phases") for entry in entries[:1]] == [None]
    assert sorted(entry["phases"] for entry in entries[1:]) == sorted(
        [list(phase) for phase in task.part.phases] for task in CUT if task.part
    )
    falsified = replace(subtrees[2], word="falsified")
    assert whole_of(WHOLE, [falsified], 2).word == "falsified"
    timeout = replace(subtrees[2], word="timeout", record=None, reason="slow")
    assert whole_of(WHOLE, [part(0), subtrees[0], subtrees[1], timeout, subtrees[3]], 2).word == "timeout"


@pytest.mark.parametrize(
    "subtrees",
    [
        [subtree(task) for task in CUT[:3]],
        [subtree(task) for task in (*CUT[:3], CUT[0])],
        [subtree(task) for task in (*CUT, CUT[0])],
        [subtree(task) for task in (*CUT[:3], WHOLE.subtrees(1, 2, ((3, 1), (5, 1)))[3])],
        [subtree(task) for task in (*CUT[:2], *WHOLE.subtrees(1, 2, NEURONS[:1]))],
        [subtree(task) for task in WHOLE.subtrees(1, 2, ((3, 1), (3, 1)))],
        [subtree(task) for task in (*CUT[:3], WHOLE.of_part(1, 2, ((3, 1, -1), (5, 0, 0))))],
        [subtree(WHOLE.of_part(1, 2), [[3, 1, 1]])],
        [*map(subtree, CUT[:3]), subtree(CUT[3], [[3, 1, -1], [5, 0, -1], [6, 0, 1]])],
        [*map(subtree, CUT[:3]), subtree(CUT[3], margin={"lower": 0.2, "upper": 0.1})],
        [*map(subtree, CUT[:3]), subtree(CUT[3], part={**CUT_WORDS, "phases": [[3, 1], [5, 0]]})],
        [*map(subtree, CUT[:3]), subtree(CUT[3], part={**CUT_WORDS, "phases": [[3, 1, -1], [5.5, 0, -1]]})],
        [*map(subtree, CUT[:3]), subtree(CUT[3], part={**CUT_WORDS, "phases": [[3, 1, -1], [5, 0, []]]})],
    ],
    ids=[
        "missing",
        "one twice, one missing",
        "one twice",
        "of another neuron",
        "of fewer neurons",
        "a neuron twice",
        "no phase",
        "a whole part verified in one phase only",
        "verified in more phases",
        "a smaller margin was seen",
        "phases without a sign",
        "a ReLU that is no number",
        "a list for a sign",
    ],
)
def test_what_subtrees_do_not_cover_is_not_proved(subtrees: list[InstanceResult]) -> None:
    with pytest.raises(SoundnessError):
        whole_of(WHOLE, [part(0), *subtrees], 2)


def test_subtrees_of_different_code_prove_nothing_but_a_counterexample_counts() -> None:
    other = {"stbp-milp": "another"}
    subtrees = [*map(subtree, CUT[:3]), subtree(CUT[3], versions=other)]
    with pytest.raises(InputError, match="one version on all nodes"):
        whole_of(WHOLE, [part(0), *subtrees], 2)
    assert whole_of(WHOLE, [part(0, versions=other), *map(subtree, CUT)], 2).word == "verified"  # no neuron is named
    assert whole_of(WHOLE, [subtrees[0], replace(subtrees[3], word="falsified")], 2).word == "falsified"
