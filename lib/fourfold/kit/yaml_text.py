"""YAML as plain texts that remember their lines, checked by a pydantic model, with one-line errors.

A file that people write by hand is easier to mend when each mistake is told in one sentence: which
file, which line, which field, what came and what was expected.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

__all__ = ["TextError", "YamlText", "expected", "model_from_yaml", "parse_yaml", "read_text"]

Model = TypeVar("Model", bound=BaseModel)
Place = Sequence[int | str]

_NOTHING = {"", "~", "null", "Null", "NULL"}
_LONGEST = 40  # characters of a value or a name that an error quotes


class TextError(ValueError):
    """A file that cannot be used: one line for the first mistake, all of them in `problems`."""

    def __init__(self, name: str, problems: Iterable[str]):
        self.name = " ".join(str(name).split())
        self.problems = tuple(problems)
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(f"{self.name}: {self.problems[0]}{more}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.problems)


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises FileNotFoundError where there is no such file, IsADirectoryError for a folder, and
    TextError for bytes that are not UTF-8.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path is {str(path)!r}, a folder; expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}; there is no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(path.name, [f"byte {error.start} is not UTF-8; save it as UTF-8"]) from None


# ---- from text to lists and dictionaries --------------------------------------------------------


class _Refused(Exception):
    def __init__(self, mark: yaml.Mark, problem: str):
        super().__init__(f"line {mark.line + 1}: {problem}")


class _Loader(yaml.BaseLoader):
    """YAML's own tree, without aliases, by which a small file can grow without limit."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise _Refused(mark, "a text is used again by an alias (*); expected the text itself")
        return super().compose_node(parent, index)


class YamlText:
    """What a YAML text says, in `fields`, and the line of each part of it."""

    def __init__(self, root: yaml.Node | None):
        self._root = root
        nothing = root is None or _prune(root)
        group = isinstance(root, yaml.MappingNode)
        self.fields = None if nothing and not group else _plain(root)

    def line(self, place: Place = ()) -> int:
        """The line, from 1, at which the deepest part of `place` that is there begins."""
        node, line = self._root, 1
        for step in place:
            inside = _inside(node)
            if step not in inside:
                break
            start, node = inside[step]
            line = start.start_mark.line + 1
        return line


def parse_yaml(text: str, name: str = "text") -> YamlText:
    """The texts, lists and dictionaries of a YAML text; `name` stands in the errors.

    Every value is taken as the text it is: a number keeps its last zero, and `no` is a word. What
    is empty (also an item of a list, or a group with nothing in it) is left out. White space in a
    field's name counts as one space.

    Raises TextError for what is not YAML, a field that stands twice or has no name or no colon, and
    an alias.

    >>> parsed = parse_yaml("number: 2406.10510\\nsteps:\\n- one\\n- two\\n")
    >>> parsed.fields
    {'number': '2406.10510', 'steps': ['one', 'two']}
    >>> parsed.line(("steps", 1))
    4
    """
    try:
        return YamlText(yaml.compose(text, Loader=_Loader))
    except _Refused as error:
        problem = str(error)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        why = getattr(error, "problem", None) or str(error)
        problem = f"{line}not YAML ({' '.join(why.split())})"
    except RecursionError:
        problem = "nested too deeply; expected fields of texts and lists"
    raise TextError(name, [problem]) from None


def _prune(node: yaml.Node) -> bool:
    """Take what is empty out of a tree, refuse bad names, and say whether nothing is left."""
    if isinstance(node, yaml.ScalarNode):
        return not node.value.strip() or (node.style is None and node.value in _NOTHING)
    if isinstance(node, yaml.SequenceNode):
        node.value = [item for item in node.value if not _prune(item)]
        return not node.value
    names: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _Refused(key.start_mark, "a field's name is a list or a group; expected a word")
        key.value = " ".join(key.value.split())
        if not key.value:
            raise _Refused(key.start_mark, "a field has no name; expected `name: value`")
        if key.value in names:
            problem = f"{_short(key.value)} stands twice; expected each field once"
            raise _Refused(key.start_mark, problem)
        if ":" not in key.end_mark.buffer[key.end_mark.index : value.start_mark.index]:
            problem = (
                f"{_short(key.value)} has no colon; expected `name: value`, or quotes around a "
                "text with a comma, which ends a value inside {…}"
            )
            raise _Refused(key.start_mark, problem)
        names.add(key.value)
    node.value = [(key, value) for key, value in node.value if not _prune(value)]
    return not node.value


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return {key.value: _plain(value) for key, value in node.value}


def _inside(node: yaml.Node | None) -> dict[int | str, tuple[yaml.Node, yaml.Node]]:
    """By name or number: where a part of a node begins, and the part."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: (key, value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return {number: (item, item) for number, item in enumerate(node.value)}
    return {}


# ---- from dictionaries to a model ---------------------------------------------------------------


def model_from_yaml(model: type[Model], text: str, name: str = "text") -> Model:
    """The object of a pydantic model that a YAML text describes; `name` stands in the errors.

    Raises TextError, whose one line names the file, the line, the field and what was expected: a
    field's description where the model gives one, else what its type says. An unknown field comes
    first among the problems, since it is usually the cause of a missing one.
    """
    parsed = parse_yaml(text, name)
    if not isinstance(parsed.fields, dict):
        came = "empty" if parsed.fields is None else _came(parsed.fields)
        raise TextError(name, [f"{came}; expected fields such as `{_required(model)[0]}: …`"])
    try:
        return model.model_validate(parsed.fields)
    except ValidationError as error:
        raise TextError(name, [_problem(model, parsed, one) for one in _causes(error)]) from None


def expected(model: type[BaseModel], place: Place) -> str:
    """What a model expects at a place such as `("steps", 0, "name")`, in a few words."""
    kind, description = _at(model, place)
    return description or _in_words(kind)


def _problem(model: type[BaseModel], parsed: YamlText, error: Any) -> str:
    """One of pydantic's errors as a sentence with the line and the field."""
    place = error["loc"]
    steps = [f"[{step}]" if isinstance(step, int) else f".{_short(step)}" for step in place]
    start = f"line {parsed.line(place)}: {''.join(steps).lstrip('.')}"
    if error["type"] == "extra_forbidden":
        known = list(_at(model, place[:-1])[0].model_fields)
        nearest = get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        meant = f"the nearest is {nearest[0]}" if nearest else f"known: {', '.join(known)}"
        return f"{start} is no known field; {meant}"
    if error["type"] == "value_error":  # a validator of the model has found the words
        return f"{start} {error['ctx']['error']}"
    came = "missing" if error["type"] == "missing" else _came(error["input"])
    return f"{start} is {came}; expected {expected(model, place)}"


def _causes(error: ValidationError) -> list[Any]:
    """Pydantic's errors without those that only follow from one deeper in the same field."""
    errors = error.errors()
    places = [one["loc"] for one in errors]
    causes = [
        one
        for one in errors
        if not any(one["loc"] == place[: len(one["loc"])] != place for place in places)
    ]
    return sorted(causes, key=lambda one: one["type"] != "extra_forbidden")


def _at(model: type[BaseModel], place: Place) -> tuple[Any, str | None]:
    """The type at a place in a model, bare, and the description that its field gives."""
    kind, description = model, None
    for step in place:
        description = None
        if _is_model(kind):
            field = kind.model_fields.get(step)
            kind, description = (field.annotation, field.description) if field else (str, None)
        else:  # the items of a list, the values of a dictionary
            inner = [one for one in get_args(kind) if one is not Ellipsis]
            kind = inner[-1] if inner else str
        kind = _bare(kind)
    return kind, description


def _bare(kind: Any) -> Any:
    """A type without what is annotated to it, and without `| None`."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return _bare(next(one for one in get_args(kind) if one is not NoneType))
    return kind


def _in_words(kind: Any) -> str:
    if _is_model(kind):
        return f"a group with {_and(_required(kind))}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (tuple, list):
        item = _bare(get_args(kind)[0])
        if _is_model(item):
            return f"a list of groups, each with {_and(_required(item))}"
        if get_origin(item) is Literal:
            return f"one or more of {', '.join(map(str, get_args(item)))}"
        return "a text or a list of texts"
    return "pairs of name and text" if get_origin(kind) is dict else "a text"


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _required(model: type[BaseModel]) -> list[str]:
    fields = model.model_fields
    return [name for name, field in fields.items() if field.is_required()] or list(fields)


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _short(name: str) -> str:
    """A field's name as an error quotes it: one short line."""
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    return name if name.isprintable() else repr(name)


def _came(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…")
    return "a group of fields" if isinstance(value, dict) else "a list"
