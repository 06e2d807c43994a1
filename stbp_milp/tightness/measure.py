"""One measurement in its own process: the *job* that a keeper's child runs, and the row that results."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from stbp_milp.batch.supervised import Ended, Limits, Tell
from stbp_milp.errors import SoundnessError
from stbp_milp.network.model import load_model
from stbp_milp.search import Deadline
from stbp_milp.tightness.bounding import Request
from stbp_milp.tightness.layers import LayerWidths, layer_widths
from stbp_milp.tightness.methods import METHODS
from stbp_milp.tightness.questions import Question

LAYERS = "layers"  # the method's name in a row of widths, whose columns are in `widths`
JOB = "stbp_milp.tightness.measure:measure"
_MIB = 1 << 20


@dataclass(frozen=True)
class MeasurementTask:
    """A question and a method, or the widths of its layers.

    Attributes:
        sample: number of neurons per layer whose exact width is computed.
    """

    question: Question
    method: str
    limits: Limits
    seed: int = 0
    sample: int = 8

    @property
    def key(self) -> tuple[str, str, float, str, int]:
        """The key of the measurement; equal measurements have equal keys."""
        return (self.question.digest, self.question.set, self.question.epsilon, self.method, self.seed)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measurement; every field is a column.

    Attributes:
        epsilon: the radius in the unit of the data.
        factor: the multiple of the specification's radius, if the study sweeps over multiples.
        lower, upper: bounds of the smallest margin over the set, in the unit of the network's output; None: unknown.
        certified: is the property proved by this method?
        seconds: wall-clock seconds of the method alone; of the whole process if the method did not finish.
        peak_mib: the peak memory of the process (in 2^20 bytes); about 300 of it are torch and the interpreter.
        own_mib: the part of it that was added while the method ran.
        ended: "done", "timeout", "memory" or how else the process ended.
        limit: the time limit in seconds.
        late: did time run out before the method, which ended in order, was finished?
    """

    digest: str
    instance: str
    model: str
    set: str
    epsilon: float
    factor: float | None
    method: str
    lower: float | None
    upper: float | None
    certified: bool
    seconds: float
    peak_mib: float
    own_mib: float | None
    ended: str
    limit: float
    seed: int
    note: str = ""
    widths: tuple[dict[str, Any], ...] = ()
    late: bool = False

    @property
    def key(self) -> tuple[str, str, float, str, int]:
        """As of the task."""
        return (self.digest, self.set, self.epsilon, self.method, self.seed)

    @property
    def instance_key(self) -> tuple[str, str, float]:
        """The key of the question, shared by all methods."""
        return (self.digest, self.set, self.epsilon)


def measure(task: MeasurementTask, tell: Tell) -> dict[str, Any]:
    """Runs the method and returns its result as JSON values; a contradiction between methods is returned as text."""
    torch.set_num_threads(task.limits.threads)
    model = load_model(task.question.model)
    query = task.question.query(model)
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    request = Request(
        query, Deadline.after(task.limits.timeout), task.limits.memory_bytes // 2, task.limits.threads, task.seed
    )
    try:
        if task.method == LAYERS:
            widths: list[LayerWidths] = layer_widths(request, task.sample)
            return {"base": before, "seconds": time.perf_counter() - began, "widths": [asdict(w) for w in widths]}
        found = METHODS[task.method].run(request)
    except SoundnessError as error:
        return {"contradiction": str(error)}
    seconds = time.perf_counter() - began
    certified = found.certified
    if certified is None:
        certified = found.lower > 0
    bounds = {
        name: value if math.isfinite(value) else None
        for name, value in (("lower", found.lower), ("upper", found.upper))
    }
    return {
        "base": before,
        "seconds": seconds,
        **bounds,
        "certified": certified,
        "note": found.note,
        "late": found.late,
    }


def row_of(task: MeasurementTask, ended: Ended) -> Measurement:
    """Makes the row of a process, however it ended.

    Raises:
        SoundnessError: two methods contradicted each other in that process.
    """
    answer = ended.answer
    if answer is not None and "contradiction" in answer:
        raise SoundnessError(f"{task.method} on {task.question.instance}: {answer['contradiction']}")
    question, peak = task.question, ended.memory_bytes / _MIB
    done = answer is not None
    words = ended.output.strip().splitlines()
    answer = answer or {"seconds": ended.seconds, "note": words[-1][:300] if words else ""}
    base = answer.get("base")
    return Measurement(
        digest=question.digest,
        instance=question.instance,
        model=question.model.name,
        set=question.set,
        epsilon=question.epsilon,
        factor=question.factor,
        method=task.method,
        lower=answer.get("lower"),
        upper=answer.get("upper"),
        certified=bool(answer.get("certified", False)),
        seconds=answer["seconds"],
        peak_mib=round(peak, 1),
        own_mib=None if base is None else round(max(0.0, peak - base / _MIB), 1),
        ended="done" if done else ended.ended_by,
        limit=task.limits.timeout,
        seed=task.seed,
        note=answer.get("note", ""),
        widths=tuple(answer.get("widths", ())),
        late=bool(answer.get("late", False)),
    )
