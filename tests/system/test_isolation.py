"""A model is tried in a subprocess once while its file stays the same."""

import os
import subprocess

import pytest

from qkd_jax.errors import InputError
from qkd_jax.system.isolation import try_apart

MODULE = """
from pathlib import Path
from qkd_jax.errors import InputError

def run_once(path: Path, *more: str) -> None:
    if path.read_text() != "good":
        raise InputError(f"{path}: expected good, got {path.read_text()}")
"""


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """The function (*more) that tries a model, the model's file, and the calls of subprocesses."""
    (tmp_path / "module_of_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    run, calls = subprocess.run, []

    def counted(command, **options):
        calls.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    model = tmp_path / "model.txt"
    model.write_text("good")
    return lambda *more: try_apart("module_of_models", model, *more, runtime="Reader"), model, calls


def test_a_model_that_works_is_tried_again_only_if_its_file_or_the_call_differs(tried):
    try_it, model, calls = tried
    try_it()
    try_it()
    assert len(calls) == 1
    try_it("layer")
    assert len(calls) == 2
    os.utime(model, ns=(1, 1))
    try_it()
    assert len(calls) == 3


def test_a_model_that_fails_is_tried_each_time(tried):
    try_it, model, calls = tried
    model.write_text("bad")
    for count in (1, 2):
        with pytest.raises(InputError, match=r"model\.txt: expected good, got bad"):
            try_it()
        assert len(calls) == count
