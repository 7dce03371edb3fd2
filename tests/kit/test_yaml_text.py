"""YAML as texts with lines: what is read, what is refused, and the one line that says why."""

import copy
import pickle
import re
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from fourfold.kit.yaml_text import TextError, expected, model_from_yaml, parse_yaml, read_text


class Step(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    kind: Literal["hot", "cold"] = "hot"
    notes: tuple[str, ...] = ()


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str
    minutes: Annotated[int, Field(ge=1, description="minutes, 1 or more")]
    note: str | None = None
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    kinds: tuple[Literal["hot", "cold"], ...] = ()
    facts: dict[str, str] = {}
    tags: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @field_validator("title")
    @classmethod
    def _no_shouting(cls, title):
        if title.isupper():
            raise ValueError("shouts; expected small letters")
        return title


GOOD = "title: soup\nminutes: 5\nsteps:\n- name: boil\n"


def test_every_value_is_the_text_it_is():
    parsed = parse_yaml("a: 2406.10510\nb: no\nc: [010, 1e3]\nd: {on: off}\n")
    assert parsed.fields == {"a": "2406.10510", "b": "no", "c": ["010", "1e3"], "d": {"on": "off"}}


@pytest.mark.parametrize("nothing", ["", "~", "null", "Null", "NULL", "''", '"  "', "[]", "{}"])
def test_what_is_empty_is_absent_at_any_depth(nothing):
    text = f"a: {nothing}\nb:\n- {nothing}\n- x\nc:\n  d: {nothing}\ne:\n- f: {nothing}\n  g: y\n"
    parsed = parse_yaml(text)
    assert parsed.fields == {"b": ["x"], "e": [{"g": "y"}]}
    assert parsed.line(("b", 0)) == 4, "the line is that of the item, not of its place in the file"
    assert parse_yaml(f"a: {nothing}").fields == {}, "a group with nothing in it"
    assert parse_yaml(f"- {nothing}").fields is None


def test_a_quoted_null_is_a_word():
    assert parse_yaml("a: 'null'\nb: nULL").fields == {"a": "null", "b": "nULL"}


@pytest.mark.parametrize(
    ("place", "line"),
    [((), 1), (("title",), 2), (("steps",), 3), (("steps", 1), 5), (("steps", 1, "b"), 6),
     (("steps", 1, "none"), 5), (("none", 1), 1), (("title", 0), 2)],
)  # fmt: skip
def test_a_place_has_the_line_of_its_deepest_part_that_is_there(place, line):
    text = "# a remark\ntitle: soup\nsteps:\n- a: 1\n- a: 2\n  b: 3\n"
    assert parse_yaml(text).line(place) == line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: a stands twice; expected each field once"),
        ('a b: 1\n"a  b": 2\n', "line 2: a b stands twice"),
        ('task: 1\n"task ": 2\n', "line 2: task stands twice"),
        ("a:\na: 1\n", "line 2: a stands twice"),
        ("a: 1\n'': 2\n", "line 2: a field has no name; expected `name: value`"),
        ("a: 1\n' ': 2\n", "line 2: a field has no name"),
        ("a: {b: c, half a text}\n", "line 1: half a text has no colon; expected `name: value`"),
        ("a:\n  - {c: d, e,\n f: g}\n", "line 2: e has no colon; .* a comma, which ends a value"),
        ("[1, 2]: 3", "line 1: a field's name is a list or a group; expected a word"),
        ("a: &x b\nc: *x\n", r"line 2: a text is used again by an alias \(\*\)"),
        ("a: &x [*x]\n", "line 1: a text is used again by an alias"),
        ("a: [b\nc: 1", r"line 2: not YAML \(expected .*\)$"),
        ("a\0b", r"not YAML \(unacceptable character .*\)$"),
        ("--- {a: 1}\n--- {a: 2}\n", r"line 2: not YAML \(but found another document\)"),
        ("[" * 5000, r"nested too deeply; expected|not YAML"),
    ],
)  # fmt: skip
def test_what_is_refused_is_told_in_one_line(text, says):
    with pytest.raises(TextError, match=rf"^soup\.yaml: {says}") as caught:
        parse_yaml(text, "soup.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "facts: {a: b, c}\n", r"line 5: c has no colon; expected `name: value`, or quotes"),
        (GOOD + "minuts: 1\n", r"line 5: minuts is no known field; the nearest is minutes$"),
        (GOOD + "zzz: 1\n", r"line 5: zzz is no known field; known: title, minutes, note, steps"),
        (GOOD + "  nam: 1\n", r"line 5: steps\[0\]\.nam is no known field; the nearest is name$"),
        (GOOD + "x" * 900 + ": 1\n", r"line 5: x{39}… is no known field; known: title"),
        (GOOD + '"x\\ny\\ez": 1\n', r"line 5: 'x y\\x1bz' is no known field; known: title"),
        ("title: soup\n", r"line 1: minutes is missing; expected minutes, 1 or more \(and 1 more"),
        (GOOD.replace("5", "soon"), r"line 2: minutes is 'soon'; expected minutes, 1 or more$"),
        (GOOD.replace("soup", "[a]"), r"line 1: title is a list; expected a text$"),
        (GOOD.replace("soup", "SOUP"), r"line 1: title shouts; expected small letters$"),
        (GOOD + "note: {a: b}\n", r"line 5: note is a group of fields; expected a text$"),
        (GOOD + "  kind: warm\n", r"line 5: steps\[0\]\.kind is 'warm'; expected one of hot, cold"),
        (GOOD + "  notes: {a: b}\n", r"line 5: steps\[0\]\.notes .*; expected a text or a list of"),
        (GOOD + "kinds: [hot, warm]\n", r"line 5: kinds\[1\] is 'warm'; expected one of hot, cold"),
        (GOOD + "kinds: warm\n", r"line 5: kinds is 'warm'; expected one or more of hot, cold$"),
        (GOOD + "tags: {a: b}\n", r"line 5: tags is .*; expected a text or a list of texts$"),
        (GOOD + "facts: [a]\n", r"line 5: facts is a list; expected pairs of name and text$"),
        (GOOD + "facts: {a: [b]}\n", r"line 5: facts\.a is a list; expected a text$"),
        (GOOD.replace("- name: boil", "- boil"),
         r"line 4: steps\[0\] is 'boil'; expected a group with name$"),
        (GOOD.replace("\n- name: boil", " boil"),
         r"line 3: steps is 'boil'; expected a list of groups, each with name$"),
        ("title: soup\nminutes: 1\n", r"line 1: steps is missing; expected a list of groups, each"),
        ("- a\n", r"a list; expected fields such as `title: …`$"),
        ("soup", r"'soup'; expected fields such as `title: …`$"),
        ("title:\nsteps: []\n", r"line 1: title is missing; expected a text \(and 2 more\)$"),
        ("", r"empty; expected fields such as `title: …`$"),
        ("# only a remark\n", r"empty; expected fields"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_line_field_and_what_was_expected(text, says):
    with pytest.raises(TextError, match=rf"^soup\.yaml: {says}") as caught:
        model_from_yaml(Recipe, text, "soup.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_all_problems_are_kept_and_none_that_only_follows():
    with pytest.raises(TextError) as caught:
        model_from_yaml(Recipe, "titel: a\nminutes: x\nsteps: [{kind: warm, name: b}]\n")
    fields = [re.search(r"line \d+: (\S+)", problem)[1] for problem in caught.value.problems]
    assert fields == ["titel", "title", "minutes", "steps[0].kind"]
    assert str(caught.value).endswith("(and 3 more)")


def test_what_is_expected_follows_from_the_model():
    assert expected(Recipe, ()) == "a group with title, minutes and steps"
    assert expected(Recipe, ("minutes",)) == "minutes, 1 or more"
    assert expected(Recipe, ("steps", 3, "kind")) == "one of hot, cold"


def test_an_error_can_be_copied_and_pickled():
    error = TextError("a\nb.yaml", ["line 1: x", "line 2: y"])
    assert str(error) == "a b.yaml: line 1: x (and 1 more)"
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(other) == str(error) and other.problems == error.problems


plain = st.text(max_size=8).map(lambda text: " ".join(text.split())).filter(bool)
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(plain, inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(plain, trees, min_size=1, max_size=3))
def test_what_yaml_writes_is_read_back(fields):
    assert parse_yaml(yaml.safe_dump(fields, allow_unicode=True)).fields == fields


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        parse_yaml(text)
    except TextError as error:
        assert "\n" not in str(error)


def test_files(tmp_path):
    path = tmp_path / "soup.yaml"
    path.write_bytes(b"\xef\xbb\xbftitle: soup")
    assert read_text(path) == "title: soup"
    path.write_bytes("title: 汤".encode("gbk"))
    with pytest.raises(TextError, match=r"^soup\.yaml: byte 7 is not UTF-8; save it as UTF-8$"):
        read_text(path)
    with pytest.raises(FileNotFoundError, match=r"none\.yaml'; there is no such file"):
        read_text(tmp_path / "none.yaml")
    with pytest.raises(IsADirectoryError, match="a folder; expected a file"):
        read_text(tmp_path)
