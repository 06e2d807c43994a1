"""Restricted networks of members, which consist of the neurons that they can change.

A member moves few voxels; the neurons that these reach, layer by layer, are its *footprint*. All others keep their
clean values, so the network restricted to the footprint, with the rest folded into the bias, is the same function on
the member's box. Neighbouring members have nearly the same footprint, so members are bounded in *groups* that share one
restricted network of dense matrices, with all neurons that any of them reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from stbp_milp.bounds.interrupt import ask
from stbp_milp.bounds.problem import Problem
from stbp_milp.bounds.rounding import Values, derived
from stbp_milp.memory import ask_memory, room
from stbp_milp.network.dense import DenseMap, dense_network
from stbp_milp.network.normal_form import AffineMap
from stbp_milp.sets import Choice, InputSet, Patch, PerturbationSet, VoxelBox

DENSE_ENTRIES = 32_000_000  # a map's matrix is gathered from its dense form up to this size (256 MB)
_DENSE_SHARE = 0.2  # the share of the remaining memory that one dense matrix may take
_COPIES = 3  # copies of a layer's footprints that exist while equal ones are found
# Measured on two networks, in multiplications: the fixed cost of a group (some hundred small tensor operations), the
# cost of writing down one entry of its matrices, and the share of neurons that need a backward pass.
_PER_GROUP = 1e8
_PER_ENTRY = 10.0
_UNDECIDED = 0.3
_PRODUCT = 5_000_000  # multiplications of sparse matrices between two checks of the clock


@dataclass(frozen=True, eq=False)
class MemberGroup:
    """Members that share a restricted network.

    Attributes:
        members: indices of the members, (n,) int64.
        neurons: sorted flat indices of the reached neurons, of the input (key 0) and of every ReLU.
        entries: number of entries of the network's matrices.
        moves: which of the inputs a member moves, `(n, inputs)` bool.
    """

    members: Tensor
    neurons: dict[int, Tensor]
    entries: int
    moves: Tensor


def grouped(
    maps: Sequence[AffineMap], members: InputSet, largest: int, expired: Callable[[], bool] = lambda: False
) -> list[MemberGroup]:
    """Puts members into groups that are cheap to bound.

    The members are the leaves of a tree of neighbours. It is cut where bounding the members of a node on one network is
    estimated to cost less than bounding those of its children on two.

    Args:
        largest: the largest number of matrix entries that a group of several members may have.

    Raises:
        OutOfTimeError: time ran out before the end.
    """
    moved = _moved(members)
    nodes, children = _tree(moved, members.centre.shape[1:], expired)
    belongs = sp.csc_matrix(
        (np.ones(sum(map(len, nodes))), np.concatenate(nodes), np.cumsum([0, *map(len, nodes)])),
        shape=(members.parts, len(nodes)),
    )
    reached = _reached(maps, (moved @ belongs).tocsc(), expired)
    sizes = {source: np.diff(columns.indptr) for source, columns in reached.items()}
    entries, work = _costs(maps, sizes)
    counts = np.array([len(node) for node in nodes])
    own = _PER_GROUP + _PER_ENTRY * entries + counts * work
    own[(entries > largest) & np.array([bool(c) for c in children])] = np.inf
    best = own.copy()
    for node in reversed(range(len(nodes))):  # children come after their parents
        if children[node]:
            best[node] = min(best[node], sum(best[child] for child in children[node]))
    by_member = moved.T.tocsr()
    device = members.centre.device
    groups, pending = [], [0]
    while pending:
        ask(expired)
        node = pending.pop()
        if best[node] < own[node]:
            pending += children[node]
            continue
        reach = {}
        for source, columns in reached.items():
            index = columns.indices[columns.indptr[node] : columns.indptr[node + 1]].astype(np.int64)
            # A layer that no member reaches keeps one neuron, so that no layer is empty.
            reach[source] = index if len(index) else np.zeros(1, dtype=np.int64)
        moves = by_member[nodes[node]][:, reach[0]].toarray() > 0
        neurons = {source: torch.from_numpy(index).to(device) for source, index in reach.items()}
        own_members, moves = (torch.from_numpy(x).to(device) for x in (nodes[node], moves))
        groups.append(MemberGroup(own_members, neurons, int(entries[node]), moves))
    return groups


class Restrictor:
    """Makes the groups' restricted networks.

    Args:
        problem: the whole network on N sets of one member each, all around one clean input.
    """

    def __init__(self, maps: Sequence[AffineMap], problem: Problem) -> None:
        self._maps, self._device = maps, problem.device
        self._members = problem.inputs
        assert problem.rounding is not None
        self._rounding = problem.rounding

        def flat(node: int) -> Values:
            return problem.clean[node].reshape(1, -1), self._rounding.errors[node].reshape(1, -1)

        self._sources = {s: flat(s) for s in (0, *(t.relu for t in maps if t.relu is not None))}
        self._operands = [flat(problem.network.operand(affine.relu)) for affine in maps]
        # Rows and columns are gathered from dense matrices if those are small.
        self._dense: dict[int, Tensor] = {}

    def __call__(self, group: MemberGroup) -> Problem:
        """Returns the restricted network on the boxes of the group's members."""
        order = {0: 0} | {affine.relu: i + 1 for i, affine in enumerate(self._maps) if affine.relu is not None}
        dense: list[DenseMap] = []
        operands: list[Values] = []
        for i, affine in enumerate(self._maps):
            rows = None if affine.relu is None else group.neurons[affine.relu]
            value, error = self._operands[i]
            operands.append((value, error) if rows is None else (value[:, rows], error[:, rows]))
            bias = operands[-1][0][0]
            weights, magnitudes = {}, {}
            for source, whole in affine.weights.items():
                columns = group.neurons[source]
                weight = self._gather(whole, rows, columns)
                bias = bias - weight @ self._sources[source][0][0, columns]
                weights[order[source]] = weight
                if source in affine.magnitudes:
                    magnitudes[order[source]] = self._gather(affine.magnitudes[source], rows, columns)
            dense.append(DenseMap(weights, bias, magnitudes))
        network, positions = dense_network((len(group.neurons[0]),), dense)
        boxes = _boxes(self._members, group)
        at = [network.operand(relu) for relu in (*positions[1:], None)]
        known = dict(zip(at, operands, strict=True))
        known[0] = boxes.centre[:1], torch.zeros_like(boxes.centre[:1])
        clean, rounding = derived(network, self._rounding, known)
        return Problem(network, boxes, clean, rounding=rounding)

    def _gather(self, matrix: sp.csr_matrix, rows: Tensor | None, columns: Tensor) -> Tensor:
        """Returns `matrix[rows][:, columns]`, dense; None: all rows."""
        size = int(np.prod(matrix.shape))
        if id(matrix) in self._dense or (size <= DENSE_ENTRIES and 8 * size < _DENSE_SHARE * room()):
            if id(matrix) not in self._dense:
                self._dense[id(matrix)] = self._on_device(matrix)
            dense = self._dense[id(matrix)]
            if len(columns) == dense.shape[1]:
                return dense if rows is None or len(rows) == len(dense) else dense[rows]
            return dense.index_select(1, columns) if rows is None else dense[rows.unsqueeze(1), columns]
        part = matrix if rows is None else matrix[rows.cpu().numpy()]
        return self._on_device(part[:, columns.cpu().numpy()])

    def _on_device(self, matrix: sp.csr_matrix) -> Tensor:
        return torch.from_numpy(matrix.toarray()).to(self._device)


# --- which neurons ------------------------------------------------------------------------------------------


def _moved(members: InputSet) -> sp.csr_matrix:
    """Returns which voxels every member moves, as a sparse matrix of ones `(input size, N)`."""
    size = members.centre[0].numel()
    blocks = []
    for items in torch.split(torch.arange(members.parts, device=members.centre.device), max(1, (1 << 25) // size)):
        part = members.select(items)
        if isinstance(part, PerturbationSet):
            item, place = _covered(part.choice)
            channel = torch.arange(part.clip.shape[0], device=part.clip.device).unsqueeze(1) * (
                size // part.clip.shape[0]
            )
            item, voxel = item.repeat(len(channel)), (channel + place).flatten()
            moves = (part.upper > part.lower).flatten()[voxel]
            item, voxel = item[moves], voxel[moves]
        else:
            lower, upper = part.hull()
            item, voxel = (upper > lower).flatten(1).nonzero(as_tuple=True)
        ones = np.ones(len(item))
        blocks.append(sp.csc_matrix((ones, (voxel.cpu().numpy(), item.cpu().numpy())), (size, len(items))))
    return sp.hstack(blocks, format="csr")


def _covered(choice: Choice) -> tuple[Tensor, Tensor]:
    """Returns the pairs of a part and a voxel (flat, T*H*W) that some member of it covers, two `(n,)`."""
    if not isinstance(choice, Patch) or not torch.equal(choice.first, choice.last):
        part, voxel = choice.union().flatten(1).nonzero(as_tuple=True)
        return part, voxel
    # One position per part: no mask of the whole clip is needed, so the cost does not grow with the clip.
    _, height, width = choice.voxels
    steps = torch.tensor([height * width, width, 1], device=choice.device)
    axes = (torch.arange(n, device=choice.device) for n in choice.size)
    offsets = (torch.cartesian_prod(*axes).reshape(-1, 3) * steps).sum(1)  # CUDA cannot multiply integer matrices
    voxel = (choice.first * steps).sum(1, keepdim=True) + offsets
    return torch.arange(choice.parts, device=choice.device).repeat_interleave(len(offsets)), voxel.flatten()


def _tree(
    moved: sp.csr_matrix, shape: Sequence[int], expired: Callable[[], bool]
) -> tuple[list[np.ndarray], list[list[int]]]:
    """Halves members along the axis in which they are furthest apart; returns every node's members and children."""
    where = np.stack(np.unravel_index(np.arange(moved.shape[0]), shape), 1).astype(float)
    counts = np.maximum(moved.T @ np.ones(moved.shape[0]), 1)
    middle = (moved.T @ where) / counts[:, None]  # (N, axes): the middle of every member
    nodes: list[np.ndarray] = [np.arange(moved.shape[1])]
    children: list[list[int]] = []
    for node in nodes:  # grows while it is walked
        ask(expired)
        children.append([])
        if len(node) > 1:
            place = middle[node]
            order = np.argsort(place[:, np.ptp(place, axis=0).argmax()], kind="stable")
            children[-1] = [len(nodes), len(nodes) + 1]
            nodes += [node[order[: len(node) // 2]], node[order[len(node) // 2 :]]]
    return nodes, children


def _reached(maps: Sequence[AffineMap], moved: sp.csc_matrix, expired: Callable[[], bool]) -> dict[int, sp.csc_matrix]:
    """Returns, per source, the neurons that every column of voxels reaches, `(size, columns)`."""
    result = {0: _sorted(moved)}
    # Many columns reach the same neurons, so every *kind* of footprint is propagated only once.
    kinds: dict[int, tuple[sp.csc_matrix, np.ndarray]] = {0: (result[0], np.arange(moved.shape[1]))}
    for affine in maps:
        if affine.relu is None:
            continue
        below = [kinds[source] for source in affine.weights]
        first, which = np.unique(
            np.stack([own for _, own in below], 1), axis=0, return_index=True, return_inverse=True
        )[1:]
        own: list[sp.csc_matrix] = []
        for some in _slices(affine, [columns[:, of_column[first]] for columns, of_column in below]):
            ask(expired)
            own.append(sum(weight @ columns for weight, columns in some))
        ask_memory(_COPIES * sum(_bytes(columns) for columns in own))
        columns = _sorted(sp.hstack(own, format="csc"))
        first, of_kind = _different(columns, expired)
        kept = _sorted(columns[:, first])
        kinds[affine.relu] = kept, of_kind[which.reshape(-1)]
        result[affine.relu] = _sorted(kept[:, kinds[affine.relu][1]])
    return result


def _slices(affine: AffineMap, columns: Sequence[sp.csc_matrix]) -> Iterator[list[tuple[sp.csc_matrix, sp.csc_matrix]]]:
    """Yields slices of columns with the patterns of the map's matrices, such that each product is of moderate size."""
    patterns = [_pattern(weight).tocsc() for weight in affine.weights.values()]
    # The cost of an entry is the number of entries in the pattern's column that it multiplies.
    done = sum(
        np.concatenate([[0], np.cumsum(np.diff(p.indptr)[c.indices])])[c.indptr[1:]]
        for p, c in zip(patterns, columns, strict=True)
    )
    ends = np.searchsorted(done, np.arange(_PRODUCT, done[-1], _PRODUCT)) + 1
    for start, stop in pairwise(np.unique([0, *ends, len(done)])):
        yield [(p, c[:, start:stop]) for p, c in zip(patterns, columns, strict=True)]


def _bytes(columns: sp.csc_matrix) -> int:
    return int(columns.data.nbytes + columns.indices.nbytes + columns.indptr.nbytes)


def _different(columns: sp.csc_matrix, expired: Callable[[], bool]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first occurrence of each distinct column, and for every column its number among those."""
    seen: dict[bytes, int] = {}
    first, of_column = [], np.empty(columns.shape[1], dtype=np.int64)
    for i in range(columns.shape[1]):
        ask(expired)
        key = columns.indices[columns.indptr[i] : columns.indptr[i + 1]].tobytes()
        if key not in seen:
            seen[key] = len(seen)
            first.append(i)
        of_column[i] = seen[key]
    return np.array(first), of_column


def _costs(maps: Sequence[AffineMap], sizes: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Estimates, from footprint sizes, the entries of restricted matrices and the work of bounding one member."""
    entries = np.zeros(len(sizes[0]))
    work = np.zeros(len(sizes[0]))
    for affine in maps:
        rows = sizes[affine.relu] if affine.relu is not None else len(affine.bias)
        # A backward pass from this map goes through all matrices below it, once with either sign.
        share = 2 * _UNDECIDED if affine.relu is not None else 1.0
        work = work + share * rows * entries
        own = rows * sum(sizes[source].astype(float) for source in affine.weights)
        entries = entries + own
        work = work + 2 * own
    return entries, work


def whole_entries(maps: Sequence[AffineMap]) -> int:
    """Returns the multiplications of passing one form through the whole network."""
    return sum(weight.nnz for affine in maps for weight in affine.weights.values())


# --- the network --------------------------------------------------------------------------------------------


def _boxes(members: InputSet, group: MemberGroup) -> VoxelBox:
    """Returns the boxes of the group's members on the voxels that any of them moves."""
    voxels, moves = group.neurons[0], group.moves
    if isinstance(members, PerturbationSet):
        clip, lower, upper = (x.flatten()[voxels] for x in (members.clip, members.lower, members.upper))
    else:
        own = members.select(group.members)
        clip, lower, upper = (x.flatten(1)[:, voxels] for x in (own.centre, *own.hull()))
    return VoxelBox(clip.expand(moves.shape), torch.where(moves, lower, clip), torch.where(moves, upper, clip))


def _pattern(weight: sp.csr_matrix) -> sp.csr_matrix:
    pattern = weight.copy()
    pattern.data = np.ones_like(pattern.data)
    return pattern


def _sorted(columns: sp.csc_matrix) -> sp.csc_matrix:
    columns.sort_indices()
    return columns
