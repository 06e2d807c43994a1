"""A question to the verifier, and the configuration of its search for an answer."""

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
"""The position of a ReLU's node in the network, and a flat index into its operand."""

Phase = tuple[int, int, int]
"""A neuron (two numbers), and the sign of its pre-activation: 1 (active, >= 0) or -1 (inactive, <= 0)."""

SolverName = Literal["auto", "scip", "gurobi", "highs", "none"]


@dataclass(frozen=True, eq=False)
class Query:
    """Does `property` hold for the model's output on every clip of the set around `clip`?

    Attributes:
        clip: (C, T, H, W), float64, in the data domain; for a box, a clip inside it.
        phases: restricts the question to clips on which these ReLUs have these phases: a *subtree*, one of several
            that share a question. Bounds may hold on more clips than those, and a counterexample may be any clip of
            the set.
    """

    model: Model
    clip: Tensor
    set: SetSpecification | BoxSpecification
    property: Property
    phases: tuple[Phase, ...] = ()

    def check(self) -> None:
        """Checks that the question can be answered.

        Raises:
            InputError: the clip does not fit the model, the set is ambiguous until the axes of the model's input are
                named, or there is no such phase.
        """
        network = self.model.network
        if (doubt := undecided(self.model.axes, self.set.text)) is not None:
            raise InputError(doubt)
        if tuple(self.clip.shape) != network.input_shape:
            raise InputError(
                f"the clip has shape {tuple(self.clip.shape)}, but the model {self.model.name} takes "
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
                    f"the phase {(relu, neuron, sign)} does not exist in the model {self.model.name}; "
                    f"give the position of a ReLU (one of {network.relus}), a flat index into it, and 1 or -1"
                )

    def to(self, device: torch.device) -> Query:
        """Returns the query with network and property on a device; the clip, the set and the original model stay."""
        model = replace(self.model, network=self.model.network.to(device))
        return replace(self, model=model, property=self.property.to(device))


@dataclass(frozen=True)
class Configuration:
    """How to search; saved with every result.

    Attributes:
        timeout: wall-clock limit in seconds.
        solver: the MILP solver that may be used; "none" for bounds and branching only.
        seed: seed of the attack and of every other random choice.
        threads: number of threads that torch and the solvers may use.
        device: the device for bounds and search, "cpu", "cuda" or "cuda:1"; the verdicts are the same.
        memory_bytes: memory that this process may hold during the run, including what it held before. Batch sizes, open
            subproblems and solvers are planned to fit, and nothing more is begun once the limit is reached: a run
            exceeds it by less than 10%, apart from the model itself. On a GPU it is only a target for planning.
            None: 70% of what is free at the start.
    """

    timeout: float = 60.0
    solver: SolverName = "auto"
    seed: int = 0
    threads: int = 1
    memory_bytes: int | None = None
    device: str = "cpu"
