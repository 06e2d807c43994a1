"""The shipped demonstration: three small networks, their test clips and twelve questions about them.

`instances.json` lists the questions and the verdict each should get; `scripts/make_demonstration.py` makes the
networks and clips again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stbp_milp.network.model import Model, load_model
from stbp_milp.properties import Property, top_k, within_tolerance
from stbp_milp.query import Query
from stbp_milp.sets import SetSpecification

FOLDER = Path(str(files(__name__)))

Word = Literal["verified", "falsified", "unknown"]


@dataclass(frozen=True, eq=False)
class Instance:
    """One question of the demonstration.

    Attributes:
        model: file name of the network in FOLDER.
        clip: index of the clip in the network's clips.
        timeout: seconds.
        expected: the verdict; "unknown" where the limit is meant to be too short.
    """

    name: str
    model: str
    clip: int
    query: Query
    timeout: float
    expected: Word


def instances() -> tuple[Instance, ...]:
    """All instances, in the order they are shown."""
    models: dict[str, Model] = {}
    loaded: list[Instance] = []
    for entry in json.loads((FOLDER / "instances.json").read_text()):
        name = entry["model"]
        if name not in models:
            models[name] = load_model(FOLDER / name)
        query = _query(models[name], entry)
        loaded.append(Instance(entry["name"], name, entry["clip"], query, float(entry["timeout"]), entry["expected"]))
    return tuple(loaded)


def clips(model: str) -> tuple[Tensor, Tensor]:
    """The test clips of a network: `(N, C, T, H, W)` float32, and labels `(N,)` or angles `(N, 1)` in degrees."""
    content = np.load(FOLDER / f"{Path(model).stem}_clips.npz", allow_pickle=False)
    return torch.from_numpy(content["clips"]), torch.from_numpy(content["labels"])


def _query(model: Model, entry: dict[str, Any]) -> Query:
    tests, labels = clips(entry["model"])
    clip = tests[entry["clip"]]
    specification = SetSpecification(entry["set"], float(entry["epsilon"]))
    property: Property
    if "tolerance" in entry:
        reference = torch.from_numpy(model.predict(clip.unsqueeze(0).numpy()))[0]
        property = within_tolerance(reference, float(entry["tolerance"]))
    else:
        classes = model.network.output_shape[0]
        property = top_k(int(labels[entry["clip"]]), entry.get("top_k", 1), classes)
    return Query(model, clip.to(torch.float64), specification, property)
