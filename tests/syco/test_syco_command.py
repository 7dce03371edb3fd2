import re

import pandas as pd
import pytest
from PIL import Image
from rdkit import Chem
from typer.testing import CliRunner

from fourfold.cli import app
from fourfold.course.errors import CourseError
from fourfold.syco.learning import SyCo

FAST = ["--steps", "6"]


def generate(*arguments):
    return CliRunner().invoke(app, ["generate", "--model", "syco", *arguments])


def optimise(*arguments):
    return CliRunner().invoke(app, ["optimise", *arguments])


def refused(run, *arguments):
    """The sentence of a mistake that the user can mend."""
    result = run(*arguments)
    assert isinstance(result.exception, CourseError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A generator that has hardly learned and knows sulphur."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    maker = SyCo(["logP"], encoder_width=8, width=8, depth=1, guide_width=8, steps_of_noise=10)
    stages = {"autoencoder_steps": 2, "diffusion_steps": 2, "guide_steps": 2}
    maker.fit(["CCO", "CCC", "CCS", "CC"], **stages, batch=4, progress=False)
    maker.save(path)
    return str(path)


def test_molecules_come_with_files_and_pictures(tmp_path):
    out, picture, path = (tmp_path / name for name in ("made.csv", "grid.png", "path.png"))
    result = generate(
        "--target", "logP=2.0", "-n", "4", "--steps", "40", "--guidance", "2",
        "--out", str(out), "--picture", str(picture), "--path", str(path),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    assert list(table) == ["row", "smiles", "logP", "TPSA", "QED", "asked logP"]
    assert f"{len(table)} of 4 graphs are molecules" in result.output
    wide, high = Image.open(path).size
    assert Image.open(picture).size[0] > 600 and wide > 4 * high  # the strip is one row


def test_each_molecule_holds_the_scaffold(tmp_path):
    out = tmp_path / "made.csv"
    result = generate("--scaffold", "C1CC1", "-n", "8", "--steps", "40", "--out", str(out))
    assert result.exit_code == 0, result.output
    ring = Chem.MolFromSmiles("C1CC1")
    made = pd.read_csv(out)["smiles"]
    assert len(made) and all(Chem.MolFromSmiles(text).HasSubstructMatch(ring) for text in made)
    assert f"{len(made)} of 8 graphs are molecules that hold it" in result.output


def test_one_seed_prints_the_same_twice():
    one, same = (generate("-n", "3", *FAST, "--seed", "3") for _ in range(2))
    assert one.stdout == same.stdout


def test_a_generator_of_one_s_own(small):
    result = generate("--weights", small, "--scaffold", "CS", "-n", "2")
    assert result.exit_code == 0, result.output


def test_optimised_molecules_are_better_and_similar(tmp_path):
    out, path = tmp_path / "better.csv", tmp_path / "path.png"
    result = optimise(
        "CC(C)CCO", "--similarity", "0.3", "--tries", "32", "--steps", "60",
        "--out", str(out), "--path", str(path),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    begin = float(re.search(r"better than QED ([\d.]+)", result.output)[1])
    assert (table["QED"] > begin).all() and (table["similarity"] >= 0.3).all()
    assert (table["QED"].diff().dropna() <= 0).all(), "best first"
    assert path.stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scaffold", "CS"], "--scaffold: scaffold is 'CS': atom 'S' is not in the vocabulary"),
        (["--scaffold", "C1CC"], "--scaffold: scaffold is 'C1CC'"),
        (["--scaffold", "CCCCCCCCC"], "--scaffold: scaffold has 9 atoms; expected fewer than 9"),
        (["--target", "logp=1"], "--target: target holds 'logp'; expected of logP, TPSA, QED"),
        (["--atoms", "40"], "--atoms: atoms is 40; expected a whole number from 1 to 9"),
        (["--steps", "3000"], "--steps: steps is 3000; expected a whole number from 1 to 1000"),
        (["--path", "way.jpg"], "--path: got way.jpg, expected a name that ends in .png"),
        (["--weights", "nothing.safetensors"], "--weights: .*there is no such file"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence):
    assert re.search(sentence, refused(generate, *arguments))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["CCS"], "SMILES: molecule is 'CCS': atom 'S' is not in the vocabulary"),
        (["CCO", "--similarity", "2"], "--similarity: similarity is 2.0; expected 0 to 1"),
        (["CCO", "--improve", "taste"], "--improve: improve is 'taste'; expected one of logP"),
        (["CCO", "--out", "made.txt"], "--out: got made.txt, expected a name that ends in .smi"),
    ],
)
def test_a_mistake_in_optimising_is_one_sentence(arguments, sentence):
    assert re.search(sentence, refused(optimise, *arguments))


def test_what_graph_dit_lacks_is_said():
    with_dit = lambda *arguments: CliRunner().invoke(app, ["generate", *arguments])  # noqa: E731
    assert "expected --model syco with it" in refused(with_dit, "--scaffold", "C1CC1")
    assert refused(with_dit, "--model", "dit") == "--model: got 'dit', expected graph_dit or syco"
