"""The bench of the tightness study: one network, its clips, all nine kinds of sets, three budgets each.

    python -m scripts.studies.tightness_bench --out build/study_bench
    python scripts/tightness_study.py --bench build/study_bench --methods all --out results/NAME

The first budget of a set is one where the best bounds over the whole-clip box prove some of the clips but not most;
the second lies where one pass over the set itself (STBP) begins to fail, the third where it proves little. Sets of one
member (`everywhere`, `frames`, `patch-at`) are boxes themselves, so there both are the same.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np

from scripts.studies.frame import command
from scripts.studies.frame import main as run
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE
from stbp_milp.errors import InputError
from stbp_milp.instances import Specification, write_specification
from stbp_milp.sets import SetSpecification
from stbp_milp.st_bench import SHIPPED

BUDGETS = {
    "window:2": (0.025, 0.06, 0.08),
    "any-frames:2": (0.025, 0.06, 0.08),
    "frames:3,4": (0.06, 0.08, 0.1),
    "patch:3x3@2": (0.025, 0.1, 0.3),
    "moving-patch:3x3@2": (0.025, 0.1, 0.3),
    "patch-at:3,6,6:3x3@2": (0.1, 0.3, 0.6),
    "pixels:5": (0.025, 0.2, 0.3),
    "pixels-per-frame:1": (0.025, 0.3, 0.4),
    "everywhere": (0.02, 0.025, 0.03),
}


@command(__doc__)
@click.option("--out", type=FILE, default=Path("build/study_bench"), show_default=True, help="A new folder.")
@click.option("--model", type=FILE, default=SHIPPED / "onnx/activity-S-pgd.onnx", help="The network.")
@click.option("--clips", type=FILE, default=SHIPPED / "clips/activity-S.npz", help="Its clips and labels.")
@click.option("--count", type=COUNT, default=20, show_default=True, help="How many of the clips.")
@click.option("--timeout", type=POSITIVE, default=20.0, show_default=True, help="Seconds per instance.")
@click.option("--tolerance", type=POSITIVE, help="The tolerance of a regression, instead of labels.")
@click.option("--set", "sets", multiple=True, default=list(BUDGETS), help="Only this set; may be given several times.")
@click.option("--budget", "budgets", multiple=True, type=POSITIVE, help="Instead of the set's own budgets.")
def main(
    out: Path, model: Path, clips: Path, count: int, timeout: float, tolerance: float | None, **asked: Any
) -> None:
    if out.exists():
        raise InputError(f"{str(out)!r} is already there; give a new folder with --out")
    (out / "specifications").mkdir(parents=True)
    shutil.copy(model, out)
    shutil.copy(clips, out)
    labels = np.load(clips)["labels"]
    lines = []
    for text in asked["sets"]:
        for epsilon in asked["budgets"] or BUDGETS[text]:
            for clip in range(count):
                name = f"{text.replace(':', '_').replace(',', '-')}_{epsilon:g}_{clip:02d}.json"
                source = f"../{clips.name}:clips[{clip}]"
                wanted = {"tolerance": tolerance} if tolerance else {"label": int(labels[clip])}
                specification = Specification(source, SetSpecification(text, epsilon), **wanted)
                write_specification(specification, out / "specifications" / name)
                lines.append(f"{model.name},specifications/{name},{timeout:g}\n")
    (out / "instances.csv").write_text("".join(lines))


if __name__ == "__main__":
    run(main)
