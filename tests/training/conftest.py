import shutil

import pytest

from qkd_jax.config import to_json


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "tiny"


@pytest.fixture
def config(tiny_config, folder):
    """The settings of the finished run, but in `folder`."""
    return tiny_config(folder.parent)


@pytest.fixture
def settings(config, tmp_path):
    """A file with these settings."""
    path = tmp_path / "settings.json"
    path.write_text(to_json(config))
    return path


@pytest.fixture
def begin(finished, folder):
    """The function (*names) that copies the finished run, without models of these names, to `folder`."""
    return lambda *names: shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(*names))
