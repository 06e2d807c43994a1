"""Attacks: a search for clips of the set with as small a margin as possible.

The search is a generator of *trials*, batches of clips of the set with their margins; `attack` takes trials until one
breaks the property, time runs out, or nothing is left to try. It has three stages:

1. *screen*: if the set has few members, try the corner of every member that is best to first order;
2. *explore*: jump from corner to corner of the set, choosing the cover anew from the current gradient each time
   (Frank-Wolfe with full steps), with random preferences for some positions so that restarts differ;
3. *refine*: take signed-gradient steps of decreasing width inside one cover.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stbp_milp.attack.candidates import representable
from stbp_milp.attack.objective import Objective, Room, single_members
from stbp_milp.bounds.interrupt import interruptible
from stbp_milp.errors import OutOfTimeError
from stbp_milp.network.graph import Network
from stbp_milp.properties import Property
from stbp_milp.sets import PerturbationSet


@dataclass(frozen=True)
class AttackConfiguration:
    """How much effort an attack spends.

    Attributes:
        restarts: starting points per target.
        targets: number of clauses to minimise one by one, those nearest to breaking first.
        explore_steps: covers chosen per starting point.
        refine_steps: signed-gradient steps per starting point.
        members: sets with more members than this are not screened.
        screen_values: intermediate numbers of the network that screening may compute; the members with the largest
            first-order gain are tried first.
        batch_values: intermediate numbers of the network held at once.
        stop_below: a margin that ends the attack.
    """

    restarts: int = 20
    targets: int = 6
    explore_steps: int = 6
    refine_steps: int = 30
    members: int = 20_000
    screen_values: int = 1 << 28
    batch_values: int = 1 << 25
    stop_below: float = 0.0


THOROUGH = AttackConfiguration()
QUICK = AttackConfiguration(restarts=2, refine_steps=10, screen_values=1 << 24)
"""Tries only the easy corners."""


@dataclass(frozen=True, eq=False)
class AttackResult:
    """The best clip found.

    Attributes:
        clip: (C, T, H, W) float32, exactly in the set.
        margin: the network's margin on it in float64; at most 0 if it breaks the property.
        trials: number of clips tried.
    """

    clip: Tensor
    margin: float
    trials: int


Trial = tuple[Tensor, Tensor]  # clips of the set (B, C, T, H, W), their margins (B,)
Expired = Callable[[], bool]


def never() -> bool:
    """Returns False: for runs without a deadline."""
    return False


def attack(
    network: Network,
    perturbation: PerturbationSet,
    property: Property,
    generator: torch.Generator,
    expired: Expired = never,
    configuration: AttackConfiguration = THOROUGH,
    interrupted: Expired | None = None,
) -> AttackResult:
    """Tries to break the property inside part 0 of the set (float64); ends at the first clip that does.

    If time or memory runs out, the best clip found so far is returned.

    Args:
        expired: called before every trial.
        interrupted: interrupts a trial (`interruptible`); None: trials are always completed.
    """
    objective = Objective.of(network, property, torch.float32, configuration.batch_values)
    best = _Best.of(network, property, perturbation)
    trials = _trials(objective, Room.of(perturbation), generator, configuration)
    with suppress(OutOfTimeError, MemoryError), nullcontext() if interrupted is None else interruptible(interrupted):
        while best.result.margin > configuration.stop_below and not expired():
            trial = next(trials, None)
            if trial is None:
                break
            best = best.after(*trial)
    return best.result


@dataclass(frozen=True, eq=False)
class _Best:
    """The best result so far, and the query in float64 for judging others."""

    result: AttackResult
    seen: float  # smallest margin observed in float32
    objective: Objective
    perturbation: PerturbationSet

    @classmethod
    def of(cls, network: Network, property: Property, perturbation: PerturbationSet) -> _Best:
        """Starts with the clean clip."""
        objective = Objective.of(network, property, torch.float64, 1)
        clean = representable(perturbation, perturbation.centre)
        margin = float(objective.values(clean.to(torch.float64)).amin())
        return cls(AttackResult(clean[0], margin, 1), margin, objective, perturbation)

    def after(self, clips: Tensor, margins: Tensor) -> _Best:
        value, at = margins.min(0)
        result, seen = self.result, min(self.seen, float(value))
        clip, margin = result.clip, result.margin
        if seen < self.seen:
            candidate = representable(self.perturbation, clips[at].unsqueeze(0))
            exact = float(self.objective.values(candidate.to(torch.float64)).amin())
            if exact < margin:
                clip, margin = candidate[0], exact
        return _Best(AttackResult(clip, margin, result.trials + len(clips)), seen, self.objective, self.perturbation)


def _nearest_targets(objective: Objective, room: Room, count: int) -> tuple[Tensor, Tensor]:
    """Returns the clauses nearest to breaking at the clean clip, `(targets,)`, and slopes `(targets, C, T, H, W)`."""
    values = objective.values(room.clip.unsqueeze(0)).squeeze(0)
    targets = values.argsort()[:count]
    parts = [
        objective.slopes(room.clip.expand(len(t), -1, -1, -1, -1), t)[1] for t in torch.split(targets, objective.rows)
    ]
    return targets, torch.cat(parts)


def _trials(
    objective: Objective, room: Room, generator: torch.Generator, configuration: AttackConfiguration
) -> Generator[Trial]:
    targets, slopes = _nearest_targets(objective, room, configuration.targets)
    corners = room.vertex(slopes, room.cover(room.gain(slopes)))
    yield corners, objective.values(corners).amin(1)

    screened = yield from _screen(objective, room, targets, slopes, configuration)
    if screened:
        clips, covers, aims = screened
        for chunk in torch.split(torch.arange(len(clips), device=clips.device), objective.rows):
            yield from _refine(objective, room, clips[chunk], covers[chunk], aims[chunk], configuration.refine_steps)

    aims = targets.repeat(configuration.restarts)
    first = torch.arange(aims.numel(), device=aims.device) < targets.numel()
    for chunk in torch.split(torch.arange(aims.numel(), device=aims.device), objective.rows):
        explored = yield from _explore(objective, room, aims[chunk], first[chunk], generator, configuration)
        yield from _refine(objective, room, *explored, aims[chunk], configuration.refine_steps)


def _screen(
    objective: Objective, room: Room, targets: Tensor, slopes: Tensor, configuration: AttackConfiguration
) -> Generator[Trial, None, tuple[Tensor, Tensor, Tensor] | None]:
    """Tries members one by one; returns the best clips, their covers and targets.

    Returns None if there is nothing to choose from, or too much.
    """
    limit = min(configuration.members, _COVER_VOXELS // room.clip[0].numel())
    members = single_members(room.choice, limit)
    if sum(batch.parts for batch in members) <= 1:
        return None
    gain = room.gain(slopes).flatten(1)  # (targets, voxels)
    covers = [batch.union() for batch in members]
    cover = torch.cat(covers)  # (members, T, H, W)
    scores = torch.cat(
        [part.flatten(1).to(gain.dtype) @ gain.T for part in torch.split(cover, _SCORED)]
    )  # (members, targets)
    pairs = scores.flatten().argsort(descending=True)[: objective.affordable(configuration.screen_values)]
    values: list[Tensor] = []
    for chunk in torch.split(pairs, objective.rows):
        member, target = chunk // targets.numel(), chunk % targets.numel()
        clips = room.vertex(slopes[target], cover[member].unsqueeze(1))
        clauses = objective.values(clips)
        yield clips, clauses.amin(1)
        values.append(_aimed(clauses, targets[target]))
    best = pairs[torch.cat(values).argsort()[:_NARROWED]]
    member, target = best // targets.numel(), best % targets.numel()
    chosen, aims = cover[member].unsqueeze(1), targets[target]
    clips = room.vertex(slopes[target], chosen)
    kept: list[Tensor] = []
    for chunk in torch.split(torch.arange(len(clips), device=clips.device), objective.rows):
        moved, reached = yield from _jump(objective, room, clips[chunk], chosen[chunk], aims[chunk])
        clips[chunk] = moved
        kept.append(reached)
    order = torch.cat(kept).argsort()[: configuration.restarts * targets.numel()]
    return clips[order], chosen[order], aims[order]


def _jump(
    objective: Objective, room: Room, clips: Tensor, covers: Tensor, targets: Tensor
) -> Generator[Trial, None, tuple[Tensor, Tensor]]:
    """Takes a few full steps between corners of every row's cover; returns the best clips and their target values.

    A single first-order corner ranks members poorly if the box is wide.
    """
    best, best_value = clips, clips.new_full((len(clips),), torch.inf)
    for _ in range(_JUMPS):
        values, slope = objective.slopes(clips, targets)
        yield clips, values.amin(1)
        best, best_value = _better(best, best_value, clips, _aimed(values, targets))
        clips = room.vertex(slope, covers)
    return best, best_value


def _aimed(values: Tensor, targets: Tensor) -> Tensor:
    """Selects every row's own clause, `(B, clauses), (B,) -> (B,)`."""
    return values.gather(1, targets.unsqueeze(1)).squeeze(1)


def _better(best: Tensor, best_value: Tensor, other: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Selects, per row, the one with the smaller value."""
    wins = (value < best_value).view(-1, *[1] * (best.dim() - 1))
    return torch.where(wins, other, best), torch.minimum(best_value, value)


_NARROWED = 256  # screened members that are tried again
_JUMPS = 3
_COVER_VOXELS = 1 << 27  # covers of all members are held as booleans
_SCORED = 1024


def _explore(
    objective: Objective,
    room: Room,
    targets: Tensor,
    first: Tensor,
    generator: torch.Generator,
    configuration: AttackConfiguration,
) -> Generator[Trial, None, tuple[Tensor, Tensor]]:
    """Jumps between corners of the set; returns every row's best clip and its cover.

    Rows that are `first` for their target start at the clean clip and have no preference for positions. The others
    start at a random point of the box, which need not be in the set, because only its gradient is used.
    """
    count = targets.numel()
    # Random numbers are drawn on the CPU, so that runs are the same on every device.
    place = torch.rand((count, *room.clip.shape), generator=generator).to(room.clip.device)
    everywhere = room.lower + place * (room.upper - room.lower)
    preference = _preference(count, room.clip.shape[1:], generator).to(room.clip.device)
    still = first.view(-1, 1, 1, 1)
    clips = torch.where(still.unsqueeze(1), room.clip, everywhere)
    preference = torch.where(still, torch.ones_like(preference), preference)
    _, slope = objective.slopes(clips, targets)
    best, best_value = clips, clips.new_full((count,), torch.inf)
    best_cover = torch.zeros(count, 1, *room.clip.shape[1:], dtype=torch.bool, device=clips.device)
    for step in range(configuration.explore_steps):
        weight = preference ** (1 - step / configuration.explore_steps)
        cover = room.cover(room.gain(slope) * weight)
        clips = room.vertex(slope, cover)
        values, slope = objective.slopes(clips, targets)
        yield clips, values.amin(1)
        value = _aimed(values, targets)
        best_cover, _ = _better(best_cover, best_value, cover, value)
        best, best_value = _better(best, best_value, clips, value)
    return best, best_cover


def _preference(count: int, voxels: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws random positive weights `(count, T, H, W)`: factors per frame, coarse ones per region, fine ones per voxel.

    Noise per voxel alone would average out over a patch or a frame, and every restart would choose the same position.
    """
    coarse = tuple(min(n, 4) for n in voxels)
    region = torch.rand((count, 1, *coarse), generator=generator)
    region = F.interpolate(region, size=voxels, mode="trilinear", align_corners=False).squeeze(1)
    frame = torch.rand((count, voxels[0], 1, 1), generator=generator)
    voxel = torch.rand((count, *voxels), generator=generator)
    return frame * region * (0.5 + 0.5 * voxel) + 1e-6


_WIDTHS = (1.0, 0.4, 0.15, 0.06, 0.025, 0.01)
_MOMENTUM = 0.7


def _refine(
    objective: Objective, room: Room, clips: Tensor, covers: Tensor, targets: Tensor, steps: int
) -> Generator[Trial]:
    """Takes signed-gradient steps with momentum; each narrower width starts from the row's best clip so far."""
    best, best_value = clips, clips.new_full((len(clips),), torch.inf)
    best_slope = torch.zeros_like(clips)
    for width in _WIDTHS:
        direction = torch.zeros_like(clips)
        for step in range(max(1, steps // len(_WIDTHS))):
            values, slope = objective.slopes(clips, targets)
            yield clips, values.amin(1)
            value = _aimed(values, targets)
            best_slope, _ = _better(best_slope, best_value, slope, value)
            best, best_value = _better(best, best_value, clips, value)
            if step == 0:
                clips, slope = best, best_slope
            size = slope.abs().flatten(1).sum(1).clamp(min=torch.finfo(slope.dtype).tiny).view(-1, 1, 1, 1, 1)
            direction = _MOMENTUM * direction + slope / size
            clips = room.step(clips, direction, covers, width)
    yield clips, objective.values(clips).amin(1)
