"""One question to the verifier, and how to go about answering it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from stbp_milp.errors import InputError
from stbp_milp.network.model import Model
from stbp_milp.network.views import undecided
from stbp_milp.properties import Property
from stbp_milp.sets import BoxSpecification, SetSpecification

Neuron = tuple[int, int]
"""A ReLU's node position in the network, and a flat index of its operand."""

Phase = tuple[int, int, int]
"""A neuron, and the sign of its ReLU's operand: 1 (active, >= 0) or -1 (inactive, <= 0)."""

SolverName = Literal["auto", "scip", "gurobi", "highs", "none"]


@dataclass(frozen=True, eq=False)
class Query:
    """Does `property` hold of the model's output on every clip of the set around `clip`?

    Attributes:
        clip: (C, T, H, W), float64, in the data domain; of a box, a clip in it.
        phases: only clips on which these ReLUs have these phases are asked about: a *subtree*, one of those that
            share a question. Bounds may hold on more clips than those, and a counterexample may be any of the set.
    """

    model: Model
    clip: Tensor
    set: SetSpecification | BoxSpecification
    property: Property
    phases: tuple[Phase, ...] = ()

    def check(self) -> None:
        """Can it be answered?

        Raises:
            InputError: the clip does not fit the model, the axes of the model's input must be named before the set
                means anything, or there is no such phase.
        """
        network = self.model.network
        if (doubt := undecided(self.model.axes, self.set.text)) is not None:
            raise InputError(doubt)
        if tuple(self.clip.shape) != network.input_shape:
            raise InputError(
                f"the clip has shape {tuple(self.clip.shape)}, the model {self.model.name} takes "
                f"{network.input_shape}; give a clip of that shape"
            )
        if not torch.equal(self.clip.to(torch.float32).to(self.clip.dtype), self.clip):
            raise InputError(
                "the clip holds values that float32 cannot hold, but models take float32; "
                "round it with .to(torch.float32) first"
            )
        for relu, neuron, sign in self.phases:
            if (
                relu not in network.relus
                or not 0 <= neuron < math.prod(network.nodes[relu].shape)
                or sign not in (1, -1)
            ):
                raise InputError(
                    f"the phase {(relu, neuron, sign)} is none of the model {self.model.name}; "
                    f"give a ReLU of {network.relus}, a flat index in it, and 1 or -1"
                )

    def to(self, device: torch.device) -> Query:
        """The same with the network and the property on a device; the clip, the set and the original stay."""
        model = replace(self.model, network=self.model.network.to(device))
        return replace(self, model=model, property=self.property.to(device))


@dataclass(frozen=True)
class Configuration:
    """How to search. Saved with every result.

    Attributes:
        timeout: wall-clock limit in seconds.
        solver: which MILP solver may be used, "none" for bounds and branching only.
        seed: of the attack and of every random choice.
        threads: threads that torch and the solvers may use.
        device: where bounds and search are computed, "cpu", "cuda" or "cuda:1"; the verdicts are the same.
        memory_bytes: what this process may hold during the run, all that it held before included. Batch sizes, open
            subproblems and solvers are planned by what that leaves, and nothing more is begun once it is held: a run
            exceeds it by less than 10%, but for what the model itself takes. On a GPU: what the run should hold there,
            which is only planned by. None: 70% of what is free at the start.
    """

    timeout: float = 60.0
    solver: SolverName = "auto"
    seed: int = 0
    threads: int = 1
    memory_bytes: int | None = None
    device: str = "cpu"
