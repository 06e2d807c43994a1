"""Result files: written completely or not at all, and replacing an earlier file only on request.

Each file is written to a temporary file, synced, and hard-linked to its name: unlike a rename, a link fails if the
name is taken.
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

_ABANDONED = 600.0  # seconds: no writer takes this long
_ELSEWHERE = "give another folder with --out"


def write_new_file(path: Path, content: bytes) -> None:
    """Writes a new file, completely or not at all.

    Raises:
        InputError: the file already exists, or its folder is not writable.
    """
    try:
        _write(path, content, _take_name, _ELSEWHERE)
    except FileExistsError as error:
        raise InputError(f"{str(path)!r} is already there, written by another run; {_ELSEWHERE}") from error


def replace_file(path: Path, content: bytes, advice: str = _ELSEWHERE) -> None:
    """Writes a file, completely or not at all, and replaces an earlier one of that name.

    Args:
        advice: the end of the error message: what to do if the file cannot be written.

    Raises:
        InputError: the file cannot be written.
    """
    _write(path, content, os.replace, advice)


def remove_abandoned(folder: Path) -> None:
    """Removes temporary files of writers that were killed; fresh ones stay, as their writers may still be running."""
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
            os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
            take_name(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written ({error.strerror or error}); {advice}") from error


def _take_name(temporary: str, path: Path) -> None:
    """Gives the finished file its name if that name is free."""
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links
        with path.open("xb"):
            pass
        os.replace(temporary, path)


def prepare_folder(folder: Path) -> Path:
    """Makes sure that results can be written to `folder` before a run spends any time.

    Raises:
        InputError: the folder cannot be made or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"results cannot be written to {str(folder)!r} ({reason}); {_ELSEWHERE}") from error


def make_again(folder: Path) -> None:
    """Makes a folder again that was deleted during the run; if that fails, the next write to it reports the error."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Holds the folder's lock inside the block, so that two runs never continue the same folder's results at once.

    The lock ends with its process, so a process that died leaves nothing behind.

    Raises:
        InputError: another process holds the lock.
    """
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is at work in {str(folder)!r}; wait for it, or {_ELSEWHERE}") from error
        except OSError:  # a file system without locks
            pass
        yield
