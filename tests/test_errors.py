"""Error messages: printable, short, and in our own words: the field, what was expected, what was found."""

from typing import Annotated, Literal

import pydantic
import pytest
from pydantic import Discriminator, Field
from pydantic.dataclasses import dataclass

from qkd_jax.config import ManifestData, RunConfig
from qkd_jax.config.fields import STRICT, Count, Length, Name, Probability
from qkd_jax.errors import InputError, explain, naming


@dataclass(frozen=True, config=STRICT)
class Cat:
    kind: Literal["cat"]
    lives: int


@dataclass(frozen=True, config=STRICT)
class Dog:
    kind: Literal["dog"]


PET = Annotated[Cat | Dog, Discriminator("kind")]


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (int, "x", "expected an integer, got 'x'"),
        (int, 2.5, "expected an integer, got 2.5"),
        (float, "fast", "expected a number, got 'fast'"),
        (bool, "maybe", "expected true or false, got 'maybe'"),
        (str, 1, "expected text, got 1"),
        (Count, 0, "expected at least 1, got 0"),
        (Length, 0, "expected more than 0, got 0"),
        (Length, 1e9, "expected at most 86400, got 1000000000.0"),
        (Probability, 1.0, "expected less than 1, got 1.0"),
        (Annotated[float, Field(allow_inf_nan=False)], float("inf"), "expected a finite number, got inf"),
        (Literal["a", "b"], "c", "expected 'a' or 'b', got 'c'"),
        (Name, "../up", "expected letters, digits, _ . -, starting with a letter or digit, got '../up'"),
        (Annotated[str, Field(min_length=1)], "", "expected at least 1 character, got ''"),
        (Annotated[tuple[str, ...], Field(min_length=1)], [], "expected at least 1 value, got []"),
        (Annotated[list[int], Field(max_length=2)], [1, 2, 3], "expected at most 2 values, got [1, 2, 3]"),
        (tuple[int, ...], 3, "expected a list, got 3"),
        (list[int], "3", "expected a list, got '3'"),
        (dict[str, int], 3, "expected a JSON object, got 3"),
        (tuple[int, ...], [1, "x"], "1: expected an integer, got 'x'"),
        (Cat, '{"kind": "cat"}', "lives: expected a value, found none"),
        (Cat, '{"kind": "cat", "lives": 9, "x": 1}', "x: unknown field"),
        (Cat, '{"kind": "cat", "lives": 9.5}', "lives: expected an integer, got 9.5"),
        (Cat, "3", "expected a JSON object, got 3"),
        (PET, '{"kind": "cow"}', "kind: expected one of 'cat', 'dog', got 'cow'"),
        (PET, "{}", "kind: expected a value, found none"),
    ],
)
def test_each_kind_of_error_says_what_was_expected_and_found(hint, value, message):
    adapter = pydantic.TypeAdapter(hint)
    with pytest.raises(pydantic.ValidationError) as caught:
        adapter.validate_json(value) if hint in (Cat, PET) else adapter.validate_python(value)
    assert explain(caught.value) == message
    assert caught.value.errors()[0]["msg"] not in message


def text_of(make, *arguments):
    with pytest.raises(pydantic.ValidationError) as caught:
        make(*arguments)
    return explain(caught.value)


def test_several_errors_are_one_line_and_ours_and_pydantic_s_stay_as_they_are():
    expected = "root: expected text, got 1; clip_seconds: expected more than 0, got -1.0"
    assert text_of(lambda: ManifestData(root=1, clip_seconds=-1.0)) == expected
    short = text_of(lambda: RunConfig(data=ManifestData(clip_seconds=0.01)))
    assert short == "data.clip_seconds: expected at least one window (0.025 s), got 0.01"
    json = text_of(pydantic.TypeAdapter(dict).validate_json, "{")
    assert json.startswith("expected valid JSON: EOF while parsing")
    assert text_of(pydantic.TypeAdapter(pydantic.UUID4).validate_python, "x").endswith(", got 'x'")


def test_lines_of_an_error_are_printable_and_short():
    assert str(InputError("a\nb\x1b[2J\ud800\u202e", "c" * 1000)) == "a?b?[2J??\n" + "c" * 1000
    long = str(InputError("where: " + "c" * 5000 + ": wrong"))
    assert len(long) == 1000 and long.startswith("where: ccc") and long.endswith("ccc: wrong")
    assert str(InputError("Bébé \U0001f600")) == "Bébé \U0001f600"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("x"), "a.onnx: expected a graph: 'x'"),
        (RuntimeError("one\ntwo"), "a.onnx: expected a graph: one"),
        (InputError("b.onnx: cut off"), "b.onnx: cut off"),
    ],
)
def test_any_exception_names_the_file_unless_it_is_an_input_error(error, message):
    with pytest.raises(InputError) as caught, naming("a.onnx", "a graph"):
        raise error
    assert str(caught.value) == message
