"""JupyterLab as the course opens it: in the reader's workspace, quiet and offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["lab_command", "lab_environment"]

# Holds labconfig/page_config.json, which switches off the question whether to fetch news.
SETTINGS = Path(__file__).parent / "jupyter"


def lab_command(workspace: Path, lesson: str, *, browser: bool, port: int) -> list[str]:
    """The command line that serves `workspace` and opens the lesson with that key."""
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={workspace.resolve()}",
        f"--LabApp.default_url=/lab/tree/{lesson}.ipynb",
        f"--port={port}",
        "--LabApp.extension_manager=readonly",  # the other one asks PyPI for a list
        "--log-level=WARN",  # the URL is printed all the same, without fifty lines above it
    ]
    if not browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # as in a container; it listens to this machine alone
    return command


def lab_environment() -> dict[str, str]:
    """This process's variables, the course's settings, and `fourfold` on the path of terminals."""
    added = {"JUPYTER_CONFIG_PATH": SETTINGS, "PATH": Path(sys.executable).parent}
    return os.environ | {
        name: os.pathsep.join([str(first), *filter(None, [os.environ.get(name)])])
        for name, first in added.items()
    }
