"""Events that a model learns in seconds: tones in noise, and a run on them."""

from dataclasses import replace

import numpy as np
import soundfile

import qkd_jax.config as cfg
from qkd_jax.config import EventObjective, ModelConfig, QuantConfig

RATE, SECONDS = 8000, 1.0
PITCHES = {"low": 500.0, "high": 2000.0}
WINDOW = {"win_length": 256, "hop_length": 128, "n_fft": 256}
FEATURES = cfg.FeatureConfig(sample_rate=RATE, n_mels=8, fmin=100.0, fmax=4000.0, **WINDOW)
SMALL = {"channels": (4,), "pools": ((2, 4),), "hidden_size": 4, "layers": 1}
CRNN = cfg.CRNNConfig(trunk="se", bidirectional=False, dropout=0.1, **SMALL)
LSTM = cfg.LSTMConfig(convolutions=(4,), time_strides=1, hidden_size=4, pooling="attention")


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
    guided, ste = EventObjective(update="mean_step", embeddings="first"), EventObjective(update="ema_ste")
    fine_tuned = {"learning_rate": 0.01, "objective": guided}
    four = replace(CRNN, quant=QuantConfig.paper(4))
    lstm_8 = LSTM.quantized(QuantConfig.integer(8))
    both = ("first", "four")
    models = {
        "first": ModelConfig(network=CRNN, learning_rate=0.02),
        "four": ModelConfig(network=four, teachers=("first",), start="first", epochs=4, **fine_tuned),
        "lstm": ModelConfig(network=LSTM, teachers=both, learning_rate=0.02, objective=ste),
        "lstm-8": ModelConfig(network=lstm_8, start="lstm", learning_rate=0.005, epochs=4),
    }
    events, data = tuple(PITCHES), {"strong": 24, "weak": 24, "clip_seconds": SECONDS}
    sizes = {"strong": 8, "weak": 4, "unlabelled": 4}
    config = cfg.RunConfig(
        name="tones",
        runs=str(runs),
        features=FEATURES,
        data=cfg.DESEDData(root=str(root), events=events, **data),
        recipe=cfg.EventRecipe(epochs=12, ema_decay=0.8, ramp=0.1, median=3, **sizes),
        augment=cfg.AugmentConfig(mixup=0.2, mixup_share=0.3, time_shift=0.1),
        models=models,
    )
    return replace(config, **changes)
