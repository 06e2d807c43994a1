"""Consistency checks of proved bounds with observed margins, after every stage and once more at the end."""

from __future__ import annotations

import torch

from stbp_milp.bounds.precise import precise_values
from stbp_milp.errors import SoundnessError, contradict
from stbp_milp.network.reading import is_large
from stbp_milp.stages.context import Context, State


def compare(context: Context, state: State) -> None:
    """Checks that the proved bound is at most the smallest margin observed with our network and with the original.

    Raises:
        SoundnessError: the proved bound exceeds an observed margin.
    """
    query, judge, lower = context.query, state.judge, state.ledger.lower
    seen, clip = judge.least_asked, judge.least_clip
    if lower > seen and clip is not None:
        # The observed margin has rounding errors of its own, so it is computed once more, in several words.
        precise = precise_values(query.model.network, clip.unsqueeze(0).to(context.set.clip))
        if precise is None:
            wrong = contradict(lower, seen)
        else:
            outputs, errors = precise[0][-1], precise[1][-1]
            rounding = float((errors @ query.property.rows.abs().T).max())
            wrong = lower > float(query.property.margin(outputs)) + rounding
        if wrong:
            raise _contradiction(lower, seen)
    # At a counterexample our network's margin has passed the check above. If the original model agrees with our network
    # up to rounding (in float64, if it can run in float64), only the rounding of its float32 can explain a difference.
    found = judge.counterexample
    if (
        found is not None
        and lower > found.margin
        and query.model.compared(found.clip.numpy()[None]).disagreement is not None
    ):
        raise _contradiction(lower, found.margin)


def reading(context: Context, state: State, *, proved: bool) -> float:
    """Measures how far the network and the original model are apart on this query's own clips.

    Raises:
        SoundnessError: they are so far apart that a proof about one says nothing about the other.
    """
    judge, model = state.judge, context.query.model
    if not judge.nearest or (not proved and (state.short_of_memory or context.deadline.expired())):
        return 0.0
    tried = [clip for _, clip in sorted(judge.nearest.values(), key=lambda found: found[0])]
    clips = torch.stack(tried[:1] if is_large(model.network) else tried).to(torch.float32).numpy()
    found = model.compared(clips)
    if proved and (wrong := found.disagreement):
        raise SoundnessError(
            f"the network read from {model.source} gives {wrong.read:.6g} as output {wrong.output} on a clip of the "
            f"set, the original {wrong.expected:.6g} (rounding explains {wrong.allowed:.3g}); it uses an operator in a "
            "way that is read wrongly, please report it"
        )
    return found.largest


def _contradiction(lower: float, seen: float) -> SoundnessError:
    return SoundnessError(
        f"the proved lower bound {lower:g} of the margin exceeds the margin {seen:g} of a clip in the set; please "
        "report this query"
    )
