"""The README of a bench, for users of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import prod

from stbp_milp.network.model import Model
from stbp_milp.st_bench.layout import Question


@dataclass(frozen=True, eq=False)
class QuestionRow:
    """A question in the README's table.

    Attributes:
        boxes: the number of boxes of which its set is the union.
        written: does it have a VNN-LIB file?
    """

    question: Question
    model: Model
    boxes: float
    written: bool


_TEXT = "explanation.md"  # str.format fills it
_CHOICE = (
    "\nQuestions that we did not settle in {seconds:g} s of processor time were left out, but for those chosen\n"
    "by hand: this bench is for trying a tool, and the share that we settle says nothing about ours.\n"
)


def explanation(rows: Sequence[QuestionRow], seed: int, boxes: int, settled_within: float | None) -> str:
    """Returns the whole README."""
    words = [row.question.expected for row in rows]
    named = (
        ("verified", "verified"),
        ("falsified", "falsified"),
        ("too short a limit", "unknown"),
        ("not known", None),
    )
    counts = ", ".join(f"{words.count(word)} {name}" for name, word in named if words.count(word))
    text = (files(__package__) / _TEXT).read_text(encoding="utf-8")
    return text.format(
        seed=seed,
        count=len(rows),
        vnnlib=sum(row.written for row in rows),
        counts=f"Expected verdicts: {counts}",
        boxes=boxes,
        choice="" if settled_within is None else _CHOICE.format(seconds=settled_within),
        networks="\n".join(_networks(rows)),
        questions="\n".join(map(_question, rows)),
    )


def _networks(rows: Sequence[QuestionRow]) -> list[str]:
    lines = []
    for name in dict.fromkeys(row.question.network for row in rows):
        own = [row for row in rows if row.question.network == name]
        network, words = own[0].model.network, [row.question.expected for row in own]
        relus = sum(prod(network.nodes[index].shape) for index in network.relus)
        shape = "x".join(map(str, network.input_shape))
        decided = [words.count("verified"), words.count("falsified")]
        cells = [name.stem, shape, f"{relus:,}", len(own), *decided, len(own) - sum(decided)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _question(row: QuestionRow) -> str:
    asked = row.question
    wanted = f"within {asked.tolerance:g}" if asked.tolerance else f"class {asked.label}"
    if asked.top_k > 1:
        wanted += f" in top {asked.top_k}"
    cells = (
        f"{asked.stem}: {asked.name}",
        asked.network.stem,
        f"`{asked.set}`",
        f"{asked.epsilon:g}",
        wanted,
        f"{row.boxes:,.0f}" if row.boxes < 1e6 else f"{row.boxes:.1e}",
        "yes" if row.written else "",
        f"{asked.timeout:g}",
        asked.expected or "",
    )
    return "| " + " | ".join(cells) + " |"
