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
# *Time:* 60 minutes, and 21 for the blanks.

# %%
import inspect
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pylatexenc.latexwalker import LatexWalker

from fourfold.kit.canvas import COLOURS, canvas, show
from fourfold.kit.drafts import (
    Draft,
    DraftError,
    Finding,
    Mark,
    Paragraph,
    Place,
    count_words,
    read_draft,
)
from fourfold.kit.drafts.draft import NO_PROSE, counted
from fourfold.kit.notebook import shows_error
from fourfold.kit.settings import chosen
from fourfold.paper_writing.anatomy import outline, pace_of, review, share_of, skeleton

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
        top = draft.sections[paper.parts[part][0]].at
        axes.plot([1, 2.65], [top, top], color=COLOURS["muted"], linewidth=0.5, zorder=0)
        axes.text(2.7, top, text, va="top", size=8)
    works = len(paper.works("related work", "background"))
    share = share_of("related work", "background", paper)
    axes.set_title(
        f"draft $D$: {draft.name}; works $n$ = {works}, share ρ = {share:.2f}\n"
        f"each rule $r$ with its thresholds θ; findings $F$: {len(review(draft))}"
    )
    axes.set_xlim(-1.9, 3.8)
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
# | $\theta_r$ | thresholds of a rule | as the rule says | `rule_thresholds` | thresholds θ |
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
# It does well, until it is fed what a tired person saves at two in the morning:

# %%
with shows_error(RecursionError):
    LatexWalker("{" * 10_000).get_latex_nodes()

# %% [markdown]
# A tree is walked by functions that call themselves, one call deeper for each brace, and Python limits
# how deep calls may go. A program that others point at their drafts must not fall.
#
# The course's own reader, [`fourfold.kit.drafts`](../../lib/fourfold/kit/drafts/latex.py), takes from pylatexenc what is
# sound: its tables of what hundreds of macros take as arguments, and which sign `\'e` or `\ldots`
# stands for. It goes through the text itself, one **token** (the smallest piece that means something)
# after the other, and keeps two lists. On the first lie the sources: the main file, on top of it a file
# that it includes, on top of that the body of a macro. On the second lies what is open: groups,
# formulas, environments. Nothing calls itself, so nothing falls. Reading drafts is not what this lesson teaches; how to
# use what was read is.
#
# ### Values: what a draft is
#
# A draft as it was read is made of five kinds of things, each with its place: sections, paragraphs,
# marks, citations and references (`\ref{fig:a}`, "see Figure 1"). A mark is a figure, a table, a
# displayed formula or an algorithm, as before; `marks` holds all four kinds in reading order.

# %%
print(weak)
weak.sections[0], weak.marks[0], weak.citations[0]

# %% [markdown]
# The traps that the patterns fell into:


# %%
def read_text(tex, name="main.tex"):
    """A draft from a text."""
    return read_draft(write_files({"main.tex": "", name: tex}).parent / name)


for trap, tex in traps.items():
    draft = read_text(tex)
    counts = len([s for s in draft.sections if s.title]), len(draft.citations)
    assert counts == truth[trap], trap
    print(f"{trap:20} {counts}  right")

# %% [markdown]
# What is a word (Equation 1)? A run of letters in any script that has spaces, with hyphens and
# apostrophes inside. Formulas and citations stand in the text of a paragraph as `$…$` and `[@key]`,
# in LaTeX and in Markdown alike, and do not count.

# %%
assert count_words("a well-known author's view") == 4
count_words("if $x_i = y$ then [@a; @b] stop"), count_words("naïve Größe in 3 cases")

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
    "experiments": r"experiments?|experimental .*|evaluation|(?<!theoretical )results|empirical .*"
    r"|case stud(y|ies)",
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
_SHORT = (
    "e.g i.e al cf vs resp approx Fig Figs Tab Tabs Eq Eqs Sec Secs Alg Algs App Thm Lem Prop Ref"
)
_ABBREVIATION = "".join(rf"(?<!\b{re.escape(word)})" for word in _SHORT.split())
_SENTENCE = re.compile(_ABBREVIATION + r"[.!?]+[)\"'”’\]]*\s+(?!\[#)(?=[A-Z\d\[$(“\"@])")


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

    `behind` maps a part to its first section in the appendix. The rules read the draft through
    an outline.
    """

    draft: Draft
    parts: Mapping[str, tuple[int, ...]]
    behind: Mapping[str, int] = field(default_factory=dict)

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

    A subsection belongs to the part of the section around it, except where that names several,
    and except for related work and background, which papers also put inside other sections. Where
    no title names the method, the longest unnamed section between the introduction and the
    experiments is taken for it. The appendix belongs to no part.
    """
    top = min((s.level for s in draft.sections), default=1)
    parts: dict[str, list[int]] = {part: [] for part in titles}
    behind: dict[str, int] = {}
    above: list[str] = []
    for index, section in enumerate(draft.sections):
        own = [] if section.appendix else _named(section.title, titles)
        if section.level == top:
            above, mine = own, own
        elif section.appendix:
            mine = []
        else:
            inner = own if len(above) > 1 else [p for p in own if p in _STANDS_INSIDE]
            mine = inner or above
        for part in mine:
            parts[part].append(index)
        if section.appendix:
            for part in _named(section.title, titles):
                behind.setdefault(part, index)
    if "method" in parts and not parts["method"]:
        parts["method"] = _unnamed_method(draft, parts, top)
    return Outline(draft, {part: tuple(indices) for part, indices in parts.items()}, behind)


# %%
paper = outline(weak)
{part: [weak.sections[i].title for i in indices] for part, indices in paper.parts.items()}

# %% [markdown]
# No title says "background", so that part is empty. A rule that needs it stays silent, and
# one finding of the first rule speaks for it: a missing section is one thing to mend, not three.

# %% tags=["promote"]
Rule = Callable[..., Iterable[Finding]]


def _looks_at(*parts: str) -> Callable[[Rule], Rule]:
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
@_looks_at()
def rule_sections(paper: Outline) -> Iterator[Finding]:
    """All parts of a paper are there."""
    for part, indices in paper.parts.items():
        if not indices and part in paper.behind:
            place = paper.draft.sections[paper.behind[part]].place
            found, wanted = f"{part} stands only in the appendix", f"{part} before the appendix"
            yield _warn("sections", place, found, wanted)
        elif not indices:
            found, wanted = f"no section called {part}", f"a section for the {part}"
            yield _warn("sections", Place(paper.draft.name, 1), found, wanted)


# %% [markdown]
# ### Introduction: the trend and the question
#
# "One to three; where is the field moving; the question." A rule is a small function: it counts, it
# compares, it says what was found and what is wanted. Thresholds are arguments with a name.


# %% tags=["promote"]
@_looks_at("introduction")
def rule_introduction(
    paper: Outline, *, introduction_paragraphs: tuple[int, int] = (1, 3)
) -> Iterator[Finding]:
    """The introduction is short. The notes say “1–3”; we read: paragraphs."""
    least, most = introduction_paragraphs
    count = len(paper.paragraphs("introduction"))
    if not least <= count <= most:
        found = f"{counted(count, 'paragraphs')} of introduction"
        yield _warn("introduction", paper.place("introduction"), found, f"{least} to {most}")


@_looks_at("introduction")
def rule_trend(paper: Outline, *, introduction_works: int = 2) -> Iterator[Finding]:
    """The introduction says where the field is moving, and so cites."""
    count = len(paper.works("introduction"))
    if count < introduction_works:
        wanted = f"where the field is moving, with {introduction_works} works or more"
        yield _warn(
            "trend", paper.place("introduction"), f"{counted(count, 'works')} cited", wanted
        )


_QUESTION = r"\?|" + _any(
    "question, questions, we ask, unexplored, remains, remain, open problem, unclear, unknown,"
    " little is known, not known, whether"
)


# %% tags=["promote", "exercise"]
@_looks_at("introduction")
def rule_question(paper: Outline, *, questions: int = 1) -> Iterator[Finding]:
    """The introduction states the question."""
    asked = _says(_QUESTION, paper.sentences("introduction"))
    if len(asked) < questions:
        found = f"{counted(len(asked), 'sentences')} with a question"
        wanted = f"{questions}: a question mark, “we ask whether”, “remains unexplored”"
        yield _warn("question", paper.place("introduction"), found, wanted)


# %% tags=["check"]
asks = outline(read_text("\\section{Introduction} It works. Does it?"))
tells = outline(read_text("\\section{Introduction} It works. It does."))
assert not list(rule_question(asks)), "a question mark states a question"
(told,) = rule_question(tells)
assert told.rule == "question" and told.place.line == 1, "the finding names its rule and its place"
assert len(list(rule_question(asks, questions=2))) == 1, "`questions` says how many are asked for"
said = outline(read_text("\\section{Introduction} It works. We ask whether it does."))
assert not list(rule_question(said)), "words state a question, too: _QUESTION lists them"
late = outline(read_text("\\section{Introduction} It does. \\section{Method} Why?"))
assert len(list(rule_question(late))) == 1, "a question in the method is not in the introduction"

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
@_looks_at("related work", "background")
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


@_looks_at("related work")
def rule_works(paper: Outline, *, works: tuple[int, int] = (10, 15)) -> Iterator[Finding]:
    """Related work and background together cite ten to fifteen works (equation 4)."""
    least, most = works
    count = len(paper.works("related work", "background"))
    if not least <= count <= most:
        found = f"{counted(count, 'works')} cited in related work and background"
        yield _warn("works", paper.place("related work"), found, f"{least} to {most}")


_EXAMPLE = r"\be\.g\.|\$[^$]*=\s*-?\d|" + _any(
    "for example, for instance, such as, example, examples"
)


# %% tags=["promote"]
@_looks_at("background")
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
            counts = (
                f"{counted(len(equations), 'equations')} and {counted(len(examples), 'examples')}"
            )
            found = f"{counts} under {_quote(title)}"
            wanted = (
                f"{examples_per_equation:g} example for each (“for example”, or numbers put in)"
            )
            yield _warn("examples", equations[0].place, found, wanted)


# %% [markdown]
# "Related work may list, and it can be a table; or it asks why there are so many papers, and
# discusses what is common and what differs: what A left open, B overcame; the flaw may sit in another
# problem." An abstraction carries such a discussion; [3 Reading cards](3_reading_cards.ipynb) makes one. What no reader wants is the third kind: *A did this [1].
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
assert longest_list("It is old. A [@a]. B [@b].") == 2, "a row may begin late"
assert longest_list("A [@a]. Whereas B [@b].") == 1, "_COMPARES lists the words that compare"
assert longest_list("Many did it [@a; @b]. Others [@c] and [@d] too.") == 0, (
    "several are discussed together"
)


# %% tags=["promote"]
@_looks_at("related work")
def rule_discussion(
    paper: Outline, *, comparisons: int = 2, listed_in_a_row: int = 4
) -> Iterator[Finding]:
    """Related work says what is common and what differs, or lists it in a table."""
    if paper.marks("related work", kind="table"):
        return
    found = _says(_COMPARES, paper.sentences("related work"))
    if len(found) < comparisons:
        text = f"{counted(len(found), 'comparisons')} in related work"
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


def _range_text(least: int, most: int) -> str:
    one = "one such figure" if most == 1 else f"{most} such figures"
    return one if least == most else f"{least} to {most} such figures"


def _labels(mark: Mark) -> set[str]:
    return {*mark.labels, f"{mark.kind} {mark.number}"}


def _method_figures(paper: Outline) -> list[Mark]:
    """The figures that stand in the method, or are referred to there."""
    inside = paper.parts["method"]
    named = {r.label for r in paper.draft.references if r.section in inside}
    return [m for m in paper.draft.figures if m.section in inside or named & _labels(m)]


@_looks_at("method")
def rule_pipeline(paper: Outline, *, pipelines: tuple[int, int] = (1, 1)) -> Iterator[Finding]:
    """One figure shows the method from its beginning to its end."""
    least, most = pipelines
    shown = [m for m in _method_figures(paper) if re.search(f"(?i){_PIPELINE}", m.caption)]
    if not least <= len(shown) <= most:
        figures = counted(len(shown), "figures")
        found = f"{figures} with a pipeline, overview or architecture in the caption"
        yield _warn("pipeline", paper.place("method"), found, _range_text(least, most))


_DIMENSION = (
    r"\\mathbb\s*\{?\s*R|\\Re?\b|\\times|\bdimension|-dimensional|\bshapes?\b|\b\d+ (by|x|×) \d+"
    r"|×|\bof size\b|\bof length\b"
)
_SPACE = r"\\mathbb\s*\{?\s*R"
_MAPS = (
    r"\bmap(?:s|ped|ping)?\b.{1,200}\b(?:in)?to\b|\bfrom\b.{1,80}"
    rf"{_SPACE}.{{1,80}}\bto\b.{{1,80}}{_SPACE}|{_SPACE}[^$]*\\(?:long)?(?:to|rightarrow)\b[^$]*{_SPACE}"
)
_ENDS = {
    "input": r"\binputs?\b|\btakes\b|\bgiven\b",
    "output": r"\boutputs?\b|\breturns?\b|\bpredicts?\b",
}


# %% tags=["promote"]
@_looks_at("method")
def rule_dimensions(paper: Outline) -> Iterator[Finding]:
    """The method states the dimensions of its input and of its output."""
    formulas = [(f"${m.text}$", m.place) for m in paper.marks("method", kind="equation")]
    sized = _says(_DIMENSION, [*paper.sentences("method"), *formulas])
    both = [s for s, _ in _says(_MAPS, sized) if len(re.findall(_DIMENSION, s)) > 1]
    for end, words in _ENDS.items():
        if not both and not _says(words, sized):
            found = f"no sentence with both the {end} and a dimension"
            wanted = rf"“the {end} is $x \in \mathbb{{R}}^{{H \times W}}$”"
            yield _warn("dimensions", paper.place("method"), found, wanted)


# %% [markdown]
# "What is on the figure is in the formulas; figure, words and formulas can be matched one to one."
# For this we need the symbols of a formula: letters with their fonts, without their indices.

# %% tags=["promote"]
_FONT = (
    r"\\(?:mathbf|mathcal|mathbb|mathsf|mathfrak|boldsymbol|bm|bar|hat|tilde|vec|dot|widehat"
    r"|widetilde|overline|underline)(?![A-Za-z])"
)
_GREEK = (
    r"\\(?:(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi"
    r"|rho|sigma|tau|upsilon|phi|chi|psi|omega)|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi"
    r"|Psi|Omega|ell)(?![A-Za-z])"
)
_NO_SYMBOL = re.compile(
    r"\\(?:text\w*|mathrm|mathit|operatorname\*?|mbox|label|begin|end|tag|color)\s*\{[^{}]*\}"
)
_SCRIPT = re.compile(rf"[_^]\s*(?:\{{[^{{}}]*\}}|(?:{_FONT}\s*)?(?:\{{[^{{}}]*\}}|\\[A-Za-z]+|\w))")
_OTHER_COMMAND = re.compile(rf"(?!{_FONT}|{_GREEK})\\(?:[A-Za-z]+|.)", re.DOTALL)
_SYMBOL = re.compile(rf"((?:{_FONT}[\s{{]*+)*+)({_GREEK}|[A-Za-z]+)")


def formula_symbols(tex: str) -> set[str]:
    r"""The symbols of a formula: Latin and Greek letters with their fonts, without their indices.

    >>> sorted(formula_symbols(r"\mathbf{x}_{t+1} = \alpha\, x_t + \text{noise} + \exp(W^{2} z)"))
    ['W', '\\alpha', '\\mathbf{x}', 'x', 'z']
    """
    tex = _NO_SYMBOL.sub(" ", tex)
    for _ in range(4):  # an index may hold an index
        tex = _SCRIPT.sub(" ", tex)
    found = set()
    for fonts, run in _SYMBOL.findall(_OTHER_COMMAND.sub(" ", tex)):
        fonts = re.findall(_FONT, fonts)
        # Two or three letters are a product, Wx; more are a name such as softmax.
        for letter in [run] if run[0] == "\\" else run if len(run) <= 3 else "":
            found.add("".join(rf"{font}{{" for font in fonts) + letter + "}" * len(fonts))
    return found


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
        for symbol in {symbol for piece in pieces for symbol in formula_symbols(piece)}:
            forms.setdefault(symbol, set()).add(form)
    return forms


@_looks_at("method")
def rule_symbols(paper: Outline, *, ignored_symbols: str = "d e i j k n") -> Iterator[Finding]:
    """What stands in the method's formulas also stands in its words, and on its figure."""
    common = (*ignored_symbols.split(), r"\mathbb{R}", r"\mathbb{E}")  # every reader knows them
    forms = {s: f for s, f in symbol_forms(paper).items() if s not in common}
    for mark in paper.marks("method", kind="equation"):
        here = sorted(formula_symbols(mark.text) & set(forms))
        if lost := [symbol for symbol in here if "words" not in forms.pop(symbol)]:
            names = ", ".join(f"${symbol}$" for symbol in lost)
            found = f"no sentence says what {names} {'is' if len(lost) == 1 else 'are'}"
            yield _warn(
                "symbols", mark.place, found, "the meaning, in the prose around the formula"
            )
    for mark in _method_figures(paper):
        lost = [
            s
            for s in _formulas([f"{mark.caption} {mark.text}"])
            for s in sorted(formula_symbols(s))
        ]
        for symbol in dict.fromkeys(lost):
            if forms.get(symbol) == {"figure"}:
                found = f"${symbol}$ stands on a figure, and in no formula or sentence"
                yield _warn("symbols", mark.place, found, "the same symbols on all three")


# %% tags=["promote"]
@_looks_at("method")
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
@_looks_at()
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
two = one + one.replace("fig:a", "fig:b")
assert len(list(rule_referred(outline(read_text(two))))) == 2, "one finding for each figure"
assert not list(rule_referred(outline(read_text(r"\[ a = b \]")))), "no one asks it of an equation"
bare = r"\begin{table}\caption{A}\end{table} "
assert len(list(rule_referred(outline(read_text(bare))))) == 1, "a label is not needed to be missed"
assert not list(rule_referred(outline(read_text(bare + "See Table 1.")))), "nor to be found"


# %% tags=["promote"]
@_looks_at()
def rule_captions(paper: Outline, *, caption_words: int = 5) -> Iterator[Finding]:
    """Every figure and table has a caption that says something."""
    for mark in [*paper.draft.figures, *paper.draft.tables]:
        if (words := count_words(mark.caption)) < caption_words:
            found = f"the caption of {mark.kind} {mark.number} has {counted(words, 'words')}"
            yield _warn("captions", mark.place, found, f"{caption_words} or more, what to see")


def pace_of(words: int, marks: int) -> float:
    """Words of prose between two marks, on average (equation 2): m marks leave m + 1 stretches."""
    return words / (marks + 1)


@_looks_at()
def rule_pace(paper: Outline, *, words_between_marks: float = 500) -> Iterator[Finding]:
    """Words and figures complete each other: no part is long without figure, table or formula."""
    for part in paper.parts:
        words, marks = paper.words(part), len(paper.marks(part))
        if paper.parts[part] and pace_of(words, marks) > words_between_marks:
            stretch = f"{pace_of(words, marks):.0f} words a stretch"
            found = f"{counted(words, 'words')} and {counted(marks, 'marks')} in {part}: {stretch}"
            wanted = f"{words_between_marks:g} at most between two figures, tables or formulas"
            yield _warn("pace", paper.place(part), found, wanted)


# %% [markdown]
# ### Experiments and conclusion
#
# "It runs; does it run on several data sets? Why these hyperparameters, and what is the role of each?
# Ablation: with and without. Ugly pictures serve for comparison. Interpretability is not required;
# hedge, could, might." These are looked for by their words, and words can be missed: a finding here
# is a question to you, not a verdict. That it runs at all, no rule asks: any number in a table says it.
# And a limit may be your method's own or the whole field's: say which; the rule sees that one is named.

# %% tags=["promote"]
_DATA = _any(
    "data set, data sets, dataset, datasets, data-set, data-sets, benchmark, benchmarks, corpus,"
    " corpora, collection, collections, recordings"
)
_TRIES = re.compile(
    r"(?i)\b(?:evaluat|train|test|experiment)\w*(?: [\w-]+){0,5} on ([^.;]*)(?<!GPU)(?<!GPUs)"
)
_MACHINE = re.compile(r"\b(?:[CGT]PUs?|NVIDIA)\b")
_SET_NAME = re.compile(r"(?<![\w-])[a-z]{0,3}[A-Z][\w-]{0,40}(?: \d+)?")
_NUMBER_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
_COMMON = frozenset(
    re.findall(
        r"\S+",
        "A All An As At Both By Data Each Figure For From In It On Our Section Table That The"
        " Their These They This Three To Two We With",
    )
)


@_looks_at("experiments")
def rule_data_sets(paper: Outline, *, data_sets: int = 2) -> Iterator[Finding]:
    """The method runs on several data sets.

    A guess: the larger of a number word before “data sets”, and of the names with a capital letter
    in sentences (and captions) that speak of data sets, or follow “evaluated on”. A name that
    stands nowhere near such words is missed, a person's name beside them is counted.
    """
    count, names, numbers = 0, set(), "|".join(_NUMBER_WORDS)
    for sentence, _ in _says(_DATA, paper.sentences("experiments")):
        plain = NO_PROSE.sub(" ", sentence)
        for word in re.findall(rf"(?i)\b({numbers})(?: [\w-]+){{0,2}} (?={_DATA})", plain):
            count = max(count, _NUMBER_WORDS[word.lower()])
        if len(plain.split()) > 3:  # fewer are a heading, such as “Data sets and baselines.”
            names |= set(_SET_NAME.findall(plain))
    for sentence, _ in paper.sentences("experiments"):
        for where in _TRIES.findall(NO_PROSE.sub(" ", sentence)):
            names |= set() if _MACHINE.search(where) else set(_SET_NAME.findall(where))
    names = {name for name in names - _COMMON if not re.search(f"(?i){_DATA}", name)}
    count = max(count, len(names))
    if count < data_sets:
        found = f"{counted(count, 'data sets')} named ({', '.join(sorted(names)) or 'none'})"
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
@_looks_at("experiments")
def rule_hyperparameters(paper: Outline, *, reasons: int = 1) -> Iterator[Finding]:
    """The experiments say why hyperparameters have their values, or what the role of each is."""
    sentences = paper.sentences("experiments")
    given = _says(_REASON, _says(_CHOICE, sentences)) + _says(_ROLE, sentences)
    if len(given) < reasons:
        found = f"{counted(len(given), 'reasons')} given for a setting"
        wanted = f"{reasons}: “we set … because …”, or a study of the role of each"
        yield _warn("hyperparameters", paper.place("experiments"), found, wanted)


_ABLATION = _any(
    "ablat*, with and without, without the, without our, without this, without any, w/o,"
    " remove the, removes the, removed the, removing the, remove our, removing our, leave-one*"
)


@_looks_at("experiments")
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
@_looks_at("experiments")
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


_INTERPRET = _any(
    "interpret*, explainab*, attention map, attention maps, attention weight, attention weights,"
    " attention head, attention heads, saliency, understands, understood, knows that"
)
_HEDGE = _any(
    "could, might, may, perhaps, suggest, suggests, appear, appears, seem, seems, possible,"
    " possibly, likely"
)


@_looks_at("experiments")
def rule_hedge(paper: Outline) -> Iterator[Finding]:
    """Interpretation is not required, and where it is offered it is hedged: could, might, may."""
    for paragraph in paper.paragraphs("experiments", "conclusion"):
        bold = re.search(f"(?i){_INTERPRET}", paragraph.text)
        if bold and not re.search(f"(?i){_HEDGE}", paragraph.text):
            found = f"{_quote(bold[0])} without a hedge"
            yield _warn("hedge", paragraph.place, found, "“could”, “might”, and how you see it")


_LIMIT = _any(
    "limited, limitation*, limits, shortcoming*, drawback*, cannot, does not, did not, weakness*,"
    " restricted, restriction*,"
    " only work, only works, only tested, only studied"
)
_FUTURE = _any(
    "future, untried, no time, not tried, not yet tried, not tested, not explored, left open,"
    " left for, left to, remains to, remains open, remain to, next step*, we plan, yet to,"
    " open question*"
)


# %% tags=["promote"]
@_looks_at("conclusion")
def rule_limits(paper: Outline) -> Iterator[Finding]:
    """The conclusion names limitations."""
    if not _says(_LIMIT, paper.sentences("conclusion")):
        found = "no sentence names a limitation"
        yield _warn(
            "limits", paper.place("conclusion"), found, "what the method or the field cannot do"
        )


@_looks_at("conclusion")
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


def rule_thresholds(rules: Mapping[str, Rule] = RULES) -> dict[str, object]:
    """The thresholds of the rules and their defaults."""
    found = {}
    for rule in rules.values():
        for name, parameter in inspect.signature(rule).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                found[name] = parameter.default
    return found


# %%
rule_thresholds()

# %% [markdown]
# A review shows itself: as a table in a notebook, as plain lines in a terminal.


# %% tags=["promote"]
def _row(finding: Finding) -> str:
    found, wanted = (text.replace("|", r"\|") for text in (finding.found, finding.wanted))
    if finding.severity == "error":  # it quotes source, which Markdown would read as its own
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
        return counted(len(self), "findings") + (f" ({counts})" if counts else "")

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
    settings  thresholds by name, such as `works=(5, 20)`; `rule_thresholds()` lists them

    Raises ValueError for a rule or a threshold that does not exist; the nearest names are offered.
    """
    rules = rules if isinstance(rules, Mapping) else chosen(rules, RULES, "rules")
    chosen(settings, rule_thresholds(rules), "thresholds")
    paper, findings = outline(draft, titles), list(draft.faults)
    for rule in rules.values():
        if all(paper.parts.get(part) for part in getattr(rule, "parts", ())):
            own = rule_thresholds({"": rule})
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
        label = counted(len(lanes[kind]), label)
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
# Every line is something to do, and each has its place. (What stands behind the `%` in `main.tex`
# is not among it.) We mend the draft in four steps and look at the report after each.
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
gone, come = (Counter(f.rule for f in found) for found in (before, after))
print(f"{len(before)} findings before, {len(after)} after")
print("mended:", dict(gone - come))
print("new:   ", dict(come - gone))

# %% [markdown]
# A new figure brings new findings: nobody refers to it yet, and its $h$ stands in no formula.

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
# skeletons side by side, each as long as the page, so that their scales of words differ:


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
print(f"{len(thirty_pages):,} characters: {perf_counter() - start:.2f} s")

# %% [markdown]
# ## Exercises
#
# In the exercise edition (`fourfold start`) these bodies are blank; each has its check directly
# below.
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `rule_question` | 6 | ●○○ |
# | `longest_list` | 8 | ●●○ |
# | `rule_referred` | 7 | ●●○ |
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
# from which rules?
#
# <details><summary>Hint</summary>
#
# What does `_looks_at` do? And which symbols were explained only there?
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
# - A draft is sections, paragraphs, marks, citations and references, each with file and line; a
#   library reads it.
# - A rule counts, compares with a threshold, and says what was found and what is wanted.
# - The rules are the notes' lines, as far as a program can see them: it sees what is missing, not
#   what is good.
#
# Next: [3 Reading cards](3_reading_cards.ipynb) takes other people's papers apart, and makes the table
# for related work out of them; [4 Experiments](4_experiments.ipynb) runs what the experiments section needs.
