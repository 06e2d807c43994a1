"""Packed clips hold what the npz holds, as far as 256 levels go.

The example clip is (1, 4, 6, 6), frames 1 and 2 darker by 0.25.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stbp_milp.errors import InputError
from stbp_milp.report.html import clips
from stbp_milp.report.html.clips import pack, pack_all
from stbp_milp.report.html.instance import ShownInstance
from stbp_milp.report.html.run import read_run
from tests.report.made_runs import Made, write_batch, write_clips


def _instance(folder: Path, made: Made, shape: tuple[int, ...] = (1, 4, 6, 6)) -> ShownInstance:
    (found,) = read_run(write_batch(folder, [made])).instances
    write_clips(found.evidence["clip"], shape)
    return found


def _unpacked(text: str) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Header; clean levels, attacked levels, change, cover: as viewer.js reads them."""
    content = zlib.decompress(base64.b64decode(text))
    line, _, body = content.partition(b"\n")
    header = json.loads(line)
    shape = header["shape"]
    length = int(np.prod(shape))
    clean, step, change = (
        np.frombuffer(body[i * length : (i + 1) * length], np.uint8).reshape(shape) for i in range(3)
    )
    voxels = int(np.prod(shape[1:]))
    cover = np.unpackbits(np.frombuffer(body[3 * length :], np.uint8))[:voxels].reshape(shape[1:])
    return header, [clean, clean + step, change.view(np.int8), cover]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_what_is_packed_is_what_was_found(tmp_path: Path, channels: int) -> None:
    instance = _instance(tmp_path / "run", Made("clip", "falsified"), (channels, 4, 6, 6))
    header, (clean, attacked, change, cover) = _unpacked(pack(instance))
    kept = np.load(instance.evidence["clip"])
    shown = 3 if channels == 3 else 1  # of other numbers the first
    assert header["shape"] == [shown, 4, 6, 6]
    assert header["full"] == [channels, 4, 6, 6]
    assert np.abs(clean / 255 - kept["clean"][:shown]).max() <= 0.5 / 255 + 1e-6
    assert np.abs(attacked / 255 - kept["attacked"][:shown]).max() <= 0.5 / 255 + 1e-6
    assert np.abs(change / 127 * header["largest"] - kept["delta"][:shown]).max() <= 0.25 / 127
    assert header["largest"] == pytest.approx(0.25)
    assert header["exact"]
    assert header["frames"] == [1, 2]
    assert cover.reshape(4, -1).all(1).tolist() == [False, True, True, False]
    assert header["changed"] == 72


def test_the_cover_is_the_set_s_even_where_nothing_changed(tmp_path: Path) -> None:
    header, parts = _unpacked(pack(_instance(tmp_path / "run", Made("clip", "falsified", set="everywhere"))))
    assert header["frames"] == [0, 1, 2, 3]
    assert parts[3].all()


@pytest.mark.parametrize("text", ["no such set", "frames:0"])
def test_a_set_that_does_not_explain_the_change(tmp_path: Path, text: str) -> None:
    header, parts = _unpacked(pack(_instance(tmp_path / "run", Made("clip", "falsified", set=text))))
    assert not header["exact"]
    assert header["frames"] == [1, 2]
    assert parts[3].sum() == 72


def test_large_frames_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "LARGEST_SIDE", 4)
    instance = _instance(tmp_path / "run", Made("clip", "falsified"), (1, 4, 5, 7))
    header, (clean, _, _, cover) = _unpacked(pack(instance))
    assert header["step"] == 2
    assert header["shape"] == [1, 4, 3, 4]
    kept = np.load(instance.evidence["clip"])["clean"][0, 0]
    assert clean[0, 0, 0, 0] == pytest.approx(255 * kept[:2, :2].mean(), abs=0.51)
    assert clean[0, 0, 2, 3] == pytest.approx(255 * kept[4:, 6:].mean(), abs=0.51)
    assert cover[1].all()


def test_room_is_kept_and_what_is_left_out_is_named(tmp_path: Path) -> None:
    run = read_run(write_batch(tmp_path / "run", [Made(f"clip-{i}", "falsified") for i in range(4)] + [Made("proved")]))
    numbered = list(enumerate(run.instances))
    everything = pack_all(numbered, 10**6)
    assert sorted(everything.packed) == [0, 1, 2, 3]
    assert everything.too_many == ()
    size = len(everything.packed[0])
    some = pack_all(numbered, 2 * size + 10)
    assert sorted(some.packed) == [0, 1]
    assert some.too_many == (2, 3)
    assert sum(map(len, some.packed.values())) <= 2 * size + 10


@pytest.mark.parametrize("spoil", ["empty", "text", "no clean", "shapes", "nan"])
def test_clips_that_cannot_be_read_are_named(tmp_path: Path, spoil: str) -> None:
    instance = _instance(tmp_path / "run", Made("clip", "falsified"))
    path = instance.evidence["clip"]
    clip = np.zeros((1, 4, 6, 6))
    if spoil == "empty":
        path.write_bytes(b"")
    elif spoil == "text":
        path.write_text("no archive")
    elif spoil == "no clean":
        np.savez(path, attacked=clip)
    else:
        np.savez(path, clean=clip, attacked=clip[:, 1:] if spoil == "shapes" else clip * np.nan)
    with pytest.raises(InputError, match=f"the clips of '{path.name}'"):
        pack(instance)
    found = pack_all([(0, instance)], 10**6)
    assert found.packed == {}
    assert len(found.broken) == 1
