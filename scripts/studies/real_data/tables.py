"""What the parts share: verdicts at budgets around where attacks begin, and their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import Tensor

from scripts.studies.frame import markdown, median, progress, provenance, show, write_csv
from scripts.studies.frame import publish as write
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
class Asked:
    """What is asked of all parts, and where data and trained networks lie; see the options of the command."""

    data: Path
    out: Path
    items: int
    factors: tuple[float, ...]
    zoom_eps: str
    steps: int
    seed: int
    keep: bool
    configuration: Configuration


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
    asked: Asked,
    console: Console,
) -> list[list[object]]:
    """Both sets, all items, at multiples of the radius where the attack begins; rows are kept as they come."""
    rows: list[list[object]] = []
    with progress(console) as bars:
        task = bars.add_task(part, total=len(items) * len(SETS) * len(asked.factors), note="")
        for text in SETS:
            for item in items:
                clip = item.clip.double()
                begin = attacks_begin(model.network, clip, text, item.property, asked.seed)
                budgets = (
                    [(min(1.0, factor * begin), f"{factor:g}") for factor in asked.factors]
                    if begin
                    else [(1.0, "none begins")]
                )
                for epsilon, budget in budgets:
                    bars.update(task, note=f"{text}, {item.name}, eps {epsilon:.3g}")
                    rows.append(
                        row(model, Item(item.name, clip, item.property), text, epsilon, budget, asked.configuration)
                    )
                    write_csv(asked.out / f"{part}_so_far.csv", HEADER, rows)
                    bars.advance(task, len(asked.factors) / len(budgets))
    return rows


def row(model: Model, item: Item, text: str, epsilon: float, budget: str, configuration: Configuration) -> list[object]:
    """One verdict as a line of the table."""
    query = Query(model, item.clip, SetSpecification(text, epsilon), item.property)
    outcome: Outcome = verify(query, configuration)
    return [
        text, item.name, epsilon, budget, outcome.word, outcome.decided_by, outcome.lower, outcome.upper,
        round(outcome.seconds, 2),
    ]  # fmt: skip


def publish(name: str, title: str, text: str, rows: list[list[object]], asked: Asked, console: Console) -> None:
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
    page = [f"# {title}\n", provenance(asked.configuration.threads), text, markdown(SUMMARY, summary), stages + "\n"]
    page += ["One by one:\n", markdown(HEADER, rows)]
    write(f"real_data_{name}", page, HEADER, rows)
