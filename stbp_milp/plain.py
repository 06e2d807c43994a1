"""Conversion of values to plain JSON, and their digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Converts `value` to plain JSON values; infinite numbers become the strings "inf" and "-inf".

    Text that UTF-8 cannot hold, for example a file name in another encoding, gets its odd bytes escaped.
    """
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Sequence):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(content: str | bytes) -> Any:
    """Parses a JSON text.

    Raises:
        ValueError: the text is not JSON, or it is nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deeply") from error


def digest_of(value: Any) -> str:
    """Computes the sha256 of `value` as JSON with sorted keys, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def asked_model(digest: str, layout: str | None) -> Any:
    """Returns what a question's key says about its model: the digest, and the layout if the user named one."""
    return digest if layout is None else [digest, layout]
