"""What both readers share: values of a model that is being read, and operators that only move numbers.

A *site* is the operator being read; the layers it becomes carry its name. A *value* is a node already in the builder.
Its *whole* shape is that of the model's tensor for one clip, with the batch axis where it has one; operators of a model
count the axes of that shape. What a model does with frames in place of clips (an image network inside a video network)
has no batch axis: its first axis belongs to the clip.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stbp_milp.errors import InputError, UnsupportedLayerError
from stbp_milp.network.graph import NetworkBuilder
from stbp_milp.network.layers import Concatenate, Layer, Permute, Reshape, Select


@dataclass(frozen=True)
class Value:
    """A node, and how the model sees it.

    Attributes:
        shape: the node's.
        batch: the length of the batch axis in front of it; None where the model's tensor has none.
    """

    name: str
    shape: tuple[int, ...]
    batch: int | None = 1

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the model's tensor."""
        return self.shape if self.batch is None else (self.batch, *self.shape)

    @property
    def offset(self) -> int:
        """How many axes of the whole shape lie in front of the node's."""
        return 0 if self.batch is None else 1


@dataclass(frozen=True)
class Site:
    builder: NetworkBuilder
    name: str  # first choice for the name of the layers
    kind: str  # the operator, "Sigmoid"

    @property
    def described(self) -> str:
        """The operator as the user knows it."""
        return f"node {self.name!r} ({self.kind})"

    def emit(self, layer: Layer, *operands: Value) -> Value:
        """Add a layer; its value has a batch axis where its first operand has one."""
        name = self.fresh()
        self.builder.add(name, layer, *(operand.name for operand in operands))
        return Value(name, self.builder.shape(name), operands[0].batch)

    def emit_maximum(self, first: Value, second: Value) -> Value:
        name = self.fresh()
        self.builder.maximum(name, first.name, second.name)
        return Value(name, first.shape, first.batch)

    def fresh(self) -> str:
        name, count = self.name, 1
        while name in self.builder:
            count += 1
            name = f"{self.name}/{count}"
        return name

    def unsupported(self, reason: str) -> UnsupportedLayerError:
        return UnsupportedLayerError(f"{self.described}: {reason}")

    def invalid(self, reason: str) -> InputError:
        return InputError(f"{self.described}: {reason}")


def no_rules(sites: Sequence[Site], supported: str) -> UnsupportedLayerError:
    """One sentence about all operators of a model that cannot be read: every kind with its count and its first node."""
    kinds = Counter(site.kind for site in sites)
    first = {site.kind: site.name for site in reversed(sites)}
    counted = [
        f"{kind} ({f'{count} nodes, the first is' if count > 1 else 'node'} {first[kind]!r})"
        for kind, count in kinds.items()
    ]
    named = ", ".join(counted)
    return UnsupportedLayerError(
        f"no bounding rule exists for {named}; replace what is named, or verify the part of the model in front of it. "
        f"Supported are: {supported}"
    )


# --- axes -------------------------------------------------------------------------------------------------


def node_axes(site: Site, x: Value, axes: Sequence[int]) -> list[int]:
    """Axes as the model counts them (negative from the end) as axes of the node shape."""
    chosen = [positive(site, axis, len(x.whole)) - x.offset for axis in axes]
    if -1 in chosen:
        raise site.unsupported("works along the batch axis; every clip must be treated on its own")
    return chosen


def length(site: Site, x: Value, axis: int) -> int:
    """The length of an axis as the model counts it."""
    return x.whole[positive(site, axis, len(x.whole))]


def positive(site: Site, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise site.invalid(f"axis {axis} of an operand with {rank} axes (the batch axis included)")
    return axis % rank


# --- shapes -----------------------------------------------------------------------------------------------


def reshaped(site: Site, x: Value, shape: Sequence[int]) -> Value:
    """The node under another shape, which has the batch axis in front where x has it."""
    return x if tuple(shape) == x.shape else site.emit(Reshape(tuple(shape)), x)


def reshaped_whole(site: Site, x: Value, target: Sequence[int]) -> Value:
    """`x.reshape(target)`, of the model's tensor; the target may hold one -1."""
    size = math.prod(x.whole)
    known = math.prod(length for length in target if length != -1)
    resolved = [size // known if length == -1 and known else length for length in target]
    if list(target).count(-1) > 1 or math.prod(resolved) != size:
        raise site.invalid(f"cannot reshape {x.whole} into {tuple(target)}; the sizes differ")
    if (x.batch or 1) > 1:
        if not resolved or resolved[0] != x.batch:
            raise site.unsupported(
                f"reshaping {x.whole} into {tuple(resolved)} mixes or drops the batch axis of length {x.batch}; "
                "export the model for a batch of one clip, or keep the axis in front, as in x.flatten(1)"
            )
        return reshaped(site, x, resolved[1:])
    return as_whole(site, x, resolved)


def as_whole(site: Site, x: Value, whole: Sequence[int]) -> Value:
    """The node as a tensor of this whole shape, for one clip: an axis of length 1 in front is the batch axis."""
    batched = len(whole) > 1 and whole[0] == 1
    shape = tuple(whole[1:] if batched else whole) or (1,)
    name = x.name if shape == x.shape else reshaped(site, x, shape).name
    return Value(name, shape, 1 if batched else None)


def flattened(site: Site, x: Value, start: int, end: int) -> Value:
    """`torch.flatten(x, start, end)`."""
    whole = list(x.whole)
    first, last = positive(site, start, len(whole)), positive(site, end, len(whole))
    return reshaped_whole(site, x, [*whole[:first], math.prod(whole[first : last + 1]), *whole[last + 1 :]])


def squeezed(site: Site, x: Value, axes: Sequence[int]) -> Value:
    chosen = [axis + x.offset for axis in node_axes(site, x, axes)]
    return reshaped_whole(site, x, [n for axis, n in enumerate(x.whole) if axis not in chosen or n != 1])


def unsqueezed(site: Site, x: Value, axes: Sequence[int]) -> Value:
    """A new axis of length 1 at each of these positions of the result."""
    rank = len(x.whole) + len(axes)
    chosen = {positive(site, axis, rank) for axis in axes}
    if 0 in chosen and x.batch is not None:
        raise site.unsupported("a new axis before the batch axis; keep the batch axis in front")
    lengths = iter(x.whole)
    return reshaped_whole(site, x, [1 if axis in chosen else next(lengths) for axis in range(rank)])


def layered(site: Site, own: Value | Tensor, axis: int) -> Value | Tensor:
    """A value or a constant with a new axis of length 1, as the model counts it."""
    return unsqueezed(site, own, [axis]) if isinstance(own, Value) else own.unsqueeze(axis)


def permuted(site: Site, x: Value, order: Sequence[int]) -> Value:
    """`x.permute(order)`, of the model's tensor."""
    wanted = [positive(site, axis, len(x.whole)) for axis in order]
    if sorted(wanted) != list(range(len(x.whole))):
        raise site.invalid(f"the order of axes {tuple(order)} does not fit an operand of shape {x.whole}")
    if x.batch is not None and wanted[0] != 0:
        if x.batch != 1:
            raise site.unsupported("moves the batch axis; keep it in front")
        return as_whole(site, moved(site, unbatched(site, x), wanted), [x.whole[axis] for axis in wanted])
    if x.batch is None and x.whole[wanted[0]] == 1:  # what is now in front reads as a batch axis
        return as_whole(site, moved(site, x, wanted), [x.whole[axis] for axis in wanted])
    return moved(site, x, [axis - x.offset for axis in wanted[x.offset :]])


def moved(site: Site, x: Value, order: Sequence[int]) -> Value:
    """The axes of the node in another order."""
    return x if list(order) == list(range(len(order))) else site.emit(Permute(tuple(order)), x)


def unbatched(site: Site, x: Value) -> Value:
    """The same tensor with its batch axis, of length 1, as an axis of the node."""
    if x.batch is None:
        return x
    return Value(reshaped(site, x, (1, *x.shape)).name, (1, *x.shape), None)


# --- parts ------------------------------------------------------------------------------------------------


def selected(site: Site, x: Value, axis: int, index: Sequence[int] | Tensor, padded: bool = False) -> Value:
    """`x[..., index, ...]` along an axis of the node; the index -1 stands for a zero where `padded`."""
    index = torch.as_tensor(index, dtype=torch.int64)
    size = x.shape[axis]
    if not len(index):
        raise site.unsupported(f"takes nothing of axis {axis + x.offset} of an operand of shape {x.whole}")
    if bool((index >= size).any()) or bool((index < (-1 if padded else 0)).any()):
        raise site.invalid(f"reads beyond axis {axis + x.offset} of an operand of shape {x.whole}")
    if torch.equal(index, torch.arange(size)):
        return x
    return site.emit(Select(axis, index, padded), x)


def taken(site: Site, x: Value, axis: int, index: Sequence[int] | int) -> Value:
    """Some places of an axis as the model counts it, negative ones from its end; of one number, the axis is dropped.

    All places in order are the value itself, along the batch axis too.
    """
    if not isinstance(index, int) and list(index) == list(range(length(site, x, axis))):
        return x
    (own,) = node_axes(site, x, [axis])
    places = [index] if isinstance(index, int) else list(index)
    size = x.shape[own]
    if any(not -size <= place < size for place in places):
        raise site.invalid(f"reads places {places} of axis {axis} of an operand of shape {x.whole}")
    part = selected(site, x, own, [place % size for place in places])
    if not isinstance(index, int):
        return part
    return reshaped_whole(site, part, [n for i, n in enumerate(part.whole) if i != own + x.offset])


def parts(site: Site, x: Value, axis: int, lengths: Sequence[int]) -> list[Value]:
    """The value cut into parts of these lengths along an axis as the model counts it."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [taken(site, x, axis, range(start, start + n)) for start, n in zip(starts, lengths, strict=True)]


def whole_of(own: Value | Tensor) -> tuple[int, ...]:
    """The shape of the model's tensor, of a value or a constant."""
    return own.whole if isinstance(own, Value) else tuple(own.shape)


def concatenated(site: Site, operands: Sequence[Value], axis: int) -> Value:
    """Values one after the other along an axis as the model counts it."""
    first = operands[0]
    if any(own.batch != first.batch or len(own.shape) != len(first.shape) for own in operands):
        wholes = ", ".join(str(own.whole) for own in operands)
        raise site.unsupported(f"joins operands of shapes {wholes}; expected shapes that differ along one axis")
    (own,) = node_axes(site, first, [axis])
    if len(operands) == 1:
        return first
    return site.emit(Concatenate(own, tuple(value.shape[own] for value in operands)), *operands)


def padded(site: Site, x: Value, sides: Sequence[tuple[int, int]], mode: str) -> Value:
    """Padding of every axis of the node, `(before, after)` each; negative ones cut.

    Args:
        mode: "constant" (zeros), "reflect", "edge" or "wrap", as numpy.pad names them.
    """
    for axis, (before, after) in enumerate(sides):
        size = x.shape[axis]
        places = np.arange(size)[max(0, -before) : size - max(0, -after)]
        grown = (max(0, before), max(0, after))
        if any(grown):
            if not len(places) or (mode == "reflect" and max(grown) >= len(places)):
                raise site.invalid(f"pads axis {axis + x.offset} of an operand of shape {x.whole} by {grown} ({mode})")
            settings = {"constant_values": -1} if mode == "constant" else {}
            places = np.pad(places, grown, mode=mode, **settings)  # type: ignore[call-overload]
        x = selected(site, x, axis, torch.from_numpy(places), padded=mode == "constant")
    return x


# --- broadcasting -----------------------------------------------------------------------------------------


def repeated(site: Site, x: Value, shape: tuple[int, ...]) -> Value:
    """The node broadcast to a larger shape of the same rank."""
    for axis, (have, want) in enumerate(zip(x.shape, shape, strict=True)):
        if have != want:
            x = site.emit(Select(axis, torch.zeros(want, dtype=torch.int64)), x)
    return x


def broadcast(site: Site, operands: Sequence[Value | Tensor]) -> list[Value | Tensor]:
    """Operands of one shape, as an elementwise operator sees them; constants without their batch axis, in float64."""
    wholes = [whole_of(own) for own in operands]
    try:
        whole = np.broadcast_shapes(*wholes)
    except ValueError as error:
        raise site.invalid(f"shapes {wholes} do not broadcast") from error
    values = [own for own in operands if isinstance(own, Value)]
    batch = next((own.batch for own in values if own.batch is not None and len(own.whole) == len(whole)), None)
    if batch is not None and whole[0] != batch:
        if batch != 1:
            raise site.unsupported(f"broadcasts shapes {wholes} along the batch axis; expected length {batch} there")
        batch = None
    shape = whole if batch is None else whole[1:]
    return [_fitted(site, own, whole, shape, batch) for own in operands]


def _fitted(
    site: Site, own: Value | Tensor, whole: tuple[int, ...], shape: tuple[int, ...], batch: int | None
) -> Value | Tensor:
    if isinstance(own, Tensor):
        double = own.detach().to(torch.float64)
        if double.dim() <= len(shape):
            return double
        if double.shape[0] != 1:
            raise site.unsupported(
                f"the constant of shape {tuple(double.shape)} does not broadcast along the batch axis of an operand of "
                f"shape {whole}; expected length 1 there"
            )
        return double.squeeze(0)
    if len(own.whole) < len(whole) and (own.batch or 1) > 1:
        raise site.unsupported(f"broadcasting {own.whole} to {whole} adds an axis before the batch axis")
    aligned = (1,) * (len(whole) - len(own.whole)) + own.whole
    node = reshaped(site, own, aligned if batch is None else aligned[1:])
    return repeated(site, Value(node.name, node.shape, batch), shape)
