"""A question about one clip in the terms of a user of the library, and the query that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from stbp_milp import given
from stbp_milp.errors import InputError
from stbp_milp.network.model import load_model_for
from stbp_milp.network.views import as_clip
from stbp_milp.properties import property_of
from stbp_milp.query import Query
from stbp_milp.sets import SetSpecification


@dataclass(frozen=True)
class Classification:
    """The property that a class stays among the first.

    Attributes:
        label: the class that must be kept; None: the clean prediction.
        top: the class must stay among the first `top` classes.
    """

    label: int | str | None = None
    top: int | str = 1


@dataclass(frozen=True)
class Regression:
    """The property that every output stays close to its value on the clean clip.

    Attributes:
        tolerance: every output stays within +-tolerance of the clean output, in the output's unit.
    """

    tolerance: float


@dataclass(frozen=True)
class DataFormat:
    """How the values and the axes of a clip are meant.

    Attributes:
        domain: the smallest and the largest value of the data, as two numbers or as text such as "0,255"; None: [0, 1],
            and uint8 is divided by 255.
        layout: the axes of the model's input without the batch axis, such as "THWC"; needed if they are ambiguous.
    """

    domain: Sequence[float] | str | None = None
    layout: str | None = None


PREDICTION = Classification()
USUAL_FORMAT = DataFormat()


def query_about(
    model: nn.Module | str | Path,
    clip: Tensor | np.ndarray,
    set: str,
    epsilon: float | str,
    property: Classification | Regression = PREDICTION,
    data: DataFormat = USUAL_FORMAT,
) -> Query:
    """Loads the model and returns the query about the set around the clip.

    Args:
        model: a torch module, or the path of an ONNX file.
        clip: the clip in the shape that the model takes, or (C, T, H, W) for a model in a file; the values must lie in
            the data domain and be representable in float32. uint8 is divided by 255 if no domain is given.
        set: the set in words, as in `SetSpecification`.
        epsilon: the radius in the unit of the data, a number or text such as "4/255".
        property: what must not change; by default, the predicted class stays first.
        data: the domain of the data and the layout of the model's input, where they are not the usual ones.

    Raises:
        InputError: an argument cannot be used as it is.
        UnsupportedLayerError: as in `load_model`.
    """
    if not isinstance(data, DataFormat):
        raise InputError(f"data is {data!r}; expected a DataFormat, such as DataFormat(domain=(0, 255))")
    values = given.clip_values(clip, data.domain is not None)
    domain = (0.0, 1.0) if data.domain is None else given.interval(data.domain)
    asked = SetSpecification(given.words(set), given.radius(epsilon), domain)
    label, top, tolerance = _numbers(property)
    loaded = load_model_for(values, given.source(model), data.layout)
    values = as_clip(values, loaded.axes)
    if tuple(values.shape) != loaded.axes.clip:
        raise InputError(
            f"the clip has shape {tuple(values.shape)}, but the model {loaded.name} takes {loaded.axes.shape}; give a "
            "clip of that shape"
        )
    return Query(loaded, values, asked, property_of(loaded.predict, values, label, top, tolerance))


def _numbers(property: Classification | Regression) -> tuple[int | None, int, float | None]:
    """Returns label, top and tolerance, as `property_of` takes them."""
    if isinstance(property, Regression):
        return None, 1, given.number("tolerance", property.tolerance)
    if not isinstance(property, Classification):
        raise InputError(
            f"the property is {property!r}; expected a Classification or a Regression, such as Classification(label=3)"
        )
    top = given.whole("top", property.top, "a number of classes")
    label = None if property.label is None else given.whole("label", property.label, "the number of a class")
    return label, top, None
