"""The job of an instance's child: it reads the question, verifies, writes the evidence and returns the record.

The keeper imports this module once, with torch and everything else it needs; children inherit it by the fork.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stbp_milp.batch.folder import EVIDENCE
from stbp_milp.batch.supervised import Tell
from stbp_milp.batch.task import Part, Task
from stbp_milp.devices import named_device
from stbp_milp.errors import InputError, SoundnessError
from stbp_milp.interop import read_questions, record_of_all, verify_all
from stbp_milp.memory import is_exhaustion
from stbp_milp.network.model import load_model
from stbp_milp.plain import plain
from stbp_milp.query import Configuration, Neuron, Query
from stbp_milp.records import make_record
from stbp_milp.report.pictures import save_counterexample
from stbp_milp.results import CONTRADICTION
from stbp_milp.sets import BoxSpecification, SetSpecification, divide
from stbp_milp.stages import OnProgress, neurons_to_split
from stbp_milp.verdict import Falsified, Outcome, Progress, Reason, Unknown
from stbp_milp.versions import versions

for _late in ("onnx.reference.ops._op_list", "highspy", "gurobipy", "pyscipopt"):  # those that are installed
    with suppress(ImportError):
        import_module(_late)


def _warm_up() -> None:
    """Loads whatever is loaded lazily at its first use, which would cost every child seconds.

    This runs on one thread, because a thread pool would not survive the fork.
    """
    versions()
    torch.set_num_threads(1)
    layers = [nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1), nn.ReLU(), nn.MaxPool3d(1), nn.AvgPool3d(1), nn.Flatten()]
    load_model(nn.Sequential(*layers, nn.Linear(8, 2)).eval(), (1, 2, 2, 2))


_warm_up()

_HELD = 0.95  # the share of the memory limit that the verifier gets, so that it ends by itself before it is killed
_RESERVE = 0.03  # the share of the time that is held back, so that the verifier ends by itself before the limit
_RESERVE_AT_MOST = 1.0  # seconds
_CUT = 0.2  # the share of the time that may be spent on deciding where to cut an instance


def answer(task: Task, tell: Tell) -> dict[str, Any]:
    """Answers one instance: returns its status, reason, record and evidence."""
    began = time.monotonic()
    try:
        named_device(_configuration(task).device)  # raises before anything is read
        queries = _queries(task)
        tell({"asked": _in_words(task, queries)})
        limit = task.limits.timeout
        left = limit - min(_RESERVE * limit, _RESERVE_AT_MOST) - (time.monotonic() - began)
        if left <= 0:
            return {"word": "timeout", "reason": f"out of time after {limit:g} s: reading the model took all of it"}
        configuration = _configuration(task)
        outcome = verify_all(queries, replace(configuration, timeout=left), _reporter(tell))
        tell({"settled": True})
        return _answer(task, queries, configuration, outcome)
    except (InputError, SoundnessError) as error:
        return _refused(error)
    except (MemoryError, RuntimeError) as error:
        if not is_exhaustion(error):
            raise
        return {"word": "memout", "reason": f"out of memory: {' '.join(str(error).split())}"}


def cut(task: Task, tell: Tell) -> dict[str, Any]:
    """Decides how to cut the instance into at most as many parts as `task.part.count` asks for.

    Returns "parts", the number of parts of the set, and "neurons": for every part the neurons whose phases cut it
    further if the set has too few members.
    """
    assert task.part is not None
    try:
        query, *others = _queries(replace(task, part=None))
        if others:
            return {"parts": 1, "neurons": [[]]}
        wanted = task.part.count
        boxed = isinstance(query.set, BoxSpecification)
        parts = 1 if boxed else len(divide(query.set.build(query.clip), wanted))
        depth = (wanted // parts).bit_length() - 1
        each = [task.of_part(i, parts) for i in range(parts)]
        neurons = [_neurons(part, query, depth) if depth else () for part in each]
        return {"parts": parts, "neurons": plain(neurons)}
    except (InputError, SoundnessError) as error:
        return _refused(error)


def _refused(error: InputError | SoundnessError) -> dict[str, Any]:
    sentence = " ".join(str(error).split())
    if isinstance(error, SoundnessError):
        sentence = f"{CONTRADICTION}: {sentence}; please report this"
    return {"word": "error", "reason": sentence}


def _neurons(task: Task, whole: Query, depth: int) -> tuple[Neuron, ...]:
    """Returns the neurons to cut one part by; a part that does not fit into memory is not cut."""
    assert task.part is not None
    configuration = _configuration(task)
    try:
        seconds = _CUT * configuration.timeout / task.part.count
        return neurons_to_split(_of_part(whole, task.part), replace(configuration, timeout=seconds), depth)
    except (MemoryError, RuntimeError) as error:
        if not is_exhaustion(error):
            raise
        return ()


def word_of(outcome: Outcome) -> tuple[str, str | None]:
    """Returns the batch's status for an outcome, and the reason if there is no verdict."""
    if not isinstance(outcome.verdict, Unknown):
        return outcome.word, None
    unknown = outcome.verdict
    return unknown.kind.value if unknown.kind in (Reason.TIME, Reason.MEMORY) else "unknown", unknown.reason


def _queries(task: Task) -> list[Query]:
    """Reads the questions of one of our own specifications or of a VNN-LIB file."""
    model = load_model(task.model)
    known = task.listed["model_sha256"]
    if model.digest != known:
        raise InputError(
            f"{str(task.model)!r} is not what it was when the batch began (sha256 {model.digest[:12]} instead of "
            f"{known[:12]}); do not change models while a batch runs, and run it again"
        )
    queries = read_questions(task.specification, model)
    if task.part is None:
        return queries
    (query,) = queries
    return [_of_part(query, task.part)]


def _in_words(task: Task, queries: Sequence[Query]) -> dict[str, Any]:
    """Describes the question, for the result of an instance that is killed."""
    first = queries[0]
    return {
        "clip": str(task.specification),
        "set": first.set.text if len(queries) == 1 else f"{len(queries)} boxes, the first",
        "epsilon": first.set.epsilon,
        "property": first.property.text,
    }


def _of_part(whole: Query, part: Part) -> Query:
    query = replace(whole, phases=part.phases)
    if part.count == 1:
        return query
    assert isinstance(query.set, SetSpecification)
    return replace(query, set=replace(query.set, part=(part.index, part.count)))


def _configuration(task: Task) -> Configuration:
    memory = int(_HELD * task.limits.memory_bytes)
    solver: Any = task.solver
    device = "cuda" if task.gpu else "cpu"
    return Configuration(task.limits.timeout, solver, task.seed, task.limits.threads, memory, device)


def _reporter(tell: Tell) -> OnProgress:
    """Returns a callback that passes on bounds and stage times, for the result of an instance that is killed."""
    stages: dict[str, float] = {}
    now, since = "clean", 0.0

    def report(progress: Progress) -> None:
        nonlocal now, since
        stages[now] = stages.get(now, 0.0) + progress.seconds - since
        now, since = progress.stage, progress.seconds
        tell(plain({"margin": {"lower": progress.lower, "upper": progress.upper}, "stage_seconds": stages}))

    return report


def _answer(task: Task, queries: list[Query], configuration: Configuration, outcome: Outcome) -> dict[str, Any]:
    word, reason = word_of(outcome)
    query = queries[0]
    files: Mapping[str, Path] = {}
    if isinstance(outcome.verdict, Falsified):
        # Every attempt has its own stem: another attempt, on another node, may be writing too.
        stem = f"{task.key[:12]}-{secrets.token_hex(4)}"
        files = save_counterexample(
            query, outcome.verdict.counterexample, outcome.clean_outputs, task.folder / EVIDENCE, stem
        )
    source = str(task.specification)
    record = make_record(query, configuration, outcome, clip_source=source, files=files)
    record = record_of_all(record, queries, configuration)
    evidence = {kind: f"{EVIDENCE}/{path.name}" for kind, path in files.items()}
    return {"word": word, "reason": reason, "record": asdict(record), "evidence": evidence}
