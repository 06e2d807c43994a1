"""Reading of questions in our own and in VNN-LIB files, and a single verdict on several questions.

A VNN-LIB file may ask about several boxes. Together they are *falsified* if one is, *verified* if all are, and
otherwise *unknown*. The combined outcome has the form of a single one.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.instances import read_specification
from stbp_milp.interop.vnnlib import read_vnnlib
from stbp_milp.network.model import Model
from stbp_milp.query import Configuration, Query
from stbp_milp.records import Record, query_key
from stbp_milp.search import Deadline
from stbp_milp.sets import BoxSpecification, VoxelBox
from stbp_milp.stages import OnProgress
from stbp_milp.verdict import Certificate, Falsified, Leaf, Outcome, Progress, Reason, Unknown, Verdict, Verified
from stbp_milp.verify import verify

_LEAVES_KEPT = 1_000
_TOGETHER = 64  # boxes that are first bounded in one batch
_FIRST_TRY = 0.25  # the share of the time for a first try at all questions
_SHORTEST = 0.2  # seconds; with less time each, none of thousands of easy boxes would be settled
_UNSEEN = Outcome(Unknown(Reason.TIME, "out of time before it was tried"), -math.inf, math.inf, (), None, 0.0)


def is_vnnlib(path: str | Path) -> bool:
    return Path(path).name.endswith((".vnnlib", ".vnnlib.gz"))


def read_questions(path: str | Path, model: Model) -> list[Query]:
    """Reads what a VNN-LIB file or our own specification asks about `model`, at least one question.

    Raises:
        InputError: the file cannot be read, or it does not fit the model.
    """
    return read_vnnlib(path).queries(model) if is_vnnlib(path) else [read_specification(path).query(model)]


def verify_all(
    queries: Sequence[Query], configuration: Configuration, on_progress: OnProgress | None = None
) -> Outcome:
    """Answers all questions within the time limit of one, and combines their outcomes.

    All are tried briefly first, because a falsified question ends the run; those that stay open share the time left.
    """
    if len(queries) == 1:
        return verify(queries[0], configuration, on_progress)
    deadline = Deadline.after(configuration.timeout)
    outcomes = _settled_together(queries, configuration, deadline)
    open_ = [at for at, outcome in enumerate(outcomes) if isinstance(outcome.verdict, Unknown)]

    def tell(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(replace(progress, seconds=deadline.elapsed()))

    for portion in (_FIRST_TRY, 1.0):
        for position, at in enumerate(open_):
            if deadline.expired():
                break
            share = max(portion * deadline.remaining() / (len(open_) - position), _SHORTEST)
            limit = min(share, deadline.remaining())
            outcomes[at] = verify(queries[at], replace(configuration, timeout=limit), tell)
            if isinstance(outcomes[at].verdict, Falsified):
                return replace(combined(outcomes), seconds=deadline.elapsed())
        open_ = [at for at in open_ if isinstance(outcomes[at].verdict, Unknown)]
    return replace(combined(outcomes), seconds=deadline.elapsed())


@torch.no_grad()
def _settled_together(queries: Sequence[Query], configuration: Configuration, deadline: Deadline) -> list[Outcome]:
    """Settles what it can by one bound of many boxes per batch; the others stay untried.

    Most of thousands of small boxes need nothing else, and bounding them one by one costs some milliseconds each.
    """
    outcomes = [_UNSEEN] * len(queries)
    if len(queries) < _TOGETHER or configuration.device != "cpu":
        return outcomes
    for first in range(0, len(queries), _TOGETHER):
        part = queries[first : first + _TOGETHER]
        if deadline.expired() or not all(isinstance(query.set, BoxSpecification) for query in part):
            break
        model = part[0].model
        sets = [query.set.build(query.clip) for query in part]
        boxes = VoxelBox(
            *(torch.stack(sides) for sides in zip(*((s.clip, s.lower, s.upper) for s in sets), strict=True))
        )
        problem = Problem.of(model.network, boxes)
        bounds = preactivations(problem, BoundingOptions(deep="interval"))
        forms = [query.property.forms() for query in part]
        most = max(len(offset) for _, offset in forms)
        at = [torch.arange(most).clamp(max=len(offset) - 1) for _, offset in forms]  # the last form is repeated
        rows = torch.stack([own[index] for (own, _), index in zip(forms, at, strict=True)])
        offset = torch.stack([own[index] for (_, own), index in zip(forms, at, strict=True)])
        lower = bound_once(Bounded(problem, bounds), Forms(rows, offset)).lower.amin(1).tolist()
        seen = [
            float(query.property.margin(values[None])) for query, values in zip(part, problem.clean[-1], strict=True)
        ]
        for k, (query, own, margin) in enumerate(zip(part, lower, seen, strict=True)):
            if own > 0.0 and margin > 0.0:
                leaf = Leaf(0, {"box": query.set.text}, 0, own, "union bound")
                verdict = Verified(Certificate(own, {"union bound": 1}, (leaf,)))
                clean = tuple(problem.clean[-1][k].tolist())
                outcomes[first + k] = Outcome(verdict, own, margin, clean, "union bound", 0.0)
    return outcomes


def combined(outcomes: Sequence[Outcome]) -> Outcome:
    """Combines the outcomes of all questions: falsified if any is, verified if all are, otherwise unknown."""
    if len(outcomes) == 1:
        return outcomes[0]
    verdict, decisive = _verdict(outcomes)
    stages: Counter[str] = Counter()
    counts: Counter[str] = Counter({"questions": len(outcomes)})
    for outcome in outcomes:
        stages.update(outcome.stage_seconds)
        counts.update(outcome.counts)
    return Outcome(
        verdict,
        min(outcome.lower for outcome in outcomes),
        min(outcome.upper for outcome in outcomes),
        decisive.clean_outputs,
        decisive.decided_by,
        sum(outcome.seconds for outcome in outcomes),
        dict(stages),
        dict(counts),
    )


def _verdict(outcomes: Sequence[Outcome]) -> tuple[Verdict, Outcome]:
    """Returns the combined verdict, and the outcome that decided it: the falsified one, or that of least bound."""
    least = min(outcomes, key=lambda outcome: outcome.lower)
    open_: list[Unknown] = []
    certificates: list[Certificate] = []
    for outcome in outcomes:
        match outcome.verdict:
            case Falsified():
                return outcome.verdict, outcome
            case Unknown():
                open_.append(outcome.verdict)
            case Verified(certificate):
                certificates.append(certificate)
    if open_:
        return Unknown(
            open_[0].kind, f"{len(open_)} of {len(outcomes)} boxes stay open; the first: {open_[0].reason}"
        ), least
    closed: Counter[str] = Counter()
    leaves: list[Leaf] = []
    for question, certificate in enumerate(certificates):
        closed.update(certificate.closed)
        room = _LEAVES_KEPT - len(leaves)
        leaves += [replace(leaf, part=leaf.part | {"question": question}) for leaf in certificate.leaves[:room]]
    tightest = min(certificates, key=lambda certificate: certificate.lower)
    return Verified(Certificate(tightest.lower, dict(closed), tuple(leaves))), least


def questions_key(queries: Sequence[Query], configuration: Configuration) -> str:
    """Returns the `query_key` of a single question, or a combined key of several."""
    keys = [query_key(query, configuration) for query in queries]
    return keys[0] if len(keys) == 1 else hashlib.sha256("\n".join(keys).encode()).hexdigest()


def record_of_all(first: Record, queries: Sequence[Query], configuration: Configuration) -> Record:
    """Turns the record of a combined outcome, made for the first question, into one with the key of all questions.

    Clip, set and property stay those of the first question, and `set.text` says so.
    """
    if len(queries) == 1:
        return first
    several = first.set | {"text": f"{len(queries)} boxes, the first"}
    return replace(first, key=questions_key(queries, configuration), set=several)
