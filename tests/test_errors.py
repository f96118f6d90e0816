"""Error messages: printable, of limited length, with the fault at the end."""

import pytest

from qkd_jax.errors import InputError, naming


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
