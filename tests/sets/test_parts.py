"""Parts of a set together are the set, and part i of n is always the same.

By hand: 7 positions of a window of 2 frames in a clip of 8, in 4 parts: at least one position each, 7 together.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stbp_milp.errors import InputError
from stbp_milp.sets import PerturbationSet, SetSpecification, divide
from tests import enumeration
from tests.enumeration import SETS


def draw(text: str, seed: int, voxels: tuple[int, int, int] = (3, 2, 3)) -> PerturbationSet:
    return SetSpecification(text, 0.3).build(enumeration.random_clip(seed, 2, voxels))


def test_windows_by_hand() -> None:
    members = [float(part.choice.members()[0]) for part in divide(draw("window:2", 0, (8, 2, 2)), 4)]
    assert sorted(members) == [1, 2, 2, 2]


@pytest.mark.parametrize("text", SETS)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 7))
def test_parts_have_the_members_of_the_whole(text: str, seed: int, count: int) -> None:
    whole = draw(text, seed)
    parts = divide(whole, count)
    assert len(parts) == min(count, int(whole.choice.members()[0]))
    covers = [part.singletons().choice.union() for part in parts]
    found = sorted(mask.numpy().tobytes() for masks in covers for mask in masks)
    assert found == sorted(mask.numpy().tobytes() for mask in whole.singletons().choice.union())


@pytest.mark.parametrize("text", ["pixels:1", "pixels-per-frame:1", "patch:1x1@1", "window:1"])
def test_parts_of_one_choice_are_of_similar_size(text: str) -> None:
    members = [float(part.choice.members()[0]) for part in divide(draw(text, 0, (8, 4, 4)), 8)]
    assert max(members) <= 2 * min(members)


def test_a_specification_names_a_part() -> None:
    clip = enumeration.random_clip(1, 2, (6, 2, 3))
    whole = SetSpecification("any-frames:2", 0.3).build(clip)
    for index, part in enumerate(divide(whole, 3)):
        named = SetSpecification("any-frames:2", 0.3, part=(index, 3)).build(clip)
        assert torch.equal(named.choice.union(), part.choice.union())
        assert named.choice.describe(0) == part.choice.describe(0)


@pytest.mark.parametrize("part", [(3, 3), (-1, 3), (0, 99)])
def test_a_part_that_does_not_exist_is_refused(part: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="is asked for"):
        SetSpecification("window:2", 0.3, part=part).build(enumeration.random_clip(1, 2, (6, 2, 3)))
