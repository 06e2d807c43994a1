"""Are limits kept? Networks of 1,000 to 1,000,000 ReLUs, all kinds of sets, limits of 2, 6 and 20 seconds.

    python -m scripts.benchmarks.limits [--only TEXT] [--limits 2,6] [--memory 512M] [--out results/studies/limits]

A run begins before the model is loaded. On one thread its processor time is what a quiet core would take; it may
exceed the limit by 10% and half a second. Its process may hold 10% more than the memory limit, and at least what it
takes to compare the model as it was read with the original. Scores are shifted so that a first-order look at the set
breaks the property at two thirds of the margin: neither attacks nor first bounds settle most of the runs. The exit
code is 1 when a limit was not kept.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from scripts.studies.frame import STUDIES, Row, command, markdown, provenance, screen, show
from scripts.studies.frame import main as invoke
from stbp_milp.cli.shared import FILE
from stbp_milp.errors import InputError
from stbp_milp.inputs import parse_bytes
from stbp_milp.memory import trim
from stbp_milp.network.model import load_model
from stbp_milp.query import Configuration
from stbp_milp.question import Classification
from stbp_milp.sets import SetSpecification
from stbp_milp.verify import verify_clip

HEADER = ("ReLUs", "layers", "set", "eps", "limit", "processor", "wall", "MiB", "word", "lower", "upper", "kept")
CHANNELS, CLASSES = 8, 3
SHARE, SECONDS = 0.1, 0.5  # what a run may take beyond its limit: a share of it, and so many seconds


@dataclass(frozen=True)
class Case:
    """One run: a network of about so many ReLUs in so many layers, a set, a radius and a limit in seconds."""

    relus: int
    layers: int
    set: str
    epsilon: float
    limit: float

    @property
    def name(self) -> str:
        return f"{self.relus}x{self.layers} {self.set} {self.limit:g}"


CASES = (
    Case(1_000, 3, "everywhere", 0.02, 2),
    Case(1_000, 3, "pixels:5", 0.3, 2),
    Case(1_000, 10, "any-frames:2", 0.03, 2),
    Case(8_000, 3, "everywhere", 0.01, 2),
    Case(8_000, 3, "patch:3x3@2", 0.3, 2),
    Case(8_000, 3, "moving-patch:3x3@2", 0.1, 2),
    Case(8_000, 10, "window:2", 0.02, 2),
    Case(8_000, 10, "patch:3x3@2", 0.2, 6),
    Case(13_000, 3, "patch:3x3@2", 0.3, 6),
    Case(13_000, 3, "patch:3x3@2", 1.0, 20),
    Case(13_000, 3, "frames:2,3", 0.05, 6),
    Case(13_000, 10, "pixels-per-frame:1", 0.3, 2),
    Case(50_000, 3, "patch:3x3@2", 0.2, 2),
    Case(50_000, 3, "any-frames:2", 0.03, 6),
    Case(50_000, 20, "everywhere", 0.003, 2),
    Case(50_000, 20, "patch:3x3@2", 0.2, 6),
    Case(50_000, 10, "window:2", 0.02, 20),
    Case(200_000, 3, "patch:3x3@2", 0.05, 2),
    Case(200_000, 3, "patch:3x3@2", 0.05, 6),
    Case(200_000, 3, "patch:3x3@2", 0.5, 20),
    Case(200_000, 3, "moving-patch:3x3@2", 0.1, 6),
    Case(200_000, 3, "pixels:5", 0.3, 2),
    Case(200_000, 3, "everywhere", 0.005, 6),
    Case(200_000, 10, "any-frames:2", 0.02, 2),
    Case(200_000, 20, "frames:2,3", 0.01, 6),
    Case(1_000_000, 3, "everywhere", 0.003, 2),
    Case(1_000_000, 3, "patch:3x3@2", 0.1, 2),
    Case(1_000_000, 3, "any-frames:2", 0.02, 6),
    Case(1_000_000, 10, "window:2", 0.01, 6),
    Case(1_000_000, 20, "patch:3x3@2", 0.1, 6),
    Case(1_000_000, 20, "pixels-per-frame:1", 0.3, 2),
    Case(1_000_000, 20, "everywhere", 0.002, 20),
)


@dataclass(frozen=True)
class Measured:
    """What a run took, seconds and bytes, and what it said.

    Attributes:
        loading, peak: the most that the process held while it only read the model, and in all.
    """

    relus: int
    processor: float
    wall: float
    loading: int
    peak: int
    word: str
    lower: float
    upper: float
    stages: dict[str, float]


def network(case: Case) -> tuple[nn.Sequential, Tensor, int]:
    """The network, a clip `(1, n, n, n)` with few values that are not 0, and the number of ReLUs.

    Up to five layers the second and the third have stride 2, as classifiers do; deeper ones keep their size.
    """
    torch.manual_seed(case.layers)
    strides = [1, 2, 2, 1, 1][: case.layers] if case.layers <= 5 else [1] * case.layers
    grown, each = 1, []
    for stride in strides:
        grown *= stride
        each.append(grown)
    side = round((case.relus / CHANNELS / sum(1 / k**3 for k in each)) ** (1 / 3))
    layers: list[nn.Module] = []
    channels, size, relus = 1, side, 0
    for stride in strides:
        convolution = nn.Conv3d(channels, CHANNELS, 3, stride=stride, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, nn.ReLU()]
        channels, size = CHANNELS, (size - 1) // stride + 1
        relus += CHANNELS * size**3
    layers += [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)]
    clip = torch.rand(1, side, side, side) * (torch.rand(1, side, side, side) < 0.3)
    return nn.Sequential(*layers).eval(), clip, relus


def with_margin(model: nn.Sequential, clip: Tensor, case: Case) -> nn.Sequential:
    """Class 0 is ahead of the others by 1.5 times what the linear form at the clip loses on the set."""
    at = clip.unsqueeze(0).requires_grad_()
    scores = model(at)[0]
    perturbation = SetSpecification(case.set, case.epsilon).build(clip)
    last = model[-1]
    assert isinstance(last, nn.Linear)
    for other in range(1, CLASSES):
        ahead = scores[other] - scores[0]
        (slope,) = torch.autograd.grad(ahead, at, retain_graph=True)
        loss = float(perturbation.deviation(slope.to(torch.float64).unsqueeze(0))[0, 0])
        last.bias.data[other] -= float(ahead.detach()) + 1.5 * loss
    return model


def run(case: Case, memory: int) -> Measured:
    """In a process of its own, see `main`."""
    plain, clip, relus = network(case)
    model = with_margin(plain, clip, case)
    configuration = Configuration(timeout=case.limit, memory_bytes=memory)
    load_model(model, tuple(clip.shape))
    loading = peak()
    forget_peak()
    processor, wall = time.process_time(), time.monotonic()
    outcome = verify_clip(model, clip, case.set, case.epsilon, Classification(0), configuration=configuration)
    return Measured(
        relus,
        time.process_time() - processor,
        time.monotonic() - wall,
        loading,
        peak(),
        outcome.word,
        outcome.lower,
        outcome.upper,
        {stage: round(seconds, 2) for stage, seconds in outcome.stage_seconds.items()},
    )


def peak() -> int:
    """The most bytes that this process held since `forget_peak` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def forget_peak() -> None:
    trim()
    Path("/proc/self/clear_refs").write_text("5")


def kept(case: Case, measured: Measured, memory: int) -> bool:
    in_time = measured.processor <= (1 + SHARE) * case.limit + SECONDS
    return in_time and measured.peak <= (1 + SHARE) * max(memory, measured.loading)


def row(case: Case, measured: Measured, memory: int) -> Row:
    return (
        f"{measured.relus:,}",
        case.layers,
        case.set,
        f"{case.epsilon:g}",
        f"{case.limit:g}",
        f"{measured.processor:.2f}",
        f"{measured.wall:.2f}",
        f"{measured.peak / 2**20:.0f}",
        measured.word,
        f"{measured.lower:.3g}",
        f"{measured.upper:.3g}",
        "yes" if kept(case, measured, memory) else "NO",
    )


def warm_up() -> None:
    """What is loaded at its first use is no part of a run."""
    model, clip, _ = network(Case(1_000, 3, "everywhere", 0.01, 2))
    verify_clip(model, clip, "everywhere", 0.01, configuration=Configuration(timeout=1))


@command(__doc__)
@click.option("--only", default="", help="Run only the cases whose name contains this text, such as '200000x3 patch'.")
@click.option("--limits", default="", help="Run only the cases with these limits in seconds, such as 2,6.")
@click.option("--memory", default="4G", show_default=True, help="What a run's process may hold.")
@click.option("--out", type=FILE, default=STUDIES / "limits", help="The tables' path, without an extension.")
def main(only: str, limits: str, memory: str, out: Path) -> int:
    console = screen()
    torch.set_num_threads(1)
    held = parse_bytes(memory)
    wanted = set(limits.split(",")) if limits else set()
    cases = [case for case in CASES if only in case.name and (not wanted or f"{case.limit:g}" in wanted)]
    if not cases:
        names = ", ".join(case.name for case in CASES)
        raise InputError(f"no case has {only!r} in its name and a limit of {limits or 'any'}; the cases are {names}")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {str(out.parent)!r} for --out; make it first")
    warm_up()
    results: list[tuple[Case, Measured]] = []
    # Forked, so that all is loaded, and a process for every run, so that none holds what another one has left.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for case in cases:
            results.append((case, pool.apply(run, (case, held))))
            console.print(*row(*results[-1], held), results[-1][1].stages)
    rows = [row(*result, held) for result in results]
    broken = sum(not kept(*result, held) for result in results)
    show(console, f"Limits, {memory}", HEADER, rows)
    console.print(f"{broken} of {len(results)} runs did not keep a limit")
    text = (
        "Seconds of one thread, loading the model included; a run may take 10% and 0.5 s more than its limit, judged "
        f"by its processor time. Its process may hold {memory} and 10% of that (MiB: what it held at most). "
        f"{broken} of {len(results)} runs did not keep a limit.\n\n"
    )
    out.with_suffix(".md").write_text(
        f"# Limits of time and memory\n\n{text}{markdown(HEADER, rows)}\n{provenance(1)}\n"
    )
    entries = [asdict(case) | asdict(measured) | {"kept": kept(case, measured, held)} for case, measured in results]
    out.with_suffix(".json").write_text(json.dumps(_finite(entries), indent=1) + "\n")
    return 1 if broken else 0


def _finite(entries: list[dict[str, object]]) -> list[dict[str, object]]:
    """JSON knows no infinities: they become text."""
    return [
        {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        for entry in entries
    ]


if __name__ == "__main__":
    invoke(main)
