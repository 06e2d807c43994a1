"""The first stage: does the property hold for the clean clip itself?"""

from __future__ import annotations

from stbp_milp.attack.judge import CLEAN
from stbp_milp.stages.context import Context, State


def clean_clip(context: Context, state: State) -> None:
    with state.ledger.timed(CLEAN):
        state.judge(context.set.centre, CLEAN)
