"""The ablation that ships with the course: a study's file, with what the lesson reads from it."""

import json
import math

import pytest

from fourfold.kit.data import data_path
from fourfold.paper_writing.experiments import Study, grid

SETTINGS = grid(start=["fresh", "shipped"], space=[True, False])


def no_run(setting, dataset, seed):
    raise AssertionError("the file is read, nothing is run")


@pytest.fixture
def study():
    path = data_path("results", "cotracker_ablations.jsonl")
    return Study(path, no_run, settings=SETTINGS, datasets=["layers", "plane"], seeds=range(3))


def test_no_run_is_missing(study):
    assert not study.missing()


def test_the_file_holds_the_settings_of_the_study_and_no_others():
    path = data_path("results", "cotracker_ablations.jsonl")
    found = [json.loads(line)["setting"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(setting in SETTINGS for setting in found)
    assert all(setting in found for setting in SETTINGS)


def test_the_errors_are_finite_pixels(study):
    frame = study.frame()
    assert all(
        math.isfinite(value) and value > 0 for value in frame[["seen", "hidden"]].values.flat
    )


def test_weights_that_have_learned_longer_do_better(study):
    means = study.frame().groupby(["dataset", "start"]).seen.mean().unstack()
    assert (means["shipped"] < means["fresh"]).all()
