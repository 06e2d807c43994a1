"""All positions of a patch on networks P and Q, and how their time grows with the clip."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from torch import Tensor

from scripts.benchmarks.measuring import Asked, Table, alone, peak_megabytes
from scripts.benchmarks.networks import trained
from scripts.studies.frame import median
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.footprint import Restrictor, grouped
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem, unstable_count
from stbp_milp.branching import BranchingOptions
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Convolution, Linear, ReLU, Reshape
from stbp_milp.network.normal_form import normal_form
from stbp_milp.properties import same_class
from stbp_milp.sets import PerturbationSet, SetSpecification

PATCH = "patch:3x3@2"


def members(asked: Asked, console: Console) -> Table:
    header = [
        "network", "positions", "seconds", "quick s", "proved", "median unstable", "peak MB", "naive s", "faster"
    ]  # fmt: skip
    rows: list[list[object]] = []
    for name in ("P", "Q"):
        trained(name, console)
        with console.status(f"members of {name}"):
            count, seconds, quick, proved, unstable, peak = alone(_restricted_members, name, asked.threads)
            naive = alone(_naive_members, name, asked.threads)
        rows.append([name, count, seconds, quick, proved, unstable, peak, naive, naive / seconds])
    return f"{PATCH}, eps 1, median of 3 clips, threads {asked.threads}", header, rows


def positions_of(clip: Tensor) -> PerturbationSet:
    """Every position of the patch as a set of its own."""
    return SetSpecification(PATCH, 1.0).build(clip).singletons()


def bounded(
    network: Network, places: PerturbationSet, rows: Tensor, offset: Tensor, quick: bool = False
) -> tuple[Tensor, Tensor]:
    """Lower bounds of every position, `(N, M)`, and how many of its ReLUs are undecided, `(N,)`.

    `quick`: as the verifier does, backward bounds of hidden layers only where intervals prove nothing.
    """
    maps = normal_form(network)
    lower = torch.empty(places.parts, rows.shape[0], dtype=torch.float64)
    unstable = torch.empty(places.parts, dtype=torch.int64)
    restrict = Restrictor(maps, Problem.of(network, places))
    for group in grouped(maps, places, BranchingOptions().family_memory // 8):
        problem, items = restrict(group), group.members
        if quick:
            bounds = preactivations(problem, BoundingOptions("interval"))
            lower[items] = bound_once(Bounded(problem, bounds), Forms(rows, offset)).lower
            unstable[items] = unstable_count(problem.network, bounds, problem.parts)
            open_ = (lower[items] <= 0).any(1).nonzero().flatten()
            problem, items = problem.select(open_), items[open_]
        if len(items):
            bounds = preactivations(problem, BoundingOptions())
            lower[items] = bound_once(Bounded(problem, bounds), Forms(rows, offset)).lower
            unstable[items] = unstable_count(problem.network, bounds, problem.parts)
    return lower, unstable


def _restricted_members(name: str, threads: int) -> tuple[int, float, float, str, int, float]:
    torch.set_num_threads(threads)
    model, clips, labels = trained(name, Console())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    proved, undecided = [], []
    for clip, label in zip(clips[:3], labels[:3].tolist(), strict=True):
        forms = same_class(label, 4).forms()
        for quick in (True, False):
            began = time.monotonic()
            places = positions_of(clip)
            lower, unstable = bounded(model.network, places, *forms, quick)
            seconds[quick].append(time.monotonic() - began)
        proved.append(int((lower > 0).all(1).sum()))
        undecided.append(int(unstable.median()))
    every, quick_ones = (median(seconds[quick]) or 0.0 for quick in (False, True))
    return places.parts, every, quick_ones, str(proved), max(undecided), peak_megabytes()


def _naive_members(name: str, threads: int, sample: int = 40) -> float:
    """Seconds for all positions of the first clip one by one on the whole network, from a sample of them."""
    torch.set_num_threads(threads)
    model, clips, labels = trained(name, Console())
    places, (rows, offset) = positions_of(clips[0]), same_class(int(labels[0]), 4).forms()
    problem = Problem.of(model.network, places.select(torch.tensor([0])))
    began = time.monotonic()
    for item in torch.linspace(0, places.parts - 1, sample).long().unsqueeze(1):
        one = problem.with_inputs(places.select(item))
        bound_once(Bounded(one, preactivations(one, BoundingOptions())), Forms(rows, offset))
    return (time.monotonic() - began) * places.parts / sample


def scaling(asked: Asked, console: Console) -> Table:
    header = ["height and width", "positions", "seconds", "ms a position", "times the row before"]
    rows: list[list[object]] = []
    before = None
    for side in (16, 32, 64):
        with console.status(f"scaling, {side}"):
            count, seconds = alone(_scaled, side, asked.threads)
        each = 1e3 * seconds / count
        rows.append([side, count, seconds, each, before and each / before])
        before = each
    return f"{PATCH}, eps 1, convolutions of P and one pooled output, threads {asked.threads}", header, rows


def _scaled(side: int, threads: int) -> tuple[int, float]:
    torch.set_num_threads(threads)
    model, clips, _ = trained("P", Console())
    kernels = [node.layer for node in model.network.nodes if isinstance(node.layer, Convolution)]
    network = convolutions(kernels, (1, 8, side, side))
    places = positions_of(clips[0].repeat(1, 1, side // 16, side // 16))
    forms = torch.eye(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    bounded(network, places.select(torch.arange(10)), *forms)
    began = time.monotonic()
    bounded(network, places, *forms)
    return places.parts, time.monotonic() - began


def convolutions(kernels: list[Convolution], clip_shape: tuple[int, int, int, int]) -> Network:
    """The convolutions with ReLUs and the mean of what comes out."""
    builder = NetworkBuilder(clip_shape)
    node = "input"
    for i, kernel in enumerate(kernels):
        node = builder.add(f"relu {i}", ReLU(), builder.add(f"convolution {i}", kernel, node))
    size = torch.Size(builder.shape(node)).numel()
    flat = builder.add("flat", Reshape((size,)), node)
    mean = torch.full((1, size), 1.0 / size, dtype=torch.float64)
    return builder.build(builder.add("mean", Linear(mean, torch.zeros(1, dtype=torch.float64)), flat))
