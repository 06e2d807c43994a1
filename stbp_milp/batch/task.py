"""One instance on its way to a worker, and its key.

The *key* is sha256 over the content of everything that was asked and how: model, clip, set, property and
configuration. It comes from the files' bytes alone, so that resuming a batch needs neither torch nor the models.
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

# In an ONNX file, where a tensor's values lie in another file (a StringStringEntryProto of fewer than 128 bytes).
_ELSEWHERE = re.compile(rb"\x0a\x08location\x12[\x01-\x7f]([^\x00-\x1f]{1,127})")
_CLIP = re.compile(r"(?P<path>.+?\.np[yz])(?P<item>[:\[].*)?", re.IGNORECASE)


_MOST_NAMED = 12  # missing files


@dataclass(frozen=True)
class Part:
    """The index-th of `count` parts of the set of the instance `whole` (its key), or a subtree of that.

    Attributes:
        phases: of the ReLUs that cut it, as in `Query`; every part has neurons of its own.
    """

    index: int
    count: int
    whole: str
    phases: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def of_words(cls, words: Mapping[str, Any] | None) -> Part:
        """The inverse of `in_words`.

        Raises:
            SoundnessError: they are not those of a part.
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
        """For its result."""
        words: dict[str, Any] = {"index": self.index, "of": self.count, "whole": self.whole}
        return words | {"phases": [list(phase) for phase in self.phases]} if self.phases else words


@dataclass(frozen=True, kw_only=True)
class Task:
    """An instance with all that a worker needs to know.

    Attributes:
        folder: the batch's, on a file system that driver and workers share.
        model, specification: absolute paths.
        listed: the same as the instance list has them, and their digests; for the result.
        gpu: it is computed on the device of a worker, which offers the resource GPU.
        run: which run of the driver it belongs to.
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
        """The task of one part, with a key of its own.

        A neuron's position is that in the network as this code reads it, so another version's subtrees are others.
        """
        more = {"phases": [list(phase) for phase in phases], "versions": versions()} if phases else {}
        key = key_of_part(self.key, index, count, **more)
        return replace(self, key=key, part=Part(index, count, self.key, phases))

    def subtrees(self, index: int, count: int, neurons: Sequence[Sequence[int]]) -> list[Task]:
        """The tasks of one part cut by the phases of neurons (ReLU, flat index); without any, of the part itself."""
        return [
            self.of_part(index, count, tuple((relu, at, sign) for (relu, at), sign in zip(neurons, signs, strict=True)))
            for signs in product((1, -1), repeat=len(neurons))
        ]


@dataclass(frozen=True)
class Settings:
    """What all instances of a batch share.

    Attributes:
        timeout: seconds, in place of the list's; None: the list's.
    """

    timeout: float | None = None
    grace: float = 0.3
    memory_bytes: int = 4 << 30
    threads: int = 1
    solver: str = "auto"
    seed: int = 0
    gpu: bool = False


def read_tasks(path: Path, folder: Path, settings: Settings) -> list[Task]:
    """The tasks of an instance list, line by line; equal lines have equal keys.

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
    """sha256 of the file, and of the files with its tensors if there are any."""
    content = _read(path)
    digest = hashlib.sha256(content)
    if path.suffix == ".onnx":
        for name in sorted(set(_ELSEWHERE.findall(content))):
            other = path.parent / name.decode(errors="replace")
            if other.is_file():
                digest.update(_read(other))
    return digest.hexdigest()


def _question(path: Path) -> tuple[str, str | None]:
    """sha256 of what a specification asks, with its clip; and the verdict that it expects.

    Of our own specifications, order and layout of the entries, name and expected verdict do not count. What is no
    specification is a question of its own, by its bytes: the worker says what is wrong with it.
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
    """Of a specification; None where the reader would refuse an entry that is no part of the question, or all of it."""
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
    """The file of the clip, where a specification of ours names one."""
    try:
        entries = _entries(specification.read_bytes()) if specification.suffix == ".json" else None
    except OSError:
        return None
    place = None if entries is None else _clip_place(entries.get("clip"))
    return None if place is None else specification.parent / place["path"]


@lru_cache(maxsize=4096)
def _file_digest(path: Path) -> str:
    """sha256 of a clip's file; of one that is there but cannot be read, a word: the worker says what is wrong."""
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
