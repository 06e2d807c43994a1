"""What the parts of study_real_data.py share: verdicts at budgets around where attacks begin, and their tables."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from study_files import STUDIES, markdown, median, provenance, show, write_csv
from torch import Tensor

from stbp_milp.network.model import Model
from stbp_milp.properties import Property
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification
from stbp_milp.st_bench.budgets import attacks_begin
from stbp_milp.verdict import Outcome
from stbp_milp.verify import verify

SETS = ("window:2", "patch:3x3@2")
WORDS = ("verified", "falsified", "unknown")
HEADER = ("set", "item", "eps", "times begin", "verdict", "decided by", "margin low", "margin high", "seconds")
SUMMARY = ("set", "budget", "verified", "falsified", "unknown", "median s", "longest s")
BEGIN = (
    "'begin' is the least radius where our attack breaks that clip (1: the voxels may take any value in [0, 1]; "
    "where even that breaks nothing, only eps 1 is asked)."
)


@dataclass(frozen=True)
class Item:
    """One clip (C, T, H, W) and what must hold around it."""

    name: object
    clip: Tensor
    property: Property


def verify_items(
    model: Model,
    items: Sequence[Item],
    part: str,
    arguments: argparse.Namespace,
    configuration: Configuration,
    console: Console,
) -> list[list[object]]:
    """Both sets, all items, at multiples of the radius where the attack begins; rows are kept as they come."""
    rows: list[list[object]] = []
    with bar(console) as progress:
        task = progress.add_task(part, total=len(items) * len(SETS) * len(arguments.factors), note="")
        for text in SETS:
            for item in items:
                clip = item.clip.double()
                begin = attacks_begin(model.network, clip, text, item.property, arguments.seed)
                budgets = (
                    [(min(1.0, factor * begin), f"{factor:g}") for factor in arguments.factors]
                    if begin
                    else [(1.0, "none begins")]
                )
                for epsilon, budget in budgets:
                    progress.update(task, note=f"{text}, {item.name}, eps {epsilon:.3g}")
                    rows.append(row(model, Item(item.name, clip, item.property), text, epsilon, budget, configuration))
                    write_csv(Path(arguments.out) / f"{part}_so_far.csv", HEADER, rows)
                    progress.advance(task, len(arguments.factors) / len(budgets))
    return rows


def row(model: Model, item: Item, text: str, epsilon: float, budget: str, configuration: Configuration) -> list[object]:
    """One verdict as a line of the table."""
    query = Query(model, item.clip, SetSpecification(text, epsilon), item.property)
    outcome: Outcome = verify(query, configuration)
    return [
        text, item.name, epsilon, budget, outcome.word, outcome.decided_by, outcome.lower, outcome.upper,
        round(outcome.seconds, 2),
    ]  # fmt: skip


def publish(
    name: str, title: str, text: str, rows: list[list[object]], configuration: Configuration, console: Console
) -> None:
    """Screen, Markdown, CSV."""
    groups = sorted({(str(r[0]), str(r[3])) for r in rows}, key=lambda group: (group[0] != SETS[0], group[1]))
    summary: list[list[object]] = []
    for text_of_set, budget in groups:
        own = [r for r in rows if (r[0], r[3]) == (text_of_set, budget)]
        words, seconds = Counter(r[4] for r in own), [float(str(r[8])) for r in own]
        summary.append([text_of_set, budget, *(words[w] for w in WORDS), median(seconds), max(seconds)])
    decided = Counter(str(r[5]) for r in rows if r[4] != "unknown")
    stages = "Decided by: " + ", ".join(f"{stage} {count}" for stage, count in decided.most_common()) + "."
    show(console, title, SUMMARY, summary)
    console.print(stages)
    page = [f"# {title}\n", provenance(configuration.threads), text, markdown(SUMMARY, summary), stages + "\n"]
    page += ["One by one:\n", markdown(HEADER, rows)]
    STUDIES.mkdir(parents=True, exist_ok=True)
    (STUDIES / f"real_data_{name}.md").write_text("\n".join(page))
    write_csv(STUDIES / f"real_data_{name}.csv", HEADER, rows)


class _Note(ProgressColumn):
    """What a task says about itself, if anything."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("note", "")))


def bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), _Note(), console=console)
