"""The wheels hold what they should: built here, installed by `nox -s wheel device`."""

import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qkd_jax

ROOT = Path(__file__).parents[1]
FILES = {
    "qkd_jax": (
        ROOT,
        "data/sources/demo.py models/lstm.py evaluation/report.html.jinja evaluation/check.html.jinja",
        "",
    ),
    "qkd_jax_detect": (ROOT / "packaging" / "detect", "", "models/ training/ data/ evaluation/"),
}
"""Of each distribution: its folder, some of the files in it, and folders that it lacks."""
COPIED = {"qkd_jax", "configs", "packaging", "pyproject.toml", "README.md", "LICENSE"}
NEEDED = {"jinja2", "numpy", "pydantic", "safetensors", "soundfile", "soxr"}


@pytest.fixture(scope="module", params=FILES)
def wheel(request, tmp_path_factory):
    """A wheel, and which it is; built offline, in a copy, so that the clone stays as it is."""
    reason = "needs setuptools of 77 or newer to build without a network"
    pytest.importorskip("setuptools", "77", reason=reason)
    folder = tmp_path_factory.mktemp("wheel")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True)
    if tracked.returncode:
        pytest.skip("needs a clone")
    copy = folder / "clone"
    for name in tracked.stdout.decode().split("\0"):
        path = ROOT / name
        if path.is_file() and name.split("/")[0] in COPIED:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(path.read_bytes())
    source = copy / FILES[request.param][0].relative_to(ROOT)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=source, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return request.param, zipfile.ZipFile(built)


def test_a_wheel_has_the_package_the_presets_and_the_command(wheel):
    name, archive = wheel
    names = set(archive.namelist())
    there, absent = ([f"qkd_jax/{file}" for file in files.split()] for files in FILES[name][1:])
    presets = {f"qkd_jax/presets/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    common = {"qkd_jax/py.typed", "qkd_jax/commands/detect.py", "qkd_jax/runtimes/detector.h.jinja"}
    assert names >= presets | common | set(there)
    assert not [file for file in names for prefix in absent if file.startswith(prefix)]
    assert all(file.startswith((f"{name}-", "qkd_jax/")) for file in names)
    [entry_points] = [file for file in names if file.endswith("entry_points.txt")]
    assert "qkd-jax = qkd_jax.commands.cli:main" in archive.read(entry_points).decode()
    assert [file for file in names if file.endswith("/LICENSE")]
    if name == "qkd_jax":
        sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "qkd_jax").rglob("*.py")}
        assert sources <= names


def test_the_version_is_the_package_s_and_a_device_needs_little(wheel):
    name, archive = wheel
    [file] = [file for file in archive.namelist() if file.endswith(".dist-info/METADATA")]
    about = email.message_from_bytes(archive.read(file))
    assert (about["Name"], about["Version"]) == (name, qkd_jax.__version__)
    needed = {re.match(r"[\w-]+", line)[0] for line in about.get_all("Requires-Dist") if "extra" not in line}
    assert needed == NEEDED if name == "qkd_jax_detect" else needed > NEEDED
    assert not needed & {"librosa", "tyro", "sed_scores_eval", "tensorboard"}
