"""Settings: validated when made, one line per mistake, unchanged by JSON."""

import dataclasses

import pytest
from pydantic import ValidationError

from qkd_jax.commands.cli import load_preset, preset_paths
from qkd_jax.config import (
    AudioSetData,
    AugmentConfig,
    ClipRecipe,
    Clock,
    CRNNConfig,
    DemoData,
    DenseNetConfig,
    DESEDData,
    ESC50Data,
    EventConfig,
    EventObjective,
    EventRecipe,
    FeatureConfig,
    LSTMConfig,
    ManifestData,
    ModelConfig,
    QuantConfig,
    ResNetConfig,
    RunConfig,
    UrbanSound8KData,
    from_json,
    is_file,
    is_float,
    is_integer,
    same_parameters,
    step_clock,
    step_samples,
    to_json,
    with_data,
)
from qkd_jax.errors import InputError, explain

LSTM, CRNN, DENSENET = (
    ModelConfig(network=network) for network in (LSTMConfig(), CRNNConfig(), DenseNetConfig())
)


def lstm(model=None, **architecture):
    """A model with an LSTM; `model` holds the settings of its training."""
    return ModelConfig(network=LSTMConfig(**architecture), **(model or {}))


def crnn(architecture=None, **model):
    return ModelConfig(network=CRNNConfig(**(architecture or {})), **model)


def run(models=None, **settings):
    return RunConfig(models=models or {}, **settings)


def events(models, **settings):
    return RunConfig(models=models, recipe=EventRecipe(), data=DESEDData(), **settings)


def learns(**objective):
    return {"objective": EventObjective(**objective)}


# JSON.


@pytest.mark.parametrize("name", ["audioset", "demo", "desed", "paper", "small"])
def test_presets_survive_json(name):
    assert name in preset_paths()
    config = load_preset(name)
    assert from_json(RunConfig, to_json(config), "here") == config


CLIPS = {
    "resnet": ModelConfig(network=ResNetConfig(compute_dtype="bfloat16"), epochs=3),
    "teacher": DENSENET,
    "plain": lstm(convolutions=(8, 16), time_strides=1, pooling="attention"),
    "four": lstm(
        {"teachers": ("teacher", "yamnet.toml", "a.npz"), "start": "plain", "learning_rate": 1e-3},
        convolutions=(8, 16),
        time_strides=1,
        pooling="attention",
        quant=QuantConfig.paper(4),
    ),
    "integer": lstm({"start": "other/plain", "ema_decay": 0.9}, quant=QuantConfig.integer(4)),
}
TIMED = {
    "teacher": CRNN,
    "student": crnn(
        {"quant": QuantConfig.per_channel(8)},
        teachers=("teacher", "a.npz"),
        **learns(update="mean_step", embeddings="teacher", fusion="best"),
    ),
    "lstm": lstm({"teachers": ("student",), **learns(update="ema_ste")}),
}
CONFIGS = {
    **{
        data.source: run(CLIPS, data=data, name="a.b", cache="c", distributed=True)
        for data in (
            ManifestData(root="r", events=("dog",), negatives=3, skip_bad=True, label_separator="|"),
            AudioSetData(),
            ESC50Data(),
            UrbanSound8KData(),
            DemoData(counts=(3, 2, 1), clip_seconds=2.0),
        )
    },
    "events": events(TIMED, augment=AugmentConfig(mixup=0.2, time_masks=1)),
    "recipe": run(recipe=ClipRecipe(patience=3, form="paper", positive_weight=2.0, schedule="constant")),
    "weights": run(recipe=ClipRecipe(positive_weight="positives/negatives")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_json_gives_an_equal_configuration_with_models_in_order(name):
    config = CONFIGS[name]
    again = from_json(RunConfig, to_json(config), "here")
    assert again == config
    assert list(again.models) == list(config.models)
    for model, other in zip(config.models.values(), again.models.values()):
        assert type(model.network) is type(other.network)
    assert type(again.data) is type(config.data) and type(again.recipe) is type(config.recipe)


def test_json_errors_name_file_and_field():
    with pytest.raises(InputError, match=r"run/config.json: recipe\.clips\.seed: .*got 'x'"):
        from_json(RunConfig, '{"recipe": {"task": "clips", "seed": "x"}}', "run/config.json")
    with pytest.raises(InputError, match=r"run/config.json: expected valid JSON: EOF"):
        from_json(RunConfig, "{", "run/config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"data": {"source": "fsd50k"}}',
            r"data\.source: expected one of 'manifest', 'audioset', 'esc50', .*got 'fsd50k'",
        ),
        (
            '{"data": {"source": "esc50", "manifest": "x"}}',
            r"data\.esc50\.manifest: unknown field",
        ),
        ('{"recipe": {"task": "steps"}}', r"recipe\.task: expected one of 'clips', 'events', got 'steps'"),
        ('{"recipe": {"task": "clips", "weak": 3}}', r"recipe\.clips\.weak: unknown field"),
        (
            '{"models": {"m": {"network": {"architecture": "gru"}}}}',
            r"models\.m\.network\.architecture: expected one of 'densenet', .*got 'gru'",
        ),
        (
            '{"models": {"m": {"network": {"architecture": "lstm", "dropout": 0.1}}}}',
            r"models\.m\.network\.lstm\.dropout: unknown field",
        ),
        ('{"models": {"m": {}}}', r"models\.m\.network: expected a value, found none"),
    ],
)
def test_the_tag_of_a_union_decides_which_settings_there_are(text, message):
    with pytest.raises(InputError, match=f"^here: {message}"):
        from_json(RunConfig, text, "here")


@pytest.mark.parametrize("number", ["1e400", "9" * 400, "1" + "0" * 4000])
def test_numbers_out_of_all_range_are_one_line(number):
    for field in ("sample_rate", "fmax", "hop_length"):
        with pytest.raises(InputError, match=r"^here: ") as error:
            from_json(FeatureConfig, f'{{"{field}": {number}}}', "here")
        assert len(str(error.value)) < 1000
    with pytest.raises(InputError, match=r"^here: clip_seconds: "):
        from_json(DemoData, f'{{"clip_seconds": {number}}}', "here")


def test_a_long_value_hides_no_other_fault():
    text = '{"batch_size": "' + "x" * 5000 + '", "seed": -1}'
    with pytest.raises(InputError, match=r"seed: .* got -1; batch_size: .* got 'x{199}$"):
        from_json(ClipRecipe, text, "here")


# Mistakes.


OTHER_PARAMETERS = [
    {"a": lstm(hidden_size=8), "b": lstm({"start": "a"})},
    {"a": lstm(pooling="mean"), "b": lstm({"start": "a"})},
    {"a": lstm(layers=2), "b": lstm({"start": "a"})},
    {"a": lstm(convolutions=(4,)), "b": lstm({"start": "a"})},
    {"a": lstm(convolutions=(4,)), "b": lstm({"start": "a"}, convolutions=(4,), time_strides=1)},
    {"a": DENSENET, "b": lstm({"start": "a"})},
]
COARSE = crnn({"pools": ((4, 2), *CRNNConfig().pools[1:])})
MISTAKES = [
    (lambda: ClipRecipe(batch_size=0), "batch_size: expected at least 1, got 0"),
    (lambda: ClipRecipe(batch_size=2.0), "batch_size: expected an integer, got 2.0"),
    (lambda: ClipRecipe(seed=True), "seed: expected an integer, got True"),
    (lambda: ClipRecipe(learning_rate="fast"), "learning_rate: expected a number, got 'fast'"),
    (lambda: ClipRecipe(sed=1), "sed: unknown field"),
    (lambda: EventRecipe(median=6), "median: expected an odd number of steps, got 6"),
    (lambda: QuantConfig(weights=17), "weights: bits: expected 2 to 16, or 32 for off, got 17"),
    (lambda: QuantConfig(output=1), "output: bits: expected 2 to 16, or 32 for off, got 1"),
    (lambda: QuantConfig(ranges="both"), "ranges: expected 'joint', 'split' or 'channel', got 'both'"),
    (lambda: QuantConfig(scheme="float"), "scheme: expected 'paper' or 'integer', got 'float'"),
    *(
        (
            lambda fields=fields: dataclasses.replace(QuantConfig.integer(4), **fields),
            "scheme: expected weights, activations, output of at most 8 bits and gates, cell of 16 for "
            f"integer, got {got}",
        )
        for fields, got in (
            ({"weights": 32, "activations": 32, "output": 32, "gates": 32, "cell": 32}, "32, 32, 32, 32, 32"),
            ({"weights": 9}, "9, 8, 8, 16, 16"),
            ({"activations": 12}, "4, 12, 8, 16, 16"),
            ({"output": 32}, "4, 8, 32, 16, 16"),
            ({"gates": 8}, "4, 8, 8, 8, 16"),
            ({"cell": 32}, "4, 8, 8, 16, 32"),
        )
    ),
    (
        lambda: dataclasses.replace(QuantConfig.integer(4), ranges="joint"),
        "ranges: expected channel in the integer-only scheme, got joint",
    ),
    (
        lambda: LSTMConfig(convolutions=(16, 0)),
        "convolutions.1: expected at least 1, got 0",
    ),
    (
        lambda: LSTMConfig(convolutions=(16, 32), time_strides=3),
        "time_strides: expected at most 2, the number of convolutions, got 3",
    ),
    (lambda: CRNNConfig(pools=((2, 2),)), "pools: expected one for each of 7 blocks, got 1"),
    (
        lambda: CRNNConfig(quant=QuantConfig.integer(8)),
        "quant.scheme: expected paper for a CRNN, got integer",
    ),
    (lambda: FeatureConfig(win_length=600), "win_length: expected at most n_fft = 512, got 600"),
    (
        lambda: FeatureConfig(sample_rate=8000),
        "fmin, fmax: expected fmin < fmax <= sample_rate / 2 = 4000 Hz, got 50 and 8000",
    ),
    (lambda: EventConfig(use="1/h"), "use: expected none (the detector has no operating points), got '1/h'"),
    (
        lambda: EventConfig(use="1/h", thresholds={"eer": {"dog": 0.5}, "f1": {"dog": 0.4}}),
        "use: expected an operating point (eer, f1), got '1/h'",
    ),
    (lambda: run(name="../up"), "name: expected letters, digits, _ . -, starting"),
    (lambda: run({"a/b": LSTM}), "models.a/b.[key]: expected letters, digits, _ . -, starting"),
    (
        lambda: run(data=ManifestData(clip_seconds=0.01)),
        "data.clip_seconds: expected at least one window (0.025 s), got 0.01",
    ),
    (
        lambda: run({"m": CRNN}),
        "models.m.network.architecture: expected densenet or resnet or lstm for recipe.task clips, got crnn",
    ),
    (
        lambda: events({"m": DENSENET}),
        "models.m.network.architecture: expected lstm or crnn for recipe.task events, got densenet",
    ),
    *(
        (
            lambda model=model: run({"s": model}),
            "models.s.network: expected at least one step, got none from 998 frames; use fewer convolutions",
        )
        for model in (lstm(convolutions=(1,) * 9, time_strides=9), lstm(convolutions=(1,) * 499))
    ),
    # Models start from earlier ones.
    *(
        (
            lambda models=models: run(models),
            f"models.b.start: expected an earlier model of the run ({names}), or RUN/MODEL of another run, "
            "got 'a'",
        )
        for models, names in (
            ({"b": lstm({"start": "a"})}, "no earlier model exists"),
            ({"b": lstm({"start": "a"}), "a": LSTM}, "no earlier model exists"),
            ({"c": LSTM, "b": lstm({"start": "a"}), "a": LSTM}, "c"),
        )
    ),
    *(
        (
            lambda models=models: run(models),
            "models.b.start: expected a model with the same parameter shapes, got 'a'",
        )
        for models in OTHER_PARAMETERS
    ),
    *(
        (
            lambda first=first, start=start: run(
                {"first": lstm(quant=first), "s": lstm({"start": start}, quant=QuantConfig.integer(8))}
            ),
            "models.s.start: expected a float model (required by the integer-only scheme), "
            f"got {repr(start) if start else 'none'}",
        )
        for first, start in ((QuantConfig(), None), (QuantConfig.paper(4), "first"))
    ),
    # Teachers have names.
    *(
        (
            lambda models=models: run(models),
            f"models.b.teachers: expected an earlier model of the run ({names}), or a .toml or .npz file, "
            f"got {got!r}",
        )
        for models, names, got in (
            ({"b": lstm({"teachers": ("a",)}), "a": LSTM}, "no earlier model exists", "a"),
            ({"a": LSTM, "b": lstm({"teachers": ("a", "b")})}, "a", "b"),
            ({"a": LSTM, "c": LSTM, "b": lstm({"teachers": ("a.wav",)})}, "a, c", "a.wav"),
        )
    ),
    (
        lambda: events({"b": crnn(teachers=("x.toml",))}),
        "models.b.teachers: expected earlier models or .npz files for timed events, got 'x.toml'",
    ),
    *(
        (
            lambda teacher=teacher: run(
                {"b": lstm({"teachers": (teacher,)})}, augment=AugmentConfig(mel_masks=1)
            ),
            "models.b.teachers: expected models of the run, because teacher logits must be computed on "
            f"the augmented clips, got {teacher!r}",
        )
        for teacher in ("x.toml", "x.npz")
    ),
    # Objectives belong to timed events.
    (
        lambda: run({"m": lstm(learns())}),
        "models.m.objective: expected no objective for recipe.task clips, found one",
    ),
    *(
        (
            lambda update=update: events({"m": crnn(**learns(update=update))}),
            f"models.m.objective.update: expected teachers for {update}, found none",
        )
        for update in ("mean_step", "ema_ste")
    ),
    (
        lambda: events({"m": crnn(**learns(embeddings="m"))}),
        "models.m.objective.embeddings: expected an earlier model of the run (no earlier model exists), or a "
        ".toml file, got 'm'",
    ),
    *(
        (
            lambda models=models: events(models),
            "models.b.objective.embeddings: expected CRNNs for student and embeddings, got ",
        )
        for models in (
            {"b": lstm(learns(embeddings="x.toml"))},
            {"a": LSTM, "b": crnn(**learns(embeddings="a"))},
            {"a": CRNN, "b": lstm(learns(embeddings="a"))},
        )
    ),
    (
        lambda: events({"a": COARSE, "b": crnn(**learns(embeddings="a"))}),
        "models.b.objective.embeddings: expected 249 steps per clip, got 'a' with ",
    ),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_a_wrong_setting_is_one_line(make, message):
    with pytest.raises(ValidationError) as caught:
        make()
    assert explain(caught.value).startswith(message)
    assert "\n" not in explain(caught.value)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantConfig().weights = 4


# What settings mean.


def test_the_paper_preset_has_the_sizes_of_the_paper():
    config = load_preset("paper")
    assert (config.frames, config.features.n_mels) == (998, 64)
    assert config.models["teacher"].network.blocks == (3, 6, 12, 8)
    assert config.models["distilled-4"] == ModelConfig(
        network=LSTMConfig(hidden_size=256, quant=QuantConfig(weights=4, activations=4, gates=4, cell=16)),
        teachers=("teacher",),
        start="distilled",
        learning_rate=1e-3,
    )
    assert (config.recipe.batch_size, config.model("plain").learning_rate) == (32, 3e-3)


def test_a_model_takes_what_it_lacks_from_the_recipe():
    recipe = ClipRecipe(learning_rate=0.1, epochs=7, ema_decay=0.5)
    config = run({"a": LSTM, "b": lstm({"learning_rate": 0.2, "epochs": 3, "ema_decay": 0.0})}, recipe=recipe)
    assert config.model("a") == lstm({"learning_rate": 0.1, "epochs": 7, "ema_decay": 0.5})
    assert config.model("b") == config.models["b"]
    timed = events({"a": CRNN, "b": crnn(**learns(label_weight=2.0))})
    assert timed.timed and not config.timed
    assert timed.model("a").objective == EventObjective()
    assert timed.model("b").objective == EventObjective(label_weight=2.0)
    assert timed.model("a").ema_decay == EventRecipe().ema_decay


def test_convolutions_may_leave_two_steps():
    # 998 frames halved, each time without the last or the last two: 498, 248, 123, 61, 30, 14, 6, 2.
    for model in (lstm(convolutions=(1,) * 8, time_strides=8), lstm(convolutions=(1,) * 498)):
        assert run({"s": model}).models["s"].network.steps(998) == 2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_models_start_from_another(bits):
    quant = QuantConfig.integer(bits, activations=bits)
    for start in ("first", "runs/other/student"):
        models = {"first": LSTM, "integer": lstm({"start": start}, quant=quant)}
        assert run(models).models["integer"].network.quant == QuantConfig(
            scheme="integer", weights=bits, activations=bits, gates=16, cell=16, output=8, ranges="channel"
        )


@pytest.mark.parametrize("seconds", [0.025, 0.035, 1.0, 10.0])
def test_frames_are_counted_without_padding(seconds):
    samples = round(seconds * 16000)
    whole = [start for start in range(0, samples, 160) if start + 400 <= samples]
    assert FeatureConfig().frames(samples) == len(whole)
    assert run(data=ManifestData(clip_seconds=seconds)).frames == len(whole)


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
    assert step_samples(FeatureConfig(), network) == (window, hop)
    assert step_clock(FeatureConfig(), network) == Clock(window / 2 / 16_000, hop / 16_000)


def test_kinds_of_networks_and_teachers():
    four, integer = (
        LSTMConfig().quantized(quant) for quant in (QuantConfig.paper(4), QuantConfig.integer(4))
    )
    assert [is_integer(network) for network in (integer, four, CRNNConfig())] == [True, False, False]
    assert [is_float(network) for network in (DenseNetConfig(), LSTMConfig(), four)] == [True, True, False]
    assert same_parameters(four, integer) and same_parameters(ResNetConfig(), ResNetConfig())
    assert same_parameters(CRNNConfig(), CRNNConfig(quant=QuantConfig.paper(4), dropout=0.0))
    assert not same_parameters(CRNNConfig(), CRNNConfig(bidirectional=False))
    assert not same_parameters(DenseNetConfig(), DenseNetConfig(growth=8))
    assert [is_file(teacher) for teacher in ("a.npz", "a.toml", "a", "a.wav")] == [True, True, False, False]


def test_data_settings_are_replaced_within_their_source():
    config = with_data(run(data=DemoData()), root="r", counts=(3, 2, 1))
    assert config.data == DemoData(root="r", counts=(3, 2, 1))
