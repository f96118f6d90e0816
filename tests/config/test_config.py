"""Settings: validated when made, one line per mistake, unchanged by JSON."""

import dataclasses
from dataclasses import replace

import pytest
from pydantic import ValidationError

import qkd_jax.config as cfg
from qkd_jax.commands.cli import load_preset, preset_paths
from qkd_jax.config import CRNNConfig, FeatureConfig, LSTMConfig, ModelConfig, QuantConfig, RunConfig
from qkd_jax.errors import explain
from tests.faults import refused

LSTM, CRNN, DENSENET = (ModelConfig(network=kind()) for kind in (LSTMConfig, CRNNConfig, cfg.DenseNetConfig))


def lstm(model=None, **architecture):
    """A model with an LSTM; `model` holds the settings of its training."""
    return ModelConfig(network=LSTMConfig(**architecture), **(model or {}))


def crnn(architecture=None, **model):
    return ModelConfig(network=CRNNConfig(**(architecture or {})), **model)


def head(**model):
    return ModelConfig(network=cfg.HeadConfig(taggers=("x.toml",)), **model)


def run(models=None, **settings):
    return RunConfig(models=models or {}, **settings)


def events(models, **settings):
    return RunConfig(models=models, recipe=cfg.EventRecipe(), data=cfg.DESEDData(), **settings)


def learns(**objective):
    return {"objective": cfg.EventObjective(**objective)}


# JSON.


@pytest.mark.parametrize("name", ["audioset", "demo", "desed", "paper", "small", "tuned"])
def test_presets_survive_json(name):
    assert name in preset_paths()
    config = load_preset(name)
    assert cfg.from_json(RunConfig, cfg.to_json(config), "here") == config


CONVOLUTIONS = {"convolutions": (8, 16), "time_strides": 1, "pooling": "attention"}
DISTILLED = {"teachers": ("teacher", "yamnet.toml", "a.npz"), "start": "plain", "learning_rate": 1e-3}
CLIPS = {
    "resnet": ModelConfig(network=cfg.ResNetConfig(compute_dtype="bfloat16"), epochs=3),
    "teacher": DENSENET,
    "plain": lstm(**CONVOLUTIONS),
    "four": lstm(DISTILLED, quant=QuantConfig.paper(4), **CONVOLUTIONS),
    "integer": lstm({"start": "other/plain", "ema_decay": 0.9}, quant=QuantConfig.integer(4)),
    "head": ModelConfig(network=cfg.HeadConfig(taggers=("a.toml",), components=None, penalties=(0.1, 1.0))),
}
GUIDED = learns(update="mean_step", embeddings="teacher", fusion="best")
TIMED = {
    "teacher": CRNN,
    "student": crnn({"quant": QuantConfig.per_channel(8)}, teachers=("teacher", "a.npz"), **GUIDED),
    "lstm": lstm({"teachers": ("student",), **learns(update="ema_ste")}),
}
DATA = [
    cfg.ManifestData(root="r", events=("dog",), negatives=3, skip_bad=True, label_separator="|"),
    cfg.DemoData(counts=(3, 2, 1), clip_seconds=2.0),
    *(cfg.AudioSetData(), cfg.ESC50Data(), cfg.UrbanSound8KData()),
]
RECIPE = cfg.ClipRecipe(patience=3, form="paper", positive_weight=2.0, schedule="constant")
CONFIGS = {
    **{data.source: run(CLIPS, data=data, name="a.b", cache="c", distributed=True) for data in DATA},
    "events": events(TIMED, augment=cfg.AugmentConfig(mixup=0.2, time_masks=1)),
    "augmented": run(CLIPS, augment=cfg.AugmentConfig(gain=6.0, mixtures=0.5, mel_masks=1)),
    "views": run(CLIPS, augment=cfg.AugmentConfig(views=2, least_views=100)),
    "recipe": run(recipe=RECIPE),
    "weights": run(recipe=cfg.ClipRecipe(positive_weight="positives/negatives")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_json_gives_an_equal_configuration_with_models_in_order(name):
    config = CONFIGS[name]
    again = cfg.from_json(RunConfig, cfg.to_json(config), "here")
    assert again == config
    assert list(again.models) == list(config.models)
    for model, other in zip(config.models.values(), again.models.values()):
        assert type(model.network) is type(other.network)
    assert type(again.data) is type(config.data) and type(again.recipe) is type(config.recipe)


HEAD, STUDENT = CLIPS["head"], {"network": cfg.LSTMConfig()}


@pytest.mark.parametrize(
    ("teachers", "made"),
    [("head", True), ("teacher", False), ("head teacher", False), ("head x.npz", False), ("", False)],
)
def test_views_are_made_if_heads_are_the_only_teachers(teachers, made):
    models = {"head": HEAD, "teacher": ModelConfig(network=cfg.DenseNetConfig())}
    models["student"] = ModelConfig(teachers=tuple(teachers.split()), **STUDENT)
    assert run(models, augment=cfg.AugmentConfig(views=1)).makes_views == made
    assert not run(models).makes_views


TAGS = [
    (
        '"data": {"source": "freesound"}',
        r"data\.source: expected one of 'manifest', 'folders', 'timed', .*got 'freesound'",
    ),
    ('"data": {"source": "esc50", "manifest": 1}', r"data\.esc50\.manifest: unknown field"),
    ('"recipe": {"task": "steps"}', r"recipe\.task: expected one of 'clips', 'events', got 'steps'"),
    ('"recipe": {"task": "clips", "weak": 3}', r"recipe\.clips\.weak: unknown field"),
    (
        '"models": {"m": {"network": {"architecture": "gru"}}}',
        r"models\.m\.\w+\.architecture: expected one of .*'gru'",
    ),
    (
        '"models": {"m": {"network": {"architecture": "lstm", "dropout": 0.1}}}',
        r"models\.m\.network\.lstm\.dropout: unknown field",
    ),
    ('"models": {"m": {}}', r"models\.m\.network: expected a value, found none"),
    ('"recipe": {"task": "clips", "seed": "x"}', r"recipe\.clips\.seed: .*got 'x'"),
]


@pytest.mark.parametrize(("text", "message"), TAGS)
def test_the_tag_of_a_union_decides_which_settings_there_are(text, message):
    with refused(f"^run/config.json: {message}"):
        cfg.from_json(RunConfig, f"{{{text}}}", "run/config.json")


@pytest.mark.parametrize("number", ["1e400", "9" * 400, "1" + "0" * 4000])
def test_numbers_out_of_all_range_are_one_line(number):
    for field in ("sample_rate", "fmax", "hop_length"):
        with refused(r"^here: ") as error:
            cfg.from_json(FeatureConfig, f'{{"{field}": {number}}}', "here")
        assert len(str(error.value)) < 1000
    with refused(r"^here: clip_seconds: "):
        cfg.from_json(cfg.DemoData, f'{{"clip_seconds": {number}}}', "here")


def test_json_that_is_cut_off_is_named_and_a_long_value_hides_no_other_fault():
    with refused(r"^here: expected valid JSON: EOF"):
        cfg.from_json(RunConfig, "{", "here")
    text = '{"batch_size": "' + "x" * 5000 + '", "seed": -1}'
    with refused(r"seed: .* got -1; batch_size: .* got 'x{199}$"):
        cfg.from_json(cfg.ClipRecipe, text, "here")


# Mistakes.


def integer(**fields):
    return replace(QuantConfig.integer(4), **fields)


def b(*others, **model):
    """The settings of models: of others, by name, and of b, an LSTM with these settings of its training."""
    return {**dict(others), "b": lstm(model)}


A, C = ("a", LSTM), ("c", LSTM)
OFF = dict.fromkeys(("weights", "activations", "output", "gates", "cell"), 32)
COARSE = crnn({"pools": ((4, 2), *CRNNConfig().pools[1:])})
POINTS = {"eer": {"dog": 0.5}, "f1": {"dog": 0.4}}
CONVOLUTION = lstm(convolutions=(4,))
STRIDED = lstm({"start": "a"}, convolutions=(4,), time_strides=1)
WIDTHS = (
    "scheme: expected weights, activations, output of at most 8 bits and gates, cell of 16 for integer, got "
)
NO_STEP = "models.s.network: expected at least one step, got none from 998 frames; use fewer convolutions"
OTHER_PARAMETERS = "models.b.start: expected a model with the same parameter shapes, got 'a'"
START = "models.b.start: expected an earlier model of the run ({}), or RUN/MODEL of another run, got 'a'"
NONE = "expected an earlier model of the run (no earlier model exists)"
FLOAT = "models.s.start: expected a float model (required by the integer-only scheme), got "
TEACHERS = "models.b.teachers: expected an earlier model of the run ({}), or a .toml or .npz file, got {!r}"
GUIDE = "models.b.objective.embeddings: expected CRNNs for student and embeddings, got "
KIND = "models.m.network.architecture: expected"
NO_TEACHERS = "models.h: expected no teachers, start or objective for a head, found some"
INTEGER = lstm(quant=QuantConfig.integer(8))
MISTAKES = [
    (lambda: cfg.ClipRecipe(batch_size=0), "batch_size: expected at least 1, got 0"),
    (lambda: cfg.ClipRecipe(batch_size=2.0), "batch_size: expected an integer, got 2.0"),
    (lambda: cfg.ClipRecipe(seed=True), "seed: expected an integer, got True"),
    (lambda: cfg.ClipRecipe(learning_rate="fast"), "learning_rate: expected a number, got 'fast'"),
    (lambda: cfg.ClipRecipe(sed=1), "sed: unknown field"),
    (lambda: cfg.EventRecipe(median=6), "median: expected an odd number of steps, got 6"),
    (lambda: QuantConfig(weights=17), "weights: bits: expected 2 to 16, or 32 for off, got 17"),
    (lambda: QuantConfig(output=1), "output: bits: expected 2 to 16, or 32 for off, got 1"),
    (lambda: QuantConfig(ranges="both"), "ranges: expected 'joint', 'split' or 'channel', got 'both'"),
    (lambda: QuantConfig(scheme="float"), "scheme: expected 'paper' or 'integer', got 'float'"),
    (lambda: integer(**OFF), WIDTHS + "32, 32, 32, 32, 32"),
    (lambda: integer(weights=9), WIDTHS + "9, 8, 8, 16, 16"),
    (lambda: integer(activations=12), WIDTHS + "4, 12, 8, 16, 16"),
    (lambda: integer(output=32), WIDTHS + "4, 8, 32, 16, 16"),
    (lambda: integer(gates=8), WIDTHS + "4, 8, 8, 8, 16"),
    (lambda: integer(cell=32), WIDTHS + "4, 8, 8, 16, 32"),
    (lambda: integer(ranges="joint"), "ranges: expected channel in the integer-only scheme, got joint"),
    (lambda: LSTMConfig(convolutions=(16, 0)), "convolutions.1: expected at least 1, got 0"),
    (lambda: CRNNConfig(pools=((2, 2),)), "pools: expected one for each of 7 blocks, got 1"),
    (lambda: CRNNConfig(quant=integer()), "quant.scheme: expected paper for a CRNN, got integer"),
    (lambda: FeatureConfig(win_length=600), "win_length: expected at most n_fft = 512, got 600"),
    (
        lambda: cfg.EventConfig(use="1/h"),
        "use: expected none (the detector has no operating points), got '1/h'",
    ),
    (lambda: run(name="../up"), "name: expected letters, digits, _ . -, starting"),
    (lambda: run({"a/b": LSTM}), "models.a/b.[key]: expected letters, digits, _ . -, starting"),
    (lambda: run({"s": lstm(convolutions=(1,) * 9, time_strides=9)}), NO_STEP),
    (lambda: run({"s": lstm(convolutions=(1,) * 499)}), NO_STEP),
    # Models start from earlier ones.
    (lambda: run(b(start="a")), START.format("no earlier model exists")),
    (lambda: run({**b(start="a"), "a": LSTM}), START.format("no earlier model exists")),
    (lambda: run({"c": LSTM, **b(start="a"), "a": LSTM}), START.format("c")),
    (lambda: run(b(("a", lstm(hidden_size=8)), start="a")), OTHER_PARAMETERS),
    (lambda: run(b(("a", lstm(pooling="mean")), start="a")), OTHER_PARAMETERS),
    (lambda: run(b(("a", lstm(layers=2)), start="a")), OTHER_PARAMETERS),
    (lambda: run(b(("a", CONVOLUTION), start="a")), OTHER_PARAMETERS),
    (lambda: run({"a": CONVOLUTION, "b": STRIDED}), OTHER_PARAMETERS),
    (lambda: run(b(("a", DENSENET), start="a")), OTHER_PARAMETERS),
    (lambda: run({"s": INTEGER}), FLOAT + "none"),
    (lambda: run({"f": lstm(quant=QuantConfig.paper(4)), "s": replace(INTEGER, start="f")}), FLOAT + "'f'"),
    # Teachers have names.
    (lambda: run({**b(teachers=("a",)), "a": LSTM}), TEACHERS.format("no earlier model exists", "a")),
    (lambda: events({"b": crnn(teachers=("a",))}), "models.b.teachers: expected an earlier model of the run"),
    (lambda: run(b(A, teachers=("a", "b"))), TEACHERS.format("a", "b")),
    (lambda: run(b(A, C, teachers=("a.wav",))), TEACHERS.format("a, c", "a.wav")),
    (lambda: run({"h": head(teachers=("a.npz",))}), NO_TEACHERS),
    (lambda: run({"a": LSTM, "h": head(start="a")}), NO_TEACHERS),
    (lambda: events({"h": head(objective=cfg.EventObjective())}), NO_TEACHERS),
    (lambda: cfg.HeadConfig(taggers=()), "taggers: expected at least 1 value, got ()"),
    (lambda: cfg.HeadConfig(taggers=("x.toml",), penalties=(0.0,)), "penalties.0: expected more than 0, got"),
    (lambda: cfg.AugmentConfig(gain=-1.0), "gain: expected at least 0, got -1"),
    (
        lambda: events(TIMED, augment=cfg.AugmentConfig(views=1)),
        "augment.views: expected 0 for timed",
    ),
    # Objectives belong to timed events.
    (lambda: events(b(**learns(embeddings="x.toml"))), GUIDE),
    (lambda: events({"a": LSTM, "b": crnn(**learns(embeddings="a"))}), GUIDE),
    (lambda: events(b(("a", CRNN), **learns(embeddings="a"))), GUIDE),
]
LONGER_MISTAKES = [
    lambda: LSTMConfig(convolutions=(16, 32), time_strides=3),
    "time_strides: expected at most 2, the number of convolutions, got 3",
    lambda: FeatureConfig(sample_rate=8000),
    "fmin, fmax: expected fmin < fmax <= sample_rate / 2 = 4000 Hz, got 50 and 8000",
    lambda: cfg.EventConfig(use="1/h", thresholds=POINTS),
    "use: expected an operating point (eer, f1), got '1/h'",
    lambda: run(data=cfg.ManifestData(clip_seconds=0.01)),
    "data.clip_seconds: expected at least one window (0.025 s), got 0.01",
    lambda: run({"m": CRNN}),
    f"{KIND} densenet or resnet or lstm or head for recipe.task clips, got crnn",
    lambda: events({"m": DENSENET}),
    f"{KIND} lstm or crnn or head for recipe.task events, got densenet",
    lambda: events({"b": crnn(teachers=("x.toml",))}),
    "models.b.teachers: expected earlier models or .npz files for timed events, got 'x.toml'",
    lambda: run({"m": lstm(learns())}),
    "models.m.objective: expected no objective for recipe.task clips, found one",
    lambda: events({"m": crnn(**learns(update="mean_step"))}),
    "models.m.objective.update: expected teachers for mean_step, found none",
    lambda: events({"m": crnn(**learns(update="ema_ste"))}),
    "models.m.objective.update: expected teachers for ema_ste, found none",
    lambda: events({"m": crnn(**learns(embeddings="m"))}),
    f"models.m.objective.embeddings: {NONE}, or a .toml file, got 'm'",
    lambda: events({"a": COARSE, "b": crnn(**learns(embeddings="a"))}),
    "models.b.objective.embeddings: expected 249 steps per clip, got 'a' with ",
]
MISTAKES += zip(LONGER_MISTAKES[::2], LONGER_MISTAKES[1::2])


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_a_wrong_setting_is_one_line(make, message):
    with pytest.raises(ValidationError) as caught:
        make()
    assert explain(caught.value).startswith(message)
    assert "\n" not in explain(caught.value)


# What settings mean.


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantConfig().weights = 4


def test_the_paper_preset_has_the_sizes_of_the_paper():
    config = load_preset("paper")
    assert (config.frames, config.features.n_mels) == (998, 64)
    assert config.models["teacher"].network.blocks == (3, 6, 12, 8)
    network = LSTMConfig(hidden_size=256, quant=QuantConfig(weights=4, activations=4, gates=4, cell=16))
    assert config.models["distilled-4"] == ModelConfig(network=network, teachers=("teacher",))
    recipe = config.recipe
    assert (recipe.batch_size, recipe.schedule, recipe.clip_norm) == (64, "constant", None)
    assert (recipe.form, recipe.positive_weight) == ("paper", "negatives/positives")
    assert {config.model(name).learning_rate for name in config.models} == {1e-3}


def test_the_tuned_preset_has_the_same_networks_but_for_the_teachers_pooling():
    paper, tuned = load_preset("paper").models, load_preset("tuned").models
    assert list(paper) == list(tuned)
    assert all(tuned[name].network == paper[name].network for name in list(paper)[1:])
    assert tuned["teacher"].network == dataclasses.replace(paper["teacher"].network, pooling="all")
    assert (tuned["distilled-4"].start, tuned["distilled-4"].learning_rate) == ("distilled", 1e-3)


def test_a_model_takes_what_it_lacks_from_the_recipe():
    recipe = cfg.ClipRecipe(learning_rate=0.1, epochs=7, ema_decay=0.5)
    config = run({"a": LSTM, "b": lstm({"learning_rate": 0.2, "epochs": 3, "ema_decay": 0.0})}, recipe=recipe)
    assert config.model("a") == lstm({"learning_rate": 0.1, "epochs": 7, "ema_decay": 0.5})
    assert config.model("b") == config.models["b"]
    timed = events({"a": CRNN, "b": crnn(**learns(label_weight=2.0))})
    assert timed.timed and not config.timed
    assert timed.model("a").objective == cfg.EventObjective()
    assert timed.model("b").objective == cfg.EventObjective(label_weight=2.0)
    assert timed.model("a").ema_decay == cfg.EventRecipe().ema_decay


def test_convolutions_may_leave_two_steps():
    # 998 frames halved, each time without the last or the last two: 498, 248, 123, 61, 30, 14, 6, 2.
    for model in (lstm(convolutions=(1,) * 8, time_strides=8), lstm(convolutions=(1,) * 498)):
        assert run({"s": model}).models["s"].network.steps(998) == 2


@pytest.mark.parametrize("seconds", [0.025, 0.035, 1.0, 10.0])
def test_frames_are_counted_without_padding(seconds):
    samples = round(seconds * 16000)
    whole = [start for start in range(0, samples, 160) if start + 400 <= samples]
    assert FeatureConfig().frames(samples) == len(whole)
    assert run(data=cfg.ManifestData(clip_seconds=seconds)).frames == len(whole)


@pytest.mark.parametrize(
    ("network", "window", "hop"),
    [
        (LSTMConfig(), 400, 160),
        (LSTMConfig(convolutions=(4, 4), time_strides=1), 6 * 160 + 400, 320),
        (CRNNConfig(), 3 * 160 + 400, 640),
    ],
    ids=["frames", "convolutions", "pools"],
)
def test_the_clock_is_at_the_centre_of_the_samples_of_a_step(network, window, hop):
    assert cfg.step_samples(FeatureConfig(), network) == (window, hop)
    assert cfg.step_clock(FeatureConfig(), network) == cfg.Clock(window / 2 / 16_000, hop / 16_000)


def test_kinds_of_networks_and_teachers():
    four, integer = map(LSTMConfig().quantized, (QuantConfig.paper(4), QuantConfig.integer(4)))
    same, densenet = cfg.same_parameters, cfg.DenseNetConfig()
    assert [cfg.is_integer(network) for network in (integer, four, CRNNConfig())] == [True, False, False]
    assert [cfg.is_float(network) for network in (densenet, LSTMConfig(), four)] == [True, True, False]
    assert same(four, integer) and same(cfg.ResNetConfig(), cfg.ResNetConfig())
    assert same(CRNNConfig(), CRNNConfig(quant=QuantConfig.paper(4), dropout=0.0))
    assert not same(CRNNConfig(), CRNNConfig(bidirectional=False))
    assert not same(densenet, cfg.DenseNetConfig(growth=8))
    assert [cfg.is_file(name) for name in ("a.npz", "a.toml", "a", "a.wav")] == [True, True, False, False]
