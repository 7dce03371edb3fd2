# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 60
#     needs:
#     - 1_paper_writing/1_one_line
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Anatomy: what a program sees in your draft
#
# **After this lesson you can** point a program at your own paper draft, in LaTeX or Markdown, and
# get a list of what it lacks, each item with file and line, with what was found and what would
# mend it.
#
# *Before this:* Python; [1 One line](1_one_line.ipynb) helps. You need no LaTeX of your own.
# *Time:* 60 minutes, and 25 for the blanks.

# %%
import difflib
import inspect
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.latexwalker import LatexWalker, get_default_latex_context_db

from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.notebook import shows_error
from fourfold.paper_writing.anatomy import (
    Finding,
    outline,
    pace_of,
    read_draft,
    review,
    share_of,
    skeleton,
)

# %% [markdown]
# ## Words
#
# A paper has an anatomy. The **introduction** (引言) says where the field is moving and ends in a
# question. **Related work** (相关工作) and **background** (背景) follow, half and half. The **method**
# (方法) is one pipeline, told by a figure, by words and by formulas that can be matched one to one.
# The **experiments** (实验) show that it runs, on several data sets, why the settings are what they
# are, what each part is good for, and where it fails. The **conclusion** (结论) names the limits, and
# what there was no time to try.
#
# Much of this can be seen by a program that understands none of it. It reads the **draft** (草稿)
# $D$ into a list of sections, paragraphs, figures, tables, formulas and citations, each with file
# and line. Then a **rule** (规则) $r$ counts something, such as the words $w_s$ of prose in part
# $s$ of the paper, holds the count against a **threshold** (阈值) $\theta_r$, and notes a
# **finding** (发现): where, what was found, what is wanted. All findings together are the review $F$.
#
# > **What a program can say, and what it cannot.** No finding means that nothing countable is
# > missing. Whether the question is a good one, and the answer true, is for you and your readers.

# %% [markdown]
# ## Figure
#
# Here is a draft to look at: a short paper on reading water meters from photographs, in a file
# `main.tex` that brings in others with `\input`. (The cells of this section use the finished
# functions of the library; the section *Code* builds them.)

# %%
weak_files = {}
weak_files["main.tex"] = r"""\documentclass{article}
\newcommand{\ours}{MeterNet}
\newcommand{\be}{\begin{equation}}
\newcommand{\ee}{\end{equation}}
\title{\ours: Reading Water Meters from Photographs}
\begin{document}
\maketitle
\begin{abstract}
We read the digits of mechanical water meters from photographs taken with a telephone.
\end{abstract}
\input{introduction}
\input{related}
\input{method}
\input{experiments}
% \section{Old results} see \cite{draft2}
\section*{Conclusion}
\ours reads water meters well. We thank the city of Lenten for the photographs.
\end{document}
"""
weak_files["introduction.tex"] = r"""\section{Introduction}
Water meters are read by people who walk from cellar to cellar. This is slow and expensive.

Photographs are cheap. Everyone carries a camera. Deep learning has changed the world.

Neural networks are very powerful. They are used everywhere.

In this paper we present \ours, a powerful system for reading water meters.
"""
weak_files["related.tex"] = r"""\section{Related Work}
Lee et al.\ read gas meters~\cite{lee}. Abara read licence plates~\cite{abara}. Novak found digits
in street scenes~\cite{novak}. Sato trained a recurrent network~\cite{sato}. Moreau used
attention~\cite{moreau}. Kim and Cho used more data~\cite{kim}.
"""

# %%
weak_files["method.tex"] = r"""\section{Method}
The network has three parts. The last part computes the probability of a digit at a place as
\be
  p_{k} = \frac{\exp(z_k / \tau)}{\sum_{j} \exp(z_j / \tau)} \label{eq:softmax}
\ee
and we train it with the loss
\be \mathcal{L} = - \sum_{k} y_k \log p_k .\ee
\input{figures/network}
"""
weak_files["experiments.tex"] = r"""\section{Experiments}
We train on our photographs for 80 epochs with a learning rate of $0.003$ and reach $94\%$.
\begin{figure}
  \includegraphics{good}
  \caption{Results.}\label{fig:good}
\end{figure}
The attention maps prove that the network has understood what a digit is.
"""


# %%
def write_files(files):
    """Write the files of a draft into a new folder; returns the path of the main one."""
    folder = Path(tempfile.mkdtemp())
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "main.tex"


weak = read_draft(write_files(weak_files))
print(weak)


# %% tags=["figure"]
def draw_anatomy(draft):
    figure = skeleton(draft, height=4.2)
    axes, paper = figure.axes[0], outline(draft)
    for part in ("introduction", "related work", "method", "experiments"):
        words, marks = paper.words(part), len(paper.marks(part))
        text = (
            f"words $w_s$ = {words}\n"
            f"marks $m_s$ = {marks}\n"
            f"pace $d_s$ = {pace_of(words, marks):.0f}"
        )
        axes.text(3.1, draft.sections[paper.parts[part][0]].at, text, va="top", size=8)
    works = len(paper.works("related work", "background"))
    share = share_of("related work", "background", paper)
    axes.set_title(
        f"draft $D$: {draft.name}; works $n$ = {works}, share ρ = {share:.2f}\n"
        f"each rule $r$ with its thresholds θ; findings $F$: {len(review(draft))}"
    )
    axes.set_xlim(-1.9, 4.1)
    return figure


show(
    draw_anatomy(weak),
    alt="A vertical bar cut into the sections of the draft, as long as they have words, with marks"
    " beside it for figures, tables, equations and citations, and the counts of each part.",
)

# %% [markdown]
# Read it from the top like the paper: a grey block is a section, as long as it has words; a mark
# stands where its figure, table, formula or citation stands. See how the citations (ticks) crowd in
# one place and how little there is beside the experiments. The counts on the right are the symbols
# of the next section.

# %% [markdown]
# ## Formula
#
# Let $P_s$ be the paragraphs of part $s$ of the draft $D$, and $|p|$ the number of words in a
# paragraph $p$, formulas and citations not counted. The words of a part add up:
#
# $$ w_s = \sum_{p \,\in\, P_s} |p| \tag{1} $$
#
# "Use few words," say the notes: "words and figures complete each other." Call a figure, a table, a
# displayed formula or an algorithm a **mark**. The number $m_s$ of marks cuts the prose of a part into
# $m_s + 1$ stretches. The **pace** $d_s$ is how long such a stretch is on average:
#
# $$ d_s = \frac{w_s}{m_s + 1} \tag{2} $$
#
# Related work and background, "half and half", make a share $\rho$ that should be near a half; and with
# $K_s$ the set of works that part $s$ cites, they cite $n$ different works together, "ten to
# fifteen":
#
# $$ \rho = \frac{w_{\text{related}}}{w_{\text{related}} + w_{\text{background}}} \tag{3} $$
#
# $$ n = |K_{\text{related}} \cup K_{\text{background}}| \tag{4} $$
#
# "Delete one of them: do the others become unclear?" For a symbol $\sigma$ of the method, let
# $\Phi_\sigma$ be the forms in which it stands:
#
# $$ \Phi_\sigma \subseteq \{\text{formula}, \text{words}, \text{figure}\} \tag{5} $$
#
# When $\Phi_\sigma$ has a single form, deleting that form deletes the symbol's meaning. Last, a rule
# $r$ with thresholds $\theta_r$ maps a draft to a set of findings $f_r$, and the review $F$ is their union over all
# rules $R$:
#
# $$ F = \bigcup_{r \in R} f_r(D;\, \theta_r) \tag{6} $$
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $D$ | the draft, as it was read | lists, each item with file and line | `Draft` | draft $D$ |
# | $w_s$ | words of prose in part $s$ | words | `words` | words $w_s$ |
# | $m_s$ | number of marks in part $s$: figures, tables, formulas, algorithms | none, whole | `marks` | marks $m_s$ |
# | $d_s$ | pace: how long a stretch between two marks is | words | `pace_of` | pace $d_s$ |
# | $\rho$ | share of related work, against background | none, in [0, 1] | `share_of` | share ρ |
# | $n$ | works cited in related work and background | none, whole | `works` | works $n$ |
# | $r$ | a rule | function of a draft | `rule` | rule $r$ |
# | $\theta_r$ | thresholds of a rule | as the rule says | `thresholds` | thresholds θ |
# | $F$ | the review: all findings | set | `findings` | findings $F$ |
#
# ### How we read the notes
#
# The notes are terse. "Introduction 1–3" has no unit; we read *paragraphs*. "5050" we read as
# lengths in words, from three to seven tenths. "10–15" we read as different works cited. Each of
# these is a parameter: your field may have other habits.

# %% [markdown]
# ## Code
#
# ### By searching for patterns
#
# The first idea is a **regular expression** (正则表达式), a pattern of text: find every `\section{…}`
# and every `\cite{…}`.


# %%
def naive_count(tex):
    """Sections and citation commands, by pattern."""
    return len(re.findall(r"\\section\{", tex)), len(re.findall(r"\\cite\{", tex))


main = weak_files["main.tex"]
naive_count(main)

# %% [markdown]
# It reads `main.tex` alone and misses every section that stands in a file of its own; it counts the
# heading and the citation behind a `%`. Here are such traps one at a time, each with the truth.

# %%
traps = {
    "plain": r"\section{A} \cite{x}",
    "a comment": r"% \section{Old} \cite{x}",
    "a percent sign": r"50\% of \cite{x}",
    "a star": r"\section*{Thanks}",
    "two keys, an option": r"\cite[p.~3]{x,y}",
    "other commands": r"\citep{x} \textcite{y}",
    "a macro": r"\newcommand{\citex}[1]{\cite{#1}} \citex{a} \citex{b}",
    "verbatim": r"\verb|\section{A}|",
}
truth = {"plain": (1, 1), "a comment": (0, 0), "a percent sign": (0, 1), "a star": (1, 0)}
truth |= {"two keys, an option": (0, 2), "other commands": (0, 2), "a macro": (0, 2)}
truth |= {"verbatim": (0, 0)}

# %%
for trap, tex in traps.items():
    verdict = "right" if naive_count(tex) == truth[trap] else f"wrong, expected {truth[trap]}"
    print(f"{trap:20} {naive_count(tex)}  {verdict}")

# %% [markdown]
# Each trap can be answered by a longer pattern, and the next trap comes. A comment changes what all
# that follows means, a macro makes new commands while we read: what is needed is a reader that goes
# from left to right and keeps a state, as TeX does.
#
# ### By a library that builds a tree
#
# pylatexenc is such a reader. It returns the text as a tree of macros, groups and environments.

# %%
tree, _, _ = LatexWalker(r"\section*{Thanks} To \emph{all} \cite[p.~3]{x,y}.").get_latex_nodes()
for node in tree:
    print(type(node).__name__, repr(node.latex_verbatim()))

# %% [markdown]
# Now feed it what a tired person saves at two in the morning, and a file that is merely long.


# %%
def tree_seconds(tex):
    """How long pylatexenc takes, or what it raises."""
    start = perf_counter()
    try:
        LatexWalker(tex).get_latex_nodes()
    except RecursionError as error:
        return type(error).__name__
    return perf_counter() - start


deep, one, two = (
    tree_seconds("{" * 10_000),
    tree_seconds("word " * 8000),
    tree_seconds("word " * 32_000),
)
assert deep == "RecursionError"
print(f"10,000 open braces: {deep}; a line four times as long takes {two / one:.0f} times as long")

# %% [markdown]
# A tree is walked by functions that call themselves, one call deeper for each brace, and Python limits
# how deep calls may go. And a long text without a break takes more than its share of time. A
# program that others point at their drafts must neither fall nor wait. So we take from pylatexenc what
# is sound, its tables of what hundreds of macros take as arguments and which sign `\'e` or `\ldots`
# stands for, and go through the text ourselves: one token (the smallest piece that means something)
# after the other, with what is open kept on a list.
#
# ### Values: what a draft is
#
# Nouns first. Everything that is found has a `Place`; everything that is wrong is a `Finding`.


# %% tags=["promote"]
class DraftError(ValueError):
    """A draft that cannot be read at all; its text is one line that names the file."""


class Place(NamedTuple):
    """A line of a file of the draft; the file is named from the main file's folder."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Finding:
    """What one rule found: where, what stands there, and what would satisfy the rule.

    severity  "error" for source that could not be read as meant, "warning" for a rule not met
    """

    rule: str
    severity: str
    place: Place
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.place}  {self.rule}: {self.found}; wanted: {self.wanted}"


# %%
Finding("question", "warning", Place("intro.tex", 3), "no question", "a question mark")

# %% [markdown]
# A draft is made of five kinds of things. `Mark` is one class for figures, tables, equations and
# algorithms: the rules ask the same of them.


# %% tags=["promote"]
@dataclass(frozen=True)
class Section:
    r"""A heading; level 1 is \section or ##. `at` counts the words of prose before it."""

    title: str
    level: int
    place: Place
    at: int
    appendix: bool = False


@dataclass(frozen=True)
class Paragraph:
    """A paragraph as plain text; its section is an index into `Draft.sections`.

    Formulas stand in it as `$…$`, citations as `[@key]`, references as `[#label]`. `words` counts
    its own words, `at` those before it.
    """

    text: str
    place: Place
    section: int
    at: int
    words: int


# %% tags=["promote"]
@dataclass(frozen=True)
class Mark:
    """What is no prose: a figure, table, equation or algorithm, with its caption and its content.

    `number` counts marks of one kind from 1; `text` is the TeX of an equation, the cells of a
    table, the words drawn on a figure.
    """

    kind: str
    number: int
    caption: str
    text: str
    labels: tuple[str, ...]
    place: Place
    section: int
    at: int


@dataclass(frozen=True)
class Citation:
    """One work cited at one place; a command with three keys makes three."""

    key: str
    place: Place
    section: int
    at: int


@dataclass(frozen=True)
class Reference:
    """A mention of a label (`fig:pipeline`) or of a number (`figure 2`)."""

    label: str
    place: Place
    section: int


# %% [markdown]
# Each item knows the index of its section, and `at`, the number of words before it. That is what
# puts the marks of the figure in their places.


# %% tags=["promote"]
def _counted(count: int, name: str) -> str:
    return f"{count:,} {name if count != 1 else name.removesuffix('s')}"


# %% tags=["promote"]
@dataclass(frozen=True)
class Draft:
    """A paper as a program sees it ($D$ in the lesson), everything in reading order.

    `marks` are the figures, tables, equations and algorithms together; `faults` the errors of
    reading.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    paragraphs: tuple[Paragraph, ...]
    marks: tuple[Mark, ...]
    citations: tuple[Citation, ...]
    references: tuple[Reference, ...]
    faults: tuple[Finding, ...]

    @cached_property
    def figures(self) -> tuple[Mark, ...]:
        return self._of_kind("figure")

    @cached_property
    def tables(self) -> tuple[Mark, ...]:
        return self._of_kind("table")

    @cached_property
    def equations(self) -> tuple[Mark, ...]:
        return self._of_kind("equation")

    @cached_property
    def algorithms(self) -> tuple[Mark, ...]:
        return self._of_kind("algorithm")

    @property
    def words(self) -> int:
        """Words of prose; those of headings and captions are not among them."""
        return sum(paragraph.words for paragraph in self.paragraphs)

    def _of_kind(self, kind: str) -> tuple[Mark, ...]:
        return tuple(mark for mark in self.marks if mark.kind == kind)

    def __str__(self) -> str:
        names = ("sections", "paragraphs", "figures", "tables", "equations", "citations", "faults")
        counts = ", ".join(_counted(len(getattr(self, name)), name) for name in names)
        return f"{self.name}: {_counted(self.words, 'words')}, {counts}"


# %% [markdown]
# ### What a word is
#
# What is a word (Equation 1)? A run of letters in any script that has spaces, with hyphens and
# apostrophes inside. Formulas and citations stand in the text of a paragraph as `$…$` and `[@key]`,
# in LaTeX and in Markdown alike, and do not count.

# %% tags=["promote"]
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NO_PROSE = re.compile(r"\$[^$]*\$|\[[@#][^\[\]]*\]")


# %% tags=["promote", "exercise"]
def count_words(text: str) -> int:
    """How many words of prose a text holds (|p| in equation 1): no formulas, citations or numbers.

    >>> count_words("A well-known bound, $x < 1$, holds in 3 cases [@knuth1984].")
    6
    """
    return len(_WORD.findall(_NO_PROSE.sub(" ", text)))


# %% tags=["check"]
assert count_words("Two words") == 2, "words are separated by spaces"
assert count_words("a well-known author's view") == 4, "hyphens and apostrophes stay inside a word"
assert count_words("if $x_i = y$ then [@a; @b] stop") == 3, "formulas and citations are no words"
assert count_words("in 3 of 10 cases") == 3, "numbers are no words"
assert count_words("naïve Größe, 图") == 3, "letters of any alphabet make words"

# %% [markdown]
# ### Reading a file
#
# A file on somebody's disk may be anything. What is no text at all raises `DraftError`, one line; what
# can be read after all (an old encoding) is a finding.

# %% tags=["promote"]
_MOST_BYTES = 20_000_000  # a thesis with all its chapters is below 2 MB


def _decoded(data: bytes, name: str) -> tuple[str, Finding | None]:
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        place = Place(name, data[: error.start].count(b"\n") + 1)
        found = f"byte 0x{data[error.start]:02x} is not UTF-8; the file was read as Latin-1"
        return data.decode("latin-1"), Finding("reading", "error", place, found, "UTF-8")


def _read_source(path: Path, name: str) -> tuple[str, Finding | None]:
    """A file's text with plain line ends, and a finding where it is not UTF-8.

    Raises DraftError, in one line that begins with `name`, for what is no text.
    """
    try:
        if path.is_dir():
            inside = ", ".join(sorted(p.name for p in path.glob("*.tex"))[:3])
            hint = f" such as {inside}" if inside else ""
            raise DraftError(f"{name}: is a folder; expected a file{hint}")
        if not path.is_file():
            raise DraftError(f"{name}: no such file")
        if path.stat().st_size > _MOST_BYTES:
            raise DraftError(
                f"{name}: more than {_MOST_BYTES // 10**6} MB; expected a draft's text"
            )
        data = path.read_bytes()
    except OSError as error:
        raise DraftError(f"{name}: {error.strerror or 'cannot be read'}") from None
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise DraftError(
            f"{name}:{line}: a NUL byte; expected text, this is a binary file or UTF-16"
        )
    if not data.strip():
        raise DraftError(f"{name}: is empty; expected a draft")
    text, fault = _decoded(data.removeprefix(b"\xef\xbb\xbf"), name)
    return text.replace("\r\n", "\n").replace("\r", "\n"), fault


# %% [markdown]
# Both readers, for LaTeX and for Markdown, write down what they see on one page. It counts words as
# they pass, and numbers marks of each kind.


# %% tags=["promote"]
_NUMBERED = re.compile(r"\b(Fig(?:ure|\.)?|Table|Tab\.|Eq(?:uation|\.)?|Algorithm)\s*\(?(\d+)\)?")


def _numbered(text: str) -> list[str]:
    """Figures and the like named by number, such as `figure 2`."""
    kinds = {"f": "figure", "t": "table", "e": "equation", "a": "algorithm"}
    return [f"{kinds[word[0].lower()]} {number}" for word, number in _NUMBERED.findall(text)]


# %% tags=["promote"]
class _Page:
    """What has been read so far; the readers of both formats write into one."""

    def __init__(self):
        self.title, self.appendix = "", False
        self.sections, self.paragraphs, self.marks = [], [], []
        self.citations, self.references, self.faults = [], [], []
        self.kinds, self.alike = Counter(), Counter()  # marks by kind, faults by what was found
        self.at = self.running = self.last = 0  # words before, and in, the present paragraph

    def heading(self, level: int, title: str, place: Place) -> None:
        title = " ".join(title.split())
        self.sections.append(Section(title, level, place, self.at, self.appendix))

    def here(self, place: Place) -> int:
        """The index of the present section; text before any heading opens one without a title."""
        if not self.sections:
            self.heading(1, "", place)
        return len(self.sections) - 1

    def paragraph(self, text: str, place: Place) -> None:
        text, self.running = " ".join(text.split()), 0
        if re.search(r"\w", text):
            words = count_words(text)
            self.paragraphs.append(Paragraph(text, place, self.here(place), self.at, words))
            self.at += words
            self.refer(_numbered(text), place)

    def position(self) -> int:
        self.last = max(self.last, self.at + self.running)
        return self.last

    def mark(self, kind: str, caption: str, text: str, labels: Iterable[str], place: Place) -> None:
        self.kinds[kind] += 1
        words = (" ".join(caption.split()), " ".join(text.split()))
        where = (tuple(labels), place, self.here(place), self.position())
        self.marks.append(Mark(kind, self.kinds[kind], *words, *where))

    def cite(self, keys: Iterable[str], place: Place) -> None:
        at = self.position()
        self.citations += [Citation(key, place, self.here(place), at) for key in keys]

    def refer(self, labels: Iterable[str], place: Place) -> None:
        self.references += [Reference(label, place, self.here(place)) for label in labels]

    def fault(self, found: str, wanted: str, place: Place) -> None:
        """Note an error of reading; of many alike in one file the first three are kept."""
        self.alike[found, place.file] += 1
        if self.alike[found, place.file] <= 3:
            self.faults.append(Finding("reading", "error", place, found, wanted))

    def draft(self, name: str) -> Draft:
        for (found, file), count in self.alike.items():
            if count > 3:
                like = [
                    i for i, f in enumerate(self.faults) if (f.found, f.place.file) == (found, file)
                ]
                more = f"{found} ({count - 3} times more)"
                self.faults[like[-1]] = replace(self.faults[like[-1]], found=more)
        lists = (self.sections, self.paragraphs, self.marks, self.citations, self.references)
        return Draft(name, self.title, *map(tuple, lists), tuple(self.faults))


# %% tags=["promote"]
_KINDS = ("figure", "table", "equation", "algorithm")


# %% [markdown]
# ### LaTeX: hide, then cut into tokens
#
# Comments and verbatim text would mislead everything that follows. They are overwritten, not
# removed, so that every line keeps its number.

# %% tags=["promote"]
_HIDDEN = re.compile(
    r"\\(?:verb\*?|lstinline)([^A-Za-z\s*{\[])[^\n]{0,2000}?\1"
    r"|\\begin\{(verbatim\*?|Verbatim|lstlisting|minted|comment|filecontents\*?)\}"
    r"|\\iffalse(?![A-Za-z@])|\\.|%[^\n]*",
    re.DOTALL,
)


def _hide(text: str) -> tuple[str, list[tuple[str, int]]]:
    """Overwrite comments and verbatim text with NULs, which no source holds; lines stay lines.

    Returns the text up to \\end{document}, and the name and position of what is never closed.
    """
    parts, unclosed, done, position = [], [], 0, 0
    while match := _HIDDEN.search(text, position):
        start, position = match.span()
        if match[2] or match[0] == r"\iffalse":
            closing = rf"\end{{{match[2]}}}" if match[2] else r"\fi"
            end = text.find(closing, position)
            start = position
            if end < 0:
                unclosed.append((match[2] or "iffalse", match.start()))
            position = len(text) if end < 0 else end
        elif match[0][0] == "\\" and not match[1]:
            continue
        parts += [text[done:start], re.sub(r"[^\n]", "\0", text[start:position])]
        done = position
    hidden = "".join([*parts, text[done:]])
    return hidden.partition(r"\end{document}")[0], unclosed


def _closing_braces(text: str) -> dict[int, int]:
    """Where the group that opens at a position closes, for all groups that do."""
    closing, opened = {}, []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


# %%
print(_hide("A % note \\section{B}\nC \\verb|\\cite{x}| D 50\\%")[0].replace("\0", "·"))

# %% [markdown]
# A token is a command, a brace, a dollar sign, a blank line, or a run of plain text. The `++` and
# `*+` in the pattern are *possessive*: they never give back what they took, so no text makes the
# search go back and forth.

# %% tags=["promote"]
_TOKEN = re.compile(
    r"""(?P<hidden>\0+(?:\n[ \t]*+(?!\n))?)       # a comment takes its line's end with it
    |(?P<gap>\n[ \t]*+\n\s*+)                     # a blank line ends the paragraph
    |(?P<edge>\\(?:begin|end)[ \t]*+\{[^{}\\$\n]*+\})
    |(?P<word>\\[A-Za-z@]++\*?)
    |(?P<sign>\\.?)
    |(?P<open>\{)|(?P<close>\})|(?P<dollar>\$\$?)
    |(?P<text>[^\\{}$\0\n]++|\n)""",
    re.DOTALL | re.VERBOSE,
)


@dataclass
class _Source:
    """A text being read, a file or the body of a macro, and how far."""

    text: str
    file: str
    line: int
    is_file: bool
    position: int = 0
    counted: int = 0

    def __post_init__(self):
        self.closing = _closing_braces(self.text)

    def line_at(self, position: int) -> int:
        if self.is_file:  # a macro's body stands where the macro was called
            self.line += self.text.count("\n", self.counted, position)
            self.counted = position
        return self.line


# %% tags=["promote"]
@dataclass(eq=False)
class _Open:
    """A group, formula or environment not closed yet; `sink` catches its text for `close`."""

    name: str  # {, $, $$, \[ or \(, or the environment's name
    place: Place
    sink: list[str] | None = None
    close: Callable[[str], None] | None = None
    labels: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


# %%
[(m.lastgroup, m[0]) for m in _TOKEN.finditer(r"See \emph{it} in $x$.")]

# %% [markdown]
# ### LaTeX: two stacks
#
# Sources lie on one stack: the main file, on top of it a file that it includes, on top of that
# the body of a macro. We read the topmost and go back when it is used up. What is open lies on the
# other stack: groups, formulas, environments. Text goes to the topmost that *catches* text (a
# caption, a formula) or else to the paragraph.


# %% tags=["promote"]
class _Tex:
    """The state of reading LaTeX: sources inside sources, and what is open, as two stacks.

    Both are lists, so that ten thousand nested braces need no deeper calls than one.
    """

    def __init__(self, root: Path):
        self.root, self.page, self.place = root, _Page(), Place("", 1)
        self.sources, self.macros, self.environments = [], {}, {}
        self.budget, self.files = 2_000_000, 500  # characters from macros, and files, at most
        self.in_body = True
        self.reset()

    def reset(self) -> None:
        self.open, self.names = [], Counter()
        self.catching, self.prose = [], []  # open elements with a sink; the paragraph's pieces
        self.formula = self.float = self.began = None

    def write(self, text: str) -> None:
        if self.catching:
            self.catching[-1].sink.append(text)
            return
        if self.began is None and text.strip():
            self.began = self.place
        self.page.running += count_words(text)
        self.prose.append(text)

    def end_paragraph(self) -> None:
        if self.catching:
            self.write(" ")
        elif self.prose:
            self.page.paragraph("".join(self.prose), self.began or self.place)
            self.prose, self.began = [], None

    def begin(self, name: str, close: Callable[[str], None] | None = None) -> _Open:
        """Open an element; with `close`, it catches the text up to its end."""
        element = _Open(name, self.place, [] if close else None, close)
        self.open.append(element)
        self.names[name] += 1
        if close:
            self.catching.append(element)
        return element

    def end(self) -> None:
        """Close what was opened last."""
        element = self.open.pop()
        self.names[element.name] -= 1
        self.formula = None if element is self.formula else self.formula
        self.float = None if element is self.float else self.float
        if element.close:
            self.catching.pop()
            element.close("".join(element.sink))

    def end_to(self, element: _Open) -> None:
        """Close `element`; what is still open inside it is never closed."""
        while self.open[-1] is not element:
            self.never_closed(self.open[-1])
            self.end()
        self.end()

    def abandon(self, element: _Open) -> None:
        """Close `element`, and all inside it, where it cannot go on."""
        self.never_closed(element)
        while self.open[-1] is not element:
            self.end()
        self.end()

    def never_closed(self, element: _Open) -> None:
        what = rf"\begin{{{element.name}}}" if element.name[:1].isalpha() else element.name
        self.fault(f"{what} is never closed", "its other end", element.place)

    def fault(self, found: str, wanted: str, place: Place | None = None) -> None:
        self.page.fault(found, wanted, place or self.place)


# %% [markdown]
# A command may take arguments: a group in braces, one sign, or an option in square brackets. Where a
# group closes was found once for each source, so that reading an argument costs no search.


# %% tags=["promote"]
def _current(tex: _Tex) -> _Source | None:
    """The source to read on in: a macro's body that is used up hands over to the text around it."""
    while tex.sources and tex.sources[-1].position >= len(tex.sources[-1].text):
        if tex.sources[-1].is_file:
            break
        tex.sources.pop()
    return tex.sources[-1] if tex.sources else None


_SPACE = re.compile(r"(?:[ \t\0]|\n(?![ \t]*\n))*+")
_SINGLE = re.compile(r"\\[A-Za-z@]+|\\.|[^\s{}\\\0]", re.DOTALL)
_COMMENT = re.compile(r"\0+(?:\n[ \t]*+)?")
_OPTION = re.compile(r"[ \t\0]*+\n?[ \t]*+\[")
_OPTION_END = re.compile(r"[\]{]")


def _argument(tex: _Tex) -> str | None:
    """The next argument, a group or one sign, or None where there is none."""
    source = _current(tex)
    if source is None:
        return None
    start = _SPACE.match(source.text, source.position).end()
    if source.text[start : start + 1] == "{":
        end = source.closing.get(start)
        if end is None:
            return None
        source.position = end + 1
        return _COMMENT.sub("", source.text[start + 1 : end])
    if single := _SINGLE.match(source.text, start):
        source.position = single.end()
        return single[0]
    return None


# %% tags=["promote"]
def _option(tex: _Tex) -> str | None:
    """The next argument in square brackets, or None; what is longer than 2000 signs is prose."""
    source = _current(tex)
    if source is None or not (match := _OPTION.match(source.text, source.position)):
        return None
    position = start = match.end()
    while sign := _OPTION_END.search(source.text, position, start + 2000):
        if sign[0] == "]":
            source.position = sign.end()
            return _COMMENT.sub("", source.text[start : sign.start()])
        position = source.closing.get(sign.start(), sign.start()) + 1
    return None


def _skip(tex: _Tex, specification: str) -> None:
    """Pass over arguments, written as pylatexenc does: `*` a star, `[` optional, `{` mandatory."""
    for kind in specification:
        if kind == "[":
            _option(tex)
        elif kind == "{":
            _argument(tex)


def _capture(tex: _Tex, close: Callable[[str], None]) -> _Open | None:
    """Read the next group like any other text, and hand what it says to `close` at its end."""
    source = _current(tex)
    start = _SPACE.match(source.text, source.position).end() if source else 0
    if source is None or start not in source.closing:
        return None
    source.position = start + 1
    return tex.begin("{", close)


# %% [markdown]
# ### LaTeX: macros and files
#
# `\newcommand{\be}{\begin{equation}}` is how people save typing, and how patterns go blind. A macro
# is kept as its body, and where it is called the body becomes the next source to read. A budget
# ends macros that call themselves.

# %% tags=["promote"]
_PARAMETERS = re.compile(r"(?:#[1-9])*")


def _count(option: str | None) -> int:
    return int(option) if option and re.fullmatch("[1-9]", option) else 0


def _define(tex: _Tex, name: str) -> None:
    r"""\newcommand and its kin: keep a macro as (number of arguments, default, body)."""
    target = (_argument(tex) or "").strip()
    count, default, source = 0, None, _current(tex)
    if name in ("def", "gdef", "edef", "xdef"):
        body = None
        if source:
            parameters = _PARAMETERS.match(source.text, source.position)
            source.position, count = parameters.end(), len(parameters[0]) // 2
            # Parameters with delimiters (`\def\a#1.{…}`) are not followed.
            is_plain = source.text[source.position : source.position + 1] == "{"
            body = _argument(tex) if is_plain else ""
    elif name == "let":
        body = _argument(tex)
        body = _argument(tex) if body == "=" else body
    elif name == "DeclareMathOperator":
        body = rf"\operatorname{{{_argument(tex) or ''}}}"
    elif name == "NewDocumentCommand":
        count, body = (_argument(tex) or "").count("m"), _argument(tex)
    else:
        count, default, body = _count(_option(tex)), _option(tex), _argument(tex)
    if body is None or not re.fullmatch(r"\\(?:[A-Za-z@]+|.)", target):
        tex.fault(rf"\{name} that defines nothing", "a name and a body in closed braces")
    else:
        tex.macros[target[1:]] = (count, default, body)


# %% tags=["promote"]
def _define_environment(tex: _Tex, name: str) -> None:
    target, count, default = _argument(tex), _count(_option(tex)), _option(tex)
    before, after = _argument(tex), _argument(tex)
    if target is None or before is None or after is None:
        tex.fault(rf"\{name} that defines nothing", "a name and two bodies in closed braces")
    else:
        tex.environments[target] = ((count, default, before), (0, None, after))


def _expand(tex: _Tex, macro: tuple[int, str | None, str], name: str) -> None:
    """Put the macro's body, with its arguments in place, where it was called."""
    count, default, body = macro
    arguments = []
    if count and default is not None:
        option = _option(tex)
        arguments = [default if option is None else option]
    arguments += [_argument(tex) or "" for _ in range(count - len(arguments))]
    text = re.sub(r"#([1-9])", lambda m: "".join(arguments[int(m[1]) - 1 : int(m[1])]), body)
    _current(tex)
    # A macro that calls itself would go on for ever; 20 keeps a short body from being free.
    tex.budget -= 20 + len(text)
    if tex.budget < 0 or len(tex.sources) > 200:
        tex.fault(rf"\{name} expands without end", "a macro that does not call itself")
    elif text:
        tex.sources.append(_Source(text, tex.place.file, tex.place.line, is_file=False))


# %% [markdown]
# Files are found from the main file's folder, with or without `.tex`. A circle, a missing file or a
# path that leads outside the folder is a finding, and reading goes on.

# %% tags=["promote"]
_BARE_NAME = re.compile(r"[ \t]*([^\s{}\\\0]+)")


def _path(tex: _Tex, target: str) -> Path:
    r"""The file that \input{target} means; raises DraftError where there is none."""
    if os.path.isabs(target) or re.match(r"[A-Za-z]:", target):
        raise DraftError("an absolute path, which another machine does not have")
    folders = [tex.root, (tex.root / tex.place.file).parent]
    try:
        paths = [folder / (target + suffix) for folder in folders for suffix in (".tex", "")]
        path = next((p for p in paths if p.is_file()), folders[0] / target)
        if not path.resolve().is_relative_to(tex.root.resolve()):
            raise DraftError("a path that leaves the draft's folder")
    except (OSError, RuntimeError):  # a name too long, a loop of links
        raise DraftError("not a file's name") from None
    return path


def _open_file(tex: _Tex, path: Path) -> None:
    """Push a file's text; raises DraftError where there is none to read."""
    name = Path(os.path.relpath(path, tex.root)).as_posix()
    if any(source.is_file and source.file == name for source in tex.sources):
        raise DraftError("a circle, the file includes itself")
    tex.files -= 1
    if tex.files < 0 or len(tex.sources) > 200:
        raise DraftError("one file too many, the draft includes without end")
    text, fault = _read_source(path, name)
    hidden, unclosed = _hide(text)
    tex.page.faults += [fault] if fault else []
    tex.sources.append(_Source(hidden, name, 1, is_file=True))
    for environment, position in unclosed:
        place = Place(name, text.count("\n", 0, position) + 1)
        tex.fault(f"{environment} is never closed and hides the rest of the file", "its end", place)


# %% tags=["promote"]
def _include(tex: _Tex, name: str) -> None:
    r"""\input and its kin: read on in another file."""
    folder = (_argument(tex) or "") if name in ("import", "subimport") else ""
    source = _current(tex)
    bare = _BARE_NAME.match(source.text, source.position) if source and name == "input" else None
    if bare:
        source.position = bare.end()
    target = (bare[1] if bare else _argument(tex) or "").strip().strip('"')
    if not target:
        tex.fault(rf"\{name} without a file", rf"\{name}{{file}}")
        return
    try:
        _open_file(tex, _path(tex, folder + target))
    except DraftError as error:
        what = str(error).rpartition(": ")[2]
        tex.fault(rf"\{name}{{{target}}}: {what}", "a readable file in the draft's folder")


# %% [markdown]
# ### LaTeX: what the tokens mean
#
# First environments. A `\begin` inside an unfinished formula, or an `\end` with no beginning, is
# noted; the reader then does what TeX does, it closes what cannot go on.


# %% tags=["promote"]
def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


_LEVELS = {"part": 0, "chapter": 0, "section": 1, "subsection": 2, "subsubsection": 3}
_FLOATS = {
    **dict.fromkeys(("figure", "wrapfigure", "SCfigure", "sidewaysfigure"), "figure"),
    **dict.fromkeys(("table", "wraptable", "longtable", "sidewaystable"), "table"),
    **dict.fromkeys(("algorithm", "algorithm2e"), "algorithm"),
}
_DISPLAYS = _set(
    "equation align gather multline eqnarray displaymath alignat flalign dmath IEEEeqnarray"
)
# What they hold is no prose; inside a float it is what the float shows.
_SILENT = _set(
    "tabular tabularx tabulary array tikzpicture pgfpicture picture thebibliography verbatim"
    " Verbatim lstlisting minted comment filecontents algorithmic keywords IEEEkeywords CCSXML"
    " titlepage"
)
# They go on with the paragraph that they stand in.
_RUNS_ON = _set("itemize enumerate description center small minipage multicols")
_ENVIRONMENT_ARGUMENTS = {
    **{"wrapfigure": "[{[{", "wraptable": "[{[{", "longtable": "[{", "tabular": "[{"},
    **{"tabularx": "{[{", "tabulary": "{[{", "array": "[{", "alignat": "{", "minipage": "[[[{"},
    **{"subfigure": "[{", "subtable": "[{", "multicols": "{", "thebibliography": "{"},
    **dict.fromkeys(_DISPLAYS - {"alignat"}, ""),
}


def _close_float(tex: _Tex, kind: str, element: _Open, text: str) -> None:
    tex.page.mark(kind, " ".join(element.captions), text, element.labels, element.place)


def _close_display(tex: _Tex, element: _Open, text: str) -> None:
    tex.page.mark("equation", "", text, element.labels, element.place)
    tex.write(" ")


# %% tags=["promote"]
def _begin_display(tex: _Tex, name: str) -> None:
    tex.formula = tex.begin(name, lambda text: None)
    tex.formula.close = partial(_close_display, tex, tex.formula)


def _begin_environment(tex: _Tex, name: str, token: str) -> None:
    base = name.rstrip("*")
    if tex.formula and (base in _DISPLAYS or base in _FLOATS):
        tex.abandon(tex.formula)
    if tex.formula:
        tex.write(token)
        tex.begin(name)
        return
    _skip(tex, _ENVIRONMENT_ARGUMENTS.get(base, "["))
    if base in _DISPLAYS:
        _begin_display(tex, name)
    elif base in _FLOATS and not tex.float:
        tex.float = tex.begin(name, lambda text: None)
        tex.float.close = partial(_close_float, tex, _FLOATS[base], tex.float)
    elif base in _SILENT and not tex.float:
        tex.begin(name, lambda text: None)
    else:
        if base not in _RUNS_ON:
            tex.end_paragraph()
        if base == "abstract":
            tex.page.heading(1, "Abstract", tex.place)
        tex.begin(name)


def _end_environment(tex: _Tex, name: str, token: str) -> None:
    if not tex.names[name]:
        tex.fault(f"{token} closes nothing", rf"\begin{{{name}}} before it")
        return
    if tex.formula and tex.formula.name != name:
        tex.write(token)
    element = next(element for element in reversed(tex.open) if element.name == name)
    tex.end_to(element)
    if not (tex.formula or element.close or name.rstrip("*") in _RUNS_ON):
        tex.end_paragraph()


# %% tags=["promote"]
def _on_edge(tex: _Tex, token: str) -> None:
    r"""\begin{…} or \end{…}."""
    verb, _, name = token[1:-1].partition("{")
    begins, name = verb.strip() == "begin", name.strip()
    if name == "document" and begins:
        tex.in_body = True
        tex.reset()
    elif not tex.in_body or name == "document":
        return
    elif name in tex.environments:
        _expand(tex, tex.environments[name][0 if begins else 1], name)
    elif begins:
        _begin_environment(tex, name, token)
    else:
        _end_environment(tex, name, token)


# %% [markdown]
# Then signs: dollars, braces, accents.


# %% tags=["promote"]
def _close_inline(tex: _Tex, text: str) -> None:
    tex.write(f"${text.strip()}$")


def _on_dollar(tex: _Tex, token: str) -> None:
    formula = tex.formula
    if formula is None and token == "$$":
        _begin_display(tex, token)
    elif formula is None:
        tex.formula = tex.begin(token, partial(_close_inline, tex))
    elif formula is tex.open[-1] and formula.name == token:
        tex.end()
    elif formula is tex.open[-1] and formula.name == "$":  # $a$$b$
        tex.end()
        _on_dollar(tex, "$")
    else:  # \mbox{if $x$} inside a formula
        tex.write(" ")


def _on_open(tex: _Tex, token: str) -> None:
    if tex.formula:
        tex.write(token)
    tex.begin("{")


def _on_close(tex: _Tex, token: str) -> None:
    formula = tex.formula
    if formula and formula is tex.open[-1] and formula.name == "$" and tex.names["{"]:
        tex.abandon(formula)  # {a $x} y: the brace ends what the dollar left open
    if not tex.open or tex.open[-1].name != "{":
        tex.fault("} closes nothing", "{ before it")
        return
    tex.end()
    if tex.formula:
        tex.write(token)


# %% tags=["promote"]
def _on_gap(tex: _Tex, _token: str) -> None:
    if tex.formula:  # TeX allows no blank line in a formula either
        tex.abandon(tex.formula)
    tex.end_paragraph()


_PLAIN = str.maketrans({"~": " ", "&": " "})
_SIGNS = {r"\%": "%", r"\&": "&", r"\#": "#", r"\_": "_", r"\-": "", r"\/": ""}


def _on_text(tex: _Tex, token: str) -> None:
    tex.write(token if tex.formula else token.translate(_PLAIN))


@lru_cache(maxsize=4096)
def _as_text(tex: str) -> str:
    r"""What a few signs of TeX say as text, from pylatexenc's tables: é for \'{e}, … for \ldots."""
    try:
        text = LatexNodes2Text().latex_to_text(tex).strip()
    except Exception:  # asked for a macro without its arguments, it may raise anything
        return ""
    return text if len(text) <= 8 else ""  # \maketitle and the like say more than a sign


# %% tags=["promote"]
def _on_sign(tex: _Tex, token: str) -> None:
    r"""A control sign: \[ \] \( \) open and close formulas, \' sets an accent, \% is text."""
    formula, sign = tex.formula, token[1:]
    if sign and sign in "[(" and not formula:
        if sign == "[":
            _begin_display(tex, token)
        else:
            tex.formula = tex.begin(token, partial(_close_inline, tex))
    elif sign and sign in "])":
        if formula and formula.name == {"]": r"\[", ")": r"\("}[sign]:
            tex.end_to(formula)
        elif not formula:
            tex.fault(f"{token} closes nothing", "its other end before it")
    elif sign in tex.macros:
        _expand(tex, tex.macros[sign], sign)
    elif formula:
        tex.write(token)
    elif sign and sign in "'\"^`~=.":
        tex.write(_as_text(token + "{" + (_argument(tex) or "")[:20] + "}"))
    elif sign == "\\":
        _option(tex)
        tex.write(" ")
    else:
        tex.write(_SIGNS.get(token, " "))


# %% [markdown]
# And words: the commands that make the structure of a paper. Whatever is in none of these tables is
# passed over, its arguments read as text, which is right for `\emph` and for most macros of packages.

# %% tags=["promote"]
_CITE = re.compile(
    "(?:short|paren|text|auto|foot|smart|super|full|footfull|online|Paren|Text|Auto)?[cC]ites?"
    "(?:p|t|alp|alt|author|year|yearpar|num|text|A|N)?"
)
_REFER = _set("ref eqref cref Cref autoref nameref pageref vref Vref subref")
_DEFINE = _set(
    "newcommand renewcommand providecommand DeclareRobustCommand DeclareMathOperator def gdef"
    " edef xdef let NewDocumentCommand"
)
_INCLUDE = _set("input include subfile subfileinclude import subimport")
# What to pass over before the text goes on, written as pylatexenc does.
_PASS = {
    **{"href": "{", "textcolor": "[{", "colorbox": "[{", "fcolorbox": "[{{", "resizebox": "{{"},
    **{"scalebox": "{", "rotatebox": "[{", "raisebox": "{[[", "parbox": "[[[{", "makebox": "[["},
    **{"multicolumn": "{{", "multirow": "[{[{", "texorpdfstring": "{", "nocite": "{", "url": "{"},
    **dict.fromkeys(("author", "date", "thanks", "affiliation", "institute", "email"), "[{"),
    **dict.fromkeys(("includegraphics", "usepackage", "documentclass", "bibitem", "color"), "[{"),
    **dict.fromkeys(("vspace", "hspace", "bibliography", "bibliographystyle", "keywords"), "{"),
    **dict.fromkeys(("setlength", "addtolength", "setcounter", "addtocounter"), "{{"),
    **dict.fromkeys(("hypersetup", "pagestyle", "thispagestyle", "addbibresource", "cline"), "{"),
    **dict.fromkeys(("newtheorem", "definecolor"), "{[{{"),
    **{"lstset": "{", "cmidrule": "[{", "fontsize": "{{", "tikzset": "{", "graphicspath": "{"},
}


@lru_cache(maxsize=4096)
def _arguments(name: str) -> str:
    """What arguments a macro takes, from pylatexenc's tables; an option where it knows none."""
    known = get_default_latex_context_db().get_macro_spec(name)
    return known.args_parser.argspec or "" if known and known.args_parser else "["


# %% tags=["promote"]
def _text_word(tex: _Tex, name: str) -> None:
    """A control word outside formulas that names no part of the structure."""
    if name in ("par", "paragraph", "subparagraph"):
        tex.end_paragraph()
    elif name == "appendix":
        tex.page.appendix = True
    elif name == "abstract":
        tex.end_paragraph()
        tex.page.heading(1, "Abstract", tex.place)
    elif name == "ensuremath":
        tex.formula = _capture(tex, partial(_close_inline, tex))
    elif name in _PASS:
        _skip(tex, _PASS[name])
    elif name in ("begin", "end"):
        tex.fault(rf"\{name} without a name", rf"\{name}{{environment}}")
    elif len(name) == 1 and name in "cvuHkrbdt":
        tex.write(_as_text(rf"\{name}{{{(_argument(tex) or '')[:20]}}}"))
    else:
        if "[" in _arguments(name):
            _option(tex)
        sign = "" if "{" in _arguments(name) else _as_text(rf"\{name} ")
        source = _current(tex)
        if sign and source:  # TeX ends a command's name at a space, and drops the space
            source.position = _SPACE.match(source.text, source.position).end()
        tex.write(" " if name == "item" else sign)


def _set_title(tex: _Tex, text: str) -> None:
    tex.page.title = " ".join(re.sub(r"\\[A-Za-z]+|[\\{}~\0]", " ", text).split())


def _heading(tex: _Tex, name: str) -> None:
    if tex.catching:  # a heading inside a figure or a formula: that one was never closed
        tex.abandon(tex.catching[0])
    tex.end_paragraph()
    _option(tex)
    place, level = tex.place, _LEVELS[name]
    if not _capture(tex, lambda text: tex.page.heading(level, text, place)):
        tex.fault(rf"\{name} without a title in closed braces", rf"\{name}{{Title}}")


# %% tags=["promote"]
def _label(tex: _Tex) -> None:
    label, holder = _argument(tex), tex.formula or tex.float
    if label is None:
        tex.fault(r"\label without a name", r"\label{name}")
    elif holder:
        holder.labels.append(label.strip())


def _names(argument: str) -> list[str]:
    return [name for part in argument.split(",") if (name := " ".join(part.split()))]


def _refer(tex: _Tex, argument: str | None) -> None:
    if argument is None:
        tex.fault("a reference without a label", r"\ref{label}")
        return
    tex.page.refer(_names(argument), tex.place)
    if not tex.formula:
        tex.write("".join(f"[#{label}]" for label in _names(argument)))


def _cite(tex: _Tex) -> None:
    while _option(tex) is not None:
        pass
    argument = _argument(tex)
    if argument is None:
        tex.fault("a citation without a key", r"\cite{key}")
        return
    tex.page.cite(_names(argument), tex.place)
    if not tex.formula:
        tex.write("[" + "; ".join(f"@{key}" for key in _names(argument)) + "]")


def _close_caption(tex: _Tex, kind: str, place: Place, text: str) -> None:
    tex.page.mark(kind, text, "", (), place)


# %% tags=["promote"]
def _caption(tex: _Tex, name: str) -> None:
    kind = _argument(tex) if name == "captionof" else None
    short, holder, place = _option(tex), tex.float, tex.place
    if name == "subfloat":
        if holder and short:
            holder.captions.append(short)
        return
    if holder:
        close = holder.captions.append
    elif kind in _KINDS:
        close = partial(_close_caption, tex, kind, place)
    else:
        close = str.strip  # the caption of a listing, or of nothing: no mark
    if not _capture(tex, close):
        tex.fault(r"\caption without words in closed braces", r"\caption{words}")


# %% tags=["promote"]
def _on_word(tex: _Tex, token: str) -> None:
    """A control word: a definition, structure, a macro of the draft, part of a formula, or text."""
    name = token[1:].rstrip("*")
    if name in _DEFINE:
        _define(tex, name)
    elif name in ("newenvironment", "renewenvironment"):
        _define_environment(tex, name)
    elif name in _INCLUDE:
        _include(tex, name)
    elif name == "title":
        _option(tex)
        _set_title(tex, _argument(tex) or "")
    elif not tex.in_body:
        _skip(tex, _PASS.get(name, ""))
    elif name in _LEVELS:
        _heading(tex, name)
    elif name == "label":
        _label(tex)
    elif name in _REFER or name == "hyperref":
        _refer(tex, _option(tex) if name == "hyperref" else _argument(tex))
    elif _CITE.fullmatch(name):
        _cite(tex)
    elif name in ("caption", "captionof", "subcaption", "subfloat", "subcaptionbox"):
        _caption(tex, name)
    elif name in tex.macros:
        _expand(tex, tex.macros[name], name)
    elif tex.formula:
        tex.write(token)
    else:
        _text_word(tex, name)


# %% [markdown]
# The loop itself: match a token, note where we are, hand it on.

# %% tags=["promote"]
_HANDLERS = {
    **{"edge": _on_edge, "word": _on_word, "sign": _on_sign, "open": _on_open, "close": _on_close},
    **{"dollar": _on_dollar, "gap": _on_gap, "text": _on_text},
}


def _read_latex(path: Path) -> Draft:
    """Read a LaTeX draft from its main file, one token after the other."""
    tex = _Tex(path.parent)
    _open_file(tex, path)
    main = tex.sources[0].text
    tex.in_body = r"\documentclass" not in main or r"\begin{document}" not in main
    while source := _current(tex):
        match = _TOKEN.match(source.text, source.position)
        if match is None:  # the end of a file
            tex.sources.pop()
            continue
        kind = match.lastgroup
        tex.place = Place(source.file, source.line_at(source.position))
        source.position = match.end()
        if kind in ("word", "edge") or (tex.in_body and kind != "hidden"):
            _HANDLERS[kind](tex, match[0])
    while tex.open:
        tex.never_closed(tex.open[-1])
        tex.end()
    tex.end_paragraph()
    return tex.page.draft(path.name)


# %% [markdown]
# Do the traps still catch anything?


# %%
def read_text(tex, name="main.tex"):
    """Read a draft that is given as text."""
    return read_draft(write_files({"main.tex": "", name: tex}).parent / name)


for trap, tex in traps.items():
    draft = read_text(tex)
    seen = (len([s for s in draft.sections if s.title]), len(draft.citations))
    assert seen == truth[trap], f"{trap}: {seen}"
print(f"{len(traps)} traps, none wrong")

# %% [markdown]
# ### Markdown
#
# markdown-it-py already takes Markdown apart into a flat list of blocks. It knows no formulas,
# so we add two rules to it: one for `$$…$$` on lines of their own, one for `$…$` in the text.

# %% tags=["promote"]
_LONGEST_FORMULA = 100  # lines
_MATH_ENDS = {"$$": "$$", r"\[": r"\]"}


def _math_block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""A markdown-it rule: $$…$$, \[…\] or \begin{equation}…, from its own line to its end."""
    text = state.src[state.bMarks[first] + state.tShift[first] : state.eMarks[first]]
    opened = re.match(r"\$\$|\\\[|\\begin\{(\w+)\*?\}", text)
    if not opened or (opened[1] and opened[1] not in _DISPLAYS):
        return False
    end = _MATH_ENDS.get(opened[0]) or opened[0].replace("begin", "end")
    for line in range(first, min(last, first + _LONGEST_FORMULA)):
        here = state.src[state.bMarks[line] : state.eMarks[line]]
        here = text[opened.end() :] if line == first else here
        if not here.strip() and line > first:
            break
        if end in here:
            if not silent:
                token = state.push("math_block", "", 0)
                token.content, token.map = (
                    state.getLines(first, line + 1, 0, False),
                    [first, line + 1],
                )
                state.line = line + 1
            return True
    return False


_INLINE_MATH = re.compile(r"\$(?![\s$])([^$\n]{1,500}?)(?<!\s)\$(?!\d)|\\\((.{1,500}?)\\\)")


def _math_inline(state: StateInline, silent: bool) -> bool:
    """A markdown-it rule: $…$ without a space inside its ends, so that $5 and $6 stay prices."""
    match = _INLINE_MATH.match(state.src, state.pos)
    if match and not silent:
        state.push("math_inline", "", 0).content = match[1] or match[2]
    state.pos = match.end() if match else state.pos
    return match is not None


# %% tags=["promote"]
def _markdown_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable("table")
    parser.block.ruler.before("fence", "math", _math_block, {"alt": ["paragraph"]})
    parser.inline.ruler.before("escape", "math", _math_inline)
    return parser


# %% [markdown]
# A block is then a heading, a formula, a table, an image alone in its paragraph, or prose. A caption
# is the image's description, or a paragraph beside it that begins with `Figure 1:` or `Table:`.
# Citations are `[@key]`, as pandoc writes them, or `[1, 3–5]`.

# %% tags=["promote"]
_KEYS = re.compile(r"(?<![\w@])@([\w][\w:.#$%&+?<>~/-]*\w|\w)")
_NUMBERS = re.compile(r"\[(\d+(?:\s*[,;–-]\s*\d+)*)\](?!\()")
_LABEL = re.compile(r"\{#([\w:.-]+)[^}\n]*\}")
_CROSS = re.compile(r"(?:fig|tbl|tab|eq|sec|alg|lst):")
_IS_CAPTION = re.compile(r"(?:Fig(?:ure|\.)?|Table|Tab\.)\s*\d+\s*[.:–—]|Table:|:\s")
_FRONT = re.compile(r"---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_LONGEST_LINE = 100_000


def _blocks(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of one outermost block after the other."""
    block = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []
    if block:
        yield block


def _is_image(block: Sequence[Token]) -> bool:
    """Whether the block is a paragraph of images and nothing else (an attribute may follow)."""
    children = block[1].children or [] if len(block) == 3 and block[1].type == "inline" else []
    rest = "".join(
        _LABEL.sub("", c.content) for c in children if c.type not in ("image", "softbreak")
    )
    return any(c.type == "image" for c in children) and not rest.strip()


def _caption_of(block: Sequence[Token]) -> str:
    """What a paragraph such as `*Figure 2: …*` or `Table: …` says; empty for any other block."""
    if block[0].type != "paragraph_open":
        return ""
    text = block[1].content.strip().strip("*_").strip()
    match = _IS_CAPTION.match(text)
    return text[match.end() :].strip() if match else ""


# %% tags=["promote"]
def _inline_text(token: Token) -> str:
    words = {
        "softbreak": "\n",
        "hardbreak": "\n",
        "image": "",
        "html_inline": "",
        "code_inline": "",
    }
    return "".join(
        f"${child.content}$"
        if child.type == "math_inline"
        else words.get(child.type, child.content.replace("$", ""))
        for child in token.children or []
    )


def _markdown_heading(page: _Page, block: Sequence[Token], place: Place) -> None:
    level = int(block[0].tag[1])
    title = _LABEL.sub("", _inline_text(block[1]))
    if level == 1 and not page.sections and not page.title:
        page.title = " ".join(title.split())
        return
    page.appendix = page.appendix or title.strip().lower().startswith("appendix")
    page.heading(max(1, level - 1), title, place)


def _markdown_equation(page: _Page, content: str, place: Place) -> None:
    labels = re.findall(r"\\label\{([^{}]*)\}", content) + _LABEL.findall(content)
    text = re.sub(
        r"\$\$|\\[\[\]]|\\(?:begin|end)\{\w+\*?\}|\\label\{[^{}]*\}|\{#[^}\n]*\}", " ", content
    )
    page.mark("equation", "", text, labels, place)


_WITHOUT_MATH = re.compile(r"\$[^$]*\$")


# %% tags=["promote"]
def _range(numbers: str) -> list[str]:
    """The works of `1, 3–5` one by one."""
    found = []
    for part in re.split(r"[,;]", numbers):
        ends = [int(n[:6]) for n in re.findall(r"\d+", part)]
        found += range(ends[0], min(ends[-1], ends[0] + 50) + 1)
    return [str(number) for number in found]


def _note(page: _Page, text: str, place: Place) -> None:
    """Record the citations `[@key]`, `@key`, `[1, 2]` and the references `@fig:a`."""
    keys = _KEYS.findall(_WITHOUT_MATH.sub("", text))
    page.refer([key for key in keys if _CROSS.match(key)], place)
    page.cite([key for key in keys if not _CROSS.match(key)], place)
    for numbers in _NUMBERS.findall(text):
        page.cite(_range(numbers), place)


def _markdown_float(
    page: _Page, kind: str, block: Sequence[Token], place: Place, caption: str
) -> None:
    text = " ".join(_inline_text(token) for token in block if token.type == "inline")
    images = [c for t in block for c in t.children or [] if c.type == "image"]
    alternative = " ".join(image.content for image in images)
    labels = _LABEL.findall(" ".join(t.content for t in block if t.type == "inline") + caption)
    _note(page, text, place)
    own = caption or (alternative if kind == "figure" else "")
    page.mark(kind, _LABEL.sub("", own), text if kind == "table" else "", labels, place)


_MARKED = re.compile(rf"\[[^\[\]]{{0,300}}@[^\[\]]{{0,300}}\]|{_NUMBERS.pattern}|{_KEYS.pattern}")


def _as_mark(match: re.Match) -> str:
    keys = _range(match[1]) if match[1] else _KEYS.findall(match[0])
    works = "; ".join(f"@{key}" for key in keys if not _CROSS.match(key))
    labels = "".join(f"[#{key}]" for key in keys if _CROSS.match(key))
    return (f"[{works}]" if works else "") + labels


# %% tags=["promote"]
def _as_marks(text: str) -> str:
    """The text with its citations and references written as the LaTeX reader writes them."""
    return _MARKED.sub(_as_mark, text)


def _markdown_text(page: _Page, block: Sequence[Token], place: Place) -> str:
    """The prose of a block, its citations and references noted line by line."""
    texts = []
    for token in block:
        if token.type == "inline":
            first = (token.map or [place.line - 1])[0] + 1
            text = _inline_text(token)
            for number, line in enumerate(text.split("\n")):
                _note(page, line, Place(place.file, first + number))
            texts.append(text)
        elif token.type == "math_block":
            _markdown_equation(page, token.content, Place(place.file, token.map[0] + 1))
    return _as_marks(" ".join(texts))


def _walk_markdown(page: _Page, tokens: Sequence[Token], name: str) -> None:
    """Take the blocks one by one; a list, a quotation or a table is one block."""
    blocks = list(_blocks(tokens))
    captions = [_caption_of(block) for block in blocks]
    for i, block in enumerate(blocks):
        place = Place(name, (block[0].map or [0])[0] + 1)
        if block[0].type == "heading_open":
            _markdown_heading(page, block, place)
        elif block[0].type == "math_block":
            _markdown_equation(page, block[0].content, place)
        elif block[0].type == "table_open" or _is_image(block):
            kind = "table" if block[0].type == "table_open" else "figure"
            near = (captions[j] for j in (i + 1, i - 1) if 0 <= j < len(blocks))
            _markdown_float(page, kind, block, place, next(filter(None, near), ""))
        elif block[0].type not in ("fence", "code_block", "html_block", "hr"):
            text = _markdown_text(page, block, place)
            if not captions[i]:
                page.paragraph(text, place)


# %% tags=["promote"]
def _read_markdown(path: Path) -> Draft:
    """Read a Markdown draft: front matter, headings, images, tables, formulas and citations."""
    page, name = _Page(), path.name
    text, fault = _read_source(path, name)
    page.faults += [fault] if fault else []
    if front := _FRONT.match(text):
        named = re.search(r"^title:\s*[\"']?(.*?)[\"']?\s*$", front[1], re.MULTILINE)
        page.title = named[1] if named else ""
        text = re.sub(r"[^\n]", "", front[0]) + text[front.end() :]
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if len(line) > _LONGEST_LINE:  # markdown-it takes minutes over a megabyte of brackets
            place = Place(name, number + 1)
            page.fault(f"a line of {len(line)} characters", f"at most {_LONGEST_LINE}", place)
            lines[number] = ""
    _walk_markdown(page, _markdown_parser().parse("\n".join(lines)), name)
    return page.draft(name)


# %% [markdown]
# Last the door that chooses between the two.

# %% tags=["promote"]
_SUFFIXES = {
    **dict.fromkeys((".tex", ".ltx", ".latex"), _read_latex),
    **dict.fromkeys((".md", ".markdown", ".qmd", ".rmd"), _read_markdown),
}


def read_draft(path: str | os.PathLike) -> Draft:
    """Read a draft from its main file, LaTeX (with all that it includes) or Markdown.

    Anything odd inside is noted in `Draft.faults` with file and line. Raises DraftError, in one
    line, where there is nothing to read: no file, a folder, a binary or empty file, another suffix.
    """
    path = Path(path)
    reader = _SUFFIXES.get(path.suffix.lower())
    if reader is None and not path.is_dir():
        raise DraftError(f"{path.name}: not a draft's name; expected one that ends in .tex or .md")
    return (reader or _read_latex)(path)


# %%
note = "# A note\n\n## Introduction\n\nWho knows? [@knuth; @lamport]\n\n![A bar chart](bars.png)\n"
print(read_text(note, "note.md"))

# %% [markdown]
# ### Parts of a paper
#
# Rules speak of the introduction or the method, drafts have titles. `TITLES` is the dictionary
# between them, and an argument of `review`: your method section may be called after your method.

# %% tags=["promote"]
TITLES = {
    "introduction": r"introduction|motivation",
    "related work": r"(related|prior|previous|earlier) (work|works|research|studies|literature)"
    r"|literature|state of the art",
    "background": r"background|preliminar(y|ies)|notation|foundations"
    r"|problem (statement|setting|setup|formulation)",
    "method": r"methods?|methodology|approach|model|our [\w-]+|proposed .+|algorithm|architecture",
    "experiments": r"experiments?|experimental .*|evaluation|results|empirical .*|case stud(y|ies)",
    "conclusion": r"conclusions?|concluding .*|discussion|limitations?( .*)?|future work|outlook",
}
_STANDS_INSIDE = ("related work", "background")  # found as a part of other sections, too


def _named(title: str, titles: Mapping[str, str]) -> list[str]:
    """The parts of a paper that a heading names; none for most subsections."""
    return [part for part, words in titles.items() if re.search(rf"(?i)\b(?:{words})\b", title)]


# %% [markdown]
# An `Outline` is a draft with its parts told apart; every rule reads through it. Prose is looked
# at sentence by sentence.


# %% tags=["promote"]
_ABBREVIATION = r"(?<!\be\.g)(?<!\bi\.e)(?<!\bal)(?<!\bcf)(?<!\bFigs)(?<!\bFig)(?<!\bEq)(?<!\bvs)"
_SENTENCE = re.compile(_ABBREVIATION + r"[.!?]+[)\"'”’\]]*\s+(?=[A-Z\d\[$(“\"@])")


def split_sentences(text: str) -> list[str]:
    """The sentences of a paragraph; abbreviations such as e.g. and et al. end none.

    >>> split_sentences("It works, e.g. on Cora. Does it, Fig. 2 aside?  Yes.")
    ['It works, e.g. on Cora.', 'Does it, Fig. 2 aside?', 'Yes.']
    """
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    pieces = [text[a:b].strip() for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


# %% tags=["promote"]
@dataclass(frozen=True)
class Outline:
    """A draft with its sections told apart: `parts` maps introduction, method … to section indices.

    The rules read the draft through it.
    """

    draft: Draft
    parts: Mapping[str, tuple[int, ...]]

    def paragraphs(self, *parts: str) -> list[Paragraph]:
        inside = self._inside(parts)
        return [p for p in self.draft.paragraphs if p.section in inside]

    def sentences(self, *parts: str) -> list[tuple[str, Place]]:
        """Every sentence of the prose and of the captions, with the place of its paragraph."""
        texts = [(p.text, p.place) for p in self.paragraphs(*parts)]
        texts += [(mark.caption, mark.place) for mark in self.marks(*parts)]
        return [(s, place) for text, place in texts for s in split_sentences(text)]

    def marks(self, *parts: str, kind: str = "") -> list[Mark]:
        inside = self._inside(parts)
        return [m for m in self.draft.marks if m.section in inside and kind in ("", m.kind)]

    def works(self, *parts: str) -> list[str]:
        """The different works cited, in order."""
        inside = self._inside(parts)
        return list(dict.fromkeys(c.key for c in self.draft.citations if c.section in inside))

    def words(self, *parts: str) -> int:
        """The words of prose of some parts (equation 1)."""
        return sum(paragraph.words for paragraph in self.paragraphs(*parts))

    def place(self, part: str) -> Place:
        return self.draft.sections[self.parts[part][0]].place

    def _inside(self, parts: Sequence[str]) -> set[int]:
        return {index for part in parts for index in self.parts.get(part, ())}


# %% tags=["promote"]
def _unnamed_method(draft: Draft, parts: Mapping[str, list[int]], top: int) -> list[int]:
    first = max(parts.get("introduction", []), default=-1) + 1
    last = min(parts.get("experiments", []), default=len(draft.sections))
    taken = {index for indices in parts.values() for index in indices}
    words = Counter()
    for paragraph in draft.paragraphs:
        words[paragraph.section] += paragraph.words
    groups: list[list[int]] = []
    for index in range(first, last):
        section = draft.sections[index]
        if section.level == top and not re.fullmatch("(?i)abstract|", section.title):
            groups.append([index] if index not in taken else [])
        elif groups and groups[-1] and index not in taken:
            groups[-1].append(index)
    return max(groups, key=lambda group: sum(words[i] for i in group), default=[])


# %% tags=["promote"]
def outline(draft: Draft, titles: Mapping[str, str] = TITLES) -> Outline:
    """Tell the sections of a draft apart by their titles.

    titles  a regular expression for each part of a paper, matched as whole words

    A subsection belongs to the part of the section around it, except where that names none or
    several, and except for related work and background, which papers also put inside other
    sections. Where no title names the method, the longest unnamed section between the introduction
    and the experiments is taken for it. The appendix belongs to no part.
    """
    top = min((s.level for s in draft.sections), default=1)
    parts: dict[str, list[int]] = {part: [] for part in titles}
    above: list[str] = []
    for index, section in enumerate(draft.sections):
        own = [] if section.appendix else _named(section.title, titles)
        if section.level == top:
            above, mine = own, own
        elif section.appendix:
            mine = []
        else:
            inner = own if len(above) != 1 else [p for p in own if p in _STANDS_INSIDE]
            mine = inner or above
        for part in mine:
            parts[part].append(index)
    if "method" in parts and not parts["method"]:
        parts["method"] = _unnamed_method(draft, parts, top)
    return Outline(draft, {part: tuple(indices) for part, indices in parts.items()})


# %%
paper = outline(weak)
{part: [weak.sections[i].title for i in indices] for part, indices in paper.parts.items()}

# %% [markdown]
# No title says "background", so that part is empty. A rule that needs it stays silent, and
# one finding of the first rule speaks for it: a missing section is one thing to mend, not six.

# %% tags=["promote"]
Rule = Callable[..., Iterable[Finding]]


def looks_at(*parts: str) -> Callable[[Rule], Rule]:
    """Say which parts of a paper a rule needs; where one is missing, the rule is silent."""

    def mark(rule: Rule) -> Rule:
        rule.parts = parts
        return rule

    return mark


def _any(words: str) -> str:
    """A pattern for any of some words, with commas between them; a star stands for any ending."""
    ends = (re.escape(word.strip()).replace(r"\*", r"\w*") for word in words.split(","))
    return "|".join(rf"\b{word}\b" for word in ends)


_LABELS = re.compile(r"\[[@#][^\[\]]*\]")


def _says(pattern: str, sentences: Iterable[tuple[str, Place]]) -> list[tuple[str, Place]]:
    """The sentences in which a pattern stands; labels and keys are no words of theirs."""
    found = re.compile(rf"(?i)(?:{pattern})")
    return [pair for pair in sentences if found.search(_LABELS.sub("", pair[0]))]


def _warn(rule: str, place: Place, found: str, wanted: str) -> Finding:
    return Finding(rule, "warning", place, found, wanted)


def _quote(text: str, most: int = 60) -> str:
    return f"“{text if len(text) <= most else text[: most - 1].rstrip() + '…'}”"


# %% tags=["promote"]
@looks_at()
def rule_sections(paper: Outline) -> Iterator[Finding]:
    """All parts of a paper are there."""
    for part, indices in paper.parts.items():
        if not indices:
            yield _warn(
                "sections",
                Place(paper.draft.name, 1),
                f"no section called {part}",
                f"a section for the {part}",
            )


# %% [markdown]
# ### Introduction: the trend and the question
#
# "One to three; where is the field moving; the question." A rule is a small function: it counts, it
# compares, it says what was found and what is wanted. Thresholds are arguments with a name.


# %% tags=["promote"]
@looks_at("introduction")
def rule_introduction(
    paper: Outline, *, introduction_paragraphs: tuple[int, int] = (1, 3)
) -> Iterator[Finding]:
    """The introduction is short. The notes say “1–3”; we read: paragraphs."""
    least, most = introduction_paragraphs
    count = len(paper.paragraphs("introduction"))
    if not least <= count <= most:
        found = f"{count} paragraphs of introduction"
        yield _warn("introduction", paper.place("introduction"), found, f"{least} to {most}")


@looks_at("introduction")
def rule_trend(paper: Outline, *, introduction_works: int = 2) -> Iterator[Finding]:
    """The introduction says where the field is moving, and so cites."""
    count = len(paper.works("introduction"))
    if count < introduction_works:
        wanted = f"where the field is moving, with {introduction_works} works or more"
        yield _warn("trend", paper.place("introduction"), f"{count} works cited", wanted)


_QUESTION = r"\?|" + _any(
    "question, questions, we ask, unexplored, remains, remain, open problem, unclear, unknown,"
    " little is known, not known, whether"
)


# %% tags=["promote", "exercise"]
@looks_at("introduction")
def rule_question(paper: Outline, *, questions: int = 1) -> Iterator[Finding]:
    """The introduction states the question."""
    asked = _says(_QUESTION, paper.sentences("introduction"))
    if len(asked) < questions:
        found = f"{len(asked)} sentences that state a question"
        wanted = f"{questions}: a question mark, “we ask whether”, “remains unexplored”"
        yield _warn("question", paper.place("introduction"), found, wanted)


# %% tags=["check"]
asks = outline(read_text("\\section{Introduction} It works. Does it?"))
tells = outline(read_text("\\section{Introduction} It works. It does."))
assert not list(rule_question(asks)), "a question mark states a question"
(told,) = rule_question(tells)
assert told.rule == "question" and told.place.line == 1, "the finding names its rule and its place"
assert len(list(rule_question(asks, questions=2))) == 1, "`questions` says how many are asked for"

# %% [markdown]
# ### Related work and background: half and half
#
# Equations 3 and 4, and "mathematics by example: a formula, and an example for it".


# %% tags=["promote"]
def share_of(part: str, other: str, paper: Outline) -> float:
    """The words of one part as a share of both (equation 3); 0.5 where both are empty."""
    both = paper.words(part) + paper.words(other)
    return paper.words(part) / both if both else 0.5


# %%
halves = outline(read_text("\\section{Related work} One two three. \\section{Background} Four."))
assert share_of("related work", "background", halves) == 0.75, "three words of four are 0.75"
assert share_of("background", "related work", halves) == 0.25, "the other share is the rest"
assert share_of("method", "conclusion", halves) == 0.5, "two empty parts are half and half"


# %% tags=["promote"]
@looks_at("related work", "background")
def rule_balance(
    paper: Outline, *, related_share: tuple[float, float] = (0.3, 0.7)
) -> Iterator[Finding]:
    """Related work and background are half and half in length."""
    least, most = related_share
    share = share_of("related work", "background", paper)
    if not least <= share <= most:
        found = f"related work is {share:.0%} of the two"
        wanted = f"{least:.0%} to {most:.0%}, the rest background"
        yield _warn("balance", paper.place("related work"), found, wanted)


@looks_at("related work")
def rule_works(paper: Outline, *, works: tuple[int, int] = (10, 15)) -> Iterator[Finding]:
    """Related work and background together cite ten to fifteen works (equation 4)."""
    least, most = works
    count = len(paper.works("related work", "background"))
    if not least <= count <= most:
        found = f"{count} different works cited in related work and background"
        yield _warn("works", paper.place("related work"), found, f"{least} to {most}")


_EXAMPLE = r"\be\.g\.|\$[^$]*=\s*-?\d|" + _any(
    "for example, for instance, such as, example, examples, consider, say"
)


# %% tags=["promote"]
@looks_at("background")
def rule_examples(paper: Outline, *, examples_per_equation: float = 1.0) -> Iterator[Finding]:
    """Background is mathematics by example: beside each equation, under its heading, an example."""
    for index in paper.parts["background"]:
        one = Outline(paper.draft, {"here": (index,)})
        equations, examples = (
            one.marks("here", kind="equation"),
            _says(_EXAMPLE, one.sentences("here")),
        )
        if len(examples) < examples_per_equation * len(equations):
            title = paper.draft.sections[index].title
            found = f"{len(equations)} equations and {len(examples)} examples under {_quote(title)}"
            wanted = (
                f"{examples_per_equation:g} example for each (“for example”, or numbers put in)"
            )
            yield _warn("examples", equations[0].place, found, wanted)


# %% [markdown]
# "Related work may list, and it can be a table; or it asks why there are so many papers, and
# discusses what is common and what differs." What no reader wants is the third kind: *A did this [1].
# B did that [2]. C did something else [3].* Count how many such sentences follow one another.

# %% tags=["promote"]
_COMPARES = _any(
    "in common, whereas, unlike, both, while, usually, all of, most of, in contrast, by contrast,"
    " however, instead, differ, differs, difference*, share, shared, rather than, compared,"
    " similar*, the same, overcome, overcomes, neither, typically"
)


# %% tags=["promote", "exercise"]
def longest_list(text: str) -> int:
    """How many sentences in a row cite one work each and compare nothing: “A did. B did. C did.”"""
    longest = run = 0
    for sentence in split_sentences(text):
        lists = sentence.count("[@") == 1 and ";" not in sentence
        run = run + 1 if lists and not re.search(f"(?i){_COMPARES}", sentence) else 0
        longest = max(longest, run)
    return longest


# %% tags=["check"]
listing = "A did this [@a]. B did that [@b]. C did more [@c]."
assert longest_list(listing) == 3, "three sentences in a row with one citation each"
assert longest_list("A did this [@a]. Unlike it, B did that [@b].") == 1, "“unlike” compares"
assert longest_list("A did this [@a]. It helps. B did that [@b].") == 1, (
    "a row ends without citation"
)
assert longest_list("Many did it [@a; @b]. Others [@c] and [@d] too.") == 0, (
    "several are discussed together"
)


# %% tags=["promote"]
@looks_at("related work")
def rule_discussion(
    paper: Outline, *, comparisons: int = 2, listed_in_a_row: int = 4
) -> Iterator[Finding]:
    """Related work says what is common and what differs, or lists it in a table."""
    if paper.marks("related work", kind="table"):
        return
    found = _says(_COMPARES, paper.sentences("related work"))
    if len(found) < comparisons:
        text = f"{len(found)} sentences that compare"
        wanted = f"{comparisons} (“both”, “whereas”, “usually”), or a table of the works"
        yield _warn("discussion", paper.place("related work"), text, wanted)
    for paragraph in paper.paragraphs("related work"):
        if (run := longest_list(paragraph.text)) >= listed_in_a_row:
            text = f"{run} sentences in a row cite one work each and compare nothing"
            wanted = f"fewer than {listed_in_a_row}; say what the works share, or make a table"
            yield _warn("discussion", paragraph.place, text, wanted)


# %% [markdown]
# ### Method: one line
#
# "One pipeline from beginning to end. What are the dimensions of input and output?"

# %% tags=["promote"]
_PIPELINE = r"\bfrom .{1,80} to |" + _any(
    "pipeline*, overview, framework, architecture, schema*, our method, our model"
)


def _range_text(least: float, most: float) -> str:
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _labels(mark: Mark) -> set[str]:
    return {*mark.labels, f"{mark.kind} {mark.number}"}


def _method_figures(paper: Outline) -> list[Mark]:
    """The figures that stand in the method, or are referred to there."""
    inside = paper.parts["method"]
    named = {r.label for r in paper.draft.references if r.section in inside}
    return [m for m in paper.draft.figures if m.section in inside or named & _labels(m)]


@looks_at("method")
def rule_pipeline(paper: Outline, *, pipelines: tuple[int, int] = (1, 1)) -> Iterator[Finding]:
    """One figure shows the method from its beginning to its end."""
    least, most = pipelines
    shown = [m for m in _method_figures(paper) if re.search(f"(?i){_PIPELINE}", m.caption)]
    if not least <= len(shown) <= most:
        found = f"{len(shown)} figures whose caption names a pipeline, overview or architecture"
        yield _warn("pipeline", paper.place("method"), found, _range_text(least, most))


_DIMENSION = (
    r"\\mathbb\s*\{?\s*R|\\Re?\b|\\times|\bdimension|-dimensional|\bshapes?\b|\b\d+ (by|x|×) \d+"
    r"|×|\bof size\b|\bof length\b"
)
_ENDS = {
    "input": r"\binputs?\b|\btakes\b|\bgiven\b",
    "output": r"\boutputs?\b|\breturns?\b|\bpredicts?\b",
}


# %% tags=["promote"]
@looks_at("method")
def rule_dimensions(paper: Outline) -> Iterator[Finding]:
    """The method states the dimensions of its input and of its output."""
    sized = _says(_DIMENSION, paper.sentences("method"))
    for end, words in _ENDS.items():
        if not _says(words, sized):
            found = f"no sentence with both the {end} and a dimension"
            wanted = rf"“the {end} is $x \in \mathbb{{R}}^{{H \times W}}$”"
            yield _warn("dimensions", paper.place("method"), found, wanted)


# %% [markdown]
# "What is on the figure is in the formulas; figure, words and formulas can be matched one to one."
# For this we need the symbols of a formula: letters with their fonts, without their indices.

# %% tags=["promote"]
_FONTS = (
    r"\\(?:mathbf|mathcal|mathbb|mathsf|mathfrak|boldsymbol|bm|bar|hat|tilde|vec|dot|widehat"
    r"|widetilde)"
)
_NO_SYMBOL = re.compile(
    r"\\(?:text\w*|mathrm|mathit|operatorname\*?|mbox|label|begin|end|tag|color)\s*\{[^{}]*\}"
)
_SCRIPT = re.compile(r"[_^]\s*(?:\{[^{}]*\}|\\[A-Za-z]+|\w)")
_SYMBOL = re.compile(
    rf"{_FONTS}(?![A-Za-z])\s*\{{?\s*(?:\\[A-Za-z]+|[A-Za-z])\s*\}}?|\\(?:var)?(?:alpha|beta|gamma|delta|epsilon"
    r"|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|phi|chi|psi|omega|Gamma"
    r"|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|ell)(?![A-Za-z])|(?<![\\A-Za-z])[A-Za-z]"
)


def symbols(tex: str) -> set[str]:
    r"""The symbols of a formula: Latin and Greek letters with their fonts, without their indices.

    >>> sorted(symbols(r"\mathbf{x}_{t+1} = \alpha\, x_t + \text{noise} + \exp(W^{2} z)"))
    ['W', '\\alpha', '\\mathbf{x}', 'x', 'z']
    """
    tex = _NO_SYMBOL.sub(" ", tex)
    for _ in range(4):  # an index may hold an index
        tex = _SCRIPT.sub(" ", tex)
    tex = re.sub(r"\\([a-z]{2,})(?![A-Za-z])(?=\s+[A-Za-z])", r"\\\1 ", tex)
    found = (re.sub(r"[\s{}]", "", token) for token in _SYMBOL.findall(tex))
    return {re.sub(rf"^({_FONTS})(.+)$", r"\1{\2}", token) for token in found}


def _formulas(texts: Iterable[str]) -> list[str]:
    return [formula for text in texts for formula in re.findall(r"\$([^$]*)\$", text)]


# %% tags=["promote"]
def symbol_forms(paper: Outline) -> dict[str, set[str]]:
    """In which forms each symbol of the method stands: "formula", "words", "figure" (equation 5).

    A symbol that stands in one form only loses its meaning when that form is deleted.
    """
    texts = {
        "formula": [mark.text for mark in paper.marks("method", kind="equation")],
        "words": _formulas(p.text for p in paper.paragraphs("method", "background")),
        "figure": _formulas(f"{m.caption} {m.text}" for m in _method_figures(paper)),
    }
    forms: dict[str, set[str]] = {}
    for form, pieces in texts.items():
        for symbol in {symbol for piece in pieces for symbol in symbols(piece)}:
            forms.setdefault(symbol, set()).add(form)
    return forms


@looks_at("method")
def rule_symbols(paper: Outline, *, ignored_symbols: str = "d e i j k n") -> Iterator[Finding]:
    """What stands in the method's formulas also stands in its words, and on its figure."""
    forms = {s: f for s, f in symbol_forms(paper).items() if s not in ignored_symbols.split()}
    for mark in paper.marks("method", kind="equation"):
        for symbol in sorted(symbols(mark.text) & set(forms)):
            if "words" not in forms.pop(symbol):
                found = f"${symbol}$ stands in a formula, and no sentence says what it is"
                yield _warn("symbols", mark.place, found, "its meaning, in the prose around")
    for mark in _method_figures(paper):
        lost = [s for s in _formulas([f"{mark.caption} {mark.text}"]) for s in sorted(symbols(s))]
        for symbol in dict.fromkeys(lost):
            if forms.get(symbol) == {"figure"}:
                found = f"${symbol}$ stands on a figure, and in no formula or sentence"
                yield _warn("symbols", mark.place, found, "the same symbols on all three")


# %% tags=["promote"]
@looks_at("method")
def rule_figure_symbols(paper: Outline) -> Iterator[Finding]:
    """A figure of the method shows symbols of its formulas, in its caption or in its drawing."""
    forms, figures = symbol_forms(paper).values(), _method_figures(paper)
    if (
        figures
        and any("formula" in f for f in forms)
        and not any({"formula", "figure"} <= f for f in forms)
    ):
        found = "no symbol of the formulas stands on a figure or in its caption"
        wanted = "the input, the output and the stages called as in the formulas"
        yield _warn("figure_symbols", figures[0].place, found, wanted)


# %% [markdown]
# Equation 5 as a table, for the weak draft. A symbol with one form only is a symbol whose meaning is
# gone when that form is deleted.

# %%
for symbol, forms in sorted(symbol_forms(outline(weak)).items()):
    print(f"{symbol:12}", ", ".join(sorted(forms)))

# %% [markdown]
# A program cannot look into a picture. What counts as "on the figure" is what stands in its caption,
# or is drawn by TeX itself.
#
# ### Figures, tables and pace


# %% tags=["promote", "exercise"]
@looks_at()
def rule_referred(paper: Outline) -> Iterator[Finding]:
    """Every figure and table is referred to in the text."""
    named = {reference.label for reference in paper.draft.references}
    for mark in [*paper.draft.figures, *paper.draft.tables]:
        if not _labels(mark) & named:
            label = f" ({mark.labels[0]})" if mark.labels else " (it has no label)"
            found = f"no sentence refers to {mark.kind} {mark.number}{label}"
            yield _warn("referred", mark.place, found, "a sentence that says what to see in it")


# %% tags=["check"]
one = r"\begin{figure}\caption{A}\label{fig:a}\end{figure} "
assert len(list(rule_referred(outline(read_text(one))))) == 1, "nobody refers to fig:a"
assert not list(rule_referred(outline(read_text(one + r"See \cref{fig:b,fig:a}.")))), "\\cref does"
assert not list(rule_referred(outline(read_text(one + "See Figure 1.")))), "a number does, too"
table = r"\begin{table}\caption{A}\label{tab:a}\end{table} See Figure 1."
assert len(list(rule_referred(outline(read_text(table))))) == 1, "figure 1 is not table 1"


# %% tags=["promote"]
@looks_at()
def rule_captions(paper: Outline, *, caption_words: int = 5) -> Iterator[Finding]:
    """Every figure and table has a caption that says something."""
    for mark in [*paper.draft.figures, *paper.draft.tables]:
        if (words := count_words(mark.caption)) < caption_words:
            found = f"the caption of {mark.kind} {mark.number} has {words} words"
            yield _warn("captions", mark.place, found, f"{caption_words} or more, what to see")


def pace_of(words: int, marks: int) -> float:
    """Words of prose between two marks, on average (equation 2): m marks leave m + 1 stretches."""
    return words / (marks + 1)


@looks_at()
def rule_pace(paper: Outline, *, words_between_marks: float = 500) -> Iterator[Finding]:
    """Words and figures complete each other: no part is long without figure, table or formula."""
    for part in paper.parts:
        words, marks = paper.words(part), len(paper.marks(part))
        if paper.parts[part] and pace_of(words, marks) > words_between_marks:
            stretch = f"{pace_of(words, marks):.0f} words a stretch"
            found = f"{words} words and {marks} marks in {part}: {stretch}"
            wanted = f"{words_between_marks:g} at most between two figures, tables or formulas"
            yield _warn("pace", paper.place(part), found, wanted)


# %% [markdown]
# ### Experiments and conclusion
#
# "It runs; does it run on several data sets? Why these hyperparameters, and what is the role of each?
# Ablation: with and without. Ugly pictures serve for comparison. Interpretability is not required;
# hedge, could, might." These are looked for by their words, and words can be missed: a finding here
# is a question to you, not a verdict.

# %% tags=["promote"]
_DATA = _any(
    "data set, data sets, dataset, datasets, data-set, data-sets, benchmark, benchmarks, corpus,"
    " corpora, collection, collections, recordings"
)
_SET_NAME = re.compile(r"(?<![\w-])[a-z]{0,3}[A-Z][\w-]{0,40}(?: \d+)?")
_NUMBER_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
_COMMON = _set(
    "A All An As At Both By Data Each Figure For From In It On Our Section Table That The"
    " Their These They This Three To Two We With"
)


@looks_at("experiments")
def rule_data_sets(paper: Outline, *, data_sets: int = 2) -> Iterator[Finding]:
    """The method runs on several data sets.

    A guess: the larger of a number word before “data sets”, and of the names with a capital letter
    in sentences (and captions) that speak of data sets. A name that stands nowhere near the word
    is missed, a person's name beside it is counted.
    """
    count, names, numbers = 0, set(), "|".join(_NUMBER_WORDS)
    for sentence, _ in _says(_DATA, paper.sentences("experiments")):
        plain = _NO_PROSE.sub(" ", sentence)
        for word in re.findall(rf"(?i)\b({numbers})(?: [\w-]+){{0,2}} (?={_DATA})", plain):
            count = max(count, _NUMBER_WORDS[word.lower()])
        names |= set(_SET_NAME.findall(plain)) - _COMMON
    count = max(count, len(names))
    if count < data_sets:
        found = f"{count} data sets named ({', '.join(sorted(names)) or 'none'})"
        yield _warn("data_sets", paper.place("experiments"), found, f"{data_sets} or more, by name")


_CHOICE = _any(
    "choose, chose, chosen, set, sets, select*, fix, fixed, tune*, pick*, use, used, uses"
)
_REASON = _any(
    "because, since, so that, due to, in order to, validation, as it, as this, as larger,"
    " as smaller"
)
_ROLE = _any("sensitiv*, role of, effect of, influence of, vary, varying, sweep*, grid search")


# %% tags=["promote"]
@looks_at("experiments")
def rule_hyperparameters(paper: Outline, *, reasons: int = 1) -> Iterator[Finding]:
    """The experiments say why hyperparameters have their values, or what the role of each is."""
    sentences = paper.sentences("experiments")
    given = _says(_REASON, _says(_CHOICE, sentences)) + _says(_ROLE, sentences)
    if len(given) < reasons:
        found = f"{len(given)} sentences that give a reason for a setting"
        wanted = f"{reasons}: “we set … because …”, or a study of the role of each"
        yield _warn("hyperparameters", paper.place("experiments"), found, wanted)


_ABLATION = _any(
    "ablat*, with and without, without the, without our, without this, without any, w/o,"
    " remove the, removes the, removed the, removing the, remove our, removing our, leave-one*"
)


@looks_at("experiments")
def rule_ablation(paper: Outline) -> Iterator[Finding]:
    """The experiments compare with and without a part of the method."""
    if not _says(_ABLATION, paper.sentences("experiments")):
        found = "no sentence or caption speaks of an ablation"
        wanted = "the result with and without the part that is new"
        yield _warn("ablation", paper.place("experiments"), found, wanted)


_FAILURE = _any(
    "fail*, worst, poor*, wrong*, mistake*, breaks down, break down, struggle*, artefact*,"
    " artifact*, bad"
)


# %% tags=["promote"]
@looks_at("experiments")
def rule_failures(paper: Outline) -> Iterator[Finding]:
    """Ugly pictures serve for comparison: a figure or a table shows where the method fails."""
    captions = [(m.caption, m.place) for m in paper.marks("experiments")]
    shown = [
        s for s in _says(_FAILURE, paper.sentences("experiments", "conclusion")) if "[#" in s[0]
    ]
    if not _says(_FAILURE, captions) and not shown:
        found = "no figure or table of failures"
        wanted = "a failure shown, and a caption or a sentence that refers to it"
        yield _warn("failures", paper.place("experiments"), found, wanted)


_INTERPRET = _any("interpret*, explainab*, attention map, attention maps, saliency")
_HEDGE = _any(
    "could, might, may, perhaps, suggest, suggests, appear, appears, seem, seems, possible,"
    " possibly, likely"
)


@looks_at("experiments")
def rule_hedge(paper: Outline) -> Iterator[Finding]:
    """Interpretation is not required, and where it is offered it is hedged: could, might, may."""
    for paragraph in paper.paragraphs("experiments", "conclusion"):
        bold = re.search(f"(?i){_INTERPRET}", paragraph.text)
        if bold and not re.search(f"(?i){_HEDGE}", paragraph.text):
            found = f"{_quote(bold[0])} without a hedge"
            yield _warn("hedge", paragraph.place, found, "“could”, “might”, and how you see it")


_LIMIT = _any(
    "limit*, shortcoming*, drawback*, cannot, does not, do not, did not, weakness*, restrict*,"
    " only work, only works, only tested, only studied"
)
_FUTURE = _any(
    "future, untried, no time, not tried, not yet tried, not tested, not explored, left open,"
    " left for, left to, remains to, remains open, remain to, next step*, we plan, yet to,"
    " open question*"
)


# %% tags=["promote"]
@looks_at("conclusion")
def rule_limits(paper: Outline) -> Iterator[Finding]:
    """The conclusion names limitations."""
    if not _says(_LIMIT, paper.sentences("conclusion")):
        found = "no sentence names a limitation"
        yield _warn(
            "limits", paper.place("conclusion"), found, "what the method or the field cannot do"
        )


@looks_at("conclusion")
def rule_untried(paper: Outline) -> Iterator[Finding]:
    """The conclusion names what there was no time to try."""
    if not _says(_FUTURE, paper.sentences("conclusion")):
        found = "no sentence names what was not tried"
        yield _warn(
            "untried", paper.place("conclusion"), found, "“we did not try …”, “it remains to …”"
        )


# %% [markdown]
# ### The review
#
# Equation 6: the union of what all rules find.

# %% tags=["promote"]
RULES: dict[str, Rule] = {
    "sections": rule_sections,
    "introduction": rule_introduction,
    "trend": rule_trend,
    "question": rule_question,
    "balance": rule_balance,
    "works": rule_works,
    "examples": rule_examples,
    "discussion": rule_discussion,
    "pipeline": rule_pipeline,
    "dimensions": rule_dimensions,
    "symbols": rule_symbols,
    "figure_symbols": rule_figure_symbols,
    "referred": rule_referred,
    "captions": rule_captions,
    "pace": rule_pace,
    "data_sets": rule_data_sets,
    "hyperparameters": rule_hyperparameters,
    "ablation": rule_ablation,
    "failures": rule_failures,
    "hedge": rule_hedge,
    "limits": rule_limits,
    "untried": rule_untried,
}


def thresholds(rules: Mapping[str, Rule] = RULES) -> dict[str, object]:
    """The thresholds of the rules and their defaults."""
    found = {}
    for rule in rules.values():
        for name, parameter in inspect.signature(rule).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                found[name] = parameter.default
    return found


# %% tags=["promote"]
def _chosen(names: Iterable[str], among: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The entries called `names`; raises ValueError that offers the nearest names for another."""
    names = list(names)
    for name in names:
        if name not in among:
            near = difflib.get_close_matches(str(name), among, n=3, cutoff=0.5) or list(among)
            raise ValueError(f"{what}: got {name!r}; expected {' or '.join(near)}")
    return {name: among[name] for name in names}


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Thresholds as one types them: `works=5-30`, `caption_words=8`, `ignored_symbols=d e`.

    Raises ValueError for a name that does not exist, and for a value of another kind.
    """
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        default = _chosen([name.strip()], thresholds(), "threshold")[name.strip()]
        kind = float if isinstance(default, float) else int
        try:
            if isinstance(default, str):
                found[name.strip()] = value
            elif isinstance(default, tuple):
                least, _, most = value.partition("-")
                kind = type(default[0])
                found[name.strip()] = (kind(least), kind(most or least))
            else:
                found[name.strip()] = kind(value)
        except ValueError:
            wanted = "-".join(map(str, default)) if isinstance(default, tuple) else default
            raise ValueError(f"{name}: got {value!r}; expected a value such as {wanted}") from None
    return found


# %% tags=["promote"]
def section_titles(texts: Iterable[str]) -> dict[str, str]:
    """Titles as one types them: `method=Our gadget` calls a section of that title the method."""
    found = {}
    for text in texts:
        part, _, title = text.partition("=")
        _chosen([part.strip()], TITLES, "section")
        if not title.strip():
            raise ValueError(f"section: got {text!r}; expected PART=TITLE")
        found[part.strip()] = f"{TITLES[part.strip()]}|{re.escape(title.strip())}"
    return found


# %%
parse_settings(["works=5-30", "caption_words=8"]), list(section_titles(["method=Our gadget"]))

# %%
thresholds()

# %% [markdown]
# A review shows itself: as a table in a notebook, as plain lines in a terminal.


# %% tags=["promote"]
def _row(finding: Finding) -> str:
    found, wanted = (text.replace("|", r"\|") for text in (finding.found, finding.wanted))
    if finding.rule == "reading":  # it quotes source, which Markdown would read as its own
        found = f"`{found}`"
    return f"| `{finding.place}` | {finding.rule} | {found} | {wanted} |"


@dataclass(frozen=True)
class Review:
    """The findings of a review, the errors of reading first; it shows itself as a report."""

    draft: Draft
    findings: tuple[Finding, ...]

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        lines = [str(self.draft), ""]
        for finding in self.findings:
            lines.append(f"{finding.place}  {finding.rule}")
            lines += [f"    found   {finding.found}", f"    wanted  {finding.wanted}"]
        lines += ["", self._verdict()] if self.findings else [self._verdict()]
        return "\n".join(lines)

    __repr__ = __str__

    def _verdict(self) -> str:
        by_rule = Counter(finding.rule for finding in self.findings)
        counts = ", ".join(f"{rule} {count}" for rule, count in by_rule.items())
        return _counted(len(self), "findings") + (f" ({counts})" if counts else "")

    def _repr_markdown_(self) -> str:
        head = f"**{self._verdict()}** in {self.draft}\n\n"
        rows = [_row(finding) for finding in self.findings]
        table = ["| place | rule | found | wanted |", "| --- | --- | --- | --- |", *rows]
        return head + ("\n".join(table) if rows else "")


# %% tags=["promote"]
def review(
    draft: Draft,
    rules: Mapping[str, Rule] | Iterable[str] = RULES,
    titles: Mapping[str, str] = TITLES,
    **settings,
) -> Review:
    """Hold a draft against the rules (equation 6): what each rule finds, under its thresholds.

    rules     rules by name, `RULES` or some of its names; a rule of your own is a function of an
              `Outline` that yields `Finding`
    titles    how the parts of the paper are called, a regular expression for each
    settings  thresholds by name, such as `works=(5, 20)`; `thresholds()` lists them

    Raises ValueError for a rule or a threshold that does not exist; the nearest names are offered.
    """
    rules = rules if isinstance(rules, Mapping) else _chosen(rules, RULES, "rules")
    _chosen(settings, thresholds(rules), "thresholds")
    paper, findings = outline(draft, titles), list(draft.faults)
    for rule in rules.values():
        if all(paper.parts.get(part) for part in getattr(rule, "parts", ())):
            own = thresholds({"": rule})
            findings += rule(paper, **{k: v for k, v in settings.items() if k in own})
    return Review(draft, tuple(findings))


# %% [markdown]
# ### The skeleton

# %% tags=["promote"]
_SHAPES = {
    "figure": ("s", "first", "figures"),
    "table": ("^", "second", "tables"),
    "equation": ("o", "flow", "equations"),
    "algorithm": ("D", "good", "algorithms"),
    "citation": ("_", "n00", "citations"),
}


def _draw_sections(axes: Axes, draft: Draft, words: int) -> None:
    top = min((s.level for s in draft.sections), default=1)
    ends = [*(s.at for s in draft.sections[1:]), draft.words][: len(draft.sections)]
    shade, free = 0, -math.inf
    for section, end in zip(draft.sections, ends, strict=True):
        depth = section.level - top
        shade += depth == 0
        colour = ("#d9d9d9", "#b8b8b8")[shade % 2]
        axes.fill_between([0.15 * depth, 1], section.at, end, color=colour, linewidth=0)
        axes.plot([0.15 * depth, 1], [section.at] * 2, color="white", linewidth=1)
        if depth == 0:
            # Titles of short sections move down, out of each other's way.
            free = max(section.at, free + words * 0.045)
            axes.plot([-0.08, 0], [free, section.at], color=COLOURS["muted"], linewidth=0.7)
            title = _quote(section.title, 22)[1:-1]
            axes.text(-0.1, free, title, ha="right", va="center", size=8, parse_math=False)


def _beside(positions: Sequence[int], near: float) -> list[float]:
    """Steps to the right for marks that would cover one another."""
    steps = []
    for i, position in enumerate(positions):
        close = i > 0 and position - positions[i - 1] < near
        steps.append((steps[-1] + 0.06) % 0.36 if close else 0.0)
    return steps


# %% tags=["promote"]
def draw_skeleton(axes: Axes, draft: Draft) -> None:
    """Draw the sections as long as they have words, and the marks where they stand.

    Lower-level sections are narrower; each kind of mark has a lane and a shape of its own.
    """
    words = max(draft.words, 1)
    _draw_sections(axes, draft, words)
    lanes = {"citation": [c.at for c in draft.citations]}
    for mark in draft.marks:
        lanes.setdefault(mark.kind, []).append(mark.at)
    shown = [kind for kind in _SHAPES if lanes.get(kind)]
    for lane, kind in enumerate(shown):
        shape, colour, label = _SHAPES[kind]
        across = 1.3 + 0.45 * lane + np.array(_beside(lanes[kind], words / 60))
        style = {"color": COLOURS[colour], "markersize": 8 if kind == "citation" else 6}
        label = _counted(len(lanes[kind]), label)
        axes.plot(across, lanes[kind], linestyle="", marker=shape, label=label, **style)
    axes.set(xlim=(-1.9, 1.45 + 0.45 * max(1, len(shown))), ylim=(words * 1.02, -words * 0.02))
    axes.set(xticks=[], ylabel="words from the beginning")
    axes.spines["bottom"].set_visible(False)
    if shown:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
        columns = 2 if len(shown) > 3 else len(shown)
        axes.legend(**place, ncols=columns, handletextpad=0.1, fontsize=8)


def skeleton(draft: Draft, width: float = 6.5, height: float = 5.0) -> Figure:
    """The whole paper on one page; `width` and `height` are in inches. See `draw_skeleton`."""
    figure, axes = canvas(width=width, height=height)
    draw_skeleton(axes, draft)
    return figure


# %% [markdown]
# ## On real input
#
# ### The report
#
# The draft of the water meters, held against all rules:

# %%
review(weak)

# %% [markdown]
# Every line is something to do, and each has its place. (The two abandoned lines in `main.tex` that
# begin with `%` are not among them.) We mend the draft in four steps and look at the report after each.
#
# ### Step 1: what cannot be read, and what is missing
#
# `figures/network` was never committed. We write it as a picture that TeX draws itself, with the
# symbols of the formulas on it, and add the missing section: background, mathematics by example.

# %%
files = dict(weak_files)
files["figures/network.tex"] = r"""\begin{figure}
  \begin{tikzpicture}
    \node (x) {photograph $x$}; \node (h) {features $h$}; \node (z) {scores $z$};
    \node (p) {probabilities $p$}; \draw (x) -- (h) -- (z) -- (p);
  \end{tikzpicture}
  \caption{The pipeline, from the photograph $x$ to the probabilities $p$ of ten digits at six
  places. The temperature $\tau$ acts between the scores $z$ and $p$.}\label{fig:network}
\end{figure}
"""
files["background.tex"] = r"""\section{Background}
A network ends in scores $z_k$, one for each digit $k$, and the softmax turns scores into
probabilities $p_k$ that sum to one. The temperature $\tau$ decides how sharp they are:
\be p_{k} = \frac{\exp(z_k / \tau)}{\sum_{j} \exp(z_j / \tau)}. \ee
For example, scores $z = (2, 0)$ give $p = (0.88, 0.12)$ at $\tau = 1$, and $(0.73, 0.27)$ at
$\tau = 2$. On a counter in motion two digits are visible at once, and a temperature above one leaves
room for both.
"""
files["main.tex"] = files["main.tex"].replace(
    r"\input{method}", "\\input{background}\n\\input{method}"
)

# %%
step_1 = read_draft(write_files(files))
before, after = review(weak), review(step_1)
print(f"{len(before)} findings before, {len(after)} after")
Counter(f.rule for f in before) - Counter(f.rule for f in after)

# %% [markdown]
# ### Step 2: a question, and a discussion
#
# The introduction gets one paragraph about where the field is moving, and one with the question. In
# related work the list of who did what becomes two sentences on what all share and where they part.

# %%
files["introduction.tex"] = r"""\section{Introduction}
Reading text in photographs has moved from cut-out characters to whole scenes~\citep{novak, baek},
and from towers of convolutions to attention~\citep{moreau}. Meters came late~\citep{lee}.

A meter differs from a page: its last digit turns. What should a program say of a digit that stands
between seven and eight? We ask whether a network can learn to answer \emph{both}, with the right
weights.
"""
files["related.tex"] = r"""\section{Related Work}
All of the systems for meters~\citep{lee, laroca, salomon} first find the counter and then
read it, and usually both steps are networks trained apart, whereas readers of street scenes
train one network for both~\citep{novak, baek}. What they have in common is the answer: one digit for
one place. Recurrent readers~\citep{sato, shi} and attention~\citep{moreau} overcome the fixed
number of places, which is no problem of meters, while a digit between two others is neither's
concern. Soft labels~\citep{szegedy, hinton} come closest; unlike ours, their softness does not
depend on what is seen.
"""

# %%
step_2 = read_draft(write_files(files))
print(f"{len(review(step_2))} findings after step 2")
Counter(f.rule for f in review(step_1)) - Counter(f.rule for f in review(step_2))

# %% [markdown]
# ### Step 3: figure, words and formulas
#
# The method says what each symbol is, and the dimensions of what goes in and comes out.

# %%
files["method.tex"] = r"""\section{Method}
Figure~\ref{fig:network} shows the whole. The input is a photograph
$x \in \mathbb{R}^{3 \times 64 \times 256}$ of the counter; the output is an array of probabilities
$p \in \mathbb{R}^{6 \times 10}$, ten digits for each of six places. Convolutions turn $x$ into
features $h$, a linear layer turns $h$ into scores $z$,
\be h = f(x), \qquad z = A\,h, \label{eq:scores} \ee
with the network $f$ and the matrix $A$. The softmax at temperature $\tau$ gives $p$. A digit that has
turned by a fraction $u$ is labelled with weights $y$, that is $1-u$ for the digit that
leaves and $u$ for the one that comes, and the loss $\mathcal{L}$ compares the two:
\be \mathcal{L} = - \sum_{k} y_k \log p_k . \ee
\input{figures/network}
"""

# %%
step_3 = read_draft(write_files(files))
print(f"{len(review(step_3))} findings after step 3")
Counter(f.rule for f in review(step_2)) - Counter(f.rule for f in review(step_3))

# %% [markdown]
# ### Step 4: experiments that answer, a conclusion that admits

# %%
files["experiments.tex"] = r"""\section{Experiments}
We use two data sets, UFPR-AMR and our own Lenten-900. Table~\ref{tab:main} compares the reader with
and without soft labels; without the soft labels it reads the last digit of a turning counter worse.
We chose $\tau = 2$ on the validation photographs because smaller values forced a decision and larger
ones blurred the digits that stand still.
\begin{table}
  \begin{tabular}{lcc} & UFPR-AMR & Lenten-900 \\ hard labels & 91.2 & 88.0 \\ soft & 93.9 & 94.1
  \end{tabular}
  \caption{Counters read without any error, in per cent, with and without soft labels.}
  \label{tab:main}
\end{table}
\begin{figure}
  \includegraphics{bad}
  \caption{The worst failures: fogged glass, and a reflection of the lamp.}\label{fig:bad}
\end{figure}
Where the reader fails (Figure~\ref{fig:bad}), the features look at the rim of the digit; this might
suggest that edges matter more than strokes, and could be read in other ways.
"""
files["main.tex"] = files["main.tex"].replace(
    r"\ours reads water meters well.",
    r"\ours\ is limited to counters with six places, and cannot tell a stopped meter from a turning"
    r" one. We did not try videos, which is left for future work.",
)

# %%
repaired = read_draft(write_files(files))
review(repaired)

# %% [markdown]
# No finding is left. (The numbers in this paper are invented; that, no rule can see.) The two
# skeletons side by side, each as long as the page:


# %%
def draw_two(first, second):
    figure, row = canvas(1, 2, width=6.5, height=4.2)
    for axes, draft, title in zip(row, (first, second), ("before", "after"), strict=True):
        draw_skeleton(axes, draft)
        axes.set_title(f"{title}: {draft.words} words, {len(review(draft))} findings")
    row[1].set_ylabel("")
    return figure


show(
    draw_two(weak, repaired),
    alt="Two skeletons. Before: a long list of citations in one block, few marks. After: related"
    " work and background of equal length, marks beside every part.",
)

# %% [markdown]
# See how related work and background have become halves, how citations have moved up into
# the introduction, and that each part but the conclusion has its marks.
#
# ### Your own draft
#
# One line, with the path of your main file. A chapter of a book or a report in Markdown will do. What
# your sections are called can be said, and thresholds can be changed.

# %%
mine = None  # "paper/main.tex"
if mine:
    print(review(read_draft(mine), works=(5, 30), words_between_marks=600))

# %% [markdown]
# In a terminal `fourfold review paper/main.tex --set works=5-30` says the same, and
# `fourfold review --rules` lists the rules and their thresholds.
#
# ### A long one
#
# Thirty pages are about 120 kB of LaTeX. How long does a review take?

# %%
sentence = r"We show that $x \in \mathbb{R}^d$ is \emph{good} \cite{a,b}, and add words to it. "
block = sentence * 4 + "\n\\begin{equation} a_i = b + c \\label{eq:1} \\end{equation}\n\n"
thirty_pages = "\\section{Method}\n" + block * (120_000 // len(block))
start = perf_counter()
long_review = review(read_text(thirty_pages))
elapsed = perf_counter() - start
print(f"{len(thirty_pages):,} characters: {'under half a second' if elapsed < 0.5 else 'a while'}")

# %% [markdown]
# ## Exercises
#
# In the exercise edition (`fourfold start`) these bodies are blank; each has its check directly
# below.
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `count_words` | 4 | ●○○ |
# | `rule_question` | 6 | ●○○ |
# | `longest_list` | 8 | ●●○ |
# | `rule_referred` | 7 | ●●○ |
#
# <details><summary>Hint for <code>count_words</code></summary>
#
# Take out what `_NO_PROSE` matches first, with a space in its place, then count what `_WORD` finds.
#
# </details>
#
# <details><summary>Hint for <code>rule_question</code></summary>
#
# `_says(pattern, sentences)` gives the sentences in which a pattern stands, `paper.sentences(part)` all
# of a part. Yield `_warn(…)` when there are fewer than `questions`.
#
# </details>
#
# <details><summary>Hint for <code>longest_list</code></summary>
#
# Go through `split_sentences(text)` with two numbers: the present row, which falls back to 0, and the
# longest so far. A citation begins with `[@`; several keys in one are separated by `;`.
#
# </details>
#
# <details><summary>Hint for <code>rule_referred</code></summary>
#
# `_labels(mark)` holds its labels and a name such as `figure 2`. Is any of them among the labels of
# `paper.draft.references`?
#
# </details>
#
# **Predict.** Take the section *Background* out of the repaired draft. How many findings come, and
# from which rules? Not from `balance` and `examples`, though both look at the background: why?
#
# <details><summary>Hint</summary>
#
# What does `looks_at` do? And which symbols were explained only there?
#
# </details>
#
# <details><summary>Answer</summary>
#
# One, from `sections`. A rule that looks at a missing part is silent, so that one cause gives
# one finding. The method says again what its symbols are, so no symbol is lost. The cell below shows it.
#
# </details>
#
# **Vary.** Which threshold of `words_between_marks` would the repaired draft break first, and where?
#
# <details><summary>Hint</summary>
#
# Equation 2 for each part; the largest pace is the first to break.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The part with the largest $d_s$, in the cell below. A draft this short is far from the default.
#
# </details>
#
# **Find the bug.** A colleague counts citations with
# `len(re.findall(r"\\cite", tex))`, and gets more than there are works, though the draft has no comment
# and no macro. Give two reasons.
#
# <details><summary>Hint</summary>
#
# What else begins with `\cite`? And how often may a paper cite one work?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The same work may be cited many times (Equation 4 counts a *set*), and the pattern also finds
# `\citestyle` or `\citeauthor`. It can also find too few: one command may hold several keys.
#
# </details>

# %% [markdown]
# The numbers behind these answers:

# %%
without = dict(files)
without["background.tex"] = "% nothing yet"
for finding in review(read_draft(write_files(without))):
    print(finding)

# %%
paper = outline(repaired)
paces = {part: pace_of(paper.words(part), len(paper.marks(part))) for part in paper.parts}
slowest = max(paces, key=paces.get)
print(f"largest pace: {slowest}, {paces[slowest]:.0f} words a stretch")

# %%
colleague = r"\citep{a} \citep{a} \citestyle{plain} \cite{b, c}"
print(len(re.findall(r"\\cite", colleague)), "found by the pattern")
print(len({c.key for c in read_text(colleague).citations}), "works")

# %% [markdown]
# ## What breaks
#
# ### Source that is broken
#
# An unclosed formula, a brace too many, a figure that never ends, a file that includes itself. Each
# is a finding with a line, and what can be read is read.

# %%
broken = r"""\section{Introduction}
The energy $E is lost here.

A brace } too many, and an \input{main} of itself.
\begin{figure} \caption{Never closed}
\section{Method}
\begin{equation} a = b
"""
for finding in read_text(broken).faults:
    print(finding)

# %% [markdown]
# And the braces from above, ten thousand of them, then half a million characters without a line's end:

# %%
for tex in ("{" * 10_000, "word " * 100_000, r"\newcommand{\a}{\a\a} \a"):
    draft = read_text(tex)
    print(f"{len(tex):7,} characters: {draft.words:,} words, {len(draft.faults)} faults")
print(draft.faults[0])

# %% [markdown]
# ### Nothing to read
#
# Where there is no draft at all, one line says so.

# %% tags=["nbval-check-output"]
with chdir(tempfile.mkdtemp()), shows_error(DraftError):
    read_draft("paper.tex")

# %% tags=["nbval-check-output"]
with chdir(tempfile.mkdtemp()), shows_error(DraftError):
    Path("paper.tex").write_bytes(b"\\section{A}\n\x00\x01")
    read_draft("paper.tex")

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    review(repaired, word_between_marks=300)

# %% [markdown]
# ### Rules that are satisfied by words
#
# The rules look for words, and words can be had cheaply. This introduction passes all three rules of
# the introduction, and asks nothing:

# %%
hollow = r"\section{Introduction} Much is new \citep{a, b}. It remains cold. "
found = {finding.rule for finding in review(read_text(hollow))}
assert not found & {"introduction", "trend", "question"}
sorted(found)

# %% [markdown]
# And an honest text can fail: a paper that names its data "the Lenten photographs" has named no *data
# set*. Read a finding as a question of a reader who only skims.

# %% [markdown]
# ## Recap
#
# - A draft is sections, paragraphs, marks and citations, each with file and line; reading it is one
#   pass over tokens with two stacks.
# - A rule counts, compares with a threshold, and says what was found and what is wanted.
# - The rules are the notes' lines, as far as a program can see them: it sees what is missing, not
#   what is good.
#
# Next: [3 Reading cards](3_reading_cards.ipynb) takes other people's papers apart, and makes the table
# for related work out of them; [4 Experiments](4_experiments.ipynb) runs what the experiments section needs.
