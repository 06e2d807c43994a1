"""Choice of the neurons at which to cut a question: a run that ends with its first bounds."""

from __future__ import annotations

from stbp_milp.branching import hardest_neurons
from stbp_milp.query import Configuration, Neuron, Query
from stbp_milp.stages.first import first_pieces
from stbp_milp.stages.run import run, started
from stbp_milp.stages.union import union_bound
from stbp_milp.strategy import DEFAULT, Strategy


def neurons_to_split(
    query: Query, configuration: Configuration, count: int, strategy: Strategy = DEFAULT
) -> tuple[Neuron, ...]:
    """Returns at most `count` neurons whose phases divide the question best.

    The result is empty if first bounds or their minimisers settle the question.

    Raises:
        InputError, SoundnessError, InternalError, MemoryError: as in `verify`.
    """
    with started(query, configuration, strategy, None, None) as (context, state):
        run(context, state, (union_bound, first_pieces))
        if state.end is not None or state.judge.found or state.bounder is None:
            return ()
        return hardest_neurons(state.bounder, state.pieces, count)
