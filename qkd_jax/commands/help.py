"""Help for the settings in a dataclass: short, with the settings of several models once, or in full."""

import ast
import dataclasses
import inspect
import itertools
import re
import shlex
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from qkd_jax.commands.types import dataclasses_in, plain, tag_of
from qkd_jax.errors import flag

WIDTH = 100
_COLUMN = 42
_BRIEF = {"features", "augment", "quant"}
"""Sections that are rarely changed: the short help lists their settings without explaining them."""
_PLACEHOLDERS = {int: "INT", float: "NUMBER", str: "TEXT"}


class Section(NamedTuple):
    """The dataclass at `place`, models.NAME.network for example, with its values in the models `names`."""

    place: tuple[str, ...]
    hint: Any
    names: tuple[str, ...]
    values: tuple[Any, ...]


def short_help(config: Any, prog: str, description: str | None = None) -> str:
    """One line per setting in `config`, of at most 100 columns; settings of models once, for all models."""
    lines = _usage(prog, description)
    lines.append(
        "Current values are shown; in a|b the first is current.  --help-all describes every setting."
    )
    merged = _merged(_sections(config))
    line = _line if any(section.names for section in merged) else _lines
    for section in merged:
        settings = list(_settings(section))
        if settings:
            lines.append(textwrap.shorten(_heading(section), WIDTH, placeholder=" …"))
        if section.place and section.place[-1] in _BRIEF:
            lines += _filled([setting for setting, _ in settings])
        else:
            lines += [line(setting, text) for setting, text in settings]
    return "\n".join(lines)


def long_help(config: Any, prog: str, description: str | None = None) -> str:
    """Every setting in `config` with its full description, per model."""
    lines = _usage(prog, description)
    for section in map(_of_one_model, _sections(config)):
        lines += textwrap.wrap(_heading(section), WIDTH)
        for setting, text in _settings(section):
            lines += [
                f"  {setting}",
                *textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
            ]
        lines.append("")
    return "\n".join(lines[:-1])


def flags(config: Any) -> list[str]:
    """Every flag that sets a field of `config`."""
    found = (setting for section in _sections(config) for setting, _ in _settings(_of_one_model(section)))
    return [setting.partition(" ")[0] for setting in found]


def _usage(prog: str, description: str | None) -> list[str]:
    about = [*textwrap.dedent(description).strip().splitlines(), ""] if description else []
    return [f"usage: {prog} [--SETTING VALUE …]", "", *about]


def _sections(config: Any) -> list[Section]:
    """The dataclasses in `config`, itself first; items of a dict stand at NAME."""
    from qkd_jax.config import RunConfig

    if isinstance(config, RunConfig) and config.timed:
        # Objectives that are not given are the default ones, and can be set.
        models = {
            name: dataclasses.replace(model, objective=config.model(name).objective)
            for name, model in config.models.items()
        }
        config = dataclasses.replace(config, models=models)
    return list(_within(config, type(config), (), ()))


def _within(value: Any, hint: Any, place: tuple[str, ...], names: tuple[str, ...]) -> Iterator[Section]:
    yield Section(place, hint, names, (value,))
    hints = typing.get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        inner, below = getattr(value, field.name), (*place, field.name)
        if dataclasses.is_dataclass(inner):
            yield from _within(inner, hints[field.name], below, names)
        elif _holds_dataclasses(inner):
            for name, item in inner.items():
                yield from _within(item, type(item), (*below, "NAME"), (name,))


def _merged(sections: list[Section]) -> list[Section]:
    """One section for all that have the same place and class, those of models last."""
    together: dict[Any, Section] = {}
    for section in sections:
        key = section.place, type(section.values[0])
        before = together.get(key, section._replace(names=(), values=()))
        names, values = before.names + section.names, before.values + section.values
        together[key] = section._replace(names=names, values=values)
    return sorted(together.values(), key=lambda section: bool(section.names))


def _of_one_model(section: Section) -> Section:
    place = tuple(section.names[0] if part == "NAME" else part for part in section.place)
    return section._replace(place=place, names=())


def _settings(section: Section) -> Iterator[tuple[str, str]]:
    """Each setting of a section as it is typed, and its explanation."""
    kind = type(section.values[0])
    hints, texts = typing.get_type_hints(kind, include_extras=True), field_docs(kind)
    classes = dataclasses_in(section.hint)
    for field in dataclasses.fields(kind):
        values = [getattr(value, field.name) for value in section.values]
        first, hint = values[0], plain(hints[field.name])
        if dataclasses_in(hint) or _holds_dataclasses(first):
            continue  # sections of their own
        name, text = flag(".".join((*section.place, field.name))), texts.get(field.name, "")
        if len(classes) > 1 and field.name == tag_of(kind):
            yield f"{name} {_choices(first, [getattr(each, field.name) for each in classes])}", text
        elif isinstance(first, dict):
            keys = [flag(f"{name[2:]}.{key}") for key in _keys(first)]
            yield from zip(keys, [text] + [""] * len(keys))  # explained once
        elif isinstance(first, bool):
            yield re.sub(r"([\w-]+)$", r"no-\1", name) if first else name, text
        else:
            yield f"{name} {_value(values, hint)}", text


def _value(values: list[Any], hint: Any) -> str:
    """The current value if all agree, else the possible values."""
    value = values[0] if all(other == values[0] for other in values) else None
    if typing.get_origin(hint) is typing.Literal:
        return _choices(value, typing.get_args(hint))
    return _placeholder(hint) if value in (None, ()) else _shown(value)


def _choices(value: Any, choices: Any) -> str:
    return "|".join(map(str, sorted(choices, key=lambda choice: choice != value)))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))


def _placeholder(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return f"{_placeholder(plain(typing.get_args(hint)[0]))} …"
    return _PLACEHOLDERS.get(hint, "VALUE")


def _keys(value: dict[str, Any]) -> Iterator[str]:
    """The keys of a dict of dicts, and the value: `eer.bell 0.7`."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from (f"{key}.{rest}" for rest in _keys(inner))
        else:
            yield f"{key} {_shown(inner)}"


def _holds_dataclasses(value: Any) -> bool:
    return isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values()))


def _heading(section: Section) -> str:
    summary = (ast.get_docstring(_definition(type(section.values[0]))) or "").partition("\n")[0]
    if section.names:
        summary = f"NAME is {'one of ' * (len(section.names) > 1)}{', '.join(section.names)}"
    return f"{'.'.join(section.place)}: {summary}" if section.place else summary


def _line(setting: str, text: str) -> str:
    start = f"{f'  {setting}':{_COLUMN - 2}}  "
    summary = re.split(r"[;:] |\.(?: (?=[A-Z])|$)", " ".join(text.split()))[0]
    room = WIDTH - len(start)
    return (start + (textwrap.shorten(summary, room, placeholder=" …") if room > 10 else "")).rstrip()


def _lines(setting: str, text: str) -> str:
    start, indent = f"{f'  {setting}':{_COLUMN - 2}}  ", " " * _COLUMN
    wrapped = textwrap.wrap(" ".join(text.split()), WIDTH - _COLUMN)
    return f"\n{indent}".join([start + (wrapped or [""])[0], *wrapped[1:]]).rstrip()


def _filled(settings: list[str]) -> list[str]:
    """Settings one after another; none is broken over two lines."""
    joined = " ".join(setting.replace(" ", "\0") for setting in settings)
    lines = textwrap.wrap(joined, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of its bases.

    >>> from qkd_jax.config import FeatureConfig
    >>> field_docs(FeatureConfig)["n_mels"]
    'Mel bands.'
    """
    docs: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        for field, following in itertools.pairwise(_definition(base).body):
            match field, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = re.sub(r"\n\s*", " ", text)
    return docs


def _definition(kind: type) -> ast.ClassDef:
    """The source of a class, since `python -OO` keeps no docstrings."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return definition
