"""What is kept of one instance of a batch: `KEY.json`, documented in `results/README.md`.

A *result* exists for every instance that came to an end, also by being killed; the `Record` of the verifier is a part
of it where the verifier itself came to an end. Nothing here imports torch: workers, drivers and reports read results.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stbp_milp.errors import InputError
from stbp_milp.plain import plain

SCHEMA = 1
WORDS = ("verified", "falsified", "unknown", "timeout", "memout", "error")
CONTRADICTION = "internal contradiction"  # how the reason of a result begins when two methods contradict each other


@dataclass(frozen=True)
class InstanceResult:
    """How one instance ended, as plain JSON values; infinite numbers are the strings "inf" and "-inf".

    Fields as in `results/README.md`.
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
        """Is it a sign of a bug? See the function of that name."""
        return contradicts(self.word, self.expected, self.reason)

    def bounds(self) -> tuple[float, float]:
        """The margin's least value, proved from below (-inf: nothing) and seen (inf: nothing)."""
        return float(self.margin["lower"]), float(self.margin["upper"])

    def to_json(self) -> str:
        return json.dumps(plain(asdict(self)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def contradicts(word: str, expected: str | None, reason: str | None) -> bool:
    """Is the result a sign of a bug: the opposite of the expected verdict, or a contradiction between two methods?"""
    return {word, expected} == {"verified", "falsified"} or (reason or "").startswith(CONTRADICTION)


def read_result(path: Path) -> InstanceResult:
    """The result in file `path`.

    Raises:
        InputError: no such file, or not a result of this schema.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} cannot be read as a result ({reason}); give one of a batch") from error
    schema = entries.get("schema") if isinstance(entries, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{str(path)!r} has result schema {schema!r}; this version reads schema {SCHEMA}")
    names = {entry.name for entry in fields(InstanceResult)}
    if names != entries.keys():
        odd = ", ".join(sorted(names ^ entries.keys()))
        raise InputError(f"{str(path)!r} is not a result of schema {SCHEMA}: missing or unknown fields {odd}")
    return InstanceResult(**entries)
