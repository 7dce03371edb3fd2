"""Measures of molecules against the official numbers, hand-made sets and slow definitions."""

import builtins
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from fourfold.graph_dit import metrics
from fourfold.graph_dit.metrics import (
    Compared,
    RandomForestOracle,
    accuracy,
    chemnet_activations,
    chemnet_distance,
    cosine_of_counts,
    coverage,
    fingerprints,
    fragment_counts,
    fragment_similarity,
    frechet_distance,
    internal_diversity,
    logp,
    nearest_similarity,
    novelty,
    property_error,
    random_pairing_error,
    read_smiles,
    report,
    scaffold_similarity,
    synthetic_accessibility,
    tanimoto_matrix,
    tpsa,
    uniqueness,
    valid_share,
)
from fourfold.kit.molecules import qm9_table

OFFICIAL = json.loads((Path(__file__).parents[1] / "reference" / "mol_metrics.json").read_text())
GEN, REF = OFFICIAL["gen"], OFFICIAL["ref"]
SINGLE = 1e-6  # the release computes means and similarities in float32
EXACT = 1e-12  # sums of some hundred float64 numbers up to 1
SOME = ["CCO", "CCCO", "c1ccccc1", "CC(=O)N", "FC(F)F", "C1CC1"]

needs_chemnet = pytest.mark.skipif(
    metrics._chemnet.__wrapped__ is None, reason="never: the tests install fcd_torch"
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# The official numbers


@pytest.mark.parametrize(("smiles", "name"), [(GEN, "gen"), (REF, "ref")])
def test_official_synthetic_accessibility(smiles, name):
    off = synthetic_accessibility(smiles) - OFFICIAL[f"SA_official_{name}"]
    assert np.abs(off).max() < EXACT


def test_official_diversity():
    assert abs(internal_diversity(GEN) - OFFICIAL["internal_diversity"]) < SINGLE
    assert abs(internal_diversity(GEN, p=2) - OFFICIAL["internal_diversity_p2"]) < SINGLE


def test_official_fragments():
    assert dict(fragment_counts(GEN)) == OFFICIAL["frag_counts_gen"]
    assert abs(fragment_similarity(GEN, REF) - OFFICIAL["frag_similarity"]) < EXACT


def test_official_scaffolds_and_nearest():
    assert abs(scaffold_similarity(GEN, REF) - OFFICIAL["scaf_similarity"]) < EXACT
    assert abs(nearest_similarity(GEN, REF) - OFFICIAL["snn"]) < SINGLE


def test_official_fingerprint():
    assert (
        fingerprints([GEN[1]], bits=2048)[0].nonzero()[0].tolist()
        == (OFFICIAL["ecfp4_2048_onbits_gen1"])
    )


def test_official_activations():
    seen = chemnet_activations(GEN)
    assert seen.shape == (len(GEN), OFFICIAL["chemnet_dim"])
    # Activations of size 1 in float32; their order of summation depends on the batch.
    assert np.abs(seen[0, :8] - OFFICIAL["chemnet_act_gen0_first8"]).max() < 1e-5
    sums = seen.sum(axis=1, dtype=np.float64)
    assert np.abs(sums - OFFICIAL["chemnet_act_sum_gen"]).max() < 1e-4  # sums of 512 of them


def test_official_distance():
    ours = chemnet_distance(GEN, REF)
    # The release takes the root of a singular matrix, which costs it the sixth digit.
    assert abs(ours - OFFICIAL["fcd_torch"]) < 1e-5 * OFFICIAL["fcd_torch"]
    assert abs(ours - OFFICIAL["fcd_canonical"]) < 1e-5 * OFFICIAL["fcd_canonical"]
    assert abs(ours - OFFICIAL["fcd_raw"]) > 0.1, "the spelling would matter"


# Lists with failures


def test_read_smiles_keeps_the_rows(without_shape_checks):
    texts, problems = read_smiles(["OCC", None, "C1CC", float("nan"), "CN(C)(C)C", "", 7])
    assert texts == ["CCO", None, None, None, None, None, None]
    assert [problem.row for problem in problems] == [2, 4, 5, 6]
    assert "can read" in problems[0].reason and "valence" in problems[1].reason
    assert "\n" not in problems[1].reason


def test_an_unreadable_text_is_named_with_its_row_by_every_measure():
    bad = ["CCO", "C1CC"]
    measures = [
        valid_share,
        uniqueness,
        fingerprints,
        internal_diversity,
        fragment_counts,
        tanimoto_matrix,
        chemnet_activations,
        synthetic_accessibility,
        logp,
        tpsa,
        lambda x: coverage(x, ["C"]),
        lambda x: novelty(x, SOME),
        lambda x: nearest_similarity(x, SOME),
        lambda x: fragment_similarity(x, SOME),
        lambda x: scaffold_similarity(x, SOME),
        lambda x: chemnet_distance(x, SOME),
        lambda x: report(x, SOME),
        lambda x: RandomForestOracle().fit(x, [1.0, 2.0]),
    ]
    for measure in measures:
        with pytest.raises(ValueError, match=r"smiles has 1 texts .* row 1 \('C1CC'\)"):
            measure(bad)
    for measure in (novelty, nearest_similarity, fragment_similarity, chemnet_distance, report):
        with pytest.raises(ValueError, match=r"^(reference|training) has 1 texts"):
            measure(SOME, bad)


def test_only_the_first_wrong_texts_are_spelled_out():
    with pytest.raises(ValueError, match=r"smiles has 9 texts .* and 6 more"):
        valid_share(["C1CC"] * 9)


@pytest.mark.parametrize("none", [[], "CCO", 5])
def test_no_list_is_refused(none, without_shape_checks):
    for measure in (valid_share, uniqueness, internal_diversity, logp, read_smiles):
        with pytest.raises(ValueError, match="smiles is"):
            measure(none)


def test_failures_alone_are_no_molecules():
    for measure in (uniqueness, internal_diversity, fragment_counts, chemnet_activations):
        with pytest.raises(ValueError, match="smiles holds 2 failures and no molecule"):
            measure([None, None])
    assert valid_share([None, None]) == 0
    assert np.isnan(logp([None, None])).all()


def test_failures_change_no_measure_of_the_set(without_shape_checks):
    with_failures = [None, *SOME, float("nan"), None]
    assert valid_share(with_failures) == 6 / 9
    assert uniqueness(with_failures) == 1
    assert internal_diversity(with_failures) == internal_diversity(SOME)
    assert fragment_counts(with_failures) == fragment_counts(SOME)
    assert chemnet_activations(with_failures).shape == (6, 512)
    assert np.isnan(synthetic_accessibility(with_failures)).tolist() == (
        [True, *[False] * 6, True, True]
    )


def test_a_column_of_pandas_is_a_list():
    column = pd.Series(["CCO", None, "CCN"], index=[5, 1, 3])
    assert valid_share(column) == 2 / 3
    assert logp(column)[0] == logp(["CCO"])[0]


def test_nothing_is_written_on_stderr():
    code = """
from fourfold.graph_dit.metrics import *
read_smiles(["C1CC", "CN(C)(C)C", "c1cccc1", "CCO"])
report(["CCO", None, "CCN"], ["CCO", "CCC"])
RandomForestOracle().fit(["CCO", "CCN", "CC"], [1.0, 2.0, 3.0])
"""
    done = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


# Counting


def test_coverage():
    assert coverage(["CCO"], ["C", "N", "O", "F"]) == 0.5
    assert coverage(["*CC(*)Cl", None], ["C", "*"]) == 1, "an attachment point is an atom type"
    assert coverage(["[H][H]", "C"], ["H", "C"]) == 0.5, "hydrogen does not count"
    assert coverage(["Br", "C"], ["C"]) == 1, "atoms that are not asked for do not count"
    assert coverage(["CCO.N"], ["N"]) == 1, "every fragment counts"
    with pytest.raises(ValueError, match="atoms is empty"):
        coverage(["C"], [])
    with pytest.raises(ValueError, match="atoms is 'CNO'; expected a list"):
        coverage(["C"], "CNO")


def test_uniqueness_and_novelty_go_by_the_molecule_not_the_text():
    assert uniqueness(["CCO", "OCC", "C(O)C", "N"]) == 0.5
    assert novelty(["CCO", "OCC", "N", None], ["C(C)O", None]) == 0.5
    assert novelty(SOME, SOME) == 0
    assert novelty(SOME, ["Br"]) == 1
    assert uniqueness(["C[C@H](N)F", "C[C@@H](N)F"]) == 1, "mirror images are two molecules"


# Fingerprints


def test_tanimoto_is_rdkits():
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    bits = [[generator.GetFingerprint(Chem.MolFromSmiles(s)) for s in part] for part in (GEN, REF)]
    theirs = [DataStructs.BulkTanimotoSimilarity(one, bits[1]) for one in bits[0]]
    assert np.abs(tanimoto_matrix(GEN, REF) - theirs).max() < EXACT


def test_tanimoto_of_a_list_with_itself():
    matrix = tanimoto_matrix(SOME)
    assert (matrix == matrix.T).all() and (matrix.diagonal() == 1).all()
    assert ((matrix >= 0) & (matrix <= 1)).all()


def test_empty_fingerprints_are_alike():
    nothing = np.zeros((2, 8), dtype=np.uint8)
    assert (metrics._tanimoto(nothing, nothing) == 1).all()
    something = np.ones((1, 8), dtype=np.uint8)
    assert (metrics._tanimoto(nothing, something) == 0).all()


def test_diversity_known():
    assert internal_diversity(["CCO"]) == 0
    assert internal_diversity(["CCO"] * 7) == 0
    assert internal_diversity(["C", "N", "O", "F"]) == 0.75, "no bit in common: 1 − 1/n"
    assert internal_diversity(["C", "N"], p=2) == pytest.approx(1 - 0.5**0.5, abs=EXACT)


def test_diversity_in_blocks_is_that_of_the_whole_matrix():
    smiles = qm9_table("held_out")["smiles"].iloc[:1203]  # two blocks, the second not full
    whole = 1 - tanimoto_matrix(smiles).mean()
    assert abs(internal_diversity(smiles) - whole) < 1e-10
    assert nearest_similarity(smiles, smiles) == 1


@pytest.mark.parametrize("p", [0, -1, 1.5, None])
def test_diversity_refuses_other_powers(p, without_shape_checks):
    with pytest.raises(ValueError, match="p is"):
        internal_diversity(SOME, p=p)


def test_a_bad_number_of_bits():
    with pytest.raises(ValueError, match="bits is 0"):
        fingerprints(SOME, bits=0)


# Fragments


counts = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1)


@given(counts, counts, st.integers(1, 9))
def test_the_cosine_is_that_of_vectors(one, two, times):
    from collections import Counter

    vectors = np.array([[counts.get(key, 0) for key in "abcdef"] for counts in (one, two)], float)
    lengths = np.linalg.norm(vectors, axis=1)
    cosine = cosine_of_counts(Counter(one), Counter(two))
    assert cosine == pytest.approx(vectors[0] @ vectors[1] / lengths.prod(), abs=EXACT)
    more = Counter({key: times * count for key, count in one.items()})
    assert cosine_of_counts(more, Counter(two)) == pytest.approx(cosine, abs=EXACT)
    assert cosine_of_counts(Counter(two), Counter(one)) == pytest.approx(cosine, abs=EXACT)


def test_fragments_known():
    assert fragment_similarity(SOME, SOME) == pytest.approx(1, abs=EXACT)
    assert fragment_similarity(SOME, SOME[::-1] * 3) == pytest.approx(1, abs=EXACT)
    assert fragment_similarity(["CCO"], ["CCN", "c1ccccc1"]) == 0
    assert fragment_counts(["CCOCC"]) == {"[4*]CC": 2, "[3*]O[3*]": 1}
    assert fragment_counts(["C.C"]) == {"C": 2}, "pieces are fragments"


def test_scaffolds_known():
    assert scaffold_similarity(["Cc1ccc2ccccc2c1"], ["Oc1cccc2ccccc12"]) == 1
    assert np.isnan(scaffold_similarity(["Cc1ccccc1"], ["Oc1ccccc1"])), "one ring is too few"
    assert scaffold_similarity(["Cc1ccccc1"], ["Oc1ccccc1"], rings=1) == 1
    assert scaffold_similarity(["C1CC2CC1C2"], ["c1ccc2ccccc2c1"]) == 0


# The Fréchet distance


def by_eigenvalues(one, two):
    """Equation 5 another way: the root of C_R, which has one, inside the other root."""
    mean = one.mean(axis=0) - two.mean(axis=0)
    first, second = np.cov(one.T), np.cov(two.T)
    values, vectors = np.linalg.eigh(second)
    root = vectors * values.clip(min=0) ** 0.5 @ vectors.T
    inner = np.linalg.eigvalsh(root @ first @ root).clip(min=0)
    return mean @ mean + np.trace(first) + np.trace(second) - 2 * (inner**0.5).sum()


@pytest.mark.parametrize(("n", "m", "D"), [(50, 60, 4), (5, 60, 9), (4, 3, 9), (2, 2, 3)])
def test_frechet_of_full_and_singular_covariances(n, m, D):
    one, two = random(n, D), random(m, D, seed=1) @ random(D, D, seed=2) + 0.5
    # An eigenvalue that should be 0 is 1e-16 of the largest one; its root is 1e-8.
    assert abs(frechet_distance(one, two) - by_eigenvalues(one, two)) < 1e-6


@given(st.floats(-5, 5), st.floats(0.1, 5), st.integers(2, 40))
def test_frechet_in_one_dimension(shift, scale, n):
    one = random(n, 1)
    by_hand = ((1 - scale) * one.mean() - shift) ** 2 + ((1 - scale) * one.std(ddof=1)) ** 2
    assert frechet_distance(one, scale * one + shift) == pytest.approx(by_hand, abs=1e-9)


def test_frechet_is_a_distance_of_sets():
    one, two = random(30, 6), random(40, 6, seed=1) + 1
    there = frechet_distance(one, two)
    assert frechet_distance(two, one) == pytest.approx(there, abs=1e-9)
    assert frechet_distance(one[::-1], two) == pytest.approx(there, abs=1e-9)
    turned = np.linalg.qr(random(6, 6, seed=2))[0]
    assert frechet_distance(one @ turned, two @ turned) == pytest.approx(there, abs=1e-9)
    assert 0 <= frechet_distance(one, one) < 1e-9
    assert frechet_distance(one, one + 1) == pytest.approx(6, abs=1e-9), "a shift of √6"


def test_frechet_of_points_on_one_spot():
    spot = np.ones((5, 3))
    cloud = random(20, 3)
    difference = cloud.mean(axis=0) - 1
    expected = difference @ difference + np.trace(np.cov(cloud.T))
    assert frechet_distance(spot, cloud) == pytest.approx(expected, abs=1e-9)


def test_frechet_needs_two_samples(without_shape_checks):
    with pytest.raises(ValueError, match=r"generated has shape \(1, 3\); .* n of 2 or more"):
        frechet_distance(np.ones((1, 3)), np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"reference has shape \(3,\)"):
        frechet_distance(np.ones((5, 3)), np.ones(3))
    with pytest.raises(ValueError, match="3 and 4 columns"):
        frechet_distance(np.ones((5, 3)), np.ones((5, 4)))
    with pytest.raises(ValueError, match="reference holds numbers that are not finite"):
        frechet_distance(np.ones((5, 1)), np.array([[1.0], [np.nan]]))


# ChemNet


def test_chemnet_reads_the_canonical_text_in_any_order():
    seen = chemnet_activations(["CCO", "CCN", "OCC"])
    assert (seen[0] == seen[2]).all() and (seen[0] != seen[1]).any()
    metrics._memory("cpu").clear()
    # Another batch, another order of summation in float32.
    assert np.abs(chemnet_activations(["CCN", "CCO"]) - seen[[1, 0]]).max() < 1e-5


def test_chemnet_remembers_and_forgets(monkeypatch):
    metrics._memory("cpu").clear()
    first = chemnet_activations(SOME)
    assert len(metrics._memory("cpu")) == len(SOME)
    monkeypatch.setattr(metrics, "_chemnet", lambda: (None, None))  # nothing is read again
    assert (chemnet_activations(SOME) == first).all()


def test_a_distance_to_itself_is_nothing():
    # Some 1e-6 of activations in float32, squared and summed, is far below.
    assert chemnet_distance(SOME, SOME[::-1]) < 1e-8
    assert chemnet_distance(SOME, [*SOME, None]) < 1e-8
    assert chemnet_distance(SOME, ["Brc1ccccc1", "Ic1ccccc1"]) > 5


def test_one_molecule_has_no_distance():
    with pytest.raises(ValueError, match="smiles holds one molecule; expected two or more"):
        chemnet_distance(["CCO", None], SOME)
    with pytest.raises(ValueError, match="reference holds one molecule"):
        chemnet_distance(SOME, ["CCO"])


def test_chemnet_stops_at_the_first_dot():
    seen = chemnet_activations(["CCO", "CCO.FC(F)(F)C(F)(F)F"])
    assert np.abs(seen[0] - seen[1]).max() < 1e-5


def test_a_long_molecule_is_cut():
    assert chemnet_activations(["C" * 400]).shape == (1, 512)


def test_chemnet_leaves_torchs_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    metrics._chemnet.cache_clear()
    torch.manual_seed(3)
    chemnet_activations(["CCCl"])
    assert torch.equal(torch.rand(2), expected)


def test_without_fcd_torch_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("fcd_torch"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    metrics._chemnet.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "fourfold\[molecules\]"'):
        chemnet_distance(SOME, ["CCF", "CCBr"])
    assert "distance" not in report(SOME, SOME, distance=False)


def test_the_distance_falls_with_the_number_of_molecules():
    halves = [
        chemnet_activations(qm9_table(split)["smiles"].sample(120, random_state=0))
        for split in ("train", "held_out")
    ]
    few, many = (frechet_distance(*(half[:n] for half in halves)) for n in (20, 120))
    assert few > 2 * many > 0


# Properties


def test_exact_oracles_are_the_tables():
    table = qm9_table("held_out").iloc[:50]
    assert np.abs(logp(table["smiles"]) - table["logP"]).max() < 1e-3  # as the table rounds
    assert np.abs(tpsa(table["smiles"]) - table["TPSA"]).max() < 1e-2


def test_error_counts_what_it_compares():
    assert property_error([1.0, 2.0, None, 4.0], [2.0, None, 3.0, 4.5]) == Compared(0.75, 2, 4)
    value, compared, total = property_error([None, 1.0], [1.0, float("nan")])
    assert np.isnan(value) and (compared, total) == (0, 2)
    assert property_error(np.array([1.0, 3.0]), pd.Series([2, 5])).value == 1.5


def test_error_of_logarithms():
    assert property_error([1.0, 10.0], [1000.0, 10.0], log10=True).value == pytest.approx(1.5)
    with pytest.raises(ValueError, match=r"reached is 0.0 in row 1; expected positive values"):
        property_error([1.0, 1.0, 1.0], [None, 0.0, -1.0], log10=True)


def test_error_refuses(without_shape_checks):
    with pytest.raises(ValueError, match="asked and reached have 2 and 1 values"):
        property_error([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="asked is inf in row 1"):
        property_error([1.0, float("inf")], [1.0, 1.0])
    with pytest.raises(ValueError, match="asked is empty"):
        property_error([], [])
    with pytest.raises(ValueError, match="asked holds 'high' in row 0; expected numbers or None"):
        property_error(["high"], [1.0])


def test_accuracy_counts_what_it_compares():
    assert accuracy([1, 0, 1, None, 1], [1, 1, float("nan"), 1, 1]) == Compared(2 / 3, 3, 5)
    assert accuracy(["BBB+", "BBB-"], ["BBB+", "BBB-"]).value == 1
    assert np.isnan(accuracy([None], ["yes"]).value)
    with pytest.raises(ValueError, match="asked and reached have 1 and 2"):
        accuracy([1], [1, 2])


@settings(max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_random_pairing_is_the_mean_over_all_pairs(values):
    pairs = np.abs(np.subtract.outer(values, values)).mean()
    assert random_pairing_error(values) == pytest.approx(pairs, abs=1e-9)
    assert random_pairing_error([None, *values[::-1]]) == pytest.approx(pairs, abs=1e-9)


def test_random_pairing_on_qm9():
    table = qm9_table("held_out")
    assert random_pairing_error(table["logP"]) == pytest.approx(1.07, abs=0.01)
    assert random_pairing_error(table["TPSA"]) == pytest.approx(23.4, abs=0.1)


def test_random_pairing_refuses():
    with pytest.raises(ValueError, match="values holds no number"):
        random_pairing_error([None, float("nan")])


# The forest


def test_the_forest_shows_its_own_error():
    table = qm9_table("train").iloc[1000:1120]
    oracle = RandomForestOracle(trees=50)
    assert oracle.fit(table["smiles"], table["logP"]) is oracle
    assert oracle.training.value < oracle.out_of_bag.value < random_pairing_error(table["logP"])
    assert oracle.training.compared == oracle.out_of_bag.compared == 120
    again = RandomForestOracle(trees=50).fit(table["smiles"], table["logP"])
    assert again.predict(SOME) == oracle.predict(SOME)
    predicted = oracle.predict(["CCO", None, "CCN"])
    assert predicted[1] is None and isinstance(predicted[0], float)
    assert oracle.predict([None]) == [None]


def test_the_forest_is_the_papers():
    from sklearn.ensemble import RandomForestRegressor

    table = qm9_table("train").iloc[:60]
    theirs = RandomForestRegressor(random_state=0).fit(
        fingerprints(table["smiles"], bits=2048), table["TPSA"]
    )
    ours = RandomForestOracle().fit(table["smiles"], table["TPSA"])
    assert ours.predict(SOME) == theirs.predict(fingerprints(SOME, bits=2048)).tolist()


def test_the_forest_votes_for_classes():
    smiles = ["C" * n for n in range(1, 9)] + ["O" + "C" * n for n in range(1, 9)]
    labels = ["alkane"] * 8 + ["alcohol"] * 8
    oracle = RandomForestOracle(classes=True, trees=50).fit([*smiles, None], [*labels, "alkane"])
    assert oracle.predict(["CCCCCCCCCC", None, "CCCCCCCCCCO"]) == ["alkane", None, "alcohol"]
    assert oracle.training == Compared(1.0, 16, 16)
    assert oracle.out_of_bag.value >= 0.75


def test_the_forest_leaves_out_what_has_no_value(without_shape_checks):
    oracle = RandomForestOracle(trees=50).fit([*SOME, None, "CCN"], [*range(6), 3.0, None])
    assert oracle.training.total == 6


def test_the_forest_refuses():
    with pytest.raises(ValueError, match="call fit first"):
        RandomForestOracle().predict(SOME)
    with pytest.raises(ValueError, match="trees is 10"):
        RandomForestOracle(trees=10)
    with pytest.raises(ValueError, match="smiles and values have 6 and 1 entries"):
        RandomForestOracle().fit(SOME, [1.0])
    with pytest.raises(ValueError, match="1 molecules have a value"):
        RandomForestOracle().fit(["C", None, "N"], [1.0, 2.0, None])
    with pytest.raises(ValueError, match="values holds the one class 1"):
        RandomForestOracle(classes=True).fit(["C", "N"], [1, 1])


# The report


def test_the_report_is_the_measures():
    made = [*GEN, None]
    result = report(made, REF, training=SOME)
    assert result["count"] == 25 and result["failed"] == 1 and result["validity"] == 24 / 25
    assert result["coverage"] == 1, "the atom types are those of the training set"
    assert result["uniqueness"] == uniqueness(made)
    assert result["novelty"] == novelty(made, SOME)
    assert result["diversity"] == internal_diversity(made)
    assert result["similarity"] == fragment_similarity(made, REF)
    assert result["scaffold_similarity"] == scaffold_similarity(made, REF)
    assert result["nearest_similarity"] == nearest_similarity(made, REF)
    assert result["distance"] == pytest.approx(chemnet_distance(made, REF), abs=1e-9)
    assert result["synthetic_accessibility"] == np.nanmean(synthetic_accessibility(made))
    json.dumps(result)


def test_a_list_that_copies_is_found_out_by_novelty_alone():
    perfect, copy = (report(SOME, SOME, training) for training in (["Br"], SOME))
    assert perfect.pop("novelty") == 1 and copy.pop("novelty") == 0
    for result in (perfect, copy):
        del result["coverage"], result["scaffold_similarity"]  # other atom types; no two rings
    assert perfect == copy


def test_the_report_without_training_has_no_novelty():
    result = report(iter(["CCF", None]), iter(SOME), distance=False)
    assert "novelty" not in result and "distance" not in result
    assert result["coverage"] == 2 / 4, "the atom types C, N, O, F of the reference"


def test_the_report_of_failures_and_of_one_molecule():
    nothing = report([None, None], SOME, SOME)
    assert nothing["validity"] == 0 and nothing["failed"] == 2
    assert all(np.isnan(value) for key, value in list(nothing.items())[3:])
    one = report(["CCO"], SOME)
    assert np.isnan(one["distance"]) and one["diversity"] == 0


def test_the_report_refuses_an_empty_list():
    with pytest.raises(ValueError, match="smiles is empty"):
        report([], SOME)
    with pytest.raises(ValueError, match="reference is empty"):
        report(SOME, [])
