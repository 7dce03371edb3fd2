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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from inspect import signature
from itertools import pairwise
from math import prod
from typing import Any

import torch
from markdown_it import MarkdownIt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fourfold.bilinear_sampling.sampling import bilinear_weights, floor_and_fraction, sample
from fourfold.course.files import House
from fourfold.course.lesson import lessons
from fourfold.kit.arguments import whole_number
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.images import photograph
from fourfold.kit.notebook import shows_error
from fourfold.paper_writing.one_line import Pipeline, axis_name, check_line, draw_line

# %% [markdown]
# ## Words
#
# The notes this course grew from open with one sentence: *figures, words and formulas are one line
# (图片/文字/公式都是一条线); they alone already say method and experiment clearly.* A method section
# tells one pipeline from beginning to end (从头到尾有一个框架), and tells it several times: once as a
# figure, once in words, once as formulas, and here a fourth time as code. What stands on the figure
# stands in the formulas; each can be matched with the others, symbol by symbol. The test of it is a
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
# course is written: Markdown and code cells in one text file, with the ledger as a table. (The
# cells of this section use the finished functions of the library; the section *Code* builds them.)

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
# once, listens at each stage, and draws what went in and what came out. Nothing on it is typed: not
# the shapes, not the arrows. A small convolutional network first, with parts as many networks have
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
# size after the height was doubled.


# %% tags=["figure"]
def draw_doubling(before, after, letter):
    figure, axes = canvas(height=2.6)
    rows = [
        (f"{stage.name}, axis {k}: {name}", size, doubled)
        for stage, other in zip(before.stages[1:-1], after.stages[1:-1], strict=True)
        for k, (size, doubled, name) in enumerate(
            zip(stage.gives[0], other.gives[0], stage.gives_named[0], strict=True)
        )
    ]
    labels, z, z_a = zip(*rows, strict=True)
    y = range(len(rows))
    axes.hlines(y, z, z_a, color=COLOURS["muted"], linewidth=1)
    axes.plot(z_a, y, "o", color=COLOURS["first"], label=f"size $z_a$, letter a = {letter} doubled")
    axes.plot(z, y, "o", color="black", markerfacecolor="white", label="size z")
    moved = next(n for n in y if z[n] != z_a[n])
    factor = Fraction(z[moved], before.stages[0].gives[0][2])
    axes.annotate(
        f"factor c = {factor}", (z[moved], moved), (3, 3), textcoords="offset points", size=8
    )
    axes.set(xlabel="size of the axis (slope $q_a$ = distance of the marks / a)", xscale="log")
    axes.set_yticks(y, labels)
    axes.set_xticks([2, 10, 24, 48], ["2", "10", "24", "48"])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(0.05, 0.4))
    return figure


taller = torch.cat([photo, photo], dim=2)
doubled = Pipeline.trace(network, taller)
show(
    draw_doubling(pipeline, doubled, "H"),
    alt="One row for each axis of each stage. Only the third axis of stem, block and shortcut moves"
    " when the height of the image is doubled, from 24 to 48; all others stay.",
)

# %% [markdown]
# Three axes answer, and each moves by half of what was added: they are named H/2. Doubling the other
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
# | formula | it stands in a numbered equation | it stands on the left of `=`, `≈` or `∈` there |
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
# An axis whose slopes are all zero is fixed by the module. Otherwise, if the axis doubles with each letter it
# answers to, it is a product of these letters with a factor $c$; if not, we take it for a sum with a remainder $c$:
#
# $$ z = c\, \prod_a a \quad \text{if } z_a = 2\,z \text{ for each } a, \qquad
# z = c + \sum_a q_a\, a \quad \text{else} \tag{4} $$
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
# | $c$ | factor or remainder in the name of an axis | fraction | `c` | factor c |

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
# command; the rest are single signs. One habit differs from TeX: we take a run of letters as one name, so that `dx` is a
# symbol of its own. A product then needs a space between its letters, `t\,v`, which also reads better.

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
assert tex_tokens(r"x_{12} \max") == ["x", "_", "12", r"\max"], "numbers and commands are tokens"
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
    def names(self) -> tuple[str, ...]:
        """The identifiers in the column *name in code*: `model.score` gives model and score."""
        return tuple(re.findall(r"[^\W\d]\w*", self.code))


# %% tags=["promote"]
def markdown_tables(text: str) -> Iterator[list[list[str]]]:
    """The tables of a Markdown text, each a list of rows of cells; the head is the first row."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append(token.content)
        elif token.type == "table_close":
            yield rows
            rows = []


# %%
for table in markdown_tables("Text.\n\n| a | b |\n| --- | --- |\n| 1 | $x$ |\n\nMore."):
    print(table)


# %% [markdown]
# Two symbols may begin alike, $w$ and $w_{ab}$. `symbols_in` takes the longest that fits at each
# place, so that an equation with $w_{ab}$ alone does not count for $w$.


# %% tags=["promote"]
@dataclass(frozen=True)
class Ledger:
    """The symbols of a text, each with its name in every form.

    Raises:
        ValueError: there is no symbol, a symbol is given twice, or a cell is empty.
    """

    symbols: tuple[Symbol, ...]

    def __post_init__(self):
        if not self.symbols:
            raise ValueError("ledger: got no symbol, expected at least one row")
        for number, row in enumerate(self.symbols, start=1):
            if blank := [
                name for name, cell in zip(LEDGER_COLUMNS, _cells(row), strict=True) if not cell
            ]:
                raise ValueError(f"ledger, row {number} ({row.symbol!r}): {blank[0]!r} is empty")
            if row.symbol in [other.symbol for other in self.symbols[: number - 1]]:
                raise ValueError(f"ledger, row {number}: {row.symbol!r} has a row already")

    @classmethod
    def parse(cls, markdown: str) -> "Ledger":
        """Read the tables headed `symbol | meaning | shape or unit | name in code | on the figure`.

        Raises:
            ValueError: no table has this head, or what `Ledger` refuses.
        """
        tables = [t for t in markdown_tables(markdown) if tuple(t[0]) == LEDGER_COLUMNS]
        if not tables:
            raise ValueError(f"ledger: found no table headed {' | '.join(LEDGER_COLUMNS)}")
        rows = [row for table in tables for row in table[1:]]
        return cls(tuple(Symbol(row[0].strip("$ "), *row[1:]) for row in rows))

    def symbols_in(self, tex: str) -> set[str]:
        """The symbols that stand in a formula; at each place only the longest that fits."""
        text, found = tex_tokens(tex), set()
        known = {row.symbol: tex_tokens(row.symbol) for row in self.symbols}
        for start in range(len(text)):
            here = [s for s, tokens in known.items() if text[start : start + len(tokens)] == tokens]
            found |= {max(here, key=lambda symbol: len(known[symbol]))} if here else set()
        return found


def _cells(row: Symbol) -> tuple[str, ...]:
    return row.symbol, row.meaning, row.shape, row.code, row.figure


# %%
ledger = Ledger.parse(BLEND.replace("# |", "|"))
print(ledger.symbols[2])
ledger.symbols_in(r"m = (1 - t)\,u + t\,v"), ledger.symbols_in(r"\text{tv}")

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
    def read(cls, lesson: str) -> "Line":
        """Take a lesson apart: the text of its `.py`, cells in jupytext's percent format.

        The figure is read from the strings in cells tagged `figure`, the code from cells tagged
        `promote`, or from all of them in a lesson that promotes nothing.

        Raises:
            ValueError: there is no ledger, or a code cell is not Python.
        """
        import jupytext  # takes a second, and reading a ledger or tracing a module needs none

        cells = jupytext.reads(lesson, fmt="py:percent").cells
        prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        code = [cell for cell in cells if cell.cell_type == "code"]
        final = _tagged(code, "promote") or [cell.source for cell in code]
        return cls(
            Ledger.parse(prose),
            tuple(_sentences(prose)),
            tuple(text for source in _tagged(code, "figure") for text in _strings(source)),
            tuple(e for e in re.findall(r"\$\$(.+?)\$\$", prose, re.DOTALL) if r"\tag" in e),
            frozenset(name for source in final for name in _identifiers(source)),
        )

    def levels(self, form: str) -> dict[str, int]:
        """How far one form carries each symbol: 0 leaves it out, 1 uses it, 2 says what it is.

        Equation 1. Raises ValueError for a form that is none of `FORMS`.
        """
        if form not in FORMS:
            raise ValueError(f"form: got {form!r}, expected one of {', '.join(FORMS)}")
        level = {"words": _in_words, "figure": _on_figure, "formula": _in_formula, "code": _in_code}
        return {row.symbol: level[form](self, row) for row in self.ledger.symbols}

    def lost_without(self, form: str) -> set[str]:
        """The symbols that no other form explains once `form` is deleted, Equation 2."""
        others = [self.levels(other) for other in EXPLAINING if other != form]
        symbols = {row.symbol for row in self.ledger.symbols}
        return {symbol for symbol in symbols if all(level[symbol] < 2 for level in others)}

    @property
    def findings(self) -> list[str]:
        """What keeps the four forms from being one line, a sentence each; empty when nothing is."""
        return list(_findings(self))

    def _repr_markdown_(self) -> str:
        return _report(self)


# %% [markdown]
# Prose first. Tables and code do not count as prose, displayed equations neither; the parser tells
# them apart.


# %% tags=["promote"]
def _sentences(markdown: str) -> Iterator[str]:
    """The sentences of the prose, without tables, code, displayed equations and HTML."""
    text = re.sub(r"\$\$.+?\$\$", " ", markdown, flags=re.DOTALL)
    inside_table = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        inside_table = token.type == "table_open" or (inside_table and token.type != "table_close")
        if token.type == "inline" and not inside_table:
            yield from re.split(r"(?<=[.!?])\s+", re.sub(r"`[^`]*`", "", token.content))


# %%
for sentence in list(_sentences(BLEND.replace("\n# ", "\n"))):
    print("·", " ".join(sentence.split())[:90])

# %% [markdown]
# Then what stands on a figure: the strings of the cell that draws it, such as `"fraction t"`. Its
# docstring and the alternative text are not on it. In an f-string the measured value is left open.


# %% tags=["promote"]
def _tagged(cells: Sequence[Any], tag: str) -> list[str]:
    return [cell.source for cell in cells if tag in cell.metadata.get("tags", ())]


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
    try:
        return ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE))
    except (SyntaxError, ValueError) as error:
        line = source.splitlines()[(getattr(error, "lineno", None) or 1) - 1]
        raise ValueError(f"lesson: a code cell is not Python at {line!r}: {error}") from None


# %%
list(
    _strings(
        'def draw(axes):\n    """No."""\n    axes.set_title(f"blend m = {m}")\n    axes.text(0, 0, "u")'
    )
)

# %% [markdown]
# Now the rules of the table above, one function a form. Each returns a level. A **content word** is a
# word of three letters or more that is not one of the small words every sentence holds.

# %% tags=["promote"]
_SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the and its for with that this from which are each one has how what than not all into"
        " their was were any other between after before when where whose they them two only same",
    )
)
_RELATION = re.compile(r"\\approx|\\in(?![A-Za-z])|\\sim|:=|=")


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
assert content_words("The Blend of two colours") == {"blend", "colour"}, "small letters, no s"
assert content_words("it is $blend$ at") == set(), "formulas and short words do not count"


# %% tags=["promote"]
def _in_words(line: Line, row: Symbol) -> int:
    level = 0
    for sentence in line.words:
        formulas = re.findall(r"\$([^$]+)\$", sentence)
        if any(row.symbol in line.ledger.symbols_in(formula) for formula in formulas):
            level = max(level, 2 if content_words(sentence) & content_words(row.meaning) else 1)
    return level


def _on_figure(line: Line, row: Symbol) -> int:
    label = re.compile(rf"(?<!\w){re.escape(row.figure)}(?!\w)")
    if not any(label.search(text) for text in line.figure):
        return 0
    return 2 if content_words(row.figure) & content_words(row.meaning) else 1


def _in_formula(line: Line, row: Symbol) -> int:
    level = 0
    for equation in line.formula:
        for part in re.split(r"\\\\|\\q?quad", equation):
            left, *right = _RELATION.split(part, maxsplit=1)
            if right and row.symbol in line.ledger.symbols_in(left):
                level = 2
            elif row.symbol in line.ledger.symbols_in(part):
                level = max(level, 1)
    return level


def _in_code(line: Line, row: Symbol) -> int:
    return 1 if row.names and line.code.issuperset(row.names) else 0


# %% [markdown]
# What is wrong is said in sentences, and the whole check is a table.


# %% tags=["promote"]
def check_line(lesson: str, figures: Sequence[Figure] | None = None) -> Line:
    """Check that words, figure, formula and code of a lesson are one line.

    Args:
        lesson: the text of a lesson, cells in jupytext's percent format.
        figures: the lesson's figures as matplotlib drew them. With them, labels are looked for in
            what the figures show, without them in the strings of the cells that draw them.

    Returns:
        the line; its `findings` are empty when each symbol of the ledger stands in all four forms
        and one of them explains it, and `lost_without` runs the deletion test.

    Raises:
        ValueError: the text holds no ledger, the ledger is broken, or a code cell is not Python.
    """
    line = Line.read(lesson)
    if figures is None:
        return line
    return replace(line, figure=tuple(t for figure in figures for t in drawn_texts(figure)))


def drawn_texts(figure: Figure) -> list[str]:
    """The texts that a matplotlib figure shows: titles, labels, ticks, notes."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip()]


def _findings(line: Line) -> Iterator[str]:
    levels = {form: line.levels(form) for form in FORMS}
    where = {
        "words": "no sentence holds ${0.symbol}$",
        "figure": "no label on the figure reads {0.figure!r}",
        "formula": "no numbered equation holds ${0.symbol}$",
        "code": "the final code never uses {0.code}",
    }
    for row in line.ledger.symbols:
        for form in FORMS:
            if levels[form][row.symbol] == 0:
                yield f"{form}: {where[form].format(row)} ({row.meaning})"
        if all(levels[form][row.symbol] < 2 for form in EXPLAINING):
            yield f"${row.symbol}$ is explained nowhere: the ledger calls it {row.meaning!r}"


def _report(line: Line) -> str:
    marks, levels = "×○●", {form: line.levels(form) for form in FORMS}
    lost = {form: line.lost_without(form) for form in EXPLAINING}
    rows = ["| symbol | " + " | ".join(FORMS) + " | lost without |", "| --- " * 6 + "|"]
    for row in line.ledger.symbols:
        cells = [marks[levels[form][row.symbol]] for form in FORMS]
        without = ", ".join(form for form in EXPLAINING if row.symbol in lost[form]) or "–"
        rows.append(f"| ${row.symbol}$ | " + " | ".join([*cells, without]) + " |")
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
# And the other way round: whatever the words lose is found. We take the fraction $t$ out of one form after
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
# that draws it.

# %%
print(drawn_texts(strip))
check_line(BLEND, figures=[strip]).findings

# %% [markdown]
# The chart that opened the lesson. Symbols are drawn by matplotlib's own reader of formulas; what it
# does not know is written as plain text.


# %% tags=["promote"]
def draw_line(line: Line, size: tuple[float, float] | None = None) -> Figure:
    """A figure of the check: rows are symbols, columns forms, and the deletion test beside them.

    A filled dot says what the symbol is, a ring uses it, a cross leaves it out; a square marks a
    symbol that is lost without a form. `size` is width and height in inches.
    """
    rows = line.ledger.symbols
    width, height = size or (6.5, 0.9 + 0.24 * len(rows))
    figure, axes = canvas(width=width, height=height)
    for x, form in enumerate(FORMS):
        for y, level in enumerate(line.levels(form).values()):
            _draw_mark(axes, x, y, level)
    for x, form in enumerate(EXPLAINING, start=len(FORMS) + 1):
        for y in (y for y, row in enumerate(rows) if row.symbol in line.lost_without(form)):
            axes.plot(x, y, "s", color=COLOURS["bad"], markersize=7)
    places = [*range(len(FORMS)), *range(len(FORMS) + 1, len(FORMS) + 4)]
    axes.set_xticks(places, [*FORMS, *(f"without\n{form}" for form in EXPLAINING)])
    axes.set_yticks(range(len(rows)), [_as_mathtext(row.symbol) for row in rows])
    axes.set(xlim=(-0.5, places[-1] + 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.hlines(
        [y + 0.5 for y in range(len(rows) - 1)], -0.5, places[-1] + 0.5, "0.9", linewidth=0.6
    )
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
        return symbol.replace("$", "")
    return f"${symbol}$"


# %% [markdown]
# ### Name an axis
#
# Equations 3 and 4. `letters` holds the sizes of the input's axes, `doubled` the size of the axis
# in question after each of them was doubled. The slope is a fraction, kept exact with Python's
# `Fraction`. An axis that answers to no letter is looked up among the sizes that the module fixes;
# where two names fit, neither is taken.


# %% tags=["promote"]
def _term(factor: Fraction, letters: str) -> str:
    """A factor and letters as one reads them: 3H/2, H·W/64, 5."""
    top = str(factor.numerator) if factor.numerator != 1 or not letters else ""
    below = f"/{factor.denominator}" if factor.denominator != 1 else ""
    return f"{top}{letters}{below}"


# %% tags=["promote", "exercise"]
def axis_name(
    size: int, letters: Mapping[str, int], doubled: Mapping[str, int], fixed: Mapping[str, int]
) -> str:
    """The name of an axis, from its size and its sizes after each input axis was doubled.

    Args:
        size: the size z of the axis in the first run.
        letters: the size of each axis of the input, by its letter.
        doubled: the size of the axis after a letter was doubled, for each letter that can be.
        fixed: sizes that the module decides on, by their letter.

    Returns:
        a letter, a multiple such as `H/2`, a product, a sum such as `H + N − 2`, or the size.
        Equations 3 and 4.

    >>> axis_name(24, {"H": 48}, {"H": 48}, {"D": 16})
    'H/2'
    >>> axis_name(16, {"H": 48}, {"H": 16}, {"D": 16})
    'D'
    """
    slope = {a: Fraction(z - size, letters[a]) for a, z in doubled.items() if z != size}
    if not slope:
        names = [name for name, value in fixed.items() if value == size]
        return names[0] if len(names) == 1 else str(size)
    if all(doubled[a] == 2 * size for a in slope):
        c = Fraction(size, prod(letters[a] for a in slope))
        return _term(c, "·".join(slope))
    c = size - sum(q * letters[a] for a, q in slope.items())
    name = " + ".join(_term(q, a) for a, q in slope.items())
    sign = "+" if c > 0 else "−"
    return name if c == 0 else f"{name} {sign} {_term(abs(c), '')}"


# %% tags=["check"]
two = {"H": 48, "W": 72}
assert axis_name(24, two, {"H": 48, "W": 24}, {}) == "H/2", "half of H"
assert axis_name(864, two, {"H": 1728, "W": 1728}, {}) == "H·W/4", "a quarter of the product"
assert axis_name(120, two, {"H": 168, "W": 192}, {}) == "H + W", "a sum"
assert axis_name(46, two, {"H": 94, "W": 46}, {}) == "H − 2", "a convolution without padding"
assert axis_name(72, two, {"H": 72, "W": 72}, {"D": 72}) == "D", "72, and yet not W"
assert axis_name(7, two, {"H": 7, "W": 7}, {"D": 7, "K": 7}) == "7", "two names fit: take none"

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
# The arrows are measured like the shapes. Each tensor carries a label: the stage it came from. Between
# the stages PyTorch applies functions (the `+` and the `mean` of our network), and a
# `TorchFunctionMode` is told of each of them: what comes out inherits the labels of all that went in.


# %% tags=["promote"]
Shape = tuple[int, ...]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value: itself, or those in its tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _shapes(value: Any) -> tuple[Shape, ...]:
    return tuple(tuple(tensor.shape) for tensor in _tensors(value))


def _sources(value: Any) -> frozenset[int]:
    """The stages whose results went into a value."""
    return frozenset().union(*(getattr(t, "_sources", ()) for t in _tensors(value)))


def _label(value: Any, sources: frozenset[int]) -> None:
    for tensor in _tensors(value):
        tensor._sources = sources


class _Inherit(TorchFunctionMode):
    """While it is active, the result of a torch function carries the labels of its arguments."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if sources := _sources([args, kwargs or {}]):
            for tensor in _tensors(result):
                tensor._sources = getattr(tensor, "_sources", frozenset()) | sources
        return result


# %%
start = torch.ones(2)
start._sources = frozenset({7})
with _Inherit():
    result = torch.cat([start * 2, torch.zeros(3)]).mean()
result._sources


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


def _stage_modules(
    module: nn.Module, depth: int, prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """The submodules at a depth, and those above it that have no parts of their own."""
    for name, part in module.named_children():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            yield from _stage_modules(part, depth, f"{prefix}{name}.")
        elif depth == 1 or not any(part.children()):
            yield prefix + name, part
        else:
            yield from _stage_modules(part, depth - 1, f"{prefix}{name}.")


# %% [markdown]
# One run under hooks. The module is put into evaluation mode and left as it was; random numbers that
# the run draws are given back.


# %% tags=["promote"]
def _run(module: nn.Module, inputs: Sequence[Any], keywords: Mapping, depth: int) -> list[Stage]:
    """The stages of one run, in the order in which they ran: inputs, submodules, output."""
    given = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
    stages = [
        Stage(name, "input", (), _shapes(value), frozenset())
        for name, value in zip(_argument_names(module, len(given)), given, strict=True)
        if isinstance(value, Tensor)
    ]
    for position, value in enumerate(x for x in given if isinstance(x, Tensor)):
        _label(value, frozenset({position}))

    def hook_for(name: str) -> Callable:
        def hook(part, args, kwargs, result):
            kind = part.function.__name__ if isinstance(part, Step) else type(part).__name__
            count = sum(p.numel() for p in part.parameters())
            taken = [args, kwargs]
            stages.append(
                Stage(name, kind, _shapes(taken), _shapes(result), _sources(taken), 1, count)
            )
            _label(result, frozenset({len(stages) - 1}))

        return hook

    parts = dict(_stage_modules(module, depth)) or {type(module).__name__: module}
    handles = [
        part.register_forward_hook(hook_for(name), with_kwargs=True) for name, part in parts.items()
    ]
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), torch.random.fork_rng(), _Inherit():
            result = module(*given, **keywords)
    finally:
        for handle in handles:
            handle.remove()
        for part, training in modes.items():
            part.training = training
    return [*stages, Stage("output", "output", _shapes(result), (), _sources(result))]


def _argument_names(module: nn.Module, count: int) -> list[str]:
    names = [
        p.name for p in signature(module.forward).parameters.values() if p.kind < p.VAR_POSITIONAL
    ]
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
            before = folded[position]
            folded[position] = replace(
                before, sources=before.sources | sources, calls=before.calls + 1
            )
    return tuple(folded)


# %% [markdown]
# Then the names. `axes` gives the letters of each input, as a string such as `"B C H W"`. For each letter the
# run is repeated with that axis doubled. A module may refuse, as a convolution does for another number of
# channels: then the module fixes that size.


# %% tags=["promote"]
def _letters(tensors: Sequence[Tensor], axes: Sequence[str]) -> dict[str, int]:
    """The size of each letter of the inputs' axes; numbers and `_` stand for no letter."""
    if len(axes) != len(tensors):
        raise ValueError(f"axes: got {len(axes)} strings, expected {len(tensors)}, one per tensor")
    sizes: dict[str, int] = {}
    for number, (tensor, names) in enumerate(zip(tensors, axes, strict=True)):
        if len(names.split()) != tensor.ndim:
            raise ValueError(
                f"axes: {names!r} names {len(names.split())} axes of input {number}, "
                f"whose shape is {tuple(tensor.shape)}"
            )
        for name, size in zip(names.split(), tensor.shape, strict=True):
            if name.isdigit() or name == "_":
                continue
            if sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"axes: {name} is {sizes[name]} in one place and {size} in input {number}"
                )
    return sizes


def _with_doubled(inputs: Sequence[Any], axes: Sequence[str], letter: str) -> list[Any]:
    remaining, doubled = iter(axes), []
    for value in inputs:
        if isinstance(value, Tensor):
            for dim, name in enumerate(next(remaining).split()):
                value = torch.cat([value, value], dim) if name == letter else value
        doubled.append(value)
    return doubled


def _name_axes(
    stages: Sequence[Stage],
    runs: Mapping[str, Sequence[Stage]],
    letters: Mapping[str, int],
    fixed: Mapping[str, int],
) -> list[Stage]:
    """Give each axis of each stage its name, from the runs with one letter doubled each."""

    def named(position: int, field: str) -> tuple[tuple[str, ...], ...]:
        return tuple(
            tuple(
                axis_name(
                    size,
                    letters,
                    {a: getattr(run[position], field)[n][k] for a, run in runs.items()},
                    fixed,
                )
                for k, size in enumerate(shape)
            )
            for n, shape in enumerate(getattr(stages[position], field))
        )

    return [
        replace(stage, takes_named=named(n, "takes"), gives_named=named(n, "gives"))
        for n, stage in enumerate(stages)
    ]


def _same_calls(stages: Sequence[Stage], others: Sequence[Stage]) -> bool:
    def outline(run):
        return [(s.name, [len(x) for x in s.takes], [len(x) for x in s.gives]) for s in run]

    return outline(stages) == outline(others)


# %% tags=["promote"]
def _axes_text(names: Sequence[str]) -> str:
    return " × ".join(names) if names else "a number"


# %% [markdown]
# All together. The result is a value that can be asked, listed and drawn.


# %% tags=["promote"]
@dataclass(frozen=True)
class Pipeline:
    """A module as one run showed it: its stages from the inputs to the output.

    >>> run = Pipeline.trace(nn.Linear(3, 5), torch.zeros(2, 3), axes="B C", sizes={"D": 5})
    >>> [stage.name for stage in run.stages], run.stages[-1].takes, run.stages[-1].takes_named
    (['input', 'Linear', 'output'], ((2, 5),), (('B', 'D'),))
    """

    title: str
    stages: tuple[Stage, ...]

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
            module: run in evaluation mode, without gradients; it is left as it was.
            inputs: what the module is called with; tensors and other values.
            axes: the letters of each tensor's axes, such as "B C H W", one string per tensor.
                With them each axis of each stage is named: the run is repeated with every letter
                doubled in turn, and the axes that answer are named after it.
            sizes: letters for sizes that the module itself decides on, such as {"D": 256}.
            keywords: keyword arguments of the call, such as {"iterations": 4}.
            depth: how deep to look for stages; 1 takes the module's own parts.

        Raises:
            TypeError: the module is none, or no input is a tensor.
            ValueError: the axes do not fit the inputs, or depth is no whole number of 1 or more.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"module is a {type(module).__name__}; expected a torch module "
                "(Step makes one of a function)"
            )
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if not tensors:
            raise TypeError("inputs hold no tensor; expected what the module is called with")
        depth, keywords = whole_number("depth", depth, least=1), keywords or {}
        axes = [axes] if isinstance(axes, str) else list(axes)
        letters = _letters(tensors, axes) if axes else {}
        stages = _run(module, inputs, keywords, depth)
        runs = {}
        for letter in letters:
            try:
                run = _run(module, _with_doubled(inputs, axes, letter), keywords, depth)
            except Exception:  # whatever a module raises for a size that it does not take
                continue
            if _same_calls(stages, run):
                runs[letter] = run
        fixed = {a: n for a, n in letters.items() if a not in runs} | dict(sizes or {})
        return cls(type(module).__name__, _folded(_name_axes(stages, runs, letters, fixed)))

    @property
    def dead_ends(self) -> list[str]:
        """The names of the stages whose results reach neither another stage nor the output."""
        used = frozenset().union(*(stage.sources for stage in self.stages))
        return [stage.name for n, stage in enumerate(self.stages[:-1]) if n not in used]

    def describe(self) -> str:
        """The pipeline in words, a sentence a stage; fit as alternative text."""
        return f"{self.title}. " + " ".join(self._sentence(stage) for stage in self.stages)

    def _sentence(self, stage: Stage) -> str:
        came = " and ".join(self.stages[n].name for n in sorted(stage.sources))
        shapes = " and ".join(_axes_text(s) for s in stage.gives_named or stage.takes_named)
        times = f", {stage.calls} times" if stage.calls > 1 else ""
        taken = f" takes {came or 'nothing traced'}" if stage.kind != "input" else ""
        verb = " and gives" if taken and stage.gives else ":"
        return f"{stage.name}{taken}{verb} {shapes}{times}."

    def _repr_markdown_(self) -> str:
        rows = ["| stage | kind | takes | gives | from | learns |", "| --- " * 6 + "|"]
        for stage in self.stages:
            came = ", ".join(self.stages[n].name for n in sorted(stage.sources)) or "–"
            takes, gives = (
                "<br>".join(_axes_text(shape) for shape in named) or "–"
                for named in (stage.takes_named, stage.gives_named)
            )
            count = f"{stage.parameters:,}" if stage.parameters else "–"
            times = f" ×{stage.calls}" if stage.calls > 1 else ""
            cells = (stage.name + times, stage.kind, takes, gives, came, count)
            rows.append("| " + " | ".join(cells) + " |")
        return "\n".join(rows)

    def draw(self, width: float = 3.3) -> Figure:
        """The pipeline from top to bottom, `width` inches wide: one column of a paper.

        Beside each stage stands what it gives, with the axes' names and the measured sizes below.
        An arrow that does not lead to the next stage runs along the left side.
        """
        return _draw_pipeline(self, width)


# %%
pipeline = Pipeline.trace(network, photo, axes="B C H W", sizes={"D": 16, "K": 10})
pipeline

# %% [markdown]
# The letters K and D were given, since no axis of the input has them. C is an axis of the input, and yet
# the network refused to take six channels: the module fixes it.
#
# A pipeline has a beginning and an end, and every stage should lie between. A part whose result goes
# nowhere is easy to overlook on a drawing by hand:


# %%
class WithAuxiliary(SmallCNN):
    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Conv2d(3, 1, kernel_size=1)

    def forward(self, image):
        self.auxiliary(image)
        return super().forward(image)


assert Pipeline.trace(WithAuxiliary(), photo).dead_ends == ["auxiliary"]

# %% [markdown]
# ### Draw it
#
# Boxes in one column, shapes beside them. A **lane** is a vertical line on the left, for an arrow that
# jumps over stages; arrows that overlap get lanes of their own.


# %% tags=["promote"]
_ROW = 0.42  # inches, height of a stage with its arrow
_BOX = 1.25  # inches, width of a box
_BOX_HEIGHT = 0.28
_LANE = 0.12  # inches, between the lanes of arrows
_APART = 0.06  # inches, from the middle of a box to where a lane leaves or joins it


def _draw_pipeline(pipeline: Pipeline, width: float) -> Figure:
    stages = pipeline.stages
    lanes = _lanes(stages)
    left = 0.1 + _LANE * (1 + max(lanes.values(), default=-1))
    heights = [_ROW * max(1.0, 0.35 + 0.65 * len(_shown(stage))) for stage in stages]
    tops = [0.05 + sum(heights[:n]) for n in range(len(stages))]
    middles = [top + height / 2 for top, height in zip(tops, heights, strict=True)]
    figure, axes = canvas(width=width, height=sum(heights) + 0.1)
    axes.set(xlim=(0, width), ylim=(sum(heights) + 0.1, 0))
    axes.set_axis_off()
    for stage, y in zip(stages, middles, strict=True):
        _draw_stage(axes, stage, left, y)
    for n, stage in enumerate(stages):
        for source in stage.sources:
            if (source, n) in lanes:
                x = left - _LANE * (lanes[source, n] + 1)
                out, into = middles[source] + _APART, middles[n] - _APART
                _draw_arrow(axes, [(left, out), (x, out), (x, into), (left, into)])
            else:
                x, half = left + _BOX / 2, _BOX_HEIGHT / 2
                _draw_arrow(axes, [(x, middles[source] + half), (x, middles[n] - half)])
    return figure


def _lanes(stages: Sequence[Stage]) -> dict[tuple[int, int], int]:
    """A lane for each arrow that does not lead to the next stage; those that overlap differ."""
    arrows = [(source, n) for n, stage in enumerate(stages) for source in stage.sources]
    lanes: dict[tuple[int, int], int] = {}
    for arrow in sorted((a for a in arrows if a[1] != a[0] + 1), key=lambda a: abs(a[1] - a[0])):
        taken = {
            lanes[other] for other in lanes if min(other) <= max(arrow) and min(arrow) <= max(other)
        }
        lanes[arrow] = next(n for n in range(len(arrows)) if n not in taken)
    return lanes


def _shown(stage: Stage) -> list[tuple[str, str]]:
    """The shapes beside a stage, at most three: names, and sizes."""
    named, sizes = (
        (stage.gives_named, stage.gives) if stage.gives else (stage.takes_named, stage.takes)
    )
    pairs = [
        (_axes_text(name), _axes_text([str(n) for n in size]))
        for name, size in zip(named, sizes, strict=True)
    ]
    return pairs if len(pairs) <= 3 else [*pairs[:2], (f"and {len(pairs) - 2} more", "")]


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
    label = {"ha": "center", "va": "center"}
    if ends:
        axes.text(left + _BOX / 2, y, _shortened(name, 20), size=8, style="italic", **label)
    else:
        axes.text(
            left + _BOX / 2, y - 0.055, _shortened(name, 20), size=7.5, weight="bold", **label
        )
        axes.text(left + _BOX / 2, y + 0.075, _shortened(stage.kind, 24), size=6.5, **label)
    shown = _shown(stage)
    for n, (names, sizes) in enumerate(shown):
        middle = y + 0.27 * (n - (len(shown) - 1) / 2)
        beside = {"x": left + _BOX + 0.1, "va": "center"}
        axes.text(y=middle - 0.055, s=names, size=7.5, **beside)
        if sizes != names:
            axes.text(y=middle + 0.065, s=sizes, size=6.5, color="0.4", **beside)


def _shortened(name: str, most: int) -> str:
    """A name of at most so many characters; what is left out of the middle becomes a dot."""
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
# what each form is *for*. The words alone say what the weights, the width and the height are, and
# the formula alone says what the ruler $g_x$ is. As lists:

# %%
for form in EXPLAINING:
    print(f"without the {form}:", ", ".join(sorted(sampling_line.lost_without(form))) or "nothing")

# %% [markdown]
# ### Your own
#
# For a module of yours, `Pipeline.trace(module, *inputs).draw()` is all that is needed; the letters can
# come later. For a text of yours, write its ledger first: a table of five columns, one row for each symbol.
# It is the shortest way to find the symbol that two people on the team read differently.

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
# Begin with the slopes that are not zero, Equation 3. No slope: the size is fixed, look it up. All sizes
# doubled: the first half of Equation 4. Else the second half; `_term` writes a factor with its letters.
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
# H − 2 and W − 2: the slope is 1, and the remainder $c$ of Equation 4 is −2. The shortcut and the block keep
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
# ### An arrow that cannot be measured
#
# The labels travel with tensors. A module that leaves PyTorch on the way, here through a list of numbers, loses
# them; the figure shows a stage without an arrow, and the description says so.


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
