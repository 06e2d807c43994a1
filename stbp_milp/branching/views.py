"""Views of the network: the whole one, and smaller ones that compute the same on a part of the question.

One law holds for all of them: on the inputs of a clip, a view's network gives the whole network's output, as long as
the clip lies in the set that the view is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Places = Mapping[int, tuple[int, Tensor]]
"""By ReLU of a larger network: the ReLU here, and where its neurons lie there, sorted flat indices `(n,)`."""


class View(Protocol):
    """How the inputs and neurons of a network correspond to those of the whole one."""

    def clips(self, inputs: Tensor) -> Tensor:
        """Inputs of this network `(B, *input_shape)` as clips `(B, C, T, H, W)`."""

    def inputs(self, clips: Tensor) -> Tensor:
        """Clips `(B, C, T, H, W)` as inputs of this network, `(B, *)` in the order of its `input_shape`."""

    def here(self, relu: int, neuron: int) -> tuple[int, int] | None:
        """A neuron of the whole network in this one, ReLU and flat index; None if it is not there."""

    def in_whole(self, relu: int, neuron: int) -> tuple[int, int]:
        """The inverse of `here`."""


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
    """What some voxels of the clip reach, as matrices; all others have their clean values.

    Attributes:
        clip: the clean clip `(C, T, H, W)`.
        voxels: the inputs here, flat indices into the clip `(n,)`.
        neurons: which neurons are here.
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
    """The same on crops of every layer: a network of convolutions, whose values are those of one member each."""


@dataclass(frozen=True, eq=False)
class FoldedView:
    """What is left of another view's network when decided neurons are folded into matrices.

    Attributes:
        below: that view.
        neurons: which of its neurons are left.
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
