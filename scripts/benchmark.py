#!/usr/bin/env python
"""How fast the bounds are: members of patch sets, the search, large networks. One table each, in results/studies.

    python scripts/benchmark.py                      # everything, about half an hour
    python scripts/benchmark.py --only members scaling
    python scripts/benchmark.py --only search --clips 3 --timeout 10

    members   every position of a 3x3 patch in 2 frames, eps 1, on networks P and Q, each with its own bounds of hidden
              layers (quick: as the verifier does, backward bounds only where intervals prove nothing); beside it, in
              the same run, the naive loop: position by position on the whole network
    scaling   time for a position when the clip's height and width double (convolutions of P, one pooled output)
    search    complete verdicts on P: frames 3 and 4 with eps 0.15, all frames with eps 0.03; and on Q
    profile   how much of the search's time is spent outside of tensor kernels
    rounding  what counting rounding errors costs: hidden layers and forms with and without, alternating
    batches   convolutions of many clips in float64: the whole batch at once, as torch does it, and in parts
    large     networks like C3D and R3D-18 on 3x16x112x112: bounds as multiples of a forward pass, and peak memory; a
              member on the whole network and, in the same run, on crops of every layer; 64 members together

Networks P and Q are trained when they are not in build/benchmark (a few minutes). Every measurement has a process of
its own; memory is the peak of that whole process, Python and torch included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import ParamSpec, TypeVar

import torch
from benchmark_networks import LARGE, trained
from rich.console import Console
from rich.progress import track
from study_files import STUDIES, markdown, median, provenance, show, write_csv
from torch import Tensor

from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.cells import cell_problem, cells, crops_at_once
from stbp_milp.bounds.footprint import Restrictor, grouped
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem, unstable_count
from stbp_milp.branching import BranchingOptions
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Convolution, Linear, ReLU, Reshape
from stbp_milp.network.model import load_model
from stbp_milp.network.normal_form import normal_form
from stbp_milp.network.operations import apply
from stbp_milp.properties import same_class
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import Patch, PerturbationSet, SetSpecification
from stbp_milp.verify import verify

PARTS = ("members", "scaling", "search", "profile", "rounding", "batches", "large")
PATCH = "patch:3x3@2"
SEARCH_SETS = (("P", "frames:3,4", 0.15), ("P", "everywhere", 0.03), ("Q", "frames:3,4", 0.02))
LARGE_WORK = 3e10  # multiplications a layer, as the verifier plans for a minute
LARGE_SETS = {
    "any-frames:2": ["whole network"],
    "window:2": ["whole network"],
    "patch-at:7,50,50:8x8@2": ["whole network", "crop"],
    "64 drawn places of patch:8x8@2": ["crops one by one, quick"],
    "64 neighbours of patch:8x8@2": ["crops one by one, quick", "crops of cells, quick"],
}
P = ParamSpec("P")
R = TypeVar("R")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts")
    parser.add_argument("--clips", type=int, default=10, help="clips of the search (default 10)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one verdict (default 60)")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for members and large (default 2)")
    arguments = parser.parse_args()
    console = Console()
    for part in arguments.only:
        page = [f"# Benchmark: {part}\n", provenance(arguments.threads)]
        title, header, rows = {
            "members": members,
            "scaling": scaling,
            "search": search,
            "profile": profile,
            "rounding": rounding,
            "batches": batches,
            "large": large,
        }[part](arguments, console)
        show(console, title, header, rows)
        STUDIES.mkdir(parents=True, exist_ok=True)
        (STUDIES / f"benchmark_{part}.md").write_text("\n".join([*page, title + "\n", markdown(header, rows)]))
        write_csv(STUDIES / f"benchmark_{part}.csv", header, rows)


Table = tuple[str, list[str], list[list[object]]]


def alone(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """The function's result, from a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- members ------------------------------------------------------------------------------------------------


def members(arguments: argparse.Namespace, console: Console) -> Table:
    header = [
        "network", "positions", "seconds", "quick s", "proved", "median unstable", "peak MB", "naive s", "faster"
    ]  # fmt: skip
    rows: list[list[object]] = []
    for name in ("P", "Q"):
        trained(name, console)
        with console.status(f"members of {name}"):
            count, seconds, quick, proved, unstable, peak = alone(_restricted_members, name, arguments.threads)
            naive = alone(_naive_members, name, arguments.threads)
        rows.append([name, count, seconds, quick, proved, unstable, peak, naive, naive / seconds])
    return f"{PATCH}, eps 1, median of 3 clips, threads {arguments.threads}", header, rows


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
            unstable[items] = unstable_count(bounds, problem.parts)
            open_ = (lower[items] <= 0).any(1).nonzero().flatten()
            problem, items = problem.select(open_), items[open_]
        if len(items):
            bounds = preactivations(problem, BoundingOptions())
            lower[items] = bound_once(Bounded(problem, bounds), Forms(rows, offset)).lower
            unstable[items] = unstable_count(bounds, problem.parts)
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
    for item in torch.linspace(0, places.parts - 1, sample).long().split(1):
        one = problem.with_inputs(places.select(item))
        bound_once(Bounded(one, preactivations(one, BoundingOptions())), Forms(rows, offset))
    return (time.monotonic() - began) * places.parts / sample


# --- scaling ------------------------------------------------------------------------------------------------


def scaling(arguments: argparse.Namespace, console: Console) -> Table:
    header = ["height and width", "positions", "seconds", "ms a position", "times the row before"]
    rows: list[list[object]] = []
    before = None
    for side in (16, 32, 64):
        with console.status(f"scaling, {side}"):
            count, seconds = alone(_scaled, side, arguments.threads)
        each = 1e3 * seconds / count
        rows.append([side, count, seconds, each, before and each / before])
        before = each
    return f"{PATCH}, eps 1, convolutions of P and one pooled output, threads {arguments.threads}", header, rows


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


# --- search -------------------------------------------------------------------------------------------------


def search(arguments: argparse.Namespace, console: Console) -> Table:
    header = [
        "network", "set", "eps", "clip", "verdict", "decided by", "lower", "upper", "seconds", "subproblems", "a second"
    ]  # fmt: skip
    rows: list[list[object]] = []
    for name, text, epsilon in SEARCH_SETS:
        model, clips, labels = trained(name, console)
        for i in track(range(arguments.clips if name == "P" else 3), description=f"{name}, {text}", console=console):
            query = Query(model, clips[i], SetSpecification(text, epsilon), same_class(int(labels[i]), 4))
            outcome = verify(query, Configuration(timeout=arguments.timeout, threads=arguments.threads))
            bounded_each = outcome.counts.get("subproblems", 0)
            searching = outcome.stage_seconds.get("relu search", 0.0)
            row = [
                name,
                text,
                epsilon,
                i,
                outcome.word,
                outcome.decided_by,
                outcome.lower,
                outcome.upper,
                outcome.seconds,
            ]
            rows.append([*row, bounded_each, bounded_each / searching if searching > 1 else None])
    return f"complete verdicts, {arguments.timeout:g} s, threads {arguments.threads}", header, rows


def profile(arguments: argparse.Namespace, console: Console) -> Table:
    """One thread: with more, the time of kernels would be counted more than once."""
    header = ["network", "set", "clip", "seconds", "in kernels s", "outside"]
    rows: list[list[object]] = []
    for name, text, epsilon in SEARCH_SETS[1:]:
        model, clips, labels = trained(name, console)
        query = Query(model, clips[1], SetSpecification(text, epsilon), same_class(int(labels[1]), 4))
        with console.status(f"profile, {name}"), torch.profiler.profile() as found:
            outcome = verify(query, Configuration(timeout=min(10.0, arguments.timeout), threads=1))
        kernels = sum(event.self_cpu_time_total for event in found.key_averages()) / 1e6
        rows.append([name, text, 1, outcome.seconds, kernels, 1 - kernels / outcome.seconds])
    return "share of the time of a search that is spent outside of tensor kernels, one thread", header, rows


def rounding(arguments: argparse.Namespace, console: Console) -> Table:
    header = ["network", "set", "without s", "with s", "ratio"]
    rows: list[list[object]] = []
    forms, offset = same_class(0, 4).forms()
    for name, text, epsilon in SEARCH_SETS:
        model, clips, _ = trained(name, console)
        whole = Problem.of(model.network, SetSpecification(text, epsilon).build(clips[1]))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for counted in (False, True) * 6:
            problem = whole if counted else replace(whole, rounding=None)
            began = time.perf_counter()
            bounds = preactivations(problem, BoundingOptions())
            bound_once(Bounded(problem, bounds), Forms(forms, offset))
            seconds[counted].append(time.perf_counter() - began)
        without, counts = (min(seconds[counted]) for counted in (False, True))
        rows.append([name, text, without, counts, counts / without])
    return "bounds of hidden layers and forms, best of six, one torch thread a core", header, rows


def batches(arguments: argparse.Namespace, console: Console) -> Table:
    header = ["kernel", "clips", "whole batch s", "in parts s", "ratio"]
    rows: list[list[object]] = []
    for axes, channels, side, count in ((2, 16, 24, 64), (3, 8, 12, 64), (3, 16, 8, 64), (3, 8, 24, 16)):
        weight = torch.randn(channels, channels, *[3] * axes, dtype=torch.float64)
        clips = torch.randn(count, channels, *[side] * axes, dtype=torch.float64)
        layer = Convolution(weight, weight.new_zeros(channels), (1,) * axes, ((1, 1),) * axes, (1,) * axes)
        together = {2: torch.conv2d, 3: torch.conv3d}[axes]
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for parts in (False, True) * 4:
            began = time.perf_counter()
            apply(layer, [clips]) if parts else together(clips, weight, padding=1)
            seconds[parts].append(time.perf_counter() - began)
        whole, parted = (min(seconds[parts]) for parts in (False, True))
        rows.append(
            [f"{channels} x {'x'.join('3' * axes)}", f"{count} of {side}^{axes}", whole, parted, parted / whole]
        )
    return "convolutions in float64, best of four", header, rows


# --- large networks -----------------------------------------------------------------------------------------


def large(arguments: argparse.Namespace, console: Console) -> Table:
    header = [
        "network", "set", "members", "on", "forward s", "hidden layers s", "one form s", "both, times forward",
        "peak MB",
    ]  # fmt: skip
    rows: list[list[object]] = []
    for name in LARGE:
        for text, ways in LARGE_SETS.items():
            for way in ways:
                with console.status(f"{name}, {text}, {way}"):
                    count, forward, hidden, form, peak = alone(_large, name, text, way, arguments.threads)
                rows.append([name, text, count, way, forward, hidden, form, (hidden + form) / forward, peak])
    title = (
        f"eps 1/255, untrained networks, one class against one other, threads {arguments.threads}; forward: float32; "
        "seconds a member; quick: hidden layers by intervals"
    )
    return title, header, rows


def _large(name: str, text: str, way: str, threads: int) -> tuple[int, float, float, float, float]:
    """Members, and seconds for a forward pass, for hidden layers and one form of a member; peak MB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module, clip = LARGE[name]().eval(), torch.rand(3, 16, 112, 112)
    forwards = []
    for _ in range(3):
        began = time.monotonic()
        with torch.no_grad():
            module(clip.unsqueeze(0))
        forwards.append(time.monotonic() - began)
    network = load_model(module, tuple(clip.shape)).network
    del module
    rows, offset = same_class(0, 101).forms()
    quick = BoundingOptions("interval", memory_bytes=256 << 20)
    options = quick if "quick" in way else replace(quick, deep="backward", work=LARGE_WORK)
    union = SetSpecification("patch:8x8@2" if "64" in text else text, 1 / 255).build(clip.double())
    members, whole = _sixty_four(union, text) if "64" in text else union, Problem.of(network, union)
    hidden = form = 0.0
    began = time.monotonic()
    for problem in _problems(whole, members, way):
        bounds = preactivations(problem, options)
        hidden, began = hidden + time.monotonic() - began, time.monotonic()
        bound_once(Bounded(problem, bounds), Forms(rows[:1], offset[:1]), memory_bytes=256 << 20)
        form, began = form + time.monotonic() - began, time.monotonic()
    count = members.parts
    return count, median(forwards) or 0.0, hidden / count, form / count, peak_megabytes()


def _sixty_four(union: PerturbationSet, text: str) -> PerturbationSet:
    """64 positions of a patch: drawn, or beside each other."""
    places = union.singletons()
    assert isinstance(places.choice, Patch)
    if "neighbours" in text:
        low = torch.tensor([7, 48, 48])
        near = ((places.choice.first >= low) & (places.choice.first < low + torch.tensor([1, 8, 8]))).all(1)
        return places.select(near.nonzero().flatten())
    return places.select(torch.randperm(places.parts, generator=torch.Generator().manual_seed(0))[:64])


def _problems(whole: Problem, members: PerturbationSet, way: str) -> Iterator[Problem]:
    """What is bounded, making crops included."""
    if "crop" not in way:
        yield whole
        return
    together = [members] if "cells" in way else [members.select(item) for item in torch.arange(members.parts).split(1)]
    for some in together:
        for cell in cells(whole.network, some):
            problem = cell_problem(whole, some.select(cell.members), cell.voxels)
            for items in torch.split(torch.arange(problem.parts), crops_at_once(problem.network, whole.network)):
                yield problem.select(items)


if __name__ == "__main__":
    main()
