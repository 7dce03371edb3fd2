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
# *Before this:* [1 One line](1_one_line.ipynb); Python's dictionaries, sets and classes; a first sight
# of pandas (tables of rows and columns).
# *Time:* 50 minutes, and 40 for the blanks.

# %%
import math
import re
from collections.abc import Iterable, Iterator, Sequence
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
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.fixed import FixedDict
from fourfold.kit.notebook import shows_error
from fourfold.kit.yaml_text import TextError, model_from_yaml, read_text
from fourfold.paper_writing.reading_cards import (
    CARD_PLACES,
    agreement,
    discuss,
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
# across them (ten to fifteen papers, in our reading of the notes). That is the order of the notes:
# read the papers, then sum up (看文章，做总结).
#
# Each card also names its **aspects** (方面), such as task, input or backbone (the main network):
# for card $i$ and aspect $a$ there is a value $v_i(a)$, a few words. Where all $n$ cards
# hold the same value, that is what the papers *share*. Where most of them do, one says *usually*.
# Where they differ, they *part*, and there the discussion begins.
#
# The notes know two ways to write related work. **The list** (罗列): paper A left something open,
# paper B overcame it, and the flaw may even sit in another problem; a table does this in few words.
# **The discussion** (讨论): why are there so many papers? What do all of them do, what do we make
# of that, and where do they go different ways? For the second way one needs an *abstraction*, a
# scheme of parts that every paper fills in its own manner. The aspects are that scheme.
#
# Both ways **use few words**: words and figures complete each other
# (能少用字少用字，字和图表是相辅相成的). A card therefore holds phrases, not paragraphs, and what a
# table or a picture shows is not told again.

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
# paper in which one new thing is introduced. A **hatched cell was not read** for the card: its being
# empty says nothing, and a hollow dot in it is known from elsewhere (a public review, or memory).
# (AdaLN is a layer steered by a condition; what it and the virtual tracks do, the papers' chapters
# explain. Here only the places matter.)


# %%
def draw_place(axes, x, row, known, read):
    """One cell: hatched where the part was not read, with a dot where the thing is introduced."""
    if not read:
        look = {"facecolor": "none", "edgecolor": COLOURS["muted"], "hatch": "////", "linewidth": 0}
        axes.fill_between([x - 0.4, x + 0.4], row - 0.5, row + 0.5, **look)
    if known:
        fill = COLOURS["first"] if read else "white"
        axes.plot(x, row, "o", color=COLOURS["first"], markerfacecolor=fill, markersize=8)


def draw_places(cards):
    new = [(card, item) for card in cards for item in card.innovations]
    figure, axes = canvas(height=0.24 * len(new) + 0.6)
    for row, (card, item) in enumerate(new):
        for x, place in enumerate(CARD_PLACES):
            known, read = place in item.where_introduced, place in card.parts_read
            draw_place(axes, x, row, known, read)
    for n, card in enumerate(cards):
        rows = [row for row, (owner, _) in enumerate(new) if owner is card]
        band = {"color": COLOURS["muted"], "alpha": 0.25 * (n % 2), "linewidth": 0}
        axes.axhspan(rows[0] - 0.5, rows[-1] + 0.5, zorder=0, **band)
        label = {"va": "center", "weight": "bold"}
        axes.text(len(CARD_PLACES) - 0.5, np.mean(rows), card.short_name, **label)
    axes.set_yticks(range(len(new)), [item.name for _, item in new])
    axes.set_xticks(range(len(CARD_PLACES)), CARD_PLACES)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set(xlim=(-0.5, len(CARD_PLACES) + 0.4), ylim=(len(new) - 0.5, -0.5))
    axes.spines[:].set_visible(False)
    return figure


show(
    draw_places(cards),
    alt="A chart with one row for each innovation of the four papers and one column for each part"
    " of a paper. Most rows have dots under abstract and method, some also under introduction; two"
    " have a dot under method alone. Related work is hatched for three papers, with one hollow dot;"
    " for SyCo all parts but the abstract are hatched.",
)

# %% [markdown]
# See the column *method*: it is full, since nothing is new before someone has said how it is built.
# See the single dots: an innovation that stands in the method alone is easily missed by whoever
# reads the first page and the last. The hatched cells say where the cards are silent. Of SyCo only the
# abstract was read, so this card cannot say whether the introduction names what is new; a picture
# that drew these cells as empty would claim that it does not.
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
    talk = discuss(cards)
    parts = {"$S$": talk.shared, "$U$": talk.usual, "$D$": talk.differing}
    aspects = [group.aspect for part in parts.values() for group in part]
    n, names = len(cards), [card.short_name for card in cards]
    for row, aspect in enumerate(aspects):
        draw_letters(left, row, [card.aspects.get(aspect) for card in cards])
        left.text(n, row, f"{largest_share(cards, aspect):.2f}", ha="center", va="center")
    for name, part in parts.items():
        rows = [aspects.index(group.aspect) for group in part]
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
# | $H_a(t)$ | holders, the cards whose value of $a$ is $t$ | a set of cards | `aspect_holders` | $H_a(t)$ |
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
# all of them. First the small words: a text is one line (line breaks count as spaces) and is not
# empty; a list of one may be written without brackets; a part of a paper is one of four, named once.


# %% tags=["promote"]
_Place = Literal["abstract", "introduction", "related work", "method"]
CARD_PLACES: tuple[str, ...] = get_args(_Place)


def _one_line(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _once(values: Any) -> Any:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"names {value!r} twice; expected each once")
    return values


_Text = Annotated[str, BeforeValidator(_one_line), StringConstraints(min_length=1)]
_Texts = Annotated[tuple[_Text, ...], BeforeValidator(_listed)]
_Places = Annotated[
    tuple[_Place, ...],
    BeforeValidator(_listed),
    AfterValidator(_once),
    Field(description=f"one or more of {', '.join(CARD_PLACES)}"),
]

# %% [markdown]
# Then the parts. Question 2 asks *where*, so an innovation without a place is not complete; and this
# course rebuilds what it reads, so an innovation can name its lesson.


# %% tags=["promote"]
class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _form(pattern: str, description: str) -> Any:
    """None or a text of one form, told in words."""
    text = Annotated[str, BeforeValidator(_one_line), StringConstraints(pattern=f"^{pattern}$")]
    return Annotated[text | None, Field(description=description)]


_Lesson = _form("[0-9]+_[a-z0-9_]+/[0-9]+_[a-z0-9_]+", "a lesson such as 4_raft/4_correlation")


class Innovation(_Part):
    """One new thing: what it is, where the paper introduces it, against what, rebuilt where."""

    name: _Text
    what: _Text
    where_introduced: Annotated[_Places, Field(min_length=1)]
    against: _Text
    how: _Text | None = None
    lesson: _Lesson = None


# %% [markdown]
# The parts for gaps, experiments, forms of results and terms are as small.


# %% tags=["promote"]
class OvercomeGap(_Part):
    """What an earlier paper left open and this one overcame, perhaps in another problem."""

    paper: _Text
    gap: _Text
    problem: _Text | None = None


class CardExperiment(_Part):
    """What an experiment asks, on which data, measured how, and where the paper describes it."""

    question: _Text
    where: Literal["abstract", "introduction", "method", "experiments", "appendix"] = "experiments"
    data: _Texts = ()
    setup: _Text | None = None
    measures: Annotated[_Texts, Field(min_length=1)]


class ResultForm(_Part):
    """A form in which results are shown, and what that form lets the reader see."""

    form: _Text
    place: _Text | None = None
    shows: _Text
    lets_see: _Text


class Term(_Part):
    """A term of the field, its Chinese form and its meaning."""

    term: _Text
    chinese: _Text
    meaning: _Text


# %% [markdown]
# The card itself. Four fields answer the four questions (`question`, `innovations`, `experiments`,
# `presentation`), and the rest keeps what the notes keep: the background that the introduction
# tells, what the related work has that is *not* new, the gaps that were overcome, limitations,
# words, and the aspects. `parts_read` says which parts of the paper the answers come from. Only what
# every paper has is required, so that a card for a paper in passing may be short.


# %% tags=["promote"]
def _year(value: Any) -> Any:
    written = isinstance(value, str) and re.fullmatch("[0-9]{4}", value.strip())
    return int(value) if written else value


def _named(values: Any) -> Any:
    """Aspects with one-line names; two that would become one are refused."""
    if not isinstance(values, dict):
        return values
    names = _once(tuple(_one_line(name) for name in values))
    return dict(zip(names, values.values(), strict=True))


_FIRST = 1900
_LAST = 2100
_Year = Annotated[
    int,
    BeforeValidator(_year),
    Field(strict=True, ge=_FIRST, le=_LAST, description=f"a year from {_FIRST} to {_LAST}"),
]
# Also with a version, such as v3, and as arXiv numbered papers before 2007.
_Arxiv = _form(
    r"([0-9]{4}\.[0-9]{4,5}|[a-z-]+(\.[A-Z]{2})?/[0-9]{7})(v[0-9]+)?", "a number such as 2003.12039"
)
_Aspects = Annotated[
    dict[_Text, _Text],
    BeforeValidator(_named),
    AfterValidator(FixedDict),
    Field(description="pairs such as `task: estimate optical flow`"),
]


# %% tags=["promote"]
class ReadingCard(_Part):
    """One paper, read with four questions; `aspects` is what `compare` and `discuss` read across.

    A card cannot be changed; `model_copy(update={...})` makes another. A card made from wrong
    fields raises pydantic's ValidationError; `read_card` says the same in one line, with file and
    line.

    >>> card = ReadingCard(title="On corners", short_name="Corners", year=2020, question="Where?")
    >>> open_questions(card)[0]
    'Which parts of the paper do the answers come from?'
    """

    title: _Text
    short_name: _Text
    arxiv: _Arxiv = None
    year: _Year
    authors: _Texts = ()
    venue: _Text | None = None
    parts_read: _Places = ()
    question: _Text
    question_zh: _Text | None = None
    background: _Texts = ()
    strengths: _Texts = ()
    pipeline: _Texts = ()
    innovations: tuple[Innovation, ...] = ()
    not_new: _Texts = ()
    overcomes: tuple[OvercomeGap, ...] = ()
    experiments: tuple[CardExperiment, ...] = ()
    presentation: tuple[ResultForm, ...] = ()
    limitations: _Texts = ()
    vocabulary: tuple[Term, ...] = ()
    aspects: _Aspects = FixedDict()
    sources: _Texts = ()


# %% [markdown]
# The misspelt field does not pass any more. What `pydantic` says about it is exact, and long.
#
# ### From file to card
#
# A reader who mistypes a field at midnight wants one line: which file, which line of it, which
# field, what was expected. `model_from_yaml` of the course's kit gives it: it reads YAML with every
# value as the text it is, remembers the lines, leaves out what is empty, and turns pydantic's errors
# into sentences. (How it does so has little to do with reading papers: see `fourfold/kit/yaml_text.py`.)


# %% tags=["promote"]
def parse_card(text: str, name: str = "card") -> ReadingCard:
    """The reading card that a YAML text holds; `name` stands in the errors, as a file's name.

    Every value is taken as the text it is: an arXiv number keeps its last zero, and `no` is a word.
    What is empty counts as absent. Raises TextError, whose one line names the file, the line, the
    field and what was expected.
    """
    return model_from_yaml(ReadingCard, text, name)


def read_card(path: str | Path) -> ReadingCard:
    """The reading card in a YAML file.

    Raises FileNotFoundError where there is no such file, IsADirectoryError for a folder, and
    TextError for a file that is not UTF-8 or does not hold a card (see `parse_card`).
    """
    return parse_card(read_text(path), Path(path).name)


def read_cards(folder: str | Path) -> list[ReadingCard]:
    """All cards of a folder (`*.yaml`, `*.yml`), oldest paper first; hidden files are no cards.

    Raises FileNotFoundError where there is no such folder or no card in it, and TextError for a bad
    card or two cards of one short name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder is {str(folder)!r}; there is no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    paths = [path for path in found if not path.name.startswith(".")]
    if not paths:
        raise FileNotFoundError(f"folder is {str(folder)!r}; there is no card (*.yaml) in it")
    cards: dict[str, ReadingCard] = {}
    for path in paths:
        card = read_card(path)
        if card.short_name in cards:
            raise TextError(path.name, [f"short_name {card.short_name!r} is another card's too"])
        cards[card.short_name] = card
    return sorted(cards.values(), key=lambda card: (card.year, card.short_name))


# %% [markdown]
# The misspelt field again, now in one line:

# %% tags=["nbval-check-output"]
with shows_error(TextError):
    parse_card("title: Lift Your Molecules\nyear: 2024\ninovations:\n- lifting\n", "syco.yaml")

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
# The four questions, as a file to fill. What is left open is told, not guessed. The form follows from
# the classes, so that it can forget no field.


# %% tags=["promote"]
CARD_QUESTIONS = {
    "parts_read": "Which parts of the paper do the answers come from?",
    "question": "1. What is the key research question?",
    "innovations": "2. What is new against earlier methods, and in which part is it introduced?",
    "not_new": "What does the related work have that is not this paper's innovation?",
    "overcomes": "What did an earlier paper leave open that this one overcomes?",
    "experiments": "3. Which experiments are there?",
    "presentation": "4. In which form are results shown, and what does the form let one see?",
    "limitations": "What are its limits, and what was not tried?",
    "vocabulary": "Which words were new to you?",
    "aspects": "By which aspects can it be compared with other papers?",
}


def open_questions(card: ReadingCard) -> list[str]:
    """The questions that the card does not answer yet."""
    return [asked for field, asked in CARD_QUESTIONS.items() if not getattr(card, field)]


def _blanks(model: type[BaseModel], indent: str = "") -> Iterator[str]:
    """A line for each field of a part, with a remark on what it expects."""
    for name, field in model.model_fields.items():
        remark = f"  # {field.description}" if field.description else ""
        yield f"{indent}{name}:{remark}"
        item = (*get_args(field.annotation), None)[0]
        if isinstance(item, type) and issubclass(item, _Part):
            first, *others = _blanks(item, indent)
            yield from (f"  - {first}", *(f"    {line}" for line in others))


def blank_card() -> str:
    """A form in YAML for a paper of your own, with the questions as comments."""
    lines = ["# A reading card. Fill in what you know; what is empty counts as absent."]
    for line in _blanks(ReadingCard):
        question = CARD_QUESTIONS.get(line.split(":")[0])
        lines += ["", f"# {question}", line] if question else [line]
    return "\n".join(lines) + "\n"


# %%
assert all(open_questions(card) == [] for card in cards), "the four papers' cards are complete"
print(blank_card()[blank_card().index("# 2.") :][:400])
with shows_error(TextError):
    parse_card(blank_card(), "mine.yaml")

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
# And some pairs are joined into one sign: `--` into a dash, two backticks into a quote. An empty
# group `{}` between them keeps them apart.


# %% tags=["promote"]
# Between two characters that LaTeX would join: -- '' `` ,, !` ?`
_JOINED = re.compile(r"(?<=-)(?=-)|(?<=')(?=')|(?<=,)(?=,)|(?<=[`!?])(?=`)")


# %% tags=["promote", "exercise"]
def escape_latex(text: str) -> str:
    r"""The text as LaTeX that prints these characters: none is a command or joined with the next.

    White space is one space. Quotes print as the font has them: ' and " may come out curved.

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
    return _JOINED.sub("{}", " ".join(text.split()).translate(str.maketrans(commands)))


# %% [markdown]
# The check asks for characters that are no commands, too: in LaTeX's oldest font encoding `<`, `|` and
# `>` print other signs, and `[` or `*` after the `\\` that ends a row is taken for its argument.

# %% tags=["check"]
assert escape_latex("a & b") == r"a \& b", "& separates columns; written \\& it is a character"
assert escape_latex("50 % of $x_1$ #2 {y}") == r"50 \% of \$x\_1\$ \#2 \{y\}", (
    "each of & % $ # _ { } gets a backslash in front"
)
assert escape_latex(r"a\b") == r"a\textbackslash{}b", (
    "a backslash is \\textbackslash{}, and its braces are not escaped again"
)
assert escape_latex("~^") == r"\textasciitilde{}\textasciicircum{}", "~ and ^ have names in LaTeX"
assert escape_latex("[*<|>") == r"{[}{*}\textless{}\textbar{}\textgreater{}", (
    "[ and * stand in braces; < | > have names"
)
assert escape_latex("a--b, 5-3") == "a-{}-b, 5-3", "-- is kept from becoming a dash (_JOINED)"
assert escape_latex("流 α") == "流 α", "other characters stay"

# %% [markdown]
# A `Comparison` is such a table as a value: a header, rows, `None` where a card says nothing. It
# writes itself as Markdown (which a notebook shows as a table) and as LaTeX in the style of the
# package `booktabs`. Turned, papers become columns, which suits few papers and many aspects.


# %% tags=["promote"]
_MARKDOWN = r"\`*_{}[]<>&|$~#"


def _escape_markdown(text: str) -> str:
    characters = ("\\" + one if one in _MARKDOWN else one for one in " ".join(text.split()))
    return "".join(characters)


@dataclass(frozen=True)
class Comparison:
    """A table of texts: `header` names the columns, the first cell of a row names the row.

    A cell is None where a card says nothing; it is shown as –. Raises ValueError for a table
    without columns, a row of another length than the header, or a cell that is no text.
    """

    header: tuple[str | None, ...]
    rows: tuple[tuple[str | None, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "header", tuple(self.header))
        object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))
        if not self.header:
            raise ValueError("header is empty; expected a name for each column")
        for place, cells in [("header", self.header), *enumerate(self.rows)]:
            place = place if place == "header" else f"rows[{place}]"
            if len(cells) != len(self.header):
                came = f"{place} has {len(cells)} cells"
                raise ValueError(f"{came}; expected {len(self.header)}, as the header has")
            for cell in cells:
                if cell is not None and not isinstance(cell, str):
                    raise ValueError(f"{place} holds {cell!r}; expected a text, or None")

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
    fields = {"title": name, "short_name": name, "year": 2024, "question": "?"}
    return ReadingCard(**fields, aspects=aspects)


toys = [small("P", task="flow", loss="L1"), small("Q", task="flow"), small("R", loss="L2")]

# %% [markdown]
# `compare` fills the table. Which aspects? Those asked for, or all, in the order in which the cards first
# name them. An aspect that no card has is a typing error, so it is refused.


# %% tags=["promote"]
def _checked(cards: Iterable[ReadingCard]) -> list[ReadingCard]:
    """The cards as a list. Raises ValueError for none at all and for two of one short name."""
    alone = isinstance(cards, ReadingCard)
    cards = [] if alone else list(cards)
    names = [card.short_name for card in cards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not cards or twice:
        came = "no list but a card" if alone else "no card"
        came = f"two of the short name {twice[0]!r}" if twice else came
        raise ValueError(
            f"cards holds {came}; expected a list of one card or more, of different papers"
        )
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
            nearest = get_close_matches(aspect, known, n=3, cutoff=0.5) or known[:3]
            there = f"the nearest: {', '.join(nearest)}" if nearest else "the cards name none"
            raise ValueError(f"aspects names {aspect!r}, which no card has; {there}")
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
assert compare(toys, ["loss", "task"]).header == ("paper", "loss", "task"), (
    "the aspects asked for, in the order asked for"
)
assert len(compare(iter(toys)).rows) == 3, "cards may come from any iterable: read it once"
with shows_error(ValueError):  # an aspect that no card has is refused
    compare(toys, ["los"])

# %% [markdown]
# ### The discussion
#
# Equation 1, the holders of each value of an aspect. They are what the letters of the figure stood
# for.


# %% tags=["promote", "exercise"]
def aspect_holders(cards: Iterable[ReadingCard], aspect: str) -> dict[str, list[str]]:
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
assert aspect_holders(toys, "task") == {"flow": ["P", "Q"]}, "P and Q hold 'flow', R says nothing"
assert aspect_holders(toys, "loss") == {"L1": ["P"], "L2": ["R"]}, "each value has its own list"
assert list(aspect_holders(toys, "loss")) == ["L1", "L2"], "values in the order of the cards"
assert aspect_holders(toys, "colour") == {}, "an aspect that nobody names has no holders"

# %% [markdown]
# Equation 2. The division is by *all* cards: when one of ten papers names its loss, that does not
# make its loss usual.


# %% tags=["promote"]
def largest_share(cards: Iterable[ReadingCard], aspect: str) -> float:
    """The share of all cards that hold the most frequent value of an aspect (equation 2).

    Raises ValueError for no card, two cards of one paper, or an aspect that no card has.
    """
    cards = _checked(cards)
    _chosen(cards, [aspect])
    n = len(cards)
    return max(len(names) for names in aspect_holders(cards, aspect).values()) / n


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
half = agreement([small("S", a="x", b="y", c="z"), small("T", a="x", b="w", d="v")])
assert half.loc["S", "T"] == half.loc["T", "S"] == 1 / 2, "two aspects in common, one agreed"

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
class AspectGroups:
    """One aspect in a discussion: each value with the papers that hold it, most holders first."""

    aspect: str
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    silent: tuple[str, ...]


@dataclass(frozen=True)
class Discussion:
    """What n papers share, what is usual among them, and in what they differ (equation 3)."""

    n: int
    shared: tuple[AspectGroups, ...]
    usual: tuple[AspectGroups, ...]
    differing: tuple[AspectGroups, ...]

    def to_markdown(self) -> str:
        """The discussion as three lists of short sentences."""
        if not (self.shared or self.usual or self.differing):
            return "No paper names an aspect."
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


def _sentence(point: AspectGroups, hedge: bool = False) -> str:
    """`aspect: value (papers); value (papers).`, with "usually … but …" where it is a hedge."""
    (first, _), *rest = point.groups
    values = [first] if not rest and not point.silent else [_held(group) for group in point.groups]
    if hedge and rest:
        text = f"usually {values[0]}, but {'; '.join(values[1:])}"
    else:
        text = ("usually " if hedge else "") + "; ".join(values)
    silent = f" Not said: {', '.join(point.silent)}." if point.silent else ""
    end = "" if text.endswith(".") else "."
    return f"*{_escape_markdown(point.aspect)}*: {_escape_markdown(text + end + silent)}"


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


def _point(cards: Sequence[ReadingCard], aspect: str) -> AspectGroups:
    groups = [
        (value, tuple(sorted(names))) for value, names in aspect_holders(cards, aspect).items()
    ]
    groups.sort(key=lambda group: (-len(group[1]), group))
    silent = sorted(card.short_name for card in cards if aspect not in card.aspects)
    return AspectGroups(aspect, tuple(groups), tuple(silent))


# %%
talk = discuss(toys)
assert [point.aspect for point in talk.usual] == ["task"] and not talk.shared
assert discuss(toys[::-1]) == talk, "the order of the cards does not matter"
talk

# %% [markdown]
# ### The list: who overcame what
#
# The notes' other way needs one field, `overcomes`: which earlier paper, which gap, and the other
# problem in which the gap sat, if it was not the paper's own: CoTracker's sat in optical flow, SyCo's in
# the generation of molecules in space.


# %% tags=["promote"]
def overcome_table(cards: Iterable[ReadingCard]) -> Comparison:
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
assert {row[2] for row in overcome_table(cards).rows} == {card.short_name for card in cards}
overcome_table(cards)

# %% [markdown]
# ### The papers' own numbers
#
# Question 4 is about the form of results, and to compare forms one needs the numbers. Each paper's
# headline results stand in `data/results/` as a plain table, with the source of every number.


# %% tags=["promote"]
def headline_results(paper: str) -> pd.DataFrame:
    """The headline results of a paper, by the name of its card's file, such as `raft`.

    Columns: paper, table (its number in the paper, empty where it is not certain), data, method,
    measure, value (a number), unit, better (higher or lower), source, and printed: the value as the
    source prints it, 5.10 and not 5.1. Raises FileNotFoundError for an unknown paper and names the
    nearest.
    """
    path = data_path("results", f"headline_{paper}.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.assign(value=table["value"].astype(float), printed=table["value"])


# %%
def as_text(frame):
    """A table of pandas as a Comparison, which a notebook shows in full."""
    columns = (" ".join(filter(None, (frame.index.name, frame.columns.name))), *frame.columns)
    rows = frame.fillna("–").itertuples()
    return Comparison(columns, tuple(tuple(map(str, row)) for row in rows))


raft_results = headline_results("raft").set_index("data")
as_text(raft_results[["method", "measure", "printed", "unit", "source"]].head(4))

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
# the problem exists. That is a pattern worth copying. (An *oracle* here is a model trained on
# measured data, which stands in for the measurement of a generated molecule.)

# %%
opening = next(part for part in graph_dit.experiments if part.where == "introduction")
print(opening.setup)
as_table(graph_dit.experiments, "question", "where", "data", "measures")

# %% [markdown]
# The fourth question: the forms of the results, for all four papers. The last column is what the
# notes ask you to think about (这种方式帮助读者了解了什么重要信息). KL and FCD compare what is generated
# with real molecules as wholes: the one by the distributions of computed properties, the other
# (Fréchet ChemNet distance) by what a trained network sees in them.

# %%
forms = [part for card in cards for part in card.presentation]
as_table(forms, "form", "shows", "lets_see")

# %% [markdown]
# ### The same numbers in two forms
#
# Graph DiT replaces one part at a time and measures how much of the chosen design's performance is
# left (a value of 1 means: as good as the chosen design). O2, N2 and CO2 stand for the permeability
# to these gases, *distance* for FCD. As a table:

# %%
parts = headline_results("graph_dit").query("table == 'Figure 4'")
ablation = parts.pivot(index="method", columns="measure", values="value")
printed = parts.pivot(index="method", columns="measure", values="printed")
ablation.columns = printed.columns = ablation.columns.str.removesuffix(", relative")
as_text(printed)

# %% [markdown]
# And as a **ring chart** (环形图), the form the paper uses; here one ring for each alternative, which
# is our choice. There is one sector for each measure, and the dashed ring is the chosen design.
# `draw_rings` is the naive form; lesson 4 builds `ring_chart`, with a bar for each method.


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
# The paper's main result, methods against measures. Of its columns some are shown; *MAE* is the mean
# absolute error, the mean distance between the properties asked for and those of what was generated:

# %%
main = headline_results("graph_dit").query("table == 'Table 1'")
wide = main.pivot(index="method", columns="measure", values="value").loc[main["method"].unique()]
distance, diverse = wide["distance (FCD)"], wide["diversity"].idxmax()
ratio = distance[diverse] / distance.min()
print(f"{diverse} is the most diverse, and {ratio:.1f} times as far as {distance.idxmin()}")
columns = ["validity", "diversity", "similarity", "distance (FCD)", "MAE average"]
print(f"shown: {len(columns)} of {wide.shape[1]} columns")
as_text(main.pivot(index="method", columns="measure", values="printed").loc[wide.index, columns])

# %% [markdown]
# A table of many methods lets one see what a ring hides: the method that makes the most diverse
# polymers makes them several times as far from real ones as the closest method does. No method is
# the best in every column.

# %% [markdown]
# ### The related work of the four
#
# The table, turned so that it fits the column. (A *GRU* is a small recurrent network; a *scaffold* is
# the rings and links of a molecule without what hangs on them.)

# %%
compare(cards).turned()

# %% [markdown]
# The same for a draft, with three aspects. Paste it between `\begin{table}` and `\end{table}`:

# %% tags=["nbval-check-output"]
print(compare(cards, ["task", "backbone", "refinement starts from"]).to_latex())

# %% [markdown]
# Now the discussion. Read its second part with care: *every pair* means pixels of two images for
# RAFT, and atoms of one molecule for the two papers on molecules. The one finding called usual rests
# on a word wide enough for both.

# %%
discuss(cards)

# %% [markdown]
# ### An abstraction carries the discussion
#
# The sentences above are only as good as the aspects on the cards. An **abstraction** is a choice of
# aspects under which papers that look different become fillings of one scheme. The notes' example:
# variational quantum circuits (VQC), programs of a quantum computer that are trained like a network,
# fall into three parts. (A *gate* is one step of such a circuit; an *ansatz* is the chosen
# arrangement of gates whose angles are trained.) In our reading the parts are
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
# diffusion), so what is left to differ in? For images the network is often a U-Net (a convolutional
# network that narrows and widens again, with bridges across), for molecules a Transformer or a graph
# network. We put three short cards of related work beside our two on molecules. A short card answers
# the first question and names a few aspects; `open_questions` tells what it leaves open:

# %%
ours = [card for card in cards if card.aspects["field"] == "molecules"]
GUIDED = next(card for card in ours if card.short_name == "SyCo").aspects["condition enters"]
PASSING = {
    "DiGress": ("by denoising discrete types of atoms and bonds?", "discrete", GUIDED),
    "GDSS": ("by one system of equations for atoms and bonds?", "continuous", GUIDED),
    "EDM": ("in space, with equivariance?", "continuous", "in the input of the network"),
}


def short_card(name, question, noise, enters):
    """A card for a paper in passing: only what this discussion needs."""
    aspects = {"family": "diffusion", "noise": noise, "condition enters": enters}
    question = f"Can molecules be generated {question}"
    return ReadingCard(title=name, short_name=name, year=2022, question=question, aspects=aspects)


related = [short_card(name, *values) for name, values in PASSING.items()]
assert CARD_QUESTIONS["innovations"] in open_questions(related[0])
outside = aspect_holders(related + ours, "condition enters")[GUIDED]
assert len(outside) == 3 and len(related + ours) - len(outside) == 2
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
        .replace("\nyear:", "\nyear: 2025")
        .replace("question:\n", "question: Which corners are still there a minute later?\n", 1)
        .replace("- name:\n    what:\n", "- name: lasting score\n    what: a score over time\n")
    )
    mine.write_text(filled, encoding="utf-8")
    try:
        read_card(mine)
    except TextError as error:
        print(*error.problems, sep="\n")

# %%
complete = filled.replace("where_introduced:", "where_introduced: method").replace(
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
# | `aspect_holders` | 5 | ●○○ |
# | `agreement` | 15 | ●●● |
#
# <details><summary>Hint for <code>escape_latex</code></summary>
#
# Replacing one character after the other goes wrong: the backslashes that the first replacement
# brings in are escaped by a later one. `text.translate(str.maketrans({...}))` replaces all in one
# pass. Last, `_JOINED.sub("{}", …)` puts an empty group between what would be joined.
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
# <details><summary>Hint for <code>aspect_holders</code></summary>
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
# The last line below shows it with a fifth card that alone names its optimiser.
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


odd = [*cards, small("Fifth", optimiser="Adam", **{"output is reached": "by repeated refinement"})]
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
# A misspelt field, with the nearest one offered and the line to look at; an innovation without a place
# (question 2 is half answered, so there is no card); a place that is no part of a paper; and a field
# that stands twice:

# %% tags=["nbval-check-output"]
START = "title: Corners\nshort_name: Corners\nyear: 2020\nquestion: What is a corner?\n"

with shows_error(TextError):
    parse_card(START + "inovations:\n- name: score\n", "corners.yaml")

NEW = "innovations:\n- name: s\n  what: a score\n  against: edges\n"
with shows_error(TextError):
    parse_card(START + NEW, "corners.yaml")
with shows_error(TextError):
    parse_card(START + NEW + "  where_introduced: [intro]\n", "corners.yaml")
with shows_error(TextError):
    parse_card(START + "year: 2021\n", "corners.yaml")

# %% [markdown]
# A trap of YAML: inside `{…}` a comma ends the value. What follows becomes a field of its own, and
# half of a sentence would be lost in silence (it happened with one of our four cards). So it is refused.

# %% tags=["nbval-check-output"]
WORD = "vocabulary:\n- {term: ring chart, chinese: 环形图, meaning: bars around a ring, one a measure}\n"
with shows_error(TextError):
    parse_card(START + NEW + "  where_introduced: method\n" + WORD, "corners.yaml")

# %% [markdown]
# A file that is not YAML, one that is not text in UTF-8, and an empty one:

# %% tags=["nbval-check-output"]
with shows_error(TextError):
    parse_card("title: [Corners\nyear: 2020", "corners.yaml")
with TemporaryDirectory() as folder:
    for name, content in (("old.yaml", "title: 角点".encode("gbk")), ("empty.yaml", b"")):
        (Path(folder) / name).write_bytes(content)
        with shows_error(TextError):
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
# Nor can a check see whether an answer is *true*. The cards name their `sources`, the weak ones too:
# of SyCo only the abstract and reviews were read, and RAFT's card has a line *from memory*, on which
# its one dot under *related work* rests. Such a line is to be checked against the paper before you
# build on it:

# %%
for card in cards:
    print(card.short_name, *card.sources, sep="\n  - ")

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
