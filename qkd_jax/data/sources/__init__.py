"""Sources of clips: the function that reads each class of data settings (CONTRIBUTING.md: how to add one)."""

from collections.abc import Callable
from typing import Any

from qkd_jax.config import AudioSetData, DemoData, DESEDData, ESC50Data, ManifestData, UrbanSound8KData
from qkd_jax.data.clips import Clip
from qkd_jax.data.sources.audioset import read_audioset
from qkd_jax.data.sources.demo import read_demo
from qkd_jax.data.sources.desed import read_desed
from qkd_jax.data.sources.folds import read_esc50, read_urbansound8k
from qkd_jax.data.sources.manifest import read_manifest

SOURCES: dict[type, Callable[[Any], list[Clip]]] = {
    ManifestData: read_manifest,
    AudioSetData: read_audioset,
    ESC50Data: read_esc50,
    UrbanSound8KData: read_urbansound8k,
    DESEDData: read_desed,
    DemoData: read_demo,
}
