"""A member's own small network: only the neurons that it can change.

A member moves few voxels; the neurons they reach, layer by layer, are its *footprint*. All others keep their clean
value, so the network restricted to the footprint, with the rest folded into the bias, is the same function on the
member's box. Restricted networks of many members are padded to one size and become one batched problem of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from stbp_milp.bounds.problem import Problem
from stbp_milp.network.graph import Network, Node
from stbp_milp.network.layers import Add, Input, Layer, Linear, ReLU
from stbp_milp.network.normal_form import Stage
from stbp_milp.sets import InputSet, PerturbationSet, VoxelBox

_DENSE_ENTRIES = 32_000_000  # a stage's matrix is gathered from its dense form up to this size (256 MB)


@dataclass(frozen=True, eq=False)
class Footprint:
    """Per member the neurons of a source (flat indices), padded.

    Attributes:
        index: (N, n) int64, 0 where padded.
        valid: (N, n) bool.
    """

    index: Tensor
    valid: Tensor

    def select(self, items: Tensor) -> Footprint:
        valid = self.valid[items]
        width = max(1, int(valid.sum(1).max()))
        return Footprint(self.index[items, :width], valid[:, :width])


def footprints(stages: Sequence[Stage], members: InputSet) -> dict[int | None, Footprint]:
    """Footprints of the input (key 0), every ReLU and the output (key None), member by member."""
    moved = _moved(members)
    result: dict[int | None, Footprint] = {0: _padded(moved)}
    # Many members reach the same neurons: every *kind* of footprint (a column) is followed once.
    kinds: dict[int, tuple[sp.csr_matrix, np.ndarray]] = {0: (moved, np.arange(members.parts))}
    for stage in stages:
        if stage.relu is None:
            everything = torch.arange(len(stage.bias)).expand(members.parts, -1)
            result[None] = Footprint(everything, torch.ones_like(everything, dtype=torch.bool))
            continue
        below = [kinds[source] for source in stage.weights]
        first, of_member = _different(np.stack([own for _, own in below], 1))
        reached = sum(
            _pattern(weight) @ columns[:, own[first]]
            for weight, (columns, own) in zip(stage.weights.values(), below, strict=True)
        )
        footprint = _padded(reached)
        first, of_column = _different(torch.where(footprint.valid, footprint.index, -1).numpy())
        kinds[stage.relu] = reached.tocsc()[:, first].tocsr(), of_column[of_member]
        result[stage.relu] = Footprint(footprint.index[of_member], footprint.valid[of_member])
    return result


def _moved(members: InputSet) -> sp.csr_matrix:
    """Which voxels a member moves, `(input size, N)` with ones."""
    size = members.centre[0].numel()
    at_once = max(1, (1 << 24) // size)
    blocks = []
    for items in torch.split(torch.arange(members.parts), at_once):
        lower, upper = members.select(items).hull()
        item, voxel = (upper > lower).flatten(1).nonzero(as_tuple=True)
        blocks.append(sp.csc_matrix((np.ones(len(item)), (voxel.numpy(), item.numpy())), (size, len(items))))
    return sp.hstack(blocks, format="csr")


def _different(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each different row occurs first, and which of them every row is."""
    seen: dict[bytes, int] = {}
    of_row = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in np.ascontiguousarray(rows)])
    return np.unique(of_row, return_index=True)[1], of_row


def costs(stages: Sequence[Stage], prints: dict[int | None, Footprint]) -> tuple[int, int]:
    """Multiplications of one backward form: through a member's restricted network, and through the whole one."""
    own = sum(prints[stage.relu].index.shape[1] * prints[s].index.shape[1] for stage in stages for s in stage.weights)
    whole = sum(weight.nnz for stage in stages for weight in stage.weights.values())
    return own, whole


def restrict(
    stages: Sequence[Stage], problem: Problem, prints: dict[int | None, Footprint], memory_bytes: int
) -> Iterator[tuple[Tensor, Problem]]:
    """Restricted problems of the members, in batches `(items, problem)` whose matrices fit the budget.

    Args:
        problem: the whole network on N sets of one member each, all around one clean input.
    """
    entries, size = max(1, costs(stages, prints)[0]), problem.clean[0][0].numel()
    clean = {0: problem.clean[0].reshape(-1)}
    for stage in stages:
        if stage.relu is not None:
            clean[stage.relu] = problem.clean[stage.relu].reshape(-1)
    operand = {s.relu: problem.clean[_operand(problem.network, s.relu)].reshape(-1) for s in stages}
    gatherers = {(i, s): _Gatherer(w) for i, stage in enumerate(stages) for s, w in stage.weights.items()}
    inputs = problem.inputs
    # A voxel that a member moves has the set's own box there.
    lower, upper = (inputs.lower, inputs.upper) if isinstance(inputs, PerturbationSet) else inputs.hull()
    # Members with footprints of about one size go together, so that little is padded.
    sizes = torch.stack([footprint.valid.sum(1) for key, footprint in prints.items() if key is not None]).double()
    order = (sizes.log().sum(0)).argsort(stable=True)
    # Matrices stay alive through branch and bound; their gathers hold about three copies for a moment.
    for items in torch.split(order, max(1, memory_bytes // (3 * 8 * entries))):
        local = {key: prints_.select(items) for key, prints_ in prints.items()}
        box = VoxelBox(
            *(
                _gather(x[items] if x.shape[0] > 1 else x.expand(len(items), -1), local[0])
                for x in (x.reshape(-1, size) for x in (problem.clean[0], lower, upper))
            )
        )
        yield items, _assemble(stages, gatherers, local, clean, operand, box)


def _assemble(
    stages: Sequence[Stage],
    gatherers: dict[tuple[int, int], _Gatherer],
    prints: dict[int | None, Footprint],
    clean: dict[int, Tensor],
    operand: dict[int | None, Tensor],
    box: VoxelBox,
) -> Problem:
    nodes = [Node("input", Input(), (), tuple(box.centre.shape[1:]))]
    position = {0: 0}  # source of the whole network -> node of the restricted one

    def add(name: str, layer: Layer, inputs: tuple[int, ...], size: int) -> int:
        nodes.append(Node(name, layer, inputs, (size,)))
        return len(nodes) - 1

    for i, stage in enumerate(stages):
        rows = prints[stage.relu]
        size = rows.index.shape[1]
        bias = torch.where(rows.valid, operand[stage.relu][rows.index], -1.0)  # padded neurons are inactive
        terms: list[tuple[int, Tensor]] = []
        for source in stage.weights:
            weight = gatherers[i, source](rows, prints[source])
            values = torch.where(prints[source].valid, clean[source][prints[source].index], 0.0)
            bias = bias - (weight @ values.unsqueeze(-1)).squeeze(-1)
            terms.append((position[source], weight))
        name = f"stage {i}"
        linear = [
            add(f"{name}/{j}", Linear(w, bias if j == 0 else torch.zeros_like(bias)), (s,), size)
            for j, (s, w) in enumerate(terms)
        ]
        node = linear[0] if len(linear) == 1 else add(f"{name}/sum", Add((1.0,) * len(linear)), tuple(linear), size)
        if stage.relu is not None:
            position[stage.relu] = add(f"{name}/relu", ReLU(), (node,), size)
    return Problem.of(Network(tuple(nodes)), box)


class _Gatherer:
    """Sub-matrices `W[rows of the member][:, columns of the member]` for many members at once."""

    def __init__(self, weight: sp.csr_matrix) -> None:
        self._weight = weight.tocsr()
        self._dense = torch.from_numpy(weight.toarray()) if np.prod(weight.shape) <= _DENSE_ENTRIES else None
        if self._dense is None:
            self._entries = torch.from_numpy(self._weight.data)
            self._columns = torch.from_numpy(self._weight.indices.astype(np.int64))
            self._starts = torch.from_numpy(self._weight.indptr.astype(np.int64))

    def __call__(self, rows: Footprint, columns: Footprint) -> Tensor:  # (N, rows, columns)
        if self._dense is not None:
            block = self._dense[rows.index.unsqueeze(2), columns.index.unsqueeze(1)]
            return block * (rows.valid.unsqueeze(2) & columns.valid.unsqueeze(1))
        return self._from_sparse(rows, columns)

    def _from_sparse(self, rows: Footprint, columns: Footprint) -> Tensor:
        count, width = columns.index.shape
        # Where a neuron of the whole source stands in the member's footprint; `width` collects what is outside.
        place = torch.full((count, self._weight.shape[1]), width, dtype=torch.int64)
        place.scatter_(
            1,
            torch.where(columns.valid, columns.index, columns.index[:, :1]),
            torch.where(columns.valid, torch.arange(width), 0),
        )
        starts, lengths = self._starts[rows.index], self._starts[rows.index + 1] - self._starts[rows.index]
        offsets = torch.arange(max(1, int(lengths.max())))
        inside = (offsets < lengths.unsqueeze(-1)) & rows.valid.unsqueeze(-1)
        at = torch.where(inside, starts.unsqueeze(-1) + offsets, 0)  # (N, rows, nonzeros)
        target = torch.where(inside, place.gather(1, self._columns[at].flatten(1)).view_as(at), width)
        block = torch.zeros(*rows.index.shape, width + 1, dtype=self._entries.dtype)
        return block.scatter_(2, target, self._entries[at])[..., :width]


def _operand(network: Network, relu: int | None) -> int:
    return len(network.nodes) - 1 if relu is None else network.nodes[relu].inputs[0]


def _pattern(weight: sp.csr_matrix) -> sp.csr_matrix:
    pattern = weight.copy()
    pattern.data = np.ones_like(pattern.data)
    return pattern


def _gather(values: Tensor, footprint: Footprint) -> Tensor:
    return torch.where(footprint.valid, values.gather(1, footprint.index), 0.0)


def _padded(reached: sp.csr_matrix) -> Footprint:
    """Column by column the row indices of a `(size, N)` pattern, padded to the longest."""
    columns = reached.tocsc()
    columns.sort_indices()
    counts = np.diff(columns.indptr)
    width = max(1, int(counts.max(initial=0)))
    member = np.repeat(np.arange(counts.size), counts)
    place = np.arange(columns.indices.size) - columns.indptr[member]
    index = np.zeros((counts.size, width), dtype=np.int64)
    index[member, place] = columns.indices
    valid = np.arange(width) < counts[:, None]
    return Footprint(torch.from_numpy(index), torch.from_numpy(valid))
