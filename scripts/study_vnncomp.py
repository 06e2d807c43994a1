#!/usr/bin/env python
"""Public competition instances with known answers: contradictions, crashes, what stays open and what is refused.

    python scripts/study_vnncomp.py FOLDER --timeout 30 --out answers.csv

FOLDER holds one folder a family, with `instances.csv` (model, property, limit; one line an instance) and, where answers
are known, `reference.csv` with the columns `model`, `property` and `consensus` (sat or unsat). Every instance runs in a
process of its own, which is killed a while after its limit. A line is written as soon as an instance ends, and what is
in the file already is not asked again. Exit code 4 where an answer contradicts the known one, 1 where a run crashed.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from stbp_milp.instance_list import read_instances

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "scripts" / "vnncomp" / "run_instance.py"
_LATE = 60.0  # seconds after its limit, at which a process is killed
_SETTLED = {"sat": "unsat", "unsat": "sat"}


@dataclass(frozen=True)
class Answer:
    """One instance: what was said, what is known, and what was written on the way."""

    family: str
    model: str
    property: str
    word: str  # of the competition, or "refused", "crashed", "killed"
    known: str
    seconds: float
    limit: float
    note: str

    @property
    def wrong(self) -> bool:
        return _SETTLED.get(self.word) == self.known


def instances(folder: Path, families: list[str]) -> Iterator[tuple[str, Path, Path, str]]:
    """Family, model, property and what is known of it."""
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


def ask(family: str, model: Path, asked: Path, known: str, limit: float) -> Answer:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.txt"
        command = [sys.executable, RUN, "v1", family, model, asked, result, str(limit), "1"]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=limit + _LATE, check=False)
            code, note = ended.returncode, " ".join(ended.stderr.split())
            word = result.read_text().split("\n", 1)[0] if result.exists() else "crashed"
            word = {2: "refused", 0: word}.get(code, "crashed")
        except subprocess.TimeoutExpired:
            word, note = "killed", f"still running {_LATE:g} s after its limit"
    return Answer(family, model.name, asked.name, word, known, time.monotonic() - began, limit, note[-400:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds an instance (default 30)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--family", action="append", default=[], help="only this family; may be given several times")
    parser.add_argument("--out", type=Path, default=Path("vnncomp.csv"), help="a CSV file (default vnncomp.csv)")
    options = parser.parse_args()
    names = [field.name for field in fields(Answer)]
    answers: list[Answer] = []
    if options.out.exists():
        with options.out.open(newline="") as file:
            for row in csv.DictReader(file):
                numbers = {name: float(row[name]) for name in ("seconds", "limit")}
                answers.append(Answer(**{**row, **numbers}))  # type: ignore[arg-type]
    done = {(answer.family, answer.model, answer.property) for answer in answers}
    todo = [i for i in instances(options.folder, options.family) if (i[0], i[1].name, i[2].name) not in done]
    if not todo and not answers:
        sys.stderr.write(f"no instances.csv below {str(options.folder)!r}; give a folder with one folder a family\n")
        return 2
    with options.out.open("a", newline="") as file, ThreadPoolExecutor(options.jobs) as pool:
        writer = csv.DictWriter(file, names)
        if not answers:
            writer.writeheader()
        for answer in pool.map(lambda instance: ask(*instance, options.timeout), todo):
            writer.writerow(asdict(answer))
            file.flush()
            answers.append(answer)
            mark = "  WRONG" if answer.wrong else ""
            print(
                f"{answer.family} {answer.model} {answer.property}: {answer.word} ({answer.known or 'not known'}){mark}"
            )
    words = ("unsat", "sat", "timeout", "unknown", "refused", "crashed", "killed")
    print(f"\n{'family':26}" + "".join(f"{word:>9}" for word in words) + f"{'wrong':>9}")
    for family in sorted({answer.family for answer in answers}):
        own = [answer for answer in answers if answer.family == family]
        counts = Counter(answer.word for answer in own)
        print(f"{family:26}" + "".join(f"{counts[word]:9}" for word in words) + f"{sum(a.wrong for a in own):9}")
    for answer in answers:
        if answer.word in ("unknown", "crashed", "killed"):
            print(f"{answer.family} {answer.property}: {answer.word}: {answer.note}")
    if any(answer.wrong for answer in answers):
        return 4
    return 1 if any(answer.word in ("crashed", "killed") for answer in answers) else 0


if __name__ == "__main__":
    raise SystemExit(main())
