"""The entry points: they take a query and return a verdict with its evidence.

The stages go from cheap to exact. A counterexample found by any stage ends the run, and clauses of the property that
are proved are not examined again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from stbp_milp import given
from stbp_milp.errors import InputError
from stbp_milp.network.model import load_model_for
from stbp_milp.network.views import as_clip
from stbp_milp.properties import property_of
from stbp_milp.query import Configuration, Query
from stbp_milp.search import Deadline
from stbp_milp.sets import SetSpecification
from stbp_milp.stages import (
    OnProgress,
    branch_and_bound,
    clean_clip,
    first_pieces,
    outcome,
    quick_attack,
    run,
    started,
    thorough_attack,
    union_bound,
)
from stbp_milp.strategy import DEFAULT, Strategy
from stbp_milp.verdict import Outcome

STAGES = (clean_clip, quick_attack, union_bound, first_pieces, thorough_attack, branch_and_bound)


def verify(
    query: Query,
    configuration: Configuration,
    on_progress: OnProgress | None = None,
    deadline: Deadline | None = None,
    strategy: Strategy = DEFAULT,
) -> Outcome:
    """Decides whether the property holds for every clip of the set.

    The outcome's verdict is `Verified` if the property is proved for every clip, `Falsified` if some clip of the set
    breaks it (a margin of exactly 0 does), and `Unknown` with the reason if neither could be shown within the limits.

    Args:
        query: the model, the clip, the set around it and the property.
        configuration: the limits, the solver, the device and the seed.
        on_progress: called from this thread, at most a few times per second.
        deadline: the deadline of a run that began earlier, for example to read the model; None: the configuration's
            time limit, starting now. If no time is left, only the clean clip is evaluated.
        strategy: which methods are tried, and for how long.

    Raises:
        InputError: the clip does not fit the model or the set, or there is no such device.
        SoundnessError: two methods contradict each other.
        InternalError: a fault of this package; its `outcome` holds what was known by then.
        MemoryError: there was not even enough memory to begin.
    """
    with started(query, configuration, strategy, on_progress, deadline) as (context, state):
        run(context, state, STAGES)
        return outcome(context, state)


def verify_clip(
    model: nn.Module | str | Path,
    clip: Tensor | np.ndarray,
    set: str,
    epsilon: float | str,
    label: int | str | None = None,
    top: int = 1,
    tolerance: float | None = None,
    domain: tuple[float, float] | None = None,
    configuration: Configuration | None = None,
    on_progress: OnProgress | None = None,
    layout: str | None = None,
) -> Outcome:
    """Decides whether a classification or a regression is robust for every clip of a set around one clip.

    This is `verify` for the usual properties. The time for loading the model counts towards the time limit.

    Args:
        model: a torch module, or the path of an ONNX file.
        clip: the clip in the shape that the model takes, or (C, T, H, W) for a model in a file; the values must lie in
            the data domain and be representable in float32. uint8 is divided by 255 if no domain is given.
        set: the set in words, as in `SetSpecification`.
        epsilon: the radius in the unit of the data, a number or text such as "4/255".
        label: the class that must be kept; by default the clean prediction.
        top: the class must stay among the first `top` classes.
        tolerance: for regression instead of a class: every output stays within +-tolerance of the clean output.
        domain: the smallest and the largest value of the data; [0, 1] by default.
        configuration, on_progress: as in `verify`.
        layout: the axes of the model's input without the batch axis, such as "THWC"; needed if they are ambiguous.

    Raises:
        InputError: an argument cannot be used as it is.
        UnsupportedLayerError, SoundnessError, InternalError: as in `load_model` and `verify`.
    """
    configuration = configuration or Configuration()
    deadline = Deadline.after(configuration.timeout)
    values = given.clip_values(clip, domain is not None)
    bounds = (0.0, 1.0) if domain is None else given.interval(domain)
    asked = SetSpecification(given.words(set), given.radius(epsilon), bounds)
    first = given.whole("top", top, "a number of classes")
    label = None if label is None else given.whole("label", label, "the number of a class")
    tolerance = None if tolerance is None else given.number("tolerance", tolerance)
    loaded = load_model_for(values, given.source(model), layout)
    values = as_clip(values, loaded.axes)
    if tuple(values.shape) != loaded.axes.clip:
        raise InputError(
            f"the clip has shape {tuple(values.shape)}, but the model {loaded.name} takes {loaded.axes.shape}; give a "
            "clip of that shape"
        )
    return verify(
        Query(loaded, values, asked, property_of(loaded.predict, values, label, first, tolerance)),
        configuration,
        on_progress,
        deadline,
    )
