# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 50
#     needs:
#     - 1_paper_writing/1_one_line
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading cards: four questions for every paper
#
# **After this lesson you can** read a paper with four questions, keep the answers on a card that
# refuses a mistake, and turn a pile of cards into the table and the discussion of a related work.
#
# *Before this:* [1 One line](1_one_line.ipynb), and Python's dictionaries and sets.
# *Time:* 50 minutes, and 40 for the blanks.

# %%
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
import yaml
from IPython.display import Markdown
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.notebook import shows_error
from fourfold.paper_writing.reading_cards import (
    PLACES,
    agreement,
    compare,
    largest_share,
    read_cards,
)

# %% [markdown]
# ## Words
#
# A paper read without a question is forgotten in a week. The notes that this course grew from put
# **four questions** to each paper:
#
# 1. What is the key research question?
# 2. What is new against earlier methods (创新点), and *in which part of the paper* is each new thing
#    introduced: abstract, introduction, related work, method?
# 3. Which experiments are there?
# 4. Are the results shown as a figure, a table or in another form, and what does that form let the
#    reader see?
#
# The answers go on a **reading card**: one small file for one paper, the same fields on every card.
# One card is a memory. Several cards are a **related work**, because the same field can be read
# across them (ten to fifteen papers, in our reading of the notes). Each card also names its **aspects** (方面), such as task, input or backbone (the main
# network): for card $i$ and aspect $a$ there is a value $v_i(a)$, a few words. Where all $n$ cards
# hold the same value, that is what the papers *share*. Where most of them do, one says *usually*.
# Where they differ, they *part*, and there the discussion begins.
#
# The notes know two ways to write related work. **The list** (罗列): paper A left something open,
# paper B overcame it, and the flaw may even sit in another problem; a table does this in few words.
# **The discussion** (讨论): why are there so many papers? What do all of them do, what do we make
# of that, and where do they go different ways? For the second way one needs an *abstraction*, a
# scheme of parts that every paper fills in its own manner. The aspects are that scheme.

# %% [markdown]
# ## Figure
#
# The course takes four papers apart; their cards stand in `data/cards/`. Here they are, oldest
# first. (The cells of this section use the finished functions of the library; the section *Code*
# builds each of them.)

# %%
cards = read_cards(data_path("cards"))
for card in cards:
    print(f"{card.year}  {card.short_name:10} {len(card.innovations)} innovations   {card.title}")

# %% [markdown]
# The second question first, since it is the one that readers skip. Each dot is a part of the
# paper in which one new thing is introduced. (What AdaLN or a virtual track is, the papers' chapters
# explain; here only the places matter.)


# %%
def draw_places(cards):
    new = [(card.short_name, item) for card in cards for item in card.innovations]
    figure, axes = canvas(height=0.24 * len(new) + 0.6)
    for row, (_, item) in enumerate(new):
        spots = [PLACES.index(place) for place in item.where_introduced]
        axes.plot(spots, [row] * len(spots), color=COLOURS["muted"], linewidth=1)
        axes.plot(spots, [row] * len(spots), "o", color=COLOURS["first"], markersize=8)
    axes.set_yticks(range(len(new)), [item.name for _, item in new])
    axes.set_xticks(range(len(PLACES)), PLACES)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set(xlim=(-0.4, len(PLACES) + 0.4), ylim=(len(new) - 0.5, -0.5))
    for n, card in enumerate(cards):
        rows = [row for row, (name, _) in enumerate(new) if name == card.short_name]
        band = {"color": COLOURS["muted"], "alpha": 0.25 * (n % 2), "linewidth": 0}
        axes.axhspan(rows[0] - 0.5, rows[-1] + 0.5, **band)
        axes.text(len(PLACES) - 0.55, np.mean(rows), card.short_name, va="center", weight="bold")
    axes.spines[:].set_visible(False)
    return figure


show(
    draw_places(cards),
    alt="A chart with one row for each innovation of the four papers and one column for each part"
    " of a paper. Most rows have dots under abstract and method, some also under introduction; only"
    " one has a dot under related work; two have a dot under method alone.",
)

# %% [markdown]
# See the column *method*: it is full, since nothing is new before someone has said how it is built.
# See the single dots: an innovation that stands in the method alone is easily missed by whoever
# reads the first page and the last. And see *related work*, nearly empty: that part of a paper
# holds mostly what is **not** new, which is worth a field of its own on the card.
#
# Now the same four cards read *across*. One row is an aspect, one column a paper. Papers with the
# same letter in a row hold the same value there.


# %%
def draw_letters(axes, row, values):
    """One row of the grid: a letter for each value, a shade where several cards hold it."""
    order = sorted({*values} - {None}, key=lambda v: (-values.count(v), values.index(v)))
    for i, value in enumerate(values):
        letter = "–" if value is None else chr(ord("A") + order.index(value))
        together = values.count(value) if value else 1
        shade = str(1 - 0.4 * together / len(values) if together > 1 else 1)
        axes.fill_between([i - 0.5, i + 0.5], row - 0.45, row + 0.45, color=shade)
        axes.text(i, row, letter, ha="center", va="center")


# %% tags=["figure"]
def draw_comparison(cards):
    figure, (left, right) = canvas(1, 2, height=4.1, width_ratios=(1.25, 1))
    shares = {aspect: largest_share(cards, aspect) for aspect in compare(cards).header[1:]}
    aspects = sorted(shares, key=lambda a: (-shares[a], a))
    n, names = len(cards), [card.short_name for card in cards]
    for row, aspect in enumerate(aspects):
        draw_letters(left, row, [card.aspects.get(aspect) for card in cards])
        left.text(n, row, f"{shares[aspect]:.2f}", ha="center", va="center")
    for name, low, high in (("$S$", 0.99, 2), ("$U$", 0.51, 0.99), ("$D$", 0, 0.51)):
        rows = [row for row, aspect in enumerate(aspects) if low < shares[aspect] <= high]
        left.plot([n + 0.6, n + 0.6], [rows[0] - 0.3, rows[-1] + 0.3], color="black")
        left.text(n + 0.8, np.mean(rows), name, va="center")
    for i, card in enumerate(cards):
        left.text(i, len(aspects), len(card.aspects), ha="center", va="center")
    left.text(n, -1, "$m(a)$", ha="center")
    left.set_xticks(range(n), names, rotation=30)
    left.set_yticks(range(len(aspects) + 1), [*aspects, "size of $A_i$"])
    left.set(xlim=(-0.5, n + 1.3), ylim=(len(aspects) + 0.5, -1.6), xlabel=f"n = {n} cards")
    left.set_title("one letter: one $H_a(t)$, the cards\nthat hold the same $v_i(a)$")
    J = agreement(cards).to_numpy()
    right.imshow(J, cmap="Greys", vmin=0, vmax=2)
    for i, j in np.ndindex(n, n):
        right.text(j, i, f"{J[i, j]:.2f}", ha="center", va="center")
    right.set_xticks(range(n), names, rotation=30)
    right.set_yticks(range(n), names)
    right.set_title("agreement $J_{ij}$ of two cards")
    for axes in (left, right):
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


show(
    draw_comparison(cards),
    alt="Left: a grid of letters, aspects by papers. The row 'output is reached' has the same letter"
    " four times; 'elements interact' three times; most other rows twice or never. Beside it the"
    " largest share of each row. Right: a matrix of agreement, high for the two papers on molecules"
    " and for the two on motion, low between the pairs.",
)

# %% [markdown]
# Left: at the top the one thing that all four share (*repeated refinement*: each starts from
# something plain and improves it with the same network again and again), then what is usual, then
# where they part. Right: the share of aspects on which two cards agree. Two pairs stand out, two
# papers about molecules and two about motion, and you could have guessed them; what you could not
# have guessed is the first row.

# %% [markdown]
# ## Formula
#
# A card is a function: card $i$ gives the aspect $a$ a value $v_i(a)$, unless the card says nothing
# of $a$. Let $A_i$ be the set of aspects that card $i$ names, and let there be $n$ cards. Fix one
# aspect $a$ and collect the cards that hold one value $t$, its **holders** $H_a(t)$:
#
# $$ H_a(t) = \{\, i : a \in A_i,\; v_i(a) = t \,\} \tag{1} $$
#
# The largest group of holders, as a share of **all** cards, also of those that say nothing, is one
# number for the aspect, $m(a)$:
#
# $$ m(a) = \frac{1}{n}\, \max_t \left| H_a(t) \right| \tag{2} $$
#
# It sorts the aspects into three sets: those that all cards share, $S$; those with a usual value,
# $U$; and those in which the papers differ, $D$. Together they hold every aspect, each in one set:
#
# $$ S = \{\, a : m(a) = 1 \,\}, \qquad U = \{\, a : \tfrac12 < m(a) < 1 \,\}, \qquad
# D = \{\, a : m(a) \le \tfrac12 \,\} \tag{3} $$
#
# Two cards are compared on the aspects that both name. Their **agreement** $J_{ij}$ is the share of
# these on which they hold the same value; with no aspect in common it is not a number:
#
# $$ J_{ij} = \frac{\left| \{\, a \in A_i \cap A_j : v_i(a) = v_j(a) \,\} \right|}
# {\left| A_i \cap A_j \right|} \tag{4} $$
#
# It is the same from both sides, $J_{ij} = J_{ji}$, and a card agrees with itself, $J_{ii} = 1$.
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $n$ | number of cards | a count | `n` | n |
# | $v_i(a)$ | value that card $i$ gives the aspect $a$ | a few words, or nothing | `value` | $v_i(a)$ |
# | $A_i$ | set of the aspects that card $i$ names | a set of names | `aspects` | $A_i$ |
# | $H_a(t)$ | holders, the cards whose value of $a$ is $t$ | a set of cards | `holders` | $H_a(t)$ |
# | $m(a)$ | largest share of cards that hold one value | in [0, 1] | `largest_share` | $m(a)$ |
# | $S$ | aspects that all cards share | a set of names | `shared` | $S$ |
# | $U$ | aspects with a usual value | a set of names | `usual` | $U$ |
# | $D$ | aspects in which the papers differ | a set of names | `differing` | $D$ |
# | $J_{ij}$ | agreement of two cards | in [0, 1] | `agreement` | $J_{ij}$ |
#
# One number by hand. *Transformer* is the backbone of two of the four:

# %%
backbones = [card.aspects.get("backbone") for card in cards]
assert largest_share(cards, "backbone") == 2 / 4
backbones

# %% [markdown]
# ## Code
#
# ### A dictionary is not enough
#
# The naive card is a file in YAML (a plain text format of `field: value` lines), read into a
# dictionary.

# %%
naive = yaml.safe_load("""
title: Lift Your Molecules
arxiv: 2406.10510
inovations:
- synthetic coordinates
""")
assert str(naive["arxiv"]) != "2406.10510"
naive["arxiv"], naive.get("innovations", [])

# %% [markdown]
# Two things went wrong and nobody said so. The arXiv number was taken for a decimal fraction, whose
# last zero is worth nothing. And the field is misspelt, so whoever asks for the innovations finds
# none.
#
# One can test by hand, field after field. Such tests grow as long as the card:


# %%
def read_naive(text):
    """The card as a dictionary, with a few of the tests it would need."""
    fields = yaml.load(text, Loader=yaml.BaseLoader)  # every value stays the text it is
    for name in ("title", "question", "innovations"):
        if name not in fields:
            raise ValueError(f"{name} is missing")
    return fields


with shows_error(ValueError):
    read_naive("title: Lift Your Molecules\nquestion: a way back?\ninovations: []")

# %% [markdown]
# ### The parts of a card
#
# Better to write down once what a card *is*, and let the tests follow from that. `pydantic` does
# this: a class lists the fields with their types, and making an object from a dictionary checks
# all of them. First the small words: a text has no empty form, and line breaks in it count as
# spaces; a list of one may be written without brackets.


# %% tags=["promote"]
_Place = Literal["abstract", "introduction", "related work", "method"]
PLACES: tuple[str, ...] = get_args(_Place)


def _one_line(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Text = Annotated[str, BeforeValidator(_one_line), StringConstraints(min_length=1)]
_Texts = Annotated[tuple[_Text, ...], BeforeValidator(_listed)]

# %% [markdown]
# Then the parts. Question 2 asks *where*, so an innovation without a place is not complete; and this
# course rebuilds what it reads, so an innovation can name its lesson.


# %% tags=["promote"]
class _Part(BaseModel):
    """Known fields only; an empty field counts as absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        known = cls.model_fields
        return {name: value for name, value in fields.items() if value or name not in known}


class Innovation(_Part):
    """One new thing: what it is, where the paper introduces it, against what, rebuilt where."""

    name: _Text
    what: _Text
    where_introduced: Annotated[tuple[_Place, ...], BeforeValidator(_listed), Field(min_length=1)]
    against: _Text
    how: _Text | None = None
    lesson: Annotated[str, StringConstraints(pattern=r"^\d+_[a-z0-9_]+/\d+_[a-z0-9_]+$")] | None = (
        None
    )


# %% [markdown]
# The parts for gaps, experiments, forms of presentation and words are as small.


# %% tags=["promote"]
class Gap(_Part):
    """What an earlier paper left open and this one overcame, perhaps in another problem."""

    paper: _Text
    gap: _Text
    problem: _Text | None = None


class Experiment(_Part):
    """What an experiment asks, on which data, measured how, and where the paper describes it."""

    question: _Text
    where: Literal["abstract", "introduction", "method", "experiments", "appendix"] = "experiments"
    data: _Texts = ()
    setup: _Text | None = None
    measures: Annotated[_Texts, Field(min_length=1)]


class Presentation(_Part):
    """A form in which results are shown, and what that form lets the reader see."""

    form: _Text
    place: _Text | None = None
    shows: _Text
    lets_see: _Text


class Word(_Part):
    """A term of the field, its Chinese form and its meaning."""

    term: _Text
    chinese: _Text
    meaning: _Text


# %% [markdown]
# The card itself. Four fields answer the four questions (`question`, `innovations`, `experiments`,
# `presentation`), and the rest keeps what the notes keep: the background that the introduction
# tells, what the related work has that is *not* new, the gaps that were overcome, limitations,
# words, and the aspects. Only what every paper has is required, so that a card for a paper in
# passing may be short.


# %% tags=["promote"]
class ReadingCard(_Part):
    """One paper, read with four questions; `aspects` is what `compare` and `discuss` read across.

    A card made from wrong fields raises pydantic's ValidationError; `read_card` says the same in
    one line, with file and line.

    >>> card = ReadingCard(
    ...     title="A note on corners", short_name="Corners", year=2020, question="What is one?",
    ...     innovations=[{"name": "score", "what": "a score", "where_introduced": "method",
    ...                   "against": "edges"}],
    ... )
    >>> card.innovations[0].where_introduced
    ('method',)
    """

    title: _Text
    short_name: _Text
    arxiv: Annotated[str, StringConstraints(pattern=r"^\d{4}\.\d{4,5}$")] | None = None
    year: Annotated[int, Field(ge=1900, le=2100)]
    authors: _Texts = ()
    venue: _Text | None = None
    question: _Text
    question_zh: _Text | None = None
    background: _Texts = ()
    strengths: _Texts = ()
    pipeline: _Texts = ()
    innovations: Annotated[tuple[Innovation, ...], Field(min_length=1)]
    not_new: _Texts = ()
    overcomes: tuple[Gap, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    presentation: tuple[Presentation, ...] = ()
    limitations: _Texts = ()
    vocabulary: tuple[Word, ...] = ()
    aspects: dict[_Text, _Text] = {}
    sources: _Texts = ()


# %% [markdown]
# The misspelt field does not pass any more. What `pydantic` says about it is exact and long:

# %% tags=["nbval-check-output"]
try:
    ReadingCard(title="Lift Your Molecules", short_name="SyCo", year=2024, inovations=[])
except ValidationError as error:
    for problem in error.errors():
        print(problem["loc"], problem["type"])

# %% [markdown]
# ### From file to card, and an error that helps
#
# A reader who mistypes a field at midnight wants one line: which file, which line of it, which
# field, what was expected. The errors above know the field (`loc`) but not the line. YAML knows
# the lines, as long as we keep its tree of **nodes**, of which each remembers where it began.

# %%
root = yaml.compose("title: Corners\nyear: 2020\n", Loader=yaml.BaseLoader)
[(key.value, value.value, key.start_mark.line + 1) for key, value in root.value]

# %% [markdown]
# So: turn the tree into plain lists and dictionaries, refuse a field that stands twice (YAML itself
# keeps the last one silently), and refuse aliases (YAML's way of repeating a text by reference,
# with which a small file can grow without limit).


# %% tags=["promote"]
class CardError(ValueError):
    """A reading card that cannot be used: one line for the first mistake, all in `problems`."""

    def __init__(self, name: str, problems: Iterable[str]):
        self.problems = tuple(problems)
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(f"{name}: {self.problems[0]}{more}")


def _plain(node: yaml.Node, name: str, seen: set[int]) -> Any:
    """The texts, lists and dictionaries of a tree of YAML nodes in the file `name`."""

    def refuse(node: yaml.Node, problem: str) -> CardError:
        return CardError(name, [f"line {node.start_mark.line + 1}: {problem}"])

    if id(node) in seen:
        raise refuse(node, "used again by an alias (*); expected the text itself")
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        return "" if node.style is None and node.value in ("~", "null") else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, name, seen) for item in node.value]
    fields: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise refuse(key, "a field's name is a list or a group; expected a word")
        if key.value in fields:
            raise refuse(key, f"{key.value} stands twice; expected each field once")
        fields[key.value] = _plain(value, name, seen)
    return fields


# %% tags=["promote"]
def _line(node: yaml.Node, place: Sequence[int | str]) -> int:
    """The line, from 1, at which the deepest part of `place` that is in the tree begins."""
    mark = node.start_mark
    for step in place:
        inside = (
            {key.value: (key, value) for key, value in node.value}
            if isinstance(node, yaml.MappingNode)
            else dict(enumerate((item, item) for item in node.value))
        )
        if step not in inside:
            break
        key, node = inside[step]
        mark = key.start_mark
        if isinstance(node, yaml.ScalarNode):
            break
    return mark.line + 1


# %% [markdown]
# Then the sentence for each mistake. What a field expects is said in words; an unknown field gets
# the nearest known one.


# %% tags=["promote"]
_EXPECTED = {
    "arxiv": "a number such as 2003.12039",
    "aspects": "pairs such as `task: estimate optical flow`",
    "experiments": "a list, each with question and measures",
    "innovations": "a list, each with name, what, where_introduced and against",
    "lesson": "a lesson such as 4_raft/4_correlation",
    "overcomes": "a list, each with paper and gap",
    "presentation": "a list, each with form, shows and lets_see",
    "vocabulary": "a list, each with term, chinese and meaning",
    "where": "abstract, introduction, method, experiments or appendix",
    "where_introduced": f"one or more of {', '.join(PLACES)}",
    "year": "a year from 1900 to 2100",
}
_MODELS: dict[str, type[BaseModel]] = {
    "innovations": Innovation,
    "overcomes": Gap,
    "experiments": Experiment,
    "presentation": Presentation,
    "vocabulary": Word,
}


# %% tags=["promote"]
def _problem(root: yaml.Node, error: dict[str, Any]) -> str:
    """One of pydantic's errors as a sentence with the line and the field."""
    place = error["loc"]
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in place]
    field = "".join(steps).lstrip(".") or "the card"
    name = next((step for step in reversed(place) if isinstance(step, str)), "")
    start = f"line {_line(root, place)}: {field}"
    if error["type"] == "extra_forbidden":
        known = _MODELS.get(str(place[0]), ReadingCard) if len(place) > 1 else ReadingCard
        nearest = get_close_matches(name, known.model_fields, n=1, cutoff=0.5)
        meant = (
            f"the nearest is {nearest[0]}" if nearest else f"known: {', '.join(known.model_fields)}"
        )
        return f"{start} is no field of a card; {meant}"
    came = "missing" if error["type"] == "missing" else _brief(error["input"])
    return f"{start} is {came}; expected {_EXPECTED.get(name, 'a text')}"


def _causes(error: ValidationError) -> list[dict[str, Any]]:
    """Pydantic's errors without those that only follow from one deeper in the same field."""
    errors = error.errors()
    places = [one["loc"] for one in errors]
    causes = [
        one
        for one in errors
        if not any(one["loc"] == place[: len(one["loc"])] != place for place in places)
    ]
    return sorted(causes, key=lambda one: one["type"] != "extra_forbidden")


def _brief(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:39] + "…")
    return {dict: "a group of fields", list: "a list", tuple: "a list"}.get(
        type(value), repr(value)
    )


# %% [markdown]
# With these two, reading is short. An unknown field comes first among the problems, since it is
# usually the cause of a missing one.


# %% tags=["promote"]
def parse_card(text: str, name: str = "card") -> ReadingCard:
    """The reading card that a YAML text holds; `name` stands in the errors, as a file's name.

    Every value is taken as the text it is: an arXiv number keeps its last zero, and `no` is a word.
    Raises CardError, whose one line names the file, the line, the field and what was expected.
    """
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        fields = None if root is None else _plain(root, name, set())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        raise CardError(name, [f"{line}not YAML ({why})"]) from None
    except RecursionError:
        raise CardError(name, ["nested too deeply; expected fields of texts and lists"]) from None
    if not fields:
        raise CardError(name, ["empty; expected a card (`blank_card()` is a form to fill)"])
    if not isinstance(fields, dict):
        raise CardError(name, [f"{_brief(fields)}; expected fields such as `title: …`"])
    try:
        return ReadingCard.model_validate(fields)
    except ValidationError as error:
        raise CardError(name, [_problem(root, one) for one in _causes(error)]) from None


# %% [markdown]
# A file adds what can be wrong with a file, and a folder that two cards can be of one paper.


# %% tags=["promote"]
def read_card(path: str | Path) -> ReadingCard:
    """The reading card in a YAML file.

    Raises FileNotFoundError where there is no such file, and CardError for one that is not UTF-8
    or does not hold a card (see `parse_card`).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}; there is no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CardError(path.name, [f"byte {error.start} is not UTF-8; save it as UTF-8"]) from None
    return parse_card(text, path.name)


def read_cards(folder: str | Path) -> list[ReadingCard]:
    """All cards of a folder (`*.yaml`), oldest paper first.

    Raises FileNotFoundError where there is no such folder or no card in it, and CardError for a bad
    card or two cards of one short name.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise FileNotFoundError(f"folder is {str(folder)!r}; there is no card (*.yaml) in it")
    cards: dict[str, ReadingCard] = {}
    for path in paths:
        card = read_card(path)
        if card.short_name in cards:
            raise CardError(path.name, [f"short_name {card.short_name!r} is another card's too"])
        cards[card.short_name] = card
    return sorted(cards.values(), key=lambda card: (card.year, card.short_name))


# %% [markdown]
# From here on the cards are read by the code above, no longer by the library's.

# %%
cards = read_cards(data_path("cards"))
raft = next(card for card in cards if card.short_name == "RAFT")
assert raft.arxiv == "2003.12039" and raft.year == 2020
raft.question_zh

# %% [markdown]
# And the way back, from card to text. What is written and read again must be the same card.


# %% tags=["promote"]
def card_text(card: ReadingCard) -> str:
    """The card as YAML, which `parse_card` reads back to an equal card."""
    fields = card.model_dump(mode="json", exclude_none=True)
    filled = {name: value for name, value in fields.items() if value}
    return yaml.safe_dump(filled, allow_unicode=True, sort_keys=False, width=100)


# %%
assert all(parse_card(card_text(card)) == card for card in cards)
print(card_text(raft)[:260])

# %% [markdown]
# ### A form for your own paper
#
# The four questions, as a file to fill. What is left open is told, not guessed.


# %% tags=["promote"]
QUESTIONS = {
    "question": "What is the key research question?",
    "innovations": "What is new against earlier methods, and in which part is it introduced?",
    "experiments": "Which experiments are there?",
    "presentation": "In which form are results shown, and what does the form let the reader see?",
    "not_new": "What does the related work have that is not this paper's innovation?",
    "overcomes": "What did an earlier paper leave open that this one overcomes?",
    "limitations": "What are its limits, and what was not tried?",
    "vocabulary": "Which words were new to you?",
    "aspects": "By which aspects can it be compared with other papers?",
}

# %% tags=["promote"]
_FORM = """\
# A reading card. Fill in what you know; an empty field counts as absent.
title:
short_name:
arxiv:
year:
authors: []
venue:

# 1. {question}
question:
question_zh:
background: []
strengths: []
pipeline: []

# 2. {innovations}
#    where_introduced: one or more of {places}
innovations:
  - name:
    what:
    where_introduced: []
    against:
    how:
    lesson:
# {not_new}
not_new: []
# {overcomes}
#    problem: only if the gap sat in another problem
overcomes: []
#  - {{paper: , gap: , problem: }}

# 3. {experiments}
experiments: []
#  - {{question: , where: , data: [], setup: , measures: []}}

# 4. {presentation}
presentation: []
#  - {{form: , place: , shows: , lets_see: }}

# {limitations}
limitations: []
# {vocabulary}
vocabulary: []
#  - {{term: , chinese: , meaning: }}
# {aspects}
aspects: {{}}
sources: []
"""


def blank_card() -> str:
    """A form in YAML for a paper of your own, with the questions as comments."""
    return _FORM.format(places=", ".join(PLACES), **QUESTIONS)


def open_questions(card: ReadingCard) -> list[str]:
    """The questions that the card does not answer yet."""
    return [asked for field, asked in QUESTIONS.items() if not getattr(card, field)]


# %%
assert all(open_questions(card) == [] for card in cards), "the four papers' cards are complete"
try:
    parse_card(blank_card(), "mine.yaml")
except CardError as error:
    print(*error.problems, sep="\n")

# %% [markdown]
# ### The table
#
# The first way to write related work is a table: a row for each paper, a column for each aspect.
# The naive version prints it.


# %%
def print_table(cards, aspects):
    """One line for each paper, values separated by bars."""
    for card in cards:
        print(" | ".join([card.short_name, *(card.aspects.get(a, "–") for a in aspects)]))


print_table(cards, ["input", "output", "noise"])

# %% [markdown]
# For a draft we need it in LaTeX, and there ten characters are commands: `&` separates columns, `%`
# begins a comment, `_` and `^` want mathematics. A paper called *R&D_2* must not break the table.


# %% tags=["promote", "exercise"]
def escape_latex(text: str) -> str:
    r"""The text as LaTeX that prints exactly these characters.

    >>> print(escape_latex("R&D_2: 100 %"))
    R\&D\_2: 100 \%
    """
    commands = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # After the \\ that ends a row, a bracket or a star would be read as its argument.
        "[": "{[}",
        "*": "{*}",
        **{character: "\\" + character for character in "&%$#_{}"},
    }
    return text.translate(str.maketrans(commands))


# %% tags=["check"]
assert escape_latex("a & b") == r"a \& b", "& separates columns; written \\& it is a character"
assert escape_latex("50 % of $x_1$ #2 {y}") == r"50 \% of \$x\_1\$ \#2 \{y\}", (
    "each of & % $ # _ { } gets a backslash in front"
)
assert escape_latex("\\") == r"\textbackslash{}", "a backslash is \\textbackslash{}, escaped once"
assert escape_latex("~^") == r"\textasciitilde{}\textasciicircum{}", "~ and ^ have names in LaTeX"
assert escape_latex("流 α") == "流 α", "other characters stay"

# %% [markdown]
# A `Comparison` is such a table as a value: a header, rows, `None` where a card says nothing. It
# writes itself as Markdown (which a notebook shows as a table) and as LaTeX in the style of the
# package `booktabs`. Turned, papers become columns, which suits few papers and many aspects.


# %% tags=["promote"]
_SPECIAL = r"\`*_{}[]<>&|$~#"


def _escape_markdown(text: str) -> str:
    return "".join("\\" + character if character in _SPECIAL else character for character in text)


@dataclass(frozen=True)
class Comparison:
    """A table of texts: `header` names the columns, the first cell of a row names the row.

    A cell is None where a card says nothing; it is shown as –.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]

    def turned(self) -> "Comparison":
        """The same table with rows and columns exchanged."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return Comparison(header, tuple(rows))

    def to_markdown(self) -> str:
        """The table in Markdown; characters that Markdown would take for its own are escaped."""
        lines = [
            [_escape_markdown("–" if cell is None else cell) for cell in line]
            for line in (self.header, *self.rows)
        ]
        lines.insert(1, ["---"] * len(self.header))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def to_latex(self) -> str:
        r"""The table as a LaTeX `tabular`; the draft needs `\usepackage{booktabs}`."""
        head, *body = [
            "  " + " & ".join(escape_latex("–" if cell is None else cell) for cell in line) + r" \\"
            for line in (self.header, *self.rows)
        ]
        others = len(self.header) - 1
        columns = "l" + rf"p{{{0.8 / max(1, others):.2f}\linewidth}}" * others
        top, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        return "\n".join([top, r"  \toprule", head, r"  \midrule", *body, r"  \bottomrule", end])

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


# %% [markdown]
# Three toy cards to test with. They hold only what is required, and a few aspects.


# %%
def small(name, **aspects):
    """A card for tests: only what is required, and aspects."""
    new = {"name": "n", "what": "w", "where_introduced": "method", "against": "a"}
    fields = {"title": name, "short_name": name, "year": 2024, "question": "?"}
    return ReadingCard(**fields, innovations=[new], aspects=aspects)


toys = [small("P", task="flow", loss="L1"), small("Q", task="flow"), small("R", loss="L2")]

# %% [markdown]
# `compare` fills the table. Which aspects? Those asked for, or all, in the order in which the cards first
# name them. An aspect that no card has is a typing error, so it is refused.


# %% tags=["promote"]
def _checked(cards: Iterable[ReadingCard]) -> list[ReadingCard]:
    """The cards as a list. Raises ValueError for none at all and for two of one short name."""
    cards = list(cards)
    names = [card.short_name for card in cards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not cards or twice:
        came = f"two of the short name {twice[0]!r}" if twice else "no card"
        raise ValueError(f"cards holds {came}; expected one card or more, of different papers")
    return cards


def _chosen(cards: Iterable[ReadingCard], aspects: Iterable[str] | None) -> list[str]:
    """The aspects asked for, or all that a card names. Raises ValueError for unknown ones."""
    known = list(dict.fromkeys(aspect for card in cards for aspect in card.aspects))
    if aspects is None:
        return known
    if isinstance(aspects, str):
        raise ValueError(f"aspects is {aspects!r}; expected a list of names")
    chosen = list(dict.fromkeys(aspects))
    for aspect in chosen:
        if aspect not in known:
            nearest = get_close_matches(aspect, known, n=1, cutoff=0.3) or known
            raise ValueError(
                f"aspects names {aspect!r}, which no card has; the nearest: {', '.join(nearest)}"
            )
    return chosen


# %% tags=["promote", "exercise"]
def compare(cards: Iterable[ReadingCard], aspects: Iterable[str] | None = None) -> Comparison:
    """The related-work table: a row for each card, a column for each aspect, v_i(a) in each cell.

    aspects  the names to compare by; all that a card names where it is None

    Raises ValueError for no card, two cards of one paper, or an aspect that no card has.
    """
    cards = _checked(cards)
    chosen = _chosen(cards, aspects)
    rows = [(card.short_name, *(card.aspects.get(a) for a in chosen)) for card in cards]
    return Comparison(("paper", *chosen), tuple(rows))


# %% tags=["check"]
assert compare(toys).header == ("paper", "task", "loss"), "the first column names the paper"
assert compare(toys).rows[0] == ("P", "flow", "L1"), "a row begins with the paper's short name"
assert compare(toys).rows[2] == ("R", None, "L2"), "what a card does not say is None"
assert compare(toys, ["loss"]).header == ("paper", "loss"), "only the aspects asked for"
assert len(compare(iter(toys)).rows) == 3, "cards may come from any iterable: read it once"

# %% [markdown]
# ### The discussion
#
# Equation 1, the holders of each value of an aspect. They are what the letters of the figure stood
# for.


# %% tags=["promote", "exercise"]
def holders(cards: Iterable[ReadingCard], aspect: str) -> dict[str, list[str]]:
    """The short names of the cards that hold each value of an aspect (equation 1 of the lesson).

    Values come in the order in which the cards bring them; cards that say nothing are left out.
    """
    found: dict[str, list[str]] = {}
    for card in cards:
        value = card.aspects.get(aspect)
        if value is not None:
            found.setdefault(value, []).append(card.short_name)
    return found


# %% tags=["check"]
assert holders(toys, "task") == {"flow": ["P", "Q"]}, "P and Q hold 'flow', R says nothing"
assert holders(toys, "loss") == {"L1": ["P"], "L2": ["R"]}, "each value has its own list"
assert holders(toys, "colour") == {}, "an aspect that nobody names has no holders"

# %% [markdown]
# Equation 2. The division is by *all* cards: when one of ten papers names its loss, that does not
# make its loss usual.


# %% tags=["promote"]
def largest_share(cards: Sequence[ReadingCard], aspect: str) -> float:
    """The share of all cards that hold the most frequent value of an aspect (equation 2)."""
    n = len(cards)
    return max((len(names) for names in holders(cards, aspect).values()), default=0) / n


# %%
assert largest_share(toys, "task") == 2 / 3 and largest_share(toys, "loss") == 1 / 3
{aspect: largest_share(cards, aspect) for aspect in ("output is reached", "loss", "noise")}

# %% [markdown]
# Equation 4 compares two cards. Naively, aspect after aspect:


# %%
def agreement_of_two(first, second):
    """Equation 4 by counting."""
    both = same = 0
    for aspect in first.aspects:
        if aspect in second.aspects:
            both += 1
            same += first.aspects[aspect] == second.aspects[aspect]
    return same / both if both else math.nan


agreement_of_two(cards[0], cards[1])

# %% [markdown]
# For all pairs, with sets: the keys of two dictionaries have an intersection (`&`), and so do their
# pairs of key and value.


# %% tags=["promote", "exercise"]
def agreement(cards: Iterable[ReadingCard]) -> pd.DataFrame:
    """The share of aspects on which two cards agree, for all pairs (equation 4 of the lesson).

    The table is symmetric, rows and columns are short names; it is 1 on the diagonal, and NaN where
    two cards have no aspect in common. Raises ValueError for no card or two cards of one paper.
    """
    cards = _checked(cards)
    names = [card.short_name for card in cards]
    table = pd.DataFrame(math.nan, index=names, columns=names)
    for first in cards:
        for second in cards:
            both = first.aspects.keys() & second.aspects.keys()
            same = first.aspects.items() & second.aspects.items()
            if both:
                table.loc[first.short_name, second.short_name] = len(same) / len(both)
    return table


# %% tags=["check"]
table = agreement(toys)
assert list(table.index) == list(table.columns) == ["P", "Q", "R"], "rows and columns are papers"
assert table.loc["P", "P"] == 1, "a card agrees with itself"
assert table.loc["P", "Q"] == 1, "P and Q both name the task only, and agree on it"
assert table.loc["P", "R"] == 0, "P and R both name the loss, and differ"
assert math.isnan(table.loc["Q", "R"]), "Q and R name nothing in common: NaN, not 0"

# %%
oracle = [[agreement_of_two(first, second) for second in cards] for first in cards]
assert np.array_equal(agreement(cards).to_numpy(), oracle)
print(agreement(cards).round(2))

# %% [markdown]
# Equation 3 sorts the aspects, and each becomes one short sentence. The word *usually* is a hedge
# (含糊): it says that there are exceptions, and the sentence goes on to name them. The order inside
# the discussion does not depend on the order of the cards.


# %% tags=["promote"]
@dataclass(frozen=True)
class Point:
    """One aspect in a discussion: each value with the papers that hold it, most holders first."""

    aspect: str
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    silent: tuple[str, ...]


@dataclass(frozen=True)
class Discussion:
    """What n papers share, what is usual among them, and in what they differ (equation 3)."""

    n: int
    shared: tuple[Point, ...]
    usual: tuple[Point, ...]
    differing: tuple[Point, ...]

    def to_markdown(self) -> str:
        """The discussion as three lists of short sentences."""
        parts = (
            (f"All {self.n} papers share", [_sentence(point) for point in self.shared]),
            ("What is usual", [_sentence(point, hedge=True) for point in self.usual]),
            ("Where they differ", [_sentence(point) for point in self.differing]),
        )
        return "\n\n".join(
            "\n".join([f"**{title}**", "", *(f"- {sentence}" for sentence in sentences)])
            for title, sentences in parts
            if sentences
        )

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


# %% tags=["promote"]
def _sentence(point: Point, hedge: bool = False) -> str:
    """`aspect: value (papers); value (papers).`, with "usually … but …" where it is a hedge."""
    (first, _), *rest = point.groups
    values = [first] if not rest and not point.silent else [_held(group) for group in point.groups]
    if hedge and rest:
        text = f"usually {values[0]}, but {'; '.join(values[1:])}"
    else:
        text = ("usually " if hedge else "") + "; ".join(values)
    silent = f" Not said: {', '.join(point.silent)}." if point.silent else ""
    return f"*{_escape_markdown(point.aspect)}*: {_escape_markdown(text + '.' + silent)}"


def _held(group: tuple[str, tuple[str, ...]]) -> str:
    value, papers = group
    return f"{value} ({', '.join(papers)})"


# %% tags=["promote"]
def discuss(cards: Iterable[ReadingCard], aspects: Iterable[str] | None = None) -> Discussion:
    """Sort aspects by how many of the papers agree on them: all, more than half, or fewer.

    aspects  the names to discuss; all that a card names where it is None

    The order of the cards does not matter. Raises ValueError for fewer than two cards, two of one
    paper, or an aspect that no card has.
    """
    cards = _checked(cards)
    n = len(cards)
    if n < 2:
        raise ValueError("cards holds one card; expected two or more to discuss")
    chosen = _chosen(cards, aspects)
    share = {aspect: largest_share(cards, aspect) for aspect in chosen}
    chosen = sorted(chosen, key=lambda aspect: (-share[aspect], aspect))
    return Discussion(
        n,
        shared=tuple(_point(cards, a) for a in chosen if share[a] == 1),
        usual=tuple(_point(cards, a) for a in chosen if 0.5 < share[a] < 1),
        differing=tuple(_point(cards, a) for a in chosen if share[a] <= 0.5),
    )


def _point(cards: Sequence[ReadingCard], aspect: str) -> Point:
    groups = [(value, tuple(sorted(names))) for value, names in holders(cards, aspect).items()]
    groups.sort(key=lambda group: (-len(group[1]), group))
    silent = sorted(card.short_name for card in cards if aspect not in card.aspects)
    return Point(aspect, tuple(groups), tuple(silent))


# %%
talk = discuss(toys)
assert [point.aspect for point in talk.usual] == ["task"] and not talk.shared
assert discuss(toys[::-1]) == talk, "the order of the cards does not matter"
talk

# %% [markdown]
# ### The list: who overcame what
#
# The notes' other way needs one field, `overcomes`: which earlier paper, which gap, and the other
# problem in which the gap sat, if it was not the paper's own.


# %% tags=["promote"]
def chain(cards: Iterable[ReadingCard]) -> Comparison:
    """The list form of related work: what an earlier paper left open and which card overcame it.

    Raises ValueError for no card or two cards of one paper.
    """
    rows = [
        (gap.paper, gap.gap, card.short_name, gap.problem)
        for card in _checked(cards)
        for gap in card.overcomes
    ]
    return Comparison(("earlier", "left open", "overcome by", "in another problem"), tuple(rows))


# %%
assert {row[2] for row in chain(cards).rows} == {card.short_name for card in cards}
chain(cards[:2])

# %% [markdown]
# ### The papers' own numbers
#
# Question 4 is about the form of results, and to compare forms one needs the numbers. Each paper's
# headline results stand in `data/results/` as a plain table, with the source of every number.


# %% tags=["promote"]
def headline(paper: str) -> pd.DataFrame:
    """The headline results of a paper, by the name of its card's file, such as `raft`.

    Columns: paper, table (its number in the paper, empty where it is not certain), data, method,
    measure, value, unit, better (higher or lower), source. Raises FileNotFoundError for an unknown
    paper and names the nearest.
    """
    path = data_path("results", f"headline_{paper}.csv")
    return pd.read_csv(path, dtype={"value": float}, keep_default_na=False)


# %%
def as_text(frame):
    """A table of pandas as a Comparison, which a notebook shows in full."""
    columns = (" ".join(filter(None, (frame.index.name, frame.columns.name))), *frame.columns)
    return Comparison(columns, tuple(tuple(map(str, row)) for row in frame.itertuples()))


raft_results = headline("raft").set_index("data")
as_text(raft_results[["method", "measure", "value", "unit", "source"]].head(4))

# %% [markdown]
# ## On real input
#
# ### One paper, four answers
#
# Graph DiT generates molecules that must have several properties at once. Its card, told through the
# four questions:

# %%
graph_dit = next(card for card in cards if card.short_name == "Graph DiT")
Markdown(f"**1.** {graph_dit.question}\n\n（{graph_dit.question_zh}）")


# %%
def as_table(parts, *fields):
    """Chosen fields of the parts of a card, as a table."""
    rows = [[getattr(part, field) for field in fields] for part in parts]
    rows = [tuple(", ".join(v) if isinstance(v, tuple) else v for v in row) for row in rows]
    return Comparison(tuple(field.replace("_", " ") for field in fields), tuple(rows))


as_table(graph_dit.innovations, "name", "where_introduced", "against")

# %% [markdown]
# Ask of each row: would you have found it from the abstract alone? The last one you would not. What
# the related work has and the paper does *not* claim as new:

# %%
Markdown("\n".join(f"- {text}" for text in graph_dit.not_new))

# %% [markdown]
# The third question. One experiment stands in the *introduction*, before the method: it shows that
# the problem exists. That is a pattern worth copying.

# %%
print(graph_dit.experiments[0].setup)
as_table(graph_dit.experiments, "question", "where", "data", "measures")

# %% [markdown]
# The fourth question: the forms of the results, for all four papers. The last column is what the
# notes ask you to think about (这种方式帮助读者了解了什么重要信息).

# %%
forms = [part for card in cards for part in card.presentation]
as_table(forms, "form", "shows", "lets_see")

# %% [markdown]
# ### The same numbers in two forms
#
# Graph DiT replaces one part at a time and measures how much of the chosen design's performance is
# left (a value of 1 means: as good as the chosen design). As a table:

# %%
parts = headline("graph_dit").query("table == 'Figure 4'")
ablation = parts.pivot(index="method", columns="measure", values="value")
ablation.columns = ablation.columns.str.removesuffix(", relative")
as_text(ablation)

# %% [markdown]
# And as a **ring chart** (环形图), the form the paper uses: one sector for each measure, the
# dashed ring is the chosen design.


# %%
def draw_rings(ablation, methods):
    options = {"subplot_kw": {"projection": "polar"}}
    figure, row = canvas(1, len(methods), height=2.5, **options)
    angles = np.linspace(0, 2 * np.pi, ablation.shape[1], endpoint=False)
    for axes, method in zip(row, methods, strict=True):
        axes.bar(angles, ablation.loc[method], width=0.8, color=COLOURS["first"])
        axes.plot(np.linspace(0, 2 * np.pi, 99), np.ones(99), "--", color="black", linewidth=1)
        axes.set_xticks(angles, ablation.columns)
        axes.set(ylim=(0, 1.1), yticks=[])
        axes.set_title(method.replace(" (", "\n("), pad=14)
        axes.spines["polar"].set_visible(False)
    return figure


shown = [
    "direct encoding (for cluster)",
    "cross-attention (for AdaLN)",
    "linear (for the final MLP)",
]
show(
    draw_rings(ablation, shown),
    alt="Three ring charts. In each, the sector of diversity reaches the dashed ring. With direct"
    " encoding and with the linear layer similarity reaches it too; with cross-attention all other"
    " sectors are short, and the one of distance is nearly gone.",
)

# %% [markdown]
# The ring shows at one glance *where* an alternative loses: every sector but diversity is short
# under cross-attention, so AdaLN seems to be needed almost everywhere. The table answers *by how
# much*, which a ring does not. So a form is chosen by the question it must answer. (That diversity
# does not suffer is no comfort: a generator that ignores its condition can be diverse too.)
#
# The paper's main result as the paper shows it, methods against measures:

# %%
main = headline("graph_dit").query("table == 'Table 1'")
wide = main.pivot(index="method", columns="measure", values="value").loc[main["method"].unique()]
distance, diverse = wide["distance (FCD)"], wide["diversity"].idxmax()
ratio = distance[diverse] / distance.min()
print(f"{diverse} is the most diverse, and {ratio:.1f} times as far as {distance.idxmin()}")
as_text(wide[["validity", "diversity", "similarity", "distance (FCD)", "MAE average"]])

# %% [markdown]
# A table of many methods lets one see what a ring hides: the method that makes the most diverse
# polymers makes them several times as far from real ones as the closest method does. No method is
# the best in every column.

# %% [markdown]
# ### The related work of the four
#
# The table, turned so that it fits the column:

# %%
compare(cards).turned()

# %% [markdown]
# The same for a draft, with three aspects. Paste it between `\begin{table}` and `\end{table}`:

# %% tags=["nbval-check-output"]
print(compare(cards, ["task", "backbone", "refinement starts from"]).to_latex())

# %% [markdown]
# The list, in full. Two of the gaps sat in another problem: CoTracker's in optical flow, SyCo's in the
# generation of molecules in space.

# %%
chain(cards)

# %% [markdown]
# And the discussion:

# %%
discuss(cards)

# %% [markdown]
# ### An abstraction carries the discussion
#
# The sentences above are only as good as the aspects on the cards. An **abstraction** is a choice of
# aspects under which papers that look different become fillings of one scheme. The notes' example:
# variational quantum circuits (VQC) fall into three parts. In our reading these are
#
# | part | the question to each paper |
# | --- | --- |
# | encoding | how do the data enter the circuit? |
# | ansatz | which gates, with which trainable angles? |
# | measurement | what is read out, and how does a loss come from it? |
#
# Ten papers on such circuits are then ten rows of three cells, and "usually …" can be counted. Our
# four papers have an abstraction of their own: *start, update, read out*.

# %%
scheme = ["refinement starts from", "condition enters", "elements interact", "output"]
compare(cards, scheme).turned()

# %% [markdown]
# ### Should the condition act on the network or on the latent space?
#
# The notes ask this of diffusion papers: usually all of them use diffusion (通常情况下大家都会用到
# diffusion), so what is left to differ in? For images the network is a U-Net, for molecules a
# Transformer or a graph network. Three short cards of related work, beside our two on molecules:

# %%
GUIDED = "from outside, by a predictor's guidance"
MOLECULES = {
    "DiGress": ("discrete", GUIDED),
    "GDSS": ("continuous", GUIDED),
    "EDM": ("continuous", "in the input of the network"),
}


def short_card(name, noise, enters):
    """A card for a paper in passing: only what this discussion needs."""
    new = {"name": name, "what": noise, "where_introduced": "method", "against": "–"}
    aspects = {"family": "diffusion", "noise": noise, "condition enters": enters}
    fields = {"title": name, "short_name": name, "year": 2022, "question": "molecules"}
    return ReadingCard(**fields, innovations=[new], aspects=aspects)


related = [short_card(name, *values) for name, values in MOLECULES.items()]
ours = [card for card in cards if card.aspects["field"] == "molecules"]
discuss(related + ours, ["family", "noise", "condition enters"])

# %% [markdown]
# Diffusion is shared, so it carries no difference, and a related work that says "all use diffusion" has
# said little. The condition is where they part. Three steer from *outside*: the network stays as it
# was trained, and a second one pulls each step towards the property (for SyCo in the latent space).
# Two put the condition *into* the network. A hedged reading: a guide from outside might be exchanged
# without a new training, while a condition inside could be learned together with the rest, as Graph
# DiT argues. The cards do not settle it; they say where to look.
#
# ### A card for your paper
#
# Write the form to a file, fill it in with any editor, read it. Until it is complete, the card says
# what is missing; when it can be read, `open_questions` says what is still open.

# %%
with TemporaryDirectory() as folder:
    mine = Path(folder) / "mine.yaml"
    mine.write_text(blank_card(), encoding="utf-8")
    filled = (
        mine.read_text(encoding="utf-8")
        .replace("title:\n", "title: Corners that last\n")
        .replace("short_name:\n", "short_name: Corners\n")
        .replace("year:\n", "year: 2025\n")
        .replace("question:\n", "question: Which corners are still there a minute later?\n", 1)
        .replace("name:\n    what:\n", "name: lasting score\n    what: a score over time\n")
    )
    mine.write_text(filled, encoding="utf-8")
    try:
        read_card(mine)
    except CardError as error:
        print(*error.problems, sep="\n")

# %%
complete = filled.replace("where_introduced: []", "where_introduced: [method]").replace(
    "against:\n", "against: scores of one frame\n"
)
own = parse_card(complete, "mine.yaml")
print(*open_questions(own), sep="\n")

# %% [markdown]
# ## Exercises
#
# In the exercise edition (`fourfold start`) these bodies are blank; each has its check directly
# below.
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `escape_latex` | 10 | ●●○ |
# | `compare` | 10 | ●●○ |
# | `holders` | 5 | ●○○ |
# | `agreement` | 15 | ●●● |
#
# <details><summary>Hint for <code>escape_latex</code></summary>
#
# Replacing one character after the other goes wrong: the backslashes that the first replacement
# brings in are escaped by a later one. `text.translate(str.maketrans({...}))` replaces all in one
# pass.
#
# </details>
#
# <details><summary>Hint for <code>compare</code></summary>
#
# Begin with `_checked(cards)` and `_chosen(cards, aspects)`. `card.aspects.get(a)` is None where the
# card says nothing.
#
# </details>
#
# <details><summary>Hint for <code>holders</code></summary>
#
# `found.setdefault(value, [])` gives the list of a value and makes it where there is none.
#
# </details>
#
# <details><summary>Hint for <code>agreement</code></summary>
#
# The views `d.keys()` and `d.items()` of a dictionary behave like sets: `&` is the intersection.
# Start from a table full of NaN and fill in the pairs that have an aspect in common.
#
# </details>
#
# **Predict.** A fifth card is added that names a single aspect, a field of its own. How many aspects
# do the five papers share?
#
# <details><summary>Hint</summary>
#
# Equation 2 divides by all cards.
#
# </details>
#
# <details><summary>Answer</summary>
#
# None. The fifth card says nothing of *output is reached*, so its largest share falls from 1 to 0.8:
# it is usual now, with the fifth paper named as one that does not say. What is shared can only
# shrink when a card is added. The cell below counts.
#
# </details>
#
# **Vary.** Leave one of the four cards out, each in turn. When does the number of shared aspects grow
# most?
#
# <details><summary>Hint</summary>
#
# Look for rows of the figure with three equal letters.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Without CoTracker two aspects are shared by the other three, since it is the one whose elements do
# not interact in every pair; without any of the others there is one. So the sentence "all papers
# compare every pair" depends on which papers one reads: choose them before you look. The cell below
# prints it.
#
# </details>
#
# **Find the bug.** A colleague divides in Equation 2 by the number of cards that *name* the aspect. On
# our four cards every aspect stays in its set, so nothing looks wrong. Which kind of aspect would
# move, and what would the discussion then claim?
#
# <details><summary>Hint</summary>
#
# Give one card an aspect that no other card has.
#
# </details>
#
# <details><summary>Answer</summary>
#
# An aspect that a single card names has share 1 with the colleague's formula: the discussion would
# claim that all papers share it. The fewer papers speak of a thing, the more common it would seem.
# The last line below shows it.
#
# </details>

# %%
fifth = small("Fifth", field="music")
five = [*cards, fifth]
print("shared by four and by five papers:", len(discuss(cards).shared), len(discuss(five).shared))
print("output is reached, its share of five:", largest_share(five, "output is reached"))
for left_out in cards:
    others = [card for card in cards if card is not left_out]
    print(f"without {left_out.short_name:10}", [point.aspect for point in discuss(others).shared])


# %%
def share_of_named(cards, aspect):
    """The colleague's version of Equation 2."""
    return largest_share([card for card in cards if aspect in card.aspects], aspect)


def set_of(share):
    """Equation 3."""
    return "S" if share == 1 else "U" if share > 1 / 2 else "D"


odd = [*cards, small("Fifth", optimiser="Adam")]
for some in (cards, odd):
    both = [(a, largest_share(some, a), share_of_named(some, a)) for a in compare(some).header[1:]]
    print(
        "move:", [(a, ours, theirs) for a, ours, theirs in both if set_of(ours) != set_of(theirs)]
    )

# %% [markdown]
# ## What breaks
#
# ### A card that says something else than you meant
#
# A misspelt field, with the nearest one offered and the line to look at:

# %% tags=["nbval-check-output"]
START = "title: Corners\nshort_name: Corners\nyear: 2020\nquestion: What is a corner?\n"

with shows_error(CardError):
    parse_card(START + "inovations:\n- name: score\n", "corners.yaml")

# %% [markdown]
# An innovation without a place (question 2 is not answered, so there is no card), one with a place
# that is no part of a paper, and a field that stands twice:

# %% tags=["nbval-check-output"]
NEW = "innovations:\n- name: s\n  what: a score\n  against: edges\n"
with shows_error(CardError):
    parse_card(START + NEW, "corners.yaml")
with shows_error(CardError):
    parse_card(START + NEW + "  where_introduced: [intro]\n", "corners.yaml")
with shows_error(CardError):
    parse_card(START + "year: 2021\n", "corners.yaml")

# %% [markdown]
# A trap of YAML: inside `{…}` a comma ends the value. What follows becomes a field of its own, and
# half of a sentence would be lost in silence (it happened with one of our four cards).

# %% tags=["nbval-check-output"]
WORD = "vocabulary:\n- {term: ring chart, chinese: 环形图, meaning: bars around a ring, one a measure}\n"
with shows_error(CardError):
    parse_card(START + NEW + "  where_introduced: method\n" + WORD, "corners.yaml")

# %% [markdown]
# A file that is not YAML, one that is not text in UTF-8, and an empty one:

# %% tags=["nbval-check-output"]
with shows_error(CardError):
    parse_card("title: [Corners\nyear: 2020", "corners.yaml")
with TemporaryDirectory() as folder:
    for name, content in (("old.yaml", "title: 角点".encode("gbk")), ("empty.yaml", b"")):
        (Path(folder) / name).write_bytes(content)
        with shows_error(CardError):
            read_card(Path(folder) / name)

# %% [markdown]
# An aspect that no card has, and two cards of one paper:

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    compare(cards, ["backbones"])
with shows_error(ValueError):
    discuss([raft, raft])

# %% [markdown]
# ### What no check can see
#
# Values are compared as texts. Two cards that say the same in other words count as different, and
# the discussion then finds a difference that is only one of style:

# %%
words = [small("P", backbone="Transformer"), small("Q", backbone="a transformer network")]
float(agreement(words).loc["P", "Q"])

# %% [markdown]
# So fill in an aspect for all papers in one sitting, with as few different words as the truth
# allows. The reverse is worse: one word for two things. *By repeated refinement* is shared by our
# four papers because we chose a word wide enough; a reader may find it too wide, and then the card
# is where to argue.
#
# Nor can a check see whether an answer is *true*. The cards name their `sources`; the card of SyCo, for
# one, says that only abstract and reviews were read:

# %%
for card in cards:
    print(f"{card.short_name:10} {card.sources[1]}")

# %% [markdown]
# ## Recap
#
# - Four questions for every paper: the key question; what is new and in which part it is introduced;
#   which experiments; which form of results, and what it lets one see.
# - A card is checked when it is read; a table and a discussion follow from several cards: what is
#   shared ($m(a) = 1$), what is usual, where the papers part.
# - The aspects are the abstraction. They decide what a related work can say.
#
# Next: [4 Experiments](4_experiments.ipynb) builds studies, ablations and the ring chart. Each paper's
# chapter begins with its card.
