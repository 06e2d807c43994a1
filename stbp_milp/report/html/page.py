"""The page: a template, the run as JSON, and plotly and DataTables from their own packages.

The page loads nothing from elsewhere: its content security policy forbids that. Large content (plotly, the instances'
details, the clips) is packed (zlib, base64) and unpacked in the browser on demand. All text from records goes either
into JSON that cannot end its script element, or through the template's escaping.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata, resources
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from stbp_milp.errors import InputError
from stbp_milp.files import prepare_folder, replace_file, write_new_file
from stbp_milp.report.html import figures
from stbp_milp.report.html.changes import Changes, Pair, compare_runs, slowest_first
from stbp_milp.report.html.clips import Viewers, pack_all, pack_bytes
from stbp_milp.report.html.instance import ShownInstance
from stbp_milp.report.html.run import Run
from stbp_milp.results import WORDS
from stbp_milp.versions import VERSION

GENERATOR = "stbp-milp report"

_SCRIPTS = ("base.js", "table.js", "charts.js", "viewer.js", "detail.js", "main.js")
_MOST_LISTED = 12  # lines per list of the comparison


@dataclass(frozen=True)
class Written:
    """A report that was written.

    Attributes:
        path: the page.
        bytes: the size of the page.
        viewers: number of counterexamples that can be played in it.
        left_out: number of counterexamples for which there was no room.
        warnings: one sentence per file that could not be read.
    """

    path: Path
    bytes: int
    viewers: int
    left_out: int
    warnings: tuple[str, ...]


def write_report(run: Run, path: Path, against: Run | None = None, room: int = 32 * 1024**2) -> Written:
    """Writes the page of `run` to `path`, with at most `room` bytes of clips.

    An existing report is replaced; any other existing file is not.

    Raises:
        InputError: a package of the page is not installed, or the file cannot be written.
    """
    changes = compare_runs(run, against) if against else None
    viewers = pack_all(enumerate(run.instances), room)
    page = render(run, changes, viewers, path.parent).encode()
    prepare_folder(path.parent)
    _write(path, page)
    warnings = run.broken + (against.broken if against else ()) + viewers.broken
    return Written(path, len(page), len(viewers.packed), len(viewers.too_many), warnings)


def render(run: Run, changes: Changes | None, viewers: Viewers, home: Path) -> str:
    """Returns the page as text; links are relative to the folder `home`."""
    jinja2 = _package("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_part), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": figures.duration, "size": figures.size, "number": _number}
    template = environment.get_template("page.html.jinja")
    instances = run.instances
    groups = figures.groups(instances)
    text: str = template.render(
        generator=GENERATOR,
        version=VERSION,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        run=run,
        name=_name(run),
        words=WORDS,
        shares=figures.shares(instances),
        seconds=[instance.seconds for instance in instances],
        median=median(instance.seconds for instance in instances) if instances else None,
        memory=max((instance.memory for instance in instances if instance.memory is not None), default=None),
        unexpected=[instance for instance in instances if _unexpected(instance)],
        groups=groups[: figures.MOST_GROUPS],
        more_groups=max(0, len(groups) - figures.MOST_GROUPS),
        viewers=viewers,
        changes=changes,
        other=_name(changes.there) if changes else None,
        slower=_listed(changes, "slower"),
        faster=_listed(changes, "faster"),
        data=_json({"words": WORDS, "rows": _rows(run, changes, viewers), "other": changes is not None}),
        details=pack_bytes(json.dumps([_detail(each, run.folder, home) for each in instances]).encode()),
        style=_part("style.css"),
        table_style=_library("itables", "html/dt_bundle.css"),
        table_script=pack_bytes(_library("itables", "html/dt_bundle.js").encode()),
        plot_script=pack_bytes(_library("plotly", "package_data/plotly.min.js").encode()),
        script="\n".join(_part(name) for name in _SCRIPTS),
    )
    return text


def _rows(run: Run, changes: Changes | None, viewers: Viewers) -> list[dict[str, Any]]:
    """Returns what the table and the charts need to know about every instance."""
    shown = dict.fromkeys(viewers.packed, 1) | dict.fromkeys(viewers.too_many, 2)
    rows = []
    for i, each in enumerate(run.instances):
        row = {
            "id": i,
            "name": each.name,
            "model": each.question.get("model", ""),
            "clip": each.question.get("clip", ""),
            "set": each.question.get("set", ""),
            "eps": each.question.get("epsilon", ""),
            "word": each.word,
            "lower": each.lower,
            "upper": each.upper,
            "seconds": each.seconds,
            "memory": each.memory,
            "by": each.decided_by or "",
            "viewer": shown.get(i, 0),
        }
        if changes is not None:
            row |= _change(changes.pairs.get(i))
        rows.append(row)
    return rows


def _change(pair: Pair | None) -> dict[str, Any]:
    if pair is None:
        return {"was": "", "before": None, "ratio": None, "change": "new"}
    change = "contradiction" if pair.contradiction else "verdict" if pair.changed else pair.pace
    return {"was": pair.there.word, "before": pair.there.seconds, "ratio": pair.ratio, "change": change}


def _listed(changes: Changes | None, pace: str) -> list[tuple[int, Pair]]:
    if changes is None:
        return []
    position = {id(pair): i for i, pair in changes.pairs.items()}
    return [(position[id(pair)], pair) for pair in slowest_first(list(changes.pairs.values()), pace)[:_MOST_LISTED]]


def _detail(instance: ShownInstance, folder: Path, home: Path) -> dict[str, Any]:
    """Returns what the page shows when an instance is opened."""
    files = {**instance.evidence, "record": folder / str(instance.details["file"])}
    links = {kind: quote(Path(os.path.relpath(path, home)).as_posix()) for kind, path in files.items()}
    plain: dict[str, Any] = _plain({"question": instance.question, **instance.details, "links": links})
    return plain


def _unexpected(instance: ShownInstance) -> bool:
    """Is the verdict the opposite of the one that the specification expects?"""
    expected = instance.details.get("expected")
    return instance.decided and expected in ("verified", "falsified") and expected != instance.word


def _name(run: Run) -> str:
    return run.folder.resolve().name


def _json(value: Any) -> str:
    """Returns JSON that cannot end its script element."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    """Returns `value` with null for numbers that JSON cannot represent."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}".replace("-", "−")


def _part(name: str) -> str:
    return (resources.files("stbp_milp.report.html") / "assets" / name).read_text(encoding="utf-8")


def _library(package: str, name: str) -> str:
    _package(package)
    try:
        return (resources.files(package) / name).read_text(encoding="utf-8")
    except OSError as error:
        version = metadata.version(package)
        raise InputError(f"{package} {version} has no file {name!r}; install the version in pyproject.toml") from error


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"the report needs the package {name!r}; install it with `bash scripts/set_up.sh .venv report`"
        ) from error


def _write(path: Path, content: bytes) -> None:
    """Writes the page completely or not at all, and replaces nothing but an older page."""
    if not path.exists():
        write_new_file(path, content)
        return
    try:
        with path.open("rb") as stream:
            ours = f'content="{GENERATOR}"'.encode() in stream.read(1000)
        if not ours:
            raise InputError(f"{str(path)!r} is already there and is not a report; give another file with --out")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{str(path)!r} cannot be written ({reason}); give another file with --out") from error
    replace_file(path, content, "give another file with --out")
