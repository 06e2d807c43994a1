"""The contents of a VNN-LIB file: the inputs and outputs that must not occur together.

The *unsafe region* is a union of boxes of inputs, each with its own unsafe outputs. A network is safe (our "verified",
the competition's "unsat") if no input of a box has an output that is unsafe for that box. For a box, this is a property
in our sense: an unsafe conjunction `row_1 @ y + d_1 <= 0 and ...` is false if one of its rows is positive, so its
negation is one clause. Equality is unsafe in both formulations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stbp_milp.errors import InputError
from stbp_milp.network.model import Model
from stbp_milp.properties import Property
from stbp_milp.query import Query
from stbp_milp.sets import BoxSpecification

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class UnsafeBox:
    """A box of inputs and the property that must hold of all of their outputs.

    Attributes:
        lower, upper: (n,), the inputs in row-major order, `lower <= upper`.
    """

    lower: Array
    upper: Array
    property: Property

    def query(self, model: Model) -> Query:
        shape = model.network.input_shape
        lower, upper = (torch.from_numpy(side).reshape(shape) for side in (self.lower, self.upper))
        box = BoxSpecification(lower, upper)
        return Query(model, box.centre(), box, self.property)


@dataclass(frozen=True, eq=False)
class UnsafeRegion:
    """The content of a VNN-LIB file.

    Attributes:
        name: the name of the file.
        inputs, outputs: the numbers of declared inputs and outputs.
        boxes: the boxes, at least one; if the file forbids nothing, a box with a property that always holds.
    """

    name: str
    inputs: int
    outputs: int
    boxes: tuple[UnsafeBox, ...]

    def queries(self, model: Model) -> list[Query]:
        """Returns the questions about `model`: it is safe if all are verified, and unsafe if one is falsified.

        Raises:
            InputError: the model has another number of inputs or outputs.
        """
        arrived = (int(np.prod(model.network.input_shape)), int(np.prod(model.network.output_shape)))
        if arrived != (self.inputs, self.outputs):
            raise InputError(
                f"{self.name} is about {self.inputs} inputs and {self.outputs} outputs, but model {model.name} has "
                f"{arrived[0]} and {arrived[1]}; give the model it was written for"
            )
        return [box.query(model) for box in self.boxes]
