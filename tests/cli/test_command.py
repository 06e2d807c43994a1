"""The command line in-process: exit codes, what it prints and writes, and one clear sentence for every bad input.

By hand: the example's verified outcome gives exit code 0 and one record; its falsified one 1, a record and three files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from stbp_milp.cli import one_clip, shipped
from stbp_milp.cli.shipped import exit_code
from stbp_milp.cli.verify import main
from stbp_milp.data.frames import read_video
from stbp_milp.errors import SoundnessError
from stbp_milp.query import Configuration, Query
from stbp_milp.records import read_record
from stbp_milp.report.terminal import BenchRow
from stbp_milp.verdict import Outcome, Progress
from tests.example_runs import SHAPE, clip, falsified, query, unknown, verified, write_model
from tests.videos import grey_levels, write_video

Answer = Callable[[Query, Configuration, Callable[[Progress], None]], Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and clips, good and bad."""
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "net.onnx")
    write_model(folder / "steer.onnx", outputs=1)
    np.save(folder / "clip.npy", clip().numpy())
    np.save(folder / "bytes.npy", (clip().numpy() * 255).round().astype(np.uint8))
    np.save(folder / "other.npy", np.zeros((3, 4, 6, 6)))
    np.save(folder / "last.npy", np.zeros((4, 6, 6, 1)))
    np.save(folder / "flat.npy", np.zeros(10))
    np.save(folder / "nan.npy", np.full(SHAPE, np.nan))
    np.save(folder / "bright.npy", np.full(SHAPE, 2.0))
    np.savez(folder / "several.npz", a=np.zeros(SHAPE), b=np.zeros(SHAPE))
    np.save(folder / "objects.npy", np.array([None]), allow_pickle=True)
    (folder / "cut.npy").write_bytes((folder / "clip.npy").read_bytes()[:200])
    write_video(folder / "clip.avi", grey_levels(9))
    write_video(folder / "short.MP4", grey_levels(3))
    (folder / "words.onnx").write_text("no model")
    (folder / "cut.onnx").write_bytes((folder / "net.onnx").read_bytes()[:100])
    (folder / "file").write_text("")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["clip"], ["flat"]), helper.make_node("Sin", ["flat"], ["waves"], name="wave")],
        "unsupported",
        [helper.make_tensor_value_info("clip", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("waves", TensorProto.FLOAT, ["N", 144])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "sine.onnx")
    return folder


@pytest.fixture(autouse=True)
def _quiet_logging() -> Iterator[None]:
    """The command line configures logging for its process; tests share theirs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    for ours in ("stbp_milp", "solvers"):
        logging.getLogger(ours).setLevel(logging.NOTSET)


@dataclass
class Run:
    """One run of the command line on the example."""

    folder: Path
    out: Path
    monkeypatch: pytest.MonkeyPatch
    asked: list[tuple[Query, Configuration]]

    def __call__(self, answer: Answer | None = None, /, **changes: str | None) -> int:
        """Exit code with `answer` in place of `verify`; an option set to None is left out."""

        def verify(query: Query, configuration: Configuration, on_progress: Callable[[Progress], None]) -> Outcome:
            self.asked.append((query, configuration))
            return verified() if answer is None else answer(query, configuration, on_progress)

        self.monkeypatch.setattr(one_clip, "verify", verify)
        options = {"model": "net.onnx", "input": "clip.npy", "set": "window:2", "eps": "0.25", "out": str(self.out)}
        arguments: list[str] = []
        for name, value in (options | changes).items():
            if value is not None:
                given = str(self.folder / value) if name in ("model", "input") else value
                arguments += [f"--{name.replace('_', '-')}", given]
        return main([argument for argument in arguments if argument != ""])


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(folder, tmp_path / "results", monkeypatch, [])


def _files(run: Run) -> list[str]:
    return sorted(path.name.partition("Z-")[2][8:] for path in run.out.iterdir())


# --- verdicts ---------------------------------------------------------------------------------------------


def test_verified(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    printed = capsys.readouterr()
    assert "verified" in printed.out
    assert "at least 0.4 (proved), at most 7.2 (observed)" in printed.out
    assert printed.err == ""
    assert _files(run) == [".json"]
    (path,) = run.out.iterdir()
    record = read_record(path)
    assert record.verdict == "verified"
    assert record.clip["source"].endswith("clip.npy")
    assert record.key.startswith(path.stem.rpartition("-")[2])
    assert "--set window:2 --eps 0.25" in record.command


def test_video(run: Run) -> None:
    assert run(input="clip.avi") == 0
    ((asked, _),) = run.asked
    assert asked.clip.dtype == torch.float64
    assert torch.equal(asked.clip.float(), read_video(run.folder / "clip.avi", SHAPE))


def test_falsified(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda query, *_: falsified(query)) == 1
    assert "falsified" in capsys.readouterr().out
    assert _files(run) == ["-attack.gif", "-attack.npz", "-attack.png", ".json"]
    (path,) = run.out.glob("*.json")
    counterexample = read_record(path).counterexample
    assert counterexample is not None
    for name in counterexample["files"].values():
        assert (run.out / name).is_file()
    with Image.open(run.out / counterexample["files"]["animation"]) as animation:
        assert getattr(animation, "n_frames", 0) == 4


def test_attacked_clip_can_be_verified_again(run: Run) -> None:
    run(lambda query, *_: falsified(query))
    (attacked,) = run.out.glob("*.npz")
    run(input=f"{attacked}:attacked")
    assert run.asked[1][0].property.text == "class 1 stays first"


def test_unknown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda *_: unknown()) == 3
    assert "out of time after 60 s" in " ".join(capsys.readouterr().out.split())


def test_wrong_label_is_falsified_by_the_clean_clip(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda query, *_: falsified(query, "clean"), label="1") == 1
    assert "the clean clip itself breaks the property: the model says class 0" in capsys.readouterr().out
    assert _files(run) == [".json"]


def test_contradiction(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def contradict(*_: object) -> Outcome:
        raise SoundnessError("the bound 0.5 exceeds the margin 0.2 of a clip")

    assert run(contradict) == 4
    assert capsys.readouterr().err.startswith("error: internal contradiction: the bound 0.5 exceeds")


def test_interrupted_says_how_far_it_got(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(query: Query, configuration: Configuration, on_progress: Callable[[Progress], None]) -> Outcome:
        on_progress(Progress("relu search", -0.25, 0.75, 12, 3456, 7.5))
        raise KeyboardInterrupt

    assert run(interrupt) == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted: relu search")
    assert "proved -0.25, seen 0.75" in error


def test_unexpected_error_is_no_verdict(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> Outcome:
        raise ZeroDivisionError("oops")

    assert run(fail) == 70
    assert "unexpected ZeroDivisionError: oops; this is a bug" in capsys.readouterr().err


def test_json_goes_to_stdout_alone(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(json="") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["verdict"] == "verified"
    assert "verified" in printed.err


def test_quiet_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(quiet="") == 0
    assert capsys.readouterr().out == "verified [0.4, 7.2] 1.50 s\n"


def test_real_verify(run: Run, folder: Path) -> None:
    common = ["--model", f"{folder}/net.onnx", "--input", f"{folder}/clip.npy", "--out", str(run.out), "--quiet"]
    assert main([*common, "--set", "window:2", "--eps", "1/100"]) == 0
    assert main([*common, "--set", "window:2", "--eps", "0.25"]) == 1


# --- options ----------------------------------------------------------------------------------------------


def test_options_reach_the_query(run: Run) -> None:
    changes = {"timeout": "7.5", "solver": "none", "seed": "3", "threads": "3", "memory": "512M", "top_k": "2"}
    assert run(**changes, label="1", domain="-1,1", eps="4/255") == 0
    asked, configuration = run.asked[0]
    assert configuration == Configuration(7.5, "none", 3, 3, 512 << 20)
    assert asked.property.text == "class 1 stays among the first 2"
    assert asked.set.domain == (-1.0, 1.0)
    assert asked.set.epsilon == 4 / 255


def test_default_label_is_the_clean_prediction(run: Run) -> None:
    run()
    asked, configuration = run.asked[0]
    assert asked.property.text == "class 0 stays first"
    assert configuration == Configuration()


@pytest.mark.parametrize("name", ["bytes.npy", "clip.avi"])
def test_bytes_are_divided_unless_a_domain_is_given(run: Run, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(input=name) == 0
    assert "(bytes, divided by 255), eps in the same unit" in capsys.readouterr().out
    assert run(input=name, domain="0,255", eps="8") == 0
    said = capsys.readouterr().out
    (divided, _), (given, _) = run.asked
    assert torch.equal((given.clip.float() / 255).double(), divided.clip)
    assert torch.equal(given.clip, given.clip.round())
    assert f"{int(given.clip.min())} to {int(given.clip.max())}, eps in the same unit" in said
    assert run(input=name, domain="-1,1") == 2
    assert "outside the data domain" in capsys.readouterr().err


def test_axes_are_named_where_two_readings_fit(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of inputs (T, H, W, C) = (4, 6, 6, 1) and a clip with these axes, then with those of a clip."""
    write_model(run.folder / "last.onnx", shape=(4, 6, 6, 1))
    np.save(run.folder / "channels-last.npy", np.moveaxis(clip().numpy(), 0, -1))
    assert run(model="last.onnx", input="channels-last.npy") == 2
    said = capsys.readouterr().err
    assert "CTHW (4 channels, 6 frames, 6x1 pixels) or THWC (1 channel, 4 frames, 6x6 pixels)" in said
    assert "--layout" in said
    for name in ("channels-last.npy", "clip.npy", "clip.avi"):
        assert run(model="last.onnx", input=name, layout="thwc") == 0
        assert "input 4x6x6x1 as THWC: 1 channel, 4 frames, 6x6 pixels" in capsys.readouterr().out
    first, second, video = (query.clip for query, _ in run.asked)
    assert torch.equal(first, clip())
    assert torch.equal(second, clip())
    assert video.shape == SHAPE
    (path, *_) = sorted(run.out.glob("*.json"))
    assert read_record(path).model["layout"] == "THWC"


def test_everywhere_needs_no_axes(run: Run) -> None:
    write_model(run.folder / "last.onnx", shape=(4, 6, 6, 1))
    assert run(model="last.onnx", input="last.npy", set="everywhere") == 0


def test_regression(run: Run) -> None:
    assert run(model="steer.onnx", tolerance="0.5") == 0
    assert run.asked[0][0].property.text.startswith("output stays within 0.5 of [43.19")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert ("moving-patch:3x3@2" in printed.out) == (option == "--help")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "absent.onnx"}, "absent.onnx"),
        ({"model": "clip.npy"}, ".onnx"),
        ({"model": "words.onnx"}, "words.onnx"),
        ({"model": "cut.onnx"}, "cut.onnx"),
        ({"model": "sine.onnx"}, "Sin"),
        ({"model": "steer.onnx"}, "tolerance"),
        ({"model": "steer.onnx", "tolerance": "-1"}, "tolerance"),
        ({"model": "steer.onnx", "tolerance": "nan"}, "tolerance"),
        ({"tolerance": "1", "label": "2"}, "--label"),
        ({"tolerance": "1", "top_k": "2"}, "--top-k"),
        ({"model": None}, "--model"),
        ({"model": None, "input": None}, "--set is given without --model"),
        ({"input": None}, "--input is missing"),
        ({"set": None}, "--set is missing"),
        ({"eps": None}, "--eps is missing"),
        ({"input": "absent.npy"}, "no file"),
        ({"input": "file"}, ".npy or .npz"),
        ({"input": "other.npy"}, "(3, 4, 6, 6)"),
        ({"input": "last.npy"}, "reorder its axes"),
        ({"input": "flat.npy"}, "(1, 1, 1, 10)"),
        ({"input": "nan.npy"}, "NaN"),
        ({"input": "bright.npy"}, "--domain"),
        ({"input": "several.npz"}, "a (1, 4, 6, 6), b (1, 4, 6, 6)"),
        ({"input": "several.npz:c"}, "it has a, b"),
        ({"input": "objects.npy"}, "Object arrays"),
        ({"input": "cut.npy"}, "cannot be read"),
        ({"input": "absent.avi"}, "no video"),
        ({"input": "short.MP4"}, "has 3 frames; expected 4"),
        ({"set": "windows:2"}, "expected one of"),
        ({"layout": "ABCD"}, "CTHW"),
        ({"layout": "CHW"}, "names 3 axes"),
        ({"set": "window:5"}, "5 frames"),
        ({"set": "frames:4"}, "frames 0 to 3"),
        ({"set": "patch-at:3,0,0:3x3@2"}, "outside the clip"),
        ({"set": "pixels:0"}, "from 1 to 144"),
        ({"eps": "4:255"}, "4/255"),
        ({"eps": "-0.1"}, "radius"),
        ({"domain": "1,0"}, "0,1 or -1,1"),
        ({"label": "3"}, "0 to 2"),
        ({"label": "-1"}, "0 to 2"),
        ({"label": "cat"}, "'cat' is not a valid integer"),
        ({"top_k": "3"}, "from 1 to 2"),
        ({"top_k": "0"}, "--top-k"),
        ({"timeout": "0"}, "--timeout"),
        ({"timeout": "soon"}, "--timeout"),
        ({"timeout": "nan"}, "--timeout"),
        ({"tolerance": "inf", "model": "steer.onnx"}, "--tolerance"),
        ({"seed": "99999999999999"}, "--seed"),
        ({"solver": "cplex"}, "'gurobi'"),
        ({"memory": "lots"}, "512M"),
        ({"threads": "0"}, "--threads"),
        ({"epsilon": "1"}, "--eps"),
        ({"set": "window:0"}, "is empty"),
        (
            {"input": "net.onnx"},
            ".npy or .npz file, for example clip.npy or clips.npz:key[7], or a video (.avi or .mp4)",
        ),
        ({"input": "clip.mkv"}, ".avi or .mp4"),
    ],
)
def test_bad_input_is_one_sentence(
    run: Run, capsys: pytest.CaptureFixture[str], changes: dict[str, str | None], says: str
) -> None:
    assert run(**changes) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert "Traceback" not in printed.err
    assert run.asked == []


def test_empty_text_is_no_folder(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", ""]) == 2
    assert "--out" in capsys.readouterr().err


def test_results_that_cannot_be_written(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(out=str(folder / "file")) == 2
    assert "--out" in capsys.readouterr().err
    assert run.asked == []


def test_verdict_is_printed_even_if_it_cannot_be_kept(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    run.monkeypatch.setattr("stbp_milp.files.os.fsync", full)
    assert run() == 2
    printed = capsys.readouterr()
    assert "verified" in printed.out
    assert "No space left" in printed.err


# --- the shipped bench ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instance:
    name: str
    query: Query
    expected: str
    timeout: float = 5.0
    model: str = "net.onnx"
    clip: str = "clip 3"


def _run_shipped(run: Run, expected: list[str], **changes: str) -> tuple[int, list[Any]]:
    """Run the shipped bench on the example with verdicts verified, falsified, unknown."""
    example = query(run.folder / "net.onnx")
    answers = iter([verified(), falsified(example), unknown()])
    limits: list[float] = []

    def verify(query: Query, configuration: Configuration, on_progress: object) -> Outcome:
        limits.append(configuration.timeout)
        return next(answers)

    run.monkeypatch.setattr(shipped, "verify", verify)
    run.monkeypatch.setattr(
        shipped, "instances", lambda: tuple(Instance(f"video {word}", example, word) for word in expected)
    )
    options = [part for name, value in changes.items() for part in (f"--{name}", value) if part]
    return main(["--out", str(run.out), *options]), limits


def test_shipped_bench(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, limits = _run_shipped(run, ["verified", "falsified", "unknown"])
    assert code == 0
    assert limits == [5.0, 5.0, 5.0]
    printed = capsys.readouterr().out
    assert "3 of 3 instances in 61.6 s: 1 verified, 1 falsified, 1 unknown; 3 as expected" in printed
    (folder,) = run.out.iterdir()
    assert len(list(folder.glob("*.json"))) == 3
    assert len(list(folder.glob("*.gif"))) == 1
    sources = {read_record(path).clip["source"] for path in folder.glob("*.json")}
    assert sources == {"clip 3 for net.onnx"}


def test_shipped_bench_with_own_limit_as_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, limits = _run_shipped(run, ["verified", "falsified", "unknown"], timeout="1", json="")
    assert code == 0
    assert limits == [1.0, 1.0, 1.0]
    assert [record["verdict"] for record in json.loads(capsys.readouterr().out)] == ["verified", "falsified", "unknown"]


@pytest.mark.parametrize(
    ("expected", "code"),
    [
        (["verified", "falsified", "verified"], 3),
        (["falsified", "falsified", "unknown"], 4),
        (["falsified", "falsified", "verified"], 4),
        (["unknown", "unknown", "unknown"], 0),
    ],
)
def test_shipped_bench_exit_codes(run: Run, expected: list[str], code: int) -> None:
    assert _run_shipped(run, expected)[0] == code


def test_bench_without_runs_is_as_expected() -> None:
    assert exit_code([BenchRow("a", "everywhere", 1.0, "verified")]) == 0
