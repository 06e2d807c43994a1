"""Training of ST-Bench's networks, in three ways, against the sets on which they are later verified.

- `standard`: the clean loss. Such a network is fooled by a handful of pixels, and little can be proved about it.
- `pgd`: every batch meets an adversary that chooses a cover of some set (partly at random, so that it is not the same
  place every time) and climbs the loss inside it; its budget grows during the first part of the training.
  This makes networks robust, not easy to prove so: their relaxations are loose long before attacks succeed. The S
  network of activity, which the benchmarks use, is therefore also trained for sparse weights and stable ReLUs, as
  models that somebody must sign off would be; no bound of this project takes part in that.
- `st-ibp`: the loss of the worst case that the closed-form first layer and intervals above it allow, mixed with the
  clean one (see `certified`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stbp_milp.errors import InputError
from stbp_milp.sets import Choice, parse_set
from stbp_milp.st_bench.adversary import Adversary, climb
from stbp_milp.st_bench.certified import worst_outputs
from stbp_milp.st_bench.checkpoints import Checkpoint
from stbp_milp.st_bench.families import Loss, family_named
from stbp_milp.st_bench.regularisers import absolute_weights, instability

Way = Literal["standard", "pgd", "st-ibp"]
WAYS: tuple[Way, ...] = get_args(Way)

Maker = Callable[[int, int], tuple[Tensor, Tensor]]
Advance = Callable[[int, int, float], None]

SECONDS_BETWEEN_CHECKPOINTS = 30.0

_STABLE_WITHIN = 0.02  # radius that the stability term asks ReLUs to be stable in
_SEED_ZERO = 999_983  # stands for seed 0, whose training batches would be those of small test seeds


@dataclass(frozen=True)
class Recipe:
    """A network and its training.

    Attributes:
        maker: draws `(clips, targets)` from `(count, seed)`.
        network: builds the untrained network.
        adversaries: sets in words, each with the largest radius of the training.
        steps: batches of fresh clips.
        clips: how many test clips are shipped.
        sparsity: weight of the sum of absolute weights in the loss.
        stability: weight of `-tanh(1 + l u)`, averaged over ReLUs with operands in [l, u] (Xiao et al. 2019, eq. 5).
        reach: of `st-ibp`, the share of the radii that its bounds are trained with: with all of it the networks lose
            too much on clean clips.
    """

    name: str
    maker: Maker
    network: Callable[[], nn.Module]
    loss: Loss
    adversaries: tuple[tuple[str, float], ...]
    steps: int
    clips: int
    seed: int
    rate: float = 4e-3
    batch: int = 128
    sparsity: float = 0.0
    stability: float = 0.0
    way: Way = "pgd"
    reach: float = 1.0


_STEPS: dict[tuple[str, str, Way], int] = {
    ("activity", "S", "standard"): 400,
    ("activity", "S", "pgd"): 1000,
    ("activity", "S", "st-ibp"): 1000,
    ("driving", "S", "standard"): 400,
    ("driving", "S", "pgd"): 600,
    ("driving", "S", "st-ibp"): 1000,
    ("medical", "S", "standard"): 400,
    ("medical", "S", "pgd"): 700,
    ("medical", "S", "st-ibp"): 1000,
    ("activity", "M", "standard"): 400,
    ("activity", "M", "pgd"): 500,
    ("activity", "M", "st-ibp"): 600,
    ("driving", "M", "standard"): 300,
    ("driving", "M", "pgd"): 400,
    ("driving", "M", "st-ibp"): 600,
    ("medical", "M", "standard"): 300,
    ("medical", "M", "pgd"): 400,
    ("medical", "M", "st-ibp"): 600,
}
_LARGE_STEPS = 20  # L networks are there for scale
_REACH = {"activity": 0.6, "driving": 1.0, "medical": 0.25}
# Intervals of all places of a pixel or patch together are so loose that driving and medical networks learn nothing.
_CERTIFIED = {
    "activity": {"window:2", "any-frames:2", "patch:3x3@2", "everywhere"},
    "driving": {"frames:3", "everywhere"},
    "medical": {"window:2", "everywhere"},
}
_BATCH = {"S": 128, "M": 48}
_LARGE_BATCH = 4


def recipe(family: str, size: str, way: str, seed: int, steps: int | None = None) -> Recipe:
    """Returns how the network with this family, size and way is trained.

    Args:
        steps: training steps, instead of the usual number.

    Raises:
        InputError: there is no such family, size or way.
    """
    if way not in WAYS:
        raise InputError(f"there is no way of training {way!r}; expected one of: {', '.join(WAYS)}")
    kind = family_named(family)
    made = Recipe(
        f"{family}-{size}-{way}-{seed}",
        partial(kind.draw, size=size),
        kind.size(size).network,
        kind.loss,
        kind.sets,
        _STEPS.get((family, size, way), _LARGE_STEPS) if steps is None else steps,
        clips=10,
        seed=seed,
        batch=_BATCH.get(size, _LARGE_BATCH),
        way=way,
    )
    if way == "st-ibp":
        adversaries = tuple((text, radius) for text, radius in kind.sets if text in _CERTIFIED[family])
        made = replace(made, adversaries=adversaries, reach=_REACH[family])
    if (family, size, way) == ("activity", "S", "pgd"):
        made = replace(made, clips=20, sparsity=1e-3, stability=0.1)
    return made


RECIPES = (  # of the networks that are shipped
    replace(recipe("activity", "S", "pgd", 1), name="video"),
    replace(recipe("medical", "S", "pgd", 2), name="volume"),
    replace(recipe("driving", "S", "pgd", 3), name="steering"),
)


def trained(
    recipe: Recipe,
    folder: Path,
    advance: Advance | None = None,
    *,
    save_every: float = SECONDS_BETWEEN_CHECKPOINTS,
) -> nn.Module:
    """Returns the trained network in evaluation mode; it is loaded from `folder`, or its training is resumed there.

    Args:
        folder: the folder of `{recipe.name}.pt`, which is written during the training and at its end.
        advance: called with step (from 1), steps and loss after every step.
        save_every: seconds between two checkpoints.

    Raises:
        InputError: the file is of another training.
    """
    identity = (
        f"{recipe.name}, {recipe.steps} steps of {recipe.batch} clips, rate {recipe.rate:g}, against "
        + ", ".join(f"{text} {recipe.reach * radius:g}" for text, radius in recipe.adversaries)
    )
    checkpoint = Checkpoint(folder / f"{recipe.name}.pt", identity, save_every)
    return _train(recipe, advance or (lambda step, steps, loss: None), checkpoint)


def train(recipe: Recipe, advance: Callable[[float], None]) -> nn.Module:
    """Returns the trained network in evaluation mode; `advance` is called with the loss after every step."""
    return _train(recipe, lambda step, steps, loss: advance(loss), None)


class _State:
    """A network, what trains it, and how far it is."""

    def __init__(self, recipe: Recipe) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = recipe.network()
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=recipe.rate, weight_decay=1e-3)
        # A tenth of a few steps may be 0, which the schedule does not accept.
        start = 0.1 if recipe.steps > 10 else 0.3
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, recipe.rate, total_steps=recipe.steps, pct_start=start
        )
        self.step = 0

    def content(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
        }

    def restore(self, content: dict[str, Any]) -> None:
        self.network.load_state_dict(content["network"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.schedule.load_state_dict(content["schedule"])
        self.generator.set_state(content["generator"])
        self.step = content["step"]


def _train(recipe: Recipe, advance: Advance, checkpoint: Checkpoint | None) -> nn.Module:
    state = _State(recipe)
    kept = checkpoint.load() if checkpoint else None
    if kept is not None:
        state.restore(kept)
    network = state.network
    voxels = recipe.maker(1, 0)[0].shape[2:]
    adversaries = [(parse_set(text, (voxels[0], voxels[1], voxels[2])), radius) for text, radius in recipe.adversaries]
    for step in range(state.step, recipe.steps):
        clips, targets = recipe.maker(recipe.batch, 1_000_003 * (recipe.seed or _SEED_ZERO) + step)
        choice, radius = adversaries[step % len(adversaries)]
        value = _LOSSES[recipe.way](recipe, state, clips, targets, choice, radius)
        state.optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        state.optimiser.step()
        state.schedule.step()
        state.step = step + 1
        if checkpoint and (state.step == recipe.steps or checkpoint.due()):
            checkpoint.save(state.content())
        advance(state.step, recipe.steps, float(value.detach()))
    return network.eval()


def _set_mode(recipe: Recipe, state: _State) -> None:
    """Freezes batch statistics in the second half of the training, as in the exported network."""
    state.network.train(2 * state.step < recipe.steps)


def _standard_loss(
    recipe: Recipe, state: _State, clips: Tensor, targets: Tensor, choice: Choice, radius: float
) -> Tensor:
    _set_mode(recipe, state)
    return recipe.loss(state.network(clips), targets)


def _attacked_loss(
    recipe: Recipe, state: _State, clips: Tensor, targets: Tensor, choice: Choice, radius: float
) -> Tensor:
    network, step = state.network, state.step
    radius *= min(1.0, max(0.0, step / (0.5 * recipe.steps) - 0.1))
    network.eval()
    attacked = climb(network, recipe.loss, clips, targets, Adversary(choice, radius), state.generator)
    _set_mode(recipe, state)
    on_attacked, on_clean = network(torch.cat([attacked, clips])).chunk(2)
    value = recipe.loss(on_attacked, targets) + 0.5 * recipe.loss(on_clean, targets)
    ramp = min(1.0, 2 * step / recipe.steps)
    if recipe.sparsity:
        value = value + ramp * recipe.sparsity * absolute_weights(network)
    if recipe.stability:
        value = value + ramp * recipe.stability * instability(network, clips, ramp * _STABLE_WITHIN)
    return value


def _certified_loss(
    recipe: Recipe, state: _State, clips: Tensor, targets: Tensor, choice: Choice, radius: float
) -> Tensor:
    """`kappa * clean + (1 - kappa) * worst case`; kappa falls from 1 to 1/2 while the radius grows from 0."""
    ramp = min(1.0, max(0.0, state.step / (0.6 * recipe.steps) - 0.1))
    kappa = 1 - 0.5 * ramp
    _set_mode(recipe, state)
    clean = recipe.loss(state.network(clips), targets)
    worst = worst_outputs(state.network, clips, targets, choice, ramp * recipe.reach * radius)
    return kappa * clean + (1 - kappa) * recipe.loss(worst, targets)


_LOSSES = {"standard": _standard_loss, "pgd": _attacked_loss, "st-ibp": _certified_loss}


def accuracy(network: nn.Module, clips: Tensor, targets: Tensor) -> str:
    """In words: the share of right classes, or the mean error of the angle."""
    with torch.no_grad():
        outputs = network(clips)
    if targets.is_floating_point():
        return f"mean error {float((outputs - targets).abs().mean()):.2f} degrees"
    return f"{float((outputs.argmax(1) == targets).float().mean()):.1%} right"
