"""VNN-COMP's door: its words, its counterexamples, its time limit; and its own instances.

By hand: the result of a falsified query with clip (0.5, 0.1 as float32) and output 0.25 is

    sat
    ((X_0 0.5)
    (X_1 0.10000000149011612)
    (Y_0 0.25))
"""

from __future__ import annotations

import gzip
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from stbp_milp.errors import InputError, SoundnessError
from stbp_milp.interop import competition, read_vnnlib
from stbp_milp.interop.competition import Result, main, read_result
from stbp_milp.verdict import Certificate, Counterexample, Falsified, Outcome, Reason, Unknown, Verified
from tests.interop import networks
from tests.interop.reference import declarations

SCRIPTS = Path(__file__).parents[2] / "scripts" / "vnncomp"
BOX = "".join(f"(assert (>= X_{i} 0))(assert (<= X_{i} 0.5))\n" for i in range(3))
KEPT, BROKEN = ("(assert (>= Y_0 1000))", "(assert (>= Y_0 -1000))")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("instances")
    networks.write(made / "acas.onnx", "acas")
    networks.write(made / "acas.onnx.gz", "acas")
    for name, unsafe in (("kept", KEPT), ("broken", BROKEN)):
        text = (declarations(3, 2) + BOX + unsafe).encode()
        (made / f"{name}.vnnlib").write_bytes(text)
        (made / f"{name}.vnnlib.gz").write_bytes(gzip.compress(text))
    (made / "wrong.vnnlib").write_text("(assert")
    return made


def run(folder: Path, result: Path, model: str, specification: str, timeout: str = "1000") -> int:
    return main(["v1", "test", str(folder / model), str(folder / specification), str(result), timeout])


def outcome(verdict: Verified | Falsified | Unknown, seconds: float = 1.0) -> Outcome:
    return Outcome(verdict, -math.inf, math.inf, (), None, seconds)


def test_by_hand() -> None:
    clip = torch.tensor([0.5, 0.1], dtype=torch.float32).view(1, 1, 1, 2)
    found = outcome(Falsified(Counterexample(clip, (0.25,), -1.0, "attack")))
    assert Result.of(found, 60).text() == "sat\n((X_0 0.5)\n(X_1 0.10000000149011612)\n(Y_0 0.25))\n"


@pytest.mark.parametrize(
    ("verdict", "seconds", "word"),
    [
        (Verified(Certificate(1.0, {}, ())), 1.0, "unsat"),
        (Unknown(Reason.TIME, "out of time after 60 s"), 60.0, "timeout"),
        (Unknown(Reason.TIME, "out of memory: the limit of 4 GiB has no room"), 5.0, "unknown"),
    ],
)
def test_the_scorer_s_words(verdict: Verified | Unknown, seconds: float, word: str) -> None:
    assert Result.of(outcome(verdict, seconds), 60).text() == f"{word}\n"


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_both_answers(folder: Path, tmp_path: Path, packed: str) -> None:
    result = tmp_path / "result.txt"
    assert run(folder, result, f"acas.onnx{packed}", f"kept.vnnlib{packed}") == 0
    assert result.read_text() == "unsat\n"
    assert run(folder, result, f"acas.onnx{packed}", f"broken.vnnlib{packed}") == 0
    found = read_result(result)  # in place of the earlier result
    assert (found.word, len(found.inputs), len(found.outputs)) == ("sat", 3, 2)
    assert list(tmp_path.iterdir()) == [result]
    assert_counterexample(found, folder / "acas.onnx", folder / "broken.vnnlib", (1, 1, 1, 3))


def assert_counterexample(found: Result, model: Path, specification: Path, shape: tuple[int, ...]) -> None:
    """As the scorer checks it: onnxruntime's answer to these float32 inputs is unsafe, with no tolerance."""
    inputs = found.inputs.astype(np.float32)
    assert np.array_equal(inputs.astype(np.float64), found.inputs)
    content = model.read_bytes()
    session = onnxruntime.InferenceSession(gzip.decompress(content) if model.suffix == ".gz" else content)
    outputs = session.run(None, {session.get_inputs()[0].name: inputs.reshape(shape)})[0].ravel()
    np.testing.assert_allclose(outputs, found.outputs, rtol=1e-6)
    margins = [
        float(box.property.margin(torch.from_numpy(outputs).double()[None])[0])
        for box in read_vnnlib(specification).boxes
        if np.all((box.lower <= found.inputs) & (found.inputs <= box.upper))
    ]
    assert min(margins) <= 0


@pytest.mark.parametrize(
    ("model", "specification", "says"),
    [
        ("absent.onnx", "kept.vnnlib", "absent.onnx"),
        ("acas.onnx", "absent.vnnlib", "absent.vnnlib"),
        ("acas.onnx", "wrong.vnnlib", "line 1 of"),
    ],
)
def test_bad_files_are_an_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, specification: str, says: str
) -> None:
    assert run(folder, tmp_path / "result.txt", model, specification) == 2
    assert (tmp_path / "result.txt").read_text() == "error\n"
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1


def test_other_ends(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for raised, code, word in ((MemoryError(), 0, "unknown"), (SoundnessError("two bounds"), 4, "error")):

        def fail(*arguments: object, raised: BaseException = raised) -> Result:
            raise raised

        monkeypatch.setattr(competition, "answer", fail)
        assert run(folder, tmp_path / "result.txt", "acas.onnx", "kept.vnnlib") == code
        assert (tmp_path / "result.txt").read_text() == f"{word}\n"


def test_no_time_left_is_a_timeout(folder: Path, tmp_path: Path) -> None:
    # The clock runs since this process began, as it does for a run that spends its time on loading.
    assert run(folder, tmp_path / "result.txt", "acas.onnx", "kept.vnnlib", "0.01") == 0
    assert (tmp_path / "result.txt").read_text() == "timeout\n"


@pytest.mark.parametrize("change", [["v2"], ["v1", "a"], ["v1", "a", "b", "c", "d", "soon"], ["v1", *"abcd", "0"]])
def test_wrong_arguments_are_named(capsys: pytest.CaptureFixture[str], change: list[str]) -> None:
    assert main(change) == 2
    assert "expected v1 CATEGORY" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["maybe\n", "", "sat\n((X_0 0)(X_2 1))", "memout\n"])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.txt").write_text(content)
    with pytest.raises(InputError, match=r"result\.txt"):
        read_result(tmp_path / "result.txt")


# --- the scripts ------------------------------------------------------------------------------------------


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPTS / name), *map(str, arguments)]
    environment = os.environ | {"STBP_VENV": sys.prefix}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_the_scripts_as_they_are_called(folder: Path, tmp_path: Path) -> None:
    files = (folder / "acas.onnx.gz", folder / "broken.vnnlib.gz")
    assert script("prepare_instance.sh", "v1", "test", *files).returncode == 0
    ran = script("run_instance.sh", "v1", "test", *files, tmp_path / "result.txt", 600)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert read_result(tmp_path / "result.txt").word == "sat"
    for name in ("install_tool.sh", "prepare_instance.sh", "run_instance.sh"):
        assert script(name, "v2", "test", *files, tmp_path / "other.txt", 60).returncode == 1
    assert script("prepare_instance.sh", "v1", "test", files[0], folder / "absent.vnnlib").returncode == 1


def test_what_hangs_is_killed(folder: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    files = (folder / "acas.onnx", folder / "kept.vnnlib")
    # Importing torch alone takes longer than this.
    ran = script("run_instance.sh", "v1", "test", *files, tmp_path / "result.txt", 0.3)
    assert ran.returncode == 0
    assert (tmp_path / "result.txt").read_text() == "timeout\n"
    assert time.monotonic() - began < 60


# --- published instances ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "word"), [("prop_0_0.03", "unsat"), ("prop_1_0.03", "sat")])
def test_published_instances(data: Path, tmp_path: Path, name: str, word: str) -> None:
    model, specification = data / "vnncomp" / "mnist-net_256x2.onnx.gz", data / "vnncomp" / f"{name}.vnnlib.gz"
    result = competition.answer(model, specification, time.time() + 600, 1)
    assert result.word == word
    if word == "sat":
        assert_counterexample(result, model, specification, (1, 784, 1))
