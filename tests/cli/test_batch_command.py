"""`run_batch`: what it refuses, what it says and with which exit code it ends.

By hand: three instances on the shipped driving network, one of which names a set that there is not: two verdicts, one
error, exit code 3; the same command again runs nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from stbp_milp.batch.engine import Progress
from stbp_milp.batch.mirror import FILE, in_file
from stbp_milp.batch.nodes import read_queue_file
from stbp_milp.cli.batch import BatchOptions, command, main
from stbp_milp.cli.batch_display import BatchDisplay, counts, pace
from stbp_milp.errors import InputError

SHIPPED = Path(__file__).parents[2] / "stbp_milp" / "st_bench" / "shipped"


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Verified, falsified and an error; expected: verified, verified and nothing."""
    clip = f"{SHIPPED}/clips/driving-S.npz:clips[1]"
    common = {"schema": 1, "clip": clip, "tolerance": 8.0, "epsilon": 0.02}
    asked = [
        common | {"set": "frames:0", "epsilon": 0.001, "expected": "verified"},
        common | {"set": "everywhere", "epsilon": 1.0},
        common | {"set": "nowhere"},
    ]
    for number, entries in enumerate(asked):
        (tmp_path / f"{number}.json").write_text(json.dumps(entries))
    lines = [f"{SHIPPED}/onnx/driving-S-pgd.onnx,{number}.json,60\n" for number in range(len(asked))]
    (tmp_path / "instances.csv").write_text("".join(lines))
    return tmp_path / "instances.csv"


def words(out: Path) -> list[str]:
    rows = in_file(out / FILE, "SELECT word FROM instances LEFT JOIN results USING (key) ORDER BY position")
    return [word for (word,) in rows]


def test_a_batch_from_list_to_results(
    instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = [str(instances), "--jobs", "1", "--memory", "2G", "--out", str(out), "--quiet"]
    assert main(arguments) == 3
    printed = capsys.readouterr()
    assert "3 of 3 done, 1 verified, 1 falsified" in printed.out
    assert printed.err.startswith("error in ")
    assert "unknown set" in printed.err
    assert words(out) == ["verified", "falsified", "error"]
    files = {path.name for path in (out / "records").iterdir()}
    monkeypatch.setattr("stbp_milp.batch.nodes.local", None)  # nobody may start workers
    assert main(arguments) == 3
    assert {path.name for path in (out / "records").iterdir()} == files
    assert len(list((out / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "missing.csv"),
        (["missing.csv", "--retry", "timeouts"], "'timeouts'"),
        (["missing.csv", "--memory", "much"], "'much'"),
        (["missing.csv", "--slurm", "a.yaml", "--scheduler", "tcp://h:1"], "--scheduler and --slurm"),
        (["missing.csv", "--slurm", "a.yaml", "--jobs", "2"], "--jobs"),
        (["missing.csv", "--slurm", "a.yaml"], "a.yaml"),
        (["missing.csv", "--gpus", "1", "--jobs", "2"], "--gpus"),
        (["missing.csv", "--timeout", "-1"], "--timeout"),
        (["missing.csv", "--out", ""], "--out"),
        ([""], "LIST"),
        ([], "LIST"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_log_of_dask_is_not_shown(tmp_path: Path) -> None:
    """In a process of its own, because importing dask sets the level of its log."""
    code = (
        "import logging, sys; from stbp_milp.cli.batch import main;"
        "sys.exit((main(['missing.csv']), logging.getLogger('distributed.nanny').getEffectiveLevel()) != (2, 40))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=False).returncode == 0


def test_gpus_are_computed_on_or_missed(instances: Path, tmp_path: Path) -> None:
    """The CPU takes the place of no card: without one, every instance is an error that says so."""
    out = tmp_path / "out"
    main([str(instances), "--gpus", "1", "--memory", "16G", "--out", str(out), "--quiet"])
    rows = in_file(out / FILE, "SELECT word, reason FROM instances JOIN results USING (key) ORDER BY position")
    if torch.cuda.is_available():
        records = [json.loads(path.read_text())["record"] for path in (out / "records").iterdir()]
        assert {one["configuration"]["device"] for one in records if one} == {"cuda"}
    else:
        assert [word for word, _ in rows] == ["error"] * 3
        assert all("CUDA" in reason for _, reason in rows)


def test_help_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--split" in capsys.readouterr().out
    given = command.make_context("run_batch.py", ["list.csv", "--slurm", "s.yaml"]).params
    assert BatchOptions(**given).queue == ("slurm", Path("s.yaml"))


def test_a_file_of_a_queue(tmp_path: Path) -> None:
    path = tmp_path / "queue.yaml"
    path.write_text("jobs: 3\ncores: 8\nprocesses: 4\nqueue: long\n")
    file = read_queue_file(path)
    assert (file.jobs, file.threads) == (3, 2)
    assert file.options["queue"] == "long"
    for wrong in ("jobs: 3", "cores: 8", "[]", "jobs: many\ncores: 1", "jobs: [", "jobs: 0\ncores: 1"):
        path.write_text(wrong)
        with pytest.raises(InputError, match=r"queue\.yaml"):
            read_queue_file(path)


def test_what_is_shown_while_it_runs() -> None:
    progress = Progress(10, Counter(verified=3, timeout=1), 0, 2, 2, 2, 4.0)
    assert counts(progress).plain.startswith("4 of 10 done, 3 verified, 0 falsified, 0 unknown, 1 timeout")
    assert pace(progress) == "2 running on 2 workers, 0.5 per second, 12 s left"
    assert pace(Progress(10, Counter(), 0)) == "waiting for workers"
    assert "1 CONTRADICTIONS" in counts(Progress(10, Counter(), 1)).plain
    console = Console(force_terminal=True, width=100, record=True)
    with BatchDisplay(console, shown=True) as display:
        display.update(progress)
    assert "4 of 10 done" in console.export_text()


def test_all_files_that_are_missing_are_named(
    instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "2.json").write_text(json.dumps({"schema": 1, "clip": "gone.npy", "set": "window:1", "epsilon": 1}))
    with instances.open("a") as stream:
        stream.write("absent.onnx,nowhere.json,1\n")
    assert main([str(instances), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("gone.npy", "absent.onnx", "nowhere.json"))


def test_a_specification_nested_too_deeply_is_the_error_of_its_instance(
    instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.json").write_text('{"schema": 1, "set": ' + "[" * 100_000 + "]" * 100_000 + "}")
    (tmp_path / "2.json").write_text(json.dumps({"schema": 1, "clip": "a\0.npy", "set": "window:1", "epsilon": 1}))
    out = tmp_path / "out"
    assert main([str(instances), "--jobs", "1", "--memory", "2G", "--out", str(out), "--quiet"]) == 3
    assert words(out) == ["verified", "error", "error"]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in said] == ["error in 1.json", "error in 2.json"]


def test_interrupted_says_what_is_kept_and_how_to_go_on(
    instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stbp_milp.batch.engine.run_batch", interrupt)
    out = tmp_path / "out"
    assert main([str(instances), "--out", str(out), "--quiet"]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert f"0 results of the list are kept in {str(out)!r}" in said
    assert "the same command continues" in said
