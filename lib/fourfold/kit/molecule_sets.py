"""Sets of molecules with properties, from the course's data and from packages that carry them.

QM9: Ramakrishnan et al., Quantum chemistry structures and properties of 134 kilo molecules,
Scientific Data 1, 2014; the package qm9pack (MIT, 104 MB) holds all of it.
B3DB: Meng et al., A curated diverse molecular database of blood-brain barrier permeability with
chemical descriptors, Scientific Data 8, 2021 (CC0).
Gas permeability of polymers: the table inside torch-molecule 0.1.7, whose source states no licence,
so that the course holds no copy and reads it where the package is installed.
"""

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from rdkit import Chem, rdBase
from rdkit.Chem import Crippen, rdMolDescriptors

from fourfold.kit.data import data_path

__all__ = ["all_qm9", "b3db_table", "polymer_table"]


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


def b3db_table(max_atoms: int | None = None) -> pd.DataFrame:
    """4,027 molecules and the blood-brain barrier: `smiles, BBB, logBB`.

    max_atoms   leave out larger ones, counted without hydrogen

    BBB is "BBB+" for a molecule that passes the barrier, "BBB-" for one that does not, missing for
    130 whose stereoisomers differ; logBB, the logarithm of its share in brain against blood, is
    known for 930. Stereochemistry and salts are left out.
    """
    table = pd.read_csv(data_path("b3db.csv.gz"))
    if max_atoms is not None:
        sizes = [Chem.MolFromSmiles(text).GetNumAtoms() for text in table["smiles"]]
        table = table[[size <= max_atoms for size in sizes]].reset_index(drop=True)
    return table


def polymer_table() -> pd.DataFrame | None:
    """786 polymers as repeat units with two `*`: `smiles` and permeabilities in Barrer.

    The columns are CH4, CO2, H2, N2 and O2, with holes. None where torch-molecule 0.1.7 is not
    installed: `pip install --no-deps torch-molecule==0.1.7`. The package is not imported.
    """
    found = find_spec("torch_molecule")
    if found is None:
        return None
    path = Path(found.origin).parent / "datasets" / "data" / "polymer_gas_permeability.csv.gz"
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    return table.rename(columns={name: "smiles" for name in table if name.lower() == "smiles"})
