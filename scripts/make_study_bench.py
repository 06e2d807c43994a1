#!/usr/bin/env python
"""The bench of the tightness study: one network, its clips, all nine kinds of sets, three budgets each.

    python scripts/make_study_bench.py --out build/study_bench
    python scripts/tightness_study.py --bench build/study_bench --methods all --out results/NAME

The first budget of a set is one where the best bounds over the whole-clip box prove some of the clips but not most;
the second lies where one pass over the set itself (STBP) begins to fail, the third where it proves little. Sets of one
member (`everywhere`, `frames`, `patch-at`) are boxes themselves, so there both are the same.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/study_bench"), help="a new folder")
    parser.add_argument("--model", type=Path, default=SHIPPED / "onnx/activity-S-pgd.onnx", help="the network")
    parser.add_argument("--clips", type=Path, default=SHIPPED / "clips/activity-S.npz", help="its clips and labels")
    parser.add_argument("--count", type=int, default=20, help="how many of the clips (default 20)")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds an instance (default 20)")
    parser.add_argument("--sets", nargs="+", default=list(BUDGETS), help="some of the sets")
    parser.add_argument("--budgets", nargs="+", type=float, help="instead of the sets' own")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if out.exists():
        parser.error(f"{str(out)!r} is already there; give a new folder with --out")
    (out / "specifications").mkdir(parents=True)
    shutil.copy(arguments.model, out)
    shutil.copy(arguments.clips, out)
    labels = np.load(arguments.clips)["labels"]
    lines = []
    for text in arguments.sets:
        for epsilon in arguments.budgets or BUDGETS[text]:
            for clip in range(arguments.count):
                name = f"{text.replace(':', '_').replace(',', '-')}_{epsilon:g}_{clip:02d}.json"
                source = f"../{arguments.clips.name}:clips[{clip}]"
                specification = Specification(source, SetSpecification(text, epsilon), label=int(labels[clip]))
                write_specification(specification, out / "specifications" / name)
                lines.append(f"{arguments.model.name},specifications/{name},{arguments.timeout:g}\n")
    (out / "instances.csv").write_text("".join(lines))


if __name__ == "__main__":
    main()
