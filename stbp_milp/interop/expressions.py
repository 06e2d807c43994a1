"""The parser of a VNN-LIB file's parentheses, which yields atoms and groups with their positions.

An *expression* is an atom (a name or a number) or a group of expressions.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stbp_milp.errors import InputError

_TOKEN = re.compile(r"[()]|[^\s();]+|;[^\n]*")
_DEEPEST = 200  # largest nesting depth of groups


class Atom(NamedTuple):
    text: str
    at: int  # position of its first character


class Group(NamedTuple):
    items: tuple[Atom | Group, ...]
    at: int


Expression = Atom | Group


@dataclass(frozen=True, eq=False)
class Source:
    """A file's text, for error messages that name the line."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: str | Path) -> Source:
        """Reads the text of a file, which may be compressed (`.gz`).

        Raises:
            InputError: the file cannot be read.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{str(path)!r} cannot be read as a VNN-LIB file ({reason})") from error
        return cls(path, text)

    def wrong(self, at: int, message: str) -> InputError:
        line = self.text.count("\n", 0, at) + 1
        return InputError(f"line {line} of {str(self.path)!r}: {message}")

    def excerpt(self, expression: Expression) -> str:
        """Returns the beginning of the expression as it is written."""
        text = expression.text if isinstance(expression, Atom) else self.text[expression.at : expression.at + 60]
        return " ".join(text.split())[:40]


def expressions(source: Source) -> Iterator[Expression]:
    """Yields the file's expressions one by one, because there may be millions; comments are left out.

    Raises:
        InputError: a parenthesis has no partner, or groups are nested too deeply.
    """
    open_: list[tuple[list[Expression], int]] = []  # the open groups: their items, and where they began
    for match in _TOKEN.finditer(source.text):
        token, at = match[0], match.start()
        if token == "(":
            if len(open_) == _DEEPEST:
                raise source.wrong(at, f"groups are nested more than {_DEEPEST} deep")
            open_.append(([], at))
            continue
        if token[0] == ";":
            continue
        complete: Expression = Atom(token, at)
        if token == ")":
            if not open_:
                raise source.wrong(at, "a ')' without its '('")
            items, began = open_.pop()
            complete = Group(tuple(items), began)
        if open_:
            open_[-1][0].append(complete)
        else:
            yield complete
    if open_:
        raise source.wrong(open_[-1][1], "a '(' without its ')'; is the file cut off?")
