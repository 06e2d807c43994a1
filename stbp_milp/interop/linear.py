"""Linear expressions of a VNN-LIB file, `2 * Y_0 - Y_1 + 0.5`, in exact fractions.

A *variable* is an input or an output, `X_3` or `Y_0`. Numbers become doubles only at the end, each rounded once, so
that `(+ 0.1 0.2)` is the double next to 0.3.
"""

from __future__ import annotations

import re
from fractions import Fraction

from stbp_milp.interop.expressions import Atom, Expression, Group, Source

Variable = tuple[str, int]  # ("X", 3)
Linear = dict[Variable | None, Fraction]  # None: the constant

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_VARIABLE = re.compile(r"([XY])_(\d{1,9})")


def is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def variable(text: str) -> Variable | None:
    match = _VARIABLE.fullmatch(text)
    return None if match is None else (match[1], int(match[2]))


def linear(source: Source, expression: Expression) -> Linear:
    """Returns the coefficients of an expression.

    Raises:
        InputError: the expression is not linear in X_i and Y_i.
    """
    if isinstance(expression, Atom):
        return _of_atom(source, expression)
    operator, operands = _application(source, expression)
    terms = [linear(source, operand) for operand in operands]
    match operator.text:
        case "+":
            return _sum(terms)
        case "-" if len(terms) == 1:
            return scaled(terms[0], Fraction(-1))
        case "-":
            return _sum([terms[0], *(scaled(term, Fraction(-1)) for term in terms[1:])])
        case "*":
            return _product(source, expression, terms)
        case other:
            raise source.wrong(operator.at, f"unknown function {other!r}; expected +, - or * of X_i, Y_i and numbers")


def scaled(term: Linear, factor: Fraction) -> Linear:
    return {key: factor * coefficient for key, coefficient in term.items()}


def difference(first: Linear, second: Linear) -> Linear:
    """Returns `first - second`, without terms that cancel."""
    return _sum([first, scaled(second, Fraction(-1))])


def _of_atom(source: Source, atom: Atom) -> Linear:
    name = variable(atom.text)
    if name is not None:
        return {name: Fraction(1)}
    if is_number(atom.text):
        return {None: Fraction(atom.text)}
    raise source.wrong(atom.at, f"{atom.text!r} is neither a variable X_i or Y_i nor a number")


def _application(source: Source, group: Group) -> tuple[Atom, tuple[Expression, ...]]:
    if len(group.items) < 2 or not isinstance(group.items[0], Atom):
        raise source.wrong(group.at, f"{source.excerpt(group)!r} is not an expression; expected one like (+ Y_0 1.5)")
    return group.items[0], group.items[1:]


def _sum(terms: list[Linear]) -> Linear:
    total: Linear = {}
    for term in terms:
        for key, coefficient in term.items():
            total[key] = total.get(key, Fraction(0)) + coefficient
    return {key: coefficient for key, coefficient in total.items() if coefficient}


def _product(source: Source, group: Group, terms: list[Linear]) -> Linear:
    result: Linear = {None: Fraction(1)}
    for term in terms:
        if set(term) <= {None}:
            result = scaled(result, term.get(None, Fraction(0)))
        elif set(result) <= {None}:
            result = scaled(term, result.get(None, Fraction(0)))
        else:
            raise source.wrong(group.at, f"{source.excerpt(group)!r} multiplies two variables; expected linear terms")
    return result
