"""An instance as it is sent to a worker, and its key.

The *key* is the sha256 of everything that defines the instance: model, clip, set, property and configuration. It is
computed from the files' bytes alone, so that resuming a batch neither needs torch nor loads models.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, product
from pathlib import Path
from typing import Any

from stbp_milp.batch.supervised import Limits
from stbp_milp.errors import InputError, SoundnessError
from stbp_milp.instance_list import VERDICTS, ListedInstance, read_instances
from stbp_milp.plain import digest_of, from_json
from stbp_milp.results import key_of, key_of_part
from stbp_milp.versions import versions

# Names, in an ONNX file, of the file that holds a tensor's values (a StringStringEntryProto of fewer than 128 bytes).
_ELSEWHERE = re.compile(rb"\x0a\x08location\x12[\x01-\x7f]([^\x00-\x1f]{1,127})")
_CLIP = re.compile(r"(?P<path>.+?\.np[yz])(?P<item>[:\[].*)?", re.IGNORECASE)


_MOST_NAMED = 12  # missing files that an error message names


@dataclass(frozen=True)
class Part:
    """Part `index` of the `count` parts of the set of the instance with the key `whole`, or a subtree of that part.

    Attributes:
        phases: the phases that define the subtree, as in `Query`; parts may be cut at different neurons.
    """

    index: int
    count: int
    whole: str
    phases: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def of_words(cls, words: Mapping[str, Any] | None) -> Part:
        """Reads what `in_words` wrote.

        Raises:
            SoundnessError: the entries do not describe a part.
        """
        try:
            phases = tuple((relu, neuron, sign) for relu, neuron, sign in (words or {}).get("phases", []))
            part = cls((words or {})["index"], (words or {})["of"], (words or {})["whole"], phases)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SoundnessError(f"{words!r} is not the part of an instance") from error
        numbers = (part.index, part.count, *chain.from_iterable(phases))
        signed = all(sign in (1, -1) for _, _, sign in phases)
        if {*map(type, numbers)} != {int} or not 0 <= part.index < part.count or not signed:
            raise SoundnessError(f"{words!r} is not the part of an instance")
        return part

    def in_words(self) -> dict[str, Any]:
        """Returns the part as entries of its result."""
        words: dict[str, Any] = {"index": self.index, "of": self.count, "whole": self.whole}
        return words | {"phases": [list(phase) for phase in self.phases]} if self.phases else words


@dataclass(frozen=True, kw_only=True)
class Task:
    """An instance with everything that a worker needs to know.

    Attributes:
        folder: the batch's folder, on a file system that driver and workers share.
        model, specification: absolute paths.
        listed: the paths as the instance list gives them, and the files' digests; for the result.
        gpu: does it run on the device of a worker that offers the resource GPU?
        run: the run of the driver that it belongs to.
    """

    key: str
    folder: Path
    model: Path
    specification: Path
    listed: dict[str, str]
    expected: str | None
    limits: Limits
    solver: str
    seed: int
    gpu: bool = False
    part: Part | None = None
    run: str = ""

    def of_part(self, index: int, count: int, phases: tuple[tuple[int, int, int], ...] = ()) -> Task:
        """Returns the task of one part, with its own key.

        A neuron is named by its position in the network as this version reads it, so the keys of subtrees depend on the
        versions.
        """
        more = {"phases": [list(phase) for phase in phases], "versions": versions()} if phases else {}
        key = key_of_part(self.key, index, count, **more)
        return replace(self, key=key, part=Part(index, count, self.key, phases))

    def subtrees(self, index: int, count: int, neurons: Sequence[Sequence[int]]) -> list[Task]:
        """Returns the tasks of one part, cut by the phases of neurons (ReLU, flat index) if there are any."""
        return [
            self.of_part(index, count, tuple((relu, at, sign) for (relu, at), sign in zip(neurons, signs, strict=True)))
            for signs in product((1, -1), repeat=len(neurons))
        ]


@dataclass(frozen=True)
class Settings:
    """The settings that all instances of a batch share.

    Attributes:
        timeout: seconds, instead of those on the list; None: those on the list.
    """

    timeout: float | None = None
    grace: float = 0.3
    memory_bytes: int = 4 << 30
    threads: int = 1
    solver: str = "auto"
    seed: int = 0
    gpu: bool = False


def read_tasks(path: Path, folder: Path, settings: Settings) -> list[Task]:
    """Reads the tasks of an instance list, one per line; equal lines have equal keys.

    Raises:
        InputError: the list or a file that it names cannot be read.
    """
    instances = read_instances(path)
    named = dict.fromkeys(file for instance in instances for file in (instance.model, instance.specification))
    clips = (clip for instance in instances if (clip := _clip_file(instance.specification)) is not None)
    missing = [str(file) for file in dict.fromkeys([*named, *clips]) if not file.is_file()]
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        named_files = f"{', '.join(missing[:_MOST_NAMED])}{more}"
        raise InputError(
            f"{str(path)!r}, or a specification in it, names files that are not there: {named_files}; paths are "
            "relative to the folder of the file that names them"
        )
    return [_task(instance, path.parent, folder, settings) for instance in instances]


def _task(instance: ListedInstance, base: Path, folder: Path, settings: Settings) -> Task:
    model = _model_digest(instance.model)
    question, expected = _question(instance.specification)
    limits = Limits(
        instance.timeout if settings.timeout is None else settings.timeout,
        settings.grace,
        settings.memory_bytes,
        settings.threads,
    )
    listed = {
        "model": _as_listed(instance.model, base),
        "specification": _as_listed(instance.specification, base),
        "model_sha256": model,
        "specification_sha256": question,
    }
    return Task(
        key=key_of(model, question, limits.timeout, limits.memory_bytes, settings.solver, settings.seed),
        folder=folder.resolve(),
        model=instance.model.resolve(),
        specification=instance.specification.resolve(),
        listed=listed,
        expected=expected,
        limits=limits,
        solver=settings.solver,
        seed=settings.seed,
        gpu=settings.gpu,
    )


def _as_listed(path: Path, base: Path) -> str:
    return str(path.relative_to(base) if path.is_relative_to(base) else path)


@lru_cache(maxsize=4096)
def _model_digest(path: Path) -> str:
    """Computes the sha256 of the file and of the files that hold its tensors, if there are any."""
    content = _read(path)
    digest = hashlib.sha256(content)
    if path.suffix == ".onnx":
        for name in sorted(set(_ELSEWHERE.findall(content))):
            other = path.parent / name.decode(errors="replace")
            if other.is_file():
                digest.update(_read(other))
    return digest.hexdigest()


def _question(path: Path) -> tuple[str, str | None]:
    """Computes the sha256 of what a specification asks, including its clip; returns it with the expected verdict.

    In our own specifications, the order and layout of entries, the name and the expected verdict do not count. A file
    that is not a valid specification counts by its bytes; the worker reports what is wrong with it.
    """
    content = _read(path)
    entries = _entries(content) if path.suffix == ".json" else None
    if entries is None:
        return hashlib.sha256(_unzipped(path, content)).hexdigest(), None
    expected = entries.pop("expected", None)
    entries.pop("name", None)
    clip = entries.pop("clip", None)
    try:
        return digest_of([entries, _clip_digest(path, clip)]), expected
    except RecursionError:
        return hashlib.sha256(content).hexdigest(), None


def _entries(content: bytes) -> dict[str, Any] | None:
    """Parses a specification; None if the reader would refuse it, or its name or expected verdict."""
    try:
        entries = from_json(content.decode("utf-8-sig"))
    except ValueError:
        return None
    if not isinstance(entries, dict) or entries.get("expected") not in (None, *VERDICTS):
        return None
    return entries if isinstance(entries.get("name"), str | None) else None


def _clip_digest(specification: Path, clip: object) -> list[str]:
    place = _clip_place(clip)
    if place is None:
        return [str(clip)]
    return [_file_digest(specification.parent / place["path"]), place["item"] or ""]


def _clip_place(clip: object) -> re.Match[str] | None:
    return _CLIP.fullmatch(clip) if isinstance(clip, str) and "\0" not in clip else None


def _clip_file(specification: Path) -> Path | None:
    """Returns the file of the clip that one of our own specifications names, or None."""
    try:
        entries = _entries(specification.read_bytes()) if specification.suffix == ".json" else None
    except OSError:
        return None
    place = None if entries is None else _clip_place(entries.get("clip"))
    return None if place is None else specification.parent / place["path"]


@lru_cache(maxsize=4096)
def _file_digest(path: Path) -> str:
    """Computes the sha256 of a clip's file; a file without read permission is reported by the worker instead."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except PermissionError:
        return "not readable"
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}); a specification names it") from error


def _unzipped(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError):
        return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error.strerror}); the instance list or a specification names it"
        ) from error
