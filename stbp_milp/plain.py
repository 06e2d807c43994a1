"""Values as JSON can say them, and their digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """`value` without tuples, numpy's numbers and infinities; infinite numbers become the strings "inf" and "-inf".

    Text that UTF-8 cannot hold, as the name of a file in another encoding, has its odd bytes escaped.
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
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deeply") from error


def digest_of(value: Any) -> str:
    """sha256 of `value` as JSON with sorted keys, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def asked_model(digest: str, layout: str | None) -> Any:
    """What a question says of its model; the layout only where the user named one."""
    return digest if layout is None else [digest, layout]
