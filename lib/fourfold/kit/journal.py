"""A file of JSON lines that survives a kill: locked, mended, and appended to by whole lines.

A record is one line, added at the end in one go and on the disk when `append` returns. So whenever
the process is killed, at most the last line is torn, and the next one to open the file cuts it off.
"""

import json
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["Journal", "open_journal", "read_journal"]

# parse(content) -> the records, and the number of bytes of whole lines; raises to refuse a file
Parse = Callable[[bytes], tuple[list[dict], int]]


class Journal:
    """An open journal: `records` holds all that is in the file, in order."""

    def __init__(self, file: BinaryIO, records: list[dict]):
        self.records, self._file = records, file

    def append(self, record: dict) -> None:
        """Write the record, as Python's json does it, and return when the disk has it.

        Raises OSError for a disk that cannot take the whole line.
        """
        line = json.dumps(record).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(f"{self._file.name} could not take a whole line; is the disk full?")
        os.fsync(self._file.fileno())
        self.records.append(record)


def read_journal(path: Path, parse: Parse) -> list[dict]:
    """The records of a file, none where there is no file; nothing is locked or mended."""
    return parse(path.read_bytes() if path.is_file() else b"")[0]


@contextmanager
def open_journal(path: Path, parse: Parse) -> Iterator[Journal]:
    """Open a journal to append to, by one process at a time; it is made where it is not there.

    A torn last line is cut off; a file that `parse` refuses stays as it is. The lock belongs to
    this process and goes with it, however it ends; processes forked meanwhile do not hold it.

    Raises OSError for a path that cannot be written and RuntimeError for a file in use.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass
    except OSError as error:
        raise OSError(
            f"path is {path}; expected a file that can be written ({error.strerror})"
        ) from error
    with open(path, "a+b", buffering=0) as file:
        _lock(file, path)
        _OPEN.add(file)
        yield Journal(file, _mended(file, parse))


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(2**40)  # there other processes lock too, and nobody reads
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise RuntimeError(
            f"{path.name} is in use by another study or process; wait for it, or give this one "
            "its own path"
        ) from None
    except OSError as error:
        warnings.warn(
            f"{path.name} cannot be locked ({error.strerror}); see to it yourself that no second "
            "process writes to it",
            stacklevel=4,
        )


def _mended(file: BinaryIO, parse: Parse) -> list[dict]:
    file.seek(0)
    content = file.read()
    records, length = parse(content)
    file.truncate(length)
    if length and content[length - 1 : length] != b"\n":
        file.write(b"\n")
    return records


_OPEN: weakref.WeakSet[BinaryIO] = weakref.WeakSet()


def _close_in_child() -> None:
    for file in list(_OPEN):
        file.close()


if hasattr(os, "register_at_fork"):
    # A forked child shares the lock, and may outlive its parent: the workers of a DataLoader do.
    os.register_at_fork(after_in_child=_close_in_child)
