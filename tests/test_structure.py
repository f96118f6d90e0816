"""The house's rules: imports run one way, the public names are few, `import qkd_jax` is light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import qkd_jax

PACKAGE = Path(qkd_jax.__file__).parent
ROOMS = (
    "config",
    "config_sed",
    "command",
    "progress",
    "files",
    "stop",
    "trial",
    "mesh",
    "quant",
    "nn",
    "audio",
    "deploy",
    "data",
    "models",
    "distill",
    "evaluation",
    "train",
)
PUBLIC = [
    "Detector",
    "FeatureConfig",
    "QTensor",
    "QuantConfig",
    "build_model",
    "dequantize",
    "detect",
    "distillation_loss",
    "evaluate",
    "fake_quant",
    "load",
    "log_mel",
    "lstm_init",
    "lstm_scan",
    "lstm_step",
    "make_train_step",
    "pack",
    "qdot",
    "quantize",
    "to_jax",
    "unpack",
    "weighted_bce",
]


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


def test_imports_run_one_way():
    for path in PACKAGE.rglob("*.py"):
        if path.parent == PACKAGE and path.name == "__init__.py":
            continue
        allowed = ROOMS[: ROOMS.index(room_of(path)) + 1]
        for module in imported_modules(path):
            if module.startswith("qkd_jax."):
                assert module.split(".")[1] in allowed, f"{path} imports {module}, which stands above it"


def test_libraries_that_may_change_have_one_room():
    def importers(library: str) -> set[str]:
        return {
            str(path.relative_to(PACKAGE))
            for path in PACKAGE.rglob("*.py")
            if any(module.split(".")[0] == library for module in imported_modules(path))
        }

    assert {name.split("/")[0] for name in importers("flax")} == {"models"}
    assert importers("orbax") == {"train/checkpoint.py"}
    assert importers("grain") <= {"data/batches.py", "train/loop.py"}


def test_constraints_are_versions_and_nothing_else():
    lines = (PACKAGE.parent / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in lines)


def test_public_names():
    assert qkd_jax.__all__ == PUBLIC
    for name in PUBLIC:
        assert callable(getattr(qkd_jax, name)) and getattr(qkd_jax, name).__doc__


def test_import_is_light():
    heavy = [
        "jax",
        "flax",
        "orbax",
        "grain",
        "librosa",
        "matplotlib",
        "sklearn",
        "scipy",
        "pydantic",
        "tyro",
        "rich",
        "numpy",
        "onnx",
    ]
    code = f"import sys, qkd_jax; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_for_other_jax_code_need_no_training_library():
    heavy = ["flax", "orbax", "grain", "optax", "librosa", "matplotlib", "sklearn"]
    code = (
        "import sys; from qkd_jax import fake_quant, qdot, lstm_scan, log_mel; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
