"""From settings to clips, whatever the source, and from clips to the data set of a split."""

from collections.abc import Sequence

from qkd_jax.config import Config, DataConfig, FeatureConfig, InputError
from qkd_jax.data.clips import Clip, divide
from qkd_jax.data.demo import make_demo
from qkd_jax.data.features import Dataset, load_features
from qkd_jax.data.manifest import read_manifest


def read_clips(data: DataConfig, features: FeatureConfig) -> list[Clip]:
    """All clips of `data`, each with a split; the demo is made first if it isn't there."""
    if data.source == "demo":
        make_demo(data, features.sample_rate)
    clips = read_manifest(data)
    return divide(clips) if clips[0].split is None else clips


def load_split(config: Config, clips: Sequence[Clip], split: str) -> Dataset:
    """The features and targets of the clips of one split.

    Raises InputError if there are none, or if an event has no positive or no negative clip in
    it, for then it can be neither learned nor measured.
    """
    manifest = f"{config.data.root}/{config.data.manifest}"
    chosen = [clip for clip in clips if clip.split == split]
    if not chosen:
        raise InputError(f"{manifest}: expected clips of split {split!r}, found none")
    for event in config.data.events:
        positives = sum(event in clip.labels for clip in chosen)
        if not 0 < positives < len(chosen):
            raise InputError(
                f"{manifest}: event {event!r}: expected positive and negative clips in split {split!r}, "
                f"found {positives} positive of {len(chosen)}"
            )
    return load_features(chosen, config.data.events, config.features, config.frames)
