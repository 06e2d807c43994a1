"""From what a run knows at its end to the outcome."""

from __future__ import annotations

from stbp_milp.inputs import size_in_words
from stbp_milp.ledger import STAGES
from stbp_milp.memory import resident
from stbp_milp.search import SearchEnd
from stbp_milp.stages.checks import compare, reading
from stbp_milp.stages.context import Context, State
from stbp_milp.verdict import Falsified, Outcome, Reason, Unknown, Verdict, Verified

# Why programs left pieces open, the most telling reason first.
_OPEN = {
    Reason.ROUNDING: "numbers of the network cancel so much that rounding hides the sign of what splits left",
    Reason.SOLVER_TIME: "the solver's time for a part of the problem was over before it was settled",
    Reason.TOLERANCE: "the margin is too close to 0 for the tolerances of bounds and solvers",
}


def outcome(context: Context, state: State) -> Outcome:
    """The outcome of a run that has ended.

    Raises:
        SoundnessError: what was proved contradicts what was seen.
    """
    if (found := state.judge.counterexample) is not None:
        return _outcome(context, state, Falsified(found), found.stage)
    if state.end is SearchEnd.CLOSED:
        decided = max(state.ledger.closed, key=STAGES.index)
        return _outcome(context, state, Verified(state.ledger.certificate()), decided)
    return _outcome(context, state, _unknown(context, state), None)


def interrupted(context: Context, state: State, reason: str) -> Outcome:
    """What is known when a fault ends the run: a counterexample stands, whatever came after it."""
    if (found := state.judge.counterexample) is not None:
        return _outcome(context, state, Falsified(found), found.stage)
    return _outcome(context, state, Unknown(Reason.INTERNAL, f"internal error: {reason}"), None)


def _unknown(context: Context, state: State) -> Unknown:
    seconds = context.configuration.timeout
    if state.short_of_memory and not context.deadline.expired():
        return Unknown(Reason.MEMORY, f"out of memory: {_room(context)}, and open parts of the problem need more")
    if state.end is SearchEnd.EXPIRED or context.deadline.expired():
        return Unknown(Reason.TIME, f"out of time after {seconds:g} s")
    if state.refusal is not None:
        return Unknown(Reason.SOLVER_REFUSED, f"no solver took what splits left: {state.refusal}")
    for kind, sentence in _OPEN.items():
        if state.open_for[kind]:
            return Unknown(kind, sentence)
    return Unknown(Reason.NO_SOLVER, "every undecided ReLU was split and no solver could be asked about what is left")


def _room(context: Context) -> str:
    limit, room = context.configuration.memory_bytes, size_in_words(context.memory)
    if limit is None:
        return f"{room} was free"
    if not context.memory:
        return f"the process with its model holds {size_in_words(resident())}, the limit is {size_in_words(limit)}"
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
