"""Random queries on micro networks, near the point where the verdict changes, and what is exactly true of them.

An *instance* is a 3D CNN of a few ReLUs on a clip of at most 2x3x4x4 voxels, one of the nine kinds of sets, and a
property. Its *level* is the least margin over the set. Shifting the label's bias (or the tolerance) by the level and a
small *distance* puts the query as near to the decision boundary as wanted, on the side that is wanted.

The *oracle* writes a network on a box as a program of its own: matrices by probing layers with unit vectors, big-M
constraints from intervals, scipy's HiGHS. It shares no encoding, no bounds and no sets with the package.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from solvers import SolveLimits
from stbp_milp.milp import InputRegion, encode, minimum
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Maximum, ReLU
from stbp_milp.network.model import load_model
from stbp_milp.network.normal_form import normal_form
from stbp_milp.network.operations import apply
from stbp_milp.properties import Property, same_class, top_k, within_tolerance
from stbp_milp.query import Configuration, Query, SolverName
from stbp_milp.sets import SetSpecification
from stbp_milp.verdict import Falsified, Outcome, Verified
from stbp_milp.verify import verify
from tests import enumeration

KINDS = tuple(text.split(":")[0] for text in enumeration.SETS)
BODIES = ("plain", "average pooling", "max pooling", "residual", "two convolutions", "normalised", "strided", "dense")
CURVED = ("swish", "gated", "normed", "attention", "recurrent")  # bodies that are not piecewise linear
MEMBERS = 50  # sets with more members are not enumerated
TOLERANCE = 2e-5  # two exact optima agree within this, relative to 1 + |optimum|
_SECONDS = 60.0


class Residual(nn.Module):
    """`relu(second(relu(first(x))) + skip(x))`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, width, (2, 2, 2), stride=(1, 2, 2))
        self.second = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.skip = nn.Conv3d(channels, width, (2, 2, 2), stride=(1, 2, 2), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.skip(x))


class Gated(nn.Module):
    """A squeeze-and-excitation gate on a block with ReLU, as in X3D."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv3d(channels, 2, (2, 2, 2), stride=(1, 1, 2)), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return x * torch.sigmoid(self.gate(x.mean((2, 3, 4))))[:, :, None, None, None]


class Attention(nn.Module):
    """Frames as tokens, one head, a residual connection around GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.keys, self.queries, self.values = nn.LazyLinear(3), *(nn.Linear(3, 3) for _ in range(3))
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x.transpose(1, 2).flatten(2))
        weights = torch.softmax(self.queries(x) @ self.keys(x).transpose(1, 2), -1)
        x = x + weights @ self.values(x)
        return x + nn.functional.gelu(self.inner(x))


class Recurrent(nn.Module):
    """A GRU over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.cell = nn.LazyLinear(3), nn.GRU(3, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(self.frames(x.transpose(1, 2).flatten(2)))[0][:, -1]


def body(kind: str, channels: int) -> nn.Module:
    """The layers before the scores, with torch's own random weights."""
    if kind == "plain":
        return nn.Sequential(nn.Conv3d(channels, 2, (2, 3, 3), padding=(0, 1, 1), stride=(1, 2, 2)), nn.ReLU())
    if kind == "average pooling":
        return nn.Sequential(nn.Conv3d(channels, 2, (2, 2, 2)), nn.ReLU(), nn.AvgPool3d((1, 2, 2), stride=1))
    if kind == "max pooling":
        return nn.Sequential(nn.Conv3d(channels, 1, (2, 2, 2)), nn.ReLU(), nn.MaxPool3d((1, 2, 2), stride=1))
    if kind == "residual":
        return Residual(channels, 2)
    if kind == "two convolutions":
        first = nn.Conv3d(channels, 2, (2, 2, 2), stride=(1, 1, 2))
        return nn.Sequential(first, nn.ReLU(), nn.Conv3d(2, 3, (1, 2, 1)), nn.ReLU())
    if kind == "normalised":
        norm = nn.BatchNorm3d(2)
        nn.init.uniform_(norm.running_mean, -0.3, 0.3)
        nn.init.uniform_(norm.running_var, 0.3, 1.5)
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        return nn.Sequential(nn.Conv3d(channels, 2, (3, 2, 2), stride=(1, 2, 2), padding=(1, 0, 0)), norm, nn.ReLU())
    if kind == "strided":
        first = nn.Conv3d(channels, 2, (2, 2, 2), dilation=(1, 2, 2), stride=(2, 1, 1), padding=(1, 0, 1))
        return nn.Sequential(nn.AvgPool3d((1, 1, 2), stride=1), first, nn.ReLU())
    if kind == "dense":
        convolution = nn.Conv3d(channels, 2, (1, 2, 2), stride=(1, 2, 2))
        return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4), nn.ReLU())
    if kind in CURVED:
        return _curved_body(kind, channels)
    raise ValueError(kind)


def _curved_body(kind: str, channels: int) -> nn.Module:
    if kind == "swish":
        return nn.Sequential(nn.Conv3d(channels, 2, (2, 2, 2)), nn.SiLU(), nn.Conv3d(2, 2, (1, 2, 2)), nn.Hardswish())
    if kind == "normed":
        own = nn.Sequential(nn.Conv3d(channels, 2, (2, 2, 2)), nn.InstanceNorm3d(2, eps=0.1, affine=True), nn.ELU(0.7))
        return nn.Sequential(own, nn.Conv3d(2, 2, (1, 2, 2)), nn.Tanh())
    return {"gated": Gated(channels), "attention": Attention(), "recurrent": Recurrent()}[kind]


@dataclass(frozen=True, eq=False)
class Instance:
    """A query, how it was drawn, and the distance of its level from 0 that was aimed at."""

    seed: int
    kind: str
    body: str
    query: Query
    distance: float


def draw_set(kind: str, voxels: tuple[int, int, int], random: np.random.Generator) -> str:
    """A set of the kind that fits the clip and has a moderate number of members."""
    t, h, w = voxels
    m, rows, columns = (int(random.integers(1, n + 1)) for n in (t, h - 1, w - 1))
    if kind == "frames":
        chosen = sorted(random.permutation(t)[: int(random.integers(1, t + 1))].tolist())
        return "frames:" + ",".join(map(str, chosen))
    if kind == "any-frames":
        return f"any-frames:{int(random.integers(1, t + 1))}"
    if kind == "window":
        return f"window:{m}"
    if kind == "patch":
        return f"patch:{rows}x{columns}@{m}"
    if kind == "moving-patch":
        return f"moving-patch:{rows}x{columns}@{m}"
    if kind == "patch-at":
        at = [int(random.integers(0, n - size + 1)) for n, size in zip(voxels, (m, rows, columns), strict=True)]
        return f"patch-at:{at[0]},{at[1]},{at[2]}:{rows}x{columns}@{m}"
    if kind == "pixels":
        return f"pixels:{int(random.integers(1, 3))}"
    if kind == "pixels-per-frame":
        return f"pixels-per-frame:{int(random.integers(1, 3))}"
    return kind


def draw(seed: int, nearest: float = 1e-3) -> Instance:
    """Instance number `seed`: its kind of set and of network go round, all else is random.

    Args:
        nearest: the least distance of the level from 0, in the unit of the scores.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kind, layers = KINDS[seed % len(KINDS)], BODIES[seed // len(KINDS) % len(BODIES)]
    # Sets with very many members get smaller clips: the exact methods have to list or encode them.
    many = kind in ("pixels", "pixels-per-frame", "moving-patch")
    voxels = (int(random.integers(2, 4)), int(random.integers(3, 4 if many else 5)), int(random.integers(3, 5)))
    channels, classes = int(random.integers(1, 3)), int(random.integers(2, 5))
    clip = enumeration.random_clip(seed, channels, voxels)
    text = draw_set(kind, voxels, random)
    epsilon = float(random.choice([0.05, 0.2, 0.5, 1.0]))
    regression = random.random() < 0.2
    module = nn.Sequential(body(layers, channels), nn.Flatten(), nn.LazyLinear(1 if regression else classes)).eval()
    with torch.no_grad():
        module(clip.float().unsqueeze(0))
        for parameter in module.parameters():
            parameter.mul_(2.0)
    label, top = int(random.integers(classes)), 2 if classes == 4 and random.random() < 0.3 else 1
    specification = SetSpecification(text, epsilon)

    def query(tolerance: float) -> Query:
        model = load_model(module, clip.shape)
        if regression:
            return Query(model, clip, specification, within_tolerance(model.network(clip.unsqueeze(0))[0], tolerance))
        property = same_class(label, classes) if top == 1 else top_k(label, top, classes)
        return Query(model, clip, specification, property)

    first = query(1.0)
    level = whole_minimum(first, "scip").lower
    clean = margin(first, clip)
    # Sides are even; distances are small parts of what the set can change at all.
    distance = max(nearest, float(random.choice([0.003, 0.02, 0.1])) * (clean - level)) * (
        1 if random.random() < 0.5 else -1
    )
    if clean - level < 2 * nearest:
        distance = abs(distance)  # the set changes next to nothing
    if regression:
        return Instance(seed, kind, layers, query(1.0 - level + distance), distance)
    with torch.no_grad():
        module[-1].bias[label] += distance - level
    return Instance(seed, kind, layers, query(1.0), distance)


def margin(query: Query, clip: Tensor) -> float:
    """The margin of one clip (C, T, H, W), by the network in float64."""
    with torch.no_grad():
        return float(query.property.margin(query.model.network(clip.unsqueeze(0))))


# --- exact minima -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """The least margin lies in `[lower, upper]`: proved by a solver, and seen on a clip of the set."""

    lower: float
    upper: float


def whole_minimum(query: Query, solver: SolverName) -> Exact:
    """The least margin over the whole set: one program a clause, the choice as binaries."""
    region = InputRegion.of(query.set.build(query.clip))
    maps = normal_form(query.model.network)
    lower = upper = math.inf
    for clause in query.property.clauses:
        rows, offset = query.property.rows[list(clause)].numpy(), query.property.offset[list(clause)].numpy()
        result = minimum(encode(maps, region, {}, rows, offset), solver, SolveLimits(_SECONDS))  # type: ignore[arg-type]
        lower = min(lower, result.dual_bound)
        if result.candidate is not None:
            upper = min(upper, margin(query, torch.from_numpy(result.candidate)))
    return Exact(lower, upper)


def member_minimum(query: Query, limit: int = MEMBERS) -> Exact | None:
    """The least over members one by one, by the oracle; None where there are more than `limit` members."""
    voxels = (query.clip.shape[1], query.clip.shape[2], query.clip.shape[3])
    if enumeration.count(query.set.text, voxels, limit + 1) > limit:
        return None
    lower = upper = math.inf
    for low, high in zip(*enumeration.boxes(query.set.text, query.clip, query.set.epsilon), strict=True):
        found = box_minimum(query.model.network, query.property, low, high)
        lower, upper = min(lower, found.lower), min(upper, found.upper)
    return Exact(lower, upper)


@dataclass(eq=False)
class _Columns:
    """Columns and rows of the oracle's program; a node's value is `matrix @ columns + constant`."""

    lower: list[np.ndarray]
    upper: list[np.ndarray]
    integer: list[np.ndarray]
    rows: list[tuple[sp.csr_matrix, np.ndarray]] = field(default_factory=list)  # `matrix @ columns <= side`

    @property
    def size(self) -> int:
        return sum(part.size for part in self.lower)

    def add(self, lower: np.ndarray, upper: np.ndarray, integer: int) -> sp.csr_matrix:
        """New columns, as a matrix that picks them."""
        first = self.size
        self.lower.append(lower)
        self.upper.append(upper)
        self.integer.append(np.full(lower.size, integer))
        n = lower.size
        return sp.csr_matrix((np.ones(n), (np.arange(n), first + np.arange(n))), shape=(n, self.size))

    def wide(self, matrix: sp.csr_matrix) -> sp.csr_matrix:
        return sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], self.size))

    def range(self, matrix: sp.csr_matrix, constant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lower, upper = np.concatenate(self.lower), np.concatenate(self.upper)
        positive, negative = self.wide(matrix).maximum(0), self.wide(matrix).minimum(0)
        return positive @ lower + negative @ upper + constant, positive @ upper + negative @ lower + constant

    def at_most(self, matrix: sp.csr_matrix, side: np.ndarray) -> None:
        self.rows.append((matrix, side))


def _plus(columns: _Columns, *terms: tuple[float, sp.csr_matrix]) -> sp.csr_matrix:
    return sum(
        (factor * columns.wide(matrix) for factor, matrix in terms), sp.csr_matrix((terms[0][1].shape[0], columns.size))
    ).tocsr()


def box_minimum(network: Network, property: Property, lower: Tensor, upper: Tensor) -> Exact:
    """The least margin over a box `(*shape)`: every ReLU with its own binary."""
    columns = _Columns([], [], [])
    low, high = lower.flatten().numpy(), upper.flatten().numpy()
    values = [(columns.add(low, high, 0), np.zeros(low.size))]
    for node in network.nodes[1:]:
        operands = [values[i] for i in node.inputs]
        if isinstance(node.layer, ReLU):
            values.append(_relu(columns, *operands[0]))
            continue
        shapes = [network.nodes[i].shape for i in node.inputs]
        zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
        constant = apply(node.layer, zeros).flatten()
        matrix, total = sp.csr_matrix((constant.numel(), columns.size)), constant.numpy().copy()
        for k, (terms, offset) in enumerate(operands):
            if isinstance(node.layer, Maximum) and k == 0:
                continue  # max(a, b) = b + relu(a - b)
            size = zeros[k].numel()
            probes = [z.expand(size, *z.shape[1:]) for z in zeros]
            probes[k] = torch.eye(size, dtype=torch.float64).view(size, *shapes[k])
            linear = sp.csr_matrix((apply(node.layer, probes).view(size, -1) - constant).T.numpy())
            matrix, total = matrix + linear @ columns.wide(terms), total + linear @ offset
        values.append((matrix.tocsr(), total))
    outputs, offset = values[-1]
    best = Exact(math.inf, math.inf)
    for clause in property.clauses:
        rows = property.rows[list(clause)].numpy()
        found = _least(
            columns, sp.csr_matrix(rows) @ columns.wide(outputs), rows @ offset + property.offset[list(clause)].numpy()
        )
        value, point = found
        clip = torch.from_numpy(point[: low.size]).view(lower.shape).clamp(lower, upper)
        with torch.no_grad():
            seen = float(property.margin(network(clip.unsqueeze(0))))
        best = Exact(min(best.lower, value), min(best.upper, seen))
    return best


def _relu(columns: _Columns, matrix: sp.csr_matrix, constant: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
    low, high = columns.range(matrix, constant)
    open_ = np.flatnonzero((low < 0) & (high > 0))
    # Constants M larger than needed do no harm here; tiny ones are what solvers trip over.
    reach, depth = np.maximum(high[open_], 1e-3), np.maximum(-low[open_], 1e-3)
    own, offset = matrix.tocsr()[open_], constant[open_]
    y = columns.add(np.zeros(open_.size), reach, 0)
    b = columns.add(np.zeros(open_.size), np.ones(open_.size), 1)
    columns.at_most(_plus(columns, (1.0, own), (-1.0, y)), -offset)  # z <= y
    columns.at_most(_plus(columns, (1.0, y), (-1.0, sp.diags(reach) @ b)), np.zeros(open_.size))  # y <= reach b
    columns.at_most(
        _plus(columns, (1.0, y), (-1.0, own), (1.0, sp.diags(depth) @ b)), offset + depth
    )  # y <= z + depth (1 - b)
    active = sp.diags((low >= 0).astype(float))
    place = sp.csr_matrix((np.ones(open_.size), (open_, np.arange(open_.size))), shape=(low.size, open_.size))
    value = active @ columns.wide(matrix) + place @ columns.wide(y)
    return value.tocsr(), np.where(low >= 0, constant, 0.0)


def _least(columns: _Columns, matrix: sp.csr_matrix, constant: np.ndarray) -> tuple[float, np.ndarray]:
    """`min max over rows of matrix @ columns + constant`: the proved bound and the point."""
    low, high = columns.range(matrix, constant)
    n = columns.size
    rows = [sp.hstack([columns.wide(m), sp.csr_matrix((m.shape[0], 1))]) for m, _ in columns.rows]
    rows.append(sp.hstack([columns.wide(matrix), -sp.csr_matrix(np.ones((matrix.shape[0], 1)))]))
    sides = np.concatenate([*(side for _, side in columns.rows), -constant])
    cost = np.zeros(n + 1)
    cost[n] = 1.0
    # HiGHS ends in "solve error" now and then; an objective a little different takes it another way.
    for presolve, factor in ((True, 1.0), (False, 1.0), (True, 0.5), (False, 3.0)):
        answer = milp(
            factor * cost,
            integrality=np.concatenate([*columns.integer, [0]]),
            bounds=Bounds(
                np.append(np.concatenate(columns.lower), low.max() - 1.0),
                np.append(np.concatenate(columns.upper), high.max() + 1.0),
            ),
            constraints=LinearConstraint(sp.vstack(rows, format="csr"), -np.inf, sides),
            options={"time_limit": _SECONDS, "mip_rel_gap": 0.0, "presolve": presolve},
        )
        if answer.x is not None:
            break
    if answer.x is None:
        raise AssertionError(f"the oracle found no point: {answer.message}")
    bound = answer.mip_dual_bound  # None where no binary is left: then the optimum of the linear program
    return float(answer.fun if bound is None and answer.status == 0 else bound) / factor, answer.x


# --- one instance, every method ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Comparison:
    """What everybody says about one instance.

    Attributes:
        contradictions: sentences; empty when all agree.
        seconds: of the verifier, of the other methods.
    """

    instance: Instance
    outcome: Outcome
    scip: Exact
    highs: Exact
    members: Exact | None
    contradictions: tuple[str, ...]
    seconds: tuple[float, float]


def compare(instance: Instance, configuration: Configuration) -> Comparison:
    query = instance.query
    began = time.monotonic()
    outcome = verify(query, configuration)
    middle = time.monotonic()
    scip, highs, members = whole_minimum(query, "scip"), whole_minimum(query, "highs"), member_minimum(query)
    end = time.monotonic()
    exact = {"scip": scip, "highs": highs} | ({"members": members} if members else {})
    return Comparison(
        instance,
        outcome,
        scip,
        highs,
        members,
        tuple(_contradictions(query, outcome, exact)),
        (middle - began, end - middle),
    )


def _contradictions(query: Query, outcome: Outcome, exact: dict[str, Exact]) -> list[str]:
    found = []
    for name, value in exact.items():
        slack = TOLERANCE * (1 + abs(value.upper))
        if not value.lower <= value.upper + slack:
            found.append(f"{name}: its bound {value.lower!r} exceeds the margin {value.upper!r} of a clip")
        if value.upper - value.lower > 10 * slack:
            found.append(f"{name}: not solved, [{value.lower!r}, {value.upper!r}]")
        for other, theirs in exact.items():
            if value.lower > theirs.upper + slack:
                found.append(f"{name} proves {value.lower!r}, {other} has a clip with {theirs.upper!r}")
        if isinstance(outcome.verdict, Verified) and value.upper <= 0:
            found.append(f"verified, but {name} has a clip with margin {value.upper!r}")
        if isinstance(outcome.verdict, Falsified) and value.lower > slack:
            found.append(f"falsified, but {name} proves {value.lower!r}")
        if outcome.lower > value.upper + slack:
            found.append(f"the verifier proves {outcome.lower!r}, {name} has a clip with {value.upper!r}")
        if outcome.upper < value.lower - slack:
            found.append(f"the verifier saw {outcome.upper!r}, {name} proves {value.lower!r}")
    if isinstance(outcome.verdict, Falsified):
        found += _counterexample_faults(query, outcome.verdict)
    return found


def _counterexample_faults(query: Query, verdict: Falsified) -> list[str]:
    clip = verdict.counterexample.clip
    low, high = enumeration.boxes(query.set.text, query.clip, query.set.epsilon) if _listable(query) else (None, None)
    faults = []
    if low is not None and high is not None and not enumeration.holds(clip.double(), low, high):
        faults.append("the counterexample is in no member of the set")
    if not bool(query.set.build(query.clip).contains(clip.double().unsqueeze(0))[0]):
        faults.append("the counterexample is not in the set")
    scores = torch.from_numpy(query.model.predict(clip.float().numpy()[None]))
    value = float(query.property.margin(scores.double()))
    if not value <= 0:
        faults.append(f"the original model keeps the property on the counterexample, margin {value!r}")
    return faults


def _listable(query: Query) -> bool:
    voxels = (query.clip.shape[1], query.clip.shape[2], query.clip.shape[3])
    return enumeration.count(query.set.text, voxels, 5000) < 5000
