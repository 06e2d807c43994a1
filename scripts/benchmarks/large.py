"""Networks like C3D and R3D-18 on 3x16x112x112: bounds as multiples of a forward pass, and peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from rich.console import Console

from scripts.benchmarks.measuring import Asked, Table, alone, peak_megabytes
from scripts.benchmarks.networks import LARGE
from scripts.studies.frame import median
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.cells import cell_problem, cells, crops_at_once
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class
from stbp_milp.sets import Patch, PerturbationSet, SetSpecification

LARGE_WORK = 3e10  # multiplications a layer, as the verifier plans for a minute
LARGE_SETS = {
    "any-frames:2": ["whole network"],
    "window:2": ["whole network"],
    "patch-at:7,50,50:8x8@2": ["whole network", "crop"],
    "64 drawn places of patch:8x8@2": ["crops one by one, quick"],
    "64 neighbours of patch:8x8@2": ["crops one by one, quick", "crops of cells, quick"],
}


def large(asked: Asked, console: Console) -> Table:
    header = [
        "network", "set", "members", "on", "forward s", "hidden layers s", "one form s", "both, times forward",
        "peak MB",
    ]  # fmt: skip
    rows: list[list[object]] = []
    for name in LARGE:
        for text, ways in LARGE_SETS.items():
            for way in ways:
                with console.status(f"{name}, {text}, {way}"):
                    count, forward, hidden, form, peak = alone(_large, name, text, way, asked.threads)
                rows.append([name, text, count, way, forward, hidden, form, (hidden + form) / forward, peak])
    title = (
        f"eps 1/255, untrained networks, one class against one other, threads {asked.threads}; forward: float32; "
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
    together = (
        [members] if "cells" in way else [members.select(item) for item in torch.arange(members.parts).unsqueeze(1)]
    )
    for some in together:
        for cell in cells(whole.network, some):
            problem = cell_problem(whole, some.select(cell.members), cell.voxels)
            for items in torch.split(torch.arange(problem.parts), crops_at_once(problem.network, whole.network)):
                yield problem.select(items)
