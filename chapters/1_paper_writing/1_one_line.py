# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 55
#     needs: []
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One line: figure, words, formula and code
#
# **After this lesson you can** check whether the words, the figure, the formulas and the code of a
# text tell one idea, say what a reader loses when one of them is deleted, and draw any PyTorch
# module as a pipeline whose shapes are measured.
#
# *Before this:* Python, and a first acquaintance with `torch` modules.
# *Time:* 55 minutes, and 40 for the blanks.

# %%
import ast
import re
import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from functools import cached_property
from inspect import signature
from itertools import pairwise
from math import prod
from typing import Any

import torch
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fourfold.bilinear_sampling.sampling import bilinear_weights, floor_and_fraction, sample
from fourfold.course.files import House
from fourfold.course.lesson import lessons
from fourfold.kit.arguments import whole_number
from fourfold.kit.drawing import COLOURS, canvas, figure_texts, show
from fourfold.kit.images import photograph
from fourfold.kit.notebook import shows_error
from fourfold.paper_writing.one_line import Line, Pipeline, axis_name, check_line, draw_line

# %% [markdown]
# ## Words
#
# The notes this course grew from open with one sentence: *figures, words and formulas are one line
# (图片/文字/公式都是一条线); they alone already say method and experiment clearly.* A method section
# tells one pipeline from beginning to end (从头到尾有一个框架), and tells it several times: once as a
# figure, once in words, once as formulas, and here a fourth time as code. What stands on the figure
# stands in the formulas; each can be matched with the others, symbol by symbol. The first question to put to it: what
# are the dimensions of its input and of its output (input/output是什么维度的)? The test of it is a
# deletion (删了某一套): cover one of them with your hand. Do the others become unclear?
#
# A **symbol** is a letter or a short group of signs that stands for a thing, such as $s$ in the formulas
# below, and a **form** $f$ is one way of telling: words, figure, formula or code. The list of all
# symbols with their names in each form is the **ledger** (对照表). With it, a program can do most of
# the matching, and what it finds is the subject of this lesson.

# %% [markdown]
# ## Figure
#
# A small idea, told four ways: the blend of two colours. It is written here as a lesson of this
# course is written: Markdown and code cells in one text file, each opened by a line with `%%`. A cell tagged
# `figure` draws the figure; the cell tagged `promote` is the **final code**, which goes into a library; an equation with a
# `\tag` is **numbered**. The table is the ledger. (The cells of this section use the finished functions of the
# library; the section *Code* builds them.)

# %%
BLEND = r"""
# %% [markdown]
# To blend two colours, $u$ and $v$, take a part of each. The fraction $t$ says how much of the
# second colour goes in, and the blend $m$ slides from one colour to the other.
#
# $$ m = (1 - t)\,u + t\,v \tag{1} $$
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $u$ | first colour | red, green, blue | `u` | u |
# | $v$ | second colour | red, green, blue | `v` | v |
# | $t$ | fraction of the second colour | number in [0, 1] | `t` | fraction t |
# | $m$ | the blend | red, green, blue | `blend` | blend m |

# %% tags=["figure"]
def draw_blend(u, v):
    figure, axes = canvas(height=1.2)
    strip = torch.stack([blend(u, v, t) for t in torch.linspace(0, 1, 201)])
    axes.imshow(strip[None] / 255, aspect="auto", extent=(0, 1, 0, 1))
    axes.set(xlabel="fraction t", title="blend m", yticks=[])
    axes.text(-0.01, 0.5, "u", ha="right")
    axes.text(1.01, 0.5, "v")
    return figure

# %% tags=["promote"]
def blend(u, v, t):
    return (1 - t) * u + t * v
"""

# %% [markdown]
# Its figure, drawn by its own code:

# %%
told = {"canvas": canvas, "torch": torch}  # where the code cells of the text run
for cell in BLEND.split("# %%"):
    if not cell.startswith(" [markdown]"):
        exec("#" + cell, told)

# %%
blue, orange = torch.tensor([31.0, 78.0, 140.0]), torch.tensor([224.0, 138.0, 30.0])
strip = told["draw_blend"](blue, orange)
show(
    strip,
    alt="A strip of colour that slides from blue, marked u, to orange, marked v, along fraction t.",
)

# %% [markdown]
# Now the check. `check_line` reads the text, finds the ledger, and looks for each symbol in each
# form. Then it deletes the words, the figure and the formula in turn, and asks which symbols
# nothing explains any more.


# %% tags=["figure"]
def draw_check(line):
    figure = draw_line(line, size=(6.5, 2.5))
    (axes,) = figure.axes
    axes.set_ylabel("symbol s of the set S")
    axes.set_title("level of s in each form f", loc="left", pad=38, size=9)
    axes.set_title("$L_f$: lost without form f", loc="right", pad=38, size=9)
    return figure


blend_line = check_line(BLEND)
show(
    draw_check(blend_line),
    alt="A table of marks. Rows: the symbols u, v, t and m. A filled dot where a form says what the"
    " symbol is, a ring where it only uses it. On the right, u and v are lost without the words.",
)

# %% [markdown]
# A filled dot: the form says what the symbol *is*. A ring: it uses the symbol. See the two squares
# on the right: $u$ and $v$ are lost without the words, since the figure writes the bare letters and the
# formula only uses them. The blend $m$ survives any deletion: the formula gives it, the figure
# calls it by its name, and so do the words.
#
# ### A pipeline, measured
#
# The second instrument draws the figure itself. Give it a module and an input; it runs the module
# once, listens at each stage, and draws what went in and what came out. Shapes and arrows are measured; the
# letters of the axes are yours. A small convolutional network first, with parts as many networks have
# them: a first layer (the stem), two branches whose results are added, and a score for each of $K$ classes.


# %%
class SmallCNN(nn.Module):
    """Scores of K classes for an image."""

    def __init__(self, C=3, D=16, K=10):
        super().__init__()
        self.stem = nn.Conv2d(C, D, kernel_size=3, stride=2, padding=1)
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(D, D, kernel_size=3, padding=1))
        self.shortcut = nn.Conv2d(D, D, kernel_size=1)
        self.score = nn.Linear(D, K)

    def forward(self, image):
        stem = self.stem(image)
        features = self.block(stem) + self.shortcut(stem)
        return self.score(features.mean(dim=(2, 3)))


# %%
_ = torch.manual_seed(0)
network = SmallCNN()
photo = photograph("coffee", height=48).repeat(2, 1, 1, 1)
pipeline = Pipeline.trace(network, photo, axes="B C H W", sizes={"D": 16, "K": 10})
show(pipeline.draw(), alt=pipeline.describe())

# %% [markdown]
# Read it from the top: the names are the module's own, the letters are those of the network's axes (batch $B$,
# channels $C$, features $D$, height $H$, width $W$, classes $K$), and the small grey numbers are what was
# measured. An arrow that jumps over a stage runs along the left: the shortcut takes the stem's result, not the
# block's.
#
# How does it know that an axis is half the height, $H/2$, and not a width or a fixed size? It
# **changes** the input and looks which axes answer. The figure below shows this for one input axis, the height:
# each row is an axis of one of the network's stages, the ring its size in the first run, the dot its
# size after the height was doubled, and the diamond after it was tripled.


# %% tags=["figure"]
def draw_reruns(runs, letter):
    figure, axes = canvas(height=2.6)
    first, *others = (run.stages[1:-1] for run in runs)
    z = [size for stage in first for size in stage.gives[0]]
    z_a, z_3 = ([size for stage in run for size in stage.gives[0]] for run in others)
    names = [name for stage in first for name in stage.gives_named[0]]
    y = range(len(z))
    axes.hlines(y, z, z_3, color=COLOURS["muted"], linewidth=1)
    axes.plot(z_3, y, "D", color=COLOURS["second"], markersize=5, label=f"$z_3$: {letter} tripled")
    axes.plot(z_a, y, "o", color=COLOURS["first"], label=f"$z_a$: letter a = {letter} doubled")
    axes.plot(z, y, "o", color="black", markerfacecolor="white", label="size z")
    slope = Fraction(z_a[2] - z[2], photo.shape[2])
    note = f"slope {slope}, factor c = {slope}, remainder r = 0, number of letters n = 1"
    axes.annotate(note, (z[2], 2), (0, 4), textcoords="offset points", size=7)
    where = [f"{stage.name}, axis {k}" for stage in first for k in range(len(stage.gives[0]))]
    axes.set_yticks(y, [f"{place}: {name}" for place, name in zip(where, names, strict=True)])
    axes.set(xlabel="size of the axis", xlim=(0, 112))
    axes.invert_yaxis()
    axes.legend(loc="center right")
    return figure


runs = [
    pipeline,
    *(Pipeline.trace(network, photo.repeat(1, 1, times, 1)) for times in (2, 3)),
]
show(
    draw_reruns(runs, "H"),
    alt="One row for each axis of each stage. Only the third axis of stem, block and shortcut moves"
    " when the height of the image grows: 24, 48 when it is doubled, 72 when it is tripled.",
)

# %% [markdown]
# Three axes answer, by half of what was added each time: they are named H/2. Doubling the other
# letters in turn names the other axes.

# %% [markdown]
# ## Formula
#
# **The line.** Let $S$ be the symbols of the ledger. The **level** $\ell_f(s)$ says how far the
# form $f$ carries the symbol $s$:
#
# $$ \ell_f(s) = \begin{cases} 2 & f \text{ says what } s \text{ is} \\
# 1 & f \text{ uses } s \\ 0 & f \text{ leaves } s \text{ out} \end{cases} \tag{1} $$
#
# A line is **complete** when no level is zero: nothing on the figure is missing in the formulas, and so
# on for each pair. A level of 2 needs a rule that a program can follow; ours are:
#
# | form | uses the symbol | says what it is |
# | --- | --- | --- |
# | words | it stands in a sentence | the sentence shares a word with the ledger's *meaning* |
# | figure | its label is on the figure | the label shares a word with the *meaning* |
# | formula | it stands in a numbered equation | the left side of a sign such as `=`, `≈` or `∈` opens with it |
# | code | its name is used in the final code | never: code uses names |
#
# **The deletion.** Delete a form, and look at the other two that can explain. The symbols $L_f$ that are
# **lost** without the form $f$ are those which neither of them explains:
#
# $$ L_f = \{\, s \in S : \ell_g(s) < 2 \text{ for each } g \in
# \{\text{words}, \text{figure}, \text{formula}\} \setminus \{f\} \,\} \tag{2} $$
#
# **The axes.** Let $z$ be the measured size of an axis, and $z_a$ its size after an axis of
# the input was doubled, one with the letter $a$; we write $a$ for the size of that axis too. The **slope** $q_a$ is how much the
# axis grows with that letter:
#
# $$ q_a = \frac{z_a - z}{a} \tag{3} $$
#
# An axis whose slopes are all zero does not answer to the input. Otherwise we try two readings: a sum with a
# remainder $r$, and, where the axis grows equally with each letter, a product with a factor $c$ and a remainder:
#
# $$ z = \sum_a q_a\, a + r, \qquad z = c\, \prod_a a + r \quad \text{with } c = \frac{z_a - z}{\prod_a a} \tag{4} $$
#
# Each of them fits what was measured so far, whatever the truth is. So there is one run more, in which all letters are tripled. A
# reading gives the name only if it predicts the size $z_3$ found there; with $n$ letters in the product,
#
# $$ z_3 = 3 \sum_a q_a\, a + r \qquad \text{or} \qquad z_3 = 3^n\, c\, \prod_a a + r \tag{5} $$
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $S$ | the set of all symbols of the ledger | set | `symbols` | set S |
# | $s$ | one symbol | TeX | `symbol` | symbol s |
# | $f$ | a form of telling | words, figure, formula, code | `form` | form f |
# | $\ell_f(s)$ | level of a symbol in a form | 0, 1 or 2 | `level` | level of s |
# | $L_f$ | symbols lost when a form is deleted | set | `lost_without` | $L_f$ |
# | $z$ | size of an axis | whole number | `size` | size z |
# | $a$ | letter of an axis of the input, and its size | whole number | `letters` | letter a |
# | $z_a$ | size of the axis after the letter is doubled | whole number | `doubled` | $z_a$ |
# | $q_a$ | slope of the axis along the letter | fraction | `slope` | slope |
# | $c$ | factor of a product of letters | fraction | `c` | factor c |
# | $r$ | remainder of a sum or product | whole number | `rest` | remainder r |
# | $z_3$ | size of the axis after all letters are tripled | whole number | `tripled` | $z_3$ |
# | $n$ | number of letters in a product | whole number | `growth` | number of letters n |

# %% [markdown]
# ## Code
#
# ### Is the symbol there?
#
# The naive answer: look for the characters.

# %%
equation = r"w = \max(0, 1 - |dx|)\,\text{max}"
[symbol in equation for symbol in ("w", "x", "dx", "d")]

# %% [markdown]
# It finds an $x$ and a $d$ that are not there: the characters stand inside `\max` and inside `dx`. A formula is
# written in TeX, and TeX is made of **tokens**. The rules are few: a backslash and letters are a
# command; the rest are single signs. One habit differs from TeX: we take a run of letters as one name, so that
# `dx` is a symbol of its own. A product then needs a space between its letters, `t\,v`, which also reads better.

# %% tags=["promote"]
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]+|\d+|\S")
_SPACING = {r"\,", r"\;", r"\:", r"\!", "\\ ", r"\quad", r"\qquad", r"\left", r"\right", "~", "&"}
_SINGLE = re.compile(r"\{\n([^\n{}]+)\n\}")  # one token between braces, tokens on lines


# %% tags=["promote", "exercise"]
def tex_tokens(tex: str) -> list[str]:
    r"""The tokens of a formula: commands, runs of letters, numbers and single signs.

    Spacing is left out, and so are braces around a single token: `w_{k}` is `w_k`. A run of
    letters is one token, a name such as `dx`; a product of letters needs a space: `t\,v`.

    >>> tex_tokens(r"w_{k} = t\,dx")
    ['w', '_', 'k', '=', 't', 'dx']
    """
    tokens = [token for token in _TOKEN.findall(tex) if token not in _SPACING]
    return _SINGLE.sub(r"\1", "\n".join(tokens)).split()


# %% tags=["check"]
assert tex_tokens("dx") == ["dx"], "a run of letters is one token"
assert tex_tokens(r"\left( w_{ab}\,x \right)") == ["(", "w", "_", "ab", "x", ")"], "no spacing"
assert tex_tokens(r"\frac{1}{n} \max") == [r"\frac", "1", "n", r"\max"], "no single braces"
assert tex_tokens("2r x_{12}") == ["2", "r", "x", "_", "12"], "numbers are tokens of their own"
assert tex_tokens("x_{k+1}") == ["x", "_", "{", "k", "+", "1", "}"], "braces of a group stay"

# %%
tokens = tex_tokens(equation)
print(tokens)
[symbol in tokens for symbol in ("w", "x", "dx", "d")]

# %% [markdown]
# ### The ledger
#
# A ledger is a table of five columns in Markdown. It becomes a value: a row is a `Symbol`, the table
# a `Ledger`. `markdown-it-py`, a parser for Markdown, finds the tables.

# %% tags=["promote"]
FORMS = ("words", "figure", "formula", "code")
EXPLAINING = FORMS[:3]  # code uses a name; it cannot say what the name means
LEDGER_COLUMNS = ("symbol", "meaning", "shape or unit", "name in code", "on the figure")


@dataclass(frozen=True)
class Symbol:
    """One row of a ledger: a symbol in TeX, and what it is in the other forms."""

    symbol: str
    meaning: str
    shape: str
    code: str
    figure: str

    @property
    def names(self) -> list[str]:
        """The identifiers in the column *name in code*; in backticks, where there are any."""
        return re.findall(r"[^\W\d]\w*", " ".join(re.findall("`([^`]+)`", self.code)) or self.code)


# %% tags=["promote"]
def _markdown(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def markdown_tables(text: str) -> Iterator[list[list[str]]]:
    """The tables of a Markdown text, each a list of rows of cells; the head is the first row."""
    rows: list[list[str]] = []
    for token in _markdown(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append(token.content)
        elif token.type == "table_close":
            yield rows
            rows = []


def _paragraphs(text: str) -> Iterator[str]:
    """What stands outside the tables: headings, paragraphs, items of lists, one after the other."""
    inside_table = False
    for token in _markdown(text):
        inside_table = token.type == "table_open" or (inside_table and token.type != "table_close")
        if token.type == "inline" and not inside_table:
            yield token.content


# %%
for table in markdown_tables("Text.\n\n| a | b |\n| --- | --- |\n| 1 | $x$ |\n\nMore."):
    print(table)


# %% [markdown]
# One symbol may hold another: $w$ and $w_{ab}$, or $x$ and $\hat x$. At each place of a formula the longest symbol
# that fits is taken, and a letter under a hat or in another font is another symbol. So an equation with
# $w_{ab}$ and $\hat x$ does not count for $w$ and $x$.


# %% tags=["promote"]
_DECORATION = set(
    re.findall(
        r"\S+",
        r"\hat \widehat \bar \overline \tilde \widetilde \vec \dot \ddot \mathbf \boldsymbol \bm"
        r" \mathcal \mathbb \mathrm \mathsf \operatorname \text",
    )
)


@dataclass(frozen=True)
class Ledger:
    """The symbols of a text, each with its name in every form.

    Raises:
        ValueError: there is no symbol, a symbol is given twice or is none, a cell is empty, or the
            name in code is none.
    """

    symbols: tuple[Symbol, ...]

    def __post_init__(self):
        if not self.symbols:
            raise ValueError("ledger: got no symbol, expected at least one row")
        seen: list[list[str]] = []
        for number, row in enumerate(self.symbols, start=1):
            if wrong := _wrong_with(row, seen):
                raise ValueError(f"ledger, row {number} ({row.symbol!r}): {wrong}")
            seen.append(tex_tokens(row.symbol))

    @classmethod
    def parse(cls, markdown: str) -> "Ledger":
        """Read the tables headed `symbol | meaning | shape or unit | name in code | on the figure`.

        Raises:
            ValueError: no table has this head, a row stands outside its table, or what `Ledger`
                refuses.
        """
        tables = [t for t in markdown_tables(markdown) if tuple(t[0]) == LEDGER_COLUMNS]
        if not tables:
            raise ValueError(f"ledger: found no table headed {' | '.join(LEDGER_COLUMNS)}")
        if stray := re.search(r"^\|[^\n]*", "\n".join(_paragraphs(markdown)), re.MULTILINE):
            raise ValueError(f"ledger: a blank line before {stray[0]!r} ends the table above it")
        rows = [row for table in tables for row in table[1:]]
        return cls(tuple(Symbol(row[0].strip("$ "), *row[1:]) for row in rows))

    @cached_property
    def _tokens(self) -> dict[str, list[str]]:
        return {row.symbol: tex_tokens(row.symbol) for row in self.symbols}

    def places(self, tex: str) -> list[tuple[int, str]]:
        """The symbols in a formula, each with the number of its first token, counted from 0."""
        text, found, start = tex_tokens(tex), [], 0
        while start < len(text):
            decorated = start > 0 and text[start - 1] in _DECORATION
            here = [
                symbol
                for symbol, tokens in self._tokens.items()
                if not decorated and text[start : start + len(tokens)] == tokens
            ]
            if here:
                longest = max(here, key=lambda symbol: len(self._tokens[symbol]))
                found.append((start, longest))
            start += len(self._tokens[longest]) if here else 1
        return found

    def symbols_in(self, tex: str) -> set[str]:
        """The symbols that stand in a formula."""
        return {symbol for _, symbol in self.places(tex)}


def _wrong_with(row: Symbol, seen: Sequence[list[str]]) -> str | None:
    cells = (row.symbol, row.meaning, row.shape, row.code, row.figure)
    if "" in cells:
        return f"{LEDGER_COLUMNS[cells.index('')]!r} is empty"
    if "$" in row.symbol:
        return "expected one formula, such as $x$"
    if tex_tokens(row.symbol) in seen:
        return "this symbol has a row already"
    return None if row.names else f"name in code: got {row.code!r}, expected a name such as `x`"


# %%
ledger = Ledger.parse(BLEND.replace("# |", "|"))
print(ledger.symbols[2])
ledger.places(r"m = (1 - t)\,u + t\,v"), ledger.places(r"\hat{m}")

# %% [markdown]
# ### The four forms of a lesson
#
# A text is taken apart into what each form holds: the sentences of its prose, the texts on its
# figures, its numbered equations, and the names in its final code.


# %% tags=["promote"]
@dataclass(frozen=True)
class Line:
    """One idea told in four forms: its ledger, and what each form holds.

    Attributes:
        words: the sentences of the prose, formulas as `$…$`.
        figure: the texts on the figures: titles, labels, notes.
        formula: the numbered equations, in TeX.
        code: the names that the final code uses.
    """

    ledger: Ledger
    words: tuple[str, ...]
    figure: tuple[str, ...]
    formula: tuple[str, ...]
    code: frozenset[str]

    @classmethod
    def read(cls, text: str) -> "Line":
        """Take a text apart: a lesson's `.py`, cells in jupytext's percent format, or Markdown.

        Of a lesson, the figure is read from the strings in cells tagged `figure`, the code from
        cells tagged `promote`, or from all of them where none is. Of Markdown, the figure is read
        from the descriptions of its images, the code from its fenced blocks.

        Raises:
            ValueError: there is no ledger, or a code cell is not Python.
        """
        prose, drawing, final = _cells(text) if "# %%" in text else _blocks(text)
        plain = _without_code(prose)
        return cls(
            Ledger.parse(prose),
            tuple(_sentences(plain)),
            tuple(drawing),
            tuple(e for e in re.findall(r"\$\$(.+?)\$\$", plain, re.DOTALL) if r"\tag" in e),
            frozenset(name for source in final for name in _identifiers(source)),
        )

    @cached_property
    def levels(self) -> dict[str, dict[str, int]]:
        """How far each form carries each symbol, Equation 1, as `levels[form][symbol]`.

        0: the form leaves the symbol out; 1: it uses it; 2: it says what it is.
        """
        return {
            "words": _in_words(self),
            "figure": _on_figure(self),
            "formula": _in_formula(self),
            "code": {
                row.symbol: int(self.code.issuperset(row.names)) for row in self.ledger.symbols
            },
        }

    def lost_without(self, form: str) -> set[str]:
        """The symbols that no other form explains once `form` is deleted, Equation 2.

        Raises ValueError for a form that explains nothing, or is none.
        """
        if form not in EXPLAINING:
            raise ValueError(f"form: got {form!r}, expected one of {', '.join(EXPLAINING)}")
        others = [self.levels[other] for other in EXPLAINING if other != form]
        symbols = {row.symbol for row in self.ledger.symbols}
        return {symbol for symbol in symbols if all(level[symbol] < 2 for level in others)}

    @property
    def findings(self) -> list[str]:
        """What keeps the four forms from being one line, a sentence each; empty when nothing is."""
        return list(_findings(self))

    def _repr_markdown_(self) -> str:
        return _report(self)


# %% [markdown]
# The text comes apart in two steps. First its cells: prose, the texts of the figures, the final code. (The second
# function reads plain Markdown, such as a README, in which images and fenced blocks take the place of cells.)


# %% tags=["promote"]
def _cells(lesson: str) -> tuple[str, list[str], list[str]]:
    """The prose of a lesson, the strings of its figures, and the cells of its final code."""
    import jupytext  # takes a second, and tracing a module needs none

    cells = jupytext.reads(lesson, fmt="py:percent").cells
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = [
        (cell.source, cell.metadata.get("tags", ())) for cell in cells if cell.cell_type == "code"
    ]
    drawing = [text for source, tags in code if "figure" in tags for text in _strings(source)]
    final = [source for source, tags in code if "promote" in tags]
    return prose, drawing, final or [source for source, _ in code]


def _blocks(markdown: str) -> tuple[str, list[str], list[str]]:
    """The same of a Markdown text: itself, the descriptions of its images, its code blocks."""
    tokens = _markdown(markdown)
    inline = [child for token in tokens for child in token.children or ()]
    images = [child.content for child in inline if child.type == "image"]
    return markdown, images, [token.content for token in tokens if token.type == "fence"]


# %% [markdown]
# Then the sentences. Tables and code do not count as prose, displayed equations neither.


# %% tags=["promote"]
def _without_code(markdown: str) -> str:
    r"""The text without code and without `\$`, whose dollar signs open no formula."""
    return re.sub(r"```.*?```|`[^`\n]*`|\\\$", " ", markdown, flags=re.DOTALL)


def _sentences(markdown: str) -> Iterator[str]:
    """The sentences of the prose, without tables and displayed equations."""
    for paragraph in _paragraphs(re.sub(r"\$\$.+?\$\$", " ", markdown, flags=re.DOTALL)):
        yield from filter(None, re.split(r"(?<=[.!?])\s+", paragraph))


# %%
table = "| a table |\n| --- |\n| with $t$ |"
list(_sentences(f"The fraction $t$ grows. So does the blend $m$.\n\n$$ m = t $$\n\n{table}"))

# %% [markdown]
# Then what stands on a figure: the strings of the cell that draws it, such as `"fraction t"`. Its
# docstring and the alternative text are not on it. In an f-string the measured value is left open.


# %% tags=["promote"]
def _strings(source: str) -> Iterator[str]:
    """The strings of a code cell that can stand on a figure: no docstring, no alternative text."""
    tree = _parsed(source)
    hidden = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    hidden |= {id(node) for alt in _alternative_texts(tree) for node in ast.walk(alt)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
            hidden |= {id(part) for part in node.values}
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _alternative_texts(tree: ast.AST) -> Iterator[ast.expr]:
    """What is given as `alt=…`, as the second argument of `show`, or kept under the name alt."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "alt":
            yield node.value
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show":
            yield from node.args[1:2]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "alt":
            yield node.value


def _identifiers(source: str) -> Iterator[str]:
    """The names that a code cell uses or defines: variables, arguments, attributes, functions."""
    for node in ast.walk(_parsed(source)):
        for field in ("id", "arg", "attr", "name"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def _parsed(source: str) -> ast.Module:
    """The cell as Python; without IPython's `%magic` and `!command` lines where it has any."""
    bare = re.sub(r"^%%.*|^[%!].*$", "", source, flags=re.MULTILINE)
    for text in (source, "" if source.startswith("%%") else bare):
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError) as caught:
            error = caught
    line = (source.splitlines() or [""])[(getattr(error, "lineno", None) or 1) - 1]
    raise ValueError(f"text: a code cell is not Python at {line!r}: {error}") from None


# %%
list(
    _strings(
        'def draw(axes):\n    """No."""\n    axes.set_title(f"blend m = {m}")\n    axes.text(0, 0, "u")'
    )
)

# %%
parts = Line.read(BLEND)
print(parts.figure)
print(sorted(parts.code))

# %% [markdown]
# Now the rules of the table above, one function a form. A **content word** is a
# word of three letters or more that is not one of the small words every sentence holds.

# %% tags=["promote"]
_SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the and its for with that this from which are each one has how what than not all into"
        " their was were any other between after before when where whose they them two only same",
    )
)


# %% tags=["promote", "exercise"]
def content_words(text: str) -> set[str]:
    """The words of a text that say something: small letters, no plural s, formulas left out.

    Words of fewer than three letters and those of `_SMALL_WORDS` do not count.

    >>> sorted(content_words("The fractions $t$ of each colour"))
    ['colour', 'fraction']
    """
    words = re.findall(r"[a-z]{3,}", re.sub(r"\$[^$]*\$", " ", text.lower()))
    return {word.removesuffix("s") for word in words if word not in _SMALL_WORDS}


# %% tags=["check"]
assert content_words("The Maps of two colours") == {"map", "colour"}, "small letters, no plural s"
assert content_words("it is $blend$ at") == set(), "formulas and short words do not count"
assert content_words("$a$ gain, $b$ loss") == {"gain", "los"}, "what is between formulas counts"
assert content_words("from all each") == set(), "small words do not count"

# %% tags=["promote"]
_RELATION = re.compile(r"\\approx|\\in(?![A-Za-z])|\\sim(?![A-Za-z])|\\leftarrow|:=|=|≈|∈")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[^}]*\}")


def _in_words(line: Line) -> dict[str, int]:
    level = {row.symbol: 0 for row in line.ledger.symbols}
    meaning = {row.symbol: content_words(row.meaning) for row in line.ledger.symbols}
    for sentence in line.words:
        said = content_words(sentence)
        for formula in re.findall(r"\$([^$]+)\$", sentence):
            for symbol in line.ledger.symbols_in(formula):
                level[symbol] = max(level[symbol], 2 if said & meaning[symbol] else 1)
    return level


def _on_figure(line: Line) -> dict[str, int]:
    level = {}
    for row in line.ledger.symbols:
        label = re.compile(rf"(?<!\w){re.escape(row.figure)}(?!\w)")
        named = content_words(row.figure) & content_words(row.meaning)
        level[row.symbol] = (2 if named else 1) if any(map(label.search, line.figure)) else 0
    return level


def _in_formula(line: Line) -> dict[str, int]:
    level = {row.symbol: 0 for row in line.ledger.symbols}
    for equation in line.formula:
        for part in re.split(r"\\\\|\\q?quad", _ENVIRONMENT.sub(" ", equation)):
            left, *right = _RELATION.split(part, maxsplit=1)
            for symbol in line.ledger.symbols_in(part):
                # What the left side opens with is given; what follows there are its arguments.
                given = right and (0, symbol) in line.ledger.places(left)
                level[symbol] = max(level[symbol], 2 if given else 1)
    return level


# %% [markdown]
# What is wrong is said in sentences, and the whole check is a table.


# %% tags=["promote"]
def check_line(text: str, labels: Sequence[str] | None = None) -> Line:
    """Check that words, figure, formula and code of a text are one line.

    Args:
        text: a lesson, cells in jupytext's percent format, or Markdown.
        labels: the texts that stand on the figures, as `kit.drawing.figure_texts` reads them off.
            Without them, all strings of the cells that draw the figures count.

    Returns:
        the line; its `findings` are empty when each symbol of the ledger stands in all four forms
        and one of them explains it, and `lost_without` runs the deletion test.

    Raises:
        ValueError: the text holds no ledger, the ledger is broken, or a code cell is not Python.
    """
    line = Line.read(text)
    return line if labels is None else replace(line, figure=tuple(labels))


def _findings(line: Line) -> Iterator[str]:
    where = {
        "words": "no sentence holds ${0.symbol}$",
        "figure": "no label on the figure reads {0.figure!r}",
        "formula": "no numbered equation holds ${0.symbol}$",
        "code": "the final code never uses {0.code}",
    }
    for row in line.ledger.symbols:
        for form in FORMS:
            if line.levels[form][row.symbol] == 0:
                yield f"{form}: {where[form].format(row)} ({row.meaning})"
        if all(line.levels[form][row.symbol] < 2 for form in EXPLAINING):
            yield f"${row.symbol}$ is explained nowhere: the ledger calls it {row.meaning!r}"


def _report(line: Line) -> str:
    lost = {form: line.lost_without(form) for form in EXPLAINING}
    rows = ["| symbol | " + " | ".join(FORMS) + " | lost without |", "| --- " * 6 + "|"]
    for row in line.ledger.symbols:
        marks = ["×○●"[line.levels[form][row.symbol]] for form in FORMS]
        without = ", ".join(form for form in EXPLAINING if row.symbol in lost[form]) or "–"
        rows.append(f"| ${row.symbol}$ | " + " | ".join([*marks, without]) + " |")
    return "\n".join(rows) + "\n\n● says what it is, ○ uses it, × leaves it out"


# %%
blend_line = check_line(BLEND)
assert blend_line.findings == [], "the blend is told in all four forms"
blend_line

# %% [markdown]
# The deletion test, Equation 2, in one line each. A reader who skips the words does not learn what
# $u$ and $v$ are.

# %%
{form: sorted(blend_line.lost_without(form)) for form in EXPLAINING}

# %% [markdown]
# And the other way round: whatever a form loses is found. We take the fraction $t$ out of one form after
# the other.

# %%
broken = {
    "words": BLEND.replace("fraction $t$", "fraction"),
    "figure": BLEND.replace('xlabel="fraction t"', 'xlabel="fraction"'),
    "formula": BLEND.replace(r"$$ m = (1 - t)\,u + t\,v", r"$$ m = (u + v) / 2"),
    "code": BLEND.replace("u, v, t):", "u, v):").replace("(1 - t) * u + t * v", "(u + v) / 2"),
}
for form, text in broken.items():
    found = check_line(text).findings
    assert len(found) == 1 and found[0].startswith(form), "the form that lost t is named"
    print(found[0])

# %% [markdown]
# The labels can also be read off the figure itself, as matplotlib drew it, and not from the code
# that draws it. The tests of this course do that, with the figures in its notebooks.

# %%
print(figure_texts(strip))
check_line(BLEND, labels=figure_texts(strip)).findings

# %% [markdown]
# The chart that opened the lesson. (Skip such drawing code on a first reading.) Symbols are drawn by matplotlib's
# own reader of formulas; what it does not know is written as plain text.


# %% tags=["promote"]
def draw_line(line: Line, size: tuple[float, float] | None = None) -> Figure:
    """A figure of the check: rows are symbols, columns forms, and the deletion test beside them.

    A filled dot says what the symbol is, a ring uses it, a cross leaves it out; a square marks a
    symbol that is lost without a form. `size` is width and height in inches.
    """
    rows = [row.symbol for row in line.ledger.symbols]
    width, height = size or (6.5, 0.9 + 0.24 * len(rows))
    figure, axes = canvas(width=width, height=height)
    for x, form in enumerate(FORMS):
        for y, symbol in enumerate(rows):
            _draw_mark(axes, x, y, line.levels[form][symbol])
    for x, form in enumerate(EXPLAINING, start=len(FORMS) + 1):
        for symbol in line.lost_without(form):
            axes.plot(x, rows.index(symbol), "s", color=COLOURS["bad"], markersize=7)
    places = [*range(len(FORMS)), *range(len(FORMS) + 1, len(FORMS) + 4)]
    axes.set_xticks(places, [*FORMS, *(f"without\n{form}" for form in EXPLAINING)])
    axes.set_yticks(range(len(rows)), [_as_mathtext(symbol) for symbol in rows])
    axes.set(xlim=(-0.5, places[-1] + 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    for y in range(len(rows) - 1):
        axes.axhline(y + 0.5, color="0.9", linewidth=0.6)
    axes.axvline(len(FORMS), color="0.6", linewidth=0.8)
    axes.spines[:].set_visible(False)
    return figure


def _draw_mark(axes: Axes, x: float, y: float, level: int) -> None:
    colour = COLOURS["first"] if level else COLOURS["bad"]
    face = colour if level == 2 else "white"
    axes.plot(x, y, "x" if level == 0 else "o", color=colour, markerfacecolor=face, markersize=7)


def _as_mathtext(symbol: str) -> str:
    try:
        MathTextParser("path").parse(f"${symbol}$")
    except ValueError:  # TeX that matplotlib does not know
        return symbol
    return f"${symbol}$"


# %% [markdown]
# ### Name an axis
#
# Equations 3 to 5. `letters` holds the sizes of the input's axes, `doubled` the size of the axis
# in question after each of them was doubled, `tripled` its size after all of them were tripled at once. Fractions are
# kept exact with Python's `Fraction`. Both readings of Equation 4 are tried; the first that predicts the third run
# gives the name. An axis that answers to no letter is looked up among the sizes that the reader has named.


# %% tags=["promote"]
def _term(factor: Fraction, letters: str) -> str:
    """A factor and letters as one reads them: 3H/2, H·W/64, 5."""
    top = str(factor.numerator) if factor.numerator != 1 or not letters else ""
    below = f"/{factor.denominator}" if factor.denominator != 1 else ""
    return f"{top}{letters}{below}"


def _sum(terms: Mapping[str, Fraction], rest: Fraction) -> str:
    """Terms and a remainder as one reads them: H/2 − 1, H·W/64 + 1, 24 − H."""
    parts = sorted([*((c, a) for a, c in terms.items()), (rest, "")], key=lambda part: part[0] < 0)
    text = "".join(f" {'−' if c < 0 else '+'} {_term(abs(c), a)}" for c, a in parts if c)
    return text.removeprefix(" + ").replace(" − ", "−", 1) if parts[0][0] < 0 else text[3:]


# %% tags=["promote", "exercise"]
def axis_name(
    size: int,
    letters: Mapping[str, int],
    doubled: Mapping[str, int],
    tripled: int,
    fixed: Mapping[str, int],
) -> str:
    """The name of an axis, from its sizes in several runs; Equations 3 to 5.

    Args:
        size: the size z of the axis in the first run.
        letters: the size of each axis of the input, by its letter; none of them 0.
        doubled: the size of the axis after a letter was doubled, for each letter.
        tripled: the size of the axis after all these letters were tripled at once.
        fixed: sizes that have a name of their own, by their letter.

    Returns:
        a letter, a multiple such as `H/2`, a product, a sum such as `H + N − 2`, or, where no such
        name predicts the tripled run, the size.

    >>> axis_name(24, {"H": 48}, {"H": 48}, 72, {"D": 16})
    'H/2'
    >>> axis_name(16, {"H": 48}, {"H": 16}, 16, {"D": 16})
    'D'
    """
    growth = {a: z - size for a, z in doubled.items() if z != size}
    if not growth:
        names = [name for name, value in fixed.items() if value == size]
        return names[0] if len(names) == 1 and tripled == size else str(size)
    slope = {a: Fraction(growth[a], letters[a]) for a in growth}
    sum_rest = size - sum(growth.values())
    if tripled == sum_rest + 3 * sum(growth.values()):
        return _sum(slope, Fraction(sum_rest))
    product = prod(letters[a] for a in growth)
    c, rest = Fraction(min(growth.values()), product), size - min(growth.values())
    if len(set(growth.values())) == 1 and tripled == 3 ** len(growth) * c * product + rest:
        return _sum({"·".join(growth): c}, Fraction(rest))
    return str(size)


# %% tags=["check"]
two = {"H": 48, "W": 72}
assert axis_name(24, two, {"H": 48, "W": 24}, 72, {}) == "H/2", "half of H"
assert axis_name(864, two, {"H": 1728, "W": 1728}, 7776, {}) == "H·W/4", "a quarter of the product"
assert axis_name(55, two, {"H": 109, "W": 109}, 487, {}) == "H·W/64 + 1", "and one more"
assert axis_name(120, two, {"H": 168, "W": 192}, 360, {}) == "H + W", "a sum"
assert axis_name(46, two, {"H": 94, "W": 46}, 142, {}) == "H − 2", "a convolution without padding"
assert axis_name(98, two, {"H": 194, "W": 98}, 290, {}) == "2H + 2", "twice H, and 2"
assert axis_name(72, two, {"H": 72, "W": 72}, 72, {"D": 72}) == "D", "72, and yet not W"
assert axis_name(7, two, {"H": 7, "W": 7}, 7, {"D": 7, "K": 7}) == "7", "two names fit: take none"
assert axis_name(2304, two, {"H": 9216, "W": 2304}, 20736, {}) == "2304", "a square: no such name"

# %% [markdown]
# ### Listen to a module
#
# PyTorch calls a **forward hook** after a module has run, with what went in and what came out. A hook on
# each stage is all it takes to measure shapes. The naive version prints them:


# %%
def print_shapes(module, *inputs):
    def hook(stage, given, result):
        print(type(stage).__name__, tuple(given[0].shape), "→", tuple(result.shape))

    handles = [stage.register_forward_hook(hook) for stage in module.children()]
    module(*inputs)
    for handle in handles:
        handle.remove()


print_shapes(network, photo)

# %% [markdown]
# Good, and not enough. It does not say where an input comes from: the shortcut follows the block in time,
# not in the data. It forgets its hooks when the module raises. It counts only one input, and
# dictionaries not at all. And in training mode the run would change the module it looks at.
#
# The arrows are measured like the shapes. Each tensor carries a **label**: the stages whose results went into it. Between
# the stages PyTorch applies functions (the `+` and the `mean` of our network), and a
# `TorchFunctionMode` is told of each of them: what comes out inherits the labels of all that went in. Two kinds of
# functions need care. One that writes in place, such as `add_` or `x[0] = …`, passes its labels to the tensor it
# writes into; one that takes a shape only, such as `zeros_like`, passes none.


# %% tags=["promote"]
Shape = tuple[int, ...]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value: itself, or those in its collections and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list | set):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])


def _shapes(value: Any) -> tuple[Shape, ...]:
    return tuple(tuple(tensor.shape) for tensor in _tensors(value))


class _Labels(TorchFunctionMode):
    """Which stages went into each tensor; while active, results of torch functions inherit it."""

    def __init__(self):
        super().__init__()
        # Weak references, so that a long run need not keep its intermediate tensors.
        self.table: dict[int, tuple[weakref.ref, frozenset[int]]] = {}

    def of(self, value: Any) -> frozenset[int]:
        found: frozenset[int] = frozenset()
        for tensor in _tensors(value):
            reference, sources = self.table.get(id(tensor), (lambda: None, found))
            found |= sources if reference() is tensor else frozenset()
        return found

    def put(self, value: Any, sources: frozenset[int]) -> None:
        for tensor in _tensors(value):
            self.table[id(tensor)] = (weakref.ref(tensor), sources)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        sources = self.of([args, kwargs or {}])
        if not sources or name.endswith("_like") or name.startswith("new_"):
            return result
        for tensor in [*_tensors(result), *(_written(args) if _IN_PLACE.fullmatch(name) else ())]:
            self.put(tensor, self.of(tensor) | sources)
        return result


_IN_PLACE = re.compile(r"__setitem__|__i[a-z]+__|[a-z]\w*(?<!_)_")


def _written(args: Sequence[Any]) -> list[Tensor]:
    """The tensor that a function in place writes into, and the one it is a view of."""
    return [t for t in (args[0], getattr(args[0], "_base", None)) if isinstance(t, Tensor)]


# %%
start, buffer, labels = torch.ones(2), torch.zeros(4), _Labels()
labels.put(start, frozenset({7}))
with labels:
    joined = torch.cat([start * 2, torch.zeros(3)]).mean()
    buffer[:2] = start
    empty = torch.zeros_like(start)
[labels.of(tensor) for tensor in (joined, buffer, empty)]


# %% [markdown]
# A **stage** is one call of a submodule, or an input, or the output. `depth` says how deep to look: at
# 1 the module's own parts, at 2 the parts of these. Lists of modules are no stage, since PyTorch never
# calls them. A function becomes a stage when it is wrapped as a `Step`.


# %% tags=["promote"]
class Step(nn.Module):
    """A function as a module, so that forward hooks see it."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *inputs, **keywords):
        return self.function(*inputs, **keywords)


@dataclass(frozen=True)
class Stage:
    """A submodule in a run, an input of the module, or its output.

    Attributes:
        name: the submodule's name in its module, or the argument's name, or "output".
        kind: the class of the submodule, the name of the function of a `Step`, "input" or "output".
        takes, gives: the measured shapes of the tensors that went in and came out.
        sources: the positions, among the stages, of those whose results went in.
        calls: how many times it ran with these shapes.
        parameters: how many numbers it learns.
        takes_named, gives_named: the shapes again, with a name for each axis.
    """

    name: str
    kind: str
    takes: tuple[Shape, ...]
    gives: tuple[Shape, ...]
    sources: frozenset[int]
    calls: int = 1
    parameters: int = 0
    takes_named: tuple[tuple[str, ...], ...] = ()
    gives_named: tuple[tuple[str, ...], ...] = ()


# %% tags=["promote"]
def _parts(module: nn.Module, depth: int, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The submodules at a depth, and those above it that have no parts of their own."""
    for name, part in module.named_children():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            yield from _parts(part, depth, f"{prefix}{name}.")
        elif depth == 1 or not any(part.children()):
            yield prefix + name, part
        else:
            yield from _parts(part, depth - 1, f"{prefix}{name}.")


def _kind(part: nn.Module) -> str:
    named = part.function if isinstance(part, Step) else type(part)
    return getattr(named, "__name__", type(named).__name__)


# %% [markdown]
# One run under hooks. The module is put into evaluation mode, the run computes no gradients and works on copies of the
# inputs; modes, hooks and torch's random numbers are given back afterwards.


# %% tags=["promote"]
def _run(module: nn.Module, inputs: Sequence[Any], keywords: Mapping, depth: int) -> list[Stage]:
    """The stages of one run, in the order in which they ran: inputs, submodules, output."""
    given = [x.detach().clone() if isinstance(x, Tensor) else x for x in inputs]
    names = zip(_argument_names(module, len(given)), given, strict=True)
    entries = [(name, value) for name, value in names if isinstance(value, Tensor)]
    stages = [Stage(name, "input", (), _shapes(value), frozenset()) for name, value in entries]
    labels = _Labels()
    for position, (_, value) in enumerate(entries):
        labels.put(value, frozenset({position}))
    modes = {part: part.training for part in module.modules()}
    with ExitStack() as undo:
        for name, part in _parts(module, depth) if any(module.children()) else [("", module)]:
            for handle in _listen(part, name or type(module).__name__, stages, labels):
                undo.callback(handle.remove)
        for part, training in modes.items():
            undo.callback(setattr, part, "training", training)
        module.eval()
        for context in (torch.no_grad(), torch.random.fork_rng(), labels):
            undo.enter_context(context)
        result = module(*given, **keywords)
        sources = labels.of(result)
    return [*stages, Stage("output", "output", _shapes(result), (), sources)]


def _listen(part: nn.Module, name: str, stages: list[Stage], labels: _Labels) -> Iterator[Any]:
    """Hook onto a submodule: each call appends a stage and labels what comes out."""
    kind, count, versions = _kind(part), sum(p.numel() for p in part.parameters()), {}

    def before(part, args, kwargs):
        versions.update({id(tensor): tensor._version for tensor in _tensors([args, kwargs])})

    def after(part, args, kwargs, result):
        taken = [args, kwargs]
        given = (kind, _shapes(taken), _shapes(result), labels.of(taken))
        stages.append(Stage(name, *given, parameters=count))
        # What passes through unchanged gets an object of its own: the label is the stage's alone.
        if isinstance(result, Tensor) and versions.get(id(result)) == result._version:
            result = result.view_as(result)
        labels.put(result, frozenset({len(stages) - 1}))
        versions.clear()
        return result

    yield part.register_forward_pre_hook(before, with_kwargs=True)
    yield part.register_forward_hook(after, with_kwargs=True)


def _argument_names(module: nn.Module, count: int) -> list[str]:
    parameters = signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*names, *(f"input {n}" for n in range(len(names), count))][:count]


# %% [markdown]
# A stage that runs many times with the same shapes, as in a network that refines its answer in a loop, is
# drawn once, with a count. Its arrows are those of all its calls together.


# %% tags=["promote"]
def _folded(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with repeated calls taken together."""
    place: dict[tuple, int] = {}
    where = [place.setdefault((s.name, s.kind, s.takes, s.gives), len(place)) for s in stages]
    folded: list[Stage] = []
    for position, stage in zip(where, stages, strict=True):
        sources = frozenset(where[source] for source in stage.sources)
        if position == len(folded):
            folded.append(replace(stage, sources=sources))
        else:
            same = folded[position]
            folded[position] = replace(same, sources=same.sources | sources, calls=same.calls + 1)
    return tuple(folded)


# %% [markdown]
# Then the names. `axes` gives the letters of each input, as a string such as `"B C H W"`. For each letter the
# run is repeated with that axis doubled. A module may refuse, as a convolution does for another number of
# channels; such a letter names the input's own axis and no other. The last run triples all the others at once.


# %% tags=["promote"]
def _letters(tensors: Sequence[Tensor], axes: Sequence[str]) -> dict[str, int]:
    """The size of each letter of the inputs' axes; numbers and `_` stand for no letter."""
    if len(axes) != len(tensors) or not all(isinstance(names, str) for names in axes):
        raise ValueError(f"axes: got {axes!r}, expected {len(tensors)} strings, one per tensor")
    sizes: dict[str, int] = {}
    for number, (tensor, names) in enumerate(zip(tensors, axes, strict=True)):
        if len(names.split()) != tensor.ndim:
            raise ValueError(
                f"axes: {names!r} names {len(names.split())} axes of input {number}, "
                f"whose shape is {tuple(tensor.shape)}"
            )
        for name, size in zip(names.split(), tensor.shape, strict=True):
            if not _is_letter(name):
                continue
            if size == 0 or sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"axes: {name} is {sizes.get(name, 0)} in one place and {size} in input "
                    f"{number}; expected one size, of 1 or more"
                )
    return sizes


def _is_letter(name: str) -> bool:
    return not name.isdigit() and name != "_"


def _repeated(inputs: Sequence[Any], axes: Sequence[str], letters: Container[str], times: int):
    """The inputs with the axes of these letters so many times as long."""
    remaining, longer = iter(axes), []
    for value in inputs:
        if isinstance(value, Tensor):
            counts = [times if name in letters else 1 for name in next(remaining).split()]
            value = value.repeat(counts) if counts else value
        longer.append(value)
    return longer


class _Rerun:
    """Runs with other sizes of the input, and the names of axes that follow from them."""

    def __init__(self, stages: Sequence[Stage], letters: Mapping[str, int], rerun: Callable):
        self.stages, self.letters, self.doubled = stages, letters, {}
        for letter in letters:
            if run := self._like_the_first(rerun, [letter], 2):
                self.doubled[letter] = run
        answering = list(self.doubled)
        self.tripled = self._like_the_first(rerun, answering, 3) if answering else None

    def _like_the_first(self, rerun: Callable, letters: list[str], times: int):
        try:
            run = rerun(letters, times)
        except Exception:  # whatever a module raises for a size that it does not take
            return None
        return run if _outline(run) == _outline(self.stages) else None

    def named(self, position: int, field: str, fixed: Mapping[str, int]) -> list[tuple[str, ...]]:
        """The names of the axes of a stage's shapes, those in the field `takes` or `gives`."""

        def size(run, n, k):
            return getattr(run[position], field)[n][k]

        def name(n, k):
            if self.tripled is None:
                return axis_name(size(self.stages, n, k), {}, {}, size(self.stages, n, k), fixed)
            doubled = {a: size(run, n, k) for a, run in self.doubled.items()}
            runs = (size(self.stages, n, k), self.letters, doubled, size(self.tripled, n, k))
            return axis_name(*runs, fixed)

        shapes = getattr(self.stages[position], field)
        return [tuple(name(n, k) for k in range(len(shape))) for n, shape in enumerate(shapes)]


def _outline(run: Sequence[Stage]) -> list[tuple]:
    return [(s.name, [len(x) for x in s.takes], [len(x) for x in s.gives]) for s in run]


# %% tags=["promote"]
def _axes_text(names: Sequence[str]) -> str:
    return " × ".join(names) if names else "a number"


# %% [markdown]
# All together. The result is a value that can be asked, listed and drawn.


# %% tags=["promote"]
@dataclass(frozen=True)
class Pipeline:
    """A module as one run showed it: its stages from the inputs to the output.

    Attributes:
        title: the class of the module.
        stages: inputs, submodules in the order in which they first ran, output.
        never_ran: the parts of the module that the run did not call.
        refused: the letters of the input's axes for which the module takes no other size.

    >>> run = Pipeline.trace(nn.Linear(3, 5), torch.zeros(2, 3), axes="B C", sizes={"D": 5})
    >>> [stage.name for stage in run.stages], run.stages[-1].takes, run.stages[-1].takes_named
    (['input', 'Linear', 'output'], ((2, 5),), (('B', 'D'),))
    """

    title: str
    stages: tuple[Stage, ...]
    never_ran: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @classmethod
    def trace(
        cls,
        module: nn.Module,
        *inputs: Any,
        axes: str | Sequence[str] = (),
        sizes: Mapping[str, int] | None = None,
        keywords: Mapping[str, Any] | None = None,
        depth: int = 1,
    ) -> "Pipeline":
        """Run a module under forward hooks and measure each stage.

        Args:
            module: run in evaluation mode, without gradients; its mode, its hooks and torch's
                random numbers are restored, buffers that it writes itself are not.
            inputs: what the module is called with; tensors, copied, and values without tensors.
            axes: the letters of each tensor's axes, such as "B C H W", one string per tensor.
                With them each axis of each stage is named: the run is repeated with every letter
                doubled in turn and all tripled, and the axes that answer are named after it.
            sizes: letters for sizes that the input does not decide, such as {"D": 256}.
            keywords: keyword arguments of the call without tensors, such as {"iterations": 4}.
            depth: how deep to look for stages; 1 takes the module's own parts.

        Raises:
            TypeError: the module is none, no input is a tensor, or a tensor is inside another
                argument.
            ValueError: the axes do not fit the inputs, or depth is no whole number of 1 or more.
            What the module itself raises is passed on.
        """
        tensors = _checked(module, inputs, keywords or {})
        depth = whole_number("depth", depth, least=1)
        axes = [axes] if isinstance(axes, str) else list(axes)
        letters = _letters(tensors, axes) if axes else {}

        def run(chosen: Container[str], times: int) -> list[Stage]:
            return _run(module, _repeated(inputs, axes, chosen, times), keywords or {}, depth)

        stages = _run(module, inputs, keywords or {}, depth)
        reruns = _Rerun(stages, letters, run)
        named = []
        for n, stage in enumerate(stages):
            takes = tuple(reruns.named(n, "takes", sizes or {}))
            gives = tuple(reruns.named(n, "gives", sizes or {}))
            if axes and stage.kind == "input":
                gives = (tuple(axes[n].replace("_", "1").split()),)
            named.append(replace(stage, takes_named=takes, gives_named=gives))
        ran = {stage.name for stage in stages}
        return cls(
            title=type(module).__name__,
            stages=_folded(named),
            never_ran=tuple(name for name, _ in _parts(module, depth) if name not in ran),
            refused=tuple(letter for letter in letters if letter not in reruns.doubled),
        )

    @property
    def dead_ends(self) -> list[str]:
        """The names of the stages whose results reach neither another stage nor the output."""
        used = frozenset().union(*(stage.sources for stage in self.stages))
        return [stage.name for n, stage in enumerate(self.stages[:-1]) if n not in used]

    def sources_of(self, stage: Stage) -> list[str]:
        """The names of the stages whose results a stage takes."""
        return [self.stages[n].name for n in sorted(stage.sources)]

    def describe(self) -> str:
        """The pipeline in words, a sentence a stage; fit as alternative text."""
        said = [f"{self.title}.", *(self._sentence(stage) for stage in self.stages)]
        if self.never_ran:
            said.append(f"Never ran: {', '.join(self.never_ran)}.")
        return " ".join(said)

    def _sentence(self, stage: Stage) -> str:
        shapes = " and ".join(_axes_text(s) for s in stage.gives_named or stage.takes_named)
        times = f", {stage.calls} times" if stage.calls > 1 else ""
        if stage.kind == "input":
            return f"{stage.name}: {shapes}{times}."
        came = " and ".join(self.sources_of(stage)) or "nothing traced"
        verb = ":" if stage.kind == "output" else " and gives"
        return f"{stage.name} takes {came}{verb} {shapes or 'no tensor'}{times}."

    def _repr_markdown_(self) -> str:
        rows = ["| stage | kind | takes | gives | from | learns |", "| --- " * 6 + "|"]
        for stage in self.stages:
            takes, gives = (
                "<br>".join(_axes_text(shape) for shape in named) or "–"
                for named in (stage.takes_named, stage.gives_named)
            )
            name = stage.name if stage.calls == 1 else f"{stage.name} ×{stage.calls}"
            came = ", ".join(self.sources_of(stage)) or "–"
            learns = f"{stage.parameters:,}" if stage.parameters else "–"
            rows.append("| " + " | ".join((name, stage.kind, takes, gives, came, learns)) + " |")
        return "\n".join(rows)

    def draw(self, width: float = 3.3) -> Figure:
        """The pipeline from top to bottom, `width` inches wide: one column of a paper.

        Beside each stage stands what it gives, with the axes' names and the measured sizes below.
        An arrow that does not lead to the next stage runs along the left side. Raises ValueError
        for less than 2.5 inches.
        """
        if not width >= 2.5:
            raise ValueError(f"width is {width}; expected 2.5 inches or more")
        return _draw_pipeline(self, width)


def _checked(module: Any, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among the inputs; raises TypeError for what cannot be traced."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module is a {type(module).__name__}; expected a torch module "
            "(Step makes one of a function)"
        )
    others = {n: value for n, value in enumerate(inputs) if not isinstance(value, Tensor)}
    for name, value in {**others, **keywords}.items():
        if list(_tensors(value)):
            raise TypeError(
                f"argument {name}: a tensor inside a {type(value).__name__}, or given by keyword, "
                "cannot be followed; expected it as an input of its own"
            )
    if len(others) == len(inputs):
        raise TypeError("inputs hold no tensor; expected what the module is called with")
    return [value for value in inputs if isinstance(value, Tensor)]


# %%
pipeline = Pipeline.trace(network, photo, axes="B C H W", sizes={"D": 16, "K": 10})
print("refused:", *pipeline.refused)
pipeline

# %% [markdown]
# The letters D and K were given, since no axis of the input has them. C is an axis of the input, and yet
# the network refused to take six channels. So the stem's 3 stays a number: nothing shows that it *is* C.
#
# A pipeline has a beginning and an end, and every part should lie between. A part whose result goes
# nowhere, or that never runs, is easy to overlook on a drawing by hand:


# %%
class WithLeftovers(SmallCNN):
    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Conv2d(3, 1, kernel_size=1)
        self.forgotten = nn.Linear(16, 16)

    def forward(self, image):
        self.auxiliary(image)
        return super().forward(image)


leftovers = Pipeline.trace(WithLeftovers(), photo)
print("dead ends:", *leftovers.dead_ends, " never ran:", *leftovers.never_ran)

# %% [markdown]
# ### Draw it
#
# (Skip this on a first reading.) Boxes in one column, shapes beside them. A **lane** is a vertical line on the left,
# for the arrows of one stage that jump over others; where two stages' arrows overlap, each has a lane of its own.


# %% tags=["promote"]
_ROW = 0.42  # inches, height of a stage with its arrow
_BOX = 1.25  # inches, width of a box
_BOX_HEIGHT = 0.28
_APART = 0.06  # inches, from the middle of a box to where a lane leaves or joins it


def _draw_pipeline(pipeline: Pipeline, width: float) -> Figure:
    stages, lanes = pipeline.stages, _lanes(pipeline.stages)
    count = 1 + max(lanes.values(), default=-1)
    step = min(0.12, 0.75 / max(count, 1))  # inches between lanes; they leave room for the shapes
    left = 0.12 + step * count
    heights = [_ROW * max(1.0, 0.35 + 0.65 * len(_shown(stage))) for stage in stages]
    middles = [0.05 + sum(heights[:n]) + height / 2 for n, height in enumerate(heights)]
    figure, axes = canvas(width=width, height=sum(heights) + 0.1)
    figure.set_layout_engine("none")
    axes.set(position=(0, 0, 1, 1), xlim=(0, width), ylim=(sum(heights) + 0.1, 0))
    axes.set_axis_off()
    for stage, y in zip(stages, middles, strict=True):
        _draw_stage(axes, stage, left, y)
    for n, stage in enumerate(stages):
        for source in stage.sources:
            if n == source + 1:
                x, half = left + _BOX / 2, _BOX_HEIGHT / 2
                _draw_arrow(axes, [(x, middles[source] + half), (x, middles[n] - half)])
            else:
                x = left - step * (lanes[source] + 1)
                out, into = middles[source] + _APART, middles[n] - _APART
                _draw_arrow(axes, [(left, out), (x, out), (x, into), (left, into)])
    return figure


def _lanes(stages: Sequence[Stage]) -> dict[int, int]:
    """A lane for each stage with arrows that do not lead to the next; those that overlap differ."""
    reach: dict[int, list[int]] = {}
    for n, stage in enumerate(stages):
        for source in stage.sources:
            if n != source + 1:
                reach.setdefault(source, [source]).append(n)
    lanes: dict[int, int] = {}
    for source in sorted(reach, key=lambda s: max(reach[s]) - min(reach[s])):
        low, high = min(reach[source]), max(reach[source])
        taken = {lanes[s] for s in lanes if min(reach[s]) <= high and low <= max(reach[s])}
        lanes[source] = next(n for n in range(len(reach)) if n not in taken)
    return lanes


def _shown(stage: Stage) -> list[tuple[str, str]]:
    """The shapes beside a stage, at most three: names, and sizes."""
    output = stage.kind == "output"
    named, sizes = (stage.takes_named, stage.takes) if output else (stage.gives_named, stage.gives)
    pairs = [
        (_axes_text(name), _axes_text([str(n) for n in size]))
        for name, size in zip(named, sizes, strict=True)
    ]
    return pairs if len(pairs) <= 3 else [*pairs[:2], (f"and {len(pairs) - 2} more", "")]


# %% tags=["promote"]
def _draw_stage(axes: Axes, stage: Stage, left: float, y: float) -> None:
    ends = stage.kind in ("input", "output")
    axes.add_patch(
        FancyBboxPatch(
            (left, y - _BOX_HEIGHT / 2),
            _BOX,
            _BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="white" if ends else "#e3eaf4",
            edgecolor=COLOURS["first"],
            linewidth=0.8,
        )
    )
    name = stage.name if stage.calls == 1 else f"{stage.name} ×{stage.calls}"
    label = {"x": left + _BOX / 2, "ha": "center", "va": "center"}
    if ends:
        axes.text(y=y, s=_shortened(name, 18), size=8, style="italic", **label)
    else:
        axes.text(y=y - 0.055, s=_shortened(name, 17), size=7.5, weight="bold", **label)
        axes.text(y=y + 0.075, s=_shortened(stage.kind, 22), size=6.5, **label)
    shown = _shown(stage)
    for n, (names, sizes) in enumerate(shown):
        middle = y + 0.27 * (n - (len(shown) - 1) / 2)
        beside = {"x": left + _BOX + 0.1, "va": "center"}
        axes.text(y=middle - 0.055, s=names, size=7.5, **beside)
        if sizes != names:
            axes.text(y=middle + 0.065, s=sizes, size=6.5, color="0.4", **beside)


def _shortened(name: str, most: int) -> str:
    """A name of at most so many characters; a dot stands for what is left out of its middle."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - half]}…{name[-half:]}"


def _draw_arrow(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    style = {"color": COLOURS["first"], "linewidth": 1.0}
    for (x0, y0), (x1, y1) in pairwise(points[:-1]):
        axes.plot([x0, x1], [y0, y1], solid_capstyle="round", **style)
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7, **style}
    axes.annotate("", points[-1], points[-2], arrowprops=arrow)


# %% [markdown]
# ## On real input
#
# ### The sampler of chapter 6
#
# The four steps of bilinear sampling (双线性采样), as [chapter 6](../6_bilinear_sampling/1_sampling.ipynb)
# builds them: split each point into a corner and a fraction, make four weights, read four pixels, add them
# up. Two of the steps are the library's own functions; reading and adding are written out here.


# %%
def read_neighbours(image, corner):
    """The four pixels from each corner on, zero outside the image: (B, C, N, 4)."""
    H, W = image.shape[-2:]
    column = corner[..., 0, None] + torch.tensor([0, 1, 0, 1])
    row = corner[..., 1, None] + torch.tensor([0, 0, 1, 1])
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    index = row.clamp(0, H - 1) * W + column.clamp(0, W - 1)
    index = index.flatten(1)[:, None].expand(-1, image.shape[1], -1)
    values = image.flatten(2).gather(2, index).unflatten(2, (*corner.shape[1:2], 4))
    return values * inside[:, None]


def weighted_sum(values, weights):
    return (values * weights[:, None]).sum(dim=-1)


# %%
class Sampler(nn.Module):
    """Chapter 6's sampler in four steps."""

    def __init__(self):
        super().__init__()
        self.split = Step(floor_and_fraction)
        self.weigh = Step(bilinear_weights)
        self.read = Step(read_neighbours)
        self.add = Step(weighted_sum)

    def forward(self, image, points):
        corner, fraction = self.split(points)
        return self.add(self.read(image, corner), self.weigh(fraction))


# %%
points = torch.rand(2, 5, 2) * 60 - 4
assert torch.allclose(Sampler()(photo, points), sample(photo, points), rtol=1e-5, atol=1e-3)
sampler = Pipeline.trace(Sampler(), photo, points, axes=("B C H W", "B N 2"))
show(sampler.draw(), alt=sampler.describe())

# %% [markdown]
# Follow the arrows: the points become a corner and a fraction, the corner meets the image where pixels are
# read, the fraction becomes the weights, and both meet in the sum. The tolerance of the comparison with the library's
# `sample` is that of float32 on values up to 255.
#
# ### A loop
#
# Networks that refine their answer call one part again and again. The count stands beside its name, and the
# arrow that leads back runs upward on the left.


# %%
class Refiner(nn.Module):
    """Corrects a first guess a few times with one and the same part."""

    def __init__(self, D=8):
        super().__init__()
        self.encode, self.update = nn.Conv2d(3, D, 3, padding=1), nn.Conv2d(D + 1, 1, 3, padding=1)

    def forward(self, image, iterations=4):
        features = self.encode(image)
        guess = torch.zeros(len(image), 1, *image.shape[2:])
        for _ in range(iterations):
            guess = guess + self.update(torch.cat([features, guess], dim=1))
        return guess


refiner = Pipeline.trace(Refiner(), photo, axes="B C H W", sizes={"D": 8})
show(refiner.draw(), alt=refiner.describe())

# %% [markdown]
# The guess itself has no box, since it is made between the parts; what flows through it is traced all the
# same: `update` feeds itself.
#
# ### The lessons of chapter 6
#
# The same check on real lessons. `House` knows where the course's own text stands.

# %%
house = House.here()
chapter = [lesson for lesson in lessons(house) if lesson.chapter == "6_bilinear_sampling"]
texts = {
    lesson.name: (house.root / lesson.source).read_text(encoding="utf-8") for lesson in chapter
}
for name, text in texts.items():
    line = check_line(text)
    print(f"{name}: {len(line.ledger.symbols)} symbols, {len(line.findings)} findings")

# %%
sampling_line = check_line(texts["1_sampling"])
show(
    draw_line(sampling_line),
    alt="The chart of the first lesson of chapter 6. No cross. Most symbols are explained in words;"
    " several would be lost without the words.",
)

# %% [markdown]
# All symbols stand everywhere. The squares answer the notes' question. They are no faults; they show
# what each form is *for*. As lists:

# %%
for form in EXPLAINING:
    print(f"without the {form}:", ", ".join(sorted(sampling_line.lost_without(form))) or "nothing")

# %% [markdown]
# ### Your own
#
# For a module of yours, `Pipeline.trace(module, *inputs).draw()` is all that is needed; the letters can
# come later. For a text of yours, in Markdown, write its ledger first: a table of five columns, one row for each symbol.
# It is the shortest way to find the symbol that two people on the team read differently. Then
# `check_line(Path("README.md").read_text())` reads its prose, its equations with a `\tag`, the descriptions of its
# images and its blocks of code.

# %% [markdown]
# ## Exercises
#
# In the exercise edition (`fourfold start`) these bodies are blank; each has its check directly
# below.
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `tex_tokens` | 10 | ●●○ |
# | `content_words` | 5 | ●○○ |
# | `axis_name` | 25 | ●●● |
#
# <details><summary>Hint for <code>tex_tokens</code></summary>
#
# `_TOKEN.findall` splits, `_SPACING` says what to leave out. For the braces, join the tokens with line
# breaks, so that `_SINGLE` sees one token a line, and split again.
#
# </details>
#
# <details><summary>Hint for <code>content_words</code></summary>
#
# Take the formulas out first: what stands between two `$` is replaced by a space. `re.findall` with
# `[a-z]{3,}` finds the words, `str.removesuffix` takes an s away.
#
# </details>
#
# <details><summary>Hint for <code>axis_name</code></summary>
#
# Begin with how much the axis grew for each letter; leave out those for which it did not. No growth: look the size
# up. Then try the sum, and keep it if Equation 5 holds; then the product. `_sum({"H": Fraction(1, 2)},
# Fraction(-1))` writes H/2 − 1.
#
# </details>
#
# **Predict.** The label of the first colour on the blend's figure becomes "first colour u" instead of "u". Which
# squares disappear from the chart?
#
# <details><summary>Hint</summary>
#
# Which rule makes a ring of the figure's column a dot?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The figure now explains $u$, so only $v$ is lost without the words. The cell below shows it.
#
# </details>
#
# **Vary.** Give the small network a stride of 1 and no padding in its stem. What are the axes of the
# stem called then?
#
# <details><summary>Hint</summary>
#
# A window of three pixels fits in 46 places along 48 pixels.
#
# </details>
#
# <details><summary>Answer</summary>
#
# H − 2 and W − 2: the slope is 1, and the remainder $r$ of Equation 4 is −2. The shortcut and the block keep
# that size.
#
# </details>
#
# **Find the bug.** A colleague names axes by looking up their size among those of the input: 48 is H, 64 is W.
# For a square image of 64 × 64 and 64 feature channels, what does the figure say, and what does ours?
#
# <details><summary>Hint</summary>
#
# How many letters have the size 64?
#
# </details>
#
# <details><summary>Answer</summary>
#
# All of them are 64, and the first letter in the table wins: B × H × H × H. Doubling tells them apart, as the cell
# below shows. An input whose sizes all differ is a good habit anyhow.
#
# </details>

# %% [markdown]
# The cells behind the answers:

# %%
named = BLEND.replace('0.5, "u"', '0.5, "first colour u"').replace(
    "`u` | u |", "`u` | first colour u |"
)
check_line(named).lost_without("words")

# %%
bare = SmallCNN()
bare.stem = nn.Conv2d(3, 16, kernel_size=3)
[stage.gives_named for stage in Pipeline.trace(bare, photo, axes="B C H W").stages[1:2]]

# %%
square = torch.zeros(2, 3, 64, 64)
looked_up = {2: "B", 3: "C", 64: "H"}
convolution = nn.Sequential(nn.Conv2d(3, 64, kernel_size=3, padding=1))
result = Pipeline.trace(convolution, square, axes="B C H W", sizes={"D": 64}).stages[1]
print("looked up:", [looked_up[size] for size in result.gives[0]])
print("doubled:  ", list(result.gives_named[0]))

# %% [markdown]
# ## What breaks
#
# ### Everything stands, and it is wrong
#
# The check sees that a symbol *stands* in a form, and whether its name stands near it. It cannot see whether what is
# said is true. Here the formula blends the wrong way round:

# %%
wrong = BLEND.replace(r"m = (1 - t)\,u + t\,v", r"m = t\,u + (1 - t)\,v")
assert wrong != BLEND
check_line(wrong).findings

# %% [markdown]
# No finding. The formula says that $t$ is the fraction of the *first* colour, and the words say the second. Only a reader, or
# a test that computes both, finds that: at $t = 0$ the blend must be $u$. The check tells you where to look, form by
# form; it does not read for you.

# %%
assert (told["blend"](blue, orange, 0.0) == blue).all(), "the code agrees with the words"
(0.0 * blue + (1 - 0.0) * orange == blue).all()  # the wrong formula does not

# %% [markdown]
# ### A name that does not exist
#
# Two axes that answer, and yet get no letter: pairs of points are $N^2$ and no multiple of $N$, and a cut at six is
# neither fixed nor a multiple. Each fits Equation 4 in the first two runs; the third run refuses both.


# %%
class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.pairs = Step(lambda x: (x[:, :, None] - x[:, None]).flatten(1, 2))
        self.cut = Step(lambda x: x[:, :6])

    def forward(self, points):
        return self.pairs(points), self.cut(points)


odd = Pipeline.trace(Odd(), torch.rand(2, 5, 3), axes="B N C")
print([stage.gives_named for stage in odd.stages[1:-1]])

# %% [markdown]
# ### An arrow that cannot be measured
#
# The labels travel with tensors, through torch's functions. A module that leaves them on the way, here through a list of
# numbers, loses them; the figure shows a stage without an arrow, and the description says so.


# %%
class Detour(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.second(torch.tensor(self.first(x).tolist()))


detour = Pipeline.trace(Detour(), torch.zeros(4, 3))
print(detour.describe())
assert detour.dead_ends == ["first"]

# %% [markdown]
# ### What the code says to bad input

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    check_line("# %% [markdown]\n# # A lesson without a ledger\n")

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    check_line(BLEND.replace("| $v$ |", "| $u$ |"))

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    check_line(BLEND.replace("# | $v$", "#\n# | $v$"))

# %% tags=["nbval-check-output"]
with shows_error(TypeError):
    Pipeline.trace(bilinear_weights, torch.zeros(1, 2))

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    Pipeline.trace(network, photo, axes="B C H")

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    Pipeline.trace(Sampler(), photo, points, axes=("B C H W", "N B 2"))

# %% [markdown]
# ## Recap
#
# - Figure, words, formulas and code are one line; the ledger is where they meet, symbol by symbol.
# - Delete a form: the symbols that nothing else explains are what that form is for.
# - A figure of a method can be measured instead of drawn: stages by hooks, arrows by labels, the names of the axes
#   by changing the input.
#
# Next: [2 Anatomy](2_anatomy.ipynb) reads a whole draft with the notes' rules.
