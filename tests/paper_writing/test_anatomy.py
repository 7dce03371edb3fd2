"""Reading drafts and holding them against the rules: counts by hand, properties, broken input."""

import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from pylatexenc.latexwalker import (
    LatexEnvironmentNode,
    LatexWalker,
    get_default_latex_context_db,
)

from fourfold.paper_writing.anatomy import (
    RULES,
    DraftError,
    Place,
    count_words,
    longest_list,
    outline,
    pace_of,
    parse_settings,
    read_draft,
    review,
    section_titles,
    share_of,
    skeleton,
    split_sentences,
    symbol_forms,
    symbols,
    thresholds,
)

DRAFTS = Path(__file__).parent / "drafts"
ORCHARD = DRAFTS / "orchard" / "paper.tex"
MAINS = [ORCHARD, DRAFTS / "tides" / "thesis.tex", DRAFTS / "dialects" / "main.tex"]
NAMES = ("sections", "figures", "tables", "equations", "algorithms", "citations", "faults")


@pytest.fixture
def read(tmp_path):
    """Read a draft given as text, with other files beside it."""

    def write(text, name="main.tex", **files):
        for other, content in {name: text, **files}.items():
            path = tmp_path / other
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_draft(tmp_path / name)

    return write


def rules_of(draft, **options):
    return Counter(finding.rule for finding in review(draft, **options))


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


# Broken input of every kind.


def all_of_it(path):
    """Read, review and draw; only DraftError may come out."""
    try:
        draft = read_draft(path)
    except DraftError as error:
        assert "\n" not in str(error)
        return
    str(review(draft)), review(draft)._repr_markdown_()
    skeleton(draft)
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
    ],
    ids=lambda text: text[:12],
)
def test_large_and_deep_sources_end(read, text):
    str(review(read("\\section{Experiments}\n" + text)))


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
    ],
    ids=lambda text: text[:9],
)
def test_large_and_deep_markdown_ends(read, text):
    str(review(read("## Experiments\n\n" + text, "main.md")))


# Words, sentences, symbols.


@given(st.lists(st.sampled_from(["word", "naïve", "well-known", "author's", "ß"]), max_size=30))
def test_words_are_what_stands_between_spaces(words):
    text = " $x = 1$ [@key; @other] [#fig:a] 12 ".join(words)
    assert count_words(text) == len(words)


def test_sentences_end_where_they_should():
    text = "See Fig. 2, e.g. A et al. [@a]. Is it? Yes! (No.) The end"
    assert split_sentences(text) == [
        "See Fig. 2, e.g. A et al. [@a].",
        "Is it?",
        "Yes!",
        "(No.)",
        "The end",
    ]


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        (r"a_i^2 + b", {"a", "b"}),
        (r"\alpha \exp(x) + \log y", {r"\alpha", "x", "y"}),
        (r"\mathbf{x}_{t_{0}} = \mathbf x", {r"\mathbf{x}"}),
        (r"\hat{\theta} \text{ if } \operatorname{Var}(N)", {r"\hat{\theta}", "N"}),
        (r"1, \dots, n", {"n"}),
        (r"\begin{aligned} u \end{aligned} \label{eq:v}", {"u"}),
        (r"x \in \mathbb{R}^{H \times W}", {"x", r"\mathbb{R}"}),
        ("", set()),
    ],
)
def test_symbols_of_a_formula(tex, expected):
    assert symbols(tex) == expected


def test_forms_of_a_symbol(read):
    draft = read(
        r"\section{Method} Let $x$ be. \[ y = x + z \] "
        r"\begin{figure}\caption{From $x$ to $y$, with $u$.}\end{figure}"
    )
    forms = symbol_forms(outline(draft))
    assert forms == {
        "x": {"formula", "words", "figure"},
        "y": {"formula", "figure"},
        "z": {"formula"},
        "u": {"figure"},
    }


def test_parts_are_told_by_titles_and_synonyms(read):
    titles = [
        "Introduction",
        "Prior Work",
        "Preliminaries",
        "Our Gadget",
        "Evaluation",
        "Discussion",
    ]
    draft = read("".join(rf"\section{{{title}}} Words. " for title in titles))
    parts = outline(draft).parts
    assert [parts[part] for part in parts] == [(i,) for i in range(6)]


def test_the_method_may_be_called_by_its_name(read):
    text = r"\section{Introduction} A. \section{Graph Gadgets} Long words. \subsection{More} B."
    draft = read(text + r" \section{Experiments} C.")
    assert outline(draft).parts["method"] == (1, 2)
    titles = {"method": "experiments", "introduction": "introduction"}
    assert outline(draft, titles).parts["method"] == (3,)


def test_background_may_stand_inside_another_section(read):
    draft = read(r"\section{Introduction} A \subsection{Background} B \subsection{Model} C")
    parts = outline(draft).parts
    assert parts["introduction"] == (0, 2) and parts["background"] == (1,)


def test_pace_and_share(read):
    assert pace_of(100, 3) == 25
    paper = outline(read(r"\section{Related work} a b c \section{Background} d"))
    assert share_of("related work", "background", paper) == 0.75
    assert longest_list("A [@a]. B [@b]. Unlike C [@c].") == 2


# The rules. The orchard paper satisfies all of them; one change each breaks one.


def test_the_orchard_paper_satisfies_every_rule():
    assert review(read_draft(ORCHARD)).findings == ()


@pytest.fixture
def changed(tmp_path):
    """The orchard paper with pieces of its text changed."""

    def change(*changes):
        folder = tmp_path / "orchard"
        shutil.copytree(ORCHARD.parent, folder)
        for name, pattern, new in changes:
            path = folder / name
            text, count = re.subn(
                pattern, lambda _, new=new: new, path.read_text(), flags=re.DOTALL
            )
            assert count, f"{pattern} is not in {name}"
            path.write_text(text)
        return read_draft(folder / "paper.tex")

    return change


S = "sections/"
BREAKS = {
    "sections": [("paper.tex", r"\\input{sections/conclusion}", "")],
    "introduction": [(S + "introduction.tex", "What can be seen", "\n\nWhat\n\ncan be seen")],
    "trend": [(S + "introduction.tex", r"~?\\cite[pt]?{[^}]*}", "")],
    "question": [
        (S + "introduction.tex", r"We ask whether", "We show how"),
        (S + "introduction.tex", r"has two parts\. Can", "has two parts. We"),
        (S + "introduction.tex", r"The question", "It"),
        (S + "introduction.tex", r"\?", "."),
        (S + "introduction.tex", r"What can", "All that can"),
    ],
    "balance": [(S + "background.tex", r"\\subsection{A law.*", "")],
    "works": [(S + "related.tex", r"\\cite{(buckland|rahnemoonfar,chen)}", "")],
    "examples": [(S + "background.tex", r"For instance, with \$\\mu = 48\$ and \$r = 6\$", "Here")],
    "pipeline": [
        ("figures/pipeline.tex", r"The pipeline, from one photograph \$x\$ to", "One $x$,")
    ],
    "dimensions": [(S + "method.tex", r"the output is", "we write")],
    "symbols": [(S + "method.tex", r"of the standard deviation \$\\sigma\$", "of the deviation")],
    "figure_symbols": [("figures/pipeline.tex", r"\$", "")],
    "referred": [(S + "experiments.tex", r"\\Cref{tab:ablation}", "We")],
    "captions": [
        (S + "experiments.tex", r"\\caption{The worst six.*?tree\.}", r"\caption{Failures.}")
    ],
    "pace": [(S + "introduction.tex", r"We ask whether", "We ask whether " + "and whether " * 260)],
    "data_sets": [
        (S + "experiments.tex", r"two data sets of", "the"),
        (S + "experiments.tex", r"training data", "training rows"),
    ],
    "hyperparameters": [
        (S + "experiments.tex", r"since larger ones.*?rows\.", "."),
        (S + "experiments.tex", r"shows the role of", "shows"),
        (S + "experiments.tex", r"The role of two", "Two"),
        (S + "experiments.tex", r"a strong effect", "much to say"),
    ],
    "ablation": [
        (S + "experiments.tex", r"Ablation on", "Parts on"),
        (S + "experiments.tex", r"(?i)without", "less"),
        (S + "experiments.tex", r"\\subsection{Ablation}", r"\subsection{Parts}"),
    ],
    "failures": [
        (S + "experiments.tex", r"The worst six failures", "Six more examples of trees"),
        (S + "experiments.tex", r"fig:failures", "fig:six"),
    ],
    "hedge": [
        (S + "experiments.tex", r"might be", "is"),
        (S + "experiments.tex", r"could have", "has"),
        (S + "experiments.tex", r"as possibilities", "as results"),
    ],
    "limits": [
        (S + "conclusion.tex", r"The limits are plain", "So much"),
        (S + "conclusion.tex", r"cannot be counted, but", "are many, and"),
        (S + "conclusion.tex", r"We did not try", "We tried"),
    ],
    "untried": [
        (S + "conclusion.tex", r"; nor did we have time.*work\.", "."),
        (S + "conclusion.tex", r"We did not try", "We tried"),
    ],
}


def test_every_rule_has_a_draft_that_breaks_it():
    assert set(BREAKS) == set(RULES) - {"discussion"}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_change_breaks_one_rule(changed, rule):
    assert set(rules_of(changed(*BREAKS[rule]))) == {rule}


def test_a_list_of_works_is_no_discussion(changed):
    listing = r"\section{Related Work} " + " ".join(
        rf"A{i} did it~\cite{{k{i}}}." for i in range(12)
    )
    draft = changed((S + "related.tex", ".+", listing + " More words. " * 200))
    found = [f.found for f in review(draft, rules=["discussion"])]
    assert len(found) == 2 and "12 sentences in a row" in found[1]


PARTS = dict(
    zip(
        ("introduction", "related work", "background", "method", "experiments", "conclusion"),
        ("introduction", "related", "background", "method", "experiments", "conclusion"),
        strict=True,
    )
)


@pytest.mark.parametrize("part", PARTS)
def test_removing_a_section_adds_its_one_finding(changed, part):
    draft = changed(("paper.tex", rf"\\input{{sections/{PARTS[part]}}}", ""))
    (finding,) = review(draft).findings
    assert finding.rule == "sections" and part in finding.found


@pytest.mark.parametrize("part", PARTS)
def test_removing_a_section_of_a_weak_draft_takes_its_findings_along(read, part):
    titles = ["Introduction", "Related work", "Background", "Method", "Experiments", "Conclusion"]
    texts = {t.lower(): rf"\section{{{t}}} We are good. \[ q = 1 \] " for t in titles}
    before = rules_of(read("".join(texts.values())))
    after = rules_of(read("".join(text for name, text in texts.items() if name != part)))
    silent = {name for name, rule in RULES.items() if part in rule.parts}
    expected = {name: n for name, n in before.items() if name not in silent} | {"sections": 1}
    assert after == expected


@settings(max_examples=30)
@given(st.randoms(use_true_random=False), st.sampled_from([*PARTS.values()]))
def test_the_order_of_paragraphs_in_a_section_changes_no_count(tmp_path_factory, chance, part):
    folder = tmp_path_factory.mktemp("order") / "orchard"
    shutil.copytree(ORCHARD.parent, folder)
    path = folder / "sections" / f"{part}.tex"
    head, *blocks = re.split(r"\n(?=\\subsection)", path.read_text())
    mixed = []
    for block in [head, *blocks]:
        first, _, rest = block.partition("\n")
        paragraphs = [p for p in rest.split("\n\n") if p.strip()]
        chance.shuffle(paragraphs)
        mixed.append(first + "\n" + "\n\n".join(paragraphs))
    path.write_text("\n\n".join(mixed) + "\n")
    before, after = read_draft(ORCHARD), read_draft(folder / "paper.tex")
    for name in (*NAMES, "paragraphs", "references"):
        assert len(getattr(after, name)) == len(getattr(before, name))
    assert after.words == before.words and review(after).findings == ()


def test_thresholds_decide():
    draft = read_draft(DRAFTS / "tides" / "thesis.tex")
    assert "introduction" in rules_of(draft)
    assert "introduction" not in rules_of(draft, introduction_paragraphs=(1, 6))


def test_a_rule_of_your_own():
    def rule_short(paper):
        yield from () if paper.draft.words < 10 else review(paper.draft, ["sections"]).findings

    assert len(review(read_draft(DRAFTS / "bees.md"), rules={"short": rule_short})) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": ["questoin"]}, "rules: got 'questoin'; expected question"),
        ({"work": (1, 2)}, "thresholds: got 'work'; expected works"),
        ({"rules": ["question"], "works": (1, 2)}, "thresholds: got 'works'; expected questions"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        review(read_draft(ORCHARD), **options)


def test_settings_are_typed_like_their_defaults():
    typed = ["works=5-30", "related_share=0.2-0.8", "caption_words=8", "pipelines=2"]
    assert parse_settings([*typed, "ignored_symbols=a b"]) == {
        "works": (5, 30),
        "related_share": (0.2, 0.8),
        "caption_words": 8,
        "pipelines": (2, 2),
        "ignored_symbols": "a b",
    }
    assert set(thresholds()) >= {"works", "pipelines", "words_between_marks"}
    with pytest.raises(ValueError, match="works: got 'a'; expected a value such as 10-15"):
        parse_settings(["works=a"])
    with pytest.raises(ValueError, match="section: got 'metod'"):
        section_titles(["metod=A"])


def test_the_report_names_every_finding_once():
    found = review(read_draft(DRAFTS / "dialects" / "main.tex"))
    lines = str(found).splitlines()
    assert len(found) == 5 == sum(line.startswith("    found") for line in lines)
    assert found._repr_markdown_().count("\n| `") == 5
    assert lines[-1].startswith("5 findings (sections 1")


# The skeleton.


def test_the_skeleton_has_a_shape_for_each_kind_of_mark():
    figure = skeleton(read_draft(ORCHARD))
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    marks = [line for line in axes.lines if line.get_label()[0] != "_"]
    assert [line.get_label() for line in marks] == [
        "3 figures",
        "3 tables",
        "8 equations",
        "1 algorithm",
        "23 citations",
    ]
    assert len({line.get_marker() for line in marks}) == 5
    titles = {text.get_text() for text in axes.texts}
    assert {"Abstract", "Related Work", "Conclusion"} <= titles


def test_the_skeleton_of_next_to_nothing(read):
    skeleton(read("word"))
    skeleton(read(r"\section{$x_}$}"))


# Thirty pages, made on the spot.


def long_paper(sections=12, paragraphs=30, words=42, seed=0):
    """About 15,000 words with two files, comments, macros; and what is in it."""
    chance = random.Random(seed)
    counts = Counter()
    parts = []
    for s in range(sections):
        parts.append(rf"\section{{Part {s}}} % \section{{Ghost}}")
        for p in range(paragraphs):
            text = " ".join(
                chance.choice(["graph", "noise", "token", "layer"]) for _ in range(words)
            )
            counts["words"] += words
            extra = chance.choice(["cite", "equation", "figure", "none"])
            counts[extra] += 1
            text += {
                "cite": rf" \citex{{k{p},l{p}}}.",
                "equation": f"\n\\be x_i = y \\label{{eq:{s}-{p}}} \\ee\n",
                "figure": "\n\\begin{figure*}[t]\\caption{A \\emph{b} $c$.}\\end{figure*}\n",
                "none": " % nothing, \\cite{ghost}",
            }[extra]
            parts.append(text + "\n")
    head = "\\newcommand{\\be}{\\begin{equation}}\\newcommand{\\ee}{\\end{equation}}\n"
    head += "\\newcommand{\\citex}[1]{\\citep[see][]{#1}}\n"
    return head + "\n".join(parts), counts


def test_thirty_pages_are_counted_exactly(read):
    text, counts = long_paper()
    draft = read(text)
    assert draft.words == counts["words"] > 15_000
    assert len(draft.sections) == 12 and len(draft.paragraphs) == 360
    assert len(draft.citations) == 2 * counts["cite"]
    assert len(draft.equations) == counts["equation"] and len(draft.figures) == counts["figure"]
    assert draft.faults == ()
