"""The questions of a bench: all nine kinds of sets, with budgets around where attacks begin, chosen by the seed.

A *slot* is a kind of set and a budget. Slots come in rounds of nine, with each kind once per round and each budget
about equally often. A slot becomes a question with one of the clips that its network classifies correctly. If a
question is meant to be settled within some seconds and is not, the slot is tried with other clips.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stbp_milp.attack import QUICK, THOROUGH
from stbp_milp.network.model import Model
from stbp_milp.properties import Property, top_k, within_tolerance
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification
from stbp_milp.st_bench.budgets import attacks_begin
from stbp_milp.st_bench.families import Family
from stbp_milp.st_bench.layout import NetworkName, Question
from stbp_milp.st_bench.networks import Shape
from stbp_milp.verdict import Outcome, Unknown
from stbp_milp.verify import verify

FACTORS = (0.3, 0.5, 0.75, 1.05)
TRIES = 3  # clips per slot
_PATIENCE = 4.0  # clock over processor time on a busy machine
_TOP_TWO = 0.15  # the share of the questions about classes that ask for the first two places

Verify = Callable[[Query, Configuration], Outcome]


@dataclass(frozen=True)
class Slot:
    """A kind of set with its numbers, and a budget as a multiple of the radius at which attacks begin."""

    number: int
    kind: str
    set: str
    factor: float
    top_k: int


@dataclass(frozen=True)
class Labelling:
    """How the verdicts of questions are found.

    Attributes:
        seconds: the verifier's time limit; None: it does not run, and verdicts stay open.
        settled_within: processor seconds (other work of the machine must not count) within which a question must be
            settled to be asked; None: all are asked. The verifier gets up to four times as long in wall-clock time.
    """

    seconds: float | None
    settled_within: float | None = None
    threads: int = 1


@dataclass(frozen=True, eq=False)
class Material:
    """A network with its clips `(N, C, T, H, W)` and targets, and the clips that it gets right."""

    name: NetworkName
    family: Family
    model: Model
    clips: Tensor
    targets: Tensor

    def right(self) -> list[int]:
        """Returns the indices of clips that the network classifies correctly; all of them for regression."""
        if self.family.property_kind == "tolerance":
            return list(range(len(self.clips)))
        outputs = torch.from_numpy(self.model.predict(self.clips.numpy()))
        return (outputs.argmax(1) == self.targets).nonzero().flatten().tolist()

    def property(self, clip: int, first: int, tolerance: float) -> Property:
        """The class stays among the `first` ones, or the outputs stay near the clean ones."""
        outputs = torch.from_numpy(self.model.predict(self.clips[clip : clip + 1].numpy()))[0]
        if self.family.property_kind == "tolerance":
            return within_tolerance(outputs, tolerance)
        return top_k(int(self.targets[clip]), first, len(outputs))


def slots(shape: Shape, count: int, seed: str, *, classes: bool) -> list[Slot]:
    """Returns the first `count` slots for clips `(C, T, H, W)`; with the same seed, a longer list extends a shorter."""
    draw = random.Random(seed)
    made: list[Slot] = []
    offsets = {kind: draw.randrange(len(FACTORS)) for kind in _sets(shape, draw)}
    for turn in range(-(-count // len(offsets))):
        kinds = list(_sets(shape, draw).items())
        draw.shuffle(kinds)
        for kind, text in kinds:
            factor = FACTORS[(turn + offsets[kind]) % len(FACTORS)]
            first = 2 if draw.random() < _TOP_TWO and classes else 1
            made.append(Slot(len(made), kind, text, factor, first))
    return made[:count]


def _sets(shape: Shape, draw: random.Random) -> dict[str, str]:
    """Returns a set of each kind; patches grow with the frame."""
    _, frames, height, width = shape
    side = max(3, 3 * min(height, width) // 16)
    size, length = f"{side}x{side}@2", min(3, frames)
    at = (draw.randint(0, frames - length), draw.randint(0, height - side - 2), draw.randint(0, width - side - 2))
    given = sorted(draw.sample(range(frames), min(frames, draw.choice((1, 2, 3)))))
    run, pixels, each = draw.choice((2, 2, 3)), draw.choice((3, 5, 8)), draw.choice((1, 1, 2))
    return {
        "everywhere": "everywhere",
        "frames": "frames:" + ",".join(map(str, given)),
        "any-frames": "any-frames:2",
        "window": f"window:{min(run, frames)}",
        "patch": f"patch:{size}",
        "moving-patch": f"moving-patch:{size}",
        "patch-at": f"patch-at:{at[0]},{at[1]},{at[2]}:{side + 2}x{side + 2}@{length}",
        "pixels": f"pixels:{pixels}",
        "pixels-per-frame": f"pixels-per-frame:{each}",
    }


def question_for(
    slot: Slot, of: Material, seed: str, timeout: float, labelling: Labelling, run: Verify = verify
) -> Question | None:
    """Makes the question of a slot; None if the network gets no clip right or no question is settled in time."""
    right = of.right()
    random.Random(seed).shuffle(right)
    for attempt in range(TRIES if right else 0):
        clip = right[(slot.number + attempt * 7) % len(right)]
        asked = _question(slot, of, clip, timeout)
        if labelling.seconds is None:
            return asked
        labelled, seconds = label(asked, of, labelling, run)
        limit = labelling.settled_within
        if limit is None or (labelled.expected is not None and seconds <= limit):
            return labelled
    return None


def label(question: Question, of: Material, labelling: Labelling, run: Verify = verify) -> tuple[Question, float]:
    """Returns the question, with its verdict if it is found in time, and the processor seconds that this took."""
    assert labelling.seconds is not None
    wanted = of.property(question.clip, question.top_k, question.tolerance or 0.0)
    query = Query(of.model, of.clips[question.clip].double(), SetSpecification(question.set, question.epsilon), wanted)
    limit = min(labelling.seconds, _PATIENCE * (labelling.settled_within or labelling.seconds))
    began = time.process_time()
    outcome = run(query, Configuration(timeout=limit, threads=labelling.threads))
    word = None if isinstance(outcome.verdict, Unknown) else outcome.word
    return replace(question, expected=word), time.process_time() - began


def _question(slot: Slot, of: Material, clip: int, timeout: float) -> Question:
    tolerance = of.family.tolerance or None
    wanted = of.property(clip, slot.top_k, of.family.tolerance)
    effort = THOROUGH if of.name.size in ("S", "M") else QUICK  # a radius costs ten attacks
    begins = attacks_begin(of.model.network, of.clips[clip].double(), slot.set, wanted, configuration=effort)
    epsilon = min(1.0, float(f"{slot.factor * (begins or 1.0):.3g}"))
    first = f"top {slot.top_k}, " if slot.top_k > 1 else ""
    return Question(
        stem=f"{of.name.stem}-{slot.number:03d}-{slot.kind}",
        name=f"{first}clip {clip}, {slot.factor:g}x",
        network=of.name,
        clip=clip,
        set=slot.set,
        epsilon=epsilon,
        timeout=timeout,
        begins=begins,
        factor=slot.factor,
        label=None if tolerance else int(of.targets[clip]),
        top_k=slot.top_k,
        tolerance=tolerance,
    )
