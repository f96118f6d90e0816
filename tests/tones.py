"""Events that a model learns in seconds: tones in noise, and a run on them."""

import dataclasses

import numpy as np
import soundfile

from qkd_jax.config import (
    AugmentConfig,
    CRNNConfig,
    DESEDData,
    EventObjective,
    EventRecipe,
    FeatureConfig,
    LSTMConfig,
    ModelConfig,
    QuantConfig,
    RunConfig,
)

RATE, SECONDS = 8000, 1.0
PITCHES = {"low": 500.0, "high": 2000.0}
FEATURES = FeatureConfig(
    sample_rate=RATE, win_length=256, hop_length=128, n_fft=256, n_mels=8, fmin=100.0, fmax=4000.0
)
CRNN = CRNNConfig(
    trunk="se", channels=(4,), pools=((2, 4),), hidden_size=4, layers=1, bidirectional=False, dropout=0.1
)
LSTM = LSTMConfig(convolutions=(4,), time_strides=1, hidden_size=4, pooling="attention")


def write_clip(path, rng):
    """Write a second of noise, with a tone in two of three clips; return the rows of its annotations."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    samples, rows = rng.normal(0, 0.01, len(time)), []
    if rng.random() < 2 / 3:
        event = rng.choice(list(PITCHES))
        onset, length = rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.5)
        on = (time >= onset) & (time < onset + length)
        samples += on * 0.2 * np.sin(2 * np.pi * PITCHES[event] * time)
        rows = [f"{path.name}\t{onset:.4f}\t{onset + length:.4f}\t{event}"]
    soundfile.write(path, samples, RATE)
    return rows


def write_tones(root):
    """Write recordings of three splits to `root`, with onsets and offsets."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 72, "valid": 24, "test": 24}.items():
        folder = root / split
        (folder / "audio").mkdir(parents=True)
        names = [f"{split}{index:03}.wav" for index in range(count)]
        rows = [row for name in names for row in write_clip(folder / "audio" / name, rng)]
        strong = ["filename\tonset\toffset\tevent_label", *rows]
        (folder / "strong.tsv").write_text("\n".join(strong) + "\n")
        durations = ["filename\tduration", *(f"{name}\t{SECONDS}" for name in names)]
        (folder / "durations.tsv").write_text("\n".join(durations) + "\n")


def config_of(root, runs, **changes):
    """A run of four models, with all kinds of teachers, starts and updates."""
    guided = EventObjective(update="mean_step", embeddings="first")
    models = {
        "first": ModelConfig(network=CRNN, learning_rate=0.02),
        "four": ModelConfig(
            network=dataclasses.replace(CRNN, quant=QuantConfig.paper(4)),
            teachers=("first",),
            start="first",
            learning_rate=0.01,
            objective=guided,
        ),
        "lstm": ModelConfig(
            network=LSTM,
            teachers=("first", "four"),
            learning_rate=0.02,
            objective=EventObjective(update="ema_ste"),
        ),
        "lstm-8": ModelConfig(
            network=LSTM.quantized(QuantConfig.integer(8)), start="lstm", learning_rate=0.005
        ),
    }
    config = RunConfig(
        name="tones",
        runs=str(runs),
        features=FEATURES,
        data=DESEDData(root=str(root), strong=24, weak=24, clip_seconds=SECONDS, events=tuple(PITCHES)),
        recipe=EventRecipe(strong=8, weak=4, unlabelled=4, epochs=12, ema_decay=0.8, ramp=0.1, median=3),
        augment=AugmentConfig(mixup=0.2, mixup_share=0.3, time_shift=0.1),
        models=models,
    )
    return dataclasses.replace(config, **changes)
