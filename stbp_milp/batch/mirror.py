"""One SQLite file with all results, for queries and reports; only the driver writes it, from `records/`.

Every driver builds it anew when it begins, so that no result counts whose file is missing. `results/README.md`
documents its tables.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stbp_milp.batch.folder import Folder
from stbp_milp.batch.task import Task
from stbp_milp.errors import InputError
from stbp_milp.results import InstanceResult, contradicts, fault_of

FILE = "batch.sqlite"
_COLUMNS = {
    "key": "TEXT PRIMARY KEY",
    "word": "TEXT",
    "reason": "TEXT",
    "model": "TEXT",
    "specification": "TEXT",
    "expected": "TEXT",
    "lower": "REAL",
    "upper": "REAL",
    "decided_by": "TEXT",
    "seconds": "REAL",
    "memory_bytes": "INTEGER",
    "timeout": "REAL",
    "memory_limit": "INTEGER",
    "threads": "INTEGER",
    "solver": "TEXT",
    "seed": "INTEGER",
    "attempt": "INTEGER",
    "began": "TEXT",
    "node": "TEXT",
    "worker": "TEXT",
    "ended_by": "TEXT",
    "stage_seconds": "TEXT",
    "evidence": "TEXT",
    "clip": "TEXT",
    "set_text": "TEXT",
    "epsilon": "REAL",
    "property_text": "TEXT",
    "model_name": "TEXT",
    "commit_": "TEXT",
    "parts": "INTEGER",
}
_INSTANCES = "position INTEGER PRIMARY KEY, model TEXT, specification TEXT, timeout REAL, key TEXT, expected TEXT"
_AT_ONCE = 500
_MOST_SAID = 10  # warnings about single files

logger = logging.getLogger(__name__)


class Mirror:
    """The SQLite file of a batch's folder, open for writing.

    Raises:
        InputError: the file is damaged, or another process writes to it.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder, path = folder, folder.path / FILE
        self._database = sqlite3.connect(path, timeout=10)
        try:
            self._database.execute("PRAGMA synchronous = OFF")  # only records/ must survive a crash
            columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
            self._database.execute("DROP TABLE IF EXISTS results")
            self._database.execute(f"CREATE TABLE results ({columns})")
            self._database.execute("DROP TABLE IF EXISTS instances")
            self._database.execute(f"CREATE TABLE instances ({_INSTANCES})")
        except sqlite3.Error as error:
            self._database.close()
            raise InputError(
                f"{str(path)!r} cannot be written ({error}); if you delete it, it is made again from the records"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(sqlite3.Error):
            self._database.commit()
        self._database.close()

    def begin(self, tasks: Sequence[Task]) -> None:
        """Writes the list and all results that can be trusted; untrusted results of listed instances are put aside.

        Raises:
            InputError: the file cannot be written, or a result cannot be put aside.
        """
        rows = [
            (i, task.listed["model"], task.listed["specification"], task.limits.timeout, task.key, task.expected)
            for i, task in enumerate(tasks)
        ]
        try:
            self._database.executemany("INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._database.commit()
        except sqlite3.Error as error:
            raise InputError(
                f"{FILE!r} cannot be written ({error}); free space on the disk of {str(self._folder.path)!r}"
            ) from error
        listed = {task.key for task in tasks}
        there = sorted(self._folder.keys())
        said: Counter[str] = Counter()
        for start in range(0, len(there), _AT_ONCE):
            keys = there[start : start + _AT_ONCE]
            found = [self._trusted(key, said) if key in listed else self._other(key) for key in keys]
            self.add(result for result in found if result is not None)
        for sentence, count in said.most_common(_MOST_SAID):
            logger.warning("%s", sentence if count == 1 else f"{count:,} results: {sentence}")
        if len(said) > _MOST_SAID:
            logger.warning("%s", f"{len(said) - _MOST_SAID:,} more results are put aside and run again")

    def _trusted(self, key: str, said: Counter[str]) -> InstanceResult | None:
        return self._folder.trusted(key, say=lambda sentence: said.update([sentence]))

    def _other(self, key: str) -> InstanceResult | None:
        """Returns the result of an instance that is not on the list; None if it cannot be trusted, but it stays."""
        try:
            result = self._folder.result(key)
        except InputError:
            return None
        return None if result is None or fault_of(result) is not None else result

    def add(self, results: Iterable[InstanceResult]) -> None:
        """Adds new results; if they cannot be written, only their files hold them."""
        names = ", ".join("?" * len(_COLUMNS))
        try:
            self._database.executemany(f"INSERT OR REPLACE INTO results VALUES ({names})", map(_row, results))
            self._database.commit()
        except sqlite3.Error as error:
            self._database.rollback()
            logger.warning("%s cannot be written (%s); it is made again when the batch continues", FILE, error)

    def forget(self, keys: Iterable[str]) -> None:
        """Removes results that were put aside."""
        self._database.executemany("DELETE FROM results WHERE key = ?", [(key,) for key in keys])
        self._database.commit()

    def words(self) -> dict[str, tuple[str, bool]]:
        """Returns, by key, the status of listed instances with a result, and whether it contradicts an expectation."""
        query = "SELECT key, word, instances.expected, reason FROM results JOIN instances USING (key)"
        found: dict[str, tuple[str, bool]] = {}
        with closing(self._database.execute(query)) as rows:
            for key, word, expected, reason in rows:
                found[key] = word, contradicts(word, expected, reason) or found.get(key, (word, False))[1]
        return found

    def reasons(self, word: str) -> list[tuple[str, str, str]]:
        """Returns specification, model and reason of the listed instances with this status, in list order."""
        query = (
            "SELECT instances.specification, instances.model, reason FROM instances JOIN results USING (key) "
            "WHERE word = ? ORDER BY position"
        )
        return self._database.execute(query, (word,)).fetchall()


def in_file(path: Path, query: str) -> list[tuple[Any, ...]]:
    """Returns the rows of a query to a batch's SQLite file."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


def _row(result: InstanceResult) -> tuple[Any, ...]:
    record: dict[str, Any] = result.record or {}
    asked: dict[str, Any] = result.instance.get("asked") or {}
    lower, upper = result.bounds()
    entries = {
        "lower": lower,
        "upper": upper,
        "model": result.instance["model"],
        "specification": result.instance["specification"],
        "timeout": result.limits["timeout"],
        "memory_limit": result.limits["memory_bytes"],
        "threads": result.limits["threads"],
        "solver": result.configuration["solver"],
        "seed": result.configuration["seed"],
        "stage_seconds": json.dumps(result.stage_seconds),
        "evidence": json.dumps(result.evidence),
        "clip": asked.get("clip") or record.get("clip", {}).get("source"),
        "set_text": record.get("set", {}).get("text") or asked.get("set"),
        "epsilon": record.get("set", {}).get("epsilon", asked.get("epsilon")),
        "property_text": record.get("property", {}).get("text") or asked.get("property"),
        "model_name": record.get("model", {}).get("name"),
        "commit_": result.versions.get("commit"),
        "parts": None if result.parts is None else len(result.parts),
    }
    return tuple(entries[name] if name in entries else getattr(result, name) for name in _COLUMNS)
