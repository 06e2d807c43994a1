"""A run on another device comes out as on the CPU, bound for bound.

No card is needed: `fake_device` stands for one, and complains about every tensor left behind on the CPU. Where there is
a card, the same runs are made on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import enumeration
import pytest
import torch
from fake_device import FAKE, DeviceMismatchError, fake_device
from torch import nn

import stbp_milp.bounds.fold
import stbp_milp.plan
import stbp_milp.verify
from stbp_milp.devices import exact_products, named_device
from stbp_milp.errors import InputError
from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class, top_k, within_tolerance
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import BoxSpecification, SetSpecification
from stbp_milp.verdict import Falsified, Outcome, Verified
from stbp_milp.verify import verify

SETTLED = Configuration(timeout=60.0, threads=1)
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card on this machine")


# --- the runs ---------------------------------------------------------------------------------------------


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 3, (3, 2, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(16, 3)
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=2, dilation=2)
        self.last = nn.Linear(2 * 4 * 4 * 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(x) + x).flatten(1))  # type: ignore[no-any-return]


def query(kind: type[nn.Module] | object, text: str, epsilon: float, seed: int = 0, wanted: str = "class") -> Query:
    torch.manual_seed(seed)
    module = kind().eval()  # type: ignore[operator]
    clip = enumeration.random_clip(seed, 1, (4, 4, 3))
    model = load_model(module, clip.shape)
    outputs = model.network(clip.unsqueeze(0))[0]
    label = int(outputs.argmax())
    properties = {"class": same_class(label, 3), "top 2": top_k(label, 2, 3), "near": within_tolerance(outputs, 0.2)}
    return Query(model, clip, SetSpecification(text, epsilon), properties[wanted])
