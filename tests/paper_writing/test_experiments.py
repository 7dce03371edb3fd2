"""Studies that are killed, torn, extended and refused; intervals against SciPy; figures."""

import contextlib
import json
import math
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fourfold.paper_writing.experiments import (
    Interval,
    Run,
    Study,
    ablation_table,
    failure_gallery,
    grid,
    mean_interval,
    measured,
    missing_runs,
    paired_difference,
    ring_chart,
    role_of,
    whole_lines,
)

SETTINGS = grid(width=[2, 4], rate=[0.1, 0.01])


def value(setting, dataset, seed):
    """A metric that any run can be told by."""
    return setting["width"] / 3 + setting["rate"] * 7 + len(dataset) / 9 + seed / 11


def run(setting, dataset, seed):
    return {"score": value(setting, dataset, seed), "loss": -seed}


def study(path, function=run, **changes):
    plan = {"settings": SETTINGS, "datasets": ["digits", "faces"], "seeds": range(3), **changes}
    return Study(path, function, **plan)


def do(path, function=run, **changes):
    return study(path, function, **changes).run(progress=False)


def keys_in(path):
    records = whole_lines(path.read_bytes())[0] if path.exists() else []
    return [Run(r["setting"], r["dataset"], r["seed"]).key for r in records]


def without_times(frame):
    return frame.drop(columns=["seconds", "hardware"])


# Killed


LONG = {"settings": grid(width=[1, 2, 3, 4, 5], rate=[0.1, 0.2]), "seeds": range(5)}


def logged(setting, dataset, seed):
    time.sleep(0.002)
    with open("finished.log", "a") as log:
        log.write(Run(setting, dataset, seed).key + "\n")
    return run(setting, dataset, seed)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork; the next test kills there too")
def test_a_study_killed_many_times_is_the_study_that_was_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, log = tmp_path / "killed.jsonl", tmp_path / "finished.log"
    fork, moments, kills = multiprocessing.get_context("fork"), random.Random(0), 0
    while study(path, **LONG).missing():
        before = set(keys_in(path))
        lines = len(log.read_text().splitlines()) if log.exists() else 0
        process = fork.Process(target=lambda: do(path, logged, **LONG))
        process.start()
        # Long enough on a busy machine once many kills came too early.
        process.join(moments.uniform(0.005, 0.06) * (1 + kills / 10))
        process.kill()
        process.join()
        kills += 1
        done_now = log.read_text().splitlines()[lines:] if log.exists() else []
        assert not before & set(done_now), "a run that was recorded was done again"
    assert kills >= 5
    assert sorted(keys_in(path)) == sorted(r.key for r in study(path, **LONG).runs)
    finished = log.read_text().splitlines()
    assert len(finished) - len(set(finished)) <= kills  # killed between the run and its line
    whole = do(tmp_path / "whole.jsonl", **LONG)
    again = study(path, **LONG)
    pd.testing.assert_frame_equal(
        without_times(again.frame()), without_times(whole), check_exact=True
    )
    assert again.table().equals(study(tmp_path / "whole.jsonl", **LONG).table())


SCRIPT = """
import sys
from fourfold.paper_writing.experiments import Study, grid
def run(setting, dataset, seed):
    print("begins", flush=True)
    sys.stdin.readline()
    return {"score": setting["width"] + seed}
Study(sys.argv[1], run, settings=grid(width=[1, 2]), datasets=["a"], seeds=range(3)).run()
"""


def test_a_process_of_its_own_is_killed_in_the_middle_of_a_run(tmp_path):
    path = tmp_path / "killed.jsonl"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, path], text=True, **pipes)
    for _ in range(4):
        assert process.stdout.readline() == "begins\n"
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.stdout.readline() == "begins\n"  # so the fourth is written
    process.kill()
    process.communicate()
    calls = []

    def count(setting, dataset, seed):
        calls.append(seed)
        return {"score": setting["width"] + seed}

    plan = {"settings": grid(width=[1, 2]), "datasets": ["a"], "seeds": range(3)}
    frame = Study(path, count, **plan).run(progress=False)
    assert calls == [2, 2]
    assert frame.score.tolist() == [1, 2, 2, 3, 3, 4]


def test_a_line_torn_at_any_byte_is_mended(tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    expected = without_times(do(whole))
    content = whole.read_bytes()
    last = len(content.splitlines(keepends=True)[-1])
    # Every third byte, and each of those where a tear is special.
    for cut in {*range(3), *range(3, last, 3), last - 1, last}:
        torn.write_bytes(content[: len(content) - cut])
        assert len(study(torn).missing()) == (cut > 1)
        assert torn.read_bytes() == content[: len(content) - cut], "reading mends nothing"
        assert without_times(do(torn)).equals(expected)
        assert sorted(keys_in(torn)) == sorted(keys_in(whole))
        assert torn.read_bytes().endswith(b"}\n")


def test_a_first_line_torn_at_any_byte_is_mended(tmp_path):
    path, one = tmp_path / "one.jsonl", {"settings": SETTINGS[:1], "datasets": ["d"], "seeds": [0]}
    expected = without_times(do(path, **one))
    content = path.read_bytes()
    for cut in {1, 2, *range(3, len(content), 3), len(content)}:
        path.write_bytes(content[:-cut])
        assert without_times(do(path, **one)).equals(expected)
        assert len(keys_in(path)) == 1


@given(
    st.lists(st.dictionaries(st.text(max_size=4), st.integers() | st.text()), max_size=3), st.data()
)
def test_whole_lines_reads_what_was_written_before_the_tear(values, data):
    lines = [json.dumps(value).encode() + b"\n" for value in values]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    found, length = whole_lines(content[:cut])
    assert found == values[: len(found)]
    # Whole lines, and one that lacks nothing but its newline.
    starts = np.cumsum([0, *map(len, lines)])
    assert length in {*starts, cut} and length <= cut
    assert len(found) == sum(end - 1 <= cut for end in starts[1:])


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    def interrupted(setting, dataset, seed):
        if seed == 1:
            raise KeyboardInterrupt
        return run(setting, dataset, seed)

    path = tmp_path / "runs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        do(path, interrupted)
    assert len(study(path).frame()) == 8
    assert len(do(path)) == 24 and len(keys_in(path)) == 24


def test_minutes_end_a_call_after_a_run(tmp_path):
    frame = study(tmp_path / "runs.jsonl").run(minutes=0, progress=False)
    assert len(frame) == 1


# The grid


def test_a_grid_with_more_values_does_only_the_new_runs(tmp_path):
    path, calls = tmp_path / "runs.jsonl", []

    def count(setting, dataset, seed):
        calls.append(Run(setting, dataset, seed).key)
        return run(setting, dataset, seed)

    first = do(path, count)
    assert len(calls) == 24
    do(path, count)
    assert len(calls) == 24
    more = {
        "settings": grid(width=[2, 4, 8], rate=[0.1, 0.01]),
        "datasets": ["digits", "faces", "x"],
    }
    frame = do(path, count, seeds=range(4), **more)
    assert len(calls) == len(set(calls)) == len(frame) == 3 * 2 * 3 * 4
    assert without_times(do(path, count)).equals(without_times(first)), "a narrower grid shows less"


def test_order_of_keys_and_spelling_of_numbers_do_not_matter(tmp_path):
    do(tmp_path / "runs.jsonl")
    turned = [{"rate": np.float64(s["rate"]), "width": float(s["width"])} for s in SETTINGS]
    assert study(tmp_path / "runs.jsonl", settings=turned[::-1]).missing() == []
    assert Run({"a": True}, "d", 0).key != Run({"a": 1}, "d", 0).key
    assert Run({"a": "1"}, "d", 0).key != Run({"a": 1}, "d", 0).key


def test_a_function_cannot_change_what_identifies_its_run(tmp_path):
    def spoils(setting, dataset, seed):
        setting["width"] = 99
        return {"score": seed}

    path = tmp_path / "runs.jsonl"
    assert sorted(set(do(path, spoils).width)) == [2, 4]
    assert study(path).missing() == []


def test_the_seeds_are_the_outer_loop():
    runs = study("nowhere.jsonl").runs
    assert [r.seed for r in runs] == [0] * 8 + [1] * 8 + [2] * 8


names = st.sampled_from(["width", "rate", "part"])
scalars = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-1, 1) | st.text("ab", max_size=2)
)


choices = st.lists(scalars, min_size=1, max_size=3, unique_by=lambda v: (isinstance(v, bool), v))
plans = st.fixed_dictionaries(
    {
        "settings": st.dictionaries(names, choices, max_size=2),
        "datasets": st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True),
        "seeds": st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    }
)


@given(plans, st.integers(0, 20))
def test_the_frame_is_tidy_however_far_the_study_came(tmp_path_factory, plan, stop):
    path, calls = tmp_path_factory.mktemp("study") / "runs.jsonl", []

    def stops(setting, dataset, seed):
        calls.append(seed)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return {"score": seed * 0.5}

    plan = plan | {"settings": grid(**plan["settings"])}
    started = Study(path, stops, **plan)
    with contextlib.suppress(KeyboardInterrupt):
        started.run(progress=False)
    frame, names = started.frame(), list(plan["settings"][0])
    assert list(frame)[: len(names) + 2] == [*names, "dataset", "seed"]
    assert len(frame) + len(started.missing()) == len(started.runs)
    assert len(frame) == min(stop, len(started.runs))
    for row, expected in zip(frame.to_dict("records"), started.runs, strict=False):
        setting = {name: row[name] for name in names}
        assert Run(setting, row["dataset"], int(row["seed"])).key == expected.key
        assert row["score"] == row["seed"] * 0.5
    assert missing_runs(started.runs, keys_in(path)) == started.missing()
    table = started.table()
    assert list(table.columns) == plan["datasets"] and len(table) == len(plan["settings"])


# Errors and metrics


def test_an_error_stops_the_study_and_names_the_run(tmp_path):
    def breaks(setting, dataset, seed):
        return {"score": 1 / (seed - 1)}

    path = tmp_path / "runs.jsonl"
    with pytest.raises(
        RuntimeError, match=r"width=2, rate=0.1 on digits, seed 1 .*ZeroDivision"
    ) as e:
        do(path, breaks)
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    assert len(keys_in(path)) == 8


def test_recorded_errors_stay_missing_and_are_tried_again(tmp_path):
    def breaks(setting, dataset, seed):
        return {"score": 1 / (seed - 1), "loss": 0}

    started = study(tmp_path / "runs.jsonl", breaks)
    assert len(started.run(on_error="record", progress=False)) == 16
    assert {r.seed for r in started.missing()} == {1} and len(started.missing()) == 8
    assert set(started.errors().values()) == {"ZeroDivisionError: division by zero"}
    assert started.table().iloc[0, 0].endswith("(2 of 3)")
    mended = study(tmp_path / "runs.jsonl")
    mended.run(progress=False)
    assert mended.missing() == [] and mended.errors() == {}


def test_metrics_that_are_not_finite_are_kept_and_shown(tmp_path):
    def diverges(setting, dataset, seed):
        return {"score": [math.nan, math.inf, -math.inf][seed]}

    path = tmp_path / "runs.jsonl"
    frame = do(path, diverges)
    assert frame.score[:8].isna().all() and (frame.score[8:16] == math.inf).all()
    assert study(path).missing() == [] and study(path).table().iloc[0, 0] == "not finite"


@pytest.mark.parametrize(
    "metrics, sentence",
    [
        ({"score": "0.9"}, r"run returned score = '0.9' for width=2.*expected a number"),
        ({"score": torch.ones(2)}, r"run returned score = tensor.*expected a number"),
        ({"score": np.ones(2)}, r"run returned score = array.*expected a number"),
        ({"score": None}, "run returned score = None"),
        ({}, "run returned {} for width=2"),
        (0.9, "run returned 0.9 for width=2.*expected a dict of named numbers"),
        ({"seed": 1.0}, "run returned a metric named 'seed'"),
        ({"width": 1.0}, "run returned a metric named 'width'"),
    ],
)
def test_what_is_no_metric_is_refused_by_name(tmp_path, metrics, sentence):
    started = study(tmp_path / "runs.jsonl", lambda *_: metrics)
    with pytest.raises(ValueError, match=sentence):
        started.run(progress=False)
    assert keys_in(started.path) == []
    started.run(progress=False, on_error="record")
    assert len(started.errors()) == len(started.missing()) == len(started.runs)
    assert all(
        re.search(sentence.replace("width=2", "width="), e) for e in started.errors().values()
    )


def test_a_run_with_other_metrics_is_recorded_as_an_error_where_errors_are(tmp_path):
    def renames(setting, dataset, seed):
        return {"score": 1.0} if seed < 2 else {"accuracy": 1.0}

    started = study(tmp_path / "runs.jsonl", renames)
    started.run(progress=False, on_error="record")
    assert {r.seed for r in started.missing()} == {2}
    assert "metrics accuracy for width=2" in next(iter(started.errors().values()))


def test_truth_values_and_whatever_holds_one_number_are_metrics(tmp_path):
    metrics = {"a": np.float32(0.5), "b": True, "c": np.bool_(0), "d": np.array([2.0])}
    metrics |= {"e": torch.tensor(3.0, requires_grad=True), "f": torch.tensor([[4]])}
    frame = do(tmp_path / "runs.jsonl", lambda *_: metrics)
    assert frame[list("abcdef")].iloc[0].tolist() == [0.5, 1.0, 0.0, 2.0, 3.0, 4.0]


# Refusals


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"settings": [{"a": 1}, {"a": 1.0}]}, "a=1.0 on digits, seed 0 stands twice"),
        ({"settings": [{"a": 1, "b": 2}, {"b": 2, "a": 1}]}, "stands twice in the grid"),
        (
            {"settings": [{"a": 1}, {"b": 1}]},
            "settings has b=1 beside a=1; expected the same names",
        ),
        ({"settings": [{"seed": 1}]}, "a setting has the name 'seed'"),
        ({"settings": [{"a": math.nan}]}, "setting a is nan; expected what JSON holds"),
        ({"settings": [{"a": {1, 2}}]}, "setting a is {1, 2}; expected what JSON holds"),
        ({"settings": []}, "settings is empty; expected one or more"),
        ({"settings": "abc"}, "settings is 'abc'; expected a list"),
        ({"settings": {"a": 1}}, "settings holds 'a'; expected dictionaries, as grid makes"),
        ({"datasets": "digits"}, "datasets is 'digits'; expected a list"),
        ({"datasets": [1]}, "datasets holds 1; expected names"),
        ({"datasets": ["d", "d"]}, "on d, seed 0 stands twice"),
        ({"seeds": 5}, r"seeds is 5; expected a list, such as range\(5\)"),
        ({"seeds": [0.5]}, "seed is 0.5; expected a whole number"),
        ({"seeds": [-1]}, "seed is -1; expected a whole number, 0 or more"),
        ({"seeds": [1, 1]}, "seed 1 stands twice"),
    ],
)
def test_a_bad_plan_is_refused(tmp_path, without_shape_checks, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        study(tmp_path / "runs.jsonl", **changes)
    assert not (tmp_path / "runs.jsonl").exists()


def test_grid_refuses_what_is_no_list(without_shape_checks):
    for bad in ("abc", 3):
        with pytest.raises(ValueError, match=r"rate is .*; expected a list, such as"):
            grid(rate=bad)


def test_the_file_of_another_study_is_refused_before_and_during_the_run(tmp_path):
    path = tmp_path / "runs.jsonl"
    do(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="settings rate and width; expected depth"):
        study(path, settings=grid(depth=[1]))
    with pytest.raises(ValueError, match=r"metrics accuracy .*expected loss and score"):
        do(path, lambda *_: {"accuracy": 1.0}, seeds=range(4))
    assert path.read_bytes() == before
    other = tmp_path / "other.jsonl"
    do(other, lambda *_: {"accuracy": 1.0}, seeds=[7])
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_bytes(before + other.read_bytes())
    with pytest.raises(ValueError, match="runs with the metrics accuracy; expected loss and score"):
        study(mixed)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"import torch", "was not written by a Study"),
        (b"a,b\n1,2\n", "was not written by a Study"),
        (b"{}\n", "was not written by a Study"),
        (b"\x89PNG\r\n\x1a\n", "was not written by a Study"),
        (b'{"setting": 3}\n', "line 1 of runs.jsonl is not a run"),
        (b'{"setting": {}, "dataset": "d", "seed": 0}\n', "line 1 of runs.jsonl is not a run"),
        (
            b'{"setting": {}\n{"setting": {}}\n',
            "runs.jsonl: line 1 is not JSON: .*; delete this line, and its run is done again",
        ),
    ],
)
def test_the_file_of_something_else_is_refused_and_left_alone(tmp_path, content, sentence):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        study(path)
    assert path.read_bytes() == content


def test_a_path_that_cannot_be_written_is_told_before_the_first_run(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "runs.jsonl", tmp_path):
        with pytest.raises(OSError, match=r"path is .*; expected a file that can be written"):
            study(path, lambda *_: pytest.fail("a run was done")).run(progress=False)


def test_folders_on_the_way_are_made(tmp_path):
    assert len(do(tmp_path / "a" / "b" / "runs.jsonl")) == 24


def test_two_studies_do_not_share_a_file_at_the_same_time(tmp_path):
    path, plan = tmp_path / "runs.jsonl", {"settings": SETTINGS[:1], "datasets": ["d"]}

    def inside(setting, dataset, seed):
        with pytest.raises(RuntimeError, match=r"runs\.jsonl is in use by another study"):
            do(path, **plan)
        assert len(study(path, **plan).frame()) == seed, "reading is free"
        return {"score": 1.0}

    do(path, inside, **plan)
    assert len(keys_in(path)) == 3


def test_a_run_that_changes_the_folder_takes_no_file_along(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def moves(setting, dataset, seed):
        os.chdir(tmp_path / "elsewhere")
        return {"score": 1.0}

    started = study("runs.jsonl", moves)
    assert len(started.run(progress=False)) == 24 and started.missing() == []
    assert (tmp_path / "runs.jsonl").exists()


def test_a_new_hyperparameter_keeps_the_old_runs_with_its_default(tmp_path):
    path, calls = tmp_path / "runs.jsonl", []
    do(path)
    more = grid(width=[2, 4], rate=[0.1, 0.01], decay=[0, 0.5])
    with pytest.raises(ValueError, match="or say with defaults what those runs had"):
        study(path, settings=more)

    def count(setting, dataset, seed):
        calls.append(setting["decay"])
        return run(setting, dataset, seed)

    frame = do(path, count, settings=more, defaults={"decay": 0.0})
    assert len(frame) == 48 and calls == [0.5] * 24
    assert study(path, settings=more, defaults={"decay": 0.0}).missing() == []


def test_the_name_of_a_run_is_that_of_its_key():
    names = {Run(s, "d", 0).name for s in ({"a": 1, "b": 2}, {"b": 2.0, "a": 1})}
    assert len(names) == 1 and re.fullmatch("[0-9a-f]{12}", names.pop())
    assert len({r.name for r in study("nowhere.jsonl").runs}) == 24


def test_on_error_takes_two_words(tmp_path):
    with pytest.raises(ValueError, match="on_error is 'ignore'; expected 'stop' or 'record'"):
        study(tmp_path / "runs.jsonl").run(on_error="ignore")


def test_the_bar_shows_what_runs_and_the_last_metric(tmp_path, capsys):
    study(tmp_path / "runs.jsonl").run()
    text = capsys.readouterr().err
    assert "24/24" in text and "width=4, rate=0.01 on faces, seed 2" in text and "score" in text


def test_the_bar_counts_no_error_as_done_and_cuts_long_texts(tmp_path, capsys):
    def breaks(setting, dataset, seed):
        raise RuntimeError("x" * 500)

    started = study(tmp_path / "runs.jsonl", breaks, settings=grid(name=["y" * 500]))
    started.run(on_error="record")
    last = capsys.readouterr().err.split("\r")[-1]
    assert "0/6" in last and "x" * 10 in last and "x" * 41 not in last and "y" * 41 not in last


def test_settings_that_look_alike_have_rows_of_their_own(tmp_path):
    def tell(setting, dataset, seed):
        return {"score": 1.0 if setting["a"] == 1 else 0.0}

    started = study(tmp_path / "runs.jsonl", tell, settings=[{"a": 1}, {"a": "1"}])
    started.run(progress=False)
    assert started.table()["digits"].to_dict() == {"a=1": "1.000 ± 0.000", "a='1'": "0.000 ± 0.000"}


def test_each_record_says_where_it_comes_from(tmp_path):
    do(tmp_path / "runs.jsonl")
    record = json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[0])
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"].endswith("CPU") and record["seconds"] >= 0


def test_lists_and_none_in_settings(tmp_path):
    settings = [{"widths": [8, 16], "drop": None}, {"widths": (8,), "drop": 0.5}]
    frame = do(tmp_path / "runs.jsonl", lambda *_: {"score": 1.0}, settings=settings)
    assert set(frame.widths) == {"[8, 16]", "[8]"}
    assert set(frame["drop"]) == {None, 0.5}
    table = ablation_table(frame, "drop", "score", with_value=0.5, without_value=None)
    assert [row.difference.mean for row in table.rows] == [0, 0]
    lists = ablation_table(frame, "widths", "score", with_value=[8, 16], without_value=(8,))
    assert [row.difference.n for row in lists.rows] == [3, 3]


# Intervals

shares = st.lists(st.floats(0, 1), min_size=2, max_size=20)


@given(shares, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_mean_interval_is_that_of_scipy(values, level):
    found = mean_interval(values, level)
    assert found.n == len(values) and found.mean == pytest.approx(np.mean(values), abs=1e-12)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    assert found.half == pytest.approx(half, rel=1e-12, abs=1e-12)
    if stats.sem(values) > 0:
        ends = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
        assert [found.low, found.high] == pytest.approx(ends, rel=1e-12, abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_paired_difference_is_that_of_scipy(pairs):
    first, second = zip(*pairs, strict=True)
    found = paired_difference(first, second)
    differences = np.subtract(first, second)
    assert found.mean == pytest.approx(differences.mean(), abs=1e-12)
    if np.ptp(differences) > 1e-6:
        ends = stats.ttest_rel(first, second).confidence_interval(0.95)
        assert [found.low, found.high] == pytest.approx(ends, rel=1e-12, abs=1e-12)


@given(st.lists(st.tuples(*[st.integers(-64, 64)] * 3), min_size=1, max_size=12))
def test_what_a_pair_shares_cancels_and_swapping_turns_the_sign(triples):
    # Sixty-fourths add without rounding.
    first, second, shared = (np.array(part) / 64 for part in zip(*triples, strict=True))
    found = paired_difference(first, second)
    assert repr(paired_difference(first + shared, second + shared)) == repr(found)
    swapped = paired_difference(second, first)
    assert swapped.mean == -found.mean
    assert repr(swapped.half) == repr(found.half)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_holds_the_truth_as_often_as_it_says(n, level):
    generator, repeats = np.random.default_rng(n), 4000
    held = sum(
        mean_interval(values, level).holds(0.7)
        for values in generator.normal(0.7, 0.1, (repeats, n))
    )
    # Four standard errors of a share.
    assert abs(held / repeats - level) < 4 * math.sqrt(level * (1 - level) / repeats)


def test_the_paired_interval_holds_the_truth_where_seeds_are_hard_or_easy():
    generator, repeats = np.random.default_rng(0), 1000
    held = narrower = 0
    for _ in range(repeats):
        split = generator.normal(0, 0.1, 5)
        first, second = (
            split + generator.normal(0.72, 0.01, 5),
            split + generator.normal(0.7, 0.01, 5),
        )
        found = paired_difference(first, second)
        held += found.holds(0.02)
        low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
        narrower += 2 * found.half < high - low
    assert abs(held / repeats - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats)
    assert narrower / repeats > 0.99


@pytest.mark.parametrize(
    "values, text",
    [
        ([], "no run"),
        ([0.9], "0.900 (one seed)"),
        ([0.5, 0.5], "0.500 ± 0.000"),
        ([math.nan, 1], "not finite"),
        ([math.inf, -math.inf], "not finite"),
        ([1000.0, 1040.0, 1020.0], "1020 ± 50"),
        ([-0.5, -0.51, -0.49], "−0.500 ± 0.025"),
        ([3e-5], "3.000e-5 (one seed)"),
        ([3e-5, 3.1e-5], "(3.05 ± 0.64)e-5"),
        ([1e6, 1.1e6, 1.2e6], "(1.10 ± 0.25)e6"),
        ([0.00123], "0.00123 (one seed)"),
        ([1234.5], "1234 (one seed)"),
        ([0.0, 0.0], "0.000 ± 0.000"),
        ([1e-9, 0.5], "0.3 ± 3.2"),
    ],
)
def test_an_interval_in_words(values, text):
    assert str(mean_interval(values)) == text


def test_an_interval_of_one_holds_nothing_and_signs_are_written():
    assert not mean_interval([0.9]).holds(0.9)
    assert Interval(0.02, 0.01, 3, 0.95).text("+") == "+0.020 ± 0.010"
    with pytest.raises(ValueError, match="level is 95; expected a share between 0 and 1"):
        mean_interval([1, 2], 95)
    with pytest.raises(ValueError, match="first and second have 2 and 1 values"):
        paired_difference([1, 2], [1])


# Tables


def ablation_frame(seeds=5):
    rows = [
        {"part": part, "dataset": d, "seed": s, "score": 0.8 + 0.1 * part * (d == "a") + 0.01 * s}
        for part in (True, False)
        for d in ("a", "b_1")
        for s in range(seeds)
    ]
    return pd.DataFrame(rows).assign(seconds=2.0, hardware="2-thread CPU")


def test_ablation_table_pairs_seeds_per_data_set():
    table = ablation_table(ablation_frame(), "part", "score")
    first, second = table.rows
    assert (first.dataset, second.dataset) == ("a", "b_1")
    assert first.difference.mean == pytest.approx(0.1) and first.difference.half < 1e-12
    assert second.difference.mean == 0 and second.difference.half == 0
    assert first.with_part == mean_interval([0.9 + 0.01 * s for s in range(5)])


def test_ablation_table_takes_the_seeds_that_both_sides_have_in_any_order():
    frame = ablation_frame().sample(frac=1, random_state=0)
    frame = frame[frame.part | (frame.seed != 3)]
    row = ablation_table(frame, "part", "score").rows[0]
    assert row.difference.n == row.with_part.n == 4 and row.seeds == 5
    assert "| 4 of 5 |" in ablation_table(frame, "part", "score").to_markdown()
    assert abs(row.difference.mean) == pytest.approx(0.1) or row.dataset != "a"


def test_ablation_table_with_one_seed_has_no_interval():
    text = ablation_table(ablation_frame(1), "part", "score").to_markdown()
    assert "+0.100 (one seed) | 1 |" in text and "±" not in text


def test_ablation_table_as_text():
    table = ablation_table(ablation_frame(), "part", "score")
    lines = table.to_markdown().splitlines()
    assert lines[0] == "| data set | with part | without part | difference | seeds |"
    assert len(lines) == 4 and all(line.count("|") == 6 for line in lines)
    assert str(table) == table._repr_markdown_() == table.to_markdown()
    latex = table.to_latex()
    assert latex.count(r"\\") == 3 and r"b\_1 & 0.820 $\pm$ 0.020 &" in latex
    assert all(mark in latex for mark in (r"\toprule", r"\midrule", r"\bottomrule"))
    barred = ablation_frame().replace({"dataset": {"a": "a|[b]"}})
    text = ablation_table(barred, "part", "score")
    assert r"| a\|\[b\] |" in text.to_markdown() and r"a\textbar{}{[}b]" in text.to_latex()
    lost = ablation_frame().assign(score=math.nan)
    assert "not finite" in ablation_table(lost, "part", "score").to_markdown()


@pytest.mark.parametrize("draw", [ablation_table, role_of])
def test_frames_that_do_not_fit_are_refused(draw):
    frame = ablation_frame()
    with pytest.raises(ValueError, match="metric is 'acc'; expected a column of the frame: part"):
        draw(frame, "part", "acc")
    with pytest.raises(ValueError, match="is 'encoder'; expected a column"):
        draw(frame, "encoder", "score")
    with pytest.raises(ValueError, match="several runs with part=True on a, seed 0; expected one"):
        draw(pd.concat([frame, frame]), "part", "score")


def test_a_value_that_no_run_has_is_refused():
    with pytest.raises(ValueError, match="part is 'conv' in no run; expected one of True, False"):
        ablation_table(ablation_frame(), "part", "score", with_value="conv")
    with pytest.raises(ValueError, match="chosen is 3; expected one of True, False"):
        role_of(ablation_frame(), "part", "score", chosen=3)


def test_measured_says_what_was_measured():
    frame = ablation_frame()
    assert measured(frame, "score", on="held out") == (
        "score on a and b_1 (held out): mean of 5 seeds ± 95 % interval; "
        "20 runs on 2-thread CPU, 40 s in all"
    )
    one = measured(ablation_frame(1)[:1], "score")
    assert one == "score on a: one seed, no interval; 1 run on 2-thread CPU, 2.0 s in all"
    uneven = frame[(frame.dataset == "a") | (frame.seed < 3)].assign(seconds=600.0)
    assert "mean of 3 to 5 seeds" in measured(uneven, "score")
    assert "160 min" not in measured(uneven, "score") and "2.7 h in all" in measured(
        uneven, "score"
    )
    with pytest.raises(ValueError, match="frame has no rows"):
        measured(frame[:0], "score")


def test_measured_counts_seeds_for_each_setting_and_runs_that_are_not_finite():
    frame = ablation_frame()
    # Seeds 0 to 2 with the part and 2 to 4 without: five seeds in all, three for each setting.
    uneven = frame[frame.part & (frame.seed < 3) | ~frame.part & (frame.seed > 1)]
    assert "mean of 3 seeds" in measured(uneven, "score")
    lost = frame.assign(score=frame.score.where(frame.seed > 0))
    assert "20 runs, 4 of them not finite, on 2-thread CPU" in measured(lost, "score")
    settings = frame.assign(widths=None)[["part", "widths", "dataset", "seed", "score"]]
    settings = settings.assign(seconds=1.0, hardware="H100")
    assert "mean of 5 seeds" in measured(settings, "score"), "None is a setting like others"


# Figures


def role_frame(values, seeds=3):
    rows = [
        {"rate": v, "dataset": d, "seed": s, "score": s * 0.1 + i}
        for i, v in enumerate(values)
        for d in ("a", "b")
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "values, scale, ticks",
    [
        ([0.1, 0.001, 0.01], "log", None),
        ([1, 2, 10], "linear", None),
        ([0, 1, 100], "linear", ["0", "1", "100"]),
        ([0.001, 0.003, 0.01, 0.03], "log", ["0.001", "0.003", "0.01", "0.03"]),
        (list(range(12)), "linear", ["0", "2", "4", "6", "8", "10"]),
        (["adaln", "cross"], "linear", ["adaln", "cross"]),
        ([True, False], "linear", ["True", "False"]),
    ],
)
def test_role_of_draws_dots_mean_and_band(values, scale, ticks):
    figure = role_of(role_frame(values), "rate", "score", chosen=values[0])
    assert [axes.get_title().split(" ")[0] for axes in figure.axes] == ["a", "b"]
    for axes in figure.axes:
        assert axes.get_xscale() == scale and axes.get_xlabel() == "rate"
        dots = [line for line in axes.lines if line.get_marker() == "."]
        assert len(dots) == len(values) and {len(line.get_xdata()) for line in dots} == {3}
        (mean,) = [line for line in axes.lines if line.get_marker() == "o"]
        assert sorted(mean.get_ydata()) == pytest.approx([0.1 + i for i in range(len(values))])
        assert len(axes.collections) == 1  # the band
        assert [line.get_linestyle() for line in axes.lines].count("--") == 1
        if ticks:
            assert [label.get_text() for label in axes.get_xticklabels()] == ticks
    assert figure.axes[0].get_ylabel() == "score"
    figure.draw_without_rendering()


def test_role_of_draws_many_data_sets_in_rows_of_three():
    frame = pd.concat(role_frame([1, 2]).assign(dataset=f"data set {n}") for n in range(4))
    frame = frame.drop_duplicates(["rate", "dataset", "seed"])
    figure = role_of(frame, "rate", "score")
    assert [axes.get_visible() for axes in figure.axes] == [True] * 4 + [False] * 2
    assert [axes.get_title() for axes in figure.axes[:4]] == [f"data set {n}" for n in range(4)]
    assert [axes.get_ylabel() for axes in figure.axes[:4]] == ["score", "", "", "score"]


def test_role_of_marks_runs_that_are_not_finite_and_draws_no_band_for_one_seed():
    frame = role_frame([1, 2])
    frame.loc[(frame.rate == 2) & (frame.seed == 0), "score"] = math.inf
    crosses = [
        line for line in role_of(frame, "rate", "score").axes[0].lines if line.get_marker() == "x"
    ]
    assert len(crosses) == 1
    (band,) = role_of(role_frame([1, 2], seeds=1), "rate", "score").axes[0].collections
    assert sum(len(path.vertices) for path in band.get_paths()) == 0


VALUES = {"ours": {"acc": 0.9, "loss": 2.0}, "theirs": {"acc": 0.45, "loss": 1.0}}
BETTER = {"acc": "higher", "loss": "lower"}


def test_ring_chart_draws_a_bar_per_method_and_measure_relative_to_the_best():
    figure = ring_chart(VALUES, BETTER)
    axes = figure.axes[0]
    assert [round(bar.get_height(), 9) for bar in axes.patches] == [1, 0.5, 0.5, 1]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0.9", "0.45", "acc ↑", "2", "1", "loss ↓"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["ours", "theirs"]
    angles = [bar.get_x() for bar in axes.patches]
    assert angles == sorted(angles), "no bar covers another"
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2


@pytest.mark.parametrize(
    "values, better, sentence",
    [
        ({"a": {"x": -1.0}}, {"x": "higher"}, "x of a is -1.0; expected a number of 0 or more"),
        ({"a": {"x": math.nan}}, {"x": "higher"}, "x of a is nan; expected a number of 0"),
        ({"a": {"x": "0.9"}}, {"x": "higher"}, "x of a is '0.9'; expected a number of 0"),
        ({"a": {"x": 1.0}}, {"y": "higher"}, "a has no y"),
        ({"a": {"x": 1.0}}, {"x": "up"}, r"better\['x'\] is 'up'; expected 'higher' or 'lower'"),
        ({}, {"x": "higher"}, "values has 0 methods; expected 1 to 6"),
        ({"a": {"x": 1.0}}, {}, "better is empty"),
    ],
)
def test_ring_chart_refuses(without_shape_checks, values, better, sentence):
    with pytest.raises(ValueError, match=sentence):
        ring_chart(values, better)


def test_ring_chart_draws_a_measure_of_zero():
    values = {"a": {"x": 0, "y": 0.0, "z": 0}, "b": {"x": 2, "y": 3, "z": 0}}
    figure = ring_chart(values, {"x": "higher", "y": "lower", "z": "higher"})
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0, 1, 1, 0, 0, 0]


def test_the_legend_of_six_long_names_fits_the_ring_chart():
    names = [f"a method with a long name {n}" for n in range(6)]
    figure = ring_chart({name: {"x": 1} for name in names}, {"x": "higher"})
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width < figure.bbox.width


def captions(figure):
    return [axes.get_xlabel() for axes in figure.axes]


def test_failures_come_worst_first_above_the_best():
    images = torch.zeros(6, 1, 4, 4)
    scores, truth = torch.tensor([0.1, 5, 0.2, 3, 0.3, 4]), torch.tensor([1, 1, 1, 1, 1, 1])
    figure = failure_gallery(
        images, scores, truth=truth, prediction=torch.tensor([1, 2, 1, 2, 1, 1]), k=2
    )
    assert captions(figure) == [
        "1 seen as 2\n5.00",
        "1 seen as 2\n3.00",
        "1 seen as 1\n0.10",
        "1 seen as 1\n0.20",
    ]
    assert [axes.get_ylabel() for axes in figure.axes] == ["worst 2", "", "best 2", ""]
    assert figure.get_suptitle() == "2 of 6 wrong"


def test_failures_of_other_chapters_pictures():
    images = [np.full((3, 5, 3), n, np.uint8) for n in range(4)]
    figure = failure_gallery(images, [1, math.nan, 0, 2], captions=list("abcd"), k=9)
    assert captions(figure) == ["b\nnan", "d\n2.00", "c\n0.00", "a\n1.00"]
    assert figure.axes[0].images[0].get_array()[0, 0, 0] == 1
    for texts in (np.array(list("abcd")), pd.Series(list("abcd"))):
        assert captions(failure_gallery(images, [1, 3, 0, 2], captions=texts, k=1))[0] == "b\n3.00"
    assert captions(failure_gallery(torch.zeros(2, 3, 4, 4), [-1e-9, 0.5])) == ["0.50", "0.00"]


def test_a_best_row_with_wrong_ones_says_so():
    images, truth = torch.zeros(4, 1, 2, 2), [1, 1, 1, 1]
    figure = failure_gallery(images, [4, 3, 2, 1], truth=truth, prediction=[2, 2, 2, 1])
    assert [figure.axes[n].get_ylabel() for n in (0, 2)] == ["worst 2", "best 2, 1 wrong"]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"truth": [1, 1]}, "one of truth and prediction is given; expected both or neither"),
        ({"images": torch.ones(2, 1, 2, 2) / 2}, "floats of at most 0.5; expected .0, 255.: mult"),
        ({"images": torch.zeros(3, 1, 2, 2)}, "images has length 3; expected 2, that of scores"),
        ({"captions": ["a"]}, "captions has length 1; expected 2"),
        ({"truth": [1], "prediction": [1, 2]}, "truth has length 1; expected 2"),
        ({"k": 0}, "k is 0; expected a whole number, 1 or more"),
        ({"images": [np.zeros((2, 2))] * 2}, "an array of float64 and shape .*expected uint8"),
        ({"images": torch.zeros(1, 1, 2, 2), "scores": [1]}, "scores has length 1; expected two"),
    ],
)
def test_a_gallery_refuses(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        failure_gallery(**{"images": torch.zeros(2, 1, 2, 2), "scores": [1, 2], **arguments})
