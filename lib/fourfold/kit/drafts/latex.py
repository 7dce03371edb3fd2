"""Drafts in LaTeX: files, macros, environments, formulas, citations, read from left to right.

pylatexenc builds a tree by functions that call themselves; ten thousand open braces, or a megabyte
in one line, are too much for it. So its tables (what a macro takes, which sign an accent stands
for) serve here, and the text is read token by token, with what is open kept on lists.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.latexwalker import get_default_latex_context_db

from fourfold.kit.drafts.draft import Draft, DraftError, Place, count_words
from fourfold.kit.drafts.page import KINDS, Page, read_source

__all__ = ["DISPLAYS", "read_latex"]

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


_TOKENS = 600_000  # a thesis of 2 MB has fewer than 200,000


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


@dataclass(eq=False)
class _Open:
    """A group, formula or environment not closed yet; `sink` catches its text for `close`."""

    name: str  # {, $, $$, \[ or \(, or the environment's name
    place: Place
    sink: list[str] | None = None
    close: Callable[[str], None] | None = None
    labels: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


class _Tex:
    """The state of reading LaTeX: sources inside sources, and what is open, as two stacks.

    Both are lists, so that ten thousand nested braces need no deeper calls than one.
    """

    def __init__(self, root: Path):
        self.root, self.page, self.place = root, Page(), Place("", 1)
        self.sources, self.macros, self.environments = [], {}, {}
        # At most so many characters from macros and from files, files asked for, and tokens.
        self.budget, self.characters, self.files, self.tokens = 2_000_000, 6_000_000, 500, _TOKENS
        self.in_body = True
        self.reset()

    def reset(self) -> None:
        self.open, self.names = [], Counter()
        self.catching, self.prose = [], []  # open elements with a sink; the paragraph's pieces
        self.formula = self.float = self.began = None
        self.loose = None  # the labels of the last caption outside a float, and its mark's index

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

    def fault(self, found: str, wanted: str, place: Place | None = None, kind: str = "") -> None:
        self.page.fault(found, wanted, place or self.place, kind)


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


def _option(tex: _Tex) -> str | None:
    """The next argument in square brackets, or None; what is longer than 500 signs is prose."""
    source = _current(tex)
    if source is None or not (match := _OPTION.match(source.text, source.position)):
        return None
    position = start = match.end()
    while sign := _OPTION_END.search(source.text, position, start + 500):
        if sign[0] == "]":
            source.position = sign.end()
            return _COMMENT.sub("", source.text[start : sign.start()])
        position = source.closing.get(sign.start(), sign.start()) + 1
    return None


_ROUND = re.compile(r"[ \t]*\([^()\n]{0,40}\)")


_LENGTH = re.compile(
    r"[ \t]*(?:=[ \t]*)?[-+]?[ \t]*[\d.,]*[ \t]*(?:(?:pt|pc|in|bp|cm|mm|dd|cc|sp|em|ex|mu|fill?l?)"
    r"(?![A-Za-z])|\\[A-Za-z@]+)(?:[ \t]*(?:plus|minus)[ \t]*[\d.]+[ \t]*[a-z]{2,5})*"
)


def _pass(tex: _Tex, pattern: re.Pattern) -> None:
    """Pass over what matches here, if anything does."""
    source = _current(tex)
    if source and (match := pattern.match(source.text, source.position)):
        source.position = match.end()


def _skip(tex: _Tex, specification: str) -> None:
    """Pass over arguments: `[` optional, `{` mandatory, as in pylatexenc; `(` as in `(lr)`."""
    for kind in specification:
        if kind == "[":
            _option(tex)
        elif kind == "(":
            _pass(tex, _ROUND)
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


_TOO_MANY = "one file too many, the draft includes without end"


def _open_file(tex: _Tex, path: Path) -> None:
    """Push a file's text; raises DraftError where there is none to read."""
    name = Path(os.path.relpath(path, tex.root)).as_posix()
    if any(source.is_file and source.file == name for source in tex.sources):
        raise DraftError("a circle, the file includes itself")
    text, fault = read_source(path, name)
    tex.characters -= len(text)
    if tex.characters < 0 or len(tex.sources) > 200:
        raise DraftError(_TOO_MANY)
    hidden, unclosed = _hide(text)
    tex.page.faults += [fault] if fault else []
    tex.sources.append(_Source(hidden, name, 1, is_file=True))
    for environment, position in unclosed:
        place = Place(name, text.count("\n", 0, position) + 1)
        tex.fault(f"{environment} is never closed and hides the rest of the file", "its end", place)


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
    tex.files -= 1  # found or not: to look for a file takes time, too
    try:
        if tex.files < 0:
            raise DraftError(_TOO_MANY)
        _open_file(tex, _path(tex, folder + target))
    except DraftError as error:
        what, wanted = str(error).rpartition(": ")[2], "a readable file in the draft's folder"
        tex.fault(rf"\{name}{{{target}}}: {what}", wanted, kind=rf"\{name} {what}")


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


_LEVELS = {"part": 0, "chapter": 0, "section": 1, "subsection": 2, "subsubsection": 3}


_FLOATS = {
    **dict.fromkeys(("figure", "wrapfigure", "SCfigure", "sidewaysfigure"), "figure"),
    **dict.fromkeys(("table", "wraptable", "longtable", "sidewaystable"), "table"),
    **dict.fromkeys(("algorithm", "algorithm2e"), "algorithm"),
}


DISPLAYS = _set(
    "equation align gather multline eqnarray displaymath alignat flalign dmath IEEEeqnarray"
)


# What they hold is no prose; inside a float it is what the float shows.
_SILENT = _set(
    "tabular tabularx tabulary array tikzpicture pgfpicture picture thebibliography verbatim"
    " Verbatim lstlisting minted comment filecontents algorithmic keywords IEEEkeywords CCSXML"
    " titlepage"
)


_THANKS = _set("ack acks acknowledgment acknowledgments acknowledgement acknowledgements")


# They go on with the paragraph that they stand in.
_RUNS_ON = _set("itemize enumerate description center small minipage multicols")


_ENVIRONMENT_ARGUMENTS = {
    **{"wrapfigure": "[{[{", "wraptable": "[{[{", "longtable": "[{", "tabular": "[{"},
    **{"tabularx": "{[{", "tabulary": "{[{", "array": "[{", "alignat": "{", "minipage": "[[[{"},
    **{"subfigure": "[{", "subtable": "[{", "multicols": "{", "thebibliography": "{"},
    **dict.fromkeys(DISPLAYS - {"alignat"}, ""),
}


def _close_float(tex: _Tex, kind: str, element: _Open, before: int, text: str) -> None:
    # That a caption names its own figure refers nobody to it.
    inside = tex.page.references[before:]
    tex.page.references[before:] = [r for r in inside if r.label not in element.labels]
    tex.page.mark(kind, " ".join(element.captions), text, element.labels, element.place)


def _close_display(tex: _Tex, element: _Open, text: str) -> None:
    tex.page.mark("equation", "", text, element.labels, element.place)
    tex.write(" ")


def _begin_display(tex: _Tex, name: str) -> None:
    tex.formula = tex.begin(name, lambda text: None)
    tex.formula.close = partial(_close_display, tex, tex.formula)


def _begin_environment(tex: _Tex, name: str, token: str) -> None:
    base = name.rstrip("*")
    if tex.formula and (base in DISPLAYS or base in _FLOATS):
        tex.abandon(tex.formula)
    if tex.formula:
        tex.write(token)
        tex.begin(name)
        return
    _skip(tex, _ENVIRONMENT_ARGUMENTS.get(base, "["))
    if base in DISPLAYS:
        _begin_display(tex, name)
    elif base in _FLOATS and not tex.float:
        tex.float = tex.begin(name, lambda text: None)
        before = len(tex.page.references)
        tex.float.close = partial(_close_float, tex, _FLOATS[base], tex.float, before)
    elif base in _SILENT and not tex.float:
        tex.begin(name, lambda text: None)
    else:
        if base not in _RUNS_ON:
            tex.end_paragraph()
        if base == "abstract":
            tex.page.heading(1, "Abstract", tex.place)
        elif base in _THANKS:
            tex.page.heading(1, "Acknowledgements", tex.place)
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


_CITE = re.compile(
    "(?:short|paren|text|auto|foot|smart|super|full|footfull|online|Paren|Text|Auto)?[cC]ites?"
    "(?:p|t|alp|alt|author|year|yearpar|num|text|A|N)?"
)


_REFER = _set("ref eqref cref Cref labelcref autoref nameref pageref vref Vref subref")


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
    **{"rule": "[{{", "rowcolor": "[{[[", "cellcolor": "[{", "columncolor": "[{[["},
    **{
        "rowcolors": "[{{{",
        "arrayrulecolor": "[{",
        "lstset": "{",
        "cmidrule": "[({",
        "fontsize": "{{",
        "tikzset": "{",
        "graphicspath": "{",
    },
}


@lru_cache(maxsize=4096)
def _arguments(name: str) -> str:
    """What arguments a macro takes, from pylatexenc's tables; an option where it knows none."""
    known = get_default_latex_context_db().get_macro_spec(name)
    return known.args_parser.argspec or "" if known and known.args_parser else "["


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
    elif name in ("vskip", "hskip", "kern", "mskip", "mkern", "tabcolsep", "parskip", "parindent"):
        _pass(tex, _LENGTH)
        tex.write(" ")
    elif name == "twocolumn":  # \twocolumn[{the head of the page}]: what it holds is shown
        _pass(tex, _OPTION)
    elif name in ("footnote", "footnotetext"):
        _option(tex)
        tex.write(" ")
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
    place, level, tex.loose = tex.place, _LEVELS[name], None
    if not _capture(tex, lambda text: tex.page.heading(level, text, place)):
        tex.fault(rf"\{name} without a title in closed braces", rf"\{name}{{Title}}")


def _label(tex: _Tex) -> None:
    label, holder = _argument(tex), tex.formula or tex.float
    if label is None:
        tex.fault(r"\label without a name", r"\label{name}")
    elif holder:
        holder.labels.append(label.strip())
    elif tex.loose:
        labels, index = tex.loose
        labels.append(label.strip())
        if index is not None:
            tex.page.marks[index] = replace(tex.page.marks[index], labels=tuple(labels))


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


def _close_caption(tex: _Tex, kind: str, labels: list[str], place: Place, text: str) -> None:
    tex.page.mark(kind, text, "", labels, place)
    tex.loose = (labels, len(tex.page.marks) - 1)  # a \label after the caption belongs to it


def _caption(tex: _Tex, name: str) -> None:
    kind = _argument(tex) if name == "captionof" else None
    short, holder, place = _option(tex), tex.float, tex.place
    if name == "subfloat":
        if holder and short:  # it may hold commands: read on in it
            text = "{" + short + "}"
            tex.sources.append(_Source(text, place.file, place.line, is_file=False))
            _capture(tex, holder.captions.append)
        return
    if holder:
        close = holder.captions.append
    elif kind in KINDS:
        tex.loose = ([], None)
        close = partial(_close_caption, tex, kind, tex.loose[0], place)
    else:
        close = str.strip  # the caption of a listing, or of nothing: no mark
    if not _capture(tex, close):
        tex.fault(r"\caption without words in closed braces", r"\caption{words}")


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
    elif name in ("crefrange", "Crefrange"):
        first, last = _argument(tex), _argument(tex)
        _refer(tex, f"{first},{last}" if first and last else None)
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


_HANDLERS = {
    **{"edge": _on_edge, "word": _on_word, "sign": _on_sign, "open": _on_open, "close": _on_close},
    **{"dollar": _on_dollar, "gap": _on_gap, "text": _on_text},
}


def read_latex(path: Path) -> Draft:
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
        tex.tokens -= 1
        if tex.tokens < 0:
            tex.fault("the draft does not end; what follows is not read", "a shorter draft")
            break
        if kind in ("word", "edge") or (tex.in_body and kind != "hidden"):
            _HANDLERS[kind](tex, match[0])
    while tex.open:
        tex.never_closed(tex.open[-1])
        tex.end()
    tex.end_paragraph()
    return tex.page.draft(path.name)
