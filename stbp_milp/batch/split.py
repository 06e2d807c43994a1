"""One instance over many workers: its set in parts, each a task of its own, and the whole's result from theirs.

A counterexample of a part is one of the whole. The parts' certificates make the whole's: the parts cover the set, so
the least of their bounds is a bound of the whole. Parts that are not heard of prove nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from stbp_milp.batch.task import Task
from stbp_milp.errors import SoundnessError
from stbp_milp.plain import digest_of
from stbp_milp.results import InstanceResult

_LEAVES_KEPT = 1_000
_WORST_FIRST = ("error", "memout", "timeout", "unknown")


def whole_of(task: Task, parts: Sequence[InstanceResult], count: int) -> InstanceResult:
    """The result of an instance from those of its parts, some of which may be missing where one is falsified.

    Args:
        task: the whole's.
        parts: in any order.
        count: how many parts there are.

    Raises:
        SoundnessError: the parts are not those of one question.
    """
    falsified = [part for part in parts if part.word == "falsified"]
    missing = {*range(count)} - {_index(part) for part in parts}
    if any(part.part != {"index": _index(part), "of": count, "whole": task.key} for part in parts):
        raise SoundnessError(f"results of parts of instance {task.key} are those of another instance")
    if missing and not falsified:
        raise SoundnessError(f"parts {sorted(missing)} of instance {task.key} are missing from its result")
    if falsified:
        return _combined(task, parts, count, falsified[0], _of_whole(falsified[0].record, {}))
    open_parts = [part for word in _WORST_FIRST for part in parts if part.word == word]
    if open_parts:
        return _combined(task, parts, count, open_parts[0], None)
    ordered = sorted(parts, key=_index)
    return _combined(task, parts, count, ordered[0], _of_whole(ordered[0].record, _merged(ordered)))


def _combined(
    task: Task, parts: Sequence[InstanceResult], count: int, decisive: InstanceResult, record: dict[str, Any] | None
) -> InstanceResult:
    """What the parts have in common, and the word of the decisive one."""
    begins = [datetime.fromisoformat(part.began) for part in parts]
    ends = [began + timedelta(seconds=part.seconds) for began, part in zip(begins, parts, strict=True)]
    lower = min(part.bounds()[0] for part in parts) if len(parts) == count else float("-inf")
    verified = sum(part.word == "verified" for part in parts)
    reason = None
    if decisive.reason is not None:
        reason = f"{verified} of {count} parts are verified; part {_index(decisive)}: {decisive.reason}"
    return InstanceResult(
        key=task.key,
        word=decisive.word,
        reason=reason,
        instance=dict(task.listed),
        expected=task.expected,
        margin={"lower": lower, "upper": min(part.bounds()[1] for part in parts)},
        decided_by=decisive.decided_by,
        stage_seconds=_sum(part.stage_seconds for part in parts),
        seconds=round((max(ends) - min(begins)).total_seconds(), 4),
        memory_bytes=max(part.memory_bytes for part in parts),
        limits=decisive.limits,
        configuration=decisive.configuration,
        attempt=max(part.attempt for part in parts),
        began=min(begins).isoformat(timespec="milliseconds"),
        node=decisive.node,
        worker=decisive.worker,
        ended_by="parts",
        output=decisive.output,
        evidence=decisive.evidence,
        parts=[part.key for part in sorted(parts, key=_index)],
        versions=decisive.versions,
        record=record,
    )


def _merged(parts: Sequence[InstanceResult]) -> dict[str, Any]:
    """The fields of a record that speak of the whole, all parts being verified."""
    records = [part.record for part in parts]
    proofs = [record["certificate"] for record in records if record is not None and record["certificate"]]
    if len(proofs) != len(parts):
        raise SoundnessError("a part is verified without a certificate")
    questions = {digest_of(_question(record)) for record in records if record is not None}
    if len(questions) != 1:
        raise SoundnessError("the parts answer different questions")
    if any(not float(proof["lower"]) > float(proof["slack"]) for proof in proofs):
        raise SoundnessError("the bound of a verified part does not exceed its rounding slack")
    weakest = min(proofs, key=lambda proof: float(proof["lower"]))
    certificate = {
        "lower": weakest["lower"],
        "slack": weakest["slack"],
        "closed": _sum(proof["closed"] for proof in proofs),
        "leaves": [leaf for proof in proofs for leaf in proof["leaves"]][:_LEAVES_KEPT],
        "parts": [
            {"key": part.key, "lower": proof["lower"], "slack": proof["slack"]}
            for part, proof in zip(parts, proofs, strict=True)
        ],
    }
    upper = min(part.bounds()[1] for part in parts)
    return {
        "certificate": certificate,
        "margin": {"lower": weakest["lower"], "upper": upper},
        "seconds": sum(part.record["seconds"] for part in parts if part.record is not None),
        "stage_seconds": _sum(part.stage_seconds for part in parts),
        "counts": _sum(record["counts"] for record in records if record is not None),
    }


def _of_whole(record: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """A part's record as one about the whole set."""
    if record is None:
        return None
    whole = {**record, **fields, "set": {k: v for k, v in record["set"].items() if k != "part"}}
    question = _question(whole)
    return whole | {"key": digest_of(question)}


def _question(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `records.query_key` hashes, of the whole set."""
    return {
        "model": record["model"]["digest"],
        "clip": record["clip"]["sha256"],
        "set": [record["set"][name] for name in ("text", "epsilon", "domain")],
        "property": record["property"]["sha256"],
        "configuration": record["configuration"],
    }


def _index(part: InstanceResult) -> int:
    assert part.part is not None
    index: int = part.part["index"]
    return index


def _sum(tables: Any) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            total[name] = total.get(name, 0) + value
    return total
