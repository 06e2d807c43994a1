"""Writing VNN-LIB: a set is the union of the boxes written, and a question keeps its answer.

By hand: any 1 of 2 frames of a clip (0.5, 0.25) with radius 0.25 is [0.25, 0.75] x {0.25} or {0.5} x [0, 0.5].
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stbp_milp.errors import InputError
from stbp_milp.interop import UnsafeRegion, read_vnnlib, verify_all, write_vnnlib
from stbp_milp.network.model import load_model
from stbp_milp.properties import Property, same_class, top_k, within_tolerance
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification
from stbp_milp.verify import verify
from tests import enumeration, micro_instances
from tests.enumeration import SETS

VOXELS = (3, 3, 2)


def model_of(shape: tuple[int, ...], outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    size = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 4), nn.ReLU(), nn.Linear(4, outputs))


def query_of(text: str, clip: torch.Tensor, epsilon: float, wanted: Property) -> Query:
    model = load_model(model_of(tuple(clip.shape), wanted.rows.shape[1]), tuple(clip.shape), "CTHW")
    return Query(model, clip, SetSpecification(text, epsilon), wanted)


def in_some_box(region: UnsafeRegion, clips: torch.Tensor) -> list[bool]:
    flat = clips.flatten(1).numpy()
    return [any(bool(((b.lower <= x) & (x <= b.upper)).all()) for b in region.boxes) for x in flat]


def test_by_hand(tmp_path: Path) -> None:
    clip = torch.tensor([0.5, 0.25], dtype=torch.float64).view(1, 2, 1, 1)
    assert write_vnnlib(query_of("any-frames:1", clip, 0.25, same_class(1, 2)), tmp_path / "a.vnnlib") == 2
    boxes = read_vnnlib(tmp_path / "a.vnnlib").boxes
    assert sorted((b.lower.tolist(), b.upper.tolist()) for b in boxes) == [
        ([0.25, 0.25], [0.75, 0.25]),
        ([0.5, 0.0], [0.5, 0.5]),
    ]
    assert boxes[0].property.rows.tolist() == [[-1.0, 1.0]]
    assert (tmp_path / "a.vnnlib").read_text().endswith("(assert (or\n  (and (>= Y_0 Y_1))\n))\n")


@pytest.mark.parametrize("text", SETS)
def test_a_clip_is_in_the_set_exactly_when_it_is_in_a_box(tmp_path: Path, text: str) -> None:
    clip = enumeration.random_clip(3, 2, VOXELS)
    query = query_of(text, clip, 0.1, same_class(0, 3))
    boxes = write_vnnlib(query, tmp_path / "a.vnnlib.gz")
    region = read_vnnlib(tmp_path / "a.vnnlib.gz")
    assert boxes == len(region.boxes) == len(enumeration.covers(text, VOXELS))
    perturbation = query.set.build(clip)
    generator = torch.Generator().manual_seed(1)
    inside = perturbation.sample(60, generator)
    beside = inside.clone()  # one voxel more of each is changed, which most sets do not allow
    beside.view(60, -1)[torch.arange(60), torch.randint(clip.numel(), (60,), generator=generator)] += 0.001
    apart = torch.rand((60, *clip.shape), generator=generator, dtype=torch.float64) * 0.2 + clip - 0.1
    clips = torch.cat([inside, beside, apart])
    assert in_some_box(region, clips) == perturbation.contains(clips).tolist()
    assert all(in_some_box(region, inside))


@pytest.mark.parametrize(
    "wanted",
    [
        same_class(1, 4),
        top_k(2, 2, 4),
        within_tolerance(torch.tensor([0.1, -2.5, 1e-7, 3.0]), 0.3),
        Property(
            torch.tensor([[0.1, -2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 1.0]], dtype=torch.float64),
            torch.tensor([0.3, -1e-9], dtype=torch.float64),
            ((0, 1), (1,)),
            "two rows",
        ),
    ],
    ids=["class", "top-k", "tolerance", "rows"],
)
def test_properties_are_written_exactly(tmp_path: Path, wanted: Property) -> None:
    clip = enumeration.random_clip(0, 1, (2, 2, 2))
    write_vnnlib(query_of("everywhere", clip, 0.1, wanted), tmp_path / "a.vnnlib")
    (box,) = read_vnnlib(tmp_path / "a.vnnlib").boxes
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn((200, 4), generator=generator, dtype=torch.float64)
    assert torch.equal(box.property.margin(outputs), wanted.margin(outputs))


@pytest.mark.parametrize("text", ["window:2", "any-frames:1", "patch:2x1@2", "everywhere"])
@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_the_verdict_is_kept(tmp_path: Path, text: str, epsilon: float) -> None:
    clip = enumeration.random_clip(5, 1, VOXELS)
    query = query_of(text, clip, epsilon, same_class(0, 3))
    clean = int(np.argmax(query.model.predict(clip.float().numpy()[None])[0]))
    query = query_of(text, clip, epsilon, same_class(clean, 3))
    write_vnnlib(query, tmp_path / "a.vnnlib")
    again = read_vnnlib(tmp_path / "a.vnnlib").queries(query.model)
    configuration = Configuration(timeout=20.0)
    outcome = verify_all(again, configuration)
    assert outcome.word == verify(query, configuration).word
    exact = micro_instances.member_minimum(query)
    assert exact is not None
    assert outcome.word == ("verified" if exact.lower > 0 else "falsified")


def test_what_is_written_is_the_same_every_time(tmp_path: Path) -> None:
    query = query_of("window:1", enumeration.random_clip(0, 1, (2, 2, 2)), 0.1, same_class(0, 2))
    for name in ("a.vnnlib.gz", "b.vnnlib.gz", "c.vnnlib"):
        write_vnnlib(query, tmp_path / name)
    assert (tmp_path / "a.vnnlib.gz").read_bytes() == (tmp_path / "b.vnnlib.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.vnnlib.gz").read_bytes()) == (tmp_path / "c.vnnlib").read_bytes()
    with pytest.raises(InputError, match="already there"):
        write_vnnlib(query, tmp_path / "c.vnnlib")


def test_too_many_boxes_are_refused(tmp_path: Path) -> None:
    query = query_of("pixels:4", enumeration.random_clip(0, 1, (4, 4, 4)), 0.1, same_class(0, 2))
    with pytest.raises(InputError, match=r"union of 635376 boxes of 64 inputs"):
        write_vnnlib(query, tmp_path / "a.vnnlib")
    assert not list(tmp_path.iterdir())
