"""The verdict on micro networks equals brute force: every member written out, and its exact minimum.

By hand first: f = (relu(x0 - x1) + 0.25, 0) on two frames of one pixel, both 0.5. No clip changes the class, and the
least margin is 0.25. With -0.25 instead of 0.25 the clean clip itself is misclassified. With f = (1.3 - x0 - x1, 0)
the sum may rise by 0.3 before the class changes: one frame with radius 0.2 holds, two frames do not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stbp_milp.branching import Expander, Piece
from stbp_milp.errors import InputError
from stbp_milp.memory import resident
from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class, top_k, within_tolerance
from stbp_milp.query import Configuration, Query
from stbp_milp.question import Classification, DataFormat, Regression
from stbp_milp.search import Expansion
from stbp_milp.sets import SetSpecification
from stbp_milp.verdict import Falsified, Outcome, Progress, Reason, Unknown, Verified
from stbp_milp.verify import verify, verify_clip
from tests import enumeration, micro_instances
from tests.enumeration import SETS
from tests.example_runs import write_model

seeds = st.integers(0, 10**6)
each_set = pytest.mark.parametrize("text", SETS)
VOXELS = (3, 3, 3)
SLACK = 1e-6


def configuration(**options: object) -> Configuration:
    return replace(Configuration(timeout=20.0, threads=1), **options)  # type: ignore[arg-type]


class Difference(nn.Module):
    """`(relu(x0 - x1) + bias, 0)` of two frames of one pixel."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(1, 1, (2, 1, 1), bias=False), nn.Linear(1, 2)
        self.first.weight.data = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1, 1)
        self.last.weight.data, self.last.bias.data = torch.tensor([[1.0], [0.0]]), torch.tensor([bias, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)).flatten(1))


class Sum(nn.Module):
    """`(1.3 - x0 - x1, 0)`."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 2)
        self.last.weight.data = torch.tensor([[-1.0, -1.0], [0.0, 0.0]])
        self.last.bias.data = torch.tensor([1.3, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1))


GREY = torch.full((1, 2, 1, 1), 0.5)


@pytest.mark.parametrize("solver", ["scip", "highs", "none"])
def test_by_hand(solver: str) -> None:
    settled = verify_clip(
        Difference(0.25), GREY, "everywhere", 0.5, Classification(0), configuration=configuration(solver=solver)
    )
    assert isinstance(settled.verdict, Verified)
    assert 0 < settled.lower <= 0.25 + SLACK
    assert settled.upper == pytest.approx(0.25)
    assert settled.clean_outputs == pytest.approx((0.25, 0.0))


@pytest.mark.parametrize("solver", ["scip", "none"])
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("any-frames:1", "verified"),
        ("any-frames:2", "falsified"),
        ("everywhere", "falsified"),
        ("patch-at:1,0,0:1x1@1", "verified"),
    ],
)
def test_without_relus(text: str, word: str, solver: str) -> None:
    outcome = verify_clip(Sum(), GREY, text, 0.2, configuration=configuration(solver=solver))
    assert outcome.word == word


def test_a_misclassified_clean_clip_is_the_counterexample() -> None:
    outcome = verify_clip(Difference(-0.25), GREY, "everywhere", 0.1, Classification(0), configuration=configuration())
    assert isinstance(outcome.verdict, Falsified)
    assert outcome.decided_by == "clean"
    assert torch.equal(outcome.verdict.counterexample.clip, GREY)
    assert outcome.verdict.counterexample.margin == pytest.approx(-0.25)


def test_a_tie_is_no_win() -> None:
    """Margin 0 breaks the property: the class must be strictly larger."""
    outcome = verify_clip(Difference(0.0), GREY, "everywhere", 0.0, Classification(0), configuration=configuration())
    assert outcome.word == "falsified"


# --- against brute force ----------------------------------------------------------------------------------


def micro_module(seed: int, outputs: int, scale: float = 2.0) -> nn.Module:
    """One convolution with 4 or 8 ReLUs, or two layers, over a clip of 1x3x3x3."""
    torch.manual_seed(seed)
    convolution = nn.Conv3d(1, 1 + seed % 2, (3, 2, 2))
    layers: list[nn.Module] = [convolution, nn.ReLU(), nn.Flatten()]
    size = 4 * (1 + seed % 2)
    if seed % 3 == 0:
        layers += [nn.Linear(size, 3), nn.ReLU()]
        size = 3
    module = nn.Sequential(*layers, nn.Linear(size, outputs)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    return module


PROPERTIES: dict[str, tuple[int, Callable[[Tensor], object]]] = {
    "class": (3, lambda outputs: same_class(int(outputs.argmax()), 3)),
    "two classes": (2, lambda outputs: same_class(int(outputs.argmax()), 2)),
    "top 2": (4, lambda outputs: top_k(int(outputs.argmax()), 2, 4)),
    "tolerance": (1, lambda outputs: within_tolerance(outputs, 0.4)),
}


def micro_query(text: str, kind: str, seed: int, epsilon: float) -> Query:
    outputs, property = PROPERTIES[kind]
    clip = enumeration.random_clip(seed, 1, VOXELS)
    model = load_model(micro_module(seed, outputs), clip.shape)
    return Query(model, clip, SetSpecification(text, epsilon), property(model.network(clip.unsqueeze(0))[0]))  # type: ignore[arg-type]


def exact(query: Query) -> float:
    """The least margin over all members: by enumeration, or by the whole set's program where there are too many."""
    found = micro_instances.member_minimum(query, limit=30) or micro_instances.whole_minimum(query, "highs")
    assert found.upper - found.lower < 1e-4
    return found.upper


def agrees(outcome: Outcome, query: Query, least: float) -> None:
    assert outcome.lower <= least + SLACK * (1 + abs(least))
    assert outcome.upper >= least - 1e-4
    if isinstance(outcome.verdict, Verified):
        assert least > 0
        assert outcome.verdict.certificate.lower > 0
        assert outcome.verdict.certificate.lower == outcome.lower
    elif isinstance(outcome.verdict, Falsified):
        example = outcome.verdict.counterexample
        assert example.clip.dtype == torch.float32
        boxes = enumeration.boxes(query.set.text, query.clip, query.set.epsilon)
        assert enumeration.holds(example.clip.double(), *boxes)
        outputs = query.model.predict(example.clip.numpy()[None])[0]
        assert tuple(outputs) == pytest.approx(example.outputs)
        assert float(query.property.margin(torch.from_numpy(outputs).double()[None])) == example.margin <= 0


@pytest.mark.parametrize("kind", list(PROPERTIES))
@each_set
@given(seed=seeds, epsilon=st.sampled_from([0.05, 0.15, 0.4, 1.0]))
@settings(max_examples=2)
def test_verdict_equals_brute_force(text: str, kind: str, seed: int, epsilon: float) -> None:
    query = micro_query(text, kind, seed, epsilon)
    least = exact(query)
    for solver in ("scip", "highs", "none"):
        outcome = verify(query, configuration(solver=solver))
        agrees(outcome, query, least)
        if abs(least) > 1e-3 and (solver != "none" or kind == "class"):
            assert outcome.word == ("verified" if least > 0 else "falsified") or solver == "none", outcome.verdict


@pytest.mark.parametrize("text", ["everywhere", "window:2", "patch:2x1@2", "any-frames:1"])
@pytest.mark.parametrize("scale", [1e-2, 1e3, 1e6])
@given(seed=seeds)
@settings(max_examples=3)
def test_scores_of_any_magnitude(text: str, scale: float, seed: int) -> None:
    """The same network with its last layer scaled: verdicts stay right, whatever tolerances solvers have."""
    query = micro_query(text, "two classes", seed, 0.2)
    level = exact(query)
    module = micro_module(seed, 2)
    label = int(query.model.network(query.clip.unsqueeze(0))[0].argmax())
    random = np.random.default_rng(seed)
    distance = float(random.choice([-1, 1])) * 10.0 ** float(random.uniform(-6, -2))
    with torch.no_grad():
        module[-1].bias[label] += distance - level
        module[-1].weight *= scale
        module[-1].bias *= scale
    near = Query(load_model(module, query.clip.shape), query.clip, query.set, same_class(label, 2))
    least = exact(replace(near, model=load_model(module, query.clip.shape)))
    for solver in ("scip", "highs", "none"):
        outcome = verify(near, configuration(solver=solver))
        slack = 1e-6 * scale
        assert outcome.lower <= least + slack
        if abs(least) > slack:
            assert outcome.word in (("verified" if least > 0 else "falsified"), "unknown")


# --- limits -----------------------------------------------------------------------------------------------


def slow_query(epsilon: float = 0.3) -> Query:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 2 * 3 * 3, 3),
    ).eval()
    clip = enumeration.random_clip(1, 1, (6, 8, 8))
    model = load_model(module, clip.shape)
    return Query(
        model,
        clip,
        SetSpecification("moving-patch:3x3@3", epsilon),
        same_class(int(model.network(clip.unsqueeze(0)).argmax()), 3),
    )


@pytest.mark.parametrize("solver", ["scip", "none"])
@pytest.mark.parametrize("timeout", [0.0, 0.5, 2.0])
def test_time_limits_are_kept(timeout: float, solver: str) -> None:
    """Whatever is reached by then is true: the lower bound is below, the upper bound above a margin that occurs."""
    query = slow_query()
    began = time.monotonic()
    outcome = verify(query, configuration(timeout=timeout, solver=solver))
    assert time.monotonic() - began < timeout + 2.0
    if isinstance(outcome.verdict, Unknown):
        assert f"{timeout:g} s" in outcome.verdict.reason
        assert outcome.decided_by is None
    assert outcome.lower <= outcome.upper
    sampled = query.set.build(query.clip).sample(200, torch.Generator().manual_seed(0))
    assert outcome.lower <= float(query.property.margin(query.model.network(sampled)).min()) + SLACK


def test_no_time_at_all_is_unknown() -> None:
    outcome = verify(micro_query("window:2", "class", 3, 0.01), configuration(timeout=0.0))
    assert isinstance(outcome.verdict, Unknown) or outcome.word == "verified"


@pytest.mark.parametrize(("fits", "word"), [(1, "verified"), (0, "unknown")])
def test_running_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch, fits: int, word: str) -> None:
    """The run goes on with smaller batches; what does not fit even alone is given up, with the bound it has."""
    sizes: list[int] = []
    original = Expander.__call__

    def expand(self: Expander, pieces: list[Piece]) -> Expansion[Piece]:
        sizes.append(len(pieces))
        if len(pieces) > fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return original(self, pieces)

    monkeypatch.setattr(Expander, "__call__", expand)
    outcome = verify(slow_query(0.045), configuration(solver="none"))
    assert outcome.word == word
    assert fits == 0 or max(sizes) > 1


def test_no_memory_for_open_pieces_is_unknown() -> None:
    outcome = verify(slow_query(0.04), configuration(solver="none", memory_bytes=resident() + 100_000))
    assert isinstance(outcome.verdict, Unknown)
    assert outcome.verdict.kind is Reason.MEMORY


@pytest.mark.parametrize("text", ["window:2", "pixels:2", "moving-patch:2x1@2"])
def test_one_seed_one_outcome(text: str) -> None:
    query = micro_query(text, "class", 5, 0.15)
    first, second = (verify(query, configuration(seed=4)) for _ in range(2))
    assert (first.word, first.decided_by, first.lower, first.upper) == (
        second.word,
        second.decided_by,
        second.lower,
        second.upper,
    )
    assert first.counts == second.counts
    if isinstance(first.verdict, Falsified) and isinstance(second.verdict, Falsified):
        assert torch.equal(first.verdict.counterexample.clip, second.verdict.counterexample.clip)


def test_progress_only_gets_better() -> None:
    seen: list[Progress] = []
    verify(slow_query(0.1), configuration(timeout=3.0), seen.append)
    assert seen
    assert all(a.lower <= b.lower and a.upper >= b.upper for a, b in pairwise(seen))
    assert all(p.lower <= p.upper + SLACK for p in seen)
    assert all(a.seconds <= b.seconds for a, b in pairwise(seen))


@given(seed=seeds, text=st.sampled_from(SETS))
@settings(max_examples=10)
def test_radius_zero_asks_about_the_clean_clip(seed: int, text: str) -> None:
    query = micro_query(text, "class", seed, 0.0)
    margin = micro_instances.margin(query, query.clip)
    assert verify(query, configuration()).word == ("verified" if margin > 1e-9 else "falsified")


def test_radius_zero_and_a_margin_within_rounding() -> None:
    """Nothing moves and nothing is provable: unknown or falsified, never verified, never an error."""
    for text in ("patch:1x1@1", "window:1", "everywhere"):
        outcome = verify_clip(Difference(1e-18), GREY, text, 0.0, Classification(0), configuration=configuration())
        assert outcome.word in ("unknown", "falsified")


# --- what users hand in -----------------------------------------------------------------------------------


def test_a_module_in_training_mode_is_left_alone() -> None:
    module = nn.Sequential(
        nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2)
    ).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    outcome = verify_clip(
        module,
        np.random.default_rng(0).random((1, 3, 3, 3), np.float32),
        "window:1",
        0.02,
        configuration=configuration(),
    )
    assert outcome.word in ("verified", "falsified")
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"set": "frames:9"}, "frame 9"),
        ({"property": Classification(7)}, "label 7"),
        ({"property": Classification(top=2)}, "k = 2"),
        ({"epsilon": -1.0}, "eps"),
        ({"data": DataFormat((0.6, 1.0))}, "domain"),
    ],
)
def test_bad_questions_are_explained(options: dict[str, object], says: str) -> None:
    arguments: dict[str, object] = {"set": "window:1", "epsilon": 0.1} | options
    with pytest.raises(InputError, match=says):
        verify_clip(Difference(0.25), GREY, configuration=configuration(), **arguments)  # type: ignore[arg-type]


def test_a_clip_of_another_shape_or_precision_is_refused() -> None:
    query = micro_query("window:1", "class", 0, 0.1)
    with pytest.raises(InputError, match="shape"):
        verify(replace(query, clip=query.clip[:, :2]), configuration())
    with pytest.raises(InputError, match="float32"):
        verify(replace(query, clip=query.clip * 0.9 + 1e-12), configuration())


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    verify(micro_query("window:1", "class", 0, 0.05), configuration(threads=2))
    assert torch.get_num_threads() == before


def test_the_lower_bound_of_a_falsified_query_is_no_bound_of_another() -> None:
    """A search that stops at a counterexample has nodes in flight; they count too (seen: 1.48 for -0.001)."""
    for seed in (24, 36, 60, 96):
        instance = micro_instances.draw(seed)
        outcome = verify(instance.query, configuration())
        assert outcome.lower <= micro_instances.whole_minimum(instance.query, "scip").upper + SLACK
        assert not math.isnan(outcome.lower)


BYTES = np.array([0, 51, 102, 255], dtype=np.uint8).reshape(1, 4, 1, 1)


def level(voxels: int) -> nn.Module:
    """Scores (mean of the clip, 0.2)."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(voxels, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0 / voxels], [0.0]]).expand(2, voxels))
        module[1].bias.copy_(torch.tensor([0.0, 0.2]))
    return module


@pytest.mark.parametrize(
    ("clip", "domain", "mean"),
    [
        (BYTES, None, 0.4),
        (BYTES, (0.0, 255.0), 102.0),
        (BYTES.astype(np.float32), (0.0, 255.0), 102.0),
        (torch.from_numpy(BYTES.astype(np.float32) / np.float32(255)).requires_grad_(), None, 0.4),
        (torch.full((1, 4, 1, 1), 0.5, dtype=torch.bfloat16), None, 0.5),
    ],
)
def test_bytes_are_divided_unless_a_domain_says_what_they_are(clip: Any, domain: Any, mean: float) -> None:
    data = DataFormat(domain)
    outcome = verify_clip(level(4), clip, "everywhere", "0/255", Classification("0"), data, configuration())
    assert outcome.clean_outputs[0] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"clip": np.full((1, 2, 1, 1), 0.1)}, "float32 cannot hold"),
        ({"clip": np.full((1, 2, 1, 1), 1)}, "of type int64"),
        ({"epsilon": "a bit"}, "not a radius"),
        ({"epsilon": None}, "expected a number"),
        ({"property": Classification("first")}, "the number of a class"),
        ({"property": Classification(0.5)}, "the number of a class"),
        ({"property": Classification(True)}, "the number of a class"),
        ({"property": Classification(top="many")}, "a number of classes"),
        ({"property": Classification(top=1.5)}, "a number of classes"),
        ({"property": Regression("2")}, "tolerance is '2'; expected a number"),
        ({"epsilon": 10**400}, "expected a number"),
        ({"epsilon": float("inf")}, "finite radius"),
        ({"clip": np.full((1, 2, 1, 1), np.nan, np.float32)}, "2 values that are NaN or infinite"),
        ({"clip": "clip.npy"}, "expected floats"),
        ({"clip": [[0.5], [0.5, 0.5]]}, "not an array"),
        ({"clip": np.full((1, 3, 1, 1), 0.5, np.float32), "model": "absent.onnx"}, "absent.onnx"),
        ({"model": None}, "the path of an ONNX file"),
        ({"model": level(2).bfloat16()}, "bfloat16"),
        ({"data": DataFormat((0, 1, 2))}, "the smallest and the largest"),
        ({"data": DataFormat((0.0, float("nan")))}, "two finite numbers"),
        ({"data": DataFormat((1, 0))}, "the smaller one first"),
        ({"data": DataFormat("1,0")}, "0,1 or -1,1"),
        ({"set": None}, "expected words"),
        ({"data": DataFormat(layout="ABCD")}, "CTHW"),
        ({"property": "0"}, "expected a Classification or a Regression"),
        ({"data": (0, 255)}, "expected a DataFormat"),
        ({"set": "window:0"}, "1 or more"),
        ({"set": "patch:0x0@1"}, "1 or more"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments: dict[str, Any], said: str) -> None:
    usual: dict[str, Any] = {
        "model": level(2),
        "clip": np.full((1, 2, 1, 1), 0.5, np.float32),
        "set": "everywhere",
        "epsilon": 0.1,
    }
    with pytest.raises(InputError, match=said):
        verify_clip(**(usual | arguments), configuration=configuration())


@pytest.mark.parametrize(
    "arguments",
    [
        {"epsilon": "0.1", "property": Classification("0", "1"), "data": DataFormat("0,1")},
        {"epsilon": np.float32(0.1), "property": Classification(np.int64(0)), "data": DataFormat([0, 1])},
        {
            "epsilon": torch.tensor(0.1),
            "property": Classification(torch.tensor(0)),
            "clip": torch.full((1, 2, 1, 1), 0.5).to_sparse(),
        },
    ],
)
def test_arguments_with_one_meaning(arguments: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"clip": np.full((1, 2, 1, 1), 0.5, np.float32), "set": "everywhere"}
    assert verify_clip(level(2), **(usual | arguments), configuration=configuration()).word == "verified"


def test_a_clip_of_another_shape_than_a_file_takes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "net.onnx")
    with pytest.raises(InputError, match=r"shape \(1, 4, 6, 5\), but the model net takes \(1, 4, 6, 6\)"):
        verify_clip(model, torch.zeros(1, 4, 6, 5), "everywhere", 0.1)
    with pytest.raises(InputError, match=r"takes \(1, 4, 6, 6\)"):  # as many values in another order
        verify_clip(model, torch.zeros(4, 1, 6, 6), "frames:0", 0.1)
