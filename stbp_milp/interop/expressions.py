"""The parentheses of a VNN-LIB file: texts and groups, each with the line it came from.

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
_DEEPEST = 200  # groups in groups


class Atom(NamedTuple):
    text: str
    at: int  # position of its first letter


class Group(NamedTuple):
    items: tuple[Atom | Group, ...]
    at: int


Expression = Atom | Group


@dataclass(frozen=True, eq=False)
class Source:
    """A file's text, to say where in it something is wrong."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: str | Path) -> Source:
        """The text of a file, or of a `.gz` file.

        Raises:
            InputError: it cannot be read.
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
        """The beginning of the expression as it is written."""
        text = expression.text if isinstance(expression, Atom) else self.text[expression.at : expression.at + 60]
        return " ".join(text.split())[:40]


def expressions(source: Source) -> Iterator[Expression]:
    """The file's expressions in order, one by one, because there may be millions; comments are left out.

    Raises:
        InputError: a parenthesis without its partner.
    """
    open_: list[tuple[list[Expression], int]] = []  # the groups that are open: their items, and where they began
    for match in _TOKEN.finditer(source.text):
        token, at = match[0], match.start()
        if token == "(":
            if len(open_) == _DEEPEST:
                raise source.wrong(at, f"more than {_DEEPEST} groups in one another")
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
