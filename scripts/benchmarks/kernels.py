"""What counting rounding errors costs, and convolutions of a batch in parts."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from rich.console import Console

from scripts.benchmarks.measuring import Asked, Table
from scripts.benchmarks.networks import trained
from scripts.benchmarks.search import SEARCH_SETS
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.layers import Convolution
from stbp_milp.network.operations import apply
from stbp_milp.properties import same_class
from stbp_milp.sets import SetSpecification


def rounding(asked: Asked, console: Console) -> Table:
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


def batches(asked: Asked, console: Console) -> Table:
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
