"""The result of one instance of a batch: the file `KEY.json`, documented in `results/README.md`.

A *result* exists for every instance that ended, even if it was killed. It contains the verifier's `Record` if the
verifier itself finished. Nothing here imports torch, because workers, drivers and reports all read results.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stbp_milp.errors import InputError
from stbp_milp.plain import digest_of, from_json, plain
from stbp_milp.versions import distrusted

SCHEMA = 1
WORDS = ("verified", "falsified", "unknown", "timeout", "memout", "error")
CONTRADICTION = "internal contradiction"  # the beginning of a result's reason if two methods contradict each other


@dataclass(frozen=True)
class InstanceResult:
    """How one instance ended, as plain JSON values; infinite numbers are the strings "inf" and "-inf".

    The fields are documented in `results/README.md`; `word` is the status.
    """

    key: str
    word: str
    reason: str | None
    instance: dict[str, Any]
    expected: str | None
    margin: dict[str, Any]
    decided_by: str | None
    stage_seconds: dict[str, Any]
    seconds: float
    memory_bytes: int
    limits: dict[str, Any]
    configuration: dict[str, Any]
    attempt: int
    began: str
    node: str
    worker: str
    ended_by: str
    output: str = ""
    evidence: dict[str, str] = field(default_factory=dict)
    part: dict[str, Any] | None = None
    parts: list[str] | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] | None = None
    schema: int = SCHEMA

    @property
    def contradicts(self) -> bool:
        """Is the result a sign of a bug? See the function of the same name."""
        return contradicts(self.word, self.expected, self.reason)

    def bounds(self) -> tuple[float, float]:
        """Returns the proved lower bound (or -inf) and the smallest observed margin (or inf) over the set."""
        return float(self.margin["lower"]), float(self.margin["upper"])

    def to_json(self) -> str:
        return json.dumps(plain(asdict(self)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def contradicts(word: str, expected: str | None, reason: str | None) -> bool:
    """Is a result a sign of a bug: the opposite of the expected verdict, or a contradiction between two methods?"""
    return {word, expected} == {"verified", "falsified"} or (reason or "").startswith(CONTRADICTION)


def key_of(model: str, question: str, timeout: float, memory_bytes: int, solver: str, seed: int) -> str:
    """Computes the key of an instance from the digests of its model and question, and from its limits and options."""
    return digest_of({"model": model, "question": question, "configuration": [timeout, memory_bytes, solver, seed]})


def key_of_part(whole: str, index: int, count: int, **more: Any) -> str:
    """Computes the key of a part of the instance with the key `whole`; `more` describes a subtree of that part."""
    return digest_of({"whole": whole, "part": [index, count]} | more)


def believed(path: Path) -> InstanceResult:
    """Reads the result in the file `path` and checks that it is consistent with itself and with the file's name.

    Raises:
        InputError: it cannot be read, or it contradicts itself or the key in its name.
    """
    result = read_result(path)
    try:
        doubt = _doubt(result, path.name.removesuffix(".json"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        doubt = f"it is not a whole result ({type(error).__name__}: {' '.join(str(error).split())})"
    if doubt is not None:
        raise InputError(f"{str(path)!r} is not believed: {doubt}")
    return result


def fault_of(result: InstanceResult) -> str | None:
    """Returns why a result cannot be trusted, if the version that computed it is known to get such results wrong."""
    return distrusted(result.versions.get("stbp-milp"), result.word)


def _doubt(result: InstanceResult, name: str) -> str | None:
    """Returns what is inconsistent in a result whose file has this name; None if nothing is."""
    if result.key != name:
        return f"it is the result for the key {result.key[:12]}..., so its file was copied or renamed"
    if result.key != _own_key(result):
        return "its key does not match the instance, limits and configuration that it names"
    if result.word not in WORDS:
        return f"its status is {result.word!r}, but must be one of {', '.join(WORDS)}"
    decided = result.word in ("verified", "falsified")
    record = result.record
    if record is None:
        return f"it is {result.word} without a record" if decided else None
    said = record["verdict"]
    if said != (result.word if decided else "unknown"):
        return f"its status is {result.word!r}, but its record says {said!r}"
    if record["model"]["digest"] != result.instance["model_sha256"]:
        return "its record is about another model"
    # The record of a counterexample of an instance that was split is that of the part it was found in.
    if result.parts is None and _margin(record["margin"]) != _margin(result.margin):
        return "its margin differs from that of its record"
    return _doubt_of_evidence(result.word, record)


def _own_key(result: InstanceResult) -> str:
    if result.part is not None:
        whole, index, count = (result.part[name] for name in ("whole", "index", "of"))
        # The key of a subtree depends on the driver's versions, which a result does not hold.
        return result.key if result.part.get("phases") else key_of_part(whole, index, count)
    asked, limits, how = result.instance, result.limits, result.configuration
    digests = asked["model_sha256"], asked["specification_sha256"]
    return key_of(*digests, limits["timeout"], limits["memory_bytes"], how["solver"], how["seed"])


def _doubt_of_evidence(word: str, record: dict[str, Any]) -> str | None:
    proof, found = record["certificate"], record["counterexample"]
    if (proof is not None, found is not None) != (word == "verified", word == "falsified"):
        return f"it is {word}, but its certificate and its counterexample do not fit that status"
    if proof is not None and not float(proof["lower"]) > 0.0:
        return "the bound of its certificate is not positive"
    if proof is not None and float(proof["lower"]) != float(record["margin"]["lower"]):
        return "the bound of its certificate differs from that of its margin"
    if found is not None and float(found["margin"]) > 0:
        return "its counterexample has a positive margin, so it does not break the property"
    return None


def _margin(bounds: dict[str, Any]) -> tuple[float, float]:
    lower, upper = float(bounds["lower"]), float(bounds["upper"])
    if math.isnan(lower) or math.isnan(upper):
        raise ValueError("a bound of its margin is not a number")
    return lower, upper


def read_result(path: Path) -> InstanceResult:
    """Reads the result in the file `path`.

    Raises:
        InputError: there is no such file, or it is not a result of this schema.
    """
    try:
        entries = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} cannot be read as a result ({reason}); give a batch's result") from error
    schema = entries.get("schema") if isinstance(entries, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{str(path)!r} has result schema {schema!r}; this version reads schema {SCHEMA}")
    names = {entry.name for entry in fields(InstanceResult)}
    if names != entries.keys():
        odd = ", ".join(sorted(names ^ entries.keys()))
        raise InputError(f"{str(path)!r} is not a result of schema {SCHEMA}: missing or unknown fields {odd}")
    return InstanceResult(**entries)
