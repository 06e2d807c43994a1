"""Writer of our questions as VNN-LIB 1.0, in which a set becomes the union of its members' boxes.

The box around the whole set bounds every input once. If the set has several members, one `or` says which voxels stay
unchanged in each. Numbers are written with as many digits as are needed to read the same doubles again.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stbp_milp.errors import InputError
from stbp_milp.files import write_new_file
from stbp_milp.properties import Property
from stbp_milp.query import Query
from stbp_milp.sets import BoxSpecification, PerturbationSet

MOST_BOXES = 5_000
_MOST_CONDITIONS = 5_000_000  # about 150 MB of text


def write_vnnlib(query: Query, path: Path) -> int:
    """Writes the question to the new file `path` (`.gz`: compressed) and returns the number of boxes.

    Raises:
        InputError: the set has too many members to write out, or the file cannot be written.
    """
    if not query.model.axes.in_order:
        raise InputError(
            f"VNN-LIB numbers the inputs of {query.model.name} in another order than that of a clip (its layout is "
            f"{query.model.axes.layout}), which is not written; export the model with the layout CTHW"
        )
    perturbation = query.set.build(query.clip)
    stays = _members(query, perturbation)
    text = "\n".join(_lines(query, perturbation, stays)) + "\n"
    content = text.encode()
    write_new_file(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return len(stays)


def count_boxes(query: Query) -> float:
    """Returns the number of boxes of which the question's set is the union; it can be astronomically large."""
    return float(query.set.build(query.clip).choice.members()[0])


def can_be_written(query: Query) -> bool:
    """Can `write_vnnlib` write that many boxes?"""
    return _fit(count_boxes(query), query.clip.numel())


def _fit(count: float, size: int) -> bool:
    return count <= MOST_BOXES and (count == 1 or count * size <= _MOST_CONDITIONS)


def _members(query: Query, perturbation: PerturbationSet) -> NDArray[np.bool_]:
    """Returns the voxels that each member leaves unchanged, of those that the set moves: `(members, C*T*H*W)`."""
    count, size = float(perturbation.choice.members()[0]), query.clip.numel()
    if not _fit(count, size):
        raise InputError(
            f"the set {query.set.text!r} is a union of {count:.6g} boxes of {size} inputs, too many for "
            "VNN-LIB; choose a smaller set, or keep our own specification"
        )
    channels = query.clip.shape[0]
    moves = perturbation.singletons().choice.union().flatten(1) if count > 1 else perturbation.choice.union().flatten(1)
    stays = ~moves & moves.any(0)
    whole: NDArray[np.bool_] = stays.repeat(1, channels).numpy()
    return whole


def _lines(query: Query, perturbation: PerturbationSet, stays: NDArray[np.bool_]) -> Iterator[str]:
    own = query.set
    hull = (own.lower, own.upper) if isinstance(own, BoxSpecification) else (side[0] for side in perturbation.hull())
    lower, upper = (side.flatten().tolist() for side in hull)
    clean = query.clip.flatten().tolist()
    yield f"; {query.model.name}: {query.property.text}; set {query.set.text}, {len(stays)} box(es)"
    yield from (f"(declare-const X_{i} Real)" for i in range(len(clean)))
    yield from (f"(declare-const Y_{i} Real)" for i in range(query.property.rows.shape[1]))
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        yield f"(assert (>= X_{i} {_decimal(low)}))"
        yield f"(assert (<= X_{i} {_decimal(high)}))"
    if len(stays) > 1:
        yield "(assert (or"
        for member in stays:
            fixed = (f"(<= X_{i} {_decimal(clean[i])}) (>= X_{i} {_decimal(clean[i])})" for i in np.flatnonzero(member))
            yield f"  (and {' '.join(fixed)})"
        yield "))"
    yield "(assert (or"
    yield from (f"  (and {' '.join(clause)})" for clause in _unsafe(query.property))
    yield "))"


def _unsafe(property: Property) -> Iterator[list[str]]:
    """Yields, for every clause, the conditions under which it fails."""
    for clause in property.clauses:
        yield [_row(property.rows[r], float(property.offset[r])) for r in clause]


def _row(row: torch.Tensor, offset: float) -> str:
    """Writes the condition `row @ y + offset <= 0`."""
    coefficients = [(i, value) for i, value in enumerate(row.tolist()) if value]
    match coefficients:
        case [(i, 1.0), (j, -1.0)] if offset == 0:
            return f"(<= Y_{i} Y_{j})"
        case [(i, -1.0), (j, 1.0)] if offset == 0:
            return f"(>= Y_{i} Y_{j})"
        case [(i, 1.0)]:
            return f"(<= Y_{i} {_decimal(-offset)})"
        case [(i, -1.0)]:
            return f"(>= Y_{i} {_decimal(offset)})"
        case _:
            terms = " ".join(f"(* {_decimal(value)} Y_{i})" for i, value in coefficients)
            return f"(<= (+ {terms} 0.0) {_decimal(-offset)})"


def _decimal(value: float) -> str:
    """Returns the shortest decimal without an exponent that is read as `value` again."""
    text: str = np.format_float_positional(value, unique=True, trim="0")
    return text
