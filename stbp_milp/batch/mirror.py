"""One SQLite file of all results, for queries and reports; written by the driver alone, and read again from `records/`
where it is not there. `results/README.md` documents its tables.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stbp_milp.batch.folder import Folder
from stbp_milp.batch.task import Task
from stbp_milp.errors import InputError
from stbp_milp.results import InstanceResult, contradicts

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
    "set_text": "TEXT",
    "epsilon": "REAL",
    "property_text": "TEXT",
    "model_name": "TEXT",
    "commit_": "TEXT",
    "parts": "INTEGER",
}
_INSTANCES = "position INTEGER PRIMARY KEY, model TEXT, specification TEXT, timeout REAL, key TEXT, expected TEXT"
_AT_ONCE = 500


class Mirror:
    """The SQLite file of a batch's folder, open for writing.

    Raises:
        InputError: the file is damaged, or another process writes to it.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder, path = folder, folder.path / FILE
        self._database = sqlite3.connect(path, timeout=10)
        try:
            self._database.execute("PRAGMA synchronous = OFF")  # records/ is what must last
            columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
            self._database.execute(f"CREATE TABLE IF NOT EXISTS results ({columns})")
            self._database.execute("DROP TABLE IF EXISTS instances")
            self._database.execute(f"CREATE TABLE instances ({_INSTANCES})")
        except sqlite3.Error as error:
            self._database.close()
            raise InputError(
                f"{str(path)!r} cannot be written ({error}); it is made again from the records when it is deleted"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.commit()
        self._database.close()

    def begin(self, tasks: Sequence[Task]) -> None:
        """The list, and all results of the folder; results that are no longer there go."""
        rows = [
            (i, task.listed["model"], task.listed["specification"], task.limits.timeout, task.key, task.expected)
            for i, task in enumerate(tasks)
        ]
        self._database.executemany("INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?)", rows)
        known = {key for (key,) in self._database.execute("SELECT key FROM results")}
        there = self._folder.keys()
        self._database.executemany("DELETE FROM results WHERE key = ?", [(key,) for key in known - there])
        self._database.commit()
        missing = sorted(there - known)
        for start in range(0, len(missing), _AT_ONCE):
            found = [self._folder.result(key) for key in missing[start : start + _AT_ONCE]]
            self.add(result for result in found if result is not None)

    def add(self, results: Iterable[InstanceResult]) -> None:
        """New results."""
        names = ", ".join("?" * len(_COLUMNS))
        self._database.executemany(f"INSERT OR REPLACE INTO results VALUES ({names})", map(_row, results))
        self._database.commit()

    def forget(self, keys: Iterable[str]) -> None:
        """Results that were put aside."""
        self._database.executemany("DELETE FROM results WHERE key = ?", [(key,) for key in keys])
        self._database.commit()

    def words(self) -> dict[str, tuple[str, bool]]:
        """Word, and whether it is a contradiction, by key; of the list's instances that have a result."""
        query = "SELECT key, word, expected, reason FROM results WHERE key IN (SELECT key FROM instances)"
        with closing(self._database.execute(query)) as rows:
            return {key: (word, contradicts(word, expected, reason)) for key, word, expected, reason in rows}


def in_file(path: Path, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query to a batch's SQLite file."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


def _row(result: InstanceResult) -> tuple[Any, ...]:
    record: dict[str, Any] = result.record or {}
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
        "set_text": record.get("set", {}).get("text"),
        "epsilon": record.get("set", {}).get("epsilon"),
        "property_text": record.get("property", {}).get("text"),
        "model_name": record.get("model", {}).get("name"),
        "commit_": result.versions.get("commit"),
        "parts": None if result.parts is None else len(result.parts),
    }
    return tuple(entries[name] if name in entries else getattr(result, name) for name in _COLUMNS)
