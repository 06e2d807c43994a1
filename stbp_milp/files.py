"""Files of results: whole or not there at all, and in place of an earlier one only where that is asked for.

A temporary file, fsync, and a hard link to its name: unlike a rename, a link fails where the name is taken.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stbp_milp.errors import InputError

_ABANDONED = 600.0  # seconds: no writer takes so long
_ELSEWHERE = "give another folder with --out"


def write_new_file(path: Path, content: bytes) -> None:
    """Write a file that was not there before, whole or not at all.

    Raises:
        InputError: the file is already there, or its folder cannot be written to.
    """
    try:
        _write(path, content, _take_name, _ELSEWHERE)
    except FileExistsError as error:
        raise InputError(f"{str(path)!r} is already there, written by another run; {_ELSEWHERE}") from error


def replace_file(path: Path, content: bytes, advice: str = _ELSEWHERE) -> None:
    """Write a file, whole or not at all, in place of an earlier one.

    Args:
        advice: what to do where it cannot be written.

    Raises:
        InputError: the file cannot be written.
    """
    _write(path, content, os.replace, advice)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files of writers that were killed; a fresh one may be of a writer that is at it."""
    for path in folder.glob(".*.part"):
        with suppress(OSError):  # somebody else removed it, or it is not ours to remove
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def _write(path: Path, content: bytes, take_name: Callable[[str, Path], None], advice: str) -> None:
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's files are for their owner only
            take_name(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written ({error.strerror or error}); {advice}") from error


def _take_name(temporary: str, path: Path) -> None:
    """Give the finished file its name, if that is free."""
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links
        with path.open("xb"):
            pass
        os.replace(temporary, path)


def prepare_folder(folder: Path) -> Path:
    """Make sure that results can be written to `folder`, before a run spends its time.

    Raises:
        InputError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"results cannot be written to {str(folder)!r} ({reason}); {_ELSEWHERE}") from error


def make_again(folder: Path) -> None:
    """Make a folder that was deleted since the run began; who writes to it says where that is impossible."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """While this holds, no other process can: runs that go on with a folder's results must not do so twice at once.

    Raises:
        InputError: another process holds it. It ends with its process, so nothing is left behind by one that died.
    """
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is at work in {str(folder)!r}; wait for it, or {_ELSEWHERE}") from error
        except OSError:  # a file system without locks
            pass
        yield
