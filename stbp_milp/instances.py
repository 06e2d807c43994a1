"""Questions in files of our own format.

A *specification* is a JSON file that names a clip, a set and a property. The clip's path is relative to the folder of
that file. `results/README.md` documents the format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stbp_milp.errors import InputError
from stbp_milp.files import write_new_file
from stbp_milp.given import radius
from stbp_milp.inputs import read_clip
from stbp_milp.instance_list import VERDICTS
from stbp_milp.network.model import Model
from stbp_milp.network.views import as_clip, parse_layout
from stbp_milp.plain import from_json
from stbp_milp.properties import property_of
from stbp_milp.query import Query
from stbp_milp.sets import SetSpecification

SCHEMA = 1
_FIELDS = {"schema", "clip", "set", "epsilon", "domain", "label", "top_k", "tolerance", "expected", "name", "layout"}
_REQUIRED = {"schema", "clip", "set", "epsilon"}


@dataclass(frozen=True)
class Specification:
    """A question about any model that accepts the clip.

    Attributes:
        clip: the clip's location, as `read_clip` takes it; relative paths are relative to `folder`.
        folder: the folder of the file that the specification was read from.
        label: the class that must be kept; None: the model's own prediction.
        top_k: the number of leading classes among which that class must stay.
        tolerance: for regression: every output stays within +-tolerance of the clean output, in the output's unit.
        expected: the verdict, if it is known.
        name: a name for people to read; None if there is none.
        layout: the axes of the model's input, see `network.views`; None if the user did not name them.
        domain_given: whether the user gave the set's domain; uint8 values are then taken as they are.
    """

    clip: str
    set: SetSpecification
    folder: Path = Path()
    label: int | None = None
    top_k: int = 1
    tolerance: float | None = None
    expected: str | None = None
    name: str | None = None
    domain_given: bool = False
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.set.domain != (0.0, 1.0):  # only the user can have given another domain
            object.__setattr__(self, "domain_given", True)

    def query(self, model: Model) -> Query:
        """Returns the question about `model`.

        Raises:
            InputError: the clip cannot be read, or clip, set, property and model do not fit together.
        """
        place = self.clip if Path(self.clip).is_absolute() else str(self.folder / self.clip)
        clip = read_clip(place, self.domain_given)
        model = model if self.layout is None else model.seen_as(self.layout)
        clip = as_clip(clip, model.axes)
        if tuple(clip.shape) != model.network.input_shape:
            raise InputError(
                f"the clip {self.clip!r} has shape {tuple(clip.shape)}, but the model {model.name} takes "
                f"{model.network.input_shape}; name a clip of that shape in the specification"
            )
        wanted = property_of(model.predict, clip, self.label, self.top_k, self.tolerance)
        query = Query(model, clip, self.set, wanted)
        query.check()
        return query

    def to_json(self) -> str:
        entries = {
            "schema": SCHEMA,
            "clip": self.clip,
            "set": self.set.text,
            "epsilon": self.set.epsilon,
            "domain": list(self.set.domain) if self.domain_given else None,
            "label": self.label,
            "top_k": self.top_k,
            "tolerance": self.tolerance,
            "expected": self.expected,
            "name": self.name,
            "layout": self.layout,
        }
        return json.dumps({key: value for key, value in entries.items() if value is not None}, indent=2) + "\n"


def read_specification(path: str | Path) -> Specification:
    """Reads the specification in the file `path`.

    Raises:
        InputError: there is no such file, or it is not a specification.
    """
    try:
        entries = from_json(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{str(path)!r} cannot be read as a specification ({reason}); give a JSON file, or a VNN-LIB property "
            "(.vnnlib or .vnnlib.gz)"
        ) from error
    if not isinstance(entries, dict):
        raise InputError(
            f"{str(path)!r} holds a JSON {type(entries).__name__}; expected an object with a clip and a set"
        )
    if entries.get("schema") != SCHEMA:
        raise InputError(f"{str(path)!r} has schema {entries.get('schema')!r}; this version reads schema {SCHEMA}")
    nested = sorted(field for field, value in entries.items() if _nested(value))
    if nested:
        raise InputError(f"{str(path)!r} has lists or objects in {', '.join(nested)}; expected text and numbers")
    unknown, missing = sorted(entries.keys() - _FIELDS), sorted(_REQUIRED - entries.keys())
    if unknown or missing:
        parts = [f"unknown fields: {', '.join(unknown)}"] if unknown else []
        parts += [f"no field {', '.join(missing)}"] if missing else []
        raise InputError(f"{str(path)!r} has {' and '.join(parts)}; see results/README.md")
    return _specification(entries, Path(path))


def _nested(value: object) -> bool:
    """Is the value an object, or a list that holds one or another list? A domain is the deepest that is allowed."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value))


def write_specification(specification: Specification, path: Path) -> None:
    """Writes the specification to the new file `path`, see `write_new_file`."""
    write_new_file(path, specification.to_json().encode())


def _one_of(
    words: tuple[str, ...], word: str | None, wrong: Callable[[str, str], InputError], field: str
) -> str | None:
    if word not in (None, *words):
        raise wrong(field, "one of " + ", ".join(words))
    return word


def _specification(entries: dict[str, Any], path: Path) -> Specification:
    def wrong(field: str, expected: str) -> InputError:
        return InputError(f"{str(path)!r} has {field} {entries[field]!r}; expected {expected}")

    def number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    def chosen(field: str, words: tuple[str, ...]) -> str | None:
        return _one_of(words, entries.get(field), wrong, field)

    for field in ("clip", "set"):
        if not isinstance(entries[field], str):
            raise wrong(field, "text")
    domain = entries.get("domain", [0.0, 1.0])
    if not (isinstance(domain, list) and len(domain) == 2 and all(map(number, domain))):
        raise wrong("domain", "the smallest and the largest value of the data, such as [0, 1]")
    label, top, tolerance = (entries.get(field) for field in ("label", "top_k", "tolerance"))
    epsilon = entries["epsilon"]
    if not isinstance(epsilon, str) and not number(epsilon):
        raise wrong("epsilon", 'a radius such as 0.03 or "4/255"')
    for field, value in (("label", label), ("top_k", top)):
        if value is not None and type(value) is not int:
            raise wrong(field, "a whole number")
    if tolerance is not None and not number(tolerance):
        raise wrong("tolerance", "a number in the unit of the output")
    if not isinstance(entries.get("name", ""), str):
        raise wrong("name", "text")
    layout = entries.get("layout")
    layout = None if layout is None else parse_layout(layout)
    return Specification(
        entries["clip"],
        SetSpecification(entries["set"], radius(epsilon), (float(domain[0]), float(domain[1]))),
        path.parent,
        label,
        1 if top is None else top,
        tolerance,
        chosen("expected", VERDICTS),
        entries.get("name"),
        "domain" in entries,
        layout,
    )
