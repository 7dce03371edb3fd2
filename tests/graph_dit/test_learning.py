import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.graph_dit.graphs import Codes, encode_smiles
from fourfold.graph_dit.learning import (
    Categorical,
    MoleculeData,
    MoleculeGenerator,
    Numeric,
    PropertySet,
    draw_sizes,
    drop_all,
    evaluate_generator,
    load_generator,
    train_course,
)
from fourfold.kit.checkpoints import read_card
from fourfold.kit.molecules import qm9_table

SMALL = {"width": 16, "depth": 1, "heads": 2, "steps_of_noise": 5}
SMILES = ["CCO", "CCC", "CCN", "C1CC1", "CC=O", "C#N", "FC", "CO"]
LOGP = [0.0, 1.4, -0.04, 1.2, 0.2, 0.1, 0.8, -0.4]


def fitted(properties=None, table=None, smiles=SMILES, **options):
    properties = [Numeric("logP")] if properties is None else properties
    maker = MoleculeGenerator(properties, **{**SMALL, **options})
    table = {"logP": LOGP} if table is None else table
    return maker.fit(smiles, table, steps=2, batch=4, progress=False)


@pytest.fixture(scope="module")
def maker():
    return fitted()


values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30).filter(
    lambda v: max(v) - min(v) > 1e-3
)


@given(values)
def test_a_number_has_mean_0_and_spread_1_after_its_scale(numbers):
    z = Numeric("x").fitted(numbers).encode(numbers)
    # Sums of up to 30 doubles whose size is up to 1e9 times their spread.
    assert abs(z.mean()) < 1e-5 and abs(z.std() - 1) < 1e-5


@given(values, st.floats(0.1, 100), st.floats(-100, 100))
def test_the_scale_does_not_depend_on_the_unit(numbers, factor, offset):
    moved = [factor * value + offset for value in numbers]
    one, other = (Numeric("x").fitted(v).encode(v) for v in (numbers, moved))
    assert np.allclose(one, other, atol=1e-4)  # rounding of the offset at a spread of 1e-4


def test_log10_makes_powers_of_ten_even():
    z = Numeric("gas", log10=True).fitted([1e-4, 1.0, 1e4]).encode([1e-2, 1e2])
    assert np.allclose(z, [-np.sqrt(1.5) / 2, np.sqrt(1.5) / 2])


def test_missing_numbers_stay_missing():
    fitted = Numeric("x").fitted([1.0, None, 3.0, float("nan")])
    assert (fitted.mean, fitted.low, fitted.high) == (2.0, 1.0, 3.0)
    assert np.isnan(fitted.encode([None, float("nan")])).all()


@pytest.mark.parametrize(
    ("one", "values", "sentence"),
    [
        (Numeric("x"), [None, None], "property 'x' has no value"),
        (Numeric("x"), [2.0, 2.0, None], "property 'x' is 2 everywhere; expected it to vary"),
        (Numeric("x"), ["a", 1.0], "property 'x' holds"),
        (Numeric("x"), [1.0, float("inf")], "property 'x' holds an infinity"),
        (Numeric("x", log10=True), [1.0, -3.0], "holds -3; expected more than 0 for log10"),
        (Categorical("k"), ["a", "a", None], r"has the classes \('a',\); expected two or more"),
        (Categorical("k", ("a", "b")), ["a", "c"], r"holds 'c'; expected one of \('a', 'b'\)"),
    ],
)
def test_a_column_that_says_nothing_is_refused(one, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        one.fitted(values)


def test_classes_are_found_and_numbered():
    fitted = Categorical("k").fitted(["b", None, "a", np.str_("b")])
    assert fitted.classes == ("a", "b")
    assert np.array_equal(fitted.encode(["b", None, "a"]), [1, np.nan, 0], equal_nan=True)


def test_properties_keep_their_order_whatever_the_table_s():
    both = PropertySet([Numeric("one"), Categorical("two")])
    columns = both.columns({"two": ["x", "y"], "other": [0, 0], "one": [1.0, 3.0]}, 2)
    fitted = both.fitted(columns)
    assert fitted.encode(columns, 2).tolist() == [[-1, 0], [1, 1]]
    assert fitted.conditions == [("numeric", 1), ("categorical", 2)]


def test_a_property_is_there_once():
    with pytest.raises(ValueError, match=r"names \['x', 'x'\]; expected each once"):
        PropertySet([Numeric("x"), Categorical("x")])


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"logD": [1.0]}, "table has no column 'logP'.*there are logD"),
        (None, "table has no column 'logP'.*there are none"),
        ({"logP": [1.0, 2.0]}, "table has 2 values of 'logP'; expected 8"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, sentence):
    with pytest.raises(ValueError, match=sentence):
        MoleculeGenerator([Numeric("logP")], **SMALL).fit(SMILES, table, progress=False)


def test_targets_may_be_single_values_columns_or_left_out():
    both = PropertySet([Numeric("a"), Numeric("b")]).fitted([[0.0, 2.0], [0.0, 20.0]])
    assert both.targets({"a": 2.0, "b": 20.0}, 2).tolist() == [[1, 1], [1, 1]]
    column = both.targets({"a": [0.0, 2.0], "b": 20.0}, None)
    assert column.tolist() == [[-1, 1], [1, 1]]
    frame = both.targets(pd.DataFrame({"b": [0.0, None]}), None)
    assert frame[:, 0].isnan().all() and frame[0, 1] == -1 and frame[1, 1].isnan()
    assert both.targets(None, 3).isnan().all()


@pytest.mark.parametrize(
    ("targets", "count", "sentence"),
    [
        ({"logp": 1.0}, 1, "targets holds 'logp'; expected 'logP'; did you mean 'logP'?"),
        ({"weight": 1.0}, 1, "targets holds 'weight'; expected 'logP'$"),
        ({"logP": [1.0, 2.0]}, 3, "count is 3; expected 2"),
        ({"logP": 1.0}, 0, "count is 0; expected a whole number, 1 or more"),
    ],
)
def test_targets_that_do_not_fit_are_refused(maker, targets, count, sentence):
    with pytest.raises(ValueError, match=sentence):
        maker.generate(targets, count, progress=False)


def test_columns_of_targets_have_one_length():
    both = PropertySet([Numeric("a"), Numeric("b")]).fitted([[0.0, 2.0], [0.0, 20.0]])
    with pytest.raises(ValueError, match=r"columns of lengths {'a': 2, 'b': 1}; expected one"):
        both.targets({"a": [1.0, 2.0], "b": [1.0]}, None)


def test_a_target_far_outside_warns_with_the_range(maker):
    with pytest.warns(UserWarning, match="logP is 9; the model has seen -0.4 to 1.4"):
        maker.generate({"logP": 9.0}, 1, progress=False)


def test_a_batch_is_taken_at_once():
    codes = Codes(torch.arange(6).view(3, 2).to(torch.int8), torch.zeros(3, 2, 2).to(torch.int8))
    data = MoleculeData(codes, torch.arange(3.0)[:, None])
    atoms, _, y = data.__getitems__([2, 0])
    assert atoms.tolist() == [[4, 5], [0, 1]] and y.tolist() == [[2.0], [0.0]]


@given(st.floats(0.0, 1.0), st.integers(1, 4))
def test_a_row_is_hidden_whole(chance, properties):
    y = torch.randn(50, properties)
    hidden = drop_all(y, chance)
    rows = hidden.isnan().any(dim=1)
    assert torch.equal(rows, hidden.isnan().all(dim=1))
    assert torch.equal(hidden[~rows], y[~rows])


def test_sizes_follow_their_shares():
    shares = torch.tensor([0.0, 0.2, 0.0, 0.8])
    drawn = draw_sizes(shares, 10_000, torch.Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=4) / 10_000
    assert (found - shares).abs().max() < 0.015  # 4 standard errors of 10,000 draws
    assert found[0] == found[2] == 0


def test_what_cannot_be_read_is_reported_with_its_row():
    smiles = ["CCO", "C1CC", *SMILES[1:], "[Xx]"]
    with pytest.warns(UserWarning, match="2 of 10 molecules are left out, such as row 1, 'C1CC'"):
        maker = fitted(smiles=smiles, table={"logP": [*LOGP, 1.0, 2.0]})
    assert [(problem.row, problem.smiles) for problem in maker.problems] == [
        (1, "C1CC"),
        (9, "[Xx]"),
    ]


def test_a_table_with_holes_is_learned():
    holes = [None, *LOGP[1:]]
    maker = fitted(
        [Numeric("logP"), Categorical("ring")], {"logP": holes, "ring": [0, 0, None, 1] * 2}
    )
    assert maker.properties.properties[1].classes == (0, 1)
    assert all(np.isfinite(record.loss) for record in maker.records)
    assert len(maker.generate({"ring": [0, 1]}, progress=False)) == 2


def test_without_properties_it_generates_all_the_same():
    maker = fitted(properties=(), table={})
    assert len(maker.generate(None, 3, progress=False)) == 3


def test_one_seed_gives_one_result_and_another_seed_another(maker):
    one, same, other = (
        maker.sample({"logP": 1.0}, 20, seed=seed, progress=False) for seed in (3, 3, 4)
    )
    assert torch.equal(one.bonds, same.bonds) and torch.equal(one.atoms, same.atoms)
    assert not torch.equal(one.bonds, other.bonds)


def test_the_number_of_atoms_can_be_asked_for(maker):
    codes = maker.sample(None, 3, atoms=[1, 3, 2], progress=False)
    assert (codes.atoms >= 0).sum(dim=1).tolist() == [1, 3, 2]
    assert (maker.sample(None, 2, atoms=2, progress=False).atoms >= 0).sum(dim=1).tolist() == [2, 2]
    with pytest.raises(ValueError, match="atoms is 99; expected a whole number from 1 to 3"):
        maker.sample(None, 1, atoms=99, progress=False)
    with pytest.raises(ValueError, match="atoms has 2 numbers; expected 1"):
        maker.sample(None, 1, atoms=[1, 2], progress=False)


def test_batches_do_not_change_how_many_come(maker):
    assert len(maker.generate({"logP": LOGP}, batch=3, progress=False)) == 8


@pytest.mark.parametrize("float16", [False, True])
def test_a_saved_generator_comes_back(maker, tmp_path, float16):
    path = tmp_path / "maker.safetensors"
    maker.save(path, float16=float16)
    again = MoleculeGenerator.load(path)
    assert again.vocabulary == maker.vocabulary
    assert again.properties.properties == maker.properties.properties
    assert again._settings() == maker._settings()
    assert read_card(path).seed == 0
    one, other = (g.sample({"logP": 1.0}, 9, progress=False) for g in (maker, again))
    assert float16 or torch.equal(one.bonds, other.bonds)


def test_a_generator_with_classes_comes_back(tmp_path):
    maker = fitted([Categorical("ring", ("no", "yes"))], {"ring": ["no", "yes"] * 4})
    maker.save(tmp_path / "maker.safetensors")
    again = MoleculeGenerator.load(tmp_path / "maker.safetensors")
    assert again.properties.properties == (Categorical("ring", ("no", "yes")),)
    assert len(again.generate({"ring": "yes"}, 2, progress=False)) == 2


def test_a_training_can_begin_with_saved_weights(maker, tmp_path):
    start = _saved(maker, tmp_path)
    again = MoleculeGenerator([Numeric("logP")], **SMALL)
    options = {"batch": 4, "progress": False, "start": start}
    again.fit(SMILES, {"logP": LOGP}, steps=1, learning_rate=1e-12, **options)
    for one, other in zip(maker.model.parameters(), again.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)  # one step of 1e-12 moves nothing
    wider = MoleculeGenerator([Numeric("logP")], **{**SMALL, "width": 32})
    with pytest.raises(ValueError, match="does not fit the model"):
        wider.fit(SMILES, {"logP": LOGP}, steps=1, **options)


def test_a_file_that_is_no_generator_is_refused(maker, tmp_path):
    from fourfold.kit.checkpoints import save_checkpoint, save_tensors

    save_tensors(tmp_path / "other.safetensors", {"w": torch.zeros(1)})
    with pytest.raises(ValueError, match="has no settings in its header"):
        MoleculeGenerator.load(tmp_path / "other.safetensors")
    card = read_card(_saved(maker, tmp_path))
    save_checkpoint(tmp_path / "half.safetensors", maker.model, card, settings={"options": {}})
    with pytest.raises(ValueError, match="is not a saved MoleculeGenerator"):
        MoleculeGenerator.load(tmp_path / "half.safetensors")


def _saved(maker, folder):
    maker.save(folder / "maker.safetensors")
    return folder / "maker.safetensors"


def test_nothing_can_be_asked_before_learning(tmp_path):
    empty = MoleculeGenerator([Numeric("logP")])
    with pytest.raises(RuntimeError, match="call `fit` or `load` first"):
        empty.generate({"logP": 1.0})
    with pytest.raises(RuntimeError, match="call `fit` or `load` first"):
        empty.save(tmp_path / "empty.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path):
    whole = fitted()
    maker = MoleculeGenerator([Numeric("logP")], **SMALL)
    options = {"batch": 4, "progress": False, "folder": tmp_path, "save_every": 1}
    maker.fit(SMILES, {"logP": LOGP}, steps=2, minutes=0, **options)
    assert len(maker.records) == 1
    again = MoleculeGenerator([Numeric("logP")], **SMALL)
    again.fit(SMILES, {"logP": LOGP}, steps=2, **options)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_student_learns_what_there_is_to_learn():
    """Two molecules and two values: after a short training, each value gets its molecule."""
    maker = MoleculeGenerator([Categorical("k")], width=32, depth=2, heads=2, steps_of_noise=10)
    maker.fit(
        ["CCO", "CN"] * 32, {"k": ["long", "short"] * 32}, steps=150, batch=64, progress=False
    )
    made = maker.generate({"k": "long"}, 20, atoms=3, guidance=2.0, mode="none", progress=False)
    assert made.count("CCO") > 14  # in our runs 20 of 20
    short = maker.generate({"k": "short"}, 20, atoms=2, guidance=2.0, mode="none", progress=False)
    assert short.count("CN") > 14


def test_an_evaluation_counts_and_measures(maker):
    table = pd.DataFrame({"smiles": SMILES, "logP": LOGP})
    results = evaluate_generator(maker, table, 12, training=SMILES)
    assert 0 <= results["valid and in one piece"] <= results["valid"] <= 1
    assert results["valid"] <= results["valid after correction, pieces joined"] + 1
    assert "error of logP" in results


def test_only_properties_that_can_be_computed_are_evaluated():
    maker = fitted([Numeric("boiling point")], {"boiling point": LOGP})
    with pytest.raises(ValueError, match="properties holds 'boiling point'; expected one of logP"):
        evaluate_generator(maker, pd.DataFrame({"smiles": SMILES}), 2)


def test_the_course_s_training_writes_weights_that_load(tmp_path, monkeypatch):
    monkeypatch.setattr("fourfold.graph_dit.learning.COURSE_SIZES", SMALL)
    few = {split: qm9_table(split).head(60) for split in ("train", "held_out")}
    monkeypatch.setattr("fourfold.graph_dit.learning.qm9_table", few.get)
    done = train_course(tmp_path, steps=2, samples=4)
    assert (done.done, done.steps) == (2, 2)
    again = load_generator(done.weights)
    assert again.properties.names == ["logP", "TPSA"]
    card = json.loads(done.weights.with_suffix(".json").read_text())
    assert card["command"] == "fourfold train graph_dit --recipe short --steps 2 --seed 0"
    with pytest.raises(ValueError, match="expected one of short, long, polish, finish"):
        train_course(tmp_path, recipe="big")


@pytest.fixture(scope="module")
def course_s():
    return load_generator("qm9")


def test_the_course_s_weights_make_valid_molecules(course_s):
    codes = course_s.sample(None, 40, steps=50, progress=False)
    from fourfold.graph_dit.molecules import validity

    # The card has the share of 1,000; 40 draws of a share of .9 fall below .7 once in 10,000.
    assert validity(codes, course_s.vocabulary).direct > 0.7


def test_the_course_s_weights_listen(course_s):
    from fourfold.graph_dit.metrics import logp

    asked = [-1.5] * 20 + [2.0] * 20
    made = course_s.generate({"logP": asked}, guidance=2.0, steps=50, progress=False)
    found = np.array(logp(made), float)
    low, high = found[:20], found[20:]
    # The two targets lie 3.5 apart, and the model's error is a small part of that.
    assert np.nanmean(high) - np.nanmean(low) > 2


def test_the_course_s_weights_know_the_data_they_learned(course_s):
    table = qm9_table()
    some = table["smiles"][::20]
    _, rows, problems = encode_smiles(some, course_s.vocabulary)
    assert not problems and len(rows) == len(some)
    logp_, tpsa_ = course_s.properties.properties
    assert logp_.mean == pytest.approx(table["logP"].mean(), abs=0.03)
    assert tpsa_.mean == pytest.approx(table["TPSA"].mean(), abs=0.6)


def test_warnings_of_rdkit_stay_away(maker, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maker.generate({"logP": 1.0}, 20, progress=False)
    assert capfd.readouterr().err == ""
