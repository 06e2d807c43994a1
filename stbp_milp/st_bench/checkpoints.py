"""Checkpoints of trainings: a resumed training ends with the same result as an uninterrupted one."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stbp_milp.errors import InputError
from stbp_milp.files import replace_file

_ELSEWHERE = "give another folder"


class Checkpoint:
    """One file, written every `seconds` and at the end: a temporary file is renamed, so it is complete or missing.

    Args:
        identity: a description of the training; the file of another training is refused.
    """

    def __init__(self, path: Path, identity: str, seconds: float) -> None:
        self._path = path
        self._identity = identity
        self._seconds = seconds
        self._written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Returns the last checkpoint, or None if there is none.

        Raises:
            InputError: the file cannot be read, or belongs to another training.
        """
        if not self._path.exists():
            return None
        try:
            content = torch.load(self._path, weights_only=True)
            identity, kept = content["identity"], content["kept"]
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise InputError(
                f"{str(self._path)!r} is not a checkpoint of a training; delete it or give another folder"
            ) from error
        if identity != self._identity:
            raise InputError(
                f"{str(self._path)!r} is of another training ({identity}; asked for: {self._identity}); "
                "delete it or give another folder"
            )
        return dict(kept)

    def due(self) -> bool:
        """Is it time to write a checkpoint?"""
        return time.monotonic() - self._written >= self._seconds

    def save(self, kept: Mapping[str, Any]) -> None:
        """Replaces the last checkpoint.

        Raises:
            InputError: the folder cannot be written to.
        """
        content = io.BytesIO()
        torch.save({"identity": self._identity, "kept": dict(kept)}, content)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{str(self._path)!r} cannot be written ({error.strerror or error}); {_ELSEWHERE}"
            ) from error
        replace_file(self._path, content.getvalue(), _ELSEWHERE)
        self._written = time.monotonic()
