"""One instance on many workers: its set is cut into parts, and the result of the whole is combined from theirs.

A part may be cut further, into the *subtrees* of some neurons: all ways of fixing their phases. A counterexample of a
part is one of the whole. The parts cover the set, and the subtrees of a part cover its clips, so the least of their
bounds is a bound of the whole, and their certificates together are the certificate of the whole. Missing parts prove
nothing. Neurons are named by their position in the network as this code reads it, so subtrees that different versions
of the code answered prove nothing together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from stbp_milp.batch.task import Part, Task
from stbp_milp.errors import InputError, SoundnessError, contradict
from stbp_milp.plain import asked_model, digest_of
from stbp_milp.results import InstanceResult

_LEAVES_KEPT = 1_000
_PARTIAL = ("part", "phases")  # fields of a record's set that mark it as a part of the whole set
_NAMING = ("stbp-milp", "commit", "torch", "onnx")  # versions that the names of neurons depend on
_WORST_FIRST = ("error", "memout", "timeout", "unknown")


def whole_of(task: Task, parts: Sequence[InstanceResult], count: int) -> InstanceResult:
    """Combines the results of an instance's parts; parts may be missing if one of them is falsified.

    Args:
        task: the task of the whole instance.
        parts: the results of parts and subtrees, in any order.
        count: the number of parts of the set.

    Raises:
        SoundnessError: the parts do not belong to one question, or a proved bound contradicts an observed margin.
        InputError: subtrees were verified by different versions of the code.
    """
    if any((part.whole, part.count) != (task.key, count) for part in map(_part, parts)):
        raise SoundnessError(f"results of parts of instance {task.key} are those of another instance")
    falsified = [part for part in parts if part.word == "falsified"]
    missing = _missing(task, parts, count)
    if missing and not falsified:
        raise SoundnessError(f"parts {', '.join(missing)} of instance {task.key} are missing from its result")
    ordered = sorted(parts, key=lambda part: (_part(part).index, _part(part).phases))
    if falsified:
        return _combined(task, ordered, not missing, falsified[0], _of_whole(falsified[0].record, {}))
    lower, upper = min(part.bounds()[0] for part in ordered), min(part.bounds()[1] for part in ordered)
    if contradict(lower, upper):
        raise SoundnessError(
            f"the parts of instance {task.key} prove a margin of {lower:g}, but one observed {upper:g}; report this"
        )
    open_parts = [part for word in _WORST_FIRST for part in ordered if part.word == word]
    if open_parts:
        return _combined(task, ordered, True, open_parts[0], None)
    return _combined(task, ordered, True, ordered[0], _of_whole(ordered[0].record, _merged(ordered)))


def _missing(task: Task, parts: Sequence[InstanceResult], count: int) -> list[str]:
    """Returns the parts of the set that the results do not cover.

    Raises:
        SoundnessError: a part has two results, or subtrees of different neurons.
    """
    missing = []
    for index in range(count):
        own = [_part(part).phases for part in parts if _part(part).index == index]
        cuts = {tuple((relu, neuron) for relu, neuron, _ in phases) for phases in own}
        if len(cuts) > 1 or len(set(own)) < len(own) or any(len(set(cut)) < len(cut) for cut in cuts):
            raise SoundnessError(f"the results of part {index} of instance {task.key} are not those of one cut")
        if not own or len(own) < 2 ** len(own[0]):
            missing.append(str(index))
    return missing


def _combined(
    task: Task, parts: Sequence[InstanceResult], complete: bool, decisive: InstanceResult, record: dict[str, Any] | None
) -> InstanceResult:
    """Returns a result with the totals of the parts and the status of the decisive one."""
    begins = [datetime.fromisoformat(part.began) for part in parts]
    ends = [began + timedelta(seconds=part.seconds) for began, part in zip(begins, parts, strict=True)]
    lower = min(part.bounds()[0] for part in parts) if complete else float("-inf")
    verified = sum(part.word == "verified" for part in parts)
    reason = None
    if decisive.reason is not None:
        reason = f"{verified} of {len(parts)} parts are verified; part {_part(decisive).index}: {decisive.reason}"
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
        parts=[part.key for part in parts],
        versions=decisive.versions,
        record=record,
    )


def _merged(parts: Sequence[InstanceResult]) -> dict[str, Any]:
    """Returns the fields of the record that describe the whole instance, given that all parts are verified."""
    records = [part.record for part in parts]
    proofs = [record["certificate"] for record in records if record is not None and record["certificate"]]
    if len(proofs) != len(parts):
        raise SoundnessError("a part is verified without a certificate")
    for part, record in zip(parts, records, strict=True):
        if record is not None and _asked(record) != _asked_of(_part(part)):
            raise SoundnessError("a part is verified whose record asks about another part")
    if len({digest_of([part.versions.get(name) for name in _NAMING]) for part in parts if _part(part).phases}) > 1:
        raise InputError(
            "subtrees of an instance were answered by different versions of the code, which may name neurons "
            "differently; install one version on all nodes and run the batch again"
        )
    questions = {digest_of(question_of(record)) for record in records if record is not None}
    if len(questions) != 1:
        raise SoundnessError("the parts answer different questions")
    if any(not float(proof["lower"]) > 0.0 for proof in proofs):
        raise SoundnessError("the bound of a verified part is not positive")
    weakest = min(proofs, key=lambda proof: float(proof["lower"]))
    certificate = {
        "lower": weakest["lower"],
        "closed": _sum(proof["closed"] for proof in proofs),
        "leaves": [leaf for proof in proofs for leaf in proof["leaves"]][:_LEAVES_KEPT],
        "parts": [
            {"key": part.key, "lower": proof["lower"]}
            | ({"phases": [list(phase) for phase in _part(part).phases]} if _part(part).phases else {})
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
    """Turns the record of a part into one about the whole set."""
    if record is None:
        return None
    whole = {**record, **fields, "set": _whole_set(record)}
    question = question_of(whole)
    return whole | {"key": digest_of(question)}


def question_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `records.query_key` hashes for the question about the whole set."""
    return {
        "model": asked_model(record["model"]["digest"], record["model"].get("layout")),
        "clip": record["clip"]["sha256"],
        "set": list(_whole_set(record).values()),
        "property": record["property"]["sha256"],
        "configuration": record["configuration"],
    }


def _whole_set(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record["set"].items() if name not in _PARTIAL}


def _asked(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that say which part of the set a record is about."""
    return {name: value for name, value in record["set"].items() if name in _PARTIAL}


def _asked_of(part: Part) -> dict[str, Any]:
    """Returns what `_asked` must return for the part's record."""
    asked: dict[str, Any] = {} if part.count == 1 else {"part": [part.index, part.count]}
    return asked | ({"phases": [list(phase) for phase in part.phases]} if part.phases else {})


def _part(part: InstanceResult) -> Part:
    return Part.of_words(part.part)


def _sum(tables: Any) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            total[name] = total.get(name, 0) + value
    return total
