"""A run on another device comes out as on the CPU, bound for bound.

No card is needed: `fake_device` stands for one, and complains about every tensor left behind on the CPU. Where there is
a card, the same runs are made on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import stbp_milp.stages.context
from stbp_milp.attack import AttackConfiguration
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.branching import BranchingOptions
from stbp_milp.cli.verify import main
from stbp_milp.devices import exact_products, named_device
from stbp_milp.errors import InputError
from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class, top_k, within_tolerance
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification
from stbp_milp.strategy import DEFAULT, Strategy
from stbp_milp.verdict import Falsified, Outcome, Verified
from stbp_milp.verify import verify
from tests import enumeration
from tests.fake_device import FAKE, DeviceMismatchError, fake_device

SETTLED = Configuration(timeout=600.0, threads=1)  # no attack is cut short
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card on this machine")


# --- the runs ---------------------------------------------------------------------------------------------


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 3, (3, 2, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(16, 3)
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=2, dilation=2)
        self.last = nn.Linear(2 * 4 * 4 * 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(x) + x).flatten(1))  # type: ignore[no-any-return]


def query(kind: type[nn.Module] | object, text: str, epsilon: float, seed: int = 0, wanted: str = "class") -> Query:
    torch.manual_seed(seed)
    module = kind().eval()  # type: ignore[operator]
    clip = enumeration.random_clip(seed, 1, (4, 4, 3))
    model = load_model(module, clip.shape)
    outputs = model.network(clip.unsqueeze(0))[0]
    label = int(outputs.argmax())
    properties = {"class": same_class(label, 3), "top 2": top_k(label, 2, 3), "near": within_tolerance(outputs, 0.2)}
    return Query(model, clip, SetSpecification(text, epsilon), properties[wanted])


@dataclass(frozen=True)
class Case:
    """A run, and what it must do for the case to test what it is there for."""

    kind: object
    text: str
    epsilon: float
    does: str  # a count of the outcome, or the word of its verdict
    seed: int = 1
    wanted: str = "class"
    solver: str = "none"
    crops: bool = False  # as a network too large for matrices
    programs: bool = False  # to the MILP, however many ReLUs are undecided

    def __str__(self) -> str:
        return f"{self.text} {self.does}{' on crops' * self.crops}"

    @property
    def strategy(self) -> Strategy:
        short = AttackConfiguration(restarts=1, targets=2, explore_steps=2, refine_steps=6, screen_values=1 << 12)
        return Strategy(
            quick_attack=short,
            thorough_attack=short,
            branching=BranchingOptions(program_limit=10_000) if self.programs else BranchingOptions(),
            matrices_limit=0 if self.crops else DEFAULT.matrices_limit,
        )


CASES = [
    Case(pooled, "frames:0,2", 0.4, "falsified", seed=0),
    Case(plain, "pixels-per-frame:1", 0.15, "verified"),
    Case(plain, "moving-patch:2x1@2", 0.15, "verified", wanted="top 2"),
    Case(plain, "any-frames:2", 0.02, "verified", wanted="near"),
    Case(plain, "pixels:2", 0.05, "verified"),
    Case(Residual, "window:2", 0.05, "verified"),
    Case(pooled, "patch:2x1@2", 0.6, "members bounded"),
    Case(pooled, "patch:2x1@2", 0.6, "members bounded", crops=True),
    Case(pooled, "everywhere", 0.13, "relu splits"),
    Case(pooled, "everywhere", 0.13, "relu splits", crops=True),
    Case(pooled, "everywhere", 0.13, "programs", solver="scip", programs=True),
    Case(Residual, "everywhere", 0.13, "tightened", crops=True),
]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    case: Case = request.param
    return case


def agree(one: Outcome, other: Outcome, tolerance: float) -> None:
    assert one.word == other.word
    assert one.decided_by == other.decided_by
    assert one.lower == other.lower or abs(one.lower - other.lower) <= tolerance
    assert abs(one.upper - other.upper) <= tolerance
    if isinstance(one.verdict, Verified) and isinstance(other.verdict, Verified):
        assert len(one.verdict.certificate.leaves) == len(other.verdict.certificate.leaves)
    if isinstance(one.verdict, Falsified) and isinstance(other.verdict, Falsified):
        assert other.verdict.counterexample.clip.device.type == "cpu"


def test_a_run_on_another_device_is_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = query(case.kind, case.text, case.epsilon, case.seed, case.wanted)
    configuration = replace(SETTLED, solver=case.solver)  # type: ignore[arg-type]
    here = verify(asked, configuration, strategy=case.strategy)
    assert case.does == here.word or here.counts.get(case.does)
    monkeypatch.setattr(stbp_milp.stages.context, "named_device", torch.device)
    with fake_device():
        there = verify(asked, replace(configuration, device=FAKE.type), strategy=case.strategy)
    agree(here, there, 1e-5 if case.programs else 1e-9)
    assert here.counts == there.counts


@needs_card
def test_a_run_on_a_card_has_the_same_verdict(case: Case) -> None:
    asked = query(case.kind, case.text, case.epsilon, case.seed, case.wanted)
    configuration = replace(SETTLED, solver=case.solver)  # type: ignore[arg-type]
    here, there = (
        verify(asked, configuration, strategy=case.strategy),
        verify(asked, replace(configuration, device="cuda")),
    )
    assert here.word == there.word


@needs_card
@pytest.mark.parametrize("text", enumeration.SETS)
@pytest.mark.parametrize("kind", [plain, pooled, Residual])
def test_bounds_on_a_card_are_those_of_the_cpu(kind: object, text: str) -> None:
    """The law: float64 bounds of hidden layers and of the property differ by rounding only."""
    asked, found = query(kind, text, 0.1), []
    rows, offset = asked.property.forms()
    for device in (torch.device("cpu"), torch.device("cuda")):
        problem = Problem.of(asked.model.network.to(device), asked.set.build(asked.clip).to(device))
        bounds = preactivations(problem, BoundingOptions())
        lower = bound_once(Bounded(problem, bounds), Forms(rows.to(device), offset.to(device))).lower
        found.append([lower, *(side for own in bounds.values() for side in (own.lower, own.upper))])
    for here, there in zip(*found, strict=True):
        assert torch.allclose(here, there.cpu(), rtol=1e-9, atol=1e-9)


# --- the stand-in itself ----------------------------------------------------------------------------------


def test_the_fake_device_complains_where_a_card_would() -> None:
    with fake_device():
        fake = torch.arange(3.0, device=FAKE)
        assert (fake * torch.tensor(2.0)).tolist() == [0.0, 2.0, 4.0]
        assert fake.cpu().numpy().tolist() == [0.0, 1.0, 2.0]
        with pytest.raises(DeviceMismatchError):
            fake + torch.ones(3)
        with pytest.raises(DeviceMismatchError):
            torch.ones(3)[torch.tensor([0, 1], device=FAKE)]
        with pytest.raises((RuntimeError, TypeError)):
            fake.numpy()


# --- what users say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["gpu", "meta", "", "cuda:x", "cpu:1", "cuda:99"])
def test_devices_that_do_not_exist_are_explained(text: str) -> None:
    with pytest.raises(InputError, match="device"):
        named_device(text)
    with pytest.raises(InputError, match="device"):
        verify(query(plain, "everywhere", 0.1), replace(SETTLED, device=text))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA card")
def test_a_card_that_is_not_there_is_an_error_of_the_user(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--device", "cuda", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cuda" in line
    assert "not available" in line


def test_tf32_is_off_during_a_run_only() -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with exact_products():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
