import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from fourfold.cli import app
from fourfold.course.errors import CourseError
from fourfold.graph_dit.learning import Categorical, MoleculeGenerator, Numeric

FAST = ["--steps", "5"]


def run(*arguments):
    return CliRunner().invoke(app, ["generate", *arguments])


def refused(*arguments):
    """The sentence of a mistake that the user can mend."""
    result = run(*arguments)
    assert isinstance(result.exception, CourseError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A generator of one number and one class, hardly trained."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    maker = MoleculeGenerator(
        [Numeric("logP"), Categorical("ring")], width=16, depth=1, heads=2, steps_of_noise=4
    )
    table = {"logP": [0.0, 1.4, 1.2, 0.3], "ring": ["no", "no", "yes", "yes"]}
    maker.fit(["CCO", "CCC", "C1CC1", "C1CN1"], table, steps=2, batch=4, progress=False)
    maker.save(path)
    return str(path)


def test_molecules_come_with_files_and_a_picture(tmp_path):
    out, picture = tmp_path / "made.csv", tmp_path / "grid.png"
    result = run(
        "--target", "logP=2.0", "--target", "TPSA=20", "-n", "5", *FAST,
        "--out", str(out), "--picture", str(picture),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    assert list(table) == ["row", "smiles", "logP", "TPSA", "asked logP", "asked TPSA"]
    assert (table["asked logP"] == 2).all() and 0 < len(table) <= 5
    assert f"{len(table)} of 5 graphs are molecules" in result.output
    assert Image.open(picture).size[0] > 600


def test_smi_holds_a_molecule_a_line(tmp_path):
    out = tmp_path / "made.smi"
    assert run("-n", "4", *FAST, "--out", str(out)).exit_code == 0
    lines = [line.split() for line in out.read_text().splitlines()]
    assert lines and all(len(line) == 2 and line[1].startswith("made_") for line in lines)


def test_one_seed_prints_the_same_twice():
    one, same = (run("--target", "logP=1", "-n", "4", *FAST, "--seed", "3") for _ in range(2))
    assert one.stdout == same.stdout


def test_a_generator_of_one_s_own(small):
    result = run("--weights", small, "--target", "ring=yes", "-n", "3", "--no-correct")
    assert result.exit_code == 0, result.output


def test_a_target_outside_the_data_is_said(small):
    result = run("--weights", small, "--target", "logP=50", "-n", "1")
    assert result.exit_code == 0
    assert "logP is 50; the model has seen 0 to 1.4" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", "logP"], "--target: got 'logP', expected NAME=VALUE"),
        (["--target", "logP=1", "--target", "logP=2"], "--target: logP is given twice"),
        (["--target", "logp=1"], "--target: targets holds 'logp'.*did you mean 'logP'"),
        (["--target", "logP=high"], "--target: .*logP"),
        (["--out", "made.txt"], "--out: got made.txt, expected a name that ends in .smi, .csv"),
        (["--picture", "grid.jpg"], "--picture: got grid.jpg, expected a name that ends in .png"),
        (["--out", "nowhere/made.smi"], "--out: nowhere: no such folder"),
        (["--atoms", "40"], "--atoms: atoms is 40; expected a whole number from 1 to 9"),
        (["--weights", "nothing.safetensors"], "--weights: .*there is no such file"),
        (["--steps", "1000"], "--steps: steps is 1000; expected a whole number from 1 to 200"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence):
    import re

    assert re.search(sentence, refused(*arguments))


def test_a_class_that_is_not_known_is_named(small):
    sentence = refused("--weights", small, "--target", "ring=maybe")
    assert sentence == ("--target: property 'ring' holds 'maybe'; expected one of ('no', 'yes')")


def test_nothing_is_written_when_something_is_wrong(tmp_path):
    refused("--target", "nonsense=1", "--out", str(tmp_path / "made.smi"))
    assert not list(tmp_path.iterdir())
