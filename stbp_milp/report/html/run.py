"""Reader of a run's folder, written by `run_batch.py` or `verify_complete.py`.

A folder may hold a few broken files among thousands of good ones; those are left out and reported.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stbp_milp.errors import InputError
from stbp_milp.plain import from_json
from stbp_milp.report.html.instance import ShownInstance, read_instance, stem_of


@dataclass(frozen=True)
class Run:
    """The contents of a run's folder.

    Attributes:
        instances: in the order of the instance list, or of their start.
        pending: names of listed instances without a result.
        broken: one sentence per file that cannot be read.
        commands: the command lines that produced the run.
        made_by: every value that occurs of versions and machines.
    """

    folder: Path
    instances: tuple[ShownInstance, ...]
    pending: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    made_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_run(folder: Path) -> Run:
    """Reads the run in `folder`.

    Raises:
        InputError: there is no such folder, no run wrote to it, or no result in it can be read.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}; give the folder that a run wrote its results to")
    batch = (folder / "records").is_dir()
    paths = sorted((folder / "records" if batch else folder).glob("*.json"))
    order = _listed(folder / "batch.sqlite") if batch else []
    specifications = _specifications_folder(folder)
    read: dict[str, ShownInstance] = {}
    broken = []
    for path in paths:
        try:
            read[path.stem] = read_instance(path, folder, batch, specifications)
        except InputError as error:
            broken.append(str(error))
    if not read and (broken or not batch):
        problem = f"none of its {len(paths)} files can be read: {broken[0]}" if broken else "it holds no results"
        raise InputError(
            f"{str(folder)!r} cannot be shown because {problem}; give the folder that a run wrote its results to"
        )
    position = {key: i for i, (key, _) in reversed(list(enumerate(order)))}
    stems = sorted(read, key=lambda stem: (position.get(stem, len(order)), stem))
    done = read.keys() | {path.stem for path in paths}
    return Run(
        folder,
        tuple(read[stem] for stem in stems),
        tuple(name for key, name in order if key not in done),
        tuple(broken),
        tuple(dict.fromkeys(_commands(folder, read.values()))),
        _made_by(read.values()),
    )


def _listed(database: Path) -> list[tuple[str, str]]:
    """Returns key and name of every listed instance, in order; nothing if the mirror cannot be read."""
    if not database.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT key, model, specification FROM instances ORDER BY position").fetchall()
    except sqlite3.Error:
        return []
    return [(str(key), f"{stem_of(model)} / {stem_of(specification)}") for key, model, specification in rows]


def _runs(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yields what the driver noted at each of its starts."""
    for path in sorted((folder / "runs").glob("*.json")):
        try:
            entries = from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(entries, dict):
            yield entries


def _specifications_folder(folder: Path) -> Path | None:
    lists = [entries["list"] for entries in _runs(folder) if isinstance(entries.get("list"), str)]
    return Path(lists[-1]).parent if lists else None


def _commands(folder: Path, instances: Iterable[ShownInstance]) -> Iterator[str]:
    for entries in _runs(folder):
        if isinstance(entries.get("command"), str):
            yield entries["command"]
    for instance in instances:
        if instance.details.get("command"):
            yield str(instance.details["command"])


def _made_by(instances: Iterable[ShownInstance]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for instance in instances:
        for name, value in instance.made_by.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    return {name: tuple(values) for name, values in found.items()}
