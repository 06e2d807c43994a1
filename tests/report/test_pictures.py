"""Pictures of counterexamples: valid files of the expected size and number of frames, with the cover outlined.

By hand: in the example, `window:2` covers frames 0 and 1; the difference is -0.25 on 72 voxels.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stbp_milp.errors import InputError, SoundnessError
from stbp_milp.query import Query
from stbp_milp.report.comparison import Comparison, as_fraction, compare
from stbp_milp.report.pictures import animation_gif, save_counterexample, strip_png
from stbp_milp.sets import SetSpecification
from stbp_milp.verdict import Counterexample, Falsified
from tests.example_runs import falsified, query, write_model

ORANGE = (255, 106, 0)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Query:
    return query(write_model(tmp_path_factory.mktemp("model") / "example.onnx"))


def _counterexample(asked: Query) -> Counterexample:
    verdict = falsified(asked).verdict
    assert isinstance(verdict, Falsified)
    return verdict.counterexample


def _comparison(shape: tuple[int, int, int, int], frames: tuple[int, ...] = (0,)) -> Comparison:
    clean = np.random.default_rng(0).random(shape)
    cover = np.zeros(shape[1:], dtype=bool)
    cover[list(frames), : shape[2] // 2 + 1, : shape[3] // 2 + 1] = True
    attacked = np.where(cover, clean + 0.3 * (1 - clean), clean)
    return Comparison(clean, attacked, cover, (0, 1), "example   window:1", "class 0, score 1", "class 1, score 2")


def test_by_hand(asked: Query, tmp_path: Path) -> None:
    files = save_counterexample(asked, _counterexample(asked), (43.2, 36.0, 0.0), tmp_path, "run")
    assert {kind: path.name for kind, path in files.items()} == {
        "clip": "run-attack.npz",
        "picture": "run-attack.png",
        "animation": "run-attack.gif",
    }
    with np.load(files["clip"]) as archive:
        assert set(archive.files) == {"clean", "attacked", "delta", "clean_scores", "attacked_scores"}
        assert {archive[name].dtype for name in archive.files} == {np.dtype("float32")}
        np.testing.assert_array_equal(archive["delta"], archive["attacked"] - archive["clean"])
        assert int((archive["delta"] != 0).sum()) == 72
        np.testing.assert_allclose(archive["delta"][archive["delta"] != 0], -0.25, atol=1e-6)
    comparison = compare(asked, _counterexample(asked), (43.2, 36.0, 0.0))
    assert comparison.cover.any((1, 2)).tolist() == [True, True, False, False]
    with pytest.raises(InputError, match="already there"):
        save_counterexample(asked, _counterexample(asked), (43.2, 36.0, 0.0), tmp_path, "run")


def test_clip_outside_the_set_is_a_contradiction(asked: Query) -> None:
    elsewhere = Query(asked.model, asked.clip, SetSpecification("frames:3", 0.25), asked.property)
    with pytest.raises(SoundnessError, match="outside the set"):
        compare(elsewhere, _counterexample(asked), (43.2, 36.0, 0.0))


def test_unchanged_clip_has_no_cover(asked: Query) -> None:
    comparison = compare(asked, Counterexample(asked.clip.float(), (1.0, 2.0, 3.0), -1.0, "clean"), (1.0, 2.0, 3.0))
    assert not comparison.cover.any()
    assert Image.open(io.BytesIO(strip_png(comparison))).size > (0, 0)


@pytest.mark.parametrize(
    ("shape", "frames"),
    [
        ((1, 4, 16, 16), (1, 2)),
        ((3, 4, 16, 24), (3,)),
        ((2, 3, 5, 7), (0,)),
        ((1, 1, 1, 1), (0,)),
        ((3, 16, 112, 112), (4, 5)),
        ((1, 64, 64, 64), tuple(range(20))),
        ((1, 70, 3, 40), (69,)),
        ((3, 2, 300, 201), (1,)),
    ],
)
def test_files_are_pictures_of_sensible_size(shape: tuple[int, int, int, int], frames: tuple[int, ...]) -> None:
    comparison = _comparison(shape, frames)
    strip = Image.open(io.BytesIO(strip_png(comparison)))
    strip.load()
    assert strip.format == "PNG"
    assert strip.width <= 2200
    assert strip.height <= 500
    animation = Image.open(io.BytesIO(animation_gif(comparison)))
    assert animation.format == "GIF"
    assert getattr(animation, "n_frames", 0) == min(shape[1], 64)
    assert animation.info["loop"] == 0
    assert animation.width <= 1000
    assert animation.height <= 500


def test_outline_is_drawn_around_attacked_frames_only() -> None:
    picture = np.asarray(Image.open(io.BytesIO(strip_png(_comparison((1, 4, 16, 16), (2,))))))
    orange = (picture == ORANGE).all(-1)
    columns = np.flatnonzero(orange.any(0))
    assert columns.size > 0
    assert np.ptp(columns) < 112 + 4  # within one frame
    assert np.unique(np.diff(np.flatnonzero(orange.any(1)))).size > 1  # in several rows of the strip


def test_outline_leaves_the_attacked_pixels_visible() -> None:
    comparison = _comparison((1, 1, 2, 2))
    without = Comparison(**{**vars(comparison), "cover": np.zeros_like(comparison.cover)})
    first, second = (np.asarray(Image.open(io.BytesIO(strip_png(c)))) for c in (comparison, without))
    changed = (first != second).any(-1)
    assert (first[changed] == ORANGE).all()


@pytest.mark.parametrize("domain", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_domain_sets_black_and_white(domain: tuple[float, float]) -> None:
    low, high = domain
    clean = np.array([low, high]).reshape(1, 1, 1, 2)
    comparison = Comparison(clean, clean, np.zeros((1, 1, 2), dtype=bool), domain, "title", "output 1", "output 1")
    picture = np.asarray(Image.open(io.BytesIO(strip_png(comparison))).convert("L"))
    assert picture.min() == 0
    assert picture.max() == 255


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(4 / 255, "4/255"), (0.03, "0.03"), (1.0, "1"), (0.5, "0.5"), (0.2, "0.2"), (0.0, "0"), (0.1234567, "0.1234567")],
)
def test_radius_in_words(epsilon: float, text: str) -> None:
    assert as_fraction(epsilon) == text
