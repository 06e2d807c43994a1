"""Network, set and bounds as one mixed-integer program, with one rule per kind of neuron.

With `z` a neuron's pre-activation in `[l, u]` and `y = max(z, 0)`:

- constant, inactive (`u <= 0`): a number;
- active (`l >= 0`): `y = z`, substituted, or a column of its own if substitution would cost more entries;
- nearly stable (`u` or `-l` within a few slacks): no binary. `y` in `[0, u]`, or `y = z + e` with `e` in `[0, -l]`;
- unstable: `y >= 0`, `y >= z`, `y <= u b`, `y <= z - l (1 - b)` with a binary b (Tjeng, Xiao, Tedrake 2019, eq. 6);
  without binaries the last two become the chord `y <= u (z - l) / (u - l)`, their projection.

Given bounds are widened by `SLACK` before use, and intersected with the bounds that the columns' own boxes imply. Rows
that contain the network's numbers are widened by their rounding error, so that the network over the real numbers
satisfies them (`Accuracy`): whatever dual bounds and crossing bounds prove is then true of it. Only the cone of
influence of the objective is encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from solvers import MixedIntegerProgram, Scaled, scaled
from stbp_milp.errors import SoundnessError
from stbp_milp.milp.assembly import Affine, Assembly
from stbp_milp.milp.region import InputRegion
from stbp_milp.network.normal_form import AffineMap

SLACK = 1e-6  # bounds move outwards by SLACK * (1 + |bound|), about the accuracy to which solvers keep rows
PROOF_MARGIN = 1e-4  # of dual bounds, see `Encoded.tolerance`
_USUAL_WEIGHT = 16.0  # a usual coefficient of the objective, per unit of a column
_NEARLY = 4 * SLACK  # a relaxation this thin needs no binary
_SAFETY = 4.0  # times gamma, as in `bounds.rounding`
_DIFFERENCE = 2.0**-50  # relative error of a few sums
_TRUSTED = 0.1 * SLACK  # rows with larger rounding errors leave no room for a solver's own

Boxes = Mapping[int, tuple[np.ndarray, np.ndarray]]  # ReLU node position -> bounds of its operand, each (size,)
Phases = Mapping[int, np.ndarray]  # ReLU node position -> (size,) int: 1 active, -1 inactive, 0 undecided


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How far rows `weights @ sources + bias` of a normal form can differ from the network over the real numbers.

    Attributes:
        gamma: the error relative to the sum of the magnitudes of a row's terms; see `bounds.rounding`.
        errors: additional errors per ReLU (None: of the output), `(size,)`; zero for ReLUs that are missing.
    """

    gamma: float
    errors: Mapping[int | None, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, maps: Sequence[AffineMap]) -> Accuracy:
        """Returns the accuracy of matrices that come directly from a network's layers, of the usual lengths."""
        terms = sum(weight.shape[0] + weight.shape[1] for affine in maps for weight in affine.weights.values())
        return cls(float(np.finfo(float).eps) * (64 + terms))


@dataclass(frozen=True, eq=False)
class NeuronColumns:
    """The columns and rows of one ReLU's encoded neurons in the program; -1 if a neuron has no such column or row."""

    relu: int  # node position
    neuron: np.ndarray  # (n,) flat positions
    pre: np.ndarray  # z
    post: np.ndarray  # y
    binary: np.ndarray  # b
    excess: np.ndarray  # e
    definition: np.ndarray  # the row `expression - z = 0`


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoded:
    """The program and what its columns mean.

    Law: for every input of the region (and of the fixed phases), the completed point is feasible up to rounding
    and its objective is the smallest value that dominates every row `form @ f(x) + offset`.
    """

    program: MixedIntegerProgram
    maps: tuple[AffineMap, ...]
    region: InputRegion
    entries: np.ndarray  # flat input positions that have a column
    entry_columns: np.ndarray
    choice_columns: np.ndarray
    neurons: tuple[NeuronColumns, ...]
    split: bool  # were any phases fixed?
    empty: bool  # the fixed phases contradict the bounds: no input remains
    trusted: bool  # is all rounding well below solvers' tolerances? Otherwise only rigorous dual bounds count.
    value_column: int  # the column that dominates several rows; -1 with one row
    form: np.ndarray  # (R, K)
    offset: np.ndarray  # (R,)

    @cached_property
    def moderate(self) -> Scaled:
        """The scaled program that solvers get."""
        return scaled(self.program)

    @property
    def tolerance(self) -> float:
        """How far a solver's dual bound may exceed the true minimum, by a generous estimate.

        Solvers keep rows and integrality to about 1e-6 of a column's unit. Dual bounds were seen 1e-5 above the true
        minimum if a unit of a column has a small weight in the objective; the tolerance grows with larger weights.
        """
        if not self.program.variables:
            return 0.0  # a constant, for which no solver is called
        return PROOF_MARGIN * max(1.0, self.moderate.weight / _USUAL_WEIGHT)


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The linear relaxation of all neurons below some affine targets."""

    program: MixedIntegerProgram
    targets: Affine
    empty: bool


def encode(
    maps: tuple[AffineMap, ...],
    region: InputRegion,
    boxes: Boxes,
    form: np.ndarray,
    offset: np.ndarray | float,
    phases: Phases | None = None,
    accuracy: Accuracy | None = None,
) -> Encoded:
    """Encodes the minimisation of `max over rows of form @ f(x) + offset` over the region.

    Args:
        maps: the network's normal form.
        region: the inputs.
        boxes: pre-activation bounds, valid on the region (and the phases); missing ones are derived.
        form: (K,), or (R, K) for the largest of several rows.
        offset: a number, or (R,).
        phases: phases fixed by branching; unlike signs that follow from bounds, they become rows.
        accuracy: the accuracy of the normal form, if it is not that of a whole network.

    Raises:
        SoundnessError: bounds contradict each other although no phase was fixed.
    """
    form = np.atleast_2d(np.asarray(form, dtype=float))
    offset = np.broadcast_to(np.asarray(offset, dtype=float), form.shape[0])
    encoder = _Encoder(maps, region, boxes, phases or {}, accuracy or Accuracy.of(maps), binaries=True)
    targets = encoder.targets(len(maps) - 1, sp.csr_matrix(form), offset)
    assembly = encoder.assembly
    cost, constant, value_column = _objective(assembly, targets)
    return Encoded(
        program=assembly.program(cost, constant),
        maps=maps,
        region=region,
        entries=encoder.entries,
        entry_columns=encoder.entry_columns,
        choice_columns=encoder.choice_columns,
        neurons=tuple(encoder.neurons),
        split=encoder.split,
        empty=encoder.empty,
        trusted=max(assembly.largest_error, float(targets.error.max())) <= _TRUSTED,
        value_column=value_column,
        form=form,
        offset=np.array(offset),
    )


def _objective(assembly: Assembly, targets: Affine) -> tuple[np.ndarray, float, int]:
    """Returns the cost of every column, the constant, and the column of the largest of several targets (-1 for one)."""
    count = targets.constant.size
    if count == 1:
        cost = assembly.widened(targets.matrix).toarray()[0]
        return cost, float(targets.constant[0] - targets.error[0]), -1
    lower, upper = assembly.interval(targets)
    column = int(assembly.add_columns(lower.max(keepdims=True), upper.max(keepdims=True))[0])
    value = assembly.terms((np.full(count, column), -1.0))
    assembly.add_rows(targets.beside(assembly.sum(targets.matrix, value)), -np.inf, 0.0)
    cost = np.zeros(assembly.columns)
    cost[column] = 1.0
    return cost, 0.0, column


def relax(
    maps: tuple[AffineMap, ...],
    region: InputRegion,
    boxes: Boxes,
    target: int,
    rows: np.ndarray,
    phases: Phases | None = None,
    accuracy: Accuracy | None = None,
) -> Relaxed:
    """Returns the linear relaxation of everything below the `rows` of `maps[target]`, which become the targets."""
    size = maps[target].bias.size
    encoder = _Encoder(maps, region, boxes, phases or {}, accuracy or Accuracy.of(maps), binaries=False)
    targets = encoder.targets(target, sp.identity(size, format="csr")[rows], np.zeros(rows.size))
    program = encoder.assembly.program(np.zeros(encoder.assembly.columns), 0.0)
    return Relaxed(program, targets.beside(encoder.assembly.widened(targets.matrix)), encoder.empty)


def widen(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves both bounds outwards by the slack."""
    return lower - SLACK * (1 + np.abs(lower)), upper + SLACK * (1 + np.abs(upper))


class _Encoder:
    """One pass from the input to the targets; `_sources` maps node positions to their values over the columns."""

    def __init__(
        self,
        maps: tuple[AffineMap, ...],
        region: InputRegion,
        boxes: Boxes,
        phases: Phases,
        accuracy: Accuracy,
        binaries: bool,
    ) -> None:
        self.assembly = Assembly()
        self.neurons: list[NeuronColumns] = []
        self.split = any(bool(np.any(phase)) for phase in phases.values())
        self.empty = False
        self._maps, self._region, self._phases, self._binaries = maps, region, phases, binaries
        self._accuracy = accuracy
        self._boxes = {relu: widen(*box) for relu, box in boxes.items()}
        self._sources: dict[int, Affine] = {}
        self._uses: dict[int, np.ndarray] = {}
        self.entries = self.entry_columns = self.choice_columns = np.zeros(0, dtype=np.int64)

    def targets(self, target: int, combination: sp.csr_matrix, offset: np.ndarray) -> Affine:
        """Encodes everything below the target and returns `combination @ (the value of maps[target]) + offset`."""
        affine = self._maps[target]
        weights = {source: combination @ matrix for source, matrix in affine.weights.items()}
        self._count_uses(target, weights)
        self._encode_input()
        for earlier in self._maps[:target]:
            self._encode_relu(earlier)
        return self._value(affine, combination, offset)

    def _count_uses(self, target: int, weights: dict[int, sp.csr_matrix]) -> None:
        """Counts the encoded rows that read each source entry; zero means outside the cone of influence."""
        self._uses = {0: np.zeros(self._region.centre.size, dtype=np.int64)}
        for affine in self._maps[:target]:
            assert affine.relu is not None
            self._uses[affine.relu] = np.zeros(affine.bias.size, dtype=np.int64)
        self._count(weights)
        for affine in reversed(self._maps[:target]):
            assert affine.relu is not None
            phase = self._phase(affine)
            needed = ((self._uses[affine.relu] > 0) & ~self._inactive(affine)) | (phase != 0)
            rows = np.flatnonzero(needed)
            self._count({source: matrix[rows] for source, matrix in affine.weights.items()})

    def _count(self, weights: dict[int, sp.csr_matrix]) -> None:
        for source, matrix in weights.items():
            self._uses[source] += np.bincount(matrix.indices[matrix.data != 0], minlength=matrix.shape[1])

    def _phase(self, affine: AffineMap) -> np.ndarray:
        phase = self._phases.get(affine.relu) if affine.relu is not None else None
        return np.zeros(affine.bias.size, dtype=np.int64) if phase is None else np.asarray(phase)

    def _inactive(self, affine: AffineMap) -> np.ndarray:
        box = self._boxes.get(affine.relu) if affine.relu is not None else None
        return np.zeros(affine.bias.size, dtype=bool) if box is None else box[1] <= 0

    def _encode_input(self) -> None:
        region, assembly = self._region, self.assembly
        self.entries = np.flatnonzero((region.upper > region.lower) & (self._uses[0] > 0))
        lower, upper = region.lower[self.entries], region.upper[self.entries]
        self.entry_columns = assembly.add_columns(lower, upper)
        if region.choice is not None:
            self._encode_choice()
        matrix = sp.csr_matrix(
            (np.ones(self.entries.size), (self.entries, self.entry_columns)),
            shape=(region.centre.size, assembly.columns),
        )
        constant = region.centre.copy()
        constant[self.entries] = 0.0
        reach = np.maximum(np.abs(region.lower), np.abs(region.upper))
        self._sources[0] = Affine(matrix, constant, reach, np.zeros(constant.size))

    def _encode_choice(self) -> None:
        """Adds `c - (c - l) (cover z) <= x <= c + (u - c) (cover z)` for every entry that moves."""
        region, assembly, choice = self._region, self.assembly, self._region.choice
        assert choice is not None
        count = choice.cover.shape[1]
        self.choice_columns = assembly.add_columns(np.zeros(count), np.ones(count), integer=self._binaries)
        first = int(self.choice_columns[0]) if count else assembly.columns
        left = sp.csr_matrix((choice.rows.shape[0], first))
        rows = sp.hstack([left, choice.rows], format="csr")
        assembly.add_rows(Affine.exact(rows, np.zeros(rows.shape[0])), choice.row_lower, choice.row_upper)
        centre = region.centre[self.entries]
        up, down = region.upper[self.entries] - centre, centre - region.lower[self.entries]
        cover = choice.cover[self.entries % choice.cover.shape[0]]
        cover = sp.hstack([sp.csr_matrix((cover.shape[0], first)), cover], format="csr")
        for reach, low, high in ((-up, -np.inf, 0.0), (down, 0.0, np.inf)):
            rows = assembly.sum(assembly.terms((self.entry_columns, 1.0)), sp.diags(reach, format="csr") @ cover)
            size = np.abs(centre) + np.abs(reach)
            assembly.add_rows(Affine(rows, -centre, size, _DIFFERENCE * size), low, high)

    def _value(self, affine: AffineMap, combination: sp.csr_matrix, offset: np.ndarray) -> Affine:
        """Returns `combination @ (the map's value) + offset` over the columns."""
        constant, absolute = combination @ affine.bias + offset, abs(combination)
        size = absolute @ affine.bias_size + np.abs(offset)
        error = np.zeros(constant.size)
        if affine.relu in self._accuracy.errors:
            error = error + absolute @ self._accuracy.errors[affine.relu]
        matrix = sp.csr_matrix((constant.size, self.assembly.columns))
        for source, own in affine.weights.items():
            value, weight, magnitude = self._sources[source], combination @ own, absolute @ affine.magnitude(source)
            matrix = matrix + weight @ self.assembly.widened(value.matrix)
            constant = constant + weight @ value.constant
            size, error = size + magnitude @ value.size, error + magnitude @ value.error
        matrix = matrix.tocsr()
        matrix.eliminate_zeros()
        return Affine(matrix, constant, size, error + _SAFETY * self._accuracy.gamma * size)

    def _encode_relu(self, affine: AffineMap) -> None:
        assert affine.relu is not None
        phase = self._phase(affine)
        index = np.flatnonzero(((self._uses[affine.relu] > 0) & ~self._inactive(affine)) | (phase != 0))
        value = self._value(affine, sp.identity(affine.bias.size, format="csr")[index], np.zeros(index.size))
        phase = phase[index]
        lower, upper = self._bounds(affine.relu, index, value)
        crossed = lower > upper
        if crossed.any():
            if not self.split:
                worst = int(index[np.argmax(lower - upper)])
                gap = float((lower - upper).max())
                raise SoundnessError(
                    f"neuron {worst} of ReLU node {affine.relu} has a lower bound {gap:.3g} above its upper bound "
                    "although no phase was fixed; two bounding methods contradict each other"
                )
            self.empty = True
            lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
        self._fix_phases(value, phase)
        constant = np.diff(value.matrix.indptr) == 0
        inactive = ~constant & ((phase < 0) | ((phase == 0) & (upper <= 0)))
        active = ~constant & ~inactive & ((phase > 0) | (lower >= 0))
        open_ = ~constant & ~inactive & ~active
        nearly_inactive = open_ & (upper <= _NEARLY)
        nearly_active = open_ & ~nearly_inactive & (-lower <= _NEARLY)
        unstable = open_ & ~nearly_inactive & ~nearly_active
        entries, uses = np.diff(value.matrix.indptr), self._uses[affine.relu][index]
        kept = active & (entries * uses > 2 * (entries + uses))
        missing = np.full(index.size, -1)
        pre, post, binary, excess, definition = (missing.copy() for _ in range(5))
        assembly = self.assembly
        own = unstable | kept
        pre[own] = assembly.add_columns(lower[own], upper[own])
        minus = assembly.terms((pre[own], -1.0))
        defined = value.select(own)
        definition[own] = assembly.add_rows(defined.beside(assembly.sum(defined.matrix, minus)), 0.0, 0.0)
        excess[nearly_active] = assembly.add_columns(np.zeros(nearly_active.sum()), -lower[nearly_active])
        positive = unstable | nearly_inactive
        post[positive] = assembly.add_columns(np.zeros(positive.sum()), upper[positive])
        if self._binaries:
            count = int(unstable.sum())
            binary[unstable] = assembly.add_columns(np.zeros(count), np.ones(count), integer=True)
        self._relate(pre[unstable], post[unstable], binary[unstable], lower[unstable], upper[unstable])
        post[kept] = pre[kept]
        self.neurons.append(NeuronColumns(affine.relu, index, pre, post, binary, excess, definition))
        substituted = (active & ~kept) | nearly_active
        self._sources[affine.relu] = self._post_activation(
            affine.bias.size, index, value, substituted, constant & (phase >= 0), post, excess
        )

    def _bounds(self, relu: int, index: np.ndarray, value: Affine) -> tuple[np.ndarray, np.ndarray]:
        lower, upper = self.assembly.interval(value)
        if relu in self._boxes:
            given_lower, given_upper = self._boxes[relu]
            lower, upper = np.maximum(lower, given_lower[index]), np.minimum(upper, given_upper[index])
        return lower, upper

    def _fix_phases(self, value: Affine, phase: np.ndarray) -> None:
        """Adds rows for phases fixed by branching, which restrict the inputs; signs implied by bounds need none."""
        for sign, low, high in ((1, -SLACK, np.inf), (-1, -np.inf, SLACK)):
            fixed = np.flatnonzero(phase == sign)
            if fixed.size:
                self.assembly.add_rows(value.select(fixed), low, high)

    def _relate(self, z: np.ndarray, y: np.ndarray, b: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
        assembly, none = self.assembly, np.zeros(z.size)
        assembly.add_rows(Affine.exact(assembly.terms((y, 1.0), (z, -1.0)), none), 0.0, np.inf)
        if self._binaries:
            assembly.add_rows(Affine.exact(assembly.terms((y, 1.0), (b, -upper)), none), -np.inf, 0.0)
            assembly.add_rows(Affine.exact(assembly.terms((y, 1.0), (z, -1.0), (b, -lower)), lower), -np.inf, 0.0)
        else:  # the bounds were widened by far more than the rounding of the chord
            slope = upper / (upper - lower)
            assembly.add_rows(Affine.exact(assembly.terms((y, 1.0), (z, -slope)), slope * lower), -np.inf, 0.0)

    def _post_activation(
        self,
        size: int,
        index: np.ndarray,
        value: Affine,
        substituted: np.ndarray,
        constant: np.ndarray,
        post: np.ndarray,
        excess: np.ndarray,
    ) -> Affine:
        expressions = value.matrix[substituted].tocoo()
        rows, columns, data = [index[substituted][expressions.row]], [expressions.col], [expressions.data]
        for position in (post, excess):
            present = position >= 0
            rows.append(index[present])
            columns.append(position[present])
            data.append(np.ones(int(present.sum())))
        matrix = sp.csr_matrix(
            (np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))), shape=(size, self.assembly.columns)
        )
        offset, magnitude, error = np.zeros(size), np.zeros(size), np.zeros(size)
        offset[index[substituted]] = value.constant[substituted]
        offset[index[constant]] = np.maximum(value.constant[constant], 0.0)
        reach = self.assembly.reach()
        for position in (post, excess):
            present = position >= 0
            magnitude[index[present]] += reach[position[present]]
        kept = substituted | constant
        magnitude[index[kept]] += value.size[kept]
        error[index[kept]] = value.error[kept]
        return Affine(matrix, offset, magnitude, error)
