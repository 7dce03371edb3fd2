"""Reading drafts in LaTeX and Markdown: counts by hand, a parser as oracle, broken input."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pylatexenc.latexwalker import (
    LatexEnvironmentNode,
    LatexWalker,
    get_default_latex_context_db,
)

from fourfold.kit.drafts import DraftError, Place, count_words, read_draft

DRAFTS = Path(__file__).parents[1] / "drafts"
ORCHARD = DRAFTS / "orchard" / "paper.tex"
MAINS = [ORCHARD, DRAFTS / "tides" / "thesis.tex", DRAFTS / "dialects" / "main.tex"]
NAMES = ("sections", "figures", "tables", "equations", "algorithms", "citations", "faults")


# Counted by hand in the sources.


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("orchard/paper.tex", (20, 3, 3, 8, 1, 23, 0)),
        ("tides/thesis.tex", (45, 4, 1, 7, 1, 11, 0)),
        ("dialects/main.tex", (44, 3, 2, 2, 0, 30, 0)),
        ("bees.md", (5, 2, 1, 2, 0, 8, 0)),
    ],
)
def test_a_draft_is_counted_as_by_hand(path, counts):
    draft = read_draft(DRAFTS / path)
    assert tuple(len(getattr(draft, name)) for name in NAMES) == counts


@pytest.mark.parametrize(
    ("path", "items", "index", "place"),
    [
        ("orchard/paper.tex", "sections", 0, "paper.tex:11"),
        ("orchard/paper.tex", "sections", 2, "sections/related.tex:1"),
        ("orchard/paper.tex", "sections", 17, "paper.tex:25"),
        ("orchard/paper.tex", "figures", 0, "figures/pipeline.tex:1"),
        ("orchard/paper.tex", "equations", 0, "sections/background.tex:7"),
        ("orchard/paper.tex", "equations", 4, "sections/method.tex:20"),
        ("orchard/paper.tex", "tables", 0, "sections/related.tex:24"),
        ("orchard/paper.tex", "algorithms", 0, "sections/method.tex:45"),
        ("orchard/paper.tex", "citations", 0, "sections/introduction.tex:4"),
        ("orchard/paper.tex", "citations", -2, "sections/background.tex:36"),
        ("orchard/paper.tex", "paragraphs", 0, "paper.tex:12"),
        ("orchard/paper.tex", "paragraphs", 1, "sections/introduction.tex:2"),
        ("tides/thesis.tex", "sections", 1, "chapters/introduction.tex:1"),
        ("tides/thesis.tex", "equations", 4, "chapters/model.tex:22"),
        ("tides/thesis.tex", "figures", 1, "chapters/model.tex:52"),
        ("dialects/main.tex", "tables", 1, "parts/villages.tex:1"),
        ("dialects/main.tex", "citations", 2, "parts/opening.tex:8"),
        ("dialects/main.tex", "figures", 0, "parts/listening.tex:31"),
        ("bees.md", "sections", 2, "bees.md:18"),
        ("bees.md", "equations", 0, "bees.md:23"),
        ("bees.md", "figures", 1, "bees.md:47"),
        ("bees.md", "tables", 0, "bees.md:38"),
        ("bees.md", "citations", 2, "bees.md:9"),
        ("bees.md", "citations", 5, "bees.md:57"),
    ],
)
def test_each_item_has_its_file_and_line(path, items, index, place):
    assert str(getattr(read_draft(DRAFTS / path), items)[index].place) == place


def tree_of(path):
    """The nodes of all files of a draft, by pylatexenc's own reader."""
    nodes = []
    for file in sorted(path.parent.rglob("*.tex")):
        text = file.read_text().partition(r"\end{document}")[0]
        nodes += LatexWalker(text).get_latex_nodes()[0]
    while nodes:
        node = nodes.pop()
        yield node
        nodes += getattr(node, "nodelist", None) or []
        arguments = getattr(getattr(node, "nodeargd", None), "argnlist", None) or []
        nodes += [argument for argument in arguments if argument is not None]


@pytest.mark.parametrize("path", MAINS, ids=lambda path: path.parent.name)
def test_the_tree_of_pylatexenc_holds_the_same_floats(path):
    names = Counter(
        node.environmentname.rstrip("*").removeprefix("SC").removeprefix("wrap").replace("long", "")
        for node in tree_of(path)
        if isinstance(node, LatexEnvironmentNode)
    )
    draft = read_draft(path)
    assert len(draft.figures) == names["figure"]
    assert len(draft.tables) == names["table"]
    assert len(draft.algorithms) == names["algorithm"]


def test_a_caption_keeps_its_words_formulas_and_labels():
    (pipeline, role, _) = read_draft(ORCHARD).figures
    assert pipeline.caption.startswith("The pipeline, from one photograph $x$ to an interval")
    assert "photograph $x$" in pipeline.text
    assert role.labels == ("fig:role:m", "fig:role:n", "fig:role")


# Reading LaTeX, one matter at a time.


@pytest.mark.parametrize(
    ("tex", "titles", "keys"),
    [
        (r"\section{A} \cite{x}", ["A"], ["x"]),
        (r"% \section{Old} \cite{x}", [], []),
        (r"50\% \cite{x}", [], ["x"]),
        (r"\\% \cite{x}", [], []),
        (r"\section*{A}\subsection[short]{B}", ["A", "B"], []),
        (r"\cite[see][p.~3]{x, y}", [], ["x", "y"]),
        (r"\citep{x}\citet*{y}\parencite[1]{z}\textcite{u}\nocite{v}", [], ["x", "y", "z", "u"]),
        (r"\newcommand{\c}[1]{\cite{#1}}\c{a}\c{b}", [], ["a", "b"]),
        (r"\newcommand\c{\cite}\c{a}", [], ["a"]),
        (r"\newcommand{\c}[2][k]{\cite{#1,#2}}\c{a}\c[b]{c}", [], ["k", "a", "b", "c"]),
        (r"\def\c#1{\citep{#1}}\c{a}", [], ["a"]),
        (r"\let\c\cite \c{a}", [], ["a"]),
        (r"\renewcommand{\cite}{\citep}\cite{a}", [], ["a"]),
        (r"\verb|\cite{x}| \verb+\section{A}+", [], []),
        ("\\begin{verbatim}\n\\section{A}\n\\end{verbatim}\\cite{x}", [], ["x"]),
        ("\\begin{comment}\n\\cite{y}\\end{comment}\\cite{x}", [], ["x"]),
        (r"\iffalse \cite{y} \fi \cite{x}", [], ["x"]),
        (r"\section{On \emph{very} nice \'etudes}", ["On very nice études"], []),
        ("\\section{A\n% remark }\n}", ["A"], []),
        (r"a \end{document} \section{A} \cite{x}", [], []),
        (r"\footnote{As in \cite{x}.}", [], ["x"]),
    ],
)
def test_headings_and_citations(read, tex, titles, keys):
    draft = read(tex)
    assert [s.title for s in draft.sections if s.title] == titles
    assert [c.key for c in draft.citations] == keys
    assert draft.faults == ()


@pytest.mark.parametrize(
    "formula",
    [
        r"\begin{equation} a \end{equation}",
        r"\begin{align*} a &= b \\ c &= d \end{align*}",
        r"\begin{gather} a \end{gather}",
        r"\begin{multline} a \\ b \end{multline}",
        r"\begin{eqnarray*} a &=& b \end{eqnarray*}",
        r"\begin{displaymath} a \end{displaymath}",
        r"\[ a \]",
        "$$ a $$",
        r"\begin{equation}\begin{aligned} a \\ b \end{aligned}\end{equation}",
        r"\newcommand{\be}{\begin{equation}}\newcommand{\ee}{\end{equation}} \be a \ee",
        r"\newenvironment{e}{\begin{align}}{\end{align}} \begin{e} a \end{e}",
        r"\begin{equation} a \mbox{ if $b$} \end{equation}",
        r"\begin{equation} a % }",
    ],
)
def test_one_displayed_formula(read, formula):
    end = "\n\\end{equation}" if formula.endswith("}") and "%" in formula else ""
    draft = read(f"Before {formula}{end} after.")
    assert len(draft.equations) == 1 and draft.faults == ()
    assert [p.words for p in draft.paragraphs] == [2]


@pytest.mark.parametrize(
    "formula", ["$a$", r"\(a\)", r"\ensuremath{a}", "$a$$b$", r"$\text{if $a$}$"]
)
def test_inline_formulas_are_no_words(read, formula):
    draft = read(f"Let {formula} be.")
    assert draft.equations == () and draft.faults == ()
    assert draft.words == 2 and "$" in draft.paragraphs[0].text


@pytest.mark.parametrize(
    ("tex", "texts"),
    [
        ("One\ntwo.\n\nThree.", ["One two.", "Three."]),
        ("One % remark\n% remark\ntwo.", ["One two."]),
        ("One %\n\nTwo.", ["One", "Two."]),
        (r"One \par Two", ["One", "Two"]),
        (r"A \begin{itemize}\item b \item c\end{itemize} d", ["A b c d"]),
        (
            r"Schr\"odinger, na\"{\i}ve, gar\c{c}on, stra\ss e",
            ["Schrödinger, naïve, garçon, straße"],
        ),
        (r"\textcolor{red}{Red} \href{http://x.y}{link} \url{http://x.y}", ["Red link"]),
        (r"\unknown[opt]{kept} \vspace{1em}text", ["kept text"]),
        (r"a \vskip4pt b\hskip 1em plus 2pt c \kern-.5em d \vskip\baselineskip e", ["a b c d e"]),
        (r"a \rule{1pt}{2em} b \setlength\tabcolsep{3pt} c \rowcolor{red} d", ["a b c d"]),
        (r"a \cmidrule(lr){2-3} b", ["a b"]),
        (r"text\footnote{Foot.} more", ["text Foot. more"]),
    ],
)
def test_paragraphs(read, tex, texts):
    assert [p.text for p in read(tex).paragraphs] == texts


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_a_byte_order_mark_do_not_matter(read, line_end, mark):
    text = line_end.join([r"\section{Größe}", "", "One.", "", r"Two \cite{a}."])
    draft = read(mark + text.encode())
    assert draft.sections[0].title == "Größe" and draft.faults == ()
    assert [p.place.line for p in draft.paragraphs] == [3, 5]


def test_latin_1_is_read_with_a_finding(read):
    draft = read("A\n\nGröße".encode("latin-1"))
    assert draft.paragraphs[1].text == "Größe"
    (fault,) = draft.faults
    assert fault.place == Place("main.tex", 3) and "Latin-1" in fault.found


@pytest.mark.parametrize(
    ("tex", "line", "found"),
    [
        ("a\n\\input{none}", 2, r"\input{none}: no such file"),
        ("a\n\\input{main}", 2, "a circle"),
        ("\\input{/none/such}", 1, "an absolute path"),
        ("\\input{../outside}", 1, "leaves the draft's folder"),
        ("\\input{folder}", 1, "is a folder"),
        ("\\input{binary}", 1, "a NUL byte"),
        ("\\input{}", 1, "without a file"),
        ("a\n$x\n\nb", 2, "$ is never closed"),
        ("a\n\\[x\n\nb", 2, "\\[ is never closed"),
        ("\\begin{figure}\n\\section{A}", 1, r"\begin{figure} is never closed"),
        ("\\begin{equation} a\n\\section{A}", 1, r"\begin{equation} is never closed"),
        ("a }", 1, "} closes nothing"),
        ("a { b", 1, "{ is never closed"),
        ("\\end{figure}", 1, r"\end{figure} closes nothing"),
        ("\\begin{center} { \\end{center}", 1, "{ is never closed"),
        ("\\section", 1, "without a title"),
        ("\\newcommand{\\a}{\\a}\\a", 1, "expands without end"),
        ("\\newcommand{\\a}{\\a\\a}\\a", 1, "expands without end"),
        ("\\newcommand{\\a", 1, "defines nothing"),
        ("a\n\\begin{verbatim}", 2, "verbatim is never closed"),
        ("\\begin", 1, "without a name"),
        ("\\cite", 1, "a citation without a key"),
    ],
)
def test_what_is_broken_is_a_finding_with_its_line(read, tex, line, found):
    files = {"folder/x.tex": "x", "binary.tex": b"a\0b"}
    faults = read(tex, **files).faults
    assert any(found in fault.found and fault.place.line == line for fault in faults), faults


def test_many_like_faults_are_told_three_times(read):
    faults = read("}" * 1000).faults
    assert len(faults) == 3 and "997 times more" in faults[-1].found


def test_missing_files_are_told_three_times(read):
    faults = read("".join(rf"\input{{x{i}}}" for i in range(400))).faults
    assert len(faults) == 3 and r"\input{x2}" in faults[-1].found
    assert "397 times more" in faults[-1].found


def test_reading_stops_where_a_draft_does_not_end(read, monkeypatch):
    monkeypatch.setattr("fourfold.kit.drafts.latex._TOKENS", 1000)
    draft = read("First. " + "{}" * 1000 + "Last.")
    (fault,) = [fault for fault in draft.faults if "does not end" in fault.found]
    assert draft.words == 1 and fault.severity == "error"


def test_files_are_found_from_the_main_files_folder(read):
    files = {"a/b.tex": r"\section{B}\input{a/c.tex}", "a/c.tex": r"\cite{c}"}
    draft = read("\\include{a/b}\n\\subfile{a/c}\\import{a/}{c}", **files)
    assert [str(c.place) for c in draft.citations] == ["a/c.tex:1"] * 3
    assert str(draft.sections[0].place) == "a/b.tex:1" and draft.faults == ()


def test_every_macro_that_pylatexenc_knows_is_read(read):
    names = [m.macroname for m in get_default_latex_context_db().iter_macro_specs() if m.macroname]
    for text in (rf"\{name}" for name in names):
        for tail in ("", "{a}", "[b]{a}", " a"):
            read(f"x {text}{tail} y")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.tex", None, "none.tex: no such file"),
        ("main.tex", b"", "main.tex: is empty"),
        ("main.tex", b" \n\t", "main.tex: is empty"),
        ("main.md", b"a\nb\0", "main.md:2: a NUL byte"),
        ("main.docx", b"a", "expected one that ends in .tex or .md"),
        (".", None, "is a folder; expected a file"),
    ],
)
def test_nothing_to_read_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DraftError, match=re.escape(message)) as error:
        read_draft(tmp_path / name)
    assert "\n" not in str(error.value) and isinstance(error.value, ValueError)


# Figures, captions, labels.


def test_a_caption_outside_a_float_keeps_its_label(read):
    draft = read(
        r"\twocolumn[{\maketitle \captionof{figure}{A teaser.}\label{fig:t}}] \section{A}\label{s}"
        r" \captionof{table}{Inside.\label{tab:u}}"
    )
    teaser, table = draft.marks
    assert (teaser.kind, teaser.caption, teaser.labels) == ("figure", "A teaser.", ("fig:t",))
    assert (table.kind, table.caption, table.labels) == ("table", "Inside.", ("tab:u",))
    assert draft.faults == ()


def test_a_caption_in_brackets_is_read_like_any_other(read):
    draft = read(
        r"\begin{figure}\subfloat[Left \emph{one}\label{fig:a}]{X}\caption{All}\end{figure}"
    )
    (figure,) = draft.figures
    assert figure.labels == ("fig:a",) and figure.caption == "Left one All"


@pytest.mark.parametrize(
    ("tex", "labels"),
    [
        (r"\crefrange{fig:a}{fig:b}", ["fig:a", "fig:b"]),
        (r"\Crefrange{a}{b}", ["a", "b"]),
        (r"\labelcref{a,b}", ["a", "b"]),
        (r"\begin{figure}\caption{As in \ref{a} and \ref{b}.}\label{a}\end{figure}", ["b"]),
    ],
)
def test_references(read, tex, labels):
    draft = read(tex)
    assert [r.label for r in draft.references] == labels and draft.faults == ()


def test_thanks_are_a_section_of_their_own(read):
    draft = read(r"\section{Conclusion} It ends. \begin{ack} We thank. \end{ack}")
    assert [s.title for s in draft.sections] == ["Conclusion", "Acknowledgements"]
    assert [p.section for p in draft.paragraphs] == [0, 1]


# Markdown as Quarto and pandoc write it.


def test_headings_below_a_title_in_the_front_matter_keep_their_levels(read):
    text = "---\ntitle: T\n---\n\n# A {-}\n\n## B {#sec-b .unnumbered}\n\n# C\n"
    draft = read(text, "main.qmd")
    assert draft.title == "T"
    assert [(s.title, s.level) for s in draft.sections] == [("A", 1), ("B", 2), ("C", 1)]


def test_cross_references_are_no_citations(read):
    text = (
        "See @fig-pipe, @Fig:pipe, @tbl-x, @eq-a, @sec-m and @knuth1984.\n\n"
        "::: {.callout}\nWords.\n:::\n\n![A pipe](a.png){#fig-pipe}\n"
    )
    draft = read(text, "main.qmd")
    assert [r.label for r in draft.references] == ["fig-pipe", "fig:pipe", "tbl-x", "eq-a", "sec-m"]
    assert [c.key for c in draft.citations] == ["knuth1984"]
    assert [p.text for p in draft.paragraphs][1:] == ["Words."]
    assert draft.figures[0].labels == ("fig-pipe",)


def test_figures_in_a_division_share_its_label(read):
    text = "::: {#fig-both .wide}\n![One](a.png){#fig-a}\n\n![Two](b.png)\n:::\n\n![Three](c.png)\n"
    labels = [figure.labels for figure in read(text, "main.qmd").figures]
    assert labels == [("fig-a", "fig-both"), ("fig-both",), ()]


# Broken input of every kind.


def all_of_it(path):
    """Read; only DraftError may come out."""
    try:
        draft = read_draft(path)
    except DraftError as error:
        assert "\n" not in str(error)
        return
    assert sum(s.at >= 0 for s in draft.sections) == len(draft.sections)


@settings(max_examples=30)
@given(st.integers(min_value=0), st.sampled_from([*MAINS, DRAFTS / "bees.md"]))
def test_a_draft_cut_off_at_any_byte_is_read(tmp_path_factory, cut, main):
    folder = tmp_path_factory.mktemp("cut") / "draft"
    shutil.copytree(main.parent, folder) if main.suffix == ".tex" else folder.mkdir()
    files = sorted(main.parent.rglob("*.tex")) if main.suffix == ".tex" else [main]
    file = files[cut % len(files)]
    data = file.read_bytes()
    (folder / file.relative_to(main.parent)).write_bytes(data[: cut % (len(data) + 1)])
    path = folder / main.name
    if path.exists():
        all_of_it(path)


@settings(max_examples=150)
@given(st.binary(max_size=400), st.sampled_from([".tex", ".md"]))
def test_random_bytes_are_read(tmp_path_factory, data, suffix):
    path = tmp_path_factory.mktemp("bytes") / f"a{suffix}"
    path.write_bytes(data)
    all_of_it(path)


PIECES = re.findall(
    r"\S+",
    r"\section \section{ \section{A} \begin{figure} \end{figure} \begin{equation} \end{equation}"
    r" { } $ $$ \[ \] \( \) % \cite{a} \cite[ ] [ \caption{ \label{b} \ref{b} \item \verb| | \ word"
    r" \newcommand{\x}[1]{#1} \x \def\x{\x} \begin{x} \end{x} \newenvironment{x}{\begin{align}}{}"
    r" \end{document} \begin{document} \documentclass{a} \appendix \par \\ \' ~ & # ^ _ \input{a}"
    r" \begin{verbatim} \end{verbatim} \iffalse \fi \ensuremath{ \text{ \begin{tabular}{l} ## > - `"
    r" ![a](b) \begin{abstract} \end{abstract} \captionof{figure}{ \begin{table*} \end{table*}",
)


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*PIECES, "\n", "\n\n", " "]), max_size=40), st.booleans())
def test_a_soup_of_commands_is_read(tmp_path_factory, pieces, is_latex):
    path = tmp_path_factory.mktemp("soup") / ("main.tex" if is_latex else "main.md")
    path.write_text("".join(pieces) or "x")
    all_of_it(path)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10_000,
        "{" * 10_000 + "}" * 10_000,
        r"\begin{itemize}\item " * 5000,
        "".join(rf"\begin{{e{i}}}" for i in range(3000)),
        "word " * 200_000,
        "$a " * 30_001,
        r"\section{" * 10_000,
        r"\cite[" * 10_000,
        r"\newcommand{" * 10_000,
        r"\newcommand{\a}[1]{#1}" + r"\a{" * 20_000 + "}" * 20_000,
        r"\section{Method}\begin{equation}" + "x_{" * 20_000 + "}" * 20_000 + r"\end{equation}",
        "[@" * 20_000,
        "%\n" * 50_000,
        r"\verb!" * 20_000,
        r"\input " * 10_000,
        r"\input{x}" * 10_000,
    ],
    ids=lambda text: text[:12],
)
def test_large_and_deep_sources_end(read, text):
    assert read("\\section{Experiments}\n" + text).sections


@pytest.mark.parametrize(
    "text",
    [
        "word " * 200_000,
        "[" * 90_000,
        "$a " * 30_000,
        "> " * 20_000 + "a",
        "$$\na\n" * 5_000,
        "\\begin{equation}\n" * 3_000,
        "`" * 90_000,
        "*a_" * 30_000,
        "[1-999999]" * 1_000,
        "#\n" * 5_000,
        ("[" * 40_000 + "\n") * 9,
    ],
    ids=lambda text: text[:9],
)
def test_large_and_deep_markdown_ends(read, text):
    assert read("## Experiments\n\n" + text, "main.md").sections


# Words, sentences, symbols.


@given(st.lists(st.sampled_from(["word", "naïve", "well-known", "author's", "ß"]), max_size=30))
def test_words_are_what_stands_between_spaces(words):
    text = " $x = 1$ [@key; @other] [#fig:a] 12 ".join(words)
    assert count_words(text) == len(words)
