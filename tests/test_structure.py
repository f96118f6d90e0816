"""The house's rules: imports run one way, the public names are few, `import qkd_jax` is light."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import qkd_jax

PACKAGE = Path(qkd_jax.__file__).parent
ROOT = PACKAGE.parent
ORDER = """
errors config system audio quant detector nn data models distill evaluation run_folder training
runtimes commands
"""
ROOMS = ORDER.split()
"""In the order in which they may import each other: each those before it."""
OUTSIDE = {"__init__", "__main__", "presets"}
"""Not rooms: the package itself, and in a wheel the presets."""
NAMES = """
Detector FeatureConfig QTensor QuantConfig build_model cross_validate dequantize detect distillation_loss
evaluate export fake_quant load log_mel lstm_init lstm_scan lstm_step make_train_step pack qdot quantize
score to_jax train unpack weighted_bce
"""
PUBLIC = NAMES.split()


def imported_modules(path: Path) -> set[str]:
    """Every module that `path` imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its room"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(node.module)
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in OUTSIDE)


def test_every_module_is_in_a_room():
    assert {room_of(path) for path in modules()} == set(ROOMS)
    # The first four are public functions, whose place a module of that name would take; git ignores the rest.
    assert not {"train", "score", "export", "detect", "runs", "build"} & set(ROOMS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    allowed = ROOMS[: ROOMS.index(room_of(path)) + 1]
    for module in imported_modules(path):
        if module.startswith("qkd_jax."):
            room = module.split(".")[1]
            assert room in allowed, f"{path} imports {module}, which stands above it"


def importers(*libraries: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(module.split(".")[0] in libraries for module in imported_modules(path))
    }


def test_no_files_import_each_other_in_a_circle():
    names = {
        path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
    }
    modules = {f"qkd_jax.{name}": path for path, name in names.items() if "__init__" not in name}
    above: dict[str, set[str]] = {
        name: imported_modules(path) & (modules.keys() - {name}) for name, path in modules.items()
    }
    assert sum(map(len, above.values())) > 300
    while ground := {name for name, imports in above.items() if not imports & above.keys()}:
        above = {name: imports for name, imports in above.items() if name not in ground}
    assert above == {}


def test_libraries_that_may_change_have_one_room_and_what_runs_on_a_device_needs_no_jax():
    assert {name.split("/")[0] for name in importers("flax")} == {"models"}
    assert importers("orbax") == {"run_folder/checkpoints.py"}
    assert importers("grain") == {"data/batches.py"}
    assert importers("librosa", "tensorboard", "tyro") == set()
    heavy = importers("jax", "jaxlib", "flax", "orbax", "grain", "optax", "jaxtyping", "scipy", "sklearn")
    on_devices = ("detector/", "config/", "commands/detect", "errors")
    assert not {name for name in heavy if name.startswith(on_devices)}
    known = {"audio/log_mel.py", "audio/augment.py", "system/devices.py"}
    assert known >= {name for name in heavy if name.startswith(("audio/", "system/"))}


def test_no_file_is_long():
    files = [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "configs").glob("*.py")]
    files += [path for folder in ("benchmarks", "experiments") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert [str(path) for path in files if len(path.read_text().splitlines()) > 400] == []


def test_constraints_are_versions_and_nothing_else():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in lines)


def test_git_ignores_no_file_of_the_package():
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone")
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files += (ROOT / "configs").glob("*.py")
    names = "\n".join(str(path.relative_to(ROOT)) for path in files)
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(command, input=names, capture_output=True, text=True, cwd=ROOT)
    # 1: none is ignored.
    assert (done.returncode, done.stdout) == (1, ""), done.stderr


@pytest.mark.parametrize("name", ["pyproject.toml", "packaging/detect/pyproject.toml"])
def test_the_distributions_list_the_packages_that_there_are(name):
    settings = tomllib.loads((ROOT / name).read_text())["tool"]["setuptools"]
    listed = set(settings["packages"])
    found = {path.parent for path in PACKAGE.rglob("__init__.py")}
    there = {"qkd_jax.presets", *(".".join(path.relative_to(ROOT).parts) for path in found)}
    if name != "pyproject.toml":
        rooms = r"errors|config|system|audio|quant|detector|runtimes|commands|presets"
        there = {name for name in there if re.fullmatch(rf"qkd_jax(\.({rooms})(\..*)?)?", name)}
    assert listed == there
    for package, patterns in settings["package-data"].items():
        assert package in listed
        folder = ROOT.joinpath(*package.split("."))
        assert all(any(folder.glob(pattern)) for pattern in patterns)
    data = {path.parent for path in PACKAGE.rglob("*") if path.suffix in (".jinja", ".typed")}
    packages = {".".join(path.relative_to(ROOT).parts) for path in data}
    assert packages & listed == settings["package-data"].keys()


def test_public_functions_stay_functions_whatever_is_imported():
    """A module qkd_jax.train, once imported, would hide the function of that name."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules()]
    code = f"""
import importlib, types, qkd_jax
for name in {[name.removesuffix(".__init__") for name in names]}:
    importlib.import_module(name)
for name in qkd_jax.__all__:
    assert not isinstance(getattr(qkd_jax, name), types.ModuleType), name
for name in ("train", "score", "export", "detect"):
    assert isinstance(getattr(qkd_jax, name), types.FunctionType), name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names():
    assert qkd_jax.__all__ == PUBLIC
    assert {*PUBLIC, "__version__"} == set(dir(qkd_jax))
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        qkd_jax.fit  # noqa: B018
    for name in PUBLIC:
        assert callable(getattr(qkd_jax, name)) and getattr(qkd_jax, name).__doc__


LIGHT = "flax orbax grain librosa matplotlib sklearn"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import qkd_jax", f"{LIGHT} jax scipy pydantic tyro rich numpy onnx"),
        ("from qkd_jax import fake_quant, qdot, lstm_scan, log_mel", f"{LIGHT} optax"),
    ],
)
def test_imports_are_light_and_functions_for_other_jax_code_need_no_training_library(code, heavy):
    code = f"{code}; import sys; print([name for name in {heavy.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
