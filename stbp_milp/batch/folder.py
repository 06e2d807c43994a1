"""The folder of a batch: one file a result, marks of the runs in progress, evidence. Drivers and workers share it.

A result appears whole or not at all, and the first writer wins. A *mark* is a small file that says that a worker runs
an instance; it goes when the run ends, so a mark that stays counts a worker that died over the instance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from stbp_milp.errors import InputError
from stbp_milp.files import prepare_folder, remove_abandoned, write_new_file
from stbp_milp.results import InstanceResult, read_result

EVIDENCE = "evidence"
_RECORDS, _PARTS, _RETRIED, _ATTEMPTS, _RUNS = "records", "parts", "retried", "attempts", "runs"


@dataclass(frozen=True)
class Folder:
    """A batch's folder, made by `prepared`."""

    path: Path

    def prepared(self) -> Folder:
        """Make it where it is not there yet; what killed writers left is removed.

        Raises:
            InputError: nothing can be written to it.
        """
        for name in (_RECORDS, _PARTS, _RETRIED, _ATTEMPTS, _RUNS, EVIDENCE):
            remove_abandoned(prepare_folder(self.path / name))
        return self

    def keys(self) -> set[str]:
        """Of all instances that have a result."""
        return {entry.name.removesuffix(".json") for entry in _files(self.path / _RECORDS)}

    def result(self, key: str, is_part: bool = False) -> InstanceResult | None:
        """The result, if there is one."""
        path = self._place(key, is_part)
        return read_result(path) if path.exists() else None

    def keep(self, result: InstanceResult) -> InstanceResult:
        """Write the result unless another is there already; return the one that is kept."""
        path = self._place(result.key, result.part is not None)
        with suppress(InputError):
            write_new_file(path, result.to_json().encode())
            return result
        kept = self.result(result.key, result.part is not None)
        if kept is None:
            raise InputError(f"{str(path)!r} cannot be written; free its disk or give another folder with --out")
        if kept.evidence != result.evidence:
            self.drop_evidence(result.evidence)
        return kept

    def drop_evidence(self, evidence: Mapping[str, str]) -> None:
        """Evidence of a run whose result is not kept."""
        for name in evidence.values():
            (self.path / name).unlink(missing_ok=True)

    def put_aside(self, key: str, words: Container[str]) -> None:
        """Keep the result, and those of its parts that have one of the words, under another name.

        The instance is run again then, with all its attempts.
        """
        result = self.result(key)
        for part in (result and result.parts) or []:
            found = self.result(part, is_part=True)
            if found is not None and found.word in words:
                self._put_aside(part, is_part=True)
        self._put_aside(key, is_part=False)

    def _put_aside(self, key: str, is_part: bool) -> None:
        asides = (self.path / _RETRIED / f"{key}-{number}.json" for number in count(1))
        self._place(key, is_part).rename(next(path for path in asides if not path.exists()))
        self.clear_marks(key)

    # --- attempts -------------------------------------------------------------------------------------------

    def mark(self, key: str, words: Mapping[str, Any]) -> Path:
        """A mark of a run that begins now."""
        for number in count(1):
            path = self.path / _ATTEMPTS / f"{key}-{number}"
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as stream:
                json.dump(dict(words), stream)
                return path
        raise AssertionError

    def marks(self, key: str) -> list[Path]:
        """Marks of runs that began and did not end."""
        return sorted((self.path / _ATTEMPTS).glob(f"{key}-*"))

    def clear_marks(self, key: str) -> None:
        for mark in self.marks(key):
            mark.unlink(missing_ok=True)

    def note_run(self, words: Mapping[str, Any]) -> None:
        """That a driver began."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        write_new_file(self.path / _RUNS / f"{moment}-{os.getpid()}.json", json.dumps(dict(words), indent=1).encode())

    def _place(self, key: str, is_part: bool) -> Path:
        return self.path / (_PARTS if is_part else _RECORDS) / f"{key}.json"


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))
