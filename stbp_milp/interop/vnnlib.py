"""Reader of VNN-LIB 1.0 (`.vnnlib`, `.vnnlib.gz`), the format of VNN-COMP's properties.

A file declares inputs `X_i` and outputs `Y_i` and asserts the unsafe region with `and`, `or`, `<=` and `>=`. A *case*
is one conjunction of its disjunctive normal form: bounds of single inputs and rows over outputs. Cases with the same
bounds are one box. Numbers are read as the nearest doubles.

We have our own parser because the one on PyPI for this version (vnnlib 0.0.1) drops conditions if a file has both
asserts on outputs and an `or`, and its errors do not name lines; vnnlib 1.0 and later only read VNN-LIB 2.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from stbp_milp.errors import InputError
from stbp_milp.interop.expressions import Atom, Expression, Source, expressions
from stbp_milp.interop.linear import Linear, difference, is_number, linear, scaled, variable
from stbp_milp.interop.region import Array, UnsafeBox, UnsafeRegion
from stbp_milp.properties import Property

_MOST_PRODUCTS = 5_000_000  # cases that conditions with alternatives may multiply out to
_MOST_BOUNDS = 20_000_000  # of all boxes together: 160 MB per side
_LARGEST = 3.4e38  # of float32
_WITHOUT_MEANING = {"set-logic", "set-info", "check-sat", "get-model", "exit"}

Row = tuple[tuple[tuple[int, float], ...], float]  # sum of coefficient * Y_i, plus a constant; unsafe where <= 0
Bounds = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Case:
    """A conjunction: bounds of inputs (all others are free), and rows over outputs that are all `<= 0`."""

    bounds: Bounds
    rows: tuple[Row, ...] = ()


def read_vnnlib(path: str | Path) -> UnsafeRegion:
    """Reads the unsafe region in a VNN-LIB file.

    Raises:
        InputError: the file cannot be read, is not VNN-LIB 1.0, or says something that boxes of inputs with linear
            conditions on outputs cannot express; the message names the line.
    """
    source = Source.read(path)
    declared: set[tuple[str, int]] = set()
    asserted: list[list[Case]] = []
    last = 0  # position of the last assert, where all of them are known
    for command in expressions(source):
        name, operands = _command(source, command)
        if name.text == "declare-const":
            declared.add(_declared(source, name, operands, declared))
        elif name.text == "assert" and len(operands) == 1:
            asserted.append(_cases(source, operands[0], declared))
            last = name.at
        elif name.text not in _WITHOUT_MEANING:
            raise source.wrong(name.at, f"unknown command {source.excerpt(command)!r}; this reads VNN-LIB 1.0")
    inputs, outputs = (_count(source, letter, declared) for letter in "XY")
    return UnsafeRegion(source.path.name, inputs, outputs, _boxes(source, last, asserted, inputs, outputs))


# --- commands ---------------------------------------------------------------------------------------------


def _command(source: Source, expression: Expression) -> tuple[Atom, tuple[Expression, ...]]:
    if isinstance(expression, Atom) or not expression.items or not isinstance(expression.items[0], Atom):
        raise source.wrong(
            expression.at, f"{source.excerpt(expression)!r} is not a command; expected declare-const or assert"
        )
    return expression.items[0], expression.items[1:]


def _declared(
    source: Source, command: Atom, operands: Sequence[Expression], declared: set[tuple[str, int]]
) -> tuple[str, int]:
    match operands:
        case [Atom(text=text), Atom(text="Real")]:
            name = variable(text)
            if name is None or name in declared:
                reason = "is declared twice" if name else "is no input X_i or output Y_i"
                raise source.wrong(command.at, f"{text!r} {reason}")
            return name
        case _:
            raise source.wrong(command.at, "expected a declaration such as (declare-const X_0 Real)")


def _count(source: Source, letter: str, declared: set[tuple[str, int]]) -> int:
    indices = {index for name, index in declared if name == letter}
    missing = next(i for i in range(len(indices) + 1) if i not in indices)
    if missing < max(indices, default=0) or not indices:
        raise InputError(f"{str(source.path)!r} declares no {letter}_{missing}; expected {letter}_0, {letter}_1, ...")
    return len(indices)


# --- cases ------------------------------------------------------------------------------------------------


def _cases(source: Source, expression: Expression, declared: set[tuple[str, int]]) -> list[Case]:
    """Returns the disjunctive normal form of a condition."""
    if isinstance(expression, Atom) or len(expression.items) < 2 or not isinstance(expression.items[0], Atom):
        raise source.wrong(
            expression.at, f"{source.excerpt(expression)!r} is not a condition; expected for example (<= X_0 0.5)"
        )
    operator, operands = expression.items[0], expression.items[1:]
    match operator.text:
        case "and":
            return _all_of(source, operator.at, [_cases(source, operand, declared) for operand in operands])
        case "or":
            return [case for operand in operands for case in _cases(source, operand, declared)]
        case "<=" | ">=" | "=" if len(operands) == 2:
            return [_comparison(source, operator, operands, declared)]
    raise source.wrong(
        operator.at, f"{source.excerpt(expression)!r} is not understood; expected and, or, <=, >= or = of two terms"
    )


def _all_of(source: Source, at: int, parts: Iterable[list[Case]]) -> list[Case]:
    """Returns the conjunction of normal forms: one case per way of choosing a case of each."""
    bounds: Bounds = {}
    rows: list[Row] = []
    several: list[list[Case]] = []
    for part in parts:  # single cases are merged at once: a box has thousands
        if len(part) == 1:
            _narrow(bounds, part[0].bounds)
            rows += part[0].rows
        else:
            several.append(part)
    found = [Case(bounds, tuple(rows))]
    for part in several:
        if len(found) > 1 and len(found) * len(part) > _MOST_PRODUCTS:
            raise source.wrong(
                at, f"its conditions multiply out to more than {_MOST_PRODUCTS} cases; split the property into files"
            )
        found = [_both(first, second) for first in found for second in part]
    return found


def _both(first: Case, second: Case) -> Case:
    bounds = dict(first.bounds)
    _narrow(bounds, second.bounds)
    return Case(bounds, first.rows + second.rows)


def _narrow(bounds: Bounds, others: Bounds) -> None:
    for index, (low, high) in others.items():
        own_low, own_high = bounds.get(index, (-math.inf, math.inf))
        bounds[index] = (max(low, own_low), min(high, own_high))


def _comparison(source: Source, operator: Atom, operands: Sequence[Expression], declared: set[tuple[str, int]]) -> Case:
    left, right = operands
    if isinstance(left, Atom) and isinstance(right, Atom):  # a bound of one input: most of every file
        name = variable(left.text)
        if name is not None and name[0] == "X" and name in declared and is_number(right.text):
            return _bound(name[1], operator.text, float(right.text))
    least = difference(linear(source, left), linear(source, right))
    names = [name for name in least if name is not None]
    unknown = next((name for name in names if name not in declared), None)
    if unknown is not None:
        raise source.wrong(operator.at, f"{unknown[0]}_{unknown[1]} is not declared before")
    if not names:
        raise source.wrong(operator.at, "compares numbers, or what cancels; expected a variable on one side")
    if all(letter == "Y" for letter, _ in names):
        signs = {"<=": (1,), ">=": (-1,), "=": (1, -1)}[operator.text]
        return Case({}, tuple(_row(scaled(least, Fraction(sign))) for sign in signs))
    if len(names) > 1:
        raise source.wrong(
            operator.at, "relates an input to other variables; expected bounds of single inputs, which form boxes"
        )
    coefficient = least[names[0]]
    turned = {"<=": ">=", ">=": "<=", "=": "="}[operator.text] if coefficient < 0 else operator.text
    return _bound(names[0][1], turned, float(-least.get(None, Fraction(0)) / coefficient))


def _bound(index: int, operator: str, value: float) -> Case:
    side = value if abs(value) < _LARGEST else math.copysign(math.inf, value)
    return Case({index: (-math.inf if operator == "<=" else side, math.inf if operator == ">=" else side)})


def _row(least: Linear) -> Row:
    coefficients = sorted((name[1], float(value)) for name, value in least.items() if name is not None)
    return tuple(coefficients), float(least.get(None, Fraction(0)))


# --- boxes ------------------------------------------------------------------------------------------------


def _boxes(source: Source, at: int, asserted: list[list[Case]], inputs: int, outputs: int) -> tuple[UnsafeBox, ...]:
    """Groups cases with the same bounds into boxes; what all cases share is added last, as it may be large."""
    common = _all_of(source, at, [part for part in asserted if len(part) == 1])[0]
    lower, upper = _narrowed(np.full(inputs, -np.inf), np.full(inputs, np.inf), common.bounds)
    grouped: dict[tuple[tuple[int, tuple[float, float]], ...], list[tuple[Row, ...]]] = {}
    for case in _all_of(source, at, [part for part in asserted if len(part) > 1]):
        grouped.setdefault(tuple(sorted(case.bounds.items())), []).append(common.rows + case.rows)
    if len(grouped) * inputs > _MOST_BOUNDS:
        raise InputError(
            f"{str(source.path)!r} has {len(grouped)} boxes of {inputs} inputs; split the property into files"
        )
    found = []
    for bounds, unsafe in grouped.items():
        low, high = _narrowed(lower, upper, dict(bounds))
        if bool((low > high).any()):
            continue
        free = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
        if len(free):
            raise InputError(
                f"{str(source.path)!r} bounds X_{free[0]} by [{low[free[0]]:g}, {high[free[0]]:g}]; "
                "expected a smallest and a largest value of every input that float32 can hold"
            )
        found.append(UnsafeBox(low, high, _property(source, unsafe, outputs)))
    if not found:
        raise InputError(f"{str(source.path)!r} allows no input at all: its boxes are empty; expected lower <= upper")
    return tuple(found)


def _narrowed(lower: Array, upper: Array, bounds: Bounds) -> tuple[Array, Array]:
    lower, upper = lower.copy(), upper.copy()
    for index, (low, high) in bounds.items():
        lower[index], upper[index] = max(low, lower[index]), min(high, upper[index])
    return lower, upper


def _property(source: Source, unsafe: list[tuple[Row, ...]], outputs: int) -> Property:
    """Returns the property that every unsafe conjunction has a positive row."""
    position: dict[Row, int] = {}
    clauses: dict[tuple[int, ...], None] = {}
    for conjunction in unsafe:
        if not conjunction:
            raise InputError(
                f"{str(source.path)!r} has a case without a condition on outputs, so that every input of it is "
                "unsafe; expected a condition on some Y_i"
            )
        clauses[tuple(dict.fromkeys(position.setdefault(row, len(position)) for row in conjunction))] = None
    rows = torch.zeros(len(position), outputs, dtype=torch.float64)
    for (coefficients, _), at in position.items():
        for index, coefficient in coefficients:
            rows[at, index] = coefficient
    offset = torch.tensor([constant for _, constant in position], dtype=torch.float64)
    number_of = f"{len(clauses)} case" + ("s" if len(clauses) > 1 else "")
    return Property(rows, offset, tuple(clauses), f"no unsafe output ({number_of} in {source.path.name})")
