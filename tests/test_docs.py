"""Links, commands, flags and code in the README, the changelog and the pages of docs/ are right."""

import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import qkd_jax
from qkd_jax.commands.cli import COMMANDS, load_preset, preset_paths
from qkd_jax.commands.detect import DetectOptions
from qkd_jax.commands.detect import _files_and_flags as files_and_flags
from qkd_jax.commands.evaluate import EvaluateOptions
from qkd_jax.commands.export import ExportOptions
from qkd_jax.commands.help import flags
from qkd_jax.commands.override import heads_on, override, take, with_teachers
from qkd_jax.config import RunConfig
from qkd_jax.data.sources import SOURCES
from qkd_jax.detector.file import save
from tests.detectors import FRONT, random_detector

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
USED = [page for page in PAGES if page.name != "CHANGELOG.md"]  # the changelog names flags of the past


def blocks(text: str, language: str = "") -> list[str]:
    """The code blocks in a language, by default in none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M)
    return [code for of, code in found if of == language]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[str]:
    """The qkd-jax commands in blocks of the pages, without what explains them or surrounds them."""
    lines = [line for page in USED for block in blocks(page.read_text()) for line in block.splitlines()]
    found = [re.search(r"qkd-jax (\w+)([^\"]*?)(?=  |\"|$)", line) for line in lines]
    return [match[0].strip() for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_is_linked():
    pages = [f"docs/{page.name}" for page in PAGES if page.parent == ROOT / "docs"]
    assert pages
    for page in pages:
        assert f"({page}" in README, f"README.md does not link to {page}"


@pytest.mark.parametrize("command", commands())
def test_commands_exist_with_their_settings(command, tmp_path, monkeypatch):
    for tagger in ("yamnet.toml", "mn04.toml"):
        text = "file = 'tagger.onnx'\nclasses = 'names.txt'\nevents = {dog = ['Dog']}\n"
        (tmp_path / tagger).write_text(text)
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(command.replace("…", ""))
    assert name in COMMANDS
    if name in ("train", "check"):
        named = bool(arguments) and not arguments[0].startswith("-")
        preset = load_preset(arguments[0] if named else "demo")
        _, arguments = take("--html", arguments)
        teachers, settings = take("--teacher", arguments[named:])
        override(with_teachers(preset, teachers) if teachers else preset, settings)
    elif name in ("eval", "export"):
        override({"eval": EvaluateOptions, "export": ExportOptions}[name](), arguments[1:])
    elif name == "detect":
        files, settings = files_and_flags(arguments)
        assert len(files) >= 2
        override(DetectOptions(), settings)


def test_settings_in_the_text_exist_and_all_kinds_of_commands_are_shown():
    assert {command.split()[1] for command in commands()} >= {"train", "check", "eval", "export", "detect"}
    configs: list = [*map(load_preset, preset_paths()), EvaluateOptions(), DetectOptions(), ExportOptions()]
    configs += [RunConfig(data=source()) for source in SOURCES]
    configs.append(RunConfig(models=heads_on(["yamnet.toml"])))
    known = {name for config in configs for name in flags(config)}
    known |= {re.sub(r"^--models\.[\w-]+", "--models.NAME", name) for name in known}
    shown = {flag for page in USED for flag in re.findall(r"--[a-z]\w*\.[\w.-]*\w", page.read_text())}
    assert shown
    assert shown <= known


def test_code_of_the_page_for_jax_runs(tmp_path):
    quantizing, lstm, training, detecting = blocks((ROOT / "docs" / "jax.md").read_text(), "python")
    names = {"path": tmp_path / "detector.safetensors"}
    save(random_detector(FRONT), tmp_path / "detector.safetensors")
    for code in (quantizing, lstm, detecting):
        exec(code, names)
    assert names["outputs"].shape == (1, 20, 32)
    compile(training, "docs/jax.md", "exec")  # trains the demo


def test_the_example_of_the_readme_trains():
    (code,) = blocks(README, "python")
    names = {}
    exec(code, names)
    x = jax.random.normal(jax.random.key(2), (8, 20, 40))
    y = jnp.tile(jnp.array([[0.0, 1.0, 1.0]]), (8, 1))
    params, opt_state = names["params"], names["optimizer"].init(names["params"])
    values = []
    for _ in range(30):
        params, opt_state, value = names["train_step"](params, opt_state, x, y)
        values.append(float(value))
    assert values[-1] < 0.95 * values[0]
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), params, names["params"])
    assert min(jax.tree.leaves(moved)) > 0


def test_the_table_of_functions_lists_the_public_ones():
    table = README[README.index("| function | does |") :].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:])))
    assert named == set(qkd_jax.__all__) - {"QuantConfig", "FeatureConfig"}
