"""The results that ship with the lesson on experiments: files of studies, with what it reads."""

import json

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem, rdBase

from fourfold.graph_dit.metrics import logp, random_pairing_error, tpsa
from fourfold.kit.data import data_path
from fourfold.kit.molecules import qm9_table
from fourfold.paper_writing.experiments import Study

CHOSEN = {"design": "AdaLN", "encoding": "cluster", "noise": "independent", "output": "MLP"}
CHANGES = (
    {},
    {"design": "in-context"},
    {"design": "cross-attention"},
    {"encoding": "direct"},
    {"encoding": "interval"},
    {"noise": "graph"},
    {"noise": "corrected"},
    {"output": "linear"},
)
ABLATED = [CHOSEN | change for change in CHANGES]
ROLES = [{"guidance": g, "strides": 50} for g in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)]
ROLES += [{"guidance": 2.0, "strides": n} for n in (10, 25, 100, 200)]
PLANS = {"ablations": (ABLATED, range(3)), "roles": (ROLES, range(4))}
GENERATORS = ("logP", "TPSA", "SA", "all three")


def no_run(setting, dataset, seed):
    raise AssertionError("the file is read, nothing is run")


def shipped(name):
    path = data_path("results", f"graph_dit_{name}.jsonl")
    settings, seeds = PLANS[name]
    return Study(path, no_run, settings=settings, datasets=["QM9"], seeds=seeds)


@pytest.fixture(scope="module")
def opening():
    return pd.read_csv(data_path("results", "graph_dit_opening.csv"))


@pytest.fixture(scope="module")
def sets():
    return pd.read_csv(data_path("results", "graph_dit_datasets.csv")).set_index("data set")


@pytest.mark.parametrize("name", PLANS)
def test_no_run_is_missing(name):
    assert not shipped(name).missing()


@pytest.mark.parametrize("name", PLANS)
def test_the_file_holds_the_settings_of_the_study_and_no_others(name):
    lines = data_path("results", f"graph_dit_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert all(record["setting"] in PLANS[name][0] for record in found)
    assert all("error" not in record for record in found)


@pytest.mark.parametrize("name", PLANS)
def test_shares_are_shares_and_errors_are_finite(name):
    frame = shipped(name).frame()
    for column in {"valid", "corrected", "diversity", "similarity", "different"} & set(frame):
        assert frame[column].between(0, 1).all()
    for column in [c for c in frame if c.startswith(("logP", "TPSA"))]:
        assert np.isfinite(frame[column]).all() and (frame[column] > 0).all()


def test_correction_makes_molecules_of_more_graphs():
    frame = shipped("ablations").frame()
    assert (frame.corrected >= frame.valid).all()


def test_guidance_brings_the_course_s_weights_nearer_to_the_targets():
    frame = shipped("roles").frame()
    mean = frame[frame.strides == 50].groupby("guidance")[["logP error", "TPSA error"]].mean()
    assert (mean.loc[2.0] < 0.7 * mean.loc[0.0]).all()
    held_out = qm9_table("held_out")
    for name in ("logP", "TPSA"):
        # Unguided, the error is that of random pairing; 100 to 300 molecules scatter by some 10 %.
        chance = random_pairing_error(held_out[name])
        assert mean.loc[0.0, f"{name} error"] == pytest.approx(chance, rel=0.3)


def test_each_target_was_asked_of_each_generator(opening):
    assert len(opening) == 100 * len(GENERATORS)
    assert (opening.groupby("target").generator.agg(tuple) == GENERATORS).all()
    assert all(len(text.split()) == 30 for text in opening.smiles)


def test_targets_are_held_out_molecules_with_their_values(opening):
    assert opening.of.isin(qm9_table("held_out").smiles).all()
    one = opening[opening.generator == "logP"]
    # Rounded to four decimals in the file.
    np.testing.assert_allclose(one["asked logP"], logp(list(one.of)), atol=5e-5)
    np.testing.assert_allclose(one["asked TPSA"], tpsa(list(one.of)), atol=5e-5)


def test_the_lists_hold_canonical_molecules_of_one_piece(opening):
    texts = {text for row in opening.smiles[:40] for text in row.split()} - {"-"}
    with rdBase.BlockLogs():
        assert all(Chem.CanonSmiles(text) == text and "." not in text for text in texts)


def test_a_generator_hits_its_own_property_better_than_chance(opening):
    for name, oracle in (("logP", logp), ("TPSA", tpsa)):
        rows = opening[opening.generator == name].iloc[::5]
        asked = np.repeat(rows[f"asked {name}"].to_numpy(), 30)
        made = [None if text == "-" else text for row in rows.smiles for text in row.split()]
        error = np.nanmean(np.abs(oracle(made) - asked))
        assert error < random_pairing_error(opening[f"asked {name}"])


def test_the_data_sets_are_measured_property_by_property(sets):
    assert sets.loc["QM9", "property"].tolist() == ["logP", "TPSA"]
    assert sets.loc["B3DB", "property"].tolist() == ["logBB", "BBB"]
    if "polymers" in sets.index:
        assert sets.loc["polymers", "property"].tolist() == ["O2", "N2", "CO2"]
    for column in ("valid", "corrected", "two stars"):
        assert sets[column].between(0, 1).all()
    assert (sets.loc[["QM9", "B3DB"], "two stars"] == 0).all()


def test_no_molecule_of_the_polymers_is_shipped():
    for name in ("datasets.csv", "opening.csv"):
        assert "*" not in data_path("results", f"graph_dit_{name}").read_text(encoding="utf-8")
