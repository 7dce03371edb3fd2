"""Settings as one types them."""

import re

import pytest

from fourfold.kit.settings import chosen, parse_settings, section_titles

DEFAULTS = {"works": (10, 15), "share": (0.3, 0.7), "words": 5, "pace": 500.0, "ignored": "d e"}


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("works=5-30", "works", (5, 30)),
        ("works=7", "works", (7, 7)),
        ("share=0.2-0.8", "share", (0.2, 0.8)),
        ("words = 8", "words", 8),
        ("pace=600", "pace", 600.0),
        ("ignored=a b", "ignored", "a b"),
    ],
)
def test_a_value_is_of_its_defaults_kind(typed, name, value):
    assert parse_settings([typed], DEFAULTS) == {name: value}


@pytest.mark.parametrize(
    "typed",
    ["works=a", "works=9-3", "works=5-", "works=-3", "words=-3", "words=2.5", "pace=nan", "pace="],
)
def test_a_value_that_means_nothing_is_refused(typed):
    name, _, value = typed.partition("=")
    with pytest.raises(ValueError, match=re.escape(f"{name}: got {value!r}; expected a value")):
        parse_settings([typed], DEFAULTS)


def test_a_name_is_answered_with_the_nearest_or_with_all():
    with pytest.raises(ValueError, match="threshold: got 'work'; expected works or words"):
        parse_settings(["work=5"], DEFAULTS)
    with pytest.raises(ValueError, match="rules: got 'nope'; expected one of question, works"):
        chosen(["nope"], {"question": 1, "works": 2}, "rules")


def test_a_title_stands_in_a_heading():
    titles, headings = {"method": "methods?"}, ["Our Gadget (v2)"]
    typed = ["method=gadget (v2)"]
    assert section_titles(typed, titles, headings) == {"method": r"methods?|gadget\ \(v2\)"}
    for wrong in ("metod=A", "method=", "method=Widget"):
        with pytest.raises(ValueError, match="section: "):
            section_titles([wrong], titles, headings)
