"""A study from the command line: rows, files, going on, limits; on one clip of the shipped network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stbp_milp.batch.supervised import Ended
from stbp_milp.cli.tightness import main
from stbp_milp.errors import InputError, SoundnessError
from stbp_milp.files import only_run_in
from stbp_milp.instances import Specification, write_specification
from stbp_milp.sets import SetSpecification
from stbp_milp.st_bench import SHIPPED
from stbp_milp.tightness.curves import points
from stbp_milp.tightness.figures import certified, figures
from stbp_milp.tightness.measure import LAYERS, Measurement, row_of
from stbp_milp.tightness.questions import Sweep, read_questions
from stbp_milp.tightness.report import page
from stbp_milp.tightness.store import LINES, Store
from stbp_milp.tightness.study import StudyOptions, run_study, tasks
from tests.tightness.rows import row


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    shutil.copy(SHIPPED / "onnx/activity-S-pgd.onnx", folder / "video.onnx")
    shutil.copy(SHIPPED / "clips/activity-S.npz", folder / "video_clips.npz")
    label = int(np.load(folder / "video_clips.npz")["labels"][0])
    for name, text in (("a", "window:2"), ("b", "everywhere")):
        specification = Specification("video_clips.npz:clips[0]", SetSpecification(text, 0.02), label=label)
        write_specification(specification, folder / f"{name}.json")
    (folder / "instances.csv").write_text("video.onnx,a.json,20\nvideo.onnx,b.json,20\n")
    return folder


def test_the_command_measures_once_and_writes_tables_and_figures(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bench", str(bench), "--out", str(tmp_path), "--methods", "box-interval,stbp-interval,attack"]
    arguments += ["--only", "a.json", "--eps-sweep", "0.5,1", "--jobs", "2"]
    assert main(arguments) == 0
    lines = (tmp_path / LINES).read_text()
    assert lines.count("\n") == 6
    table = pl.read_parquet(tmp_path / "measurements.parquet")
    assert table.height == pl.read_csv(tmp_path / "measurements.csv").height == 6
    assert sorted(table["epsilon"].unique()) == [0.01, 0.02]
    assert table["seconds"].min() > 0
    assert table["peak_mib"].min() > table["own_mib"].max()
    assert {"certified.png", "study.md"} <= {path.name for path in tmp_path.iterdir()}
    assert main(arguments) == 0
    assert (tmp_path / LINES).read_text() == lines
    assert "6 measurements" in capsys.readouterr().out


def test_a_curve_takes_five_budgets() -> None:
    def curves(budgets: int) -> int:
        found = points([row("lp", 0.1, 0.2, epsilon=0.01 * k) for k in range(1, 1 + budgets)])
        (axis,) = certified(found, "").axes
        return sum(line.get_label() == "lp" and line.get_linestyle() == "-" for line in axis.get_lines())

    assert [curves(budgets) for budgets in (1, 4, 5)] == [0, 0, 1]


def test_figures_are_redrawn_from_the_tables_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = {"layer": 1, "method": "lp", "neurons": 8, "mean_width": 0.5, "exact_width": 0.4, "ratio": 1.25}
    rows = [row("lp", 0.1), row("milp", 0.3, 0.3), row(LAYERS, widths=(layer,))]
    store = Store(tmp_path)
    for new in rows:
        store.add(new)
    store.write_tables()
    (tmp_path / "study.md").write_text(page(rows, "the study's command"))
    (tmp_path / LINES).unlink()
    assert main(["--redraw", str(tmp_path)]) == 0
    assert (tmp_path / "study.md").read_text() == page(rows, "the study's command")
    for name, content in figures(rows):
        assert (tmp_path / name).read_bytes() == content
    assert {path.stem for path in tmp_path.glob("*.png")} == {"certified", "gap", "layers", "time"}
    assert main(["--redraw", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_two_studies_do_not_share_a_folder(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_run_in(tmp_path):
        assert main(["--bench", str(bench), "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "another run is at work" in message
    assert not (tmp_path / LINES).exists()


def test_an_interrupted_study_goes_on(bench: Path, tmp_path: Path) -> None:
    options = StudyOptions(("box-interval", "stbp-interval"), timeout=20)
    todo = tasks(read_questions(bench, Sweep((0.01,), absolute=True)), options)
    seen: list[Measurement] = []

    def interrupt(new: Measurement) -> None:
        seen.append(new)
        if len(seen) == 1:
            raise KeyboardInterrupt

    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_study(todo, options, store, interrupt)
    with (tmp_path / LINES).open("a") as file:
        file.write('{"torn')  # as by a machine that lost its power
    run_study(todo, options, Store(tmp_path), interrupt)
    assert len(seen) == len(todo)
    assert {r.key for r in Store(tmp_path).rows} == {task.key for task in todo}


def test_whatever_ends_a_process_becomes_a_row(bench: Path) -> None:
    (task, *_) = tasks(read_questions(bench), StudyOptions(("lp",)))
    late = row_of(task, Ended("timeout", 25.0, 500 << 20, {}, "line\nlast words\n"))
    assert (late.ended, late.lower, late.certified, late.peak_mib, late.note) == (
        "timeout",
        None,
        False,
        500.0,
        "last words",
    )
    with pytest.raises(SoundnessError, match="crossed"):
        row_of(task, Ended("itself", 1.0, 0, {"answer": {"contradiction": "bounds crossed"}}, ""))


def test_a_contradiction_ends_the_command_with_4(bench: Path, tmp_path: Path) -> None:
    (question, *_) = read_questions(bench)
    planted = row("attack", upper=-1e6, digest=question.digest, set=question.set, epsilon=question.epsilon)
    Store(tmp_path).add(planted)
    arguments = ["--bench", str(bench), "--out", str(tmp_path), "--only", "a.json", "--methods", "box-interval"]
    assert main(arguments) == 4
    assert len(Store(tmp_path).rows) == 2


def test_more_time_measures_again_what_ran_out_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for late in (row("lp", None, ended="timeout"), row("milp", 0.1, late=True)):
        store.add(late)
        assert store.finished(late.key, 10.0)
        assert not store.finished(late.key, 20.0)
    done = row("lp", 0.3)
    store.add(done)
    assert store.finished(done.key, 20.0)
    assert [r.lower for r in Store(tmp_path).rows if r.method == "lp"] == [0.3]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--methods", "magic"], "magic"),
        (["--eps-sweep", "0.5,-1"], "--eps-sweep"),
        (["--absolute"], "--absolute"),
        (["--only", "nothing*"], "nothing"),
        (["--timeout", "soon"], "soon"),
    ],
)
def test_bad_options_are_one_sentence(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], word: str
) -> None:
    assert main(["--bench", str(bench), "--out", str(tmp_path), *options]) == 2
    message = capsys.readouterr().err
    assert word in message
    assert message.count("\n") == 1


def test_lines_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / LINES).write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(InputError, match="line 1"):
        Store(tmp_path)
