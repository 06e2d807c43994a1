"""The outcome of a run, made from what is known at its end."""

from __future__ import annotations

from stbp_milp.inputs import size_in_words
from stbp_milp.ledger import STAGES
from stbp_milp.memory import resident
from stbp_milp.search import SearchEnd
from stbp_milp.stages.checks import compare, reading
from stbp_milp.stages.context import Context, State
from stbp_milp.verdict import Falsified, Outcome, Reason, Unknown, Verdict, Verified

# Why programs left pieces open, the most informative reason first.
_OPEN = {
    Reason.ROUNDING: "the network's values cancel so much that rounding hides the sign of the remaining subproblems",
    Reason.SOLVER_TIME: "the solver ran out of time on a subproblem before it was settled",
    Reason.TOLERANCE: "the margin is too close to 0 for the tolerances of bounds and solvers",
}


def outcome(context: Context, state: State) -> Outcome:
    """Returns the outcome of a run that has ended.

    Raises:
        SoundnessError: a proved bound contradicts an observed margin.
    """
    if (found := state.judge.counterexample) is not None:
        return _outcome(context, state, Falsified(found), found.stage)
    if state.end is SearchEnd.CLOSED:
        decided = max(state.ledger.closed, key=STAGES.index)
        return _outcome(context, state, Verified(state.ledger.certificate()), decided)
    return _outcome(context, state, _unknown(context, state), None)


def interrupted(context: Context, state: State, reason: str) -> Outcome:
    """Returns the outcome when a fault ends the run: a counterexample stays valid, whatever came after it."""
    if (found := state.judge.counterexample) is not None:
        return _outcome(context, state, Falsified(found), found.stage)
    return _outcome(context, state, Unknown(Reason.INTERNAL, f"internal error: {reason}"), None)


def _unknown(context: Context, state: State) -> Unknown:
    seconds = context.configuration.timeout
    if state.short_of_memory and not context.deadline.expired():
        return Unknown(Reason.MEMORY, f"out of memory: {_room(context)}, but open subproblems need more")
    if state.end is SearchEnd.EXPIRED or context.deadline.expired():
        return Unknown(Reason.TIME, f"out of time after {seconds:g} s")
    if state.refusal is not None:
        return Unknown(Reason.SOLVER_REFUSED, f"no solver accepted the remaining subproblems: {state.refusal}")
    for kind, sentence in _OPEN.items():
        if state.open_for[kind]:
            return Unknown(kind, sentence)
    return Unknown(Reason.NO_SOLVER, "every undecided ReLU was split, and no solver was available for what is left")


def _room(context: Context) -> str:
    limit, room = context.configuration.memory_bytes, size_in_words(context.memory)
    if limit is None:
        return f"{room} was free"
    if not context.memory:
        return f"the process with its model holds {size_in_words(resident())}, but the limit is {size_in_words(limit)}"
    return f"the limit of {size_in_words(limit)} leaves {room} for the search"


def _outcome(context: Context, state: State, verdict: Verdict, decided_by: str | None) -> Outcome:
    compare(context, state)
    largest = reading(context, state, proved=isinstance(verdict, Verified))
    return Outcome(
        verdict,
        min(state.ledger.lower, state.judge.least),
        state.judge.least,
        context.clean_outputs,
        decided_by,
        context.deadline.elapsed(),
        dict(state.ledger.seconds),
        dict(state.ledger.counts),
        largest,
    )
