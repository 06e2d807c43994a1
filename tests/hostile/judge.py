"""Asks the verifier about an instance, and judges the answer by what is exactly known."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import numpy as np
import torch

from stbp_milp.errors import InputError, SoundnessError
from stbp_milp.network.model import load_model
from stbp_milp.properties import Property
from stbp_milp.query import Configuration, Query, SolverName
from stbp_milp.sets import SetSpecification
from stbp_milp.strategy import DEFAULT, Strategy
from stbp_milp.verdict import Falsified, Outcome, Verified
from stbp_milp.verify import verify

from .cases import Instance
from .programs import Exact, exactly

BLIND = Strategy(quick_attack=None, thorough_attack=None, candidates=False)
"""No attack, no minimisers, no points of solvers: only proofs decide."""

SOLVERS: tuple[SolverName, ...] = ("auto", "none", "highs", "scip")


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer.

    Attributes:
        kind: "verified", "lower", "outside", "replay", "margin", "contradiction" (the verifier itself says that two of
            its methods contradict each other) or "crash".
        amount: how far a bound or a margin is off.
        point: the clip that shows it, or None.
    """

    kind: str
    text: str
    amount: float = 0.0
    point: Exact | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """The word, or "refused" or "stopped" (an exception), and what is wrong with it."""

    word: str
    outcome: Outcome | None
    note: str
    seconds: float
    faults: tuple[Fault, ...]


def ask(instance: Instance, solver: SolverName, blinded: bool, timeout: float) -> Answer:
    """The verifier's answer, judged."""
    assert solver in get_args(SolverName)
    region, began = instance.region, time.monotonic()
    clip = torch.from_numpy(region.clip)
    outcome, note, faults = None, "", []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load_model(instance.program.module(), tuple(clip.shape))
            rows, offset = torch.from_numpy(instance.rows), torch.from_numpy(instance.offset)
            property = Property(rows, offset, instance.clauses, f"{instance.family} {instance.number}")
            query = Query(model, clip, SetSpecification(region.text, region.epsilon, region.domain), property)
            configuration = Configuration(timeout=timeout, solver=solver, threads=1)
            outcome = verify(query, configuration, strategy=BLIND if blinded else DEFAULT)
        word = outcome.word
    except InputError as error:
        word, note = "refused", str(error)
    except SoundnessError as error:
        word, note = "stopped", str(error)
        faults.append(Fault("contradiction", str(error)))
    except Exception as error:  # noqa: BLE001 - whatever leaves `verify` is what we are looking for
        word, note = "stopped", traceback.format_exc()
        faults.append(Fault("crash", f"{type(error).__name__}: {error}"))
    seconds = time.monotonic() - began
    return Answer(word, outcome, note, seconds, (*faults, *(judged(instance, outcome) if outcome else ())))


def judged(instance: Instance, outcome: Outcome) -> list[Fault]:
    """What is wrong with an outcome."""
    at = min(range(len(instance.margins)), key=instance.margins.__getitem__)
    least, point = instance.margins[at], instance.known[at]
    faults = []
    if isinstance(outcome.verdict, Verified) and least <= 0:
        faults.append(
            Fault(
                "verified",
                f"verified, but the exact margin of a clip of the set is {_number(least)}",
                float(-least),
                point,
            )
        )
    if isinstance(outcome.verdict, Falsified):
        clip = outcome.verdict.counterexample.clip.double().numpy()
        faults += _counterexample(instance, clip)
        exact = instance.margin(exactly(clip))
        if exact < least:
            least, point = exact, exactly(clip)
    above = _above(outcome.lower, least)
    if above > 0:
        text = (
            f"the proved lower bound {outcome.lower!r} exceeds the exact margin {_number(least)} of a clip of the set"
        )
        faults.append(Fault("lower", text, above, point))
    return faults


def _above(lower: float, least: Fraction) -> float:
    if not np.isfinite(lower):
        return lower if lower > 0 or np.isnan(lower) else 0.0
    return float(Fraction(lower) - least)


def _counterexample(instance: Instance, clip: np.ndarray) -> list[Fault]:
    faults, exact = [], exactly(clip)
    if not instance.region.holds(exact):
        low, high = instance.region.box()
        beyond = max(float((low - exact).max()), float((exact - high).max()))
        faults.append(
            Fault("outside", f"the counterexample is not in the set (outside of its box by {beyond:g})", beyond, exact)
        )
    module = instance.program.module()
    number_type = torch.float64 if instance.program.double else torch.float32
    with torch.no_grad():
        scores = module(torch.from_numpy(clip)[None].to(number_type)).double()
    rows, offset = torch.from_numpy(instance.rows), torch.from_numpy(instance.offset)
    values = (scores @ rows.T + offset)[0].tolist()
    replayed = min(max(values[r] for r in clause) for clause in instance.clauses)
    if not replayed <= 0:
        faults.append(Fault("replay", f"run again, the counterexample has margin {replayed!r}", replayed, exact))
    margin, error = instance.margin(exact), instance.program.execution_error(exact)
    allowed = (
        error * Fraction(float(abs(instance.rows).sum(1).max())) + abs(Fraction(float(instance.offset.max()))) / 2**50
    )
    if margin > allowed:
        text = f"falsified, but its exact margin is {_number(margin)}, execution errs by {_number(allowed)}"
        faults.append(Fault("margin", text, float(margin), exact))
    return faults


def _number(value: Fraction) -> str:
    return f"{float(value):.17g}"
