"""Views of the network: the whole one, and smaller ones that compute the same function on a part of the set.

One law holds for all views: on the inputs of a clip, the view's network has the same output as the whole network, as
long as the clip lies in the set that the view is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Places = Mapping[int, tuple[int, Tensor]]
"""Per ReLU of the larger network: the ReLU in this one, and its neurons' sorted flat indices there, `(n,)`."""


class View(Protocol):
    """How the inputs and neurons of a network correspond to those of the whole one."""

    def clips(self, inputs: Tensor) -> Tensor:
        """Converts inputs of this network `(B, *input_shape)` to clips `(B, C, T, H, W)`."""

    def inputs(self, clips: Tensor) -> Tensor:
        """Converts clips `(B, C, T, H, W)` to inputs of this network, `(B, *)` in the order of its `input_shape`."""

    def here(self, relu: int, neuron: int) -> tuple[int, int] | None:
        """Finds a neuron of the whole network in this one, as ReLU and flat index; None if it is not there."""

    def in_whole(self, relu: int, neuron: int) -> tuple[int, int]:
        """Finds a neuron of this network in the whole one: the inverse of `here`."""


@dataclass(frozen=True)
class WholeView:
    """The network itself."""

    def clips(self, inputs: Tensor) -> Tensor:
        return inputs

    def inputs(self, clips: Tensor) -> Tensor:
        return clips

    def here(self, relu: int, neuron: int) -> tuple[int, int] | None:
        return relu, neuron

    def in_whole(self, relu: int, neuron: int) -> tuple[int, int]:
        return relu, neuron


@dataclass(frozen=True, eq=False)
class RestrictedView:
    """The neurons that some voxels of the clip reach, as matrices; all others have their clean values.

    Attributes:
        clip: the clean clip `(C, T, H, W)`.
        voxels: the inputs of this network, as flat indices into the clip `(n,)`.
        neurons: the neurons of this network.
    """

    clip: Tensor
    voxels: Tensor
    neurons: Places

    def clips(self, inputs: Tensor) -> Tensor:
        clips = self.clip.flatten().repeat(len(inputs), 1)
        clips[:, self.voxels] = inputs.flatten(1)
        return clips.view(-1, *self.clip.shape)

    def inputs(self, clips: Tensor) -> Tensor:
        return clips.flatten(1)[:, self.voxels]

    def here(self, relu: int, neuron: int) -> tuple[int, int] | None:
        return _found(self.neurons, relu, neuron)

    def in_whole(self, relu: int, neuron: int) -> tuple[int, int]:
        return _original(self.neurons, relu, neuron)


@dataclass(frozen=True, eq=False)
class CroppedView(RestrictedView):
    """The same on crops of every layer: a network of convolutions in deviations from the clean values."""


@dataclass(frozen=True, eq=False)
class FoldedView:
    """What is left of another view's network when decided neurons are folded into matrices.

    Attributes:
        below: the other view.
        neurons: the neurons of the other view that are left.
    """

    below: View
    neurons: Places

    def clips(self, inputs: Tensor) -> Tensor:
        return self.below.clips(inputs)

    def inputs(self, clips: Tensor) -> Tensor:
        return self.below.inputs(clips)

    def here(self, relu: int, neuron: int) -> tuple[int, int] | None:
        below = self.below.here(relu, neuron)
        return None if below is None else _found(self.neurons, *below)

    def in_whole(self, relu: int, neuron: int) -> tuple[int, int]:
        return self.below.in_whole(*_original(self.neurons, relu, neuron))


def _found(neurons: Places, relu: int, neuron: int) -> tuple[int, int] | None:
    if relu not in neurons:
        return None
    own, indices = neurons[relu]
    at = (indices == neuron).nonzero().flatten().tolist()
    return (own, at[0]) if at else None


def _original(neurons: Places, relu: int, neuron: int) -> tuple[int, int]:
    theirs = next(theirs for theirs, (own, _) in neurons.items() if own == relu)
    return theirs, int(neurons[theirs][1][neuron])
