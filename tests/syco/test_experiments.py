"""The measured files of the lesson on experiments hold what its sentences rest on."""

import json

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem, rdBase

from fourfold.graph_dit.metrics import logp
from fourfold.kit.data import data_path
from fourfold.syco.learning import SyCo

FAIR = {
    "qm9": ("SyCo, one hour", "Graph DiT, one hour"),
    "nci": ("SyCo, ten minutes", "Graph DiT, ten minutes"),
}
ROWS = {"qm9": 1000, "nci": 500}


def samples(name):
    table = pd.read_csv(data_path("results", f"generated_{name}.csv.gz"), keep_default_na=False)
    return table.assign(whole=[bool(t) and "." not in t for t in table.smiles])


@pytest.mark.parametrize("name", FAIR)
def test_every_model_made_as_many_and_the_ceiling_is_there(name):
    free = samples(name).query("guided == 'no'")
    counts = free.groupby("model").size()
    assert {*FAIR[name], "training molecules"} <= set(counts.index)
    assert (counts == ROWS[name]).all()
    assert free[free.model == "training molecules"].whole.all()


@pytest.mark.parametrize("name", FAIR)
def test_every_text_is_a_molecule_or_empty(name):
    with rdBase.BlockLogs():
        texts = samples(name).smiles.unique()
        broken = [text for text in texts if text and Chem.MolFromSmiles(text) is None]
    assert not broken


def test_all_models_were_asked_for_the_same_values():
    asked = samples("qm9").query("guided == 'yes'")
    columns = [list(rows.asked.astype(float)) for _, rows in asked.groupby("model")]
    assert len(columns) == 4 and len(columns[0]) == 500
    assert all(column == columns[0] for column in columns)


def test_asking_helps_every_model():
    table = samples("qm9")
    for model, rows in table[table.guided == "yes"].groupby("model"):
        kept = rows[rows.whole]
        error = np.abs(logp(list(kept.smiles)) - kept.asked.astype(float)).mean()
        free = table[(table.guided == "no") & (table.model == model) & table.whole]
        free = list(free.smiles)[: len(kept)]
        unasked = np.abs(logp(free) - kept.asked.astype(float)[: len(free)]).mean()
        assert error < 0.75 * unasked


@pytest.mark.parametrize("name", FAIR)
def test_the_scores_are_those_of_the_samples(name):
    scores = pd.read_csv(data_path("results", "syco_scores.csv"))
    scores = scores[(scores.data == name.upper()) & (scores.part == "all")].set_index("model")
    free = samples(name).query("guided == 'no'")
    assert set(scores.index) == set(free.model)
    for model, rows in free.groupby("model"):
        # written with five digits
        assert scores["one piece"][model] == pytest.approx(rows.whole.mean(), abs=1e-5)
        assert scores.validity[model] == pytest.approx((rows.smiles != "").mean(), abs=1e-5)
    assert scores.compared.nunique() == 1


def test_the_fair_pair_has_one_budget():
    budget = pd.read_csv(data_path("results", "syco_beside_graph_dit.csv")).set_index("model")
    one, two = (budget.loc[model] for model in FAIR["qm9"])
    assert one["training molecules"] == two["training molecules"]
    assert one["training hours"] == pytest.approx(two["training hours"], rel=0.1)


def test_the_ablations_are_balanced():
    path = data_path("results", "syco_ablations.jsonl")
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    chosen = {"sigma": 0.1, "latent": 4, "conformers": 1, "shake": 0.0}
    base = {record["seed"] for record in records if record["setting"] == chosen}
    assert records[0]["setting"] == chosen
    assert {record["seed"] for record in records} <= base
    for record in records:
        assert sum(record["setting"][name] != chosen[name] for name in chosen) <= 1


def test_the_model_of_nci_reads_what_the_figure_shows():
    maker = SyCo.load(data_path("checkpoints", "syco_nci.safetensors"))
    known = ["Cn1c(=O)c2c(ncn2C)n(C)c1=O", "CC(=O)Oc1ccccc1C(=O)O"]
    assert maker.reconstruct(known) == 1
