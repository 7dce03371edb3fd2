"""Molecules that come with the course, and pictures of molecules.

SMILES are read from the course's own data and from RDKit's wheel; nothing is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem.Draw import rdMolDraw2D

from fourfold.kit.canvas import canvas
from fourfold.kit.data import data_path

__all__ = ["draw_molecule", "molecule_grid", "nci_smiles", "qm9_table"]


def qm9_table(split: str | None = None) -> pd.DataFrame:
    """20,040 molecules of QM9, up to nine atoms of C, N, O, F: `index, smiles, logP, TPSA, split`.

    split  "train" (16,032), "held_out" (4,008), or None for both

    logP is Crippen's octanol-water coefficient, without unit; TPSA, the topological polar surface
    area, is in Å². Both are RDKit's. Raises ValueError for another split.
    """
    table = pd.read_csv(data_path("qm9_20k.csv.gz"))
    if split is None:
        return table
    if split not in ("train", "held_out"):
        raise ValueError(f"split is {split!r}; expected 'train', 'held_out' or None")
    return table[table["split"] == split].reset_index(drop=True)


def nci_smiles() -> list[str]:
    """4,999 SMILES of the National Cancer Institute's open collection, from RDKit's wheel.

    They are as RDKit ships them; eight of them do not parse.
    """
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    return [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]


def draw_molecule(axes: Axes, molecule: Chem.Mol | str | None, pixels: int = 360) -> None:
    """Draw a molecule, or what a SMILES says, into axes; a cross where there is none.

    A molecule is drawn as it is, valid or not.
    """
    axes.set_axis_off()
    with rdBase.BlockLogs():
        if isinstance(molecule, str):
            molecule = Chem.MolFromSmiles(molecule)
        if molecule is None:
            axes.text(0.5, 0.5, "✗", ha="center", va="center", size=16, color="#9a9a9a")
            return
        axes.imshow(_picture(molecule, pixels), interpolation="lanczos")


def _picture(molecule: Chem.Mol, pixels: int) -> np.ndarray:
    """The molecule on white, (h, w, 4) of uint8."""
    import io

    from PIL import Image

    drawer = rdMolDraw2D.MolDraw2DCairo(pixels, int(0.75 * pixels))
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


def molecule_grid(
    molecules: Sequence[Chem.Mol | str | None],
    legends: Sequence[str] | None = None,
    columns: int = 4,
    width: float = 6.5,
) -> Figure:
    """Molecules in rows, each with its legend below.

    Raises ValueError for no molecules, or as many legends as there are not molecules.
    """
    molecules = list(molecules)
    if not molecules:
        raise ValueError("molecules is empty; expected one or more")
    if legends is not None and len(legends) != len(molecules):
        raise ValueError(
            f"legends has {len(legends)} texts; expected {len(molecules)}, one for each molecule"
        )
    columns = min(columns, len(molecules))
    rows = -(-len(molecules) // columns)
    lines = max((text.count("\n") + 1 for text in legends or []), default=0)
    side = width / columns
    figure, axes = canvas(rows, columns, width, rows * (0.75 * side + 0.16 * lines + 0.06))
    every = np.atleast_1d(axes).ravel()
    for index, each in enumerate(every):
        each.set_axis_off()
        if index < len(molecules):
            draw_molecule(each, molecules[index], pixels=int(200 * side))
            if legends is not None:
                each.text(
                    0.5,
                    -0.02,
                    legends[index],
                    ha="center",
                    va="top",
                    size=8,
                    transform=each.transAxes,
                )
    return figure
