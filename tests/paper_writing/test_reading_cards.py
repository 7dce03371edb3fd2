"""Reading cards: what a card refuses, the table, the discussion, and the four papers' own cards."""

import itertools
import math
import re
import string

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import ValidationError
from pylatexenc.latexwalker import LatexCharsNode, LatexGroupNode, LatexWalker

from fourfold.course.files import House
from fourfold.kit.data import data_path
from fourfold.paper_writing.reading_cards import (
    PLACES,
    QUESTIONS,
    CardError,
    Comparison,
    Innovation,
    ReadingCard,
    agreement,
    blank_card,
    card_text,
    chain,
    compare,
    discuss,
    escape_latex,
    headline,
    holders,
    largest_share,
    open_questions,
    parse_card,
    read_card,
    read_cards,
)

FOUR = read_cards(data_path("cards"))
FILES = ("graph_dit", "syco", "raft", "cotracker")
# The lessons that rebuild the papers, as the course's plan lists them.
LESSONS = {
    "2_graph_dit": "1_paper 2_graphs 3_noise 4_denoiser 5_diffusion 6_molecules 7_metrics"
    " 8_learning 9_experiments",
    "3_syco": "1_paper 2_lifting 3_egnn 4_autoencoder 5_diffusion 6_control 7_learning"
    " 8_experiments",
    "4_raft": "1_paper 2_fields 3_encoders 4_correlation 5_update 6_raft 7_learning 8_experiments",
    "5_cotracker": "1_paper 2_tracks 3_features 4_tokens 5_transformer 6_cotracker 7_predictor"
    " 8_learning 9_experiments",
}
START = "title: Corners\nshort_name: Corners\nyear: 2020\nquestion: What is a corner?\n"
NEW = "innovations:\n- name: score\n  what: a score\n  where_introduced: method\n  against: edges\n"
SPECIAL = "_&%#$^~\\{}<>|[]*`!"
words = st.text(
    st.sampled_from(string.ascii_letters + string.digits + " αé流" + SPECIAL), max_size=12
)
texts = words.map(lambda text: " ".join(text.split())).filter(bool)
anything = st.text(max_size=20).map(lambda text: " ".join(text.split())).filter(bool)


def make(name, aspects=None, **fields):
    new = Innovation(name="n", what="w", where_introduced="method", against="a")
    required = {"title": name, "short_name": name, "year": 2024, "question": "?"}
    return ReadingCard(**required | fields, innovations=[new], aspects=aspects or {})


@st.composite
def piles(draw, least=1):
    """A few cards that hold few different values, so that some of them agree."""
    names = draw(st.lists(texts, min_size=least, max_size=5, unique=True))
    held = st.dictionaries(st.sampled_from("abcde"), st.sampled_from("xyz"), min_size=1)
    return [make(name, draw(held)) for name in names]


# ---- the four papers ---------------------------------------------------------------------------


def test_the_four_cards_load_oldest_first():
    assert [card.short_name for card in FOUR] == ["RAFT", "CoTracker", "Graph DiT", "SyCo"]
    ids = {card.short_name: card.arxiv for card in FOUR}
    assert ids["Graph DiT"] == "2401.13858" and ids["SyCo"] == "2406.10513"
    assert ids["RAFT"] == "2003.12039" and ids["CoTracker"] == "2307.07635"


@pytest.mark.parametrize("name", FILES)
def test_a_card_answers_every_question(name):
    card = read_card(data_path("cards", f"{name}.yaml"))
    assert open_questions(card) == []
    assert card.sources and card.background
    for innovation in card.innovations:
        assert set(innovation.where_introduced) <= set(PLACES) and innovation.where_introduced
        assert len(set(innovation.where_introduced)) == len(innovation.where_introduced)
    for word in card.vocabulary:
        assert re.search("[\u4e00-\u9fff]", word.chinese), word.term


@pytest.mark.parametrize("name", FILES)
def test_each_innovation_names_a_lesson_of_its_chapter(name):
    for innovation in read_card(data_path("cards", f"{name}.yaml")).innovations:
        chapter, lesson = innovation.lesson.split("/")
        assert chapter.split("_", 1)[1] == name
        assert lesson in LESSONS[chapter].split()
        folder = House.here().chapters / chapter
        if folder.exists():
            assert (folder / f"{lesson}.py").is_file()


@pytest.mark.parametrize("name", FILES)
def test_headline_tables_name_papers_sources_and_directions(name):
    table = headline(name)
    assert ",".join(table.columns) == "paper,table,data,method,measure,value,unit,better,source"
    assert not table.duplicated(["data", "method", "measure", "source"]).any()
    assert set(table["paper"]) == {read_card(data_path("cards", f"{name}.yaml")).short_name}
    assert set(table["better"]) <= {"higher", "lower"}
    assert np.isfinite(table["value"]).all()
    assert (table[["method", "measure", "source"]] != "").all(axis=None)


def test_known_numbers_of_the_headline_tables():
    raft = headline("raft").query("source == 'abstract' and method == 'RAFT'")
    assert raft["value"].tolist() == [5.10, 2.855]
    polymers = headline("graph_dit").query("method == 'Graph DiT' and measure == 'MAE average'")
    assert polymers["value"].item() == 0.921
    clouds = headline("syco").query("method == 'EDM-SyCo' and measure == 'FCD score'")
    assert clouds["value"].item() == 0.85


def test_an_unknown_headline_gets_the_nearest():
    with pytest.raises(
        FileNotFoundError, match=r"headline_rafts\.csv.*nearest.*headline_raft\.csv"
    ):
        headline("rafts")


# ---- from text to card and back ----------------------------------------------------------------


def test_a_value_stays_the_text_it_is():
    card = parse_card(START + NEW + "arxiv: 2406.10510\naspects: {on: no, steps: 010}\n")
    assert card.arxiv == "2406.10510" and card.aspects == {"on": "no", "steps": "010"}


def test_line_breaks_are_spaces_and_empty_fields_are_absent():
    text = START.replace("What is a corner?", ">-\n  What is\n\n  a corner?")
    card = parse_card(text + NEW + "venue:\nquestion_zh: null\narxiv: ~\nlimitations: []\n")
    assert card.question == "What is a corner?"
    assert card.venue is card.question_zh is card.arxiv is None and card.limitations == ()


def test_a_list_of_one_needs_no_brackets():
    assert parse_card(START + NEW + "limitations: small\n").limitations == ("small",)


@pytest.mark.parametrize("card", FOUR, ids=lambda card: card.short_name)
def test_the_four_cards_survive_a_round_trip(card):
    assert parse_card(card_text(card)) == card


@given(
    name=anything,
    question=anything,
    aspects=st.dictionaries(anything, anything, max_size=3),
    limits=st.lists(anything, max_size=3),
)
def test_any_card_survives_a_round_trip(name, question, aspects, limits):
    card = make(name, aspects, question=question, limitations=limits)
    assert parse_card(card_text(card)) == card


def test_a_byte_order_mark_is_no_part_of_the_card(tmp_path):
    (tmp_path / "card.yaml").write_bytes(b"\xef\xbb\xbf" + (START + NEW).encode())
    assert read_card(tmp_path / "card.yaml").title == "Corners"


# ---- what a card refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (START + "inovations: []\n", r"line 5: inovations is no .* nearest is innovations \(and 1"),
        (START + NEW + "zzz: 1\n", r"line 10: zzz is no field of a card; known: title, short_name"),
        (START + NEW + "  again: 1\n", r"line 10: innovations\[0\]\.again is no .* against"),
        (START, r"line 1: innovations is missing; expected a list, each with name"),
        (START + NEW.replace("  where_introduced: method\n", ""),
         r"line 6: innovations\[0\]\.where_introduced is missing; expected one or more of "
         r"abstract, introduction, related work, method$"),
        (START + NEW.replace("method", "[method, intro]"),
         r"line 8: innovations\[0\]\.where_introduced\[1\] is 'intro'; expected one or more of"),
        (START + NEW + "year: 2021\n", r"line 10: year stands twice; expected"),
        (START + NEW + "aspects: {a: 1, a: 2}\n", r"line 10: a stands twice"),
        (START.replace("2020", "soon") + NEW, r"line 3: year is 'soon'; expected a year from 1900"),
        (START.replace("2020", "3020") + NEW, r"line 3: year is '3020'; expected a year from 1900"),
        (START + NEW + "arxiv: 2003.1\n", r"line 10: arxiv is '2003\.1'; expected a number such"),
        (START + NEW + "  lesson: raft\n", r"line 10: innovations\[0\]\.lesson is 'raft'"),
        (START + NEW + "authors: {a: b}\n", r"line 10: auth.* is a group of fields; expected"),
        (START + NEW + "aspects: [a]\n", r"line 10: aspects is a list; expected pairs"),
        (START + NEW + "aspects:\n  task: [a, b]\n", r"line 11: aspects\.task is a list; expected"),
        (START + "innovations: [score]\n", r"line 5: innovations\[0\] is 'score'; expected a list"),
        (START + NEW + "title", r"line 10: not YAML \(.*\)$"),
        ("title: [a\nyear: 1", r"line 2: not YAML \(expected .*\)$"),
        ("title: &a b\nshort_name: *a\n", r"line 1: used again by an alias \(\*\)"),
        ("a: &x [*x]\n", r"line 1: used again by an alias \(\*\)"),
        ("[1, 2]: 3", r"line 1: a field's name is a list or a group; expected a word"),
        ("- a\n- b\n", r": a list; expected fields such as `title: …`"),
        ("hello", r": 'hello'; expected fields"),
        ("a\0b", r": not YAML \(unacceptable character .*\)$"),
        ("--- {a: 1}\n--- {a: 2}\n", r"line 2: not YAML \(but found another document\)"),
        ("[" * 5000, r": nested too deeply; expected|not YAML"),
        ("", r": empty; expected a card"),
        ("# only a remark\n", r": empty; expected a card"),
    ],
)  # fmt: skip
def test_a_bad_card_is_named_in_one_line(text, says):
    with pytest.raises(CardError, match=says) as caught:
        parse_card(text, "corners.yaml")
    message = str(caught.value)
    assert message.startswith("corners.yaml: ") and "\n" not in message
    assert len(message) < 400


def test_all_problems_are_kept_and_none_that_only_follows():
    with pytest.raises(CardError) as caught:
        parse_card("titel: a\nshort_name: b\nyear: x\nquestion: q\n" + NEW.replace("method", "m"))
    fields = [re.search(r"line \d+: (\S+)", problem)[1] for problem in caught.value.problems]
    assert fields == ["titel", "title", "year", "innovations[0].where_introduced[0]"]


@given(st.one_of(st.text(max_size=80), st.binary(max_size=80)))
def test_no_content_of_a_file_gives_anything_but_a_card_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    with pytest.raises(CardError) as caught:
        read_card(path)
    assert "\n" not in str(caught.value)


def test_other_encodings_and_missing_files(tmp_path):
    (tmp_path / "old.yaml").write_bytes("title: 角点".encode("gbk"))
    with pytest.raises(CardError, match=r"^old\.yaml: byte 7 is not UTF-8"):
        read_card(tmp_path / "old.yaml")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml'; there is no such file"):
        read_card(tmp_path / "none.yaml")
    (tmp_path / "old.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no card \(\*\.yaml\) in it"):
        read_cards(tmp_path)


def test_two_files_of_one_paper_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(START + NEW, encoding="utf-8")
    with pytest.raises(CardError, match=r"^b\.yaml: short_name 'Corners' is another card's too"):
        read_cards(tmp_path)


def test_a_card_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        FOUR[0].title = "another"


# ---- the form ----------------------------------------------------------------------------------


def test_the_form_has_every_field_and_every_question():
    fields = yaml.safe_load(blank_card())
    assert set(fields) == set(ReadingCard.model_fields)
    assert set(fields["innovations"][0]) == set(Innovation.model_fields)
    assert all(question in blank_card() for question in QUESTIONS.values())
    for name in ("overcomes", "experiments", "presentation", "vocabulary"):
        part = ReadingCard.model_fields[name].annotation.__args__[0]
        example = re.search(rf"^{name}: \[\]\n#  - (.*)$", blank_card(), re.MULTILINE)[1]
        assert set(yaml.safe_load(example)) == set(part.model_fields)


def test_the_blank_form_lists_what_is_missing():
    with pytest.raises(CardError) as caught:
        parse_card(blank_card())
    missing = {re.search(r"line \d+: (\S+) is missing", p)[1] for p in caught.value.problems}
    parts = ("name", "what", "where_introduced", "against")
    assert missing == {"title", "short_name", "year", "question"} | {
        f"innovations[0].{part}" for part in parts
    }


def test_a_card_of_required_fields_has_seven_open_questions():
    asked = open_questions(make("P"))
    assert len(asked) == 7 and QUESTIONS["experiments"] in asked
    assert QUESTIONS["question"] not in asked and QUESTIONS["innovations"] not in asked


# ---- the table ---------------------------------------------------------------------------------


@given(piles(), st.randoms())
def test_rows_follow_the_cards_and_columns_are_the_same(cards, random):
    table = compare(cards)
    mixed = random.sample(cards, len(cards))
    other = compare(mixed)
    assert sorted(other.header) == sorted(table.header)
    assert compare(mixed, table.header[1:]).rows == tuple(
        table.rows[cards.index(card)] for card in mixed
    )


@given(piles(), st.randoms())
def test_columns_follow_the_aspects_asked_for(cards, random):
    aspects = list(compare(cards).header[1:])
    mixed = random.sample(aspects, len(aspects))
    table = compare(cards, mixed)
    assert table.header == ("paper", *mixed)
    for row, card in zip(table.rows, cards, strict=True):
        assert row == (card.short_name, *(card.aspects.get(a) for a in mixed))


@given(piles())
def test_turning_twice_is_turning_never(cards):
    table = compare(cards)
    assert table.turned().turned() == table
    assert table.turned().header == ("paper", *(card.short_name for card in cards))


def cells_of_markdown(text):
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    rows, inside = [], None
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            inside = rows[-1]
        elif token.type == "inline" and inside is not None:
            assert {child.type for child in token.children} <= {"text", "text_special"}, text
            inside.append("".join(child.content for child in token.children))
    return rows


tables = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        st.tuples(*[texts] * n), st.lists(st.tuples(*[texts | st.none()] * n), max_size=3)
    )
)


@given(tables)
def test_markdown_is_read_back_to_the_same_cells(parts):
    header, rows = parts
    table = Comparison(header, tuple(rows))
    expected = [["–" if cell is None else cell for cell in row] for row in (header, *rows)]
    assert cells_of_markdown(table.to_markdown()) == expected
    assert table._repr_markdown_() == table.to_markdown()


NAMED = {
    "textbackslash": "\\",
    "textasciitilde": "~",
    "textasciicircum": "^",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    **{character: character for character in "&%$#_{}"},
}


def printed(nodes):
    """The characters that LaTeX would print, from pylatexenc's nodes; others than these fail."""
    text = ""
    for node in nodes:
        if node.isNodeType(LatexGroupNode):
            text += printed(node.nodelist)
        else:
            text += node.chars if node.isNodeType(LatexCharsNode) else NAMED[node.macroname]
    return text


def nodes_of(latex):
    nodes, _, length = LatexWalker(latex, tolerant_parsing=False).get_latex_nodes()
    assert length == len(latex)
    return nodes


@given(tables)
def test_latex_is_parsed_and_read_back_to_the_same_cells(parts):
    header, rows = parts
    latex = Comparison(header, tuple(rows)).to_latex()
    (environment,) = nodes_of(latex)
    assert environment.environmentname == "tabular"
    lines = [line.strip()[:-3] for line in latex.splitlines() if line.endswith(r" \\")]
    for line, row in zip(lines, (header, *rows), strict=True):
        # An & that separates has no backslash before it: the escaper never puts two there.
        read = [printed(nodes_of(cell)) for cell in re.split(r"(?<!\\) & ", line)]
        assert read == ["–" if cell is None else cell for cell in row]


@pytest.mark.parametrize("character", "_&%#$^~\\{}<>|")
def test_every_character_that_latex_takes_for_its_own_is_escaped(character):
    escaped = escape_latex(f"a{character}b")
    assert escaped.startswith("a\\") and printed(nodes_of(escaped)) == f"a{character}b"


def test_booktabs_and_as_many_columns_as_the_header():
    latex = compare(FOUR, ["task", "output"]).to_latex()
    for rule in ("toprule", "midrule", "bottomrule"):
        assert latex.count(f"\\{rule}") == 1
    assert latex.startswith(r"\begin{tabular}{lp{0.40\linewidth}p{0.40\linewidth}}")
    assert compare(FOUR).to_latex().count(r"\\") == 1 + len(FOUR)


def test_no_bracket_or_star_follows_the_end_of_a_row():
    latex = Comparison(("a", "b"), (("[x]", "1"), ("*", "2"))).to_latex()
    assert not re.search(r"\\\\\s*[\[*]", latex)


def test_missing_values_are_a_dash():
    table = compare([make("P", {"a": "x"}), make("Q", {"b": "y"})])
    assert table.rows == (("P", "x", None), ("Q", None, "y"))
    assert "| P | x | – |" in table.to_markdown() and "P & x & –" in table.to_latex()


@pytest.mark.parametrize(
    ("cards", "aspects", "says"),
    [
        ([], None, "cards holds no card; expected one card or more"),
        ([FOUR[0], FOUR[0]], None, "cards holds two of the short name 'RAFT'"),
        (
            FOUR,
            ["backbones"],
            "aspects names 'backbones', which no card has; the nearest: backbone",
        ),
        (FOUR, "task", "aspects is 'task'; expected a list of names"),
    ],
)
def test_bad_arguments_are_named(cards, aspects, says):
    for function in (compare, discuss):
        with pytest.raises(ValueError, match=re.escape(says)):
            function(cards, aspects)


def test_the_chain_names_who_left_what_open():
    table = chain(FOUR)
    assert len(table.rows) == sum(len(card.overcomes) for card in FOUR)
    assert ("optical flow", "RAFT", "CoTracker") in {(row[3], row[0], row[2]) for row in table.rows}
    assert chain([make("P")]).rows == ()


# ---- the discussion ----------------------------------------------------------------------------


def agreement_by_counting(first, second):
    both = [a for a in first.aspects if a in second.aspects]
    same = [a for a in both if first.aspects[a] == second.aspects[a]]
    return len(same) / len(both) if both else math.nan


@given(piles())
def test_agreement_counts_is_symmetric_and_one_with_itself(cards):
    table = agreement(cards)
    assert list(table.index) == list(table.columns) == [card.short_name for card in cards]
    values = table.to_numpy()
    oracle = [[agreement_by_counting(a, b) for b in cards] for a in cards]
    assert np.array_equal(values, oracle, equal_nan=True)
    assert np.array_equal(values, values.T, equal_nan=True)
    assert (np.diag(values) == 1).all()


def test_agreement_of_a_card_that_names_nothing_is_no_number():
    assert agreement([make("P"), make("Q", {"a": "x"})]).isna().sum().sum() == 3


@given(piles(), st.sampled_from("abcde"))
def test_holders_are_the_cards_of_each_value(cards, aspect):
    found = holders(cards, aspect)
    assert sorted(itertools.chain(*found.values())) == sorted(
        card.short_name for card in cards if aspect in card.aspects
    )
    for value, names in found.items():
        assert all(card.aspects[aspect] == value for card in cards if card.short_name in names)
    most = max(map(len, found.values()), default=0)
    assert largest_share(cards, aspect) == most / len(cards)


@given(piles(least=2), st.randoms())
def test_a_discussion_does_not_depend_on_the_order_of_the_cards(cards, random):
    assert discuss(random.sample(cards, len(cards))) == discuss(cards)


@given(piles(least=2))
def test_every_aspect_stands_in_the_part_that_its_share_says(cards):
    talk = discuss(cards)
    parts = {"shared": talk.shared, "usual": talk.usual, "differing": talk.differing}
    found = {point.aspect: part for part, points in parts.items() for point in points}
    assert sorted(found) == sorted({aspect for card in cards for aspect in card.aspects})
    assert sum(map(len, parts.values())) == len(found)
    for aspect, part in found.items():
        share = largest_share(cards, aspect)
        assert part == ("shared" if share == 1 else "usual" if share > 1 / 2 else "differing")


def test_a_discussion_names_every_value_every_paper_and_who_is_silent():
    cards = [make("P", {"a": "x"}), make("Q", {"a": "x"}), make("R", {"a": "y", "b_c": "z"})]
    text = discuss(cards).to_markdown()
    assert "- *a*: usually x (P, Q), but y (R)." in text
    assert r"- *b\_c*: z (R). Not said: P, Q." in text
    assert "share" not in text
    assert "**All 2 papers share**\n\n- *a*: x." in discuss(cards[:2]).to_markdown()
    silent = discuss([*cards[:2], make("R")]).to_markdown()
    assert silent == "**What is usual**\n\n- *a*: usually x (P, Q). Not said: R."


def test_one_card_is_no_discussion():
    with pytest.raises(ValueError, match="cards holds one card; expected two or more to discuss"):
        discuss([FOUR[0]])


def test_the_four_papers_share_one_thing_and_usually_compare_every_pair():
    talk = discuss(FOUR)
    assert [point.aspect for point in talk.shared] == ["output is reached"]
    assert [point.aspect for point in talk.usual] == ["elements interact"]
