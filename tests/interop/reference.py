"""VNN-LIB by definition: a formula evaluated at a point, and random formulas. The oracle of the tests of reading.

Nothing here uses the package's reader. Numbers are quarters, so that equality happens and everything is exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np


def holds(text: str, values: dict[str, Fraction]) -> bool:
    """Do all asserts of the text hold when the variables have these values?"""
    program = re.sub(r";[^\n]*", "", text).replace("(", " ( ").replace(")", " ) ").split()
    commands = _groups(iter([*program, ")"]))
    return all(_value(command[1], values) for command in commands if command[0] == "assert")


def _groups(tokens: Any) -> list[Any]:
    group: list[Any] = []
    for token in tokens:
        if token == ")":
            return group
        group.append(_groups(tokens) if token == "(" else token)
    raise AssertionError("unbalanced")


_FUNCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "and": all,
    "or": any,
    "<=": lambda terms: terms[0] <= terms[1],
    ">=": lambda terms: terms[0] >= terms[1],
    "=": lambda terms: terms[0] == terms[1],
    "+": sum,
    "*": prod,
    "-": lambda terms: -terms[0] if len(terms) == 1 else terms[0] - sum(terms[1:]),
}


def _value(term: Any, values: dict[str, Fraction]) -> Any:
    if isinstance(term, str):
        return values[term] if term in values else Fraction(term)
    return _FUNCTIONS[term[0]]([_value(operand, values) for operand in term[1:]])


def declarations(inputs: int, outputs: int) -> str:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


def random_text(seed: int, inputs: int = 2, outputs: int = 2) -> str:
    """Bounds of all inputs, then boxes and conditions on outputs in a random nest of `and` and `or`."""
    random = np.random.default_rng(seed)

    def quarter() -> str:
        return str(random.integers(-4, 5) / 4)

    def about_inputs() -> str:
        i, form = random.integers(inputs), random.integers(4)
        operator = ("<=", ">=", "<=", ">=")[form]
        return (
            f"({operator} X_{i} {quarter()})"
            if form < 2
            else f"({operator} (+ (* -2.0 X_{i}) {quarter()}) {quarter()})"
        )

    def about_outputs() -> str:
        i, j = random.integers(outputs, size=2)
        if i == j:
            return f"({random.choice(['<=', '>='])} Y_{i} {quarter()})"
        return str(
            random.choice(
                [
                    f"(<= Y_{i} Y_{j})",
                    f"(>= Y_{i} (+ Y_{j} {quarter()}))",
                    f"(<= (- (* 2.0 Y_{i}) Y_{j} {quarter()}) 0)",
                    f"(= (- Y_{i}) {quarter()})",
                ]
            )
        )

    def nest(depth: int) -> str:
        if depth == 0:
            conditions = [about_outputs(), *(about_inputs() for _ in range(random.integers(3)))]
            return f"(and {' '.join(conditions)})"
        operator = random.choice(["and", "or"])
        return f"({operator} {' '.join(nest(depth - 1) for _ in range(random.integers(1, 4)))})"

    bounds = "".join(f"(assert (>= X_{i} -1.0))\n(assert (<= X_{i} 1.0))\n" for i in range(inputs))
    asserts = "\n".join(f"(assert {nest(int(random.integers(3)))})" for _ in range(random.integers(1, 3)))
    return f"; seed {seed}\n{declarations(inputs, outputs)}{bounds}{asserts}\n"
