"""The JSON record of a run: the question, the verdict, its evidence, and the versions that produced it.

`results/README.md` documents every field. A record is written once and never replaces that of another run.

Equal questions with equal configurations have the same *key*: the sha256 of model digest, clip, set, property and
configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stbp_milp.errors import InputError
from stbp_milp.files import write_new_file
from stbp_milp.plain import asked_model, digest_of, from_json, plain
from stbp_milp.properties import Property
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import BoxSpecification, SetSpecification
from stbp_milp.verdict import Certificate, Falsified, Outcome, Unknown, Verified
from stbp_milp.versions import versions

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """One run, as plain JSON values; infinite numbers are the strings "inf" and "-inf".

    The fields are documented in `results/README.md`.
    """

    schema: int
    key: str
    date: str
    command: str
    model: dict[str, Any]
    clip: dict[str, Any]
    set: dict[str, Any]
    property: dict[str, Any]
    configuration: dict[str, Any]
    verdict: str
    reason: str | None
    margin: dict[str, Any]
    clean_outputs: list[Any]
    decided_by: str | None
    seconds: float
    stage_seconds: dict[str, Any]
    counts: dict[str, Any]
    certificate: dict[str, Any] | None
    counterexample: dict[str, Any] | None
    versions: dict[str, Any]
    machine: dict[str, Any]

    def bounds(self) -> tuple[float, float]:
        """Returns the proved lower bound (or -inf) and the smallest observed margin (or inf) over the set."""
        return float(self.margin["lower"]), float(self.margin["upper"])

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def make_record(
    query: Query,
    configuration: Configuration,
    outcome: Outcome,
    *,
    clip_source: str,
    command: str = "",
    files: Mapping[str, Path] | None = None,
    date: datetime | None = None,
) -> Record:
    """Makes the record of `outcome`.

    Args:
        clip_source: where the clip came from, in words or as the user wrote it.
        command: a command line that repeats the run.
        files: the counterexample's files by kind ("clip", "picture", "animation"), in the record's folder.
        date: when the run began; now by default.
    """
    verdict = outcome.verdict
    return Record(
        schema=SCHEMA,
        key=query_key(query, configuration),
        date=(date or datetime.now(UTC)).isoformat(timespec="milliseconds"),
        command=command,
        model={"name": query.model.name, "digest": query.model.digest, "source": str(query.model.source)}
        | ({} if (layout := _layout(query)) is None else {"layout": layout})
        | {"reading": plain(outcome.reading)},
        clip={"source": clip_source, "sha256": clip_digest(query.clip), "shape": list(query.clip.shape)},
        set=plain(asked_set(query)),
        property={"text": query.property.text, "sha256": property_digest(query.property)},
        configuration=plain(asdict(configuration)),
        verdict=outcome.word,
        reason=verdict.reason if isinstance(verdict, Unknown) else None,
        margin=plain({"lower": outcome.lower, "upper": outcome.upper}),
        clean_outputs=plain(outcome.clean_outputs),
        decided_by=outcome.decided_by,
        seconds=outcome.seconds,
        stage_seconds=plain(outcome.stage_seconds),
        counts=plain(outcome.counts),
        certificate=_certificate(verdict.certificate) if isinstance(verdict, Verified) else None,
        counterexample=_counterexample(query, verdict, files or {}) if isinstance(verdict, Falsified) else None,
        versions=versions(),
        machine={"node": platform.node(), "system": platform.platform(), "cores": os.cpu_count()},
    )


def write_record(record: Record, path: Path) -> None:
    """Writes `record` to the new file `path`.

    Raises:
        InputError: the file already exists, or its folder is not writable.
    """
    write_new_file(path, record.to_json().encode())


def read_record(path: str | Path) -> Record:
    """Reads the record in the file `path`.

    Raises:
        InputError: there is no such file, or it is not a record of this schema.
    """
    try:
        entries = from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} cannot be read as a record ({reason}); give a run's JSON file") from error
    schema = entries.get("schema") if isinstance(entries, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{str(path)!r} has record schema {schema!r}; this version reads schema {SCHEMA}")
    names = {field.name for field in fields(Record)}
    if names != entries.keys():
        odd = ", ".join(sorted(names ^ entries.keys()))
        raise InputError(f"{str(path)!r} is not a record of schema {SCHEMA}: missing or unknown fields {odd}")
    return Record(**entries)


def run_stem(key: str, began: datetime, label: str = "") -> str:
    """Returns the common stem of a run's files: its start time, a label if given, and 8 characters of its key."""
    moment = began.astimezone(UTC).strftime("%Y%m%dT%H%M%S") + f"{began.microsecond // 1000:03d}Z"
    words = "".join(letter if letter.isalnum() else "-" for letter in label.lower()).strip("-")
    return "-".join(part for part in (moment, words, key[:8]) if part)


def query_key(query: Query, configuration: Configuration) -> str:
    """Computes the sha256 of the question and the configuration, as 64 hexadecimal digits."""
    question = {
        "model": asked_model(query.model.digest, _layout(query)),
        "clip": clip_digest(query.clip),
        "set": list(asked_set(query).values()),
        "property": property_digest(query.property),
        "configuration": asdict(configuration),
    }
    return digest_of(question)


def _layout(query: Query) -> str | None:
    return query.model.axes.layout if query.model.axes.named else None


def asked_set(query: Query) -> dict[str, Any]:
    """Returns the fields of the query's set; "phases" is present only if it asks about a subtree."""
    words = set_in_words(query.set)
    return words | {"phases": [list(phase) for phase in query.phases]} if query.phases else words


def set_in_words(specification: SetSpecification | BoxSpecification) -> dict[str, Any]:
    """Returns the fields of a set; "part" is present only for parts, the digest of the sides only for boxes."""
    words: dict[str, Any] = {
        "text": specification.text,
        "epsilon": specification.epsilon,
        "domain": list(specification.domain),
    }
    if isinstance(specification, BoxSpecification):
        return words | {"sha256": clip_digest(torch.stack([specification.lower, specification.upper]))}
    return words if specification.part is None else words | {"part": list(specification.part)}


def clip_digest(clip: Tensor) -> str:
    """Computes the sha256 of the clip's shape ("C,T,H,W\\n") and its values, little-endian float64 in C order."""
    values = clip.detach().cpu().double().contiguous().numpy().astype("<f8")
    return hashlib.sha256(",".join(map(str, clip.shape)).encode() + b"\n" + values.tobytes()).hexdigest()


def property_digest(property: Property) -> str:
    """Computes the sha256 of the property's rows, offset and clauses as JSON."""
    parts = [property.rows.tolist(), property.offset.tolist(), [list(clause) for clause in property.clauses]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _certificate(certificate: Certificate) -> dict[str, Any]:
    entries: dict[str, Any] = plain(asdict(certificate))
    return entries


def _counterexample(query: Query, verdict: Falsified, files: Mapping[str, Path]) -> dict[str, Any]:
    found = verdict.counterexample
    beside = isinstance(query.set, BoxSpecification) and not query.set.contains(found.clip)
    entries: dict[str, Any] = plain(
        {
            "margin": found.margin,
            "outputs": found.outputs,
            "stage": found.stage,
            "clip_sha256": clip_digest(found.clip),
            "on_rounded_sides": beside,
            "files": {kind: path.name for kind, path in files.items()},
        }
    )
    return entries
