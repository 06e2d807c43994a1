"""Public competition instances with known answers: contradictions, crashes, what stays open and what is refused.

    python -m scripts.studies.vnncomp FOLDER --timeout 30 --out answers.csv

FOLDER holds one folder a family, with `instances.csv` (model, property, limit; one line an instance) and, where answers
are known, `reference.csv` with the columns `model`, `property` and `consensus` (sat or unsat). Every instance runs in a
process of its own, which is killed a while after its limit. A line is written as soon as an instance ends, and what is
in the file already is not asked again. Exit code 4 where an answer contradicts the known one, 1 where a run crashed.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import click

from scripts.studies.frame import ROOT, command, read_csv, screen, show
from scripts.studies.frame import main as run
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE
from stbp_milp.errors import InputError
from stbp_milp.instance_list import read_instances

RUN = ROOT / "scripts" / "vnncomp" / "run_instance.py"
_LATE = 60.0  # seconds after its limit, at which a process is killed
WORDS = ("unsat", "sat", "timeout", "unknown", "refused", "crashed", "killed")
_SETTLED = {"sat": "unsat", "unsat": "sat"}


Instance = tuple[str, Path, Path, str]
"""Family, model, property and what is known of it: "sat", "unsat" or nothing."""


@dataclass(frozen=True)
class Answer:
    """One instance: what was said, what is known, and what was written on the way."""

    family: str
    model: str
    asked: str
    word: str  # of the competition, or "refused", "crashed", "killed"
    known: str
    seconds: float
    limit: float
    note: str

    @property
    def wrong(self) -> bool:
        return _SETTLED.get(self.word) == self.known


def instances(folder: Path, families: Sequence[str]) -> Iterator[Instance]:
    """All instances of the folder, or of some families."""
    for listed in sorted(folder.glob("*/instances.csv")):
        family = listed.parent.name
        if families and family not in families:
            continue
        known = {}
        if (listed.parent / "reference.csv").exists():
            with (listed.parent / "reference.csv").open(newline="") as file:
                known = {_names(row["model"], row["property"]): row["consensus"] for row in csv.DictReader(file)}
        for one in read_instances(listed):
            yield family, one.model, one.specification, known.get(_names(one.model, one.specification), "")


def _names(model: Path | str, asked: Path | str) -> tuple[str, str]:
    """How a list and the reference name an instance alike: without folders and compression."""
    return Path(model).name.removesuffix(".gz"), Path(asked).name.removesuffix(".gz")


def ask(instance: Instance, limit: float) -> Answer:
    family, model, asked, known = instance
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.txt"
        arguments = [sys.executable, str(RUN), "v1", family, str(model), str(asked), str(result), str(limit), "1"]
        try:
            ended = subprocess.run(arguments, capture_output=True, text=True, timeout=limit + _LATE, check=False)
            code, note = ended.returncode, " ".join(ended.stderr.split())
            word = result.read_text().split("\n", 1)[0] if result.exists() else "crashed"
            word = {2: "refused", 0: word}.get(code, "crashed")
        except subprocess.TimeoutExpired:
            word, note = "killed", f"still running {_LATE:g} s after its limit"
    return Answer(family, model.name, asked.name, word, known, time.monotonic() - began, limit, note[-400:])


@command(__doc__)
@click.argument("folder", type=FILE)
@click.option("--timeout", type=POSITIVE, default=30.0, show_default=True, help="Seconds per instance.")
@click.option("--jobs", type=COUNT, default=1, show_default=True, help="How many processes run at a time.")
@click.option("--family", "families", multiple=True, help="Only this family; may be given several times.")
@click.option("--out", type=FILE, default=Path("vnncomp.csv"), show_default=True, help="The CSV file of the answers.")
def main(folder: Path, timeout: float, jobs: int, families: tuple[str, ...], out: Path) -> int:
    answers = _earlier(out)
    done = {(answer.family, answer.model, answer.asked) for answer in answers}
    todo = [i for i in instances(folder, families) if (i[0], i[1].name, i[2].name) not in done]
    if not todo and not answers:
        raise InputError(f"no instances.csv below {str(folder)!r}; give a folder with one folder per family")
    console = screen()
    with out.open("a", newline="") as file, ThreadPoolExecutor(jobs) as pool:
        writer = csv.DictWriter(file, [field.name for field in fields(Answer)])
        if not answers:
            writer.writeheader()
        for answer in pool.map(partial(ask, limit=timeout), todo):
            writer.writerow(asdict(answer))
            file.flush()
            answers.append(answer)
            name = f"{answer.family} {answer.model} {answer.asked}"
            mark = "  WRONG" if answer.wrong else ""
            console.print(f"{name}: {answer.word} ({answer.known or 'not known'}){mark}", soft_wrap=True)
    rows = []
    for family in sorted({answer.family for answer in answers}):
        own = [answer for answer in answers if answer.family == family]
        counts = Counter(answer.word for answer in own)
        rows.append([family, *(counts[word] for word in WORDS), sum(answer.wrong for answer in own)])
    show(console, "answers", ["family", *WORDS, "wrong"], rows)
    for answer in answers:
        if answer.word in ("unknown", "crashed", "killed"):
            console.print(f"{answer.family} {answer.asked}: {answer.word}: {answer.note}", soft_wrap=True)
    if any(answer.wrong for answer in answers):
        return 4
    return 1 if any(answer.word in ("crashed", "killed") for answer in answers) else 0


def _earlier(out: Path) -> list[Answer]:
    """The answers of an earlier run."""
    rows = read_csv(out)
    return [Answer(**{**row, **{name: float(row[name]) for name in ("seconds", "limit")}}) for row in rows]  # type: ignore[arg-type]


if __name__ == "__main__":
    run(main)
