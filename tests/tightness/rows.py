"""Rows as measurements leave them."""

from __future__ import annotations

from typing import Any

from stbp_milp.tightness.measure import Measurement


def row(method: str, lower: float | None = None, upper: float | None = None, **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "digest": "d",
        "instance": "spec/a.json",
        "model": "net.onnx",
        "set": "window:2",
        "epsilon": 0.03,
        "factor": None,
        "method": method,
        "lower": lower,
        "upper": upper,
        "certified": lower is not None and lower > 0,
        "seconds": 0.5,
        "peak_mib": 400.0,
        "own_mib": 20.0,
        "ended": "done",
        "limit": 10.0,
        "seed": 0,
    }
    return Measurement(**{**fields, **changes})
