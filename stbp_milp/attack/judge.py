"""The judge of candidates, which keeps the smallest observed margin and the first confirmed counterexample."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from stbp_milp.attack.candidates import representable
from stbp_milp.attack.objective import clips_at_once
from stbp_milp.errors import SoundnessError
from stbp_milp.query import Query
from stbp_milp.sets import PerturbationSet
from stbp_milp.verdict import Counterexample

_LOG = logging.getLogger(__name__)

_CLEARLY = 1e-6  # a pre-activation beyond this has a definite sign, whatever the tolerances of bounds and solvers
_WITH_ALL_LAYERS = 8  # number of clips whose values of every layer are kept at a time

CLEAN = "clean"  # the stage that judges the clean clip, on which the original model is always run


class Judge:
    """Keeps the smallest observed margin and the first counterexample; the original model decides what counts as one.

    Attributes:
        least: the smallest observed margin of a clip of the set.
        least_asked: the smallest margin of clips that clearly have the query's phases; no bound may exceed it.
        least_clip: the clip of that margin.
        nearest: the smallest margin and its clip per stage.
        counterexample: the first clip on which the original model breaks the property, or None.
    """

    def __init__(self, query: Query, perturbation: PerturbationSet) -> None:
        self._query, self._set = query, perturbation
        self._at_once = clips_at_once(query.model.network)
        self.least = self.least_asked = math.inf
        self.least_clip: Tensor | None = None
        self.nearest: dict[str, tuple[float, Tensor]] = {}
        self.counterexample: Counterexample | None = None

    @property
    def found(self) -> bool:
        return self.counterexample is not None

    def __call__(self, clips: Tensor, stage: str) -> None:
        if self.found or not len(clips):
            return
        candidates = representable(self._set, clips)
        with torch.no_grad():
            margins = torch.cat([self._margins(some) for some in torch.split(candidates, self._at_once)])
        at = int(margins.argmin())
        margin = float(margins[at])
        inside = bool(self._set.contains(candidates[at : at + 1].to(torch.float64))[0])
        if not inside:
            raise SoundnessError(f"a candidate of stage {stage!r} lies outside the perturbation set; report this query")
        self.least = min(self.least, margin)
        if stage not in self.nearest or margin < self.nearest[stage][0]:
            self.nearest[stage] = margin, candidates[at].cpu()
        asked = margins.masked_fill(~self._asked_about(candidates), math.inf)
        if float(asked.min()) < self.least_asked:
            self.least_asked, self.least_clip = float(asked.min()), candidates[int(asked.argmin())]
        if margin <= 0 or stage == CLEAN:
            self._ask_the_original(candidates[at].cpu(), stage)

    def _margins(self, clips: Tensor) -> Tensor:
        return self._query.property.margin(self._query.model.network(clips.to(torch.float64)))

    def _asked_about(self, clips: Tensor) -> Tensor:
        """Tells which of the clips clearly have the query's phases, `(B,)` bool."""
        network, asked = self._query.model.network, torch.ones(len(clips), dtype=torch.bool, device=clips.device)
        if self._query.phases:
            for some in torch.split(torch.arange(len(clips), device=clips.device), _WITH_ALL_LAYERS):
                values = network.values(clips[some].to(torch.float64))
                for relu, neuron, sign in self._query.phases:
                    operand = values[network.nodes[relu].inputs[0]].flatten(1)[:, neuron]
                    asked[some] &= sign * operand > _CLEARLY
        return asked

    def _ask_the_original(self, clip: Tensor, stage: str) -> None:
        outputs = self._query.model.predict(clip.numpy()[None])[0]
        margin = float(self._query.property.margin(torch.from_numpy(outputs).to(torch.float64)[None])[0])
        if margin <= 0:
            self.counterexample = Counterexample(clip, tuple(float(v) for v in outputs), margin, stage)
        else:
            _LOG.info(
                "a candidate of stage %s breaks the property in float64, but its margin in the original model is %g",
                stage,
                margin,
            )
