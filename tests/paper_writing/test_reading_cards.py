"""Reading cards: what a card refuses, the table, the discussion, and the four papers' own cards."""

import copy
import itertools
import math
import pickle
import re
import string

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import ValidationError
from pylatexenc.latexwalker import LatexCharsNode, LatexGroupNode, LatexSpecialsNode, LatexWalker

from fourfold.course.files import House
from fourfold.kit.data import data_path
from fourfold.kit.yaml_text import TextError
from fourfold.paper_writing.reading_cards import (
    CARD_PLACES,
    CARD_QUESTIONS,
    Comparison,
    Innovation,
    ReadingCard,
    agreement,
    aspect_holders,
    blank_card,
    card_text,
    compare,
    discuss,
    escape_latex,
    headline_results,
    largest_share,
    open_questions,
    overcome_table,
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
SPECIAL = "_&%#$^~\\{}<>|[]*`!?-',"
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
    assert card.sources and card.background and card.question_zh and card.strengths
    for innovation in card.innovations:
        assert set(innovation.where_introduced) <= set(CARD_PLACES) and innovation.where_introduced
        assert len(set(innovation.where_introduced)) == len(innovation.where_introduced)
    for word in card.vocabulary:
        assert re.search("[\u4e00-\u9fff]", word.chinese), word.term


@pytest.mark.parametrize("name", FILES)
def test_each_innovation_names_a_lesson_of_its_chapter(name):
    for innovation in read_card(data_path("cards", f"{name}.yaml")).innovations:
        chapter, lesson = innovation.lesson.split("/")
        assert chapter.split("_", 1)[1] == name
        assert lesson in LESSONS[chapter].split()


@pytest.mark.parametrize("chapter", LESSONS)
def test_the_lessons_that_exist_are_those_of_the_plan(chapter):
    there = {path.stem for path in (House.here().chapters / chapter).glob("[0-9]*.py")}
    assert there <= set(LESSONS[chapter].split())


def test_a_place_that_was_not_read_has_its_source_named():
    for card in FOUR:
        places = {place for item in card.innovations for place in item.where_introduced}
        assert card.parts_read and set(card.parts_read) <= set(CARD_PLACES)
        if places - set(card.parts_read):
            assert re.search("from memory|was not read", " ".join(card.sources)), card.short_name


@pytest.mark.parametrize("name", FILES)
def test_headline_tables_name_papers_sources_and_directions(name):
    table = headline_results(name)
    names = "paper,table,data,method,measure,value,unit,better,source,printed"
    assert ",".join(table.columns) == names
    assert not table.duplicated(["data", "method", "measure", "source"]).any()
    assert set(table["paper"]) == {read_card(data_path("cards", f"{name}.yaml")).short_name}
    assert set(table["better"]) <= {"higher", "lower"}
    assert np.isfinite(table["value"]).all()
    assert (table["printed"].astype(float) == table["value"]).all()
    assert (table[["method", "measure", "source"]] != "").all(axis=None)


def test_known_numbers_of_the_headline_tables():
    raft = headline_results("raft").query("source == 'abstract' and method == 'RAFT'")
    assert raft["value"].tolist() == [5.10, 2.855]
    assert raft["printed"].tolist() == ["5.10", "2.855"], "no zero is lost"
    polymers = headline_results("graph_dit").query(
        "method == 'Graph DiT' and measure == 'MAE average'"
    )
    assert polymers["value"].item() == 0.921
    clouds = headline_results("syco").query("method == 'EDM-SyCo' and measure == 'FCD score'")
    assert clouds["value"].item() == 0.85


def test_what_the_card_of_syco_says_of_its_table_is_what_the_table_says():
    table = headline_results("syco").query("data == 'ZINC250K'")
    wide = table.pivot(index="method", columns="measure", values="value")
    fragments = ["MoLeR", "MiCaM", "MAGNet"]
    assert wide.loc["EDM-SyCo", "validity"] == 0.88 and (wide.loc[fragments, "validity"] == 1).all()
    assert (wide.drop("GraphAF")[["novelty", "uniqueness"]] >= 0.98).all(axis=None)
    assert table.query("measure in ('FCD score', 'KL score')")["better"].eq("higher").all()
    assert wide["FCD score"].max() - wide["FCD score"].min() > 0.5


def test_an_unknown_headline_gets_the_nearest():
    with pytest.raises(
        FileNotFoundError, match=r"headline_rafts\.csv.*nearest.*headline_raft\.csv"
    ):
        headline_results("rafts")


# ---- from text to card and back ----------------------------------------------------------------


def test_a_value_stays_the_text_it_is():
    card = parse_card(START + NEW + "arxiv: 2406.10510\naspects: {on: no, steps: 010}\n")
    assert card.arxiv == "2406.10510" and card.aspects == {"on": "no", "steps": "010"}


def test_line_breaks_are_spaces_and_empty_fields_are_absent():
    text = START.replace("What is a corner?", ">-\n  What is\n\n  a corner?")
    card = parse_card(
        text + "venue:\nquestion_zh: Null\narxiv: ~\nlimitations: []\nnot_new: ['', a]\n"
        "overcomes:\n- \n- paper: P\n  gap: g\n  problem: NULL\naspects: {a: , b: x}\n"
        "innovations:\n- name:\n"
    )
    assert card.question == "What is a corner?"
    assert card.venue is card.question_zh is card.arxiv is None and card.limitations == ()
    assert card.not_new == ("a",) and card.aspects == {"b": "x"} and card.innovations == ()
    assert [gap.problem for gap in card.overcomes] == [None]


@pytest.mark.parametrize(
    "number", ["2003.12039", "2003.12039v3", "0704.0001", "cs/0112017", "math.GT/0309136v1"]
)
def test_arxiv_numbers_old_and_new(number):
    assert parse_card(START + f"arxiv: {number}\n").arxiv == number


def test_a_short_card_needs_no_innovation_and_says_so():
    card = parse_card(START)
    assert card.innovations == () and CARD_QUESTIONS["innovations"] in open_questions(card)


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
        (START + "inovations: [a]\n", r"line 5: inovations is no .* nearest is innovations$"),
        (START + NEW + "zzz: 1\n", r"line 10: zzz is no known field; known: title, short_name"),
        (START + NEW + "  again: 1\n", r"line 10: innovations\[0\]\.again is no .* against"),
        (START + "a" * 900 + ": b\n", r"line 5: a{39}… is no known field"),
        (START + '"x\\ny": b\n', r"line 5: x y is no known field"),
        (START + "'': b\n", r"line 5: a field has no name"),
        (START + NEW.replace("  where_introduced: method\n", ""),
         r"line 6: innovations\[0\]\.where_introduced is missing; expected one or more of "
         r"abstract, introduction, related work, method$"),
        (START + NEW.replace("method", "[method, intro]"),
         r"line 8: innovations\[0\]\.where_introduced\[1\] is 'intro'; expected one of abstract"),
        (START + NEW.replace("method", "[method, method]"),
         r"line 8: innovations\[0\]\.where_introduced names 'method' twice; expected each once$"),
        (START + "parts_read: [all]\n", r"line 5: parts_read\[0\] is 'all'; expected one of abs"),
        (START + NEW + "year: 2021\n", r"line 10: year stands twice; expected"),
        (START + NEW + "aspects: {a: 1, a: 2}\n", r"line 10: a stands twice"),
        (START + 'aspects: {a b: 1, "a  b": 2}\n', r"line 5: a b stands twice"),
        (START + 'aspects: {task: 1, "task ": 2}\n', r"line 5: task stands twice"),
        (START.replace("2020", "soon") + NEW, r"line 3: year is 'soon'; expected a year from 1900"),
        (START.replace("2020", "3020") + NEW, r"line 3: year is .*; expected a year from 1900 to"),
        (START.replace("2020", "2_020"), r"line 3: year is '2_020'; expected a year from 1900"),
        (START.replace("2020", "2020.0"), r"line 3: year is '2020\.0'; expected a year from 1900"),
        (START.replace("2020", "\uff12020"), r"line 3: year is .*; expected a year from 1900"),
        (START + NEW + "arxiv: 2003.1\n", r"line 10: arxiv is '2003\.1'; expected a number such"),
        (START + "arxiv: 2003.\uff112039\n", r"line 5: arxiv is '.*'; expected a number such as"),
        (START + NEW + "  lesson: raft\n", r"line 10: innovations\[0\]\.lesson is 'raft'; expect"),
        (START + "authors: {a: b}\n", r"line 5: authors is .*; expected a text or a list of texts"),
        (START + "aspects: [a]\n", r"line 5: aspects is a list; expected pairs such as `task: est"),
        (START + "aspects:\n  task: [a, b]\n", r"line 6: aspects\.task is a list; expected a text"),
        (START + "innovations: [score]\n", r"line 5: innovations\[0\] is 'score'; expected a group "
         r"with name, what, where_introduced and against$"),
        (START + "experiments: [x]\n",
         r"line 5: experiments\[0\] is 'x'; expected a group with question and measures$"),
        (START + "experiments:\n- question: q\n  measures: {a: b}\n",
         r"line 7: experiments\[0\]\.measures is a group .*; expected a text or a list of texts$"),
        (START + "experiments:\n- question: q\n  measures: m\n  where: here\n",
         r"line 8: .*where is 'here'; expected one of abstract, introduction, method, experiments"),
        (START + NEW + "title", r"line 10: not YAML \(.*\)$"),
        ("title: &a b\nshort_name: *a\n", r"line 2: a text is used again by an alias"),
        ("- a\n- b\n", r"a list; expected fields such as `title: …`"),
        ("", r"empty; expected fields such as `title: …`"),
    ],
)  # fmt: skip
def test_a_bad_card_is_named_in_one_line(text, says):
    with pytest.raises(TextError, match=says) as caught:
        parse_card(text, "corners.yaml")
    message = str(caught.value)
    assert message.startswith("corners.yaml: ") and "\n" not in message
    assert len(message) < 400


@given(st.one_of(st.text(max_size=80), st.binary(max_size=80)))
def test_no_content_of_a_file_gives_anything_but_a_card_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    with pytest.raises(TextError) as caught:
        read_card(path)
    assert "\n" not in str(caught.value)


CARDS = [data_path("cards", f"{name}.yaml").read_text(encoding="utf-8") for name in FILES]
LINES = st.sampled_from([line for card in CARDS for line in card.splitlines()])


@given(st.sampled_from(CARDS), st.data())
def test_a_card_with_a_slip_of_the_hand_is_a_card_or_one_line(text, data):
    lines = text.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        slip = data.draw(st.sampled_from(["drop", "twice", "other", "cut", "letter", "indent"]))
        line, cut = lines[at], data.draw(st.integers(0, len(lines[at])))
        lines[at : at + 1] = {
            "drop": [""],
            "twice": [line, line],
            "other": [data.draw(LINES)],
            "cut": [line[:cut]],
            "letter": [line[:cut] + data.draw(st.characters(codec="utf-8")) + line[cut:]],
            "indent": [" " * data.draw(st.integers(0, 4)) + line.lstrip()],
        }[slip]
    try:
        card = parse_card("\n".join(lines), "slip.yaml")
    except TextError as error:
        assert str(error).startswith("slip.yaml: ") and len(str(error).splitlines()) == 1
    else:
        assert parse_card(card_text(card)) == card


def test_other_encodings_and_missing_files(tmp_path):
    (tmp_path / "old.yaml").write_bytes("title: 角点".encode("gbk"))
    with pytest.raises(TextError, match=r"^old\.yaml: byte 7 is not UTF-8"):
        read_card(tmp_path / "old.yaml")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml'; there is no such file"):
        read_card(tmp_path / "none.yaml")
    with pytest.raises(IsADirectoryError, match="a folder; expected a file"):
        read_card(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none'; there is no such folder"):
        read_cards(tmp_path / "none")
    (tmp_path / "old.yaml").unlink()
    (tmp_path / "._hidden.yaml").write_bytes(b"\x00\x05\x16\x07")  # as macOS leaves them
    with pytest.raises(FileNotFoundError, match=r"there is no card \(\*\.yaml\) in it"):
        read_cards(tmp_path)


def test_two_files_of_one_paper_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(START + NEW, encoding="utf-8")
    with pytest.raises(TextError, match=r"^b\.yaml: short_name 'Corners' is another card's too"):
        read_cards(tmp_path)


def test_both_endings_are_cards_and_hidden_files_are_none(tmp_path):
    for name in ("a.yaml", "b.yml", "._a.yaml"):
        text = START.replace("short_name: Corners", f"short_name: {name}")
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert [card.short_name for card in read_cards(tmp_path)] == ["a.yaml", "b.yml"]


def test_a_card_cannot_be_changed():
    card = FOUR[0]
    with pytest.raises(ValidationError, match="frozen"):
        card.title = "another"
    with pytest.raises(TypeError, match="fixed"):
        card.aspects["task"] = "another"
    other = card.model_copy(update={"title": "another"})
    assert len({card, copy.deepcopy(card), pickle.loads(pickle.dumps(card)), other}) == 2
    assert type(make("P").aspects) is type(card.aspects)


def test_aspects_that_become_one_are_refused():
    with pytest.raises(ValidationError, match="names 'a b' twice"):
        make("P", {"a b": "x", "a  b": "y"})
    with pytest.raises(ValidationError, match="at least 1"):
        make("P", {" ": "x"})


# ---- the form ----------------------------------------------------------------------------------


def test_the_form_has_every_field_and_every_question():
    fields = yaml.safe_load(blank_card())
    assert list(fields) == list(ReadingCard.model_fields)
    for name in ("innovations", "overcomes", "experiments", "presentation", "vocabulary"):
        part = ReadingCard.model_fields[name].annotation.__args__[0]
        assert list(fields[name][0]) == list(part.model_fields)
    assert all(f"# {question}\n" in blank_card() for question in CARD_QUESTIONS.values())
    assert "where_introduced:  # one or more of abstract, introduction, " in blank_card()


def test_the_blank_form_lists_what_is_missing():
    with pytest.raises(TextError) as caught:
        parse_card(blank_card())
    missing = {re.search(r"line \d+: (\S+) is missing", p)[1] for p in caught.value.problems}
    assert missing == {"title", "short_name", "year", "question"}


def test_a_card_of_required_fields_has_all_other_questions_open():
    asked = open_questions(parse_card(START))
    assert set(CARD_QUESTIONS.values()) - set(asked) == {CARD_QUESTIONS["question"]}


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


LIGATURES = {"--": "–", "''": "”", "``": "“", ",,": "„", "!`": "¡", "?`": "¿"}
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
    """The characters that LaTeX would print, from pylatexenc's nodes; others than these fail.

    Characters that stand side by side are joined as LaTeX's fonts do.
    """
    text = ""
    for node in nodes:
        if node.isNodeType(LatexGroupNode):
            text += printed(node.nodelist)
        elif node.isNodeType(LatexSpecialsNode):
            text += LIGATURES.get(node.specials_chars, node.specials_chars)
        elif node.isNodeType(LatexCharsNode):
            text += re.sub("|".join(map(re.escape, LIGATURES)), joined, node.chars)
        else:
            text += NAMED[node.macroname]
    return text


def joined(match):
    return LIGATURES[match[0]]


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


@pytest.mark.parametrize("pair", ["--", "---", "''", "``", ",,", "!`", "?`", "----"])
def test_no_two_characters_are_joined(pair):
    escaped = escape_latex(f"a{pair}b")
    assert printed(nodes_of(escaped)) == f"a{pair}b"
    assert escape_latex("3-4 it's a, b!") == "3-4 it's a, b!"


def test_the_oracle_knows_what_latex_joins():
    assert printed(nodes_of("a--b ``c''")) == "a–b “c”"


def test_a_line_break_in_a_cell_breaks_no_table():
    table = Comparison(("a", "b"), (("x\ny", "1 \t 2"),))
    assert "| x y | 1 2 |" in table.to_markdown() and r"x y & 1 2 \\" in table.to_latex()


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        ((), (), "header is empty; expected a name for each column"),
        (("a", "b"), (("1",),), "rows[0] has 1 cells; expected 2, as the header has"),
        (("a",), (("1",), (2,)), "rows[1] holds 2; expected a text, or None"),
        ((1,), (), "header holds 1; expected a text, or None"),
    ],
)
def test_a_comparison_refuses_what_neither_output_could_show(
    without_shape_checks, header, rows, says
):
    with pytest.raises(ValueError, match=re.escape(says)):
        Comparison(header, rows)


def test_a_comparison_takes_lists_and_keeps_tuples(without_shape_checks):
    assert Comparison(["a"], [["1"]]) == Comparison(("a",), (("1",),))
    assert hash(Comparison(["a"], [["1"]])) == hash(Comparison(("a",), (("1",),)))


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
        ([], None, "cards holds no card; expected a list of one card or more"),
        (FOUR[0], None, "cards holds no list but a card; expected a list of one card or more"),
        (
            [make("P"), make("Q")],
            ["a"],
            "aspects names 'a', which no card has; the cards name none",
        ),
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


def test_of_many_aspects_only_a_few_are_offered():
    with pytest.raises(ValueError, match="which no card has") as caught:
        compare([make("P", {f"aspect {number}": "x" for number in range(200)})], ["zzz"])
    assert len(str(caught.value)) < 120


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="cards holds no card"):
        largest_share([], "task")
    with pytest.raises(ValueError, match=r"aspects names 'tusk', which no card has; .*: task"):
        largest_share(FOUR, "tusk")


def test_the_chain_names_who_left_what_open():
    table = overcome_table(FOUR)
    assert len(table.rows) == sum(len(card.overcomes) for card in FOUR)
    assert ("optical flow", "RAFT", "CoTracker") in {(row[3], row[0], row[2]) for row in table.rows}
    assert overcome_table([make("P")]).rows == ()


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
    found = aspect_holders(cards, aspect)
    assert sorted(itertools.chain(*found.values())) == sorted(
        card.short_name for card in cards if aspect in card.aspects
    )
    for value, names in found.items():
        assert all(card.aspects[aspect] == value for card in cards if card.short_name in names)
    if found:
        assert largest_share(cards, aspect) == max(map(len, found.values())) / len(cards)


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


def test_a_discussion_of_nothing_says_so_and_a_stop_stands_once():
    assert discuss([make("P"), make("Q")]).to_markdown() == "No paper names an aspect."
    assert (
        "- *a*: x etc.\n" in discuss([make(n, {"a": "x etc."}) for n in "PQ"]).to_markdown() + "\n"
    )


def test_one_card_is_no_discussion():
    with pytest.raises(ValueError, match="cards holds one card; expected two or more to discuss"):
        discuss([FOUR[0]])


def test_the_four_papers_share_one_thing_and_usually_compare_every_pair():
    talk = discuss(FOUR)
    assert [point.aspect for point in talk.shared] == ["output is reached"]
    assert [point.aspect for point in talk.usual] == ["elements interact"]
