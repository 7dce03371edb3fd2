"""Molecules that come with the course, and pictures of molecules.

SMILES are read from the course's own data and from RDKit's wheel; nothing is downloaded.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem.Draw import rdMolDraw2D

from fourfold.kit.arguments import whole_number
from fourfold.kit.canvas import COLOURS, canvas
from fourfold.kit.data import data_path

__all__ = [
    "ATOM_COLOURS",
    "BOND_COLOURS",
    "draw_molecule",
    "molecule_grid",
    "nci_smiles",
    "qm9_coordinates",
    "qm9_table",
]

# The same atom and the same bond has one colour in all figures. They differ in lightness too.
ATOM_COLOURS = {
    "C": "#222222",
    "N": COLOURS["first"],
    "O": COLOURS["bad"],
    "F": "#63c3b5",
    "S": COLOURS["n11"],
    "*": COLOURS["query"],
}
BOND_COLOURS = {
    "none": "#e9e9e9",
    "single": COLOURS["first"],
    "double": COLOURS["second"],
    "triple": COLOURS["query"],
    "aromatic": COLOURS["n01"],
}


def qm9_table(split: str | None = None) -> pd.DataFrame:
    """20,040 molecules of QM9, up to nine atoms of C, N, O, F: `index, smiles, logP, TPSA, split`.

    split  "train" (16,032), "held_out" (4,008), or None for both

    logP is Crippen's octanol-water coefficient, without unit; TPSA, the topological polar surface
    area, is in Å². Both are RDKit's. Raises ValueError for another split.
    """
    table = pd.read_csv(data_path("qm9_20k.csv.gz"))
    return table[_in_split(table, split)].reset_index(drop=True)


def qm9_coordinates(split: str | None = None) -> Float[np.ndarray, "M 9 3"]:
    """Synthetic coordinates of the heavy atoms of `qm9_table(split)`, row by row, in Å, centred.

    Made by ETKDGv3 of RDKit with seed 0 and hydrogens, to 0.001 Å; atoms stand as in the SMILES,
    and 0 fills up to nine. For the 312 molecules without a conformer the whole row is NaN.
    Raises ValueError for another split.
    """
    with np.load(data_path("qm9_20k_coordinates.npz")) as file:
        x = file["x"].astype(np.float32) / 1000
        x[~file["made"]] = np.nan
    return x[_in_split(qm9_table(), split)]


def _in_split(table: pd.DataFrame, split: str | None) -> Bool[np.ndarray, "M"]:
    if split not in ("train", "held_out", None):
        raise ValueError(f"split is {split!r}; expected 'train', 'held_out' or None")
    return np.full(len(table), True) if split is None else (table["split"] == split).to_numpy()


def nci_smiles() -> list[str]:
    """4,999 SMILES of the National Cancer Institute's open collection, from RDKit's wheel.

    They are as RDKit ships them, with aromatic rings in Kekulé form. Eight of them are read by
    RDKit as graphs and refused as molecules, as an atom of theirs has too many bonds.
    """
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    return [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]


def draw_molecule(axes: Axes, molecule: Chem.Mol | str | None, pixels: int = 360) -> None:
    """Draw a molecule, or what a SMILES says, into axes; a cross where there is none.

    axes      its frame and ticks are switched off
    molecule  a molecule is drawn as it is, valid or not; None is a cross, and so are a SMILES that
              RDKit refuses and a molecule without atoms
    pixels    width of the picture; its height is three quarters of it

    The molecule is not changed. Raises TypeError for anything else, and ValueError for pixels that
    are no whole number of 1 or more.
    """
    if not isinstance(molecule, Chem.Mol | str | None):
        kind = type(molecule).__name__
        raise TypeError(f"molecule is a {kind}; expected a molecule of RDKit, a SMILES or None")
    pixels = whole_number("pixels", pixels, least=1)
    axes.set_axis_off()
    with rdBase.BlockLogs():
        if isinstance(molecule, str):
            molecule = _read(molecule)
        if molecule is None or molecule.GetNumAtoms() == 0:
            style = {"ha": "center", "va": "center", "transform": axes.transAxes}
            axes.text(0.5, 0.5, "✗", size=16, color=COLOURS["muted"], **style)
            return
        axes.imshow(_picture(molecule, pixels), interpolation="lanczos")


def molecule_grid(
    molecules: Iterable[Chem.Mol | str | None],
    legends: Sequence[str] | None = None,
    columns: int = 4,
    width: float = 6.5,
) -> Figure:
    """Molecules in rows, each with its legend below; `width` is in inches.

    Raises ValueError for no molecules, for legends that do not match them in number, for less than
    one column, and for a single SMILES in place of a list.
    """
    if isinstance(molecules, str):
        raise ValueError(
            f"molecules is {molecules!r}; expected a list, such as ['CCO', 'c1ccccc1']"
        )
    molecules = list(molecules)
    if not molecules:
        raise ValueError("molecules is empty; expected one or more")
    if legends is not None and len(legends) != len(molecules):
        raise ValueError(
            f"legends has {len(legends)} texts; expected {len(molecules)}, one for each molecule"
        )
    columns = min(whole_number("columns", columns, least=1), len(molecules))
    rows = -(-len(molecules) // columns)
    legends = [""] * len(molecules) if legends is None else [str(legend) for legend in legends]
    lines = max(text.count("\n") + 1 if text else 0 for text in legends)
    side = width / columns
    height = rows * (0.75 * side + 0.16 * lines + 0.06)
    figure, grid = canvas(rows, columns, width, height, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, molecule, legend in zip(grid.flat, molecules, legends, strict=False):
        draw_molecule(axes, molecule, pixels=int(200 * side))
        style = {"ha": "center", "va": "top", "transform": axes.transAxes}
        axes.text(0.5, -0.02, legend, size=8, **style)
    return figure


def _read(smiles: str) -> Chem.Mol | None:
    """The molecule of a SMILES, or None for a text that RDKit refuses."""
    try:
        return Chem.MolFromSmiles(smiles)
    except UnicodeError:  # half a character of a broken file
        return None


def _picture(molecule: Chem.Mol, pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """The molecule on white, in red, green and blue."""
    drawer = rdMolDraw2D.MolDraw2DCairo(pixels, max(1, int(0.75 * pixels)))
    options = drawer.drawOptions()
    options.prepareMolsBeforeDrawing = False
    options.bondLineWidth = 3
    options.minFontSize = 20
    copy = Chem.Mol(molecule)
    copy.UpdatePropertyCache(strict=False)
    try:  # kekulised where that is possible, so that aromatic rings look like rings
        prepared = rdMolDraw2D.PrepareMolForDrawing(copy, kekulize=True, addChiralHs=False)
    except (ValueError, Chem.MolSanitizeException):
        prepared = rdMolDraw2D.PrepareMolForDrawing(copy, kekulize=False, addChiralHs=False)
    drawer.DrawMolecule(prepared)
    drawer.FinishDrawing()
    return np.asarray(Image.open(io.BytesIO(drawer.GetDrawingText())))
