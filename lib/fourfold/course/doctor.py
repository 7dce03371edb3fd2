"""Is this machine ready for the course? One line per need, with the fix where one is missing."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

__all__ = ["Finding", "examine"]

NEEDED_GIB = 4
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One need: whether it is met, what was found, and the fix when it is not."""

    need: str
    ok: bool
    found: str
    fix: str = ""

    def __str__(self) -> str:
        mark = "[ok]     " if self.ok else "[missing]"
        line = f"{mark} {self.need}: {self.found}"
        return line if self.ok or not self.fix else f"{line}\n          fix: {self.fix}"


def examine() -> Iterator[Finding]:
    """Every need of the course on this machine."""
    yield _python()
    yield from _packages()
    yield _kernel()
    yield _fonts()
    yield _memory()
    yield _disk()
    yield _gpu()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    """The packages that the installed course asks for, its development tools included.

    All of QM9, the extra `qm9`, is for long trainings alone.
    """
    asked = importlib.metadata.requires("fourfold") or []
    for requirement in sorted(each for each in asked if 'extra == "qm9"' not in each):
        name, bound = re.match(r"([\w.-]+)(?:>=([\d.]+))?", requirement).groups()
        fix = f"pip install -c constraints.txt {name}"
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, False, "not installed", fix)
            continue
        yield Finding(name, not bound or _numbers(found) >= _numbers(bound), found, fix)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0]))


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Finding("kernel python3", False, "none", "python -m ipykernel install --user")
    return Finding("kernel python3", True, command)


def _fonts() -> Finding:
    from matplotlib import font_manager

    path = font_manager.findfont("DejaVu Sans", fallback_to_default=False)
    return Finding("font DejaVu Sans", bool(path), "comes with matplotlib")


def _memory() -> Finding:
    import psutil

    total = psutil.virtual_memory().total / GIB
    fix = "close other programs; a lesson needs up to 4 GiB"
    return Finding("memory", total >= NEEDED_GIB * 0.95, f"{total:.0f} GiB", fix)


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / GIB
    return Finding("disk", free >= 1, f"{free:.0f} GiB free here", "free 1 GiB for the workspace")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name())
    return Finding("GPU", True, "none, and none is needed: every lesson runs on a CPU")
