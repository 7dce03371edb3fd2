"""The `fourfold` command as a reader types it."""

import json
import os
import re
import signal
import subprocess
import sys

import nbformat
import pytest
from typer.testing import CliRunner

from fourfold.course.files import House
from fourfold.course.lesson import lessons

FIRST = lessons(House.here())[0]
DRAFT = House.here().root / "tests" / "drafts" / "orchard" / "paper.tex"


def fourfold(*words, scale="cpu", **options):
    command = [sys.executable, "-m", "fourfold.cli", *map(str, words)]
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "FOURFOLD_SCALE": scale}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, **options
    )


@pytest.mark.parametrize(
    "verb", ["lab", "doctor", "start", "check", "run", "build", "new", "train", "review"]
)
def test_each_verb_explains_itself(verb):
    done = fourfold(verb, "--help")
    assert done.returncode == 0 and len(done.stdout.split()) > 15


def test_help_names_every_verb_and_the_first_step():
    text = fourfold("--help").stdout
    for word in (
        "lab",
        "doctor",
        "start",
        "check",
        "run",
        "build",
        "new",
        "train",
        "review",
        "New here?",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "smapling"), "no chapter or lesson is called 'smapling'; did you mean"),
        (("check", "6_bilinear"), "no chapter or lesson is called '6_bilinear'; did you mean"),
        (("build", "nothing_like_it"), "no chapter or lesson is called"),
        (("start", "--chapter", "7"), "no chapter or lesson is called '7'"),
        (("run", "--scale", "tpu"), "--scale: got 'tpu', expected cpu or gpu"),
        (("new", "x"), "expected CHAPTER/LESSON"),
        (("new", "6_x/1_y", "--title", ""), "title: got ''"),
        (("start", os.devnull + "/sub"), "Not a directory"),
        (("start", FIRST.chapter), "names a lesson; say --chapter"),
        (("train", "rafd"), "no chapter or lesson is called 'rafd'"),
        (("train", "6"), "bilinear_sampling has nothing to train"),
        (
            ("train", "raft", "--recipe", "slow"),
            "recipe is 'slow'; expected one of course, long, steady, quick",
        ),
        (("review",), "DRAFT: none given; expected the main file of a draft"),
        (("review", "none.tex"), "none.tex: no such file"),
        (("review", "none.docx"), "expected one that ends in .tex or .md"),
        (("review", "."), "is a folder; expected a file"),
        (("review", DRAFT, "--rule", "questoin"), "rules: got 'questoin'; expected question"),
        (("review", DRAFT, "--set", "work=5-30"), "threshold: got 'work'; expected works"),
        (("review", DRAFT, "--set", "works=many"), "works: got 'many'; expected a value such as"),
        (("review", DRAFT, "--set", "works=9-3"), "works: got '9-3'; expected a value such as"),
        (("review", DRAFT, "--section", "metod=A"), "section: got 'metod'; expected method"),
        (("review", DRAFT, "--section", "method=Nil"), "section: no heading says 'Nil'"),
        (("review", "paper/none.tex"), "paper/none.tex: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(words, message, tmp_path):
    done = fourfold(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_build_check_is_clean_here_and_writes_nothing():
    done = fourfold("build", "--check")
    assert done.returncode == 0 and "up to date" in done.stdout


def test_run_goes_through_a_lesson_and_says_what_it_cost():
    done = fourfold("run", FIRST.key)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{FIRST.key}: ") and "MiB" in done.stdout


def test_ctrl_c_stops_a_run_in_one_line_and_keeps_nothing():
    notebook = House.here().chapters / f"{FIRST.key}.ipynb"
    before = notebook.read_bytes()
    command = [sys.executable, "-m", "fourfold.cli", "run", FIRST.key, "--save"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = b""
    # The bar after the first cell; it may skip a number where cells are quick.
    while not re.search(rb"\| [1-9]", said) and process.poll() is None:
        said += os.read(process.stderr.fileno(), 4096)
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert b"fourfold: stopped" in said and b"Traceback" not in said
    assert notebook.read_bytes() == before


def test_a_wrong_scale_in_the_environment_is_blamed_on_it():
    done = fourfold("run", FIRST.key, scale="tpu")
    assert done.returncode == 2 and "FOURFOLD_SCALE: got 'tpu'" in done.stderr


def test_doctor_says_ok_for_every_need_here():
    done = fourfold("doctor")
    assert done.returncode == 0 and "ready" in done.stdout and "[missing]" not in done.stdout


def test_start_then_check_then_a_written_answer(tmp_path):
    room = tmp_path / "room"
    assert fourfold("start", room, "--chapter", FIRST.key).returncode == 0
    path = room / FIRST.chapter / "exercises" / f"{FIRST.name}.ipynb"
    unwritten = fourfold("check", FIRST.key, "--in", room)
    assert unwritten.returncode == 1
    assert "✗" in unwritten.stdout and "✓" not in unwritten.stdout
    assert "not written yet" in unwritten.stdout

    complete = nbformat.read(room / f"{FIRST.key}.ipynb", as_version=4)
    answers = [c.source for c in complete.cells if "exercise" in c.metadata.get("tags", [])]
    notebook = nbformat.read(path, as_version=4)
    blanks = [c for c in notebook.cells if "exercise" in c.metadata.get("tags", [])]
    for cell, answer in zip(blanks, answers, strict=True):
        cell.source = answer
    nbformat.write(notebook, path)
    written = fourfold("check", FIRST.key, "--in", room)
    assert written.returncode == 0 and written.stdout.count("✓") == len(blanks)
    assert fourfold("check", FIRST.key, cwd=room).stdout == written.stdout
    assert "kept" in fourfold("start", room, "--chapter", FIRST.key).stdout


def test_check_without_a_workspace_says_how_to_get_one(tmp_path):
    done = fourfold("check", FIRST.key, "--in", tmp_path / "none")
    assert done.returncode == 2 and "fourfold start" in done.stderr


def test_review_is_silent_about_a_clean_draft(tmp_path):
    done = fourfold("review", DRAFT)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("0 findings\n")


def test_review_lists_findings_with_file_and_line(tmp_path):
    (tmp_path / "weak.md").write_text("# Weak\n\n## Introduction\n\nWe are good.\n")
    done = fourfold("review", "weak.md", cwd=tmp_path)
    assert done.returncode == 1 and "weak.md:3  question" in done.stdout
    assert fourfold("review", "weak.md", "--rule", "introduction", cwd=tmp_path).returncode == 0
    relaxed = ("--rule", "trend", "--set", "introduction_works=0")
    assert fourfold("review", "weak.md", *relaxed, cwd=tmp_path).returncode == 0
    lines = fourfold("review", "weak.md", "--json", cwd=tmp_path).stdout.splitlines()
    places = [(line["file"], line["line"]) for line in map(json.loads, lines)]
    assert set(places) == {("weak.md", 1), ("weak.md", 3)}


def test_review_names_files_from_where_one_stands(tmp_path):
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a.md").write_text("# A\n\n## Introduction\n\nWords.\n", encoding="utf-8")
    found = fourfold("review", "paper/a.md", "--rule", "question", cwd=tmp_path).stdout
    assert "paper/a.md:3  question" in found
    found = fourfold("review", "paper/a.md", "--rule", "question", "--json", cwd=tmp_path).stdout
    assert json.loads(found)["file"] == "paper/a.md" and "“" in found


def test_review_takes_a_section_by_its_title(tmp_path):
    (tmp_path / "a.md").write_text("# A\n\n## Introduction\n\nWhy?\n\n## Gadgets\n\nText.\n")
    text = fourfold("review", "a.md", "--section", "background=Gadgets", cwd=tmp_path).stdout
    assert "no section called method" in text and "no section called background" not in text


def test_review_lists_its_rules():
    done = fourfold("review", "--rules")
    assert done.returncode == 0 and "--set works=10-15" in done.stdout and "ablation" in done.stdout


def test_train_stops_goes_on_and_says_how_good_it_got(tmp_path, monkeypatch):
    from fourfold import cli
    from fourfold.course.errors import CourseError
    from fourfold.raft import learning

    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    monkeypatch.chdir(tmp_path)
    few = learning.held_out_pairs(1, (64, 64))  # measuring on all pairs takes longer than two steps
    monkeypatch.setattr(learning, "held_out_pairs", lambda reach: few)

    def said(*words):
        done = CliRunner().invoke(cli.app, ["train", *map(str, words)])
        return str(done.exception) if isinstance(done.exception, CourseError) else done.output

    options = ("--recipe", "quick", "--steps", 2, "--seed", 3)
    first = said("4_raft", *options, "--minutes", 0)
    assert "1 of 2 steps" in first and "the same command goes on" in first
    second = said("raft", *options)
    assert "2 of 2 steps; weights in runs/raft/raft_small.safetensors" in second
    assert "held-out EPE (px): " in second and "goes on" not in second
    card = json.loads((tmp_path / "runs" / "raft" / "raft_small.json").read_text())
    assert card["command"] == "fourfold train raft --recipe quick --steps 2 --seed 3"
    assert card["seed"] == 3 and card["metrics"]["zero flow's EPE (px)"] > 0
    assert card["data"].endswith("up to 8 px and 3 iterations, for the held-out pairs too")
    assert "seed was 3 and is 4" in said("raft", *options[:-1], 4)
    assert "1 of 1 steps; weights in other" in said("raft", "--steps", 1, "--folder", "other")
