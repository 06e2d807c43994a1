"""Attacks: a quick attack at easy corners before the first bounds, and a thorough one after them.

The quick attack saves the cost of bounds if the property is easily broken. The thorough one comes late, because first
bounds prove most properties that hold, and attacking those is futile.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from stbp_milp.attack import AttackConfiguration, attack
from stbp_milp.stages.context import Context, State

_PER_VALUE = 32  # bytes: a float32 value, its gradient, and temporary results


def quick_attack(context: Context, state: State) -> None:
    _attack(context, state, context.strategy.quick_attack, context.strategy.quick_share)


def thorough_attack(context: Context, state: State) -> None:
    _attack(context, state, context.strategy.thorough_attack, context.strategy.thorough_share)


def _attack(context: Context, state: State, configuration: AttackConfiguration | None, share: float) -> None:
    """Attacks for at most `share` of the whole time; a trial that has begun may continue until `trial_share` of it."""
    if configuration is None:
        return
    affordable = context.memory // _PER_VALUE
    configuration = replace(configuration, batch_values=min(configuration.batch_values, affordable))
    state.tell(context, "attack", 1)
    with state.ledger.timed("attack"):
        seconds, network = context.configuration.timeout, context.query.model.network
        generator = torch.Generator().manual_seed(context.configuration.seed)
        limit = context.deadline.within(share * seconds)
        end = context.deadline.within(context.strategy.trial_share * seconds).expired
        result = attack(
            network, context.set, context.query.property, generator, limit.expired, configuration, interrupted=end
        )
        state.ledger.counts["attack trials"] += result.trials
        state.judge(result.clip.unsqueeze(0).to(torch.float64), "attack")
