"""Settings from the command line: `--section.field value` overrides a field of a configuration."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qkd_jax.commands.types import dataclasses_in, plain, tag_of
from qkd_jax.errors import InputError, explain, flag

if TYPE_CHECKING:
    from qkd_jax.config import ModelConfig, RunConfig

T = TypeVar("T")
Given = dict[str, list[str]]
"""Flags, without the dashes in front, each with the values that follow it."""
_FIELDS = re.compile(r"[a-z]\w*(\.[\w-]+)*(, [a-z]\w*(\.[\w-]+)*)*: ")


def override(default: T, arguments: Sequence[str], *, prog: str = "", description: str | None = None) -> T:
    """`default`, a dataclass of dataclasses, with the fields that `arguments` set.

    The tag of a union chooses its class: with `--data.source esc50`, `data` becomes an ESC50Data that keeps
    the fields that were set and that both classes have.  Prints the settings and exits for `--help` and
    `--help-all`.  Raises InputError for a wrong argument.

    >>> from qkd_jax.config import FeatureConfig
    >>> override(FeatureConfig(), ["--n-mels", "32"]).n_mels
    32
    """
    given = _given(arguments)
    detail = {name for name in ("h", "help", "help-all") if given.pop(name, None) is not None}
    config = _overridden(default, type(default), "", given)
    if given:
        raise InputError(_unknown(given, config))
    if detail:
        from qkd_jax.commands.help import long_help, short_help

        print((long_help if "help-all" in detail else short_help)(config, prog, description))
        raise SystemExit(0)
    return config


def take(name: str, arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The values that follow `name` in `arguments`, up to the next flag, and the other arguments.

    Raises InputError if `name` is there without a value.

    >>> take("--teacher", ["--teacher", "yamnet.toml", "logits.npz", "--recipe.seed", "3"])
    (('yamnet.toml', 'logits.npz'), ['--recipe.seed', '3'])
    """
    arguments = [part for each in arguments for part in _split(each, name)]
    if name not in arguments:
        return (), arguments
    start = arguments.index(name)
    end = next((i for i in range(start + 1, len(arguments)) if arguments[i].startswith("--")), len(arguments))
    if end == start + 1:
        raise InputError(f"{name}: expected at least one value, got none")
    return tuple(arguments[start + 1 : end]), [*arguments[:start], *arguments[end:]]


def _split(argument: str, name: str) -> list[str]:
    """`--teacher=yamnet.toml` as two arguments, if `name` is --teacher."""
    return [name, argument.removeprefix(f"{name}=")] if argument.startswith(f"{name}=") else [argument]


def with_teachers(config: "RunConfig", teachers: Sequence[str]) -> "RunConfig":
    """`config` with `teachers` in place of those of each model that has some.

    Taggers, .toml files, teach by a model `head` that is fitted on all of them; `zero-shot` shows what their
    own classes give.  Former teachers that no model refers to any more are dropped.  Raises InputError if
    there is no model with teachers, and for teachers that RunConfig refuses.
    """
    taggers = [teacher for teacher in teachers if teacher.endswith(".toml")]
    heads = heads_on(taggers) if taggers else {}
    if taggers and not _has_classes(taggers):
        del heads["zero-shot"]
    teachers = [*(["head"] if taggers else []), *(each for each in teachers if each not in taggers)]
    learners = {name for name, model in config.models.items() if model.teachers and name not in teachers}
    if not learners:
        known = ", ".join(config.models) or "none"
        raise InputError(
            f"--teacher: expected a preset with a student, found no model with teachers among {known}"
        )
    before = {teacher for name in learners for teacher in config.models[name].teachers}
    models = heads | {
        name: dataclasses.replace(model, teachers=tuple(teachers)) if name in learners else model
        for name, model in config.models.items()
    }
    while unused := (before & models.keys()) - _named(models.values()):
        models = {name: model for name, model in models.items() if name not in unused}
    return _replaced(config, {"models": models}, "")


def heads_on(taggers: Sequence[str]) -> dict[str, "ModelConfig"]:
    """The models `zero-shot`, what the classes of `taggers` give, and `head`, which is fitted on them."""
    from qkd_jax.config import HeadConfig, ModelConfig

    return {
        name: ModelConfig(network=HeadConfig(taggers=tuple(taggers), fit=name == "head"))
        for name in ("zero-shot", "head")
    }


def _has_classes(taggers: Sequence[str]) -> bool:
    from qkd_jax.distill.tagger import read_tagger

    return any(read_tagger(Path(tagger)).events for tagger in taggers)


def _named(models: Iterable["ModelConfig"]) -> set[str]:
    """The teachers, starts and embeddings that `models` refer to."""
    named: set[str | None] = set()
    for model in models:
        named |= {*model.teachers, model.start, model.objective.embeddings if model.objective else None}
    return {name for name in named if name}


def _dashed(field: str) -> str:
    return field.replace("_", "-")


def _given(arguments: Sequence[str]) -> Given:
    given: Given = {}
    values: list[str] | None = None
    for argument in arguments:
        if argument.startswith("--") or argument == "-h":
            name, equals, value = argument.lstrip("-").partition("=")
            values = given[_dashed(name)] = [value] if equals else []
        elif values is None:
            raise InputError(f"expected a flag, --SETTING VALUE, got {argument!r}")
        else:
            values.append(argument)
    return given


def _overridden(value: Any, hint: Any, place: str, given: Given) -> Any:
    """`value` with the settings `given` below the flag `place`, which are removed from `given`.

    `hint` is the type of the field that holds `value`.
    """
    if not any(name == place or name.startswith(f"{place}.".lstrip(".")) for name in given):
        return value
    if isinstance(value, dict):
        item = typing.get_args(hint)[1]
        return {key: _overridden(part, item, _dashed(f"{place}.{key}"), given) for key, part in value.items()}
    classes = dataclasses_in(hint)
    if not classes:
        return converted(given.pop(place), hint, place)
    if value is None:
        value = classes[0]()
    if len(classes) > 1:
        value = _switched(value, classes, place, given)
    hints, changes = typing.get_type_hints(type(value), include_extras=True), {}
    for field in dataclasses.fields(value):
        before, below = getattr(value, field.name), _dashed(f"{place}.{field.name}".lstrip("."))
        negated = re.sub(r"([\w-]+)$", r"no-\1", below)
        if isinstance(before, bool) and given.pop(negated, None) is not None:
            given[below] = ["false"]
        after = _overridden(before, hints[field.name], below, given)
        if after != before:
            changes[field.name] = after
    return _replaced(value, changes, place)


def _switched(value: Any, classes: Sequence[Any], place: str, given: Given) -> Any:
    """`value` as an instance of the class whose tag is `given`, with the fields that both classes have."""
    tag = tag_of(classes[0])
    if f"{place}.{tag}" not in given:
        return value
    by_tag = {getattr(each, tag): each for each in classes}
    [wanted] = given.pop(f"{place}.{tag}")[:1] or [""]
    target: Any = by_tag.get(wanted)
    if target is None:
        raise InputError(f"--{place}.{tag}: expected {_either(list(by_tag))}, got {wanted!r}")
    if target is type(value):
        return value
    common = {field.name for field in dataclasses.fields(target)} - {tag}
    # A field that still has its class's default takes the other class's.
    kept = {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.name in common and getattr(value, field.name) != field.default
    }
    return target(**kept)


def converted(values: list[str], hint: Any, place: str) -> Any:
    """The value of the type `hint` that the words `values` write; raises InputError that names `place`."""
    import pydantic

    kind, inner = plain(hint), typing.get_args(plain(hint))
    if values in (["none"], ["None"]) and _optional(hint):
        return None
    found: Any = values
    if typing.get_origin(kind) is not tuple:
        if kind is bool and not values:
            return True
        if len(values) != 1:
            raise InputError(f"--{place}: expected one value, got {' '.join(values) or 'none'}")
        found = values[0]
    elif typing.get_origin(inner[0]) is tuple:  # of pairs: 2 2 1 2 is (2, 2), (1, 2)
        size = len(typing.get_args(inner[0]))
        found = [values[i : i + size] for i in range(0, len(values), size)]
    elif inner[-1] is not ... and len(values) != len(inner):
        raise InputError(f"--{place}: expected {len(inner)} values, got {' '.join(values) or 'none'}")
    try:
        return pydantic.TypeAdapter(hint).validate_python(found)
    except pydantic.ValidationError as error:
        message = explain(error)
        raise InputError(f"--{place}: {re.sub(r'^[0-9.]+: ', '', message)}") from None


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _replaced(value: Any, changes: dict[str, Any], place: str) -> Any:
    """`value` with `changes`; raises InputError that names the flag of the field that is refused."""
    import pydantic

    if not changes:
        return value
    try:
        return dataclasses.replace(value, **changes)
    except pydantic.ValidationError as error:
        message = explain(error)
        found = _FIELDS.match(message)
        if not found:
            raise InputError(f"--{place}: {message}" if place else message) from None
        fields = (f"{place}.{field}".lstrip(".") for field in found[0][:-2].split(", "))
        raise InputError(f"{', '.join(map(flag, fields))}: {message[found.end() :]}") from None


def _unknown(given: Given, config: Any) -> str:
    from qkd_jax.commands.help import flags

    known = [name[2:] for name in flags(config)]
    messages = []
    for name in given:
        # A field is more often right than its section.
        same = [each for each in known if each.split(".")[-1] == name.split(".")[-1]]
        near = (same or difflib.get_close_matches(name, known, n=3))[:5]
        advice = f"; did you mean {_either([f'--{each}' for each in near])}?" if near else ""
        messages.append(f"--{name}: unknown setting{advice}")
    return "; ".join(messages) + " (--help lists all)"


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
