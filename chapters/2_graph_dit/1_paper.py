# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 60
#     needs:
#     - 1_paper_writing/3_reading_cards
#     promotes: false
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper: several properties as one condition
#
# **After this lesson you can** answer the four questions for Graph DiT, draw its pipeline with the shape of every array, and repeat its opening study on real molecules, with what that study proves and what it does not.
#
# *Before this:* [Reading cards](../1_paper_writing/3_reading_cards.ipynb) (`3_reading_cards`), which asks the four questions of any paper. [Experiments](../1_paper_writing/4_experiments.ipynb) explains the ring chart; the lesson can be read without it. *Time:* 60 minutes, and 30 for the exercises.

# %% [markdown]
# ## Words
#
# Who looks for a new material does not look for *a* molecule. One asks for properties: a **polymer** (聚合物, a long chain of one repeated unit) that lets oxygen through and holds nitrogen back, and that a laboratory can make. How easily a gas passes is its **gas permeability** (气体渗透率); how easily a molecule is made is its **synthetic score** (合成分数). So several properties are asked for *at once*, as **conditions** (多条件).
#
# A **diffusion model** makes molecules from noise, in many small steps. It is trained to undo noise that was added to real molecules. A molecule is a **graph** here: atoms as nodes, bonds as edges. Without conditions this works well. With one condition it was done, too. The **key question** of Liu and colleagues (2024) is how a diffusion model can take several properties as conditions: *integrating multiple properties such as synthetic score and gas permeability as condition constraints into diffusion models remains unexplored* (将合成分数和气体渗透率等多种属性作为条件约束集成到 diffusion 模型中).
#
# Earlier work turned the many conditions into a single one and solved that. The paper's introduction gives two reasons against it. A single number cannot balance many properties (变成单个条件模型没法平衡条件): *a bit too high here, a bit too low there* comes to the same sum. And conditions are a mixture of categories and numbers of different scale and unit, which addition and multiplication are not enough to combine (加法和乘法不足以组合).
#
# Their answer, **Graph DiT**, has three parts that are new. A **condition encoder** (条件编码器) *learns* a vector for all properties together; this vector leads the diffusion. It encodes numbers by clusters (聚类) and categories one-hot. A **graph denoiser** (图解噪器), a Transformer, first joins (集成) an atom and its bonds into one graph **token**. It then removes the noise, and in every layer **AdaLN** replaces the mean and variance of the hidden values by what the condition says. The authors find this more effective than guidance by an extra predictor, and than other ways without one (predictor-free). And a **graph-dependent noise model** (图相关噪声模型): earlier forward processes add noise to atoms and to bonds separately (分别), which may harm the estimate of the noise. Theirs is made for the dependence between the atoms and the bonds of a graph.
#
# The notes ask **four questions** of a paper. The first is answered above; the second, what is new and where the paper introduces it, under *Figure*; the third, which experiments it has, and the fourth, what their form lets a reader see, under *On real input*.

# %% [markdown]
# ## Figure
#
# ### The pipeline, measured
#
# A real run of the code that this chapter builds, on a molecule of QM9 (a public collection of small molecules; the course carries 20,040 of its 130,831). The weights are still random; shapes do not depend on them.

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from rdkit import Chem
from rdkit.Chem import Crippen, rdMolDescriptors
from rdkit.Contrib.SA_Score import sascorer

from fourfold.graph_dit.denoiser import ClusterEncoder, GraphDiT
from fourfold.graph_dit.diffusion import draw_graph
from fourfold.graph_dit.graphs import (
    BONDS,
    decode_graphs,
    encode_smiles,
    find_vocabulary,
    graph_tokens,
    one_hot,
    to_codes,
    to_molecule,
)
from fourfold.graph_dit.noise import GraphNoise, graph_statistics
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.molecules import draw_molecule, qm9_table
from fourfold.kit.notebook import shows_error
from fourfold.paper_writing.experiments import ring_chart
from fourfold.paper_writing.reading_cards import (
    Comparison,
    card_text,
    headline_results,
    open_questions,
    parse_card,
    read_card,
)

# %% [markdown]
# Three properties of each molecule, all computed by RDKit: the **SA score** (a synthetic score, from 1 for easy to 10 for hard), **logP** (how much better the molecule dissolves in oil than in water) and **TPSA** (the area of its polar surface, in Å²). A formula that gives a property of any molecule is an **oracle** (预言模型). The paper's oracles for permeability are models trained on measured polymers; ours are exact, since each property *is* its formula.

# %%
PROPERTIES = ("SA", "logP", "TPSA")


def oracles(smiles):
    """The three properties of a molecule: SA score, logP, TPSA in Å²."""
    molecule = Chem.MolFromSmiles(smiles)
    polar = rdMolDescriptors.CalcTPSA(molecule)
    return sascorer.calculateScore(molecule), Crippen.MolLogP(molecule), polar


def with_properties(table):
    rows = [oracles(text) for text in table["smiles"]]
    return pd.DataFrame(rows, columns=PROPERTIES).assign(smiles=table["smiles"].to_numpy())


known = with_properties(qm9_table("train").sample(2000, random_state=0))
targets = with_properties(qm9_table("held_out").sample(100, random_state=0))
unit = known[list(PROPERTIES)].std()  # one standard deviation of each property
print(known[list(PROPERTIES)].describe().loc[["mean", "std", "min", "max"]].round(2))

# %% [markdown]
# Now the run: a molecule becomes tokens, noise is added, and the denoiser gets the noisy tokens, the time and the three properties. A **hook** is a function that PyTorch calls whenever a part of a model has run; these keep what each part gives.

# %%
example = "CC1CC(=O)C(O)C1"
vocabulary = find_vocabulary(known["smiles"][:553], max_atoms=9)
codes, _, _ = encode_smiles(known["smiles"][:553], vocabulary)
noise = GraphNoise(graph_statistics(codes, vocabulary), steps=50)
graph = one_hot(encode_smiles([example], vocabulary)[0], vocabulary)
t = torch.tensor([5])
chance = torch.Generator().manual_seed(2)
noisy = draw_graph(*noise.q(graph, t), graph.mask, chance)
y = torch.tensor([oracles(example)], dtype=torch.float32)

torch.manual_seed(0)
conditions = [("numeric", 1)] * len(PROPERTIES)
model = GraphDiT(len(vocabulary.atoms), 9, conditions, width=64, depth=3, heads=4).eval()
given = {}
for name, part in model.named_modules():
    part.register_forward_hook(lambda part, taken, out, name=name: given.update({name: out}))
with torch.no_grad():
    scores = model(*noisy, t / noise.steps, y)
    c = given["time"] + given["condition"]
    guess = draw_graph(*(part.softmax(-1) for part in scores), graph.mask, chance)


# %%
def size(array):
    """The measured shape, without the batch axis."""
    return " × ".join(map(str, array.shape[1:])) or "one number"


def drawn(graph):
    """What a graph says, as a molecule, valid or not."""
    return to_molecule(*next(decode_graphs(to_codes(graph), vocabulary)))


def place(axes, x, y, name, shape, colour="muted", picture=None, molecule=None, height=0.9):
    """A part of the pipeline: a box, an array or a molecule, with name and measured shape."""
    box = axes.inset_axes([x - 0.85, y - height / 2, 1.7, height], transform=axes.transData)
    box.set(xticks=[], yticks=[])
    box.spines[:].set(visible=True, color=COLOURS[colour], linewidth=1.6)
    if picture is not None:
        box.imshow(picture, cmap="gray_r", aspect="auto", interpolation="nearest")
    if molecule is not None:
        draw_molecule(box, molecule)
    filled = picture is not None or molecule is not None
    at = y + height / 2 + 0.17 if filled else y
    axes.text(x, at, name, ha="center", va="center", fontsize=8, zorder=9)
    axes.text(x, y - height / 2 - 0.06, shape, ha="center", va="top", fontsize=7)


def arrows(axes, ends, colour="black"):
    for *start, x, y in ends:
        style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x, y), start, arrowprops=style)


# %% tags=["figure"]
def draw_pipeline():
    figure, axes = canvas(1, 1, 7.6, 4.4)
    tokens, noisy_tokens = graph_tokens(graph)[0], graph_tokens(noisy)[0]
    place(axes, 0, 3.6, "molecule", f"{int(graph.mask.sum())} atoms", molecule=drawn(graph))
    place(axes, 2.2, 3.6, "tokens X_G", size(tokens[None]), "first", tokens)
    place(
        axes,
        4.4,
        3.6,
        f"noisy tokens, t = {t.item()}",
        size(noisy_tokens[None]),
        "first",
        noisy_tokens,
    )
    place(axes, 6.6, 3.6, "hidden H", size(given["embed"]), "first", given["embed"][0])
    blocks = f"{len(model.blocks)} Transformer\nlayers with AdaLN"
    place(axes, 8.8, 3.6, blocks, size(given["blocks.2"]), "query")
    place(axes, 8.8, 1.75, "last step:\nAdaLN(MLP(H), c)", size(given["output"]), "query")
    values = "\n".join(f"{p} {v:.1f}" for p, v in zip(PROPERTIES, y[0].tolist(), strict=True))
    place(axes, 0, 1.75, values, size(y), "second")
    axes.text(0, 2.38, "properties c_i", ha="center", va="center", fontsize=8)
    shares = [given[f"condition.encoders.{i}.assign"].softmax(-1) for i in range(len(conditions))]
    place(
        axes, 2.2, 1.75, "cluster shares", f"3 times {size(shares[0])}", "second", torch.cat(shares)
    )
    place(axes, 6.6, 1.75, "condition c", size(c), "second", c)
    place(
        axes,
        4.4,
        1.75,
        "their codes",
        f"3 times {size(given['condition.encoders.0'])}",
        "second",
        torch.cat([given[f"condition.encoders.{i}"] for i in range(len(conditions))]),
    )
    place(axes, 4.4, -0.1, "time t", size(given["time"]), "second", given["time"])
    probabilities = graph_tokens(graph._replace(X=scores[0].softmax(-1), E=scores[1].softmax(-1)))
    place(axes, 8.8, -0.1, "probabilities", size(probabilities), "first", probabilities[0])
    place(
        axes, 6.6, -0.1, "drawn from them", f"{int(guess.mask.sum())} atoms", molecule=drawn(guess)
    )
    arrows(axes, [(x + 0.87, 3.6, x + 1.33, 3.6) for x in (0, 2.2, 4.4, 6.6)])
    arrows(axes, [(x + 0.87, 1.75, x + 1.33, 1.75) for x in (0, 2.2, 4.4)])
    arrows(axes, [(8.8, 2.95, 8.8, 2.22), (8.8, 1.08, 8.8, 0.7), (7.93, -0.1, 7.47, -0.1)])
    arrows(axes, [(5.27, 0.1, 5.73, 1.4)])
    gates = [(7.47, 1.75, 7.93, 1.75), (7.47, 1.95, 7.93, 3.3)]
    arrows(axes, gates, COLOURS["second"])
    axes.text(7.85, 2.62, "scale γ,\nshift β,\ngate α", va="center", fontsize=7.5)
    kept = noise.alpha_bar[t].item()
    axes.text(3.3, 4.5, f"noise, kept share ᾱ = {kept:.2f}", ha="center", fontsize=8)
    axes.set(xlim=(-0.95, 9.75), ylim=(-0.85, 4.7))
    axes.set_axis_off()
    return figure


show(
    draw_pipeline(),
    alt="Graph DiT as boxes: a molecule becomes rows of tokens, noise scrambles them, a linear layer"
    " makes hidden rows, and three Transformer layers and a last step turn them into probabilities,"
    " from which a molecule is drawn. Below, three properties become cluster shares, codes and, with"
    " the time, one condition, which enters every layer and the last step.",
)

# %% [markdown]
# Shapes are atoms, then numbers; the batch is left out. There are nine rows because nine atoms are the most that a molecule of QM9 has; a missing atom leaves its row empty. With random weights the molecule at the end is nonsense. [Lesson 8](8_learning.ipynb) trains the weights; what they are trained for is that the probabilities at the end are those of the clean molecule at the beginning.
#
# One thing can be seen already. Each row of *cluster shares* belongs to one property. The row of TPSA, whose number is large, lies mostly in a few clusters; the other rows are spread. A property that enters as a large raw number saturates the encoder.

# %%
for name, row in zip(PROPERTIES, range(3), strict=True):
    share = given[f"condition.encoders.{row}.assign"].softmax(-1)
    print(
        f"{name:>4} = {y[0, row]:5.1f}: the largest of {share.shape[1]} shares is {share.max():.2f}"
    )

# %% [markdown]
# The parts, in the order of the notes:
#
# - **Graph tokens.** A row of $X_G$ is an atom (one-hot over the atom types) followed by its bonds to all atoms (one-hot over five bond types, *none* among them). Lesson [2 Graphs](2_graphs.ipynb).
# - **Noise.** One matrix acts on the whole row, so that a bond can change what becomes of an atom. Lesson [3 Noise](3_noise.ipynb).
# - **Condition encoder.** The time step $t$ counts as one more condition (将时间步 t 视为特殊条件); its code is made of sines and cosines (正弦编码). A numeric property is assigned softly to clusters (聚类), a category is one-hot. The codes are added. Lesson [4 Denoiser](4_denoiser.ipynb).
# - **Graph denoiser.** The tokens are encoded into the hidden space; layers of self-attention and MLP (a small network that acts on each row alone) follow, each adjusted by the condition. Lesson [4 Denoiser](4_denoiser.ipynb).
# - **From graph to molecule.** A generated graph may fall into pieces. A common way keeps the largest connected one; the authors call it Graph DiT-LCC (largest connected component). Graph DiT itself connects all components at randomly selected atoms (随机选择原子来连接所有组件). That changes the generated structure least, so it shows more exactly what the model does. Lesson [6 Molecules](6_molecules.ipynb).

# %%
row = graph_tokens(graph)[0, 0]
A, width = len(vocabulary.atoms), len(row)
print(f"atom types {', '.join(vocabulary.atoms)}; bond types {', '.join(BONDS)}")
print(f"a row has {A} + 9 × {len(BONDS)} = {width} numbers; {int(row.sum())} of the first are 1")
assert width == A + 9 * len(BONDS) and row.sum() == graph.mask.sum()

# %% [markdown]
# ### What is new, and in which part of the paper it is introduced
#
# The card of the paper answers the second question (创新点). *Against* says which earlier habit the thing replaces.

# %%
card = read_card(data_path("cards", "graph_dit.yaml"))


def as_table(parts, *fields):
    """Chosen fields of the parts of a card, as a table."""
    rows = [[getattr(part, field) for field in fields] for part in parts]
    rows = [tuple(", ".join(v) if isinstance(v, tuple) else v or "" for v in row) for row in rows]
    return Comparison(tuple(field.replace("_", " ") for field in fields), tuple(rows))


print(card.question)
print(card.question_zh)
as_table(card.innovations, "name", "where_introduced", "against", "how")

# %% [markdown]
# Three things are named in all three parts, and are the paper's claim. The fourth stands in the method alone, as a remark on how graphs become molecules. It decides a column of the main table (see *validity* below). What the related work has, and is *not* new here:

# %%
Markdown("\n".join(f"- {text}" for text in card.not_new))

# %% [markdown]
# A **conformation** (构象) is a spatial arrangement of a molecule's atoms; the models for it, and those that generate molecules with 3-D coordinates, place atoms in space. The next chapter is about one of them. Graph DiT draws who is bonded to whom, and no space. Which gaps of earlier work it closes:

# %%
as_table(card.overcomes, "paper", "gap")

# %% [markdown]
# ## Formula
#
# The paper's main equations, in the letters of this chapter.
#
# ### Noise: apart, or together
#
# Write $X$ for the atoms of a graph, $E$ for its bonds, both one-hot. DiGress, the model that Graph DiT answers to, lets a share $\bar\alpha_t$ of each survive until time $t$. The rest is drawn anew, from how frequent the types are in the data, the marginals $m_X$ and $m_E$. Atoms and bonds do so separately, each with a **transition matrix** (转移矩阵):
#
# $$ q(X_t \mid X_0) = X_0 \left( \bar\alpha_t I + (1 - \bar\alpha_t) \mathbf 1 m_X' \right), \qquad q(E_t \mid E_0) = E_0 \left( \bar\alpha_t I + (1 - \bar\alpha_t) \mathbf 1 m_E' \right) \tag{1} $$
#
# Graph DiT puts an atom and its bonds into one row, the rows into one matrix of tokens $X_G$, and multiplies it by one transition matrix $Q_G$ of four blocks (equations 5 and 6 of the paper):
#
# $$ q(X_G^t \mid X_G^0) = X_G^0\, \bar Q_G, \qquad \bar Q_G = \begin{pmatrix} Q_V & Q_{VE} \\ Q_{EV} & Q_E \end{pmatrix} = \bar\alpha_t I + (1 - \bar\alpha_t)\, u \tag{2} $$
#
# The notes write the new blocks as $Q_{EV}, Q_{VE} = \bar\alpha_t I + (1 - \bar\alpha_t) \mathbf 1 m_{EV}'$, where $m_{EV}'$ is the probability that an atom and a bond occur together (共同出现概率). These blocks are not square, so the $I$ can only be meant once, for the whole matrix. The matrix $u$ then says where a row goes when nothing survives. In it, $C_{XE}$ is the probability of a bond type given the atom, and $C_{EX}$ that of an atom type given the bond, repeated for all $N$ slots:
#
# $$ u = \begin{pmatrix} \mathbf 1 m_X' & C_{XE} \cdots C_{XE} \\ C_{EX} \cdots & \mathbf 1 m_E' \cdots \end{pmatrix} \tag{3} $$
#
# ### One condition from many
#
# Of $M$ properties asked for, let $c_i$ be the $i$-th property. Each gets a code of the same width $D$, as does the time, and the condition $c$ is their sum:
#
# $$ c = \mathrm{encode}(t) + \sum_{i=1}^{M} \mathrm{encode}(c_i), \qquad \mathrm{encode}(c_i) = \mathrm{Linear}(\mathrm{Softmax}(\mathrm{Linear}(c_i))) \tag{4} $$
#
# The inner part assigns a number softly to $D$ clusters (the shares sum to 1), the outer part turns the assignment into a vector. A category is one-hot, and its code is a row of a matrix. The alternatives that the paper tests against: *direct*, a linear layer on the number itself, and *interval*, one-hot over bins.
#
# ### A Transformer that the condition adjusts
#
# The noisy tokens are encoded as $H = \mathrm{Linear}(X_G^t)$. In **AdaLN** (自适应层归一化) the mean $\mu$ and the spread $\sigma$ of a row are taken out, and what the condition says is put in their place, a scale $\gamma$ and a shift $\beta$, which are small networks of $c$:
#
# $$ \mathrm{AdaLN}(H, c) = (1 + \gamma(c)) \odot \frac{H - \mu(H)}{\sigma(H)} + \beta(c) \tag{5} $$
#
# Each layer has two branches $f$, self-attention and MLP, and adds what they say through a gate $\alpha$:
#
# $$ H \leftarrow H + \alpha(c) \odot \mathrm{AdaLN}(f(H), c) \tag{6} $$
#
# All three of $\alpha$, $\beta$ and $\gamma$ are initialised with 0, so that at first a layer changes nothing. (The gate $\alpha(c)$ and the share $\bar\alpha_t$ have nothing to do with each other.) The last step has no gate, and gives the probabilities of atoms and bonds at time 0:
#
# $$ X_G^0 = \mathrm{AdaLN}(\mathrm{MLP}(H), c) \tag{7} $$
#
# ### The opening study
#
# The introduction of the paper asks whether one needs all this. Take 100 polymers with three properties each: synthesizability, and the permeabilities to oxygen and to nitrogen. For each polymer, the values are what is asked for. *Three* models, of one property each, generate up to 30 graphs for theirs: 90 in all. An oracle ranks each set by how close to the target the graphs come. Is there a polymer that stands in all three sets? Then it may serve all three properties.
#
# Let the **miss** $e$ of a molecule $g$ be its distance from the target in property $p$, in units of the standard deviation $s_p$ of that property:
#
# $$ e_p(g) = \frac{\left| y_p(g) - c_p \right|}{s_p} \tag{8} $$
#
# Sort each set by its miss, the nearest first; $r_p(g)$ is the place of $g$ in the list of $p$. The rank $K$ is how far down one must read all three lists until they have a molecule in common. It is $d$, the number of molecules drawn for a list, when there is none:
#
# $$ K = \min \Big( d,\ \min_{g \,\in\, \text{all lists}}\ \max_p\ r_p(g) \Big) \tag{9} $$
#
# (The paper words it as the place where the shared polymer appears in the lists; equation 9 is our reading of that. In later lessons $K$ counts bond types.)
#
# How often would lists share a molecule by *chance*? Let each list be $d$ of $S$ molecules, chosen by a property that has nothing to do with the others. A molecule is in a list with probability $d / S$, so the expected number $h$ of shared molecules is
#
# $$ h = S \left( \frac dS \right)^3 = \frac{d^3}{S^2} \tag{10} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $X_G$ | tokens, a row for each atom with its bonds | (N, A + 5 N) | `graph_tokens` | tokens X_G |
# | $\bar\alpha_t$ | share that survives until time t | 0 … 1 | `alpha_bar` | kept share ᾱ |
# | $u$ | where a row goes when nothing survives | (A + 5 N)² | `u` | matrix u |
# | $C_{XE}$ | bond given atom | (A, 5) | `bond_given_atom` | C_XE |
# | $C_{EX}$ | atom given bond | (5, A) | `atom_given_bond` | C_EX |
# | $c_i$ | property asked for, the i-th | a number or a class | `y` | properties c_i |
# | $c$ | condition, all properties and the time | (D,) | `c` | condition c |
# | $H$ | hidden rows | (N, D) | `H` | hidden H |
# | $\gamma$ | scale that the condition gives | (D,) | `scale` | scale γ |
# | $\beta$ | shift that the condition gives | (D,) | `shift` | shift β |
# | $\alpha$ | gate that the condition opens | (D,) | `gate` | gate α |
# | $e$ | miss of a molecule in a property | standard deviations | `miss` | miss e |
# | $K$ | rank of the first molecule that all lists share | 1 … d | `shared_rank` | rank K |
# | $d$ | molecules drawn for a list | a count, 30 | `DRAWN` | d = |
# | $S$ | molecules to draw from | a count | `stock` | stock S |

# %% [markdown]
# ## Code
#
# ### The condition, by hand
#
# Equation 4 for one number, with loops over the clusters:


# %%
def encode_loop(encoder, number):
    """Linear(Softmax(Linear(c_i))) of one number, cluster by cluster."""
    first, second = encoder.assign, encoder.represent.weight
    heights = [float(w * number + b) for w, b in zip(first.weight[:, 0], first.bias, strict=True)]
    parts = [np.exp(height - max(heights)) for height in heights]
    shares = [part / sum(parts) for part in parts]
    return sum(share * second[:, k] for k, share in enumerate(shares))


with torch.no_grad():
    by_loop = [encode_loop(e, y[0, i]) for i, e in enumerate(model.condition.encoders)]
gap = (sum(by_loop) + given["time"][0] - c[0]).abs().max()
print(f"by loop and by module: off by {gap:.0e}")
assert gap < 1e-5  # sums of 64 products in float32, each rounded by about 1e-7

# %% [markdown]
# A single number $c_i$ has two ends in this code. Far to the left and far to the right one cluster takes all, so that values beyond are told apart no more. An encoder with random weights, over a range of values:

# %%
torch.manual_seed(0)
encoder = ClusterEncoder(1, 64)
for span in (1.0, 100.0, 10_000.0):
    values = torch.linspace(-span, span, 5)[:, None]
    with torch.no_grad():
        codes_of = encoder(values, torch.zeros(5, dtype=torch.bool))
    steps = codes_of.diff(dim=0).norm(dim=1)
    print(f"from {-span:g} to {span:g}: steps between codes", [f"{x:.2f}" for x in steps])

# %% [markdown]
# Near zero equal steps of the number are equal steps of the code. In the last line only the sign is left: the outer steps, from −10,000 to −5,000 and from 5,000 to 10,000, change nothing. Raw permeabilities reach such sizes, and the paper says that it takes their logarithm. Lesson [4 Denoiser](4_denoiser.ipynb) looks at what the release does.
#
# ### AdaLN, by hand
#
# Equation 5 row by row, against PyTorch:


# %%
def adaln_loop(H, scale, shift):
    rows = []
    for row in H:
        spread = (row.var(unbiased=False) + 1e-5).sqrt()  # the small number of LayerNorm
        rows.append((1 + scale) * (row - row.mean()) / spread + shift)
    return torch.stack(rows)


torch.manual_seed(0)
H, scale, shift, gate = given["embed"][0], torch.randn(64), torch.randn(64), torch.zeros(64)
by_torch = torch.nn.functional.layer_norm(H, (64,)) * (1 + scale) + shift
assert torch.allclose(adaln_loop(H, scale, shift), by_torch, atol=1e-5)  # float32
print("a gate of zero changes nothing:", torch.equal(H, H + gate * by_torch))

# %% [markdown]
# The real model of the figure is at its start, so its three layers must hand the hidden rows on unchanged, whatever the condition:

# %%
assert torch.equal(given["blocks.2"], given["embed"])
print("three layers, and the hidden rows are what they were")

# %% [markdown]
# ### One matrix for atoms and bonds
#
# At the last time step nothing survives, so the transition matrix is $u$. Beside it, that of noise which treats atoms and bonds apart:

# %%
u = noise.matrix(noise.steps)
apart = GraphNoise(noise.statistics, noise.steps, kind="independent")
bond_given_atom, atom_given_bond = noise.bond_given_atom, noise.atom_given_bond
assert torch.allclose(u[:A, A : A + len(BONDS)], bond_given_atom)
assert torch.allclose(u[A : A + len(BONDS), :A], atom_given_bond)
print(
    f"u is {tuple(u.shape)}; C_XE is {tuple(bond_given_atom.shape)}, C_EX is {tuple(atom_given_bond.shape)}"
)


# %% tags=["figure"]
def draw_matrices():
    figure, row = canvas(1, 2, 7.0, 3.3)
    titles = ("apart: atoms and bonds on their own", "together: matrix u of Graph DiT")
    for axes, matrix, title in zip(row, (apart.matrix(noise.steps), u), titles, strict=True):
        axes.imshow(matrix, cmap="gray_r", vmin=0, vmax=1)
        axes.axhline(A - 0.5, color=COLOURS["query"], linewidth=1)
        axes.axvline(A - 0.5, color=COLOURS["query"], linewidth=1)
        axes.set(
            title=title,
            xticks=[A / 2 - 0.5, (A + width) / 2],
            yticks=[A / 2 - 0.5, (A + width) / 2],
        )
        axes.set_xticklabels(["atom", "9 slots of bonds"])
        axes.set_yticklabels(["atom", "9 slots\nof bonds"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    ink = COLOURS["query"]
    style = {"color": ink, "weight": "bold", "va": "center", "bbox": {"fc": "white", "ec": ink}}
    style["arrowprops"] = {"arrowstyle": "-|>", "color": ink}
    row[1].annotate("C_XE", (24, A / 2 - 0.5), (24, 14), ha="center", **style)
    row[1].annotate("C_EX", (A / 2 - 0.5, 32), (13, 32), **style)
    return figure


show(
    draw_matrices(),
    alt="Two square matrices. In the left one only blocks along the diagonal are grey; in the right"
    " one every block is, and the strips that join atoms and bonds are named C_XE and C_EX.",
)

# %% [markdown]
# Left, what happens to an atom depends on that atom alone. Right, every bond has a say in it. One atom has $n - 1$ slots, so the slots outvote it. How much of an atom is then kept, at a time when by the schedule $\bar\alpha_t$ of it should be?


# %%
def kept_share(noise, t):
    """The mean probability that an atom of the example still has its type."""
    pX, _ = noise.q(graph, torch.tensor([t]))
    return (pX * graph.X).sum(-1)[graph.mask].mean().item()


for t_now in (5, 10, 25):
    shares = [kept_share(kind, t_now) for kind in (noise, apart)]
    by_schedule = noise.alpha_bar[t_now].item()
    print(
        f"t = {t_now:2d} of 50: ᾱ {by_schedule:.2f}; together {shares[0]:.2f}, apart {shares[1]:.2f}"
    )

# %% [markdown]
# An atom that is drawn anew may get its old type again, so *apart* lies above $\bar\alpha_t$. *Together* lies below it in spite of that: the noise that is made to fit the graph forgets the graph faster than its schedule says. This is the first point in the box below, and lesson [3 Noise](3_noise.ipynb) takes it up.
#
# ### The rank K
#
# Now the opening study. The naive version reads down all three lists, one line at a time, until they have something in common:

# %%
DRAWN = 30  # d, for each list


def rank_by_reading(lists):
    """The first k at which the first k lines of all lists share an entry; their length if none."""
    for k in range(1, len(lists[0]) + 1):
        if set.intersection(*(set(each[:k]) for each in lists)):
            return k
    return len(lists[0])


rank_by_reading([list("abcd"), list("dbac"), list("cadb")])

# %% [markdown]
# Checked by eye: `a` stands at places 1, 3 and 2, so three lines are enough; `b`, `c` and `d` each have a 4 among their places. Equation 9 says the same without reading line by line:


# %%
def shared_rank(lists):
    """The rank K of equation 9, and how many entries all lists share.

    Raises ValueError for lists of different lengths, or one that names an entry twice.
    """
    lists = [list(each) for each in lists]
    lengths = [len(each) for each in lists]
    if len(set(lengths)) != 1:
        raise ValueError(f"lists have {lengths} entries; expected the same number in each")
    ranks = [{entry: place for place, entry in enumerate(each, 1)} for each in lists]
    if any(len(rank) != lengths[0] for rank in ranks):
        raise ValueError("lists name an entry twice; expected each once in a list")
    shared = set.intersection(*map(set, ranks))
    K = min((max(rank[entry] for rank in ranks) for entry in shared), default=lengths[0])
    return K, len(shared)


rng = np.random.default_rng(0)
for _ in range(500):
    lists = [rng.choice(40, 12, replace=False).tolist() for _ in range(3)]
    assert shared_rank(lists)[0] == rank_by_reading(lists)
shared_rank([list("abcd"), list("dbac"), list("cadb")])

# %% [markdown]
# Why return both numbers? A $K$ of 30 may mean that the lists share nothing, or that they share a molecule in the very last line.
#
# ### Three ways to ask
#
# > **A stand-in.** Nothing is trained in this lesson. A *generator of molecules whose property is near a target* is replaced by **retrieval**: from a stock of molecules with known properties, take the 60 that are nearest to the target and draw 30 of them at random. That is what a perfect generator would do that knows nothing but the stock. It never invents a molecule, and it never misses its own property by much. Lesson 9 repeats the study with trained models.
#
# The stock has as many molecules as the paper has polymers with three permeabilities. All distances are in standard deviations (equation 8).

# %%
NEAR = 60


def draw(distance, rng):
    """30 of the 60 molecules of least distance."""
    return rng.choice(np.argsort(distance, kind="stable")[:NEAR], DRAWN, replace=False)


def three_of_one(signed, rng):
    """Three generators, each of one property."""
    return [draw(abs(signed[:, p]), rng) for p in range(3)]


def one_sum(signed, rng):
    """One generator, for the sum of the three properties: many conditions turned into one."""
    return [draw(abs(signed.sum(axis=1)), rng)] * 3


def all_three(signed, rng):
    """One generator, near the target in all three properties together."""
    return [draw((signed**2).sum(axis=1), rng)] * 3


# %% [markdown]
# Each returns three sets. For `one_sum` and `all_three` they are one and the same, ranked three times, as the paper does with Graph DiT (生成一个图集，然后分别对三个条件根据 Oracle 排序). Besides the rank, two things are measured: the share of **hits**, molecules with a miss of at most half a standard deviation in *every* property, and the miss of the best molecule in its worst property.


# %%
def ranked(sets, miss):
    """Each set sorted by its own property, the nearest first."""
    return [drawn[np.argsort(miss[drawn, p], kind="stable")] for p, drawn in enumerate(sets)]


def study(stock, wanted, generators, seed=0):
    """One row for each target and generator; stock (S, 3) and wanted (T, 3), in units of s."""
    rng, rows = np.random.default_rng(seed), []
    for number, target in enumerate(wanted):
        signed = stock - target
        miss = abs(signed)
        for generator in generators:
            sets = generator(signed, rng)
            K, shared = shared_rank(ranked(sets, miss))
            worst = miss[np.unique(np.concatenate(sets))].max(axis=1)
            hits = (worst <= 0.5).mean()
            rows.append((number, generator.__name__, K, shared == 0, hits, worst.min()))
    columns = ["target", "generator", "K", "none shared", "hits", "best miss"]
    return pd.DataFrame(rows, columns=columns)


# %% [markdown]
# A check where the answer is known. If the three properties are one property, written three times, the three generators must agree on which molecules are near, and the sum must be as good as all three:

# %%
line = np.random.default_rng(1).normal(size=(200, 1)).repeat(3, axis=1)
same = study(line, line[:20], [three_of_one, one_sum, all_three]).groupby("generator")
print(same[["none shared", "hits"]].mean())
assert same["none shared"].mean().max() < 0.1
assert same["hits"].mean().min() > 0.9

# %% [markdown]
# ## On real input
#
# ### The opening study on molecules
#
# 553 molecules in the stock, and 100 others as targets, each with its SA score, logP and TPSA:

# %%
SIZE = 553
stock = (known[list(PROPERTIES)] / unit).to_numpy()[:SIZE]
wanted = (targets[list(PROPERTIES)] / unit).to_numpy()
WAYS = [three_of_one, one_sum, all_three]
results = study(stock, wanted, WAYS)
summary = results.groupby("generator", sort=False).agg(
    **{
        "none shared": ("none shared", "mean"),
        "median K": ("K", "median"),
        "hits": ("hits", "mean"),
        "best miss (median)": ("best miss", "median"),
    }
)
rows = [(name, *(f"{x:.2f}" for x in row)) for name, *row in summary.itertuples()]
Comparison(("generator", *summary.columns), tuple(rows))

# %%
none_shared = summary["none shared"]["three_of_one"]
print(f"no molecule in all three sets: {none_shared:.0%} of the targets")
print(
    f"by chance alone (equation 10) {DRAWN**3 / SIZE**2:.2f} shared molecules are expected a target"
)
assert none_shared > 0.5 and summary["hits"]["all_three"] > 2.5 * summary["hits"]["three_of_one"]
assert summary["hits"]["one_sum"] < 0.5 * summary["hits"]["all_three"]
assert summary["best miss (median)"]["three_of_one"] < summary["best miss (median)"]["all_three"]
assert summary["median K"].idxmin() == summary["hits"].idxmin() == "one_sum"


# %% tags=["figure"]
def draw_study():
    figure, (left, right) = canvas(1, 2, 7.4, 2.7, width_ratios=(1.5, 1))
    bins = np.arange(0.5, DRAWN + 1.5)
    inks = {"three_of_one": "second", "all_three": "first"}
    names = {
        "three_of_one": "three of one property",
        "one_sum": "one sum",
        "all_three": "all three",
    }
    for name in inks:
        ranks = results[results["generator"] == name]["K"]
        left.hist(ranks, bins, color=COLOURS[inks[name]], label=names[name], alpha=0.85)
    left.set(
        xlabel="rank K",
        ylabel="targets",
        title=f"{len(wanted)} targets, stock S = {SIZE}, d = {DRAWN}",
    )
    left.legend(loc="upper left", fontsize=8)
    left.annotate(
        "nothing\nshared",
        (DRAWN - 0.7, 45),
        (22.0, 45),
        va="center",
        fontsize=8,
        arrowprops={"arrowstyle": "-|>"},
    )
    for k, name in enumerate(names):
        hits = summary["hits"][name]
        right.barh(k, hits, color=COLOURS[inks.get(name, "muted")])
        right.text(hits + 0.01, k, f"{hits:.0%}", va="center", fontsize=8)
    right.set(yticks=range(3), xlabel="share with a miss e ≤ ½ in all three", xlim=(0, 0.4))
    right.set_yticklabels([name.replace(" of ", "\nof ") for name in names.values()])
    right.invert_yaxis()
    return figure


show(
    draw_study(),
    alt="Left, a histogram of the rank K: for three generators of one property most targets"
    " are in the last bar, 30; for one generator of all three, K lies around 10. Right, bars of the"
    " share of hits: about a tenth for three generators and for the sum, three times that for all three.",
)

# %% [markdown]
# So the stand-in shows what the paper reports (结果是超过一半的聚合物没有满足多种条件), and more strongly: for far more than half of the targets, no molecule stands in all three sets. The bars on the right say why that matters. A molecule that is right in one property is right in all three only by luck; one that is near in all three together is right three times as often. The **sum** of the properties, many conditions turned into one, is met by many molecules that have little else in common.
#
# ### One target, in pictures


# %%
def value_texts(axes, values, target):
    """The three values below a molecule: green where the miss is at most one half."""
    places = {"SA": (0.24, -0.02), "logP": (0.76, -0.02), "TPSA": (0.5, -0.2)}
    for name, place in places.items():
        near = abs(values[name] - target[name]) / unit[name] <= 0.5
        style = {
            "color": COLOURS["good" if near else "bad"],
            "weight": "bold" if near else "normal",
        }
        text = f"{name} {values[name]:.1f}".replace("-", "−")
        axes.text(*place, text, size=7, ha="center", va="top", transform=axes.transAxes, **style)


# %% tags=["figure"]
def draw_target(number, seed=0):
    target, rng = targets.iloc[number], np.random.default_rng(seed)
    signed = stock - wanted[number]
    sets = three_of_one(signed, rng) + all_three(signed, rng)[:1]
    orders = [*(abs(signed[:, p]) for p in range(3)), (signed**2).sum(axis=1)]
    figure, grid = canvas(4, 6, 7.6, 4.6)
    names = [*(f"nearest\nin {p}" for p in PROPERTIES), "nearest\nin all three"]
    for row, drawn, order, name in zip(grid, sets, orders, names, strict=True):
        row[0].set_axis_off()
        row[0].text(0.5, 0.5, name, ha="center", va="center", transform=row[0].transAxes)
        for axes, index in zip(
            row[1:], drawn[np.argsort(order[drawn], kind="stable")], strict=False
        ):
            draw_molecule(axes, known["smiles"][index], pixels=220)
            value_texts(axes, known.iloc[index], target)
    title = ", ".join(f"{p} {target[p]:.1f}" for p in PROPERTIES)
    figure.suptitle(
        f"target: {title}   (from {target['smiles']}), d = {DRAWN} drawn, 5 shown", size=9
    )
    return figure


by_target = results.pivot(index="target", columns="generator", values="hits")
typical = (by_target["three_of_one"] < 0.15) & (by_target["all_three"] > 0.5)
chosen = int(typical.idxmax())  # the first such target
show(
    draw_target(chosen),
    alt="Four rows of five molecules with their three values. In the first three rows one value is"
    " near the target and the others mostly are not; in the last row all or nearly all are.",
)

# %% [markdown]
# A green value lies within half a standard deviation of the target, an orange one does not. In each of the upper rows the property asked for is met nearly exactly, and the others are whatever they happen to be. In the last row no value is met as closely, and all are met well enough. Balance is what the single conditions lack. (The target is the first at which both kinds of generator do about as well as they can.)
#
# ### What the rank does not say
#
# Look at the table again. The *best* of the 90 molecules of the three generators is as near the target as the best of the 30 of the other, even a little nearer. The good molecules are there; they stand in one list and are missing in the others. So a $K$ of 30 says *no list vouches for the others*, not *there is nothing to be found*; one more oracle call for each of the 90 finds it. And a small $K$ is no proof of control. `one_sum` has the smallest rank of all, and the fewest hits. A single set shares all its molecules with itself, so neither it nor Graph DiT can fail this test by sharing nothing. The first exercise measures how well a generator does that does not listen at all.
#
# Why more than half in the paper, and still more here? The second exercise tries two causes.
#
# ### Which experiments
#
# The third question, from the card. The paper calls its three questions RQ1 to RQ3.

# %%
as_table(card.experiments, "question", "where", "data", "measures", "setup")

# %% [markdown]
# A data set is split 6:2:2 into training, validation and test. (For the design task the test set is 16 chosen polymers.) The sizes, as the release has them:

# %%
SPLITS = {
    "polymers (O2, N2, CO2)": (331, 111, 111),
    "BACE": (798, 267, 267),
    "BBBP": (522, 175, 175),
    "HIV": (1422, 475, 475),
    "polymers (O2/N2 separation)": (474, 119, 16),
}
rows = []
for name, parts in SPLITS.items():
    percent = " : ".join(f"{100 * part / sum(parts):.0f}" for part in parts)
    rows.append((name, str(sum(parts)), *map(str, parts), percent))
Comparison(("data", "molecules", "training", "validation", "test", "percent"), tuple(rows))

# %% [markdown]
# BACE (does a molecule block an enzyme?), BBBP (does it pass from blood to brain?) and HIV (does it stop the virus?) have a *category* as their property, so its score is an accuracy; the permeabilities are numbers, and theirs is a mean absolute error (MAE, 平均绝对误差) in powers of ten.
#
# The nine measures, and the question behind each. Lesson [7 Metrics](7_metrics.ipynb) builds them.
#
# | measure | asks |
# | --- | --- |
# | molecular validity (validity) | is the graph a possible molecule, after repair and (in brackets) before? |
# | heavy atom coverage | how many atom types of the reference set occur? |
# | internal diversity | how unlike one another are the generated molecules? |
# | fragment-based similarity | do the same fragments occur as in the reference set? |
# | Fréchet ChemNet distance | are the molecules, as a whole, what a trained network expects from the reference set? |
# | synthetic accessibility (Synth.) | how far is the synthetic score from the one asked for? |
# | MAE, or accuracy, of each further property | how far is the property from the one asked for? (three columns in Table 1) |
#
# ### How results are shown: the table
#
# The fourth question, and what each form lets a reader see:

# %%
as_table(card.presentation, "form", "place", "shows", "lets_see")

# %% [markdown]
# Table 1 **as data**: one number a row, with its unit, its direction and its source. This is the form to compute with.

# %%
published = headline_results("graph_dit")
main = published[published["table"] == "Table 1"]
columns = ["method", "measure", "printed", "unit", "better", "source"]
print(f"{len(main)} rows; the last four:")
Comparison(tuple(columns), tuple(main[columns].tail(4).itertuples(index=False, name=None)))

# %% [markdown]
# And **as the paper shows it**: ten methods against nine measures and a mean. A star, which is ours, marks the best of a column; brackets are validity without the repair rule, a dash where none is printed.

# %%
printed = main.pivot(index="method", columns="measure", values="printed").loc[
    main["method"].unique()
]
wide = printed.apply(pd.to_numeric)
MEASURES = ["validity", "coverage", "diversity", "similarity", "distance (FCD)"]
MEASURES += ["MAE Synth.", "MAE O2", "MAE N2", "MAE CO2", "MAE average"]
direction = main.drop_duplicates("measure").set_index("measure")["better"]


def best(column):
    return wide[column].max() if direction[column] == "higher" else wide[column].min()


rows = []
for method in wide.index:
    cells = [method]
    for column in MEASURES:
        star = "★ " if wide[column][method] == best(column) else ""
        rule = printed["validity without rule"][method] if column == "validity" else None
        inside = "" if column != "validity" else f" ({'–' if pd.isna(rule) else rule})"
        cells.append(star + printed[column][method] + inside)
    rows.append(tuple(cells))
Comparison(("", *MEASURES), tuple(rows))

# %% [markdown]
# Six readings that the table allows:

# %%
graph_dit, lcc, digress = (wide.loc[m] for m in ("Graph DiT", "Graph DiT-LCC", "DiGress v2"))
diverse = wide["diversity"].idxmax()
print(
    f"1. most diverse: {diverse}; its similarity is {wide['similarity'][diverse]}, its distance",
    wide["distance (FCD)"][diverse],
)
print(
    f"2. valid without repair: DiGress v2 {digress['validity without rule']}, with it {digress['validity']}"
)
print(
    f"3. before repair, both ways of reading a graph: {lcc['validity without rule']} and {graph_dit['validity without rule']}; after it {lcc['validity']} and {graph_dit['validity']}"
)
print(
    f"4. GDSS: similarity {wide['similarity']['GDSS']:.4f}, and a MAE of {wide['MAE average']['GDSS']} all the same"
)
print(
    f"5. easiest to steer in Synth.: {wide['MAE Synth.'].idxmin()}, {wide['MAE Synth.'].min()}; Graph DiT {graph_dit['MAE Synth.']}"
)
four = wide[["MAE Synth.", "MAE O2", "MAE N2", "MAE CO2"]].mean(axis=1)
print(
    f"6. the last column is the mean of four, off by at most {(four - wide['MAE average']).abs().max():.4f}"
)
assert diverse == "DiGress v2" and (four - wide["MAE average"]).abs().max() < 1e-3

# %% [markdown]
# 1. **The best diversity and a useless similarity.** DiGress v2 makes the most diverse molecules of all; they share few fragments with the reference and are far from it. Molecules that are nothing in particular are diverse. No single column can be read alone.
# 2. **Repair hides.** Nearly all graphs of DiGress are valid after the repair rule, and about three in ten before it.
# 3. **LCC or connecting.** The same graphs, read in two ways: before repair they are equally valid. Keeping the largest piece nearly always gives a molecule; connecting all pieces fails more often. It comes nearer to the properties that were asked for, though, since nothing is thrown away.
# 4. **A number without its neighbours.** GDSS has no similarity with the reference set at all, and only three of the ten methods have a smaller mean error. An error can be small for molecules that resemble no polymer of the data.
# 5. **Graph DiT is not the best everywhere.** In validity, diversity and Synth. others are ahead.
# 6. **The mean adds unlike things.** The last column averages a synthetic score (1 to 10) with powers of ten. It does with measures what the introduction warns of with conditions: it turns several into one.
#
# The first reading as a picture. A chart of two columns shows the trade-off at once; it hides the other eight.


# %%
def draw_tradeoff():
    figure, axes = canvas(1, 1, 6.0, 2.9)
    shift = {
        "Graph DiT": (-22, 8),
        "Graph DiT-LCC": (6, 3),
        "Graph GA": (-14, -13),
        "DiGress": (-8, -14),
        "DiGress v2": (-30, 8),
    }
    for method, row in wide.iterrows():
        ours = method.startswith("Graph DiT")
        axes.plot(
            row["diversity"], row["similarity"], "o", color=COLOURS["first" if ours else "second"]
        )
        at = shift.get(method, (6, -3))
        axes.annotate(
            method,
            (row["diversity"], row["similarity"]),
            at,
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(
        xlabel="internal diversity (higher is better)",
        ylabel="fragment similarity\n(higher is better)",
    )
    axes.set(xlim=(0.72, 0.945), ylim=(-0.12, 1.12))
    return figure


show(
    draw_tradeoff(),
    alt="Ten methods as dots, diversity to the right, similarity upward: Graph DiT is near the top"
    " with high diversity, the two versions of DiGress are furthest right and low.",
)

# %% [markdown]
# Small molecules, and the design task (RQ2). Of 609 polymers 16 are kept for test and reference (剩下的用来 training 和 validation), and 1,000 are generated. *At the upper bound* counts those that are as selective for a given permeability as the best known polymers; *utility* is given by experts of the field (领域专家的反馈).

# %%
others = published[published["table"] == ""]
rest = others.pivot_table(
    index=["data", "method"], columns="measure", values="printed", aggfunc="first"
)
small = rest.loc[["BACE", "BBBP", "HIV"]].dropna(axis=1, how="all").reset_index(level=1, drop=True)
print(small.T.to_string())
design = others[others["data"].str.contains("separation")]
Comparison(
    ("method", "measure", "value", "unit"),
    tuple(design[["method", "measure", "printed", "unit"]].itertuples(index=False, name=None)),
)

# %% [markdown]
# By the count at the upper bound, the LCC variant is ahead, then DiGress v2, then Graph DiT. It is the experts who put three polymers of Graph DiT first. Here the form decides the story: a count computed by an oracle rewards extreme values, an expert asks whether the structure makes sense.
#
# ### How results are shown: the ring
#
# RQ3 is the **ablation study** (消融实验): replace AdaLN, replace the cluster encoding, replace the noise, and see (把 AdaLN 和 Cluster 换掉看看). The paper shows it as **ring charts** (环形图), each measure a sector, each alternative a bar, and the chosen design as 1. Here in one ring, by `ring_chart` of [chapter 1](../1_paper_writing/4_experiments.ipynb):

# %%
ablation = published[published["table"] == "Figure 4"]
relative = ablation.pivot(index="method", columns="measure", values="value")
relative.columns = relative.columns.str.removesuffix(", relative")
ORDER = ["O2", "N2", "CO2", "diversity", "similarity", "distance"]
ALTERNATIVES = ["direct encoding", "interval encoding", "cross-attention", "separate noise"]
ring = {"chosen design": dict.fromkeys(ORDER, 1.0)}
for name in ALTERNATIVES:
    row = relative[relative.index.str.startswith(name)].iloc[0]
    ring[name] = {measure: row[measure] for measure in ORDER}
show(
    ring_chart(ring, dict.fromkeys(ORDER, "higher")),
    alt="A ring of six sectors with five bars each. In diversity all bars reach the rim; in the gases"
    " the alternatives reach half to three quarters; in distance all but the chosen design are short.",
)

# %% [markdown]
# The same as a table, with the three alternatives that are left out of the ring:

# %%
text = ablation.pivot(index="method", columns="measure", values="printed")
text.columns = text.columns.str.removesuffix(", relative")
Comparison(("instead", *ORDER), tuple(text[ORDER].itertuples(name=None)))

# %% [markdown]
# - What the **ring** lets one see, at a glance: these alternatives lose nearly everywhere, and none in diversity. *Is the part needed?* Yes, each.
# - What it **hides**: the units, and what was divided by what (the last exercise asks). There are no intervals, so one cannot tell whether 0.59 and 0.57 differ. All bars are relative to the design that the authors chose, which is 1 by definition. And an alternative that is *better* somewhere (diversity, 1.04) looks like one that is as good.
# - What the **table** of the same numbers adds: *by how much*. Direct encoding keeps 98 % of the similarity and a fifth of the distance; interval encoding loses both. One may ask for a chart, and print the table beside it.
#
# (The numbers are the text of the figure, as the course's notes hold it; which of two alternatives of a part is which follows the order of the legend.)
#
# > **Where the code leaves the paper.** The release is the authors' code. The list is our reading of it, and the lesson named in each line takes the point up.
# >
# > - The graph-dependent noise forgets much faster than its schedule says, since a row's slots outvote its atom: [3 Noise](3_noise.ipynb).
# > - Sampling starts from the marginals, which are not where the forward process ends: [3 Noise](3_noise.ipynb).
# > - $\bar Q_G$ is a definition and not the product of the steps' matrices; the rows of $u$ sum to $1 + N$: [3 Noise](3_noise.ipynb).
# > - $C_{XE}$ and $C_{EX}$ give rare and common atom types equal weight: [3 Noise](3_noise.ipynb).
# > - The attachment points `*` of a polymer are not counted as atoms when the size of the model is chosen: [2 Graphs](2_graphs.ipynb).
# > - Permeabilities enter the network raw, and not as logarithms, which saturates the cluster encoder: [4 Denoiser](4_denoiser.ipynb).
# > - In training, noise is added to the code of every property, and one missing property drops all of its row: [4 Denoiser](4_denoiser.ipynb).
# > - The normalisation stands behind attention and MLP, and not before them as in other diffusion Transformers; queries and keys are normalised, too, which the paper does not mention: [4 Denoiser](4_denoiser.ipynb).
# > - The notes have two SiLU activations in each network of $c$; the release has one, between two linear layers: [4 Denoiser](4_denoiser.ipynb).
# > - The output is added to the noisy tokens, which equation 7 does not say: [4 Denoiser](4_denoiser.ipynb).
# > - The mask of attention is written in place into an expanded tensor, which a newer PyTorch warns of: [4 Denoiser](4_denoiser.ipynb).
# > - A third term of the loss only shifts the number that is printed, and looks its atomic weights up in the wrong place: [5 Diffusion](5_diffusion.ipynb).
# > - "Randomly" connecting the components takes the first pair of atoms that works: [6 Molecules](6_molecules.ipynb).
# > - Validity asks neither for one piece nor for the right number of `*`: [6 Molecules](6_molecules.ipynb).
# > - The oracles of Table 1 are trained on all data, the test set among them: [7 Metrics](7_metrics.ipynb).
# > - The repository has no licence, so this course writes everything from the paper and from what the code was seen to compute.

# %% [markdown]
# ### Words, limits, open questions
#
# The words of the notes, with those of the card:

# %%
as_table(card.vocabulary, "term", "chinese", "meaning")

# %%
print(*(f"- {text}" for text in card.limitations), sep="\n")
print("open questions of the card:", open_questions(card) or "none")
print("parts read:", *card.parts_read)

# %% [markdown]
# The limits above are our reading; the conclusion of the paper was not read for the card. To them we add what the study above shows: sharing a molecule, the measure of the opening study, is not the same as meeting the conditions.

# %% [markdown]
# ## Exercises
#
# Nothing of this lesson goes into the library, so there are no blanks to fill. The exercises are to predict, to vary, to find a mistake and to measure. The cell below each one computes its answer.
#
# | exercise | minutes | difficulty |
# | --- | --- | --- |
# | Predict: a generator that does not listen | 5 | ●○○ |
# | Vary: the stock, and two properties that go together | 10 | ●●○ |
# | Find the bug: a rank that is too good | 5 | ●●○ |
# | Measure: the ring from the table | 10 | ●●● |
#
# **Predict.** A generator draws 30 molecules at random, whatever the target. The set is ranked for each of the three properties, as that of `all_three`. Is its rank $K$ near 1, near 10 or near 30? And its share of hits?
#
# <details><summary>Hint</summary>
#
# All 30 molecules are in all three lists. With random orders, a molecule is among the first $k$ of all three with probability $(k / 30)^3$, and there are 30 molecules.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Near 10, and not worse than the generator that meets all three properties: $30\, (k/30)^3 = 1$ gives $k \approx 9.7$. In the cell it is even a little smaller. Ranks compare molecules of one set with one another and say nothing about the distance from the target. Hits do: the deaf generator has few. So a study that compares three sets with one needs a second measure, such as the miss.
#
# </details>


# %%
def deaf(signed, rng):
    """30 molecules at random, whatever is asked for."""
    return [rng.choice(len(signed), DRAWN, replace=False)] * 3


heard = study(stock, wanted, [all_three, deaf]).groupby("generator")
print(heard[["K", "hits", "best miss"]].mean().round(2))
print(f"expected where 30 (k/30)³ = 1: k = {30 * 30 ** (-1 / 3):.1f}")
assert heard["K"].mean()["deaf"] <= heard["K"].mean()["all_three"] + 1
assert heard["hits"].mean()["deaf"] < 0.3 * heard["hits"].mean()["all_three"]

# %% [markdown]
# **Vary.** First let the stock grow from 60 to 2,000 molecules. Then keep 553 molecules and replace the third property by one that goes together with the second: correlation 0, 0.5, 0.9, 0.99, 1. How does the share of targets without a shared molecule change? (In the one public table of polymers that we know, the logarithms of the permeabilities to oxygen and nitrogen have a correlation of 0.99.)
#
# <details><summary>Hint</summary>
#
# Equation 10 for the first. For the second: what does a third list say that is nearly a copy of the second?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The share rises with the stock, near the curve of chance: $e^{-h}$ with $h = d^3 / S^2$, the probability of no event where $h$ are expected. (It lies a little below, since properties of real molecules are not independent.) So *no shared molecule* measures the size of the space that the generators draw from as much as anything else. And it falls when two properties go together, from nearly all to about a half where they are one. The paper's study has such a pair. That may be one reason why it finds *more than half* where we find more; another is that its models generate and ours retrieve.
#
# </details>

# %%
SIZES = (60, 100, 150, 200, 300, 553, 1000, 2000)
everything = (known[list(PROPERTIES)] / unit).to_numpy()
alone = [study(everything[:S], wanted, [three_of_one])["none shared"].mean() for S in SIZES]
CORRELATIONS = (0.0, 0.5, 0.9, 0.99, 1.0)
rng, together = np.random.default_rng(0), []
for r in CORRELATIONS:
    pair = [values - stock.mean(axis=0) for values in (stock, wanted)]
    for values in pair:
        values[:, 2] = r * values[:, 1] + (1 - r**2) ** 0.5 * rng.normal(size=len(values))
    together.append(study(*pair, [three_of_one])["none shared"].mean())


# %% tags=["figure"]
def draw_causes():
    figure, (left, right) = canvas(1, 2, 7.2, 2.5)
    S = np.geomspace(60, 2000, 50)
    left.semilogx(
        S,
        np.exp(-(DRAWN**3) / S**2),
        "--",
        color=COLOURS["muted"],
        label="by chance, exp(−d³ / S²)",
    )
    left.semilogx(SIZES, alone, "o", color=COLOURS["second"], label="measured")
    left.set(xlabel="stock S", ylabel="targets with\nno shared molecule", ylim=(-0.05, 1.05))
    left.legend(fontsize=7)
    right.plot(range(len(CORRELATIONS)), together, "o-", color=COLOURS["second"])
    right.set(
        xlabel="correlation of two of the properties", ylim=(-0.05, 1.05), title=f"stock S = {SIZE}"
    )
    right.set_xticks(range(len(CORRELATIONS)), [f"{r:g}" for r in CORRELATIONS])
    return figure


show(
    draw_causes(),
    alt="Left, the share of targets without a shared molecule rises from 0 to 1 with the stock, near"
    " a dashed curve of chance. Right, it falls as two of the properties become correlated.",
)

# %% [markdown]
# **Find the bug.** A colleague's program reports that three generators of one property *always* share molecules, and early in their lists. What is wrong?


# %%
def rank_of_a_colleague(sets, miss):
    lists = [np.argsort(miss[drawn, p], kind="stable") for p, drawn in enumerate(sets)]
    return shared_rank(lists)


rng = np.random.default_rng(0)
signed = stock - wanted[0]
sets = three_of_one(signed, rng)
print(
    "a colleague's:",
    rank_of_a_colleague(sets, abs(signed)),
    " ours:",
    shared_rank(ranked(sets, abs(signed))),
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# What are the entries of `lists`: molecules, or places? How many entries do the lists share?
#
# </details>
#
# <details><summary>Answer</summary>
#
# `np.argsort` gives *places* in the set, 0 to 29, and not molecules. All three lists are then orders of the same 30 numbers, which are always shared. The second number that `shared_rank` returns gives it away: 30 shared entries, in sets that were drawn separately. The right version looks the molecules up, `drawn[np.argsort(...)]`.
#
# </details>
#
# **Measure.** The ring has a bar named *DiGress v2*, and Table 1 has a row of that name. Divide Table 1's numbers of Graph DiT and DiGress v2 (so that 1 is as good as Graph DiT). Do they give the ring's bar?
#
# <details><summary>Hint</summary>
#
# For MAE and distance lower is better: divide Graph DiT by DiGress v2. For diversity and similarity, the other way round.
#
# </details>
#
# <details><summary>Answer</summary>
#
# In diversity they agree; in the gases they are near; in similarity and *distance* they are apart by factors of two and five, and a distance that large would be far outside Table 1. So the bar is another experiment than the row (Graph DiT with DiGress v2's noise, say, or another setup), or the ring's scale is no plain ratio. The figure alone does not tell. A chart of ratios should say what is divided by what.
#
# </details>

# %%
names = {"O2": "MAE O2", "N2": "MAE N2", "CO2": "MAE CO2", "distance": "distance (FCD)"}
bar = relative.loc["DiGress v2 (for graph-dependent)"]
for measure in ORDER:
    column = names.get(measure, measure)
    ratio = graph_dit[column] / digress[column]
    ratio = ratio if direction[column] == "lower" else 1 / ratio
    print(f"{measure:>10}: {ratio:.2f} from Table 1, {bar[measure]:.2f} in the ring")
furthest = wide["distance (FCD)"]
print(
    f"read as a ratio, {bar['distance']} is a distance of {graph_dit['distance (FCD)'] / bar['distance']:.0f};"
)
print(f"the largest of Table 1 is {furthest.max()}, of {furthest.idxmax()}")

# %% [markdown]
# ## What breaks
#
# ### A combination that does not exist
#
# The highest TPSA of the stock, and the highest logP: each value occurs, and no molecule has both. (A polar surface makes a molecule dissolve in water.) What does the generator of all three properties do?

# %%
impossible = stock.mean(axis=0)
impossible[1], impossible[2] = stock[:, 1].max(), stock[:, 2].max()
drawn = all_three(stock - impossible, np.random.default_rng(0))[0]
worst = abs(stock[drawn] - impossible).max(axis=1)
print(f"{len(drawn)} molecules, as always; misses from {worst.min():.1f} to {worst.max():.1f}")
print("rank K:", shared_rank(ranked([drawn] * 3, abs(stock - impossible)))[0])
assert worst.min() > 2

# %% [markdown]
# It returns 30 molecules, without a word, all of them wrong by more than two standard deviations, and nothing in the rank $K$ tells. A trained generator would answer, too. Each single value lies *inside* its range, so no check of ranges would notice; the distance from the nearest known molecule does. ([Lesson 8](8_learning.ipynb) warns of values outside the range that a model was trained on.)
#
# ### Other bad input
#
# Lists that cannot be compared; a card with a field that does not exist, or without one that must; a paper that has no results here; a ring for more methods than one can tell apart; and properties that the model was not built for.

# %%
with shows_error(ValueError):
    shared_rank([["a", "b"], ["b"]])
with shows_error(ValueError):
    parse_card(card_text(card).replace("question_zh", "question_cn"), "graph_dit.yaml")
with shows_error(ValueError):
    parse_card(card_text(card).replace("year: 2024", ""), "graph_dit.yaml")
with shows_error(AttributeError):
    as_table(card.innovations, "name", "novelty")
with shows_error(FileNotFoundError):
    headline_results("graph_dti")
with shows_error(ValueError):
    ring_chart(
        ring | dict.fromkeys(["a sixth", "a seventh"], ring["direct encoding"]),
        dict.fromkeys(ORDER, "higher"),
    )
with shows_error(ValueError):
    model(*noisy, t / noise.steps, y[:, :2])

# %% [markdown]
# ### What users of the releases trip over
#
# From the public issues of the official repository and of torch-molecule, a library that has its own version of the model:
#
# | a user finds | because | here |
# | --- | --- | --- |
# | the README's commands fail (Graph-DiT #1) | calls that newer versions of its packages no longer have | one tested set of versions |
# | only `None` comes out for small molecules (#3) | graph → molecule gives up without saying why (our reading) | [6 Molecules](6_molecules.ipynb) |
# | no weights to download (#4) | a model is trained from scratch for each task | [8 Learning](8_learning.ipynb) ships a small one |
# | where does one start sampling? (#5) | a setting of the test run does it | [5 Diffusion](5_diffusion.ipynb), [8 Learning](8_learning.ipynb) |
# | bad molecules on QM9 (torch-molecule #14, about DiGress) | a plausible cause: time runs over 0 … T in training and over 0 … 1 in sampling | [5 Diffusion](5_diffusion.ipynb) |

# %% [markdown]
# ## Recap
#
# - Three generators of one property each rarely agree on a molecule, and a sum of properties is met by many wrong ones; a single set for all properties is what one wants. How well it meets them, only the miss says, not the rank.
# - Graph DiT turns properties and time into one vector, which scales, shifts and gates every layer of a Transformer over rows of atoms with their bonds; its noise acts on these rows as a whole.
# - A table lets one see that the best in one column can be useless in another; a ring shows at a glance which part is needed, and hides by how much.
#
# ### What the notes ask
#
# | idea of the notes | lesson |
# | --- | --- |
# | several properties at once as conditions (多条件); why one condition is not enough | this one; [lesson 9](9_experiments.ipynb) repeats the study with trained models |
# | graph tokens $X_G$ | [2 Graphs](2_graphs.ipynb) |
# | graph-dependent noise, transition matrices (转移矩阵), occurring together (共同出现概率) | [3 Noise](3_noise.ipynb) |
# | condition encoder (条件编码器), clusters, one-hot, sines for the time | [4 Denoiser](4_denoiser.ipynb) |
# | graph denoiser (图解噪器), AdaLN, zero initialisation, last step | [4 Denoiser](4_denoiser.ipynb) |
# | predictor-free guidance, sampling | [5 Diffusion](5_diffusion.ipynb) |
# | graph → molecule: LCC or connecting | [6 Molecules](6_molecules.ipynb) |
# | nine measures | [7 Metrics](7_metrics.ipynb) |
# | 6:2:2, training | [8 Learning](8_learning.ipynb) |
# | RQ1 to RQ3, ring chart, limitations | the paper's are under *On real input* above; ours are in [lesson 9](9_experiments.ipynb) |
#
# Next: [2 Graphs](2_graphs.ipynb) writes a molecule as rows of numbers, and reads it back.
