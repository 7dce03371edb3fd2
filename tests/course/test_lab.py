"""How JupyterLab is opened: in the workspace, on the lesson, offline, with the command at hand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from fourfold.course.lab import SETTINGS, lab_command, lab_environment


def test_the_command_names_the_workspace_and_the_lesson(tmp_path):
    command = lab_command(tmp_path, "6_x/1_y", browser=False, port=8890)
    assert f"--ServerApp.root_dir={tmp_path}" in command
    assert "--LabApp.default_url=/lab/tree/6_x/1_y.ipynb" in command
    assert "--port=8890" in command and "--no-browser" in command
    assert "--no-browser" not in lab_command(tmp_path, "6_x/1_y", browser=True, port=8890)


def test_jupyterlab_understands_every_option(tmp_path):
    command = lab_command(tmp_path, "6_x/1_y", browser=False, port=8890)
    shown = subprocess.run(
        [*command, "--show-config-json"],
        capture_output=True,
        text=True,
        check=True,
        env=lab_environment(),
    )
    config = json.loads(shown.stdout)
    assert config["ServerApp"]["root_dir"] == str(tmp_path)
    assert config["LabApp"]["default_url"] == "/lab/tree/6_x/1_y.ipynb"


def test_the_settings_reach_jupyter_and_keep_the_reader_s_own(monkeypatch):
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "own")
    paths = lab_environment()["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert paths == [str(SETTINGS), "own"]
    page = json.loads((SETTINGS / "labconfig" / "page_config.json").read_text())
    assert page["disabledExtensions"]["@jupyterlab/apputils-extension:announcements"]


def test_terminals_find_the_command():
    found = shutil.which("fourfold", path=lab_environment()["PATH"])
    assert found and Path(found).parent == Path(sys.executable).parent
