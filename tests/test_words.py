"""One word, one meaning: names and texts do without the words that the code no longer uses."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import qkd_jax
import qkd_jax.config
from qkd_jax.commands.detect import DetectOptions
from qkd_jax.commands.help import field_docs

PACKAGE = Path(qkd_jax.__file__).parent
ROOT = PACKAGE.parent
FILES = [*PACKAGE.rglob("*.py"), *(ROOT / "configs").glob("*.py"), *ROOT.glob("*.py")]

OLD_WORDS = """
span=receptive_field,stride,Annotation,state spans=state halvings=time_strides carrier=state carriers=state
units=hidden_size,scale,exponent grid=scale,exponent readings=logits,posteriors
said=logits,posteriors,message heard=state taught=soft_loss told=hard_loss
"""
OLD_NAMES = """
DetectConfig=DetectOptions DetectionConfig=EventConfig Detections=Logits DetectorConfig=ModelConfig
DistillConfig=ClipRecipe EvalConfig=EvalOptions ExportConfig=ExportOptions SedConfig=RunConfig
SedDataset=Dataset StudentConfig=LSTMConfig TeacherConfig=DenseNetConfig,ResNetConfig TrainConfig=ClipRecipe
kept=state mean_student=mean_teacher
"""
WORDS, NAMES = (dict(pair.split("=") for pair in pairs.split()) for pairs in (OLD_WORDS, OLD_NAMES))
"""Words in names, and whole names, with the ones that are used instead."""
TEXTS = ("mean student", "halvings", "carriers", "spans", "what is said", "fixed-point", "DetectorConfig")
"""Words that no text of the package holds, be it a docstring, help, a message or the head of a table."""

ALLOWED = {("evaluation/plots.py", "grid")}  # Matplotlib's method
ALLOWED_TEXTS = {
    ("detector/file.py", "halvings"),  # a setting in files of version 1
    ("training/step.py", "mean student"),  # named once beside the mean teacher, as TAKD's term
}
ALLOWED_KEPT = ("data/", "evaluation/", "run_folder/", "training/", "distill/", "commands/override.py")
"""Where `kept` has its plain meaning, and is not the state of a stream."""


def names_in(tree):
    """Every name that a file gives or uses, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.keyword(arg=str(name)):
                yield name, node.lineno


def words_of(name):
    """`mean_student` and `MeanStudent` are both mean and student."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def place(path):
    return str(path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT))


def test_the_words_of_a_name():
    assert words_of("_mean_student") == words_of("MeanStudent") == {"mean", "student"}
    assert words_of("GRID") == {"grid"} and words_of("LSTMSpan") == {"lstm", "span"}
    assert len(FILES) > 80 and len(settings()) > 15 and {"span", "grid"} <= WORDS.keys()


@pytest.mark.parametrize("path", FILES, ids=place)
def test_names(path):
    faults = []
    for name, line in names_in(ast.parse(path.read_text())):
        words = words_of(name) & WORDS.keys()
        used = {word: WORDS[word] for word in words if (place(path), word) not in ALLOWED}
        if name in NAMES and not (name == "kept" and place(path).startswith(ALLOWED_KEPT)):
            used[name] = NAMES[name]
        faults += [f"line {line}: {name}: {word} is now {better}" for word, better in used.items()]
    assert faults == []


@pytest.mark.parametrize("path", FILES, ids=place)
def test_texts(path):
    texts = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    words = [word for word in TEXTS if (place(path), word) not in ALLOWED_TEXTS]
    faults = [(word, text) for text in texts if isinstance(text, str) for word in words if word in text]
    assert faults == []


def settings():
    kinds = [kind for kind in vars(qkd_jax.config).values() if dataclasses.is_dataclass(kind)]
    return [*(kind for kind in kinds if isinstance(kind, type)), DetectOptions]


@pytest.mark.parametrize("kind", settings(), ids=lambda kind: kind.__name__)
def test_settings_and_their_help(kind):
    for field in dataclasses.fields(kind):
        assert not words_of(field.name) & WORDS.keys()
        help_text = field_docs(kind).get(field.name, "").replace("linear units", "")  # GLU
        assert not set(re.findall(r"\w+", help_text.lower())) & (WORDS.keys() - {"grid"}), field.name


def test_the_columns_of_tables():
    trees = [
        ast.parse((PACKAGE / name).read_text()) for name in ("evaluation/table.py", "commands/event_text.py")
    ]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    words = {word for text in texts if isinstance(text, str) for word in re.findall(r"\w+", text)}
    assert {"bytes", "parameters", "onset"} <= words and not words & WORDS.keys()
