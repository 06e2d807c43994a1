"""Questions from files, end to end: the verdict is brute force's, the counterexample is in the box and breaks the file.

By hand, on relu(x0 - x1) = y: unsafe y >= 0.5 for x0 in [0, 1] and x1 = 0.25 is reached (0.75), y >= 0.8 is not.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from stbp_milp.errors import InputError
from stbp_milp.interop import combined, questions_key, read_questions, record_of_all, verify_all
from stbp_milp.network.model import Model, load_model
from stbp_milp.properties import same_class
from stbp_milp.query import Configuration, Query
from stbp_milp.records import make_record, query_key
from stbp_milp.report.terminal import question
from stbp_milp.sets import BoxSpecification
from stbp_milp.verdict import Certificate, Counterexample, Falsified, Leaf, Outcome, Progress, Reason, Unknown, Verified
from stbp_milp.verify import verify
from tests import micro_instances
from tests.interop import networks
from tests.interop.reference import declarations, holds

QUICK = Configuration(timeout=20.0)


class Gap(nn.Module):
    """`relu(x0 - x1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 1, bias=False)
        self.first.weight.data = torch.tensor([[1.0, -1.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.first(x))


def boxed(lower: list[str], upper: list[str]) -> str:
    bounds = enumerate(zip(lower, upper, strict=True))
    return " ".join(f"(>= X_{i} {low}) (<= X_{i} {high})" for i, (low, high) in bounds)


def asked(folder: Path, model: Model, text: str) -> list[Query]:
    (folder / "property.vnnlib").write_text(text)
    return read_questions(folder / "property.vnnlib", model)


@pytest.mark.parametrize(("threshold", "word"), [("0.5", "falsified"), ("0.75", "falsified"), ("0.8", "verified")])
def test_by_hand(tmp_path: Path, threshold: str, word: str) -> None:
    text = declarations(2, 1) + f"(assert (and {boxed(['0', '0.25'], ['1', '0.25'])} (>= Y_0 {threshold})))"
    queries = asked(tmp_path, load_model(Gap(), (2,)), text)
    outcome = verify_all(queries, QUICK)
    assert outcome.word == word
    if isinstance(outcome.verdict, Falsified):
        x = outcome.verdict.counterexample.clip.flatten().tolist()
        assert x[1] == 0.25
        assert x[0] - x[1] >= float(threshold)


@pytest.mark.parametrize("name", networks.NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_the_verdict_is_brute_force_s(tmp_path: Path, name: str, seed: int) -> None:
    model = load_model(networks.write(tmp_path / "net.onnx", name, seed))
    random = np.random.default_rng(seed)
    inputs, level = networks.INPUTS[name], float(random.uniform(0.2, 2.0))
    cases = []
    for _ in range(3):
        middle = random.uniform(-1, 1, inputs)
        low, high = ([repr(float(v)) for v in middle + side] for side in (-0.2, 0.2))
        cases.append(f"(and {boxed(low, high)} (or (>= Y_0 (+ Y_1 {level})) (and (<= Y_0 -1.0) (<= Y_1 -1.0))))")
    text = declarations(inputs, 2) + f"(assert (or {' '.join(cases)}))"
    queries = asked(tmp_path, model, text)
    assert len(queries) == 3
    exact = [micro_instances.box_minimum(model.network, q.property, q.set.lower, q.set.upper) for q in queries]
    assert all(abs(found.lower) > 1e-4 for found in exact), "choose another seed: too close to call"
    outcome = verify_all(queries, QUICK)
    assert outcome.word == ("verified" if min(found.lower for found in exact) > 0 else "falsified")
    if isinstance(outcome.verdict, Falsified):
        found = outcome.verdict.counterexample
        values = {f"X_{i}": Fraction(float(v)) for i, v in enumerate(found.clip.flatten())}
        scores = model.predict(found.clip.numpy()[None])[0]
        assert holds(text, values | {f"Y_{i}": Fraction(float(v)) for i, v in enumerate(scores)})


def test_both_verdicts_occur_above(tmp_path: Path) -> None:
    words = set()
    for seed in range(4):
        model = load_model(networks.write(tmp_path / f"{seed}.onnx", "acas", seed))
        text = declarations(3, 2) + f"(assert (and {boxed(['0'] * 3, ['0.5'] * 3)} (>= Y_0 Y_1)))"
        words.add(verify_all(asked(tmp_path, model, text), QUICK).word)
    assert words == {"verified", "falsified"}


def test_sides_without_float32_values_are_those_that_a_model_can_be_given(tmp_path: Path) -> None:
    model = load_model(Gap(), (2,))

    def word(threshold: float) -> Outcome:
        text = declarations(2, 1) + f"(assert (and {boxed(['0', '0.1'], ['1', '0.1'])} (>= Y_0 {threshold})))"
        (query,) = asked(tmp_path, model, text)
        assert query.clip[0, 0, 0, 1] == float(np.float32(0.1))
        assert not isinstance(query.set, BoxSpecification) or not query.set.contains(query.clip)
        return verify_all([query], QUICK)

    assert word(0.95).word == "verified"
    broken = word(0.5)
    assert isinstance(broken.verdict, Falsified)
    assert float(broken.verdict.counterexample.clip[0, 0, 0, 1]) == float(np.float32(0.1))


@pytest.mark.parametrize("seed", range(5))
def test_the_centre_is_a_float32_value_in_the_widened_box(seed: int) -> None:
    """Which holds the box, and of every side the float32 value nearest to it, and nothing more."""
    random = np.random.default_rng(seed)
    lower = torch.from_numpy(random.standard_normal((1, 1, 4, 50)))
    # Sides of some, one and no float32 values.
    upper = lower + torch.from_numpy(10.0 ** random.uniform(-12, 0, lower.shape))
    box = BoxSpecification(lower, upper)
    centre = box.centre()
    assert torch.equal(centre, centre.float().double())
    built = box.build(centre)
    assert bool(built.contains(centre.unsqueeze(0))[0])
    for side, given_side in ((built.lower, lower), (built.upper, upper)):
        nearest = given_side.float().double()
        assert bool(((side == given_side) | (side == nearest)).all())
    assert bool((built.lower <= lower).all())
    assert bool((built.upper >= upper).all())
    assert bool((built.lower <= lower.float()).all())
    assert bool((built.upper >= upper.float()).all())


def test_our_own_specifications_come_through_the_same_door(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.array([0.5, 0.25], dtype=np.float32))
    entries = {"schema": 1, "clip": "clip.npy", "set": "everywhere", "epsilon": 0.1, "tolerance": 0.5}
    (tmp_path / "one.json").write_text(json.dumps(entries))
    (query,) = read_questions(tmp_path / "one.json", load_model(Gap(), (2,)))
    assert verify_all([query], QUICK).word == "verified"
    assert query.clip.shape == (1, 1, 1, 2)


def test_another_model_is_refused(tmp_path: Path) -> None:
    text = declarations(2, 1) + f"(assert (and {boxed(['0', '0'], ['1', '1'])} (>= Y_0 1)))"
    model = load_model(networks.write(tmp_path / "flat.onnx", "flat"))
    with pytest.raises(InputError, match="2 inputs and 1 outputs, but model flat has 3 and 2"):
        asked(tmp_path, model, text)


def outcome(verdict: Verified | Falsified | Unknown, lower: float, upper: float) -> Outcome:
    return Outcome(verdict, lower, upper, (1.0,), "split", 2.0, {"split": 1.5}, {"subproblems": 3})


HOLDS = [
    outcome(Verified(Certificate(bound, {"split": 2}, (Leaf(0, {"patch": [1]}, 0, bound, "split"),))), bound, 4.0)
    for bound in (0.5, 0.25)
]
BROKEN = outcome(Falsified(Counterexample(torch.zeros(1, 1, 1, 2), (0.0,), -1.0, "attack")), -math.inf, -1.0)
OPEN = outcome(Unknown(Reason.TIME, "out of time"), -0.5, 0.125)


def test_one_is_enough_to_falsify_and_all_must_hold() -> None:
    held = combined(HOLDS)
    assert isinstance(held.verdict, Verified)
    assert held.verdict.certificate.lower == held.lower == 0.25
    assert held.verdict.certificate.closed == {"split": 4}
    assert [leaf.part["question"] for leaf in held.verdict.certificate.leaves] == [0, 1]
    assert (held.seconds, held.stage_seconds, held.counts) == (4.0, {"split": 3.0}, {"questions": 2, "subproblems": 6})
    for others in ([BROKEN, *HOLDS], [*HOLDS, OPEN, BROKEN]):
        assert combined(others).verdict is BROKEN.verdict
    opened = combined([*HOLDS, OPEN])
    assert opened.verdict == Unknown(Reason.TIME, "1 of 3 boxes stay open; the first: out of time")
    assert (opened.lower, opened.upper, opened.decided_by) == (-0.5, 0.125, "split")
    assert combined([OPEN]) is OPEN


def test_time_is_shared_and_over_when_it_is_over(tmp_path: Path) -> None:
    cases = (f"(and {boxed(['0', '0'], ['1', top])} (>= Y_0 {top}.5))" for top in ("1", "2"))
    text = declarations(2, 1) + f"(assert (or {' '.join(cases)}))"
    queries = asked(tmp_path, load_model(Gap(), (2,)), text)
    seen: list[Progress] = []
    assert verify_all(queries, QUICK, seen.append).word == "verified"
    assert seen
    late = verify_all(queries, replace(QUICK, timeout=1e-3))
    assert isinstance(late.verdict, Unknown)
    assert "of 2 boxes stay open" in late.verdict.reason


def test_keys_and_records_tell_boxes_apart(tmp_path: Path) -> None:
    model = load_model(Gap(), (2,))
    wanted = same_class(0, 2)
    corners = [(0.0, 0.0, 1.0, 1.0), (0.0, 0.25, 1.0, 0.75)]  # one domain, one longest side, one centre
    queries = []
    for a, b, c, d in corners:
        low, high = (torch.tensor(v, dtype=torch.float64).view(1, 1, 1, 2) for v in ([a, b], [c, d]))
        box = BoxSpecification(low, high)
        queries.append(Query(model, box.centre(), box, wanted))
    first, second = (query_key(query, QUICK) for query in queries)
    assert torch.equal(queries[0].clip, queries[1].clip)
    assert first != second
    assert questions_key(queries[:1], QUICK) == first
    assert questions_key(queries, QUICK) not in (first, second)
    first = make_record(queries[0], QUICK, combined(HOLDS), clip_source="a.vnnlib")
    assert first.set["text"] == "box"
    assert record_of_all(first, queries[:1], QUICK) is first
    record = record_of_all(first, queries, QUICK)
    assert record.key == questions_key(queries, QUICK)
    assert record.set["text"] == "2 boxes, the first"
    assert len(record.set["sha256"]) == 64


def test_a_box_is_described(tmp_path: Path) -> None:
    text = declarations(2, 1) + f"(assert (and {boxed(['-1', '0.25'], ['1', '0.5'])} (>= Y_0 8)))"
    (query,) = asked(tmp_path, load_model(Gap(), (2,)), text)
    printed = StringIO()
    Console(width=120, file=printed).print(question(query, [0.0]))
    assert "box, sides up to 2 long, values in [-1, 1]" in printed.getvalue()
    assert "no unsafe output (1 case in property.vnnlib)" in printed.getvalue()
    assert verify(query, QUICK).word == "verified"
