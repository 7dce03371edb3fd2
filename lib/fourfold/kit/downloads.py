"""Files from the network, on request only: each is checked against its hash, and kept.

Importing this module loads nothing that can reach a network; `download` does when it is called.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

from fourfold.kit.notebook import progress_bar

__all__ = ["cache_folder", "download"]

_CHUNK = 1 << 18  # bytes read at a time
_PATIENCE = 30.0  # seconds without an answer until a server counts as not reached


def cache_folder() -> Path:
    """Where downloads are kept: `fourfold` in $XDG_CACHE_HOME, or in ~/.cache without one."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "fourfold"


def download(url: str, sha256: str, folder: str | Path | None = None) -> Path:
    """Fetch a file once; return where it lies. A file there already is taken, if its hash fits.

    url     https://… (or file://…); the last part of its path names the file
    sha256  the hash of the file, or its first 8 hexadecimal digits or more
    folder  where to keep the file, `cache_folder()` when left out

    The file appears whole and verified or not at all. Raises ValueError for a hash that does not
    fit or is too short to tell, ConnectionError where the file cannot be reached.
    """
    sha256 = sha256.lower()
    if not 8 <= len(sha256) <= 64 or set(sha256) - set("0123456789abcdef"):
        raise ValueError(f"sha256 is {sha256!r}; expected 8 to 64 hexadecimal digits")
    folder = cache_folder() if folder is None else Path(folder)
    path = folder / url.rsplit("/", 1)[-1]
    if path.is_file() and _sha256(path).startswith(sha256):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            found = _fetch(url, file, path)
        if not found.startswith(sha256):
            raise ValueError(
                f"{url} has a sha256 that begins with {found[: len(sha256)]}; expected {sha256}, "
                "so the file is damaged or another one, and was not kept"
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _fetch(url: str, file, path: Path) -> str:
    """Copy what the URL holds into an open file; return its sha256."""
    from http.client import HTTPException
    from urllib.request import urlopen

    digest = hashlib.sha256()
    try:
        with urlopen(url, timeout=_PATIENCE) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            shown = sys.stderr.isatty()
            with progress_bar(size, 0, unit="B", shown=shown) as bar:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
    except (OSError, HTTPException) as error:
        if getattr(error, "filename", None) and not hasattr(error, "reason"):
            raise  # the disk's, such as one that is full
        why = getattr(error, "reason", error)
        raise ConnectionError(
            f"{url} cannot be reached ({why}); expected a network, or the file at {path}"
        ) from error
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
