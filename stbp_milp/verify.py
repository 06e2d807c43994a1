"""The entry points: they take a query and return a verdict with its evidence.

The stages go from cheap to exact. A counterexample found by any stage ends the run, and clauses of the property that
are proved are not examined again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from stbp_milp.query import Configuration, Query
from stbp_milp.question import PREDICTION, USUAL_FORMAT, Classification, DataFormat, Regression, query_about
from stbp_milp.search import Deadline
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
    property: Classification | Regression = PREDICTION,
    data: DataFormat = USUAL_FORMAT,
    configuration: Configuration | None = None,
) -> Outcome:
    """Decides whether a classification or a regression is robust for every clip of a set around one clip.

    This is `verify` of the query that `query_about` makes. The time for loading the model counts towards the time
    limit. Call the two yourself to follow the progress of a run.

    Args:
        model, clip, set, epsilon, property, data: as in `query_about`.
        configuration: as in `verify`; None: the default one.

    Raises:
        InputError: an argument cannot be used as it is.
        UnsupportedLayerError, SoundnessError, InternalError: as in `load_model` and `verify`.
    """
    configuration = configuration or Configuration()
    deadline = Deadline.after(configuration.timeout)
    return verify(query_about(model, clip, set, epsilon, property, data), configuration, deadline=deadline)
