"""Families of hostile instances. An instance is named by its family and a number, and drawn the same every time.

Its *known* points are clips of the set, of which the exact margin is known. The property's offset puts the least of
them where the verdict changes: at 0, a hair above or below it, or clearly below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from .programs import FLAT, PAIRS, RELUS, SAMES, Constant, Exact, Pair, Pool, Program, Relu, Same, exactly
from .regions import KINDS, Region, draw_text

Clause = tuple[int, ...]
EPSILONS = (0.0, 1e-9, 1e-4, 1 / 255, 0.1, 0.25, 1 / 3, 1.0)
NEAR = (0.0, 1e-3, -1e-3, 1e-6, -1e-6, 1e-9, -1e-9, 1e-12, -1e-12, -0.2)  # relative to the scale of the margins


@dataclass(frozen=True, eq=False)
class Instance:
    """A question and what is exactly known of it.

    Attributes:
        rows, offset, clauses: the property, as the package's `Property` has it.
        known: clips of the set (C, T, H, W) of Fractions.
        margins: their exact margins.
    """

    family: str
    number: int
    program: Program
    region: Region
    rows: np.ndarray
    offset: np.ndarray
    clauses: tuple[Clause, ...]
    known: tuple[Exact, ...]
    margins: tuple[Fraction, ...]

    def margin(self, clip: Exact) -> Fraction:
        return _margin(self.program, self.rows, self.offset, self.clauses, clip)

    @property
    def least(self) -> Fraction:
        return min(self.margins)


def _margin(
    program: Program, rows: np.ndarray, offset: np.ndarray, clauses: tuple[Clause, ...], clip: Exact
) -> Fraction:
    outputs = program.outputs(clip)
    values = [
        sum((Fraction(a) * y for a, y in zip(row, outputs, strict=True)), Fraction(b))
        for row, b in zip(rows.tolist(), offset.tolist(), strict=True)
    ]
    return min(max(values[r] for r in clause) for clause in clauses)


# --- drawing parts ----------------------------------------------------------------------------------------


def _pick(random: np.random.Generator, options: Any) -> Any:
    options = list(options)
    return options[int(random.integers(len(options)))]


def _region(random: np.random.Generator, voxels: tuple[int, int, int], channels: int = 1, kind: str = "") -> Region:
    domain = _pick(random, [(0.0, 1.0)] * 4 + [(-1.0, 1.0), (0.0, 255.0)])
    low, high = domain
    clip = low + (high - low) * np.clip(random.random((channels, *voxels)) * 1.4 - 0.2, 0, 1)
    clip = np.clip(clip.astype(np.float32).astype(np.float64), low, high)
    epsilon = float(_pick(random, EPSILONS[4:] if random.random() < 0.8 else EPSILONS)) * (high - low)
    return Region(draw_text(kind or str(_pick(random, KINDS)), voxels, random), clip, epsilon, domain)


def _unit(random: np.random.Generator, voxels: tuple[int, int, int], kind: str = "") -> Region:
    """In [0, 1] with a large radius."""
    clip = np.full((1, *voxels), 0.5) + random.integers(-8, 9, (1, *voxels)) / 64
    return Region(
        draw_text(kind or str(_pick(random, KINDS)), voxels, random),
        clip,
        float(_pick(random, (0.25, 1.0))),
        (0.0, 1.0),
    )


def _voxels(random: np.random.Generator, least: int = 2) -> tuple[int, int, int]:
    t, h, w = (int(random.integers(least, 4)) for _ in range(3))
    return t, h, w


def _planted(random: np.random.Generator, region: Region, count: int) -> tuple[np.ndarray, list[int], list[float]]:
    """A clip of float32 values inside the set, off the clean one at some voxels; which, and their values."""
    cover = np.flatnonzero(region.draw_cover(random))
    sites = random.permutation(cover)[:count].tolist()
    low, high = (a.astype(np.float64).ravel() for a in region.box())
    clip = region.clip.ravel().copy()
    for site in sites:
        share = float(random.integers(1, 8)) / 8
        clip[site] = np.float32(low[site] + share * (high[site] - low[site]))
    return clip.reshape(region.clip.shape), sites, [float(clip[s]) for s in sites]


def _searched(
    random: np.random.Generator, program: Program, region: Region, rows: np.ndarray, clauses: tuple[Clause, ...]
) -> list[Exact]:
    """Low points that a little descent in float64 finds, moved exactly onto the box: the two best."""
    module = program.module().double()
    low, high = region.box()
    boxes = [torch.from_numpy(a.astype(np.float64)) for a in (low, high)]
    clean = torch.from_numpy(region.clip)
    covers = torch.from_numpy(np.stack([region.draw_cover(random) for _ in range(32)])).unsqueeze(1)
    share = torch.from_numpy(random.random((32, *region.clip.shape)))
    share[::2] = share[::2].round()
    clips = torch.where(covers, boxes[0] + share * (boxes[1] - boxes[0]), clean)
    forms = torch.from_numpy(rows)
    tried = [clips]
    for _ in range(4):
        at = clips.clone().requires_grad_(True)
        values = module(at * 1.0) @ forms.T
        least = torch.stack([values[:, list(clause)].amax(1) for clause in clauses], 1).amin(1)
        try:
            (slope,) = torch.autograd.grad(least.sum(), at)
        except RuntimeError:  # detached, or an in-place operator took what the slope needs
            break
        corner = torch.where(slope > 0, boxes[0], torch.where(slope < 0, boxes[1], clips))
        clips = torch.where(covers, corner, clean)
        tried.append(clips)
    everything = torch.cat(tried)
    with torch.no_grad():
        values = module(everything.clone()) @ forms.T
    least = torch.stack([values[:, list(clause)].amax(1) for clause in clauses], 1).amin(1)
    return [_onto(region, everything[i].numpy()) for i in least.argsort()[:2].tolist()]


def _onto(region: Region, clip: np.ndarray) -> Exact:
    """Sides of the box exact, other values the rational numbers that they are."""
    low, high = region.box()
    result = exactly(clip)
    for value, exact in ((low.astype(np.float64), low), (high.astype(np.float64), high)):
        at = (clip == value) & (clip != region.clip)
        result[at] = exact[at]
    return np.maximum(np.minimum(result, high), low)


def _finish(
    family: str,
    number: int,
    random: np.random.Generator,
    program: Program,
    region: Region,
    points: list[np.ndarray],
    near: float | None = None,
    search: bool = True,
) -> Instance:
    """Draws the property and puts the least known margin at `near` times the scale of the margins."""
    classes = program.shape(-1)[0]
    rows = np.zeros((max(1, classes - 1), classes))
    if classes == 1:
        rows[0, 0] = 1.0
    else:
        rows[:, 0], rows[range(classes - 1), range(1, classes)] = 1.0, -1.0
    together = classes > 2 and random.random() < 0.3
    clauses = (tuple(range(len(rows))),) if together else tuple((r,) for r in range(len(rows)))
    known = [exactly(region.clip), *(exactly(p) for p in points)]
    if search:
        known += _searched(random, program, region, rows, clauses)
    zero = np.zeros(len(rows))
    bare = [_margin(program, rows, zero, clauses, clip) for clip in known]
    near = float(_pick(random, NEAR)) if near is None else near
    spread = max(bare) - min(bare) or max(abs(m) for m in bare) or Fraction(1)
    shift = float(Fraction(near) * spread - min(bare))
    offset = np.full(len(rows), shift)
    margins = [_margin(program, rows, offset, clauses, clip) for clip in known]
    return Instance(family, number, program, region, rows, offset, clauses, tuple(known), tuple(margins))


# --- families ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Bump:
    """Rows of two dense layers: `1 - sharp * sum |x_s - v_s|`, which is 1 at the planted values and falls steeply."""

    weight: np.ndarray  # (2k, n)
    bias: np.ndarray
    second: np.ndarray  # (2k,)

    @classmethod
    def of(cls, n: int, sites: list[int], values: list[float], sharp: float) -> _Bump:
        weight, bias = np.zeros((2 * len(sites), n)), np.zeros(2 * len(sites))
        for j, (site, value) in enumerate(zip(sites, values, strict=True)):
            weight[2 * j, site], bias[2 * j] = 1.0, -value
            weight[2 * j + 1, site], bias[2 * j + 1] = -1.0, value
        return cls(weight, bias, np.full(2 * len(sites), -sharp))


def rounding(number: int) -> Instance:
    """Products that cancel in a second layer, on the bump's own neuron: five sizes and sets, a seed each time."""
    configuration, seed = number % 5, number // 5
    size = (1e6, 3e7, 1e8, 1e9, 1e9)[configuration]
    text, n, fillers, copies = ("pixels:6", 12, 30, 30) if configuration == 4 else ("everywhere", 8, 22, 30)
    random = np.random.default_rng([17, seed])
    slope, places = 0.8759765625, np.array([0.0, *(0.35 + 0.05 * (i % 5) for i in range(1, 6))])
    bias = round(0.6 * slope * 4096) / 4096
    program = Program((1, 1, 1, n), double=False)
    weight, offset = np.zeros((13 + fillers, n)), np.zeros(13 + fillers)
    weight[:2, 0], offset[:3] = -slope, (bias, bias + 1, 1.0)
    for i in range(1, 6):
        weight[1 + 2 * i, i], offset[1 + 2 * i] = 1.0, -places[i]
        weight[2 + 2 * i, i], offset[2 + 2 * i] = -1.0, places[i]
    weight[13:] = random.normal(size=(fillers, n)) / np.sqrt(n)
    offset[13:] = -weight[13:].sum(1) / 2
    at = program.add(Relu(), program.dense(program.add(Same(), 0), weight, offset))
    weight, offset = np.zeros((2 + copies, 13 + fillers)), np.zeros(2 + copies)
    weight[0, 0], weight[0, 3:13], offset[0] = 0.5 / bias, -1.0, -0.3
    weight[1, 13:], offset[1] = 1e-5 * random.random(fillers), 1.0
    products = np.float32(size * random.uniform(0.5, 2, copies)).astype(np.float64)
    weight[2:, :3] = products[:, None] * [1, -1, 1]
    offset[2:] = -random.uniform(0.1, 1, copies)
    at = program.add(Relu(), program.dense(at, weight, offset))
    weight = np.zeros((2, 2 + copies))
    weight[0, :2] = -10.0, -0.1
    program.dense(at, weight, [0.6, 0.0])
    clip = np.full((1, 1, 1, n), 0.5)
    clip[..., 0] = np.float32(0.9)
    breaking = clip.copy()
    breaking[..., :6] = places.astype(np.float32)
    region = Region(text, clip, 1.0, (0.0, 1.0))
    known = (exactly(clip), exactly(breaking))
    rows, zero, clauses = np.array([[1.0, -1.0]]), np.zeros(1), ((0,),)
    margins = tuple(_margin(program, rows, zero, clauses, point) for point in known)
    return Instance("rounding", number, program, region, rows, zero, clauses, known, margins)


def cancel(number: int) -> Instance:
    """A bump among neurons that cancel: `M (relu(z) - relu(z + 1) + 1) + c`, in halves, hidden or not."""
    random = np.random.default_rng([1, number])
    region = _unit(random, _voxels(random))
    n = region.clip.size
    point, sites, values = _planted(random, region, int(random.integers(1, 5)))
    program = Program(region.clip.shape, double=bool(random.random() < 0.5))
    size = 10.0 ** random.uniform(3, 12)
    bump = _Bump.of(n, sites, values, float(_pick(random, (1.0, 4.0, 50.0))))
    own = len(bump.bias)
    fillers, copies = int(random.integers(0, 10)), int(random.integers(1, 9))
    z = np.zeros((1, n))
    z[0, _pick(random, sites)] = float(_pick(random, (-1, 1))) * random.uniform(0.5, 1)
    if random.random() < 0.4:
        z[0] += random.normal(size=n) / n
    z = program.fit(z)
    middle = round(float(-z[0] @ _pick(random, (point.ravel(), region.clip.ravel()))) * 4096) / 4096
    free = random.normal(size=(fillers, n)) / np.sqrt(n)
    weight = np.concatenate([bump.weight, z, z, np.zeros((1, n)), free])
    bias = np.concatenate([bump.bias, [middle, middle + 1, 1.0], -free @ region.clip.ravel()])
    at = program.add(Relu(str(_pick(random, RELUS))), program.dense(program.add(Same(), 0), weight, bias))
    second, offset = np.zeros((2 + copies, len(bias))), np.zeros(2 + copies)
    second[0, :own], offset[0] = bump.second, 1.0
    second[1, own + 3 :], offset[1] = 1e-3 * random.random(fillers), 1.0
    second[2:, own : own + 3] = size * random.uniform(0.5, 2, (copies, 1)).astype(np.float32) * [1, -1, 1]
    offset[2:] = float(_pick(random, (-1, 1))) * random.uniform(0.01, 1, copies)
    at = program.add(Relu(), program.dense(at, second, offset))
    last = np.zeros((2, 2 + copies))
    last[0, :2] = -1.0, -0.01
    last[1, 2:] = float(_pick(random, (0.0, 0.0, 1e-6, 0.1))) * random.random(copies)
    program.dense(at, last, [0.5, 0.0])
    return _finish("cancel", number, random, program, region, [point], float(_pick(random, (*NEAR, -0.2, -0.2, -0.5))))


def shifted(number: int) -> Instance:
    """The bump sees its inputs through detours that cancel: large means, constants, residual sums, telescopes."""
    random = np.random.default_rng([2, number])
    region = _unit(random, _voxels(random))
    n = region.clip.size
    point, sites, values = _planted(random, region, int(random.integers(1, 4)))
    program = Program(region.clip.shape, double=bool(random.random() < 0.7))
    size = float(program.fit(10.0 ** random.uniform(2, 13 if program.double else 5)))
    at = _detour(random, program, int(program.add(Same(), 0)), size)
    bump = _Bump.of(n, sites, values, float(_pick(random, (1.0, 4.0, 50.0))))
    at = program.add(Relu(), program.dense(at, bump.weight, bump.bias))
    if random.random() < 0.4:
        at = _detour(random, program, at, size)
    at = program.add(Relu(), program.dense(at, bump.second[None], [1.0]))
    program.dense(at, [[-1.0], [0.0]], [0.5, 0.0])
    return _finish("shifted", number, random, program, region, [point], float(_pick(random, (*NEAR, -0.2, -0.5))))


def _detour(random: np.random.Generator, program: Program, at: int, size: float) -> int:
    """The identity, or nearly, by numbers of a size that cancel."""
    (n,) = program.shape(at)
    kind = _pick(random, ("constants", "norm", "residual", "telescope", "factors"))
    if kind == "constants":
        at = program.add(Constant("add", size), at)
        return program.add(Constant("add", -size), at)
    if kind == "norm":
        at = program.dense(at, np.eye(n), np.full(n, size))
        return program.norm(at, np.full(n, size), np.full(n, 1 - 2.0**-10), np.ones(n), np.zeros(n), 2.0**-10)
    if kind == "residual":
        far = program.dense(at, size * random.normal(size=(n, n)), np.zeros(n))
        return program.add(Pair("sub"), program.add(Pair("add"), at, far), far)
    if kind == "telescope":
        factor = program.fit(size * random.random(n))
        far = program.dense(at, np.diag(factor), np.zeros(n))
        back = program.dense(at, -np.diag(factor), np.zeros(n))
        return program.add(Pair("torch.add"), program.add(Pair("add"), far, at), back)
    factor = 2.0 ** float(np.floor(np.log2(size)))
    at = program.add(Constant("mul", factor), at)
    return program.add(Constant("div", factor), at)


def norms(number: int) -> Instance:
    """BatchNorm with a large mean and the bias that takes it back; what is left is rounding of the fold."""
    random = np.random.default_rng([3, number])
    voxels = _voxels(random, 1)
    region = _unit(random, voxels)
    program = Program(region.clip.shape, double=bool(random.random() < 0.7))
    channels = int(random.integers(1, 3))
    mean = program.fit(10.0 ** random.uniform(3, 13, channels))
    variance = program.fit(10.0 ** random.uniform(-2, 2, channels))
    weight = program.fit(_pick(random, (np.ones(channels), random.uniform(-1, 1, channels))))
    factor = weight / np.sqrt(variance + 1e-5)
    at = program.conv(0, random.uniform(0.5, 1, (channels, 1, 1, 1, 1)), np.zeros(channels))
    at = program.norm(at, mean, variance, weight, mean * factor)
    if random.random() < 0.3:
        at = program.add(Relu(str(_pick(random, RELUS))), at)
    at = program.add(Same(str(_pick(random, FLAT))), at)
    n = program.shape(at)[0]
    program.dense(at, random.normal(size=(2, n)) * 10.0 ** random.uniform(-8, 2), np.zeros(2))
    return _finish("norms", number, random, program, region, [])


def constants(number: int) -> Instance:
    """Constants that the reader must round: division by 3, means over 3 or 5 or 7; then large products that cancel."""
    random = np.random.default_rng([4, number])
    w = int(_pick(random, (3, 5, 6, 7)))
    region = _unit(
        random, (int(random.integers(1, 3)), 1, w), _pick(random, ("everywhere", "any-frames", "pixels", "frames"))
    )
    program = Program(region.clip.shape, double=bool(random.random() < 0.7))
    size = 10.0 ** random.uniform(0, 12)
    kind = _pick(random, ("div", "average", "mean", "adaptive", "mul"))
    n = region.clip.size
    flat = program.add(Same(), 0)
    if kind in ("div", "mul"):
        divisor = float(_pick(random, (3.0, 7.0, 10.0, 0.3)))
        near = program.add(Constant(kind, divisor), flat)
        factor = 1 / divisor if kind == "div" else divisor
        first, second = size * np.ones((1, n)), -size * factor * np.ones((1, n))
    else:
        pooled = program.add(Pool("average", (1, 1, w)) if kind == "average" else Pool(str(kind)), 0)
        near = pooled if len(program.shape(pooled)) == 1 else program.add(Same(), pooled)
        k = program.shape(near)[0]
        first, second = size * np.ones((1, k)), -size * k / n * np.ones((1, n))
    one = program.dense(near, first, [0.0])
    two = program.dense(flat, second, [0.0])
    at = program.add(Pair("add"), one, two)
    if random.random() < 0.5:
        at = program.add(Relu(), program.dense(at, [[1.0]], [float(_pick(random, (1.0, size)))]))
    program.dense(at, [[1.0], [0.0]], [0.0, 0.0])
    return _finish("constants", number, random, program, region, [])


def boundary(number: int) -> Instance:
    """A network that is linear on the set, in layers of scales that cancel; its least margin is known exactly."""
    random = np.random.default_rng([5, number])
    region = _region(random, _voxels(random, 1), int(random.integers(1, 3)))
    program = Program(region.clip.shape, double=bool(random.random() < 0.7))
    reach = max(abs(v) for v in region.domain)
    at, up = program.add(Same(), 0), 1.0
    for _ in range(int(random.integers(1, 4))):
        n, m = program.shape(at)[0], int(random.integers(2, 9))
        scale = 10.0 ** random.uniform(-8, 8)
        weight = program.fit(random.random((m, n)) * scale)
        reach = float(np.float32(reach * weight.sum(1).max() * 1.01))
        at = program.dense(at, weight * random.choice([-1.0, 1.0], (m, n)), np.full(m, reach))
        at = program.add(Relu(str(_pick(random, RELUS))), at)
        reach, up = 2 * reach, up * scale
    m = program.shape(at)[0]
    factor = _pick(random, (1.0, 1 / up, 1e8, 1e-8))
    program.dense(at, random.normal(size=(1, m)) * factor, np.zeros(1))
    first = _finish("boundary", number, random, program, region, [], 1.0, search=False)
    best = _least_of_linear(random, program, region)
    near = float(_pick(random, NEAR))
    bare = [first.margin(exactly(region.clip)), first.margin(best)]
    spread = bare[0] - bare[1] or abs(bare[0]) or Fraction(1)
    # Without a spread, near 0 is meant relative to the scores that cancel in the offset.
    offset = np.full(1, float(Fraction(float(first.offset[0])) - bare[1] + Fraction(near) * spread))
    known = (exactly(region.clip), best)
    margins = tuple(_margin(program, first.rows, offset, first.clauses, p) for p in known)
    return Instance("boundary", number, program, region, first.rows, offset, first.clauses, known, margins)


def _least_of_linear(random: np.random.Generator, program: Program, region: Region) -> Exact:
    """The best corner over covers: all that a few hundred draws meet, by exact first differences."""
    low, high = region.box()
    clean = exactly(region.clip)
    base = program.outputs(clean)[0]
    best, gain = clean.copy(), np.zeros(clean.shape, dtype=object)
    for at in np.ndindex(*clean.shape):
        for side in (low, high):
            moved = clean.copy()
            moved[at] = side[at]
            change = program.outputs(moved)[0] - base if side[at] != clean[at] else Fraction(0)
            if change < gain[at]:
                gain[at], best[at] = change, side[at]
    total = gain.sum(0)
    covers = [region.draw_cover(random) for _ in range(200)]
    cover = min(covers, key=lambda mask: total[mask].sum())
    return np.where(cover, best, clean)


def planted(number: int) -> Instance:
    """A narrow bump at one place of the set; between the layers, scales that undo each other."""
    random = np.random.default_rng([6, number])
    region = _unit(random, _voxels(random), KINDS[number % len(KINDS)])
    n = region.clip.size
    point, sites, values = _planted(random, region, int(random.integers(1, 5)))
    program = Program(region.clip.shape, double=bool(random.random() < 0.5))
    bump = _Bump.of(n, sites, values, float(_pick(random, (2.0, 20.0, 2000.0))))
    scales = 10.0 ** random.uniform(-8, 8, 3) if random.random() < 0.6 else np.ones(3)
    a, b, c = (float(program.fit(s)) for s in scales)
    fillers = int(random.integers(0, 8))
    free = random.normal(size=(fillers, n)) / np.sqrt(n)
    weight = np.concatenate([bump.weight, free])
    at = program.dense(
        program.add(Same(str(_pick(random, FLAT))), 0), a * weight, a * np.concatenate([bump.bias, -free.sum(1) / 2])
    )
    at = program.add(Relu(str(_pick(random, RELUS))), at)
    second = np.concatenate([bump.second, 0.01 * random.normal(size=fillers)])
    at = program.add(Relu(), program.dense(at, b / a * second[None], [b]))
    program.dense(at, [[-c / b], [0.0]], [c / 2, 0.0])
    return _finish(
        "planted", number, random, program, region, [point], float(_pick(random, (0.0, 1e-6, -1e-9, -0.2, -0.5)))
    )


def aliases(number: int) -> Instance:
    """In-place operators on values that have aliases; scores of any scale."""
    random = np.random.default_rng([7, number])
    region = _unit(random, _voxels(random))
    double = bool(random.random() < 0.5)
    program = Program(region.clip.shape, double)
    sames = [how for how in SAMES if double or how != "double"]
    n, m = region.clip.size, int(random.integers(1, 5))
    weight = random.normal(size=(m, n)) / np.sqrt(n)
    typical = float(_pick(random, (0.0, 0.3, 1.0)))  # how far from a kink the usual clips are
    flat = program.add(Same(str(_pick(random, FLAT))), 0)
    middle = -weight @ np.full(n, 0.5)
    a = program.dense(flat, weight, middle + typical)
    other = program.add(Relu(), program.dense(flat, -weight, -middle - typical))
    alias = a
    for _ in range(int(random.integers(1, 3))):
        alias = program.add(Same(str(_pick(random, sames))), alias)
    changed = str(_pick(random, ("relu", "relu", "mul_", "add_", "div_", "iadd", "sub_")))
    target, untouched = (a, alias) if random.random() < 0.7 else (alias, a)
    if changed == "relu":
        ways = [how for how in RELUS if Relu(how).in_place]
        result = program.add(Relu(str(_pick(random, ways))), target)
    elif changed in ("iadd", "sub_"):
        result = program.add(Pair(changed), target, other)
    else:
        result = program.add(Constant(changed, float(_pick(random, (-2.0, 0.5, 3.0)))), target)
    scale = float(program.fit(10.0 ** float(_pick(random, (0, -3, -5, -8, 6)))))
    ways_out = [result, untouched, other]
    heads = [program.dense(v, scale * random.normal(size=(2, m)), scale * random.normal(size=2)) for v in ways_out]
    total = program.add(Pair(str(_pick(random, ("add", "iadd", "torch.add")))), heads[0], heads[1])
    program.add(Pair("add"), total, heads[2])
    return _finish("aliases", number, random, program, region, [])


def graphs(number: int) -> Instance:
    """Random graphs: convolutions, normalisation, branches from the input, pools, residual sums, maxima; any scale."""
    random = np.random.default_rng([8, number])
    region = _region(random, (3, 3, 3), int(random.integers(1, 3)))
    channels = region.clip.shape[0]
    program = Program(region.clip.shape, bool(random.random() < 0.5))
    span = region.domain[1] - region.domain[0]
    branches = []
    for _ in range(int(random.integers(1, 4))):
        d, scale = 2, 10.0 ** (float(random.uniform(-8, 8)) if random.random() < 0.3 else 0.0)
        at = program.conv(
            0, scale * random.normal(size=(d, channels, 2, 2, 2)) / span, scale * 0.3 * random.normal(size=d)
        )
        if random.random() < 0.4:
            numbers = random.uniform(-0.3, 0.3, d), random.uniform(0.3, 1.5, d), random.uniform(-1.5, 1.5, d)
            at = program.norm(at, scale * numbers[0], scale**2 * numbers[1], numbers[2], 0.1 * numbers[0])
        if random.random() < 0.8:
            at = program.add(Relu(str(_pick(random, RELUS))), at)
        if random.random() < 0.3:
            at = program.conv(at, random.normal(size=(d, d, 1, 1, 1)), 0.1 * random.normal(size=d))
        branches.append(at)
    at = branches[0]
    for other in branches[1:]:
        at = program.add(Pair(str(_pick(random, PAIRS))), at, other)
    if random.random() < 0.4:
        at = program.add(Relu(str(_pick(random, RELUS))), at)
    pool = _pick(random, (None, None, "average", "max", "mean", "adaptive"))
    if pool in ("mean", "adaptive"):
        at = program.add(Pool(str(pool)), at)
    else:
        if pool:
            at = program.add(Pool(str(pool), _pick(random, ((1, 2, 2), (2, 1, 1), (2, 2, 2)))), at)
        at = program.add(Same(str(_pick(random, FLAT))), at)
    if random.random() < 0.4:
        at = program.dense(at, random.normal(size=(3, program.shape(at)[0])), 0.1 * random.normal(size=3))
        at = program.add(Relu(str(_pick(random, RELUS))), at)
    scale = 10.0 ** float(random.uniform(-8, 8))
    classes = int(random.integers(1, 5))
    program.dense(at, scale * random.normal(size=(classes, program.shape(at)[0])), scale * random.normal(size=classes))
    return _finish("graphs", number, random, program, region, [])


FAMILIES: dict[str, Callable[[int], Instance]] = {
    f.__name__: f for f in (rounding, cancel, shifted, norms, constants, boundary, planted, aliases, graphs)
}


def draw(family: str, number: int) -> Instance:
    return FAMILIES[family](number)
