"""The folder of a batch, which driver and workers share: one file per result, marks of runs in progress, evidence.

A result is written completely or not at all, and the first writer wins. A *mark* is a small file saying that a worker
runs an instance. It is removed when the run ends, so every mark that stays counts one worker that died.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from stbp_milp.errors import InputError
from stbp_milp.files import make_again, prepare_folder, remove_abandoned, write_new_file
from stbp_milp.results import InstanceResult, believed, fault_of

EVIDENCE = "evidence"
_RECORDS, _PARTS, _RETRIED, _ATTEMPTS, _RUNS = "records", "parts", "retried", "attempts", "runs"

logger = logging.getLogger(__name__)

_ADVICE = "free space on its disk or give another folder with --out; the same command goes on where this one stopped"


class UnkeptError(InputError):
    """A result exists, but it cannot be written."""

    def __init__(self, result: InstanceResult, why: str) -> None:
        super().__init__(result, why)
        self.result, self.why = result, why

    def __str__(self) -> str:
        name = f"{self.result.instance['model']}, {self.result.instance['specification']}"
        return f"the result of {name} is {self.result.word}, but it could not be kept: {self.why}; {_ADVICE}"


@dataclass(frozen=True)
class Folder:
    """A batch's folder; `prepared` creates it."""

    path: Path

    def prepared(self) -> Folder:
        """Creates the folder if necessary, and removes what killed writers left behind.

        Raises:
            InputError: the folder is not writable.
        """
        for name in (_RECORDS, _PARTS, _RETRIED, _ATTEMPTS, _RUNS, EVIDENCE):
            remove_abandoned(prepare_folder(self.path / name))
        return self

    def keys(self) -> set[str]:
        """Returns the keys of all instances that have a result."""
        return {entry.name.removesuffix(".json") for entry in _files(self.path / _RECORDS)}

    def result(self, key: str, is_part: bool = False) -> InstanceResult | None:
        """Returns the result, or None if there is none.

        Raises:
            InputError: the result cannot be read or believed, see `results.believed`.
        """
        path = self._place(key, is_part)
        return believed(path) if path.exists() else None

    def trusted(
        self, key: str, is_part: bool = False, say: Callable[[str], None] = logger.warning
    ) -> InstanceResult | None:
        """Returns the result if it can be trusted; otherwise it is put aside, so that its instance runs again.

        Args:
            say: receives one sentence about what is put aside.
        """
        try:
            result = self.result(key, is_part)
            fault = None if result is None else fault_of(result)
            if fault is None:
                return result
            say(f"{fault}; such results are put aside and run again")
        except InputError as error:
            say(f"{error}; it is put aside and run again")
        self._put_aside(key, is_part)
        return None

    def keep(self, result: InstanceResult) -> InstanceResult:
        """Writes the result unless a trusted one exists already; returns the one that is kept.

        If the result cannot be written, its evidence is deleted to make room, and writing is tried once more.

        Raises:
            UnkeptError: the result cannot be written.
        """
        is_part = result.part is not None
        if (kept := self.trusted(result.key, is_part)) is not None:
            return self._instead_of(result, kept)
        path = self._place(result.key, is_part)
        make_again(path.parent)
        try:
            write_new_file(path, result.to_json().encode())
            return result
        except InputError as error:
            if (kept := self.trusted(result.key, is_part)) is not None:
                return self._instead_of(result, kept)
            if not result.evidence:
                raise UnkeptError(result, str(error)) from error
            self.drop_evidence(result.evidence)
            return self.keep(replace(result, evidence={}, reason=f"its evidence could not be kept: {error}"))

    def _instead_of(self, result: InstanceResult, kept: InstanceResult) -> InstanceResult:
        if kept.evidence != result.evidence:
            self.drop_evidence(result.evidence)
        return kept

    def drop_evidence(self, evidence: Mapping[str, str]) -> None:
        """Deletes the evidence of a run whose result is not kept."""
        for name in evidence.values():
            with suppress(OSError):
                (self.path / name).unlink(missing_ok=True)

    def put_aside(self, key: str, words: Container[str]) -> None:
        """Renames the result, and those of its parts that have one of the statuses `words`.

        The instance then runs again, with all its attempts.
        """
        result = self.result(key)
        for part in (result and result.parts) or []:
            found = self.result(part, is_part=True)
            if found is not None and found.word in words:
                self._put_aside(part, is_part=True)
        self._put_aside(key, is_part=False)

    def _put_aside(self, key: str, is_part: bool) -> None:
        asides = (self.path / _RETRIED / f"{key}-{number}.json" for number in count(1))
        place, aside = self._place(key, is_part), next(path for path in asides if not path.exists())
        make_again(aside.parent)
        try:
            place.rename(aside)
        except OSError as error:
            if place.exists():  # otherwise another process has put it aside
                raise InputError(f"{str(place)!r} cannot be put aside ({error.strerror or error})") from error
        self.clear_marks(key)

    # --- attempts -------------------------------------------------------------------------------------------

    def mark(self, key: str, words: Mapping[str, Any]) -> Path:
        """Writes the mark of a run that begins now, and returns its path.

        Raises:
            InputError: it cannot be written.
        """
        folder = self.path / _ATTEMPTS
        make_again(folder)
        for number in count(1):
            path = folder / f"{key}-{number}"
            try:
                with path.open("x", encoding="utf-8") as stream:
                    json.dump(dict(words), stream)
                    return path
            except FileExistsError:
                continue
            except OSError as error:
                raise InputError(f"{str(path)!r} cannot be written ({error.strerror or error}); {_ADVICE}") from error
        raise AssertionError

    def marks(self, key: str) -> list[Path]:
        """Returns the marks of runs that began and did not end."""
        return sorted((self.path / _ATTEMPTS).glob(f"{key}-*"))

    def clear_marks(self, key: str) -> None:
        for mark in self.marks(key):
            with suppress(OSError):
                mark.unlink(missing_ok=True)

    def note_run(self, words: Mapping[str, Any]) -> None:
        """Notes that a driver began."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        write_new_file(self.path / _RUNS / f"{moment}-{os.getpid()}.json", json.dumps(dict(words), indent=1).encode())

    def _place(self, key: str, is_part: bool) -> Path:
        return self.path / (_PARTS if is_part else _RECORDS) / f"{key}.json"


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))
