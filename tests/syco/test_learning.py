import json
import math
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from fourfold.graph_dit.graphs import Codes, Vocabulary
from fourfold.graph_dit.metrics import logp, tanimoto_matrix
from fourfold.kit.checkpoints import read_card, save_checkpoint, save_tensors
from fourfold.kit.molecules import qm9_coordinates, qm9_table
from fourfold.syco import learning
from fourfold.syco.learning import (
    PROPERTIES,
    SyCo,
    TensorRows,
    count_divergence,
    density_divergence,
    evaluate_syco,
    fcd_score,
    guacamol_scores,
    holds,
    kl_score,
    load_syco,
    qed,
    read_molecule,
    small_nci,
    train_course,
)

SMALL = {
    "encoder_width": 8,
    "encoder_depth": 1,
    "width": 8,
    "depth": 1,
    "guide_width": 8,
    "guide_depth": 1,
    "steps_of_noise": 10,
}
SMILES = ["CCO", "CCC", "CCN", "C1CC1", "CC=O", "C#N", "CF", "CO", "c1ccoc1", "O=C1CCCC1"]
STEPS = {"autoencoder_steps": 3, "diffusion_steps": 4, "guide_steps": 2, "batch": 4}
QM9 = Vocabulary(("C", "N", "O", "F"), 9, kekulize=True)


def fitted(smiles=SMILES, properties=("logP", "QED"), options=SMALL, **how):
    return SyCo(properties, **options).fit(smiles, **{**STEPS, "progress": False, **how})


@pytest.fixture(scope="module")
def maker():
    return fitted()


@pytest.fixture(scope="module")
def course_s():
    return load_syco("qm9")


def same(one, other):
    pairs = zip(one.parts.state_dict().values(), other.parts.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# The scores.


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.randoms())
def test_a_list_has_no_divergence_from_itself_in_any_order(values, order):
    mixed = list(values)
    order.shuffle(mixed)
    ours = np.array(values, float), np.array(mixed, float)
    assert abs(count_divergence(*ours)) < 1e-12
    if np.ptp(values) > 0:
        assert abs(density_divergence(*ours)) < 1e-9  # sums in another order


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=40),
    st.lists(st.integers(0, 9), min_size=2, max_size=40),
)
def test_a_divergence_is_not_negative(one, other):
    one, other = np.array(one, float), np.array(other, float)
    assert count_divergence(one, other) > -1e-9
    assert density_divergence(one, other) > -1e-9


def test_counts_give_the_sum_of_the_definition():
    p, q = np.array([0.75, 0.25]), np.array([0.25, 0.75])
    found = count_divergence(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]))
    assert found == pytest.approx((p * np.log(p / q)).sum(), abs=1e-7)  # 1e-10 in eight bins
    # Two thirds outside of the range are in no bin; the rest is as the reference.
    assert count_divergence(np.array([0, 1]), np.array([0, 1, 5, 6, 7, 8])) == pytest.approx(0)


@pytest.mark.parametrize(("shift", "deviation"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.0, 1.5)])
def test_densities_give_the_closed_form_of_two_normals(shift, deviation):
    draws = np.random.default_rng(0).normal(size=(2, 5_000))
    found = density_divergence(draws[0], shift + deviation * draws[1])
    true = math.log(deviation) + (1 + shift**2) / (2 * deviation**2) - 0.5
    # Kernels widen both normals by 0.14 of their deviation, so by 2 % in the variance; and the
    # standard error of 5,000 draws is below 0.02.
    assert found == pytest.approx(true, abs=0.04 + 0.03 * true)


def test_lists_without_spread_or_overlap_have_an_infinite_divergence():
    spread, none = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0])
    assert density_divergence(spread, none) == density_divergence(none, spread) == math.inf
    assert count_divergence(spread, np.array([7.0, 8.0])) == math.inf


@pytest.fixture(scope="module")
def molecules():
    table = qm9_table("held_out")["smiles"].tolist()
    return table[:60], table[60:120]


def test_a_list_scores_1_against_itself(molecules):
    one, _ = molecules
    assert kl_score(one, one[::-1]) == pytest.approx(1, abs=1e-9)


def test_molecules_of_another_kind_score_less(molecules):
    one, other = molecules
    alike = kl_score(other, one)
    chains = ["C" * n for n in range(1, 10)] * 5
    assert kl_score(chains, one) < alike < 1
    assert kl_score(["CC1OC1CO"] * 10, one) < 0.5  # each measured descriptor costs all it has


def test_copies_cost_a_tenth(molecules):
    one, other = molecules
    # The nearest neighbour of each molecule is its copy: that descriptor has no spread.
    assert kl_score(one * 2, other) <= kl_score(one, other)


@pytest.mark.parametrize(
    ("smiles", "reference", "sentence"),
    [
        (["CCO"], ["CCO", "CC"], "smiles has 1 molecules; expected two or more"),
        (["CCO", "CC"], [], "reference has 0 molecules"),
        (["CCO", "C1CC"], ["CCO", "CC"], "smiles holds 'C1CC', which is no molecule"),
        (["CCO", "CC"], ["CCO", "?"], r"reference holds '\?', which is no molecule"),
    ],
)
def test_a_score_of_no_molecules_is_refused(smiles, reference, sentence):
    with pytest.raises(ValueError, match=sentence):
        kl_score(smiles, reference)


def test_the_distance_becomes_a_score():
    assert fcd_score(0.0) == 1
    assert fcd_score(5.0) == pytest.approx(math.exp(-1))
    assert fcd_score(1.0) > fcd_score(2.0) > 0


@given(st.floats(0, 100), st.floats(0, 100))
def test_scores_of_distances_multiply(one, other):
    # Each factor is rounded to a part in 10¹⁶, and so is the exponent, which is up to 40.
    assert fcd_score(one + other) == pytest.approx(fcd_score(one) * fcd_score(other), rel=1e-13)


def test_the_scores_count_what_they_say():
    scores = guacamol_scores(
        ["CCO", "OCC", "CCN", None, "CCCC"], ["CCN"], ["CCO", "CCCN", "CC"], distance=False
    )
    assert list(scores) == ["validity", "uniqueness", "novelty", "KL"]
    assert scores["validity"] == 0.8 and scores["uniqueness"] == 0.75
    assert scores["novelty"] == pytest.approx(2 / 3)
    assert 0 <= scores["KL"] <= 1


@pytest.mark.parametrize("made", [[None, None], ["CCO", None]])
def test_fewer_than_two_valid_molecules_have_no_other_score(made):
    scores = guacamol_scores(made, ["CCN"], ["CCO", "CCCN"])
    assert scores["validity"] == sum(text is not None for text in made) / 2
    assert all(math.isnan(scores[name]) for name in ("uniqueness", "novelty", "KL", "FCD"))


def test_nothing_made_is_refused():
    with pytest.raises(ValueError, match="smiles is empty; expected one or more"):
        guacamol_scores([], ["CCN"], ["CCO", "CCCN"])


def test_the_likeness_to_a_drug():
    found = qed(["CC(=O)Oc1ccccc1C(=O)O", None])
    # RDKit's own example: aspirin has 0.55.
    assert found[0] == pytest.approx(0.55, abs=0.01) and np.isnan(found[1])


# Molecules that a user names.


def test_rows_come_in_the_order_asked():
    rows = TensorRows(torch.arange(12.0).view(4, 3), torch.arange(4))
    x, numbers = rows.__getitems__([3, 1])
    assert x.tolist() == [[9, 10, 11], [3, 4, 5]] and numbers.tolist() == [3, 1]
    assert len(rows) == 4 and rows[2][1] == 2


@pytest.mark.parametrize("text", ["c1ccoc1", "CC(=O)OCC", "Cc1c[nH]cn1", "N#CC1CC1"])
def test_a_molecule_holds_itself_and_its_parts(text):
    molecule = read_molecule("molecule", text, QM9)
    assert holds(text, molecule)
    assert holds(Chem.MolToSmiles(Chem.MolFromSmiles(text), doRandom=True), molecule)
    assert not holds("C", molecule)


def test_bonds_count_for_a_part():
    ring = read_molecule("scaffold", "C1CCOC1", QM9)
    assert holds("CC1CCOC1", ring) and not holds("Cc1ccoc1", ring)
    assert holds("CC1CCCC1=O", Chem.MolFromSmiles("O=C1CCCC1"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("C1CSC1", "S"),
        ("c1ccc2ccccc2c1", "it has 10 atoms; expected at most 9"),
        ("CC.O", "it has several pieces; expected one"),
        ("C1CC", "scaffold is 'C1CC': "),
        ("", "scaffold is ''"),
    ],
)
def test_a_scaffold_that_cannot_be_is_refused(text, reason):
    with pytest.raises(ValueError, match="scaffold is ") as said:
        read_molecule("scaffold", text, QM9)
    assert reason in str(said.value)


# Learning.


def test_each_stage_learns_for_its_steps_and_then_nothing_does(maker):
    assert {name: len(records) for name, records in maker.records.items()} == {
        "autoencoder": 3,
        "diffusion": 4,
        "guide": 2,
    }
    assert not any(p.requires_grad for p in maker.parts.parameters())
    assert not maker.parts.training


def test_a_stage_changes_no_other_s_weights():
    longer = fitted(diffusion_steps=6)
    shorter = fitted()
    pairs = [maker.parts["diffusion"].autoencoder.state_dict() for maker in (longer, shorter)]
    assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])


def test_latent_points_have_mean_0_and_deviation_1(maker):
    diffusion = maker.parts["diffusion"]
    lifted = learning._lifted(SMILES, maker.vocabulary, None, 0)
    z, mask = maker._latents(lifted)
    h = z[mask][:, 3:]
    # float32 sums over forty points
    assert h.mean(dim=0).abs().max() < 1e-4 and (h.std(dim=0, correction=0) - 1).abs().max() < 1e-4
    assert z[mask][:, :3].square().mean() == pytest.approx(1, abs=1e-4)
    assert (z[~mask] == 0).all() and diffusion.length > 0


def test_the_same_seed_learns_the_same(maker):
    assert same(maker, fitted())
    assert not same(maker, fitted(options={**SMALL, "seed": 1}))


def test_given_coordinates_are_those_that_would_be_made(maker):
    from fourfold.syco.lifting import lift

    x = lift(SMILES, maker.vocabulary, 0).x
    assert same(maker, fitted(coordinates=x))


def test_molecules_without_coordinates_are_left_out_and_said():
    x = torch.zeros(len(SMILES), 6, 3)
    x[:, :, 0] = torch.arange(6.0)
    x[3] = torch.nan
    with pytest.warns(UserWarning, match="1 of 10 molecules are left out, such as row 3, 'C1CC1'"):
        maker = fitted(coordinates=x)
    assert [(p.row, p.reason) for p in maker.problems] == [(3, "coordinates has none for it")]


def test_unreadable_molecules_are_left_out_and_said():
    with pytest.warns(UserWarning, match="2 of 12 molecules are left out, such as row 1, 'C1CC'"):
        maker = fitted([SMILES[0], "C1CC", *SMILES[1:], "C.C"])
    assert [problem.row for problem in maker.problems] == [1, 11]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"coordinates": torch.zeros(3, 6, 3)}, "coordinates has 3 rows; expected 10"),
        ({"guide_steps": 0}, "guide_steps is 0; expected a whole number, 1 or more"),
        ({"diffusion_steps": 2.5}, "diffusion_steps is 2.5; expected a whole number"),
        ({"smiles": "CCO"}, "smiles is 'CCO'; expected a list"),
        ({"smiles": ["C1CC"]}, "smiles holds no molecule that can be used"),
    ],
)
def test_a_training_that_cannot_be_is_refused(how, sentence, without_shape_checks):
    with pytest.raises(ValueError, match=sentence):
        fitted(**how)


def test_only_properties_that_can_be_computed_are_learned():
    with pytest.raises(ValueError, match="properties holds 'smell'; expected of logP, TPSA, QED"):
        SyCo(["smell"])


def test_without_properties_there_is_no_guide_to_ask():
    maker = fitted(properties=())
    assert len(maker.generate(3, steps=2, progress=False)) == 3
    with pytest.raises(ValueError, match="target holds 'logP'"):
        maker.generate(3, target={"logP": 1.0}, progress=False)


@pytest.mark.parametrize("stopped_in", ["autoencoder", "diffusion", "guide"])
def test_a_stopped_training_can_be_used_and_goes_on_to_the_same_weights(
    maker, tmp_path, monkeypatch, stopped_in
):
    real = SyCo._train

    def impatient(self, name, *arguments, **options):
        real(self, name, *arguments, **{**options, "minutes": 0.0 if name == stopped_in else None})

    monkeypatch.setattr(SyCo, "_train", impatient)
    half = fitted(folder=tmp_path)
    assert len(half.records[stopped_in]) == 1
    assert list(half.records)[-1] == stopped_in
    assert len(half.generate(3, steps=2, progress=False)) == 3
    assert half.parts["diffusion"].length != 1  # the scales are those of its clouds
    monkeypatch.setattr(SyCo, "_train", real)
    assert same(maker, fitted(folder=tmp_path))


def test_minutes_are_those_of_all_stages():
    maker = fitted(minutes=0.0)
    assert {name: len(records) for name, records in maker.records.items()} == {"autoencoder": 1}


def test_a_stage_can_keep_what_is_saved(maker, tmp_path):
    maker.save(tmp_path / "maker.safetensors")
    plan = {"autoencoder_steps": 0, "guide_steps": 0, "start": tmp_path / "maker.safetensors"}
    again = fitted(**plan)
    assert list(again.records) == ["diffusion"]
    before, after = maker.parts.state_dict(), again.parts.state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"edm"}
    wider = {**SMALL, "width": 16}
    with pytest.raises(ValueError, match="does not fit the model"):
        fitted(options=wider, **plan)


# Generating.


def test_one_seed_gives_one_result_and_another_seed_another(maker):
    one, again, other = (maker.sample(20, steps=5, seed=s, progress=False) for s in (3, 3, 4))
    assert torch.equal(one.bonds, again.bonds) and torch.equal(one.atoms, again.atoms)
    assert not torch.equal(one.bonds, other.bonds)


def test_nothing_global_is_drawn_from(maker):
    torch.manual_seed(5)
    one = maker.sample(5, steps=5, progress=False)
    torch.manual_seed(6)
    other = maker.sample(5, steps=5, progress=False)
    assert torch.equal(one.bonds, other.bonds)


def test_one_molecule_when_nothing_is_said_and_as_many_as_targets(maker):
    how = {"steps": 2, "progress": False}
    assert len(maker.generate(**how)) == 1
    assert len(maker.generate(target={"logP": [0.0, 1.0, 0.5]}, **how)) == 3
    assert len(maker.generate(7, batch=3, **how)) == 7
    with pytest.raises(ValueError, match="count is 2; expected 3"):
        maker.generate(2, target={"logP": [0.0, 1.0, 0.5]}, **how)


def test_sizes_can_be_asked_for(maker):
    how = {"steps": 2, "progress": False}
    codes = maker.sample(3, atoms=[1, 6, 2], **how)
    assert (codes.atoms >= 0).sum(dim=1).tolist() == [1, 6, 2]
    with pytest.raises(ValueError, match="atoms is 7; expected a whole number from 1 to 6"):
        maker.sample(1, atoms=7, **how)
    with pytest.raises(ValueError, match="atoms has 2 numbers; expected 3"):
        maker.sample(3, atoms=[1, 2], **how)


def test_guidance_0_is_no_guidance_and_more_is_another_walk(maker):
    how = {"steps": 5, "progress": False, "seed": 2}
    free = maker.sample(8, **how)
    off = maker.sample(8, target={"logP": 1.0}, guidance=0.0, **how)
    assert torch.equal(free.bonds, off.bonds)
    ends = []
    watch = lambda t, cloud, codes: ends.append((t, cloud.x))  # noqa: E731
    for guidance in (0.0, 2.0):
        maker.sample(8, target={"logP": 1.0}, guidance=guidance, watch=watch, **how)
    (_, plain), (_, guided) = (end for end in ends if end[0] == 0)
    assert not torch.allclose(plain, guided, atol=1e-4), "in Å"


def test_strides_left_out_are_a_hundred_or_all_that_there_are(maker):
    how = {"seed": 2, "progress": False}
    most = maker.options["steps_of_noise"]
    assert most < 100
    assert maker.generate(4, **how) == maker.generate(4, steps=most, **how)


def test_a_walk_is_watched_to_its_end(maker):
    seen = []
    codes = maker.sample(4, steps=5, progress=False, watch=lambda *each: seen.append(each))
    assert [t for t, _, _ in seen] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert all(cloud.x.shape == (4, 6, 3) and len(graphs.atoms) == 4 for _, cloud, graphs in seen)
    assert torch.equal(seen[-1][2].atoms >= 0, codes.atoms >= 0)


def test_a_property_that_was_not_learned_is_named(maker):
    with pytest.raises(ValueError, match="target holds 'logD'; expected of logP, QED"):
        maker.generate(2, target={"logD": 1.0}, progress=False)
    with pytest.warns(UserWarning, match="logP is 9; the model has seen"):
        maker.generate(2, target={"logP": 9.0}, steps=2, progress=False)


def test_nothing_can_be_asked_before_learning(tmp_path):
    empty = SyCo()
    for ask in (
        lambda: empty.generate(2),
        lambda: empty.optimise("CCO"),
        lambda: empty.reconstruct(["CCO"]),
        lambda: empty.save(tmp_path / "empty.safetensors"),
    ):
        with pytest.raises(RuntimeError, match="call `fit` or `load` first"):
            ask()


@pytest.mark.parametrize("scaffold", ["c1ccoc1", "C1CC1", "NC=O", "C"])
def test_what_comes_back_holds_its_scaffold(course_s, scaffold):
    made = course_s.generate(12, scaffold=scaffold, steps=25, progress=False)
    part = read_molecule("scaffold", scaffold, QM9)
    kept = [text for text in made if text]
    assert len(made) == 12 and all(holds(text, part) for text in kept)
    assert kept  # in our runs a third or more
    assert all(Chem.MolFromSmiles(t).GetNumAtoms() > part.GetNumAtoms() for t in kept)


def test_a_scaffold_needs_room(course_s):
    with pytest.raises(ValueError, match="scaffold has 9 atoms; expected fewer than 9"):
        course_s.generate(2, scaffold="O=C1CCCCCCC1", progress=False)
    with pytest.raises(ValueError, match="atoms is 5; expected a whole number from 6 to 9"):
        course_s.generate(2, scaffold="C1CCOC1", atoms=5, progress=False)


def test_a_scaffold_without_a_conformer_is_refused(course_s, monkeypatch):
    def fail(*_):
        raise ValueError("ETKDG finds no conformer for it")

    monkeypatch.setattr("fourfold.syco.lifting.synthetic_coordinates", fail)
    with pytest.raises(ValueError, match="scaffold is 'C1CC1': ETKDG finds no conformer"):
        course_s.generate(2, scaffold="C1CC1", progress=False)


@pytest.mark.parametrize("similarity", [0.0, 0.4])
def test_what_is_optimised_is_better_and_similar(course_s, similarity):
    found = course_s.optimise(
        "NCCc1c[nH]cn1", similarity=similarity, tries=24, steps=50, progress=False
    )
    if not found.smiles:
        assert similarity > 0  # in our runs two or more at 0.4, too
        return
    values = qed(found.smiles)
    assert np.allclose(values, found.value) and (values > found.start).all()
    assert found.value == sorted(found.value, reverse=True)
    like = tanimoto_matrix(found.smiles, ["NCCc1c[nH]cn1"])[:, 0]
    assert np.allclose(like, found.similarity) and (like >= similarity).all()
    assert len(set(found.smiles)) == len(found.smiles)


def test_nothing_better_is_no_error(maker):
    found = maker.optimise("CCO", similarity=1.0, tries=4, steps=10, progress=False)
    assert found[:3] == ([], [], []) and found.start == pytest.approx(qed(["CCO"])[0])


@pytest.mark.parametrize(
    ("molecule", "how", "sentence"),
    [
        ("CCO", {"similarity": 1.5}, "similarity is 1.5; expected 0 to 1"),
        ("CCO", {"similarity": -0.1}, "similarity is -0.1; expected 0 to 1"),
        ("CCO", {"similarity": float("nan")}, "similarity is nan; expected 0 to 1"),
        ("CCO", {"improve": "TPSA"}, "improve is 'TPSA'; expected one of logP, QED"),
        ("CCO", {"tries": 0}, "tries is 0; expected a whole number, 1 or more"),
        ("CCO", {"added": -1}, "added is -1; expected a whole number, 0 or more"),
        ("CCO", {"start": 0.0}, "start is 0.0; expected more than 0 and at most 1"),
        ("CCS", {}, "molecule is 'CCS': "),
        ("CCCCCCC", {}, "molecule is 'CCCCCCC': it has 7 atoms; expected at most 6"),
    ],
)
def test_an_optimisation_that_cannot_be_is_refused(maker, molecule, how, sentence):
    with pytest.raises(ValueError, match=sentence):
        maker.optimise(molecule, steps=10, progress=False, **how)


# Saved and loaded.


@pytest.mark.parametrize("float16", [False, True])
def test_a_saved_generator_comes_back(maker, tmp_path, float16):
    path = tmp_path / "maker.safetensors"
    maker.save(path, float16=float16)
    again = SyCo.load(path)
    assert again.vocabulary == maker.vocabulary and torch.equal(again.sizes, maker.sizes)
    assert again.properties.properties == maker.properties.properties
    assert again.options == maker.options
    assert read_card(path).seed == 0
    assert float16 or same(maker, again)
    # What was halved once is the same when it is halved again.
    again.save(path, float16=float16)
    twice = SyCo.load(path)
    assert same(again, twice)
    one, other = (m.sample(9, steps=5, progress=False) for m in (again, twice))
    assert torch.equal(one.atoms, other.atoms) and torch.equal(one.bonds, other.bonds)
    assert torch.equal(maker.sample(9, steps=5, progress=False).bonds, one.bonds) or float16


def test_a_file_that_is_no_generator_is_refused(maker, tmp_path):
    save_tensors(tmp_path / "other.safetensors", {"w": torch.zeros(1)})
    with pytest.raises(ValueError, match="has no settings in its header"):
        SyCo.load(tmp_path / "other.safetensors")
    maker.save(tmp_path / "maker.safetensors")
    card = read_card(tmp_path / "maker.safetensors")
    save_checkpoint(tmp_path / "half.safetensors", maker.parts, card, settings={"options": {}})
    with pytest.raises(ValueError, match="is not a saved SyCo"):
        load_syco(tmp_path / "half.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        load_syco(tmp_path / "nowhere.safetensors")


def test_the_course_s_generators_are_found_by_their_data(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(learning, "data_path", lambda *parts: asked.append(parts) or tmp_path)
    monkeypatch.setattr(SyCo, "load", classmethod(lambda cls, path: SyCo()))
    load_syco("qm9"), load_syco("nci"), load_syco("mine")
    assert asked == [
        ("checkpoints", "syco_qm9.safetensors"),
        ("checkpoints", "syco_nci.safetensors"),
    ]


# The course's training.


def test_an_evaluation_counts_and_measures(maker):
    results = evaluate_syco(maker, pd.DataFrame({"smiles": SMILES}), 12, training=SMILES, steps=5)
    assert 0 <= results["valid and in one piece"] <= results["valid"] <= 1
    expected = {"uniqueness", "novelty", "KL"}
    for name in maker.properties.names:
        expected |= {f"guided: error of {name}", f"no guidance: error of {name}"}
    assert expected < set(results)


def test_molecules_of_the_institute_are_small_neutral_and_whole():
    found = small_nci(5)
    assert 20 < len(found) < len(small_nci(6)) and set(found) < set(small_nci(6))
    for text in found:
        molecule = Chem.MolFromSmiles(text)
        assert 1 <= molecule.GetNumAtoms() <= 5 and "." not in text
        assert all(atom.GetFormalCharge() == 0 for atom in molecule.GetAtoms())


@pytest.fixture
def little_course(monkeypatch):
    few = {split: qm9_table(split).head(60) for split in ("train", "held_out")}
    x = {split: qm9_coordinates(split)[:60] for split in few}
    monkeypatch.setattr(learning, "qm9_table", few.get)
    monkeypatch.setattr(learning, "qm9_coordinates", x.get)
    monkeypatch.setattr(learning, "small_nci", lambda: small_nci(5)[:60])
    monkeypatch.setattr(learning, "COURSE_OPTIONS", SMALL)
    monkeypatch.setattr(learning, "evaluate_syco", partial(evaluate_syco, steps=5))
    brief = {"autoencoder": 2, "guide": 2, "diffusion": 3}
    short = {
        name: recipe._replace(**{k: v for k, v in brief.items() if getattr(recipe, k)})
        for name, recipe in learning.RECIPES.items()
    }
    monkeypatch.setattr(learning, "RECIPES", short)


@pytest.mark.parametrize(("recipe", "data"), [("short", "qm9"), ("nci", "nci")])
def test_the_course_s_training_writes_weights_that_load(tmp_path, little_course, recipe, data):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what cannot be lifted was taken out before
        done = train_course(tmp_path, recipe=recipe, steps=4, samples=4)
    assert (done.done, done.steps) == (8, 8)
    assert done.weights.name == f"syco_{data}.safetensors"
    assert load_syco(done.weights).properties.names == list(PROPERTIES)
    card = json.loads(done.weights.with_suffix(".json").read_text())
    assert card["command"] == f"fourfold train syco --recipe {recipe} --steps 4 --seed 0"
    assert card["float16"] and 0 <= card["metrics"]["exact reconstruction"] <= 1
    assert done.metrics["valid"] == card["metrics"]["valid"]


def test_the_course_s_training_stops_and_goes_on(tmp_path, little_course):
    whole = train_course(tmp_path / "whole", samples=4)
    half = train_course(tmp_path / "half", minutes=0.0, samples=4)
    assert (half.done, half.steps) == (1, 7)
    assert list(half.metrics) == ["exact reconstruction"], "no generator to measure yet"
    assert "(stopped after 1 steps)" in read_card(half.weights).command
    again = train_course(tmp_path / "half", samples=4)
    assert (again.done, again.steps) == (7, 7)
    assert same(load_syco(whole.weights), load_syco(again.weights))


def test_the_course_s_training_can_begin_with_weights(tmp_path, little_course):
    first = train_course(tmp_path / "first", samples=4)
    more = train_course(tmp_path / "more", recipe="finish", start=first.weights, samples=4)
    assert (more.done, more.steps) == (3, 3)
    assert read_card(more.weights).command.endswith("--start syco_qm9.safetensors")


def test_a_recipe_that_is_none_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="recipe is 'big'; expected one of short, long, finish, nci"
    ):
        train_course(tmp_path, recipe="big")
    with pytest.raises(ValueError, match="start is None; the recipe 'finish' expects weights"):
        train_course(tmp_path, recipe="finish")
    with pytest.raises(ValueError, match="steps is 0; expected a whole number, 1 or more"):
        train_course(tmp_path, steps=0)


def test_held_out_molecules_are_not_learned(little_course):
    learned, held_out = learning._course_data("nci", 0)
    assert not set(learned.smiles) & set(held_out.smiles)
    assert len(learned.x) == len(learned.smiles) > 5 * len(held_out.smiles)
    assert len(held_out.x) == len(held_out.smiles) > 0


def test_the_command_finds_the_training():
    import fourfold.syco

    assert fourfold.syco.train_course is train_course


# The weights that come with the course.


def test_the_course_s_weights_make_valid_molecules(course_s):
    made = course_s.generate(40, steps=50, mode="none", progress=False)
    whole = [text for text in made if text and "." not in text]
    # The card has the share of 1,000; 40 draws of a share of .8 fall below .55 once in 10,000.
    assert len(whole) > 22
    assert len(set(whole)) > 0.9 * len(whole)


def test_the_course_s_weights_listen(course_s):
    asked = [-1.5] * 16 + [2.0] * 16
    made = course_s.generate(target={"logP": asked}, guidance=2.0, steps=50, progress=False)
    low, high = np.split(logp(made), 2)
    # The targets lie 3.5 apart; without guidance the means of 16 would differ by 0.3 or so.
    assert np.nanmean(high) - np.nanmean(low) > 1


def test_the_course_s_autoencoder_gives_molecules_back(course_s):
    x = torch.from_numpy(qm9_coordinates("held_out")[:500])
    assert course_s.reconstruct(qm9_table("held_out")["smiles"][:500], x) >= 0.99


def test_reconstruction_leaves_out_what_cannot_be_lifted(course_s):
    assert course_s.reconstruct(["CCO", "CS", "C1CC"]) in (0.0, 1.0)
    with pytest.raises(ValueError, match="expected one or more"):
        course_s.reconstruct(["CS"])


def test_warnings_of_rdkit_stay_away(maker, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maker.generate(20, steps=5, progress=False)
    assert capfd.readouterr().err == ""


def test_codes_are_on_the_processor(maker):
    codes = maker.sample(2, steps=2, progress=False)
    assert isinstance(codes, Codes) and codes.atoms.device.type == "cpu"
