"""All of QM9, from the package qm9pack, which carries it inside its wheel of 104 MB.

Reference: Ramakrishnan et al., Quantum chemistry structures and properties of 134 kilo molecules,
Scientific Data 1, 2014. The package is MIT; `pip install "fourfold[qm9]"` brings it.
"""

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from rdkit import Chem, rdBase
from rdkit.Chem import Crippen, rdMolDescriptors

__all__ = ["all_qm9"]


def all_qm9(but: Collection[str] = ()) -> pd.DataFrame:
    """The molecules of QM9 without stereochemistry, each once: `smiles, logP, TPSA`.

    but   canonical SMILES to leave out, such as those held out

    Takes about a minute. Raises FileNotFoundError where the package is not installed.
    """
    found = find_spec("qm9pack")  # not imported: it loads a great deal, and only its data is read
    if found is None:
        raise FileNotFoundError(
            'the package qm9pack is not installed; expected it: pip install "fourfold[qm9]"'
        )
    folder = Path(found.origin).parent / "data"
    parts = [pd.read_csv(path, usecols=["SMILES"]) for path in sorted(folder.glob("qm9_part*.csv"))]
    rows, seen = [], set(but)
    with rdBase.BlockLogs():
        for text in pd.concat(parts)["SMILES"]:
            smiles = Chem.CanonSmiles(text, useChiral=0)
            if smiles not in seen:
                seen.add(smiles)
                molecule = Chem.MolFromSmiles(smiles)
                area = rdMolDescriptors.CalcTPSA(molecule)
                rows.append((smiles, round(Crippen.MolLogP(molecule), 4), round(area, 2)))
    return pd.DataFrame(rows, columns=["smiles", "logP", "TPSA"])
