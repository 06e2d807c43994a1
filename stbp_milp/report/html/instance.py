"""One question and its result, read from the file that `run_batch.py` or `verify_complete.py` wrote.

Its `word` is the status: the verdict, or what ended the instance without one. Its *identities* are the properties by
which it is recognised in another run.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stbp_milp.errors import InputError
from stbp_milp.plain import from_json
from stbp_milp.report.comparison import as_fraction, says
from stbp_milp.results import WORDS, InstanceResult, read_result

DECIDED = ("verified", "falsified")

_STEM = re.compile(r"^\d{8}T\d{9}Z-(?:(?P<label>.+)-)?[0-9a-f]{8}$")


@dataclass(frozen=True)
class ShownInstance:
    """One question and its result.

    Attributes:
        name: a name for people to read, not necessarily unique.
        word: the status, one of WORDS.
        question: what is known of the question, by name: model, clip, set, epsilon, property.
        identities: what it is recognised by in another run, the most reliable first: the digests of its files, the
            digest of the question, its name.
        lower, upper: the smallest margin over the set is at least `lower` (proved) and at most `upper` (observed).
        seconds: wall-clock time.
        memory: peak, in bytes; None: not measured.
        decided_by: the stage that settled it.
        evidence: the counterexample's files by kind, those that are there.
        set: text, epsilon and domain of the set as its record has them; None without a record.
        made_by: versions and machine.
        details: the rest, for whoever looks closer.
    """

    name: str
    word: str
    question: Mapping[str, str]
    identities: Mapping[str, str]
    lower: float
    upper: float
    seconds: float
    memory: int | None
    decided_by: str | None
    evidence: Mapping[str, Path]
    set: Mapping[str, Any] | None
    made_by: Mapping[str, Any]
    details: Mapping[str, Any]

    @property
    def decided(self) -> bool:
        return self.word in DECIDED


def read_instance(path: Path, folder: Path, batch: bool, specifications: Path | None = None) -> ShownInstance:
    """Reads the instance in the file `path` of the run in `folder`.

    Args:
        batch: is it a batch, with results instead of records?
        specifications: the folder that the paths of a batch's list are relative to.

    Raises:
        InputError: the file cannot be read, or is not a complete result of schema 1.
    """
    read = read_result(path) if batch else _entries(path)
    try:
        if isinstance(read, InstanceResult):
            return _of_batch(read, folder, path, specifications)
        return _of_record(read, folder, path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{path.name!r} is not a whole result ({what})") from error


def _entries(path: Path) -> dict[str, Any]:
    try:
        entries = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name!r} cannot be read as a result ({' '.join(str(error).split())})") from error
    if not isinstance(entries, dict) or entries.get("schema") != 1:
        schema = entries.get("schema") if isinstance(entries, dict) else None
        raise InputError(f"{path.name!r} has schema {schema!r}; this version shows results of schema 1")
    return entries


def _of_record(record: dict[str, Any], folder: Path, path: Path) -> ShownInstance:
    """Makes the instance from a record that `verify_complete.py` wrote."""
    asked = _question(record)
    labelled = _STEM.match(path.stem)
    label = labelled["label"] if labelled else path.stem
    name = _spoken(label) if label else f"{asked['model']}, {asked['clip']}"
    configuration = record["configuration"]
    found = record["counterexample"] or {}
    return ShownInstance(
        name=name,
        word=_word(record["verdict"]),
        question=asked,
        identities={"question": _digest(record), "name": name},
        lower=_bound(record["margin"]["lower"]),
        upper=_bound(record["margin"]["upper"]),
        seconds=_seconds(record["seconds"]),
        memory=None,
        decided_by=record["decided_by"],
        evidence=_there(found.get("files") or {}, folder),
        set=record["set"],
        made_by={**record["versions"], **record["machine"]},
        details=_details(record)
        | {
            "file": path.name,
            "began": record["date"],
            "reason": record["reason"],
            "stages": _stages(record["stage_seconds"]),
            "command": record["command"],
            "limits": {"timeout": configuration["timeout"], "memory_bytes": configuration["memory_bytes"]},
            "configuration": {name: configuration[name] for name in ("solver", "seed", "threads")},
            "node": record["machine"]["node"],
        },
    )


def _of_batch(result: InstanceResult, folder: Path, path: Path, specifications: Path | None) -> ShownInstance:
    """Makes the instance from a result that `run_batch.py` wrote; a killed instance has no record inside."""
    listed, record = result.instance, result.record
    name = f"{stem_of(listed['model'])} / {stem_of(listed['specification'])}"
    asked = _question(record) if record else _asked(listed, specifications)
    files = f"{listed['model_sha256']} {listed['specification_sha256']}"
    identities = {"files": files} | ({"question": _digest(record)} if record else {}) | {"name": name}
    margin = result.margin or {"lower": "-inf", "upper": "inf"}
    kept = ("reason", "expected", "limits", "configuration", "attempt", "began", "node", "ended_by", "output")
    return ShownInstance(
        name=name,
        word=_word(result.word),
        question=asked,
        identities=identities,
        lower=_bound(margin["lower"]),
        upper=_bound(margin["upper"]),
        seconds=_seconds(result.seconds),
        memory=None if result.memory_bytes is None else int(result.memory_bytes),
        decided_by=result.decided_by,
        evidence=_there(result.evidence or {}, folder),
        set=record["set"] if record else None,
        made_by={**result.versions, **(record["machine"] if record else {}), "node": result.node},
        details=(_details(record) if record else {})
        | {name: getattr(result, name) for name in kept}
        | {"file": f"records/{path.name}", "stages": _stages(result.stage_seconds), "listed": listed},
    )


def _word(word: object) -> str:
    if word not in WORDS:
        raise ValueError(f"its verdict is {word!r}; expected {', '.join(WORDS)}")
    return str(word)


def _seconds(value: object) -> float:
    seconds = float(value)  # type: ignore[arg-type]  # a TypeError is caught above
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"it took {seconds} seconds")
    return seconds


def _bound(value: object) -> float:
    bound = float(value)  # type: ignore[arg-type]  # a TypeError is caught above
    if math.isnan(bound):
        raise ValueError("a bound of its margin is not a number")
    return bound


def _stages(seconds: Mapping[str, Any] | None) -> dict[str, float]:
    return {str(stage): _seconds(value) for stage, value in (seconds or {}).items()}


def _question(record: Mapping[str, Any]) -> dict[str, str]:
    return {
        "model": str(record["model"]["name"]),
        "clip": str(record["clip"]["source"]),
        "shape": " × ".join(map(str, record["clip"]["shape"])),
        "set": str(record["set"]["text"]),
        "epsilon": as_fraction(record["set"]["epsilon"]),
        "domain": "[{:g}, {:g}]".format(*record["set"]["domain"]),
        "property": str(record["property"]["text"]),
    }


def _asked(listed: Mapping[str, Any], specifications: Path | None) -> dict[str, str]:
    """Returns what is known of an instance without a record: from its worker, or from its specification."""
    asked = {"model": stem_of(listed["model"])}
    if heard := listed.get("asked"):
        words = {name: str(heard[name]) for name in ("clip", "set", "property") if name in heard}
        return asked | words | {"epsilon": as_fraction(float(heard["epsilon"]))}
    try:
        entries = from_json((specifications or Path()).joinpath(listed["specification"]).read_text(encoding="utf-8"))
        return asked | {"set": str(entries["set"]), "epsilon": as_fraction(float(entries["epsilon"]))}
    except (OSError, ValueError, KeyError, TypeError):
        return asked


def _digest(record: Mapping[str, Any]) -> str:
    asked = record["set"]
    return json.dumps(
        [
            record["model"]["digest"],
            record["clip"]["sha256"],
            [asked["text"], asked["epsilon"], asked["domain"]],
            record["property"]["sha256"],
        ]
    )


def _details(record: Mapping[str, Any]) -> dict[str, Any]:
    certificate = record["certificate"]
    found = record["counterexample"]
    asked = str(record["property"]["text"])
    clean = _numbers(record["clean_outputs"])
    return {
        "counts": record["counts"],
        "property": asked,
        "clean": {"outputs": clean, "says": says(asked, clean)},
        "attacked": {"outputs": _numbers(found["outputs"]), "says": says(asked, _numbers(found["outputs"]))}
        | {"stage": found["stage"]}
        if found
        else None,
        "certificate": {name: certificate[name] for name in ("lower", "closed")} if certificate else None,
    }


def _numbers(values: list[Any]) -> list[float]:
    return [float(value) for value in values]


def _there(files: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """The files that exist; a name that leads out of the run's folder is none of them."""
    found = {kind: Path(os.path.normpath(folder / name)) for kind, name in files.items()}
    home = os.path.normpath(folder)
    return {kind: path for kind, path in found.items() if path.is_relative_to(home) and path.is_file()}


def stem_of(path: object) -> str:
    name = Path(str(path)).name
    for suffix in (".gz", ".onnx", ".json", ".vnnlib"):
        name = name.removesuffix(suffix)
    return name


def _spoken(label: str) -> str:
    """ "02-motion--any-two-frames", a part of a file's name, as "motion, any two frames"."""
    return re.sub(r"^\d+-", "", label).replace("--", ", ").replace("-", " ")
