"""The command line: fields overridden one by one, classes switched, one line for each mistake."""

import re
from dataclasses import replace

import pytest

import qkd_jax.config as cfg
from qkd_jax.commands.override import override, take, with_teachers
from qkd_jax.config import EventObjective, FeatureConfig, LSTMConfig, ManifestData, ModelConfig, RunConfig
from tests.commands.configs import CLIPS, EVENTS
from tests.faults import refused, refused_in_one_line


def test_single_fields_are_overridden():
    flags = "--recipe.seed 3 --models.plain.network.hidden-size 32 --data.events a b --recipe.clip_norm=1e-1"
    new = override(CLIPS, flags.split())
    assert new.recipe == replace(CLIPS.recipe, seed=3, clip_norm=0.1)
    assert new.models["plain"].network == replace(CLIPS.models["plain"].network, hidden_size=32)
    assert new.models["distilled-4"] == CLIPS.models["distilled-4"]
    assert new.data == replace(CLIPS.data, events=("a", "b"))
    assert override(CLIPS, []) == CLIPS


@pytest.mark.parametrize(
    ("flags", "section", "field", "value"),
    [
        ("--data.skip-bad", "data", "skip_bad", True),
        ("--data.skip-bad false", "data", "skip_bad", False),
        ("--data.no-skip-bad", "data", "skip_bad", False),
        ("--data.events", "data", "events", ()),
        ("--data.counts 3 2 1", "data", "counts", (3, 2, 1)),
        ("--data.root -", "data", "root", "-"),
        ("--data.root x --data.root none", "data", "root", None),
        ("--recipe.patience 3", "recipe", "patience", 3),
        ("--recipe.positive-weight 0.5", "recipe", "positive_weight", 0.5),
        ("--recipe.positive-weight positives/negatives", "recipe", "positive_weight", "positives/negatives"),
    ],
)
def test_each_kind_of_value_can_be_written(flags, section, field, value):
    assert getattr(getattr(override(CLIPS, flags.split()), section), field) == value


def test_settings_of_a_model_begin_with_its_own_or_with_defaults():
    flags = "--models.student.network.no-bidirectional --models.student.network.pools 2 2 1 2"
    flags += " --models.student.network.channels 4 8 --models.teacher.objective.label-weight 3"
    models = override(EVENTS, flags.split()).models
    network = models["student"].network
    assert (network.bidirectional, network.pools, network.channels) == (False, ((2, 2), (1, 2)), (4, 8))
    assert models["teacher"].objective == EventObjective(label_weight=3.0)
    assert models["baseline"].objective is None


def test_a_tag_chooses_the_class_and_keeps_what_both_have():
    new = override(CLIPS, ["--data.source", "manifest", "--data.filename-column", "path"])
    assert new.data == ManifestData(clip_seconds=2.0, events=("bell",), filename_column="path")
    assert override(CLIPS, ["--data.source=demo"]) == CLIPS
    new = override(CLIPS, ["--models.teacher.network.architecture", "resnet"])
    # The growth is DenseNet's alone; the bottleneck was the default, and stays that.
    assert new.models["teacher"] == ModelConfig(network=cfg.ResNetConfig(blocks=(2, 2, 2), stem=16), epochs=8)
    new = override(CLIPS, ["--models.teacher.network.architecture=lstm"])
    assert new.models["teacher"].network == LSTMConfig()


def test_classes_switched_together_are_checked_together():
    student = RunConfig(data=cfg.DemoData(), models={"a": ModelConfig(network=cfg.ResNetConfig())})
    flags = "--recipe.task events --models.a.network.architecture crnn --data.source desed --recipe.strong 3"
    new = override(student, flags.split())
    assert (new.recipe.task, new.recipe.strong, new.models["a"].network.architecture) == ("events", 3, "crnn")


SOURCES = "manifest, folders, timed, audacity, raven, audioset, esc50, urbansound8k, fsd50k, desed or demo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--recipe.sed 3", "--recipe.sed: unknown setting; did you mean --recipe.seed"),
        ("--epochs 3", "--epochs: unknown setting; did you mean --recipe.epochs"),
        ("--data.filename-column x", "--data.filename-column: unknown setting"),
        ("--data demo", "--data: unknown setting"),
        ("--models.none.epochs 3", "--models.none.epochs: unknown setting; did you"),
        ("3", "expected a flag, --SETTING VALUE, got '3'"),
        ("--recipe.seed x", "--recipe.seed: expected an integer, got 'x'"),
        ("--recipe.seed 3 4", "--recipe.seed: expected one value, got 3 4"),
        ("--recipe.seed", "--recipe.seed: expected one value, got none"),
        ("--recipe.batch-size 0", "--recipe.batch-size: expected at least 1, got '0'"),
        ("--recipe.form x", "--recipe.form: expected 'hinton' or 'paper', got 'x'"),
        ("--data.skip-bad x", "--data.skip-bad: expected true or false, got 'x'"),
        ("--data.counts 3 4", "--data.counts: expected 3 values, got 3 4"),
        ("--data.counts 3 4 x", "--data.counts: expected an integer, got 'x'"),
        ("--data.source vgg", f"--data.source: expected {SOURCES}, got"),
        ("--models.plain.network.architecture vgg", "--models.plain.network.architecture: expected densenet"),
        ("--models.distilled-4.network.quant.weights 1", "expected 2 to 16, or 32 for off, got 1"),
        ("--models.plain.network.time-strides 9", "--models.plain.network.time-strides: expected at most 3"),
        ("--features.fmin 9000", "--features.fmin, --features.fmax: expected fmin < fmax <="),
        ("--data.clip-seconds 0.01", "--data.clip-seconds: expected at least one window (0.025 s), got 0.01"),
        ("--models.distilled.start x", "--models.distilled.start: expected an earlier model of the run"),
        ("--models.plain.objective.update student", "--models.plain.objective: expected no objective for "),
        ("--name ../up", "--name: expected letters, digits, _ . -"),
    ],
)
def test_a_wrong_argument_is_one_line_with_its_flag(arguments, message, capsys):
    with refused_in_one_line(re.escape(message)):
        override(CLIPS, arguments.split())
    assert capsys.readouterr() == ("", "")


def test_any_dataclass_can_be_overridden():
    assert override(FeatureConfig(), ["--n-mels", "32"]) == FeatureConfig(n_mels=32)
    with refused(r"^--win-length: expected at most n_fft = 512, got 600"):
        override(FeatureConfig(), ["--win-length", "600"])


def test_values_are_taken_up_to_the_next_flag():
    assert take("--teacher", ["--a", "--teacher", "x", "y", "--b", "z"]) == (("x", "y"), ["--a", "--b", "z"])
    assert take("--teacher", ["--teacher=x", "y", "--b"]) == (("x", "y"), ["--b"])
    assert take("--teacher", ["--a"]) == ((), ["--a"])
    for arguments in (["--teacher"], ["--teacher", "--b"]):
        with refused(r"^--teacher: expected at least one value, got none"):
            take("--teacher", arguments)


def test_other_teachers_take_the_place_of_those_that_are_dropped():
    new = with_teachers(CLIPS, ["one.npz", "two.npz"])
    assert list(new.models) == ["plain", "distilled", "distilled-4"]
    assert new.models["plain"] == CLIPS.models["plain"]
    for name in ("distilled", "distilled-4"):
        assert new.models[name] == replace(CLIPS.models[name], teachers=("one.npz", "two.npz"))


@pytest.fixture
def taggers(tmp_path):
    """Descriptions of a tagger with classes of an event, and of one without."""
    events = 'classes = "x.txt"\n[events]\nbell = ["Bell"]\n'
    for name, text in (("with.toml", events), ("without.toml", "")):
        (tmp_path / name).write_text(f'file = "x.onnx"\n{text}')
    return str(tmp_path / "with.toml"), str(tmp_path / "without.toml")


@pytest.mark.parametrize("config", [CLIPS, EVENTS], ids=["clips", "events"])
def test_taggers_teach_by_a_head_that_is_fitted_on_all_of_them(taggers, config):
    (learner, *_) = [name for name, model in config.models.items() if model.teachers]
    new = with_teachers(config, [taggers[0], "logits.npz", taggers[1]]).models
    assert list(new) == ["zero-shot", "head", *(name for name in config.models if name != "teacher")]
    assert new["head"] == ModelConfig(network=cfg.HeadConfig(taggers=taggers))
    assert new["zero-shot"] == ModelConfig(network=cfg.HeadConfig(taggers=taggers, fit=False))
    assert new[learner] == replace(config.models[learner], teachers=("head", "logits.npz"))
    # Without classes of any event, nothing is known before a head is fitted.
    assert list(with_teachers(config, taggers[1:]).models)[:1] == ["head"]
    assert with_teachers(config, taggers[1:]).models[learner].teachers == ("head",)


def test_the_description_of_a_tagger_is_read_at_once(tmp_path):
    with refused(r"none\.toml: expected a tagger's settings in TOML: .*No such file"):
        with_teachers(CLIPS, [str(tmp_path / "none.toml")])


def test_a_model_that_is_still_named_stays():
    assert list(with_teachers(CLIPS, ["teacher", "logits.npz"]).models) == list(CLIPS.models)
    assert with_teachers(CLIPS, ["plain"]).models.keys() == {"plain", "distilled", "distilled-4"}
    student = replace(EVENTS.models["student"], objective=EventObjective(embeddings="teacher"))
    teacher = ModelConfig(network=student.network)
    events = replace(EVENTS, models=EVENTS.models | {"student": student, "teacher": teacher})
    assert list(with_teachers(events, ["baseline"]).models) == ["baseline", "teacher", "student"]


def test_a_teacher_keeps_its_own_teachers_and_chains_are_dropped_whole():
    network = CLIPS.models["plain"].network
    teachers = {"large": (), "middle": ("large",), "small": ("middle",)}
    models = {name: ModelConfig(network=network, teachers=held) for name, held in teachers.items()}
    chain = replace(CLIPS, models=models)
    assert list(with_teachers(chain, ["a.npz"]).models) == ["small"]
    assert with_teachers(chain, ["middle"]) == chain


@pytest.mark.parametrize(
    ("config", "teachers", "message"),
    [
        (CLIPS, ["x"], r"^--models\.distilled\.teachers: expected an earlier model .*, got 'x'"),
        (CLIPS, ["distilled-4"], r"^--models\.distilled\.teachers: expected an earlier model"),
        (
            RunConfig(),
            ["a.npz"],
            r"^--teacher: expected a preset with a student, found no model with teachers among",
        ),
    ],
)
def test_wrong_teachers_are_one_line(config, teachers, message):
    with refused(message):
        with_teachers(config, teachers)
