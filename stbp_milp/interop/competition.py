"""The interface of VNN-COMP: it reads files and writes a result file within the time limit.

The first line of a result file is the status: `unsat` (verified), `sat` (falsified), `timeout`, `unknown` or `error`.
The scorer knows no other status, so running out of memory is `unknown`. After `sat` follows the counterexample, inputs
and outputs in row-major order, one per line: from `((X_0 0.5)` to for example `(Y_0 1.25))`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from stbp_milp.errors import InputError, SoundnessError
from stbp_milp.files import replace_file
from stbp_milp.interop.questions import read_questions, verify_all
from stbp_milp.memory import is_exhaustion
from stbp_milp.network.model import load_model
from stbp_milp.query import Configuration
from stbp_milp.verdict import Falsified, Outcome, Unknown, Verified

BAD_INPUT, CONTRADICTION = 2, 4
WORDS = ("unsat", "sat", "timeout", "unknown", "error")
_MARGIN = (0.05, 1.5)  # reserved for what cannot be interrupted: a share of the limit, but at most so many seconds
_USAGE = "expected v1 CATEGORY ONNX_FILE VNNLIB_FILE RESULT_FILE TIMEOUT [THREADS]"

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Result:
    """The content of a result file.

    Attributes:
        word: the status, one of `WORDS`.
        inputs, outputs: the counterexample's inputs (n,) and outputs (K,); empty without a counterexample.
    """

    word: str
    inputs: Array = field(default_factory=lambda: np.zeros(0))
    outputs: Array = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, outcome: Outcome, limit: float) -> Result:
        """Makes the result of a run that had `limit` seconds."""
        match outcome.verdict:
            case Verified():
                return cls("unsat")
            case Falsified(found):
                return cls("sat", found.clip.double().numpy().ravel(), np.array(found.outputs))
            case Unknown():
                return cls("timeout" if outcome.seconds >= limit else "unknown")

    def text(self) -> str:
        # repr gives the shortest decimals that are read as the same doubles, and every float32 value is a double.
        pairs = [f"(X_{i} {value!r})" for i, value in enumerate(self.inputs.tolist())]
        pairs += [f"(Y_{i} {value!r})" for i, value in enumerate(self.outputs.tolist())]
        witness = "({})\n".format("\n".join(pairs)) if pairs else ""
        return f"{self.word}\n{witness}"


def read_result(path: str | Path) -> Result:
    """Reads a result file of this or another tool.

    Raises:
        InputError: the file is missing, or it does not have this form.
    """
    try:
        word, _, witness = Path(path).read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a result ({error})") from error
    word, pairs = word.strip(), re.findall(r"\(\s*([XY])_(\d+)\s+([^\s()]+)\s*\)", witness)
    if word not in WORDS:
        raise InputError(f"{str(path)!r} begins with {word!r}; expected {', '.join(WORDS)}")
    found: dict[str, list[float]] = {"X": [], "Y": []}
    for letter, index, value in pairs:
        if int(index) != len(found[letter]):
            raise InputError(f"{str(path)!r} has {letter}_{index} after {len(found[letter])} such values")
        found[letter].append(float(value))
    return Result(word, np.array(found["X"]), np.array(found["Y"]))


def main(arguments: Sequence[str]) -> int:
    """Answers one instance; returns 0 if the result file has an answer, which may be `unknown` or `timeout`."""
    try:
        _, _, model, specification, result, seconds, *threads = arguments
        timeout, cores = float(seconds), int(threads[0]) if threads else 1
    except ValueError:
        return _told(f"{_USAGE}, got {' '.join(arguments)!r}", BAD_INPUT)
    if arguments[0] != "v1" or not timeout > 0 or cores < 1:
        return _told(f"{_USAGE}, got {' '.join(arguments)!r}", BAD_INPUT)
    share, most = _MARGIN
    end = psutil.Process().create_time() + timeout - min(share * timeout, most)
    code, found = 0, Result("error")
    try:
        found = answer(Path(model), Path(specification), end, cores)
    except InputError as error:
        code = _told(str(error), BAD_INPUT)
    except SoundnessError as error:
        code = _told(f"internal contradiction: {error}; no verdict is given, please report this", CONTRADICTION)
    except (MemoryError, RuntimeError) as error:
        if not is_exhaustion(error):
            raise
        _told("out of memory", 0)
        found = Result("unknown")
    try:
        # An earlier result of that name is replaced, as the competition expects.
        replace_file(Path(result), found.text().encode(), "name another result file")
    except InputError as error:
        return _told(str(error), BAD_INPUT)
    return code


def answer(model: Path, specification: Path, end: float, threads: int) -> Result:
    """Computes the result for a model and a property; `end` is when to stop, in seconds since the epoch.

    Raises:
        InputError: the files cannot be used.
        SoundnessError: two methods contradict each other.
    """
    loaded = load_model(model)
    queries = read_questions(specification, loaded)
    limit = end - time.time()
    if limit <= 0:
        return Result("timeout")
    outcome = verify_all(queries, Configuration(timeout=limit, threads=threads))
    if isinstance(outcome.verdict, Unknown):
        _told(outcome.verdict.reason, 0)
    return Result.of(outcome, limit)


def _told(message: str, code: int) -> int:
    sys.stderr.write(" ".join(message.split()) + "\n")
    return code
