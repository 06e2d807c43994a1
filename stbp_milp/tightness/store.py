"""The store of measurements: one JSON line per measurement as it arrives, and then the same as CSV and Parquet.

A line is synced to the disk before the next measurement counts as begun; a line that a crash left incomplete is
ignored. Tables are made from the lines each time, written to a temporary file and renamed.
The tables suffice for the figures.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from stbp_milp.errors import InputError
from stbp_milp.files import prepare_folder, replace_file
from stbp_milp.tightness.laws import bracket, by_question
from stbp_milp.tightness.measure import LAYERS, Measurement

LINES, TABLE, WIDTHS = "measurements.jsonl", "measurements", "layers"


class Store:
    """The measurements in a folder. Mutable, used from one thread.

    Raises:
        InputError: the folder cannot be written to, or holds lines of another kind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = prepare_folder(folder)
        self._path = folder / LINES
        self._rows: dict[tuple[str, str, float, str, int], Measurement] = {row.key: row for row in _read(self._path)}

    @property
    def rows(self) -> list[Measurement]:
        """Returns the latest row of every measurement."""
        return list(self._rows.values())

    def finished(self, key: tuple[str, str, float, str, int], limit: float) -> bool:
        """Is measuring again pointless? (A measurement that ran out of time is worth repeating with a larger limit.)"""
        row = self._rows.get(key)
        return row is not None and ((row.ended == "done" and not _late(row)) or row.limit >= limit)

    def add(self, row: Measurement) -> None:
        """Keeps a row, in place of an earlier one of the same measurement."""
        with self._path.open("a+b") as file:
            torn = file.tell() > 0 and not _ends_with_newline(self._path)
            line = json.dumps(asdict(row), allow_nan=False) + "\n"
            file.write((b"\n" if torn else b"") + line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._rows[row.key] = row

    def write_tables(self) -> None:
        """Writes `measurements` and, if there are any, `layers`, each as `.csv` and `.parquet`."""
        exact = {key: bracket(rows) for key, rows in by_question(self.rows).items()}
        plain, widths = [], []
        for row in self.rows:
            entries = asdict(row)
            own = entries.pop("widths")
            if row.method == LAYERS:
                kept = ("digest", "instance", "model", "set", "epsilon", "factor")
                widths += [{**{k: entries[k] for k in kept}, **layer} for layer in own]
            else:
                optimum = exact[row.instance_key].exact
                gap = None if optimum is None or row.lower is None else max(0.0, optimum - row.lower)
                plain.append({**entries, "exact": optimum, "gap": gap})
        for name, table in ((TABLE, plain), (WIDTHS, widths)):
            if table:
                frame = pl.DataFrame(table, infer_schema_length=None)
                self.write(f"{name}.csv", frame.write_csv().encode())
                buffer = io.BytesIO()
                frame.write_parquet(buffer)
                self.write(f"{name}.parquet", buffer.getvalue())

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the folder completely or not at all, in place of the last one."""
        replace_file(self.folder / name, content)


def read_tables(folder: Path) -> list[Measurement]:
    """The measurements of `folder` from its CSV tables alone.

    Raises:
        InputError: the tables are missing, or of another kind.
    """
    names = {field.name for field in fields(Measurement)}
    try:
        rows = [Measurement(**{k: v for k, v in row.items() if k in names}) for row in _csv(folder / f"{TABLE}.csv")]
        first = {row.instance_key: row for row in reversed(rows)}
        widths: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
        if (folder / f"{WIDTHS}.csv").exists():
            for layer in _csv(folder / f"{WIDTHS}.csv"):
                widths.setdefault((layer["digest"], layer["set"], layer["epsilon"]), []).append(layer)
        return rows + [replace(first[key], method=LAYERS, widths=tuple(own)) for key, own in widths.items()]
    except (OSError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{str(folder)!r} has no tables of a study that can be read: {error}") from error


def _csv(path: Path) -> list[dict[str, Any]]:
    return pl.read_csv(path, infer_schema_length=None).to_dicts()


def _late(row: Measurement) -> bool:
    return row.late or row.note == "unknown"


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _read(path: Path) -> list[Measurement]:
    if not path.exists():
        return []
    rows: list[Measurement] = []
    names = {field.name for field in fields(Measurement)}
    lines: Sequence[bytes] = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            entries: Any = json.loads(line)
        except ValueError:  # the incomplete last line of a run that was killed
            continue
        if not isinstance(entries, dict) or entries.keys() != names:
            raise InputError(f"line {number} of {str(path)!r} is not a measurement of this version; give a new --out")
        rows.append(Measurement(**{**entries, "widths": tuple(entries["widths"])}))
    return rows
