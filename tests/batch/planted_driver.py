"""A driver of a batch of planted instances: `python planted_driver.py LIST OUT JOBS [SCHEDULER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from stbp_milp.batch import nodes
from stbp_milp.batch.engine import EngineOptions, run_batch
from stbp_milp.batch.folder import Folder
from stbp_milp.batch.mirror import Mirror
from stbp_milp.batch.task import Settings, read_tasks

OPTIONS = EngineOptions(job="tests.batch.planted:by_specification", plan_job="tests.batch.planted:cut")


def main(path: Path, out: Path, jobs: int, scheduler: str | None = None) -> None:
    folder = Folder(out).prepared()
    tasks = read_tasks(path, out, Settings(memory_bytes=300 << 20))
    with Mirror(folder) as mirror:
        mirror.begin(tasks)
        run_batch(
            tasks,
            folder,
            mirror,
            lambda: nodes.local(jobs) if scheduler is None else nodes.existing(scheduler),
            OPTIONS,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
