"""Sources of clips: the function that reads each class of data settings (CONTRIBUTING.md: how to add one)."""

from collections.abc import Callable
from typing import Any

from qkd_jax.config import (
    AudacityData,
    AudioSetData,
    DemoData,
    DESEDData,
    ESC50Data,
    FoldersData,
    FSD50KData,
    ManifestData,
    RavenData,
    TimedData,
    UrbanSound8KData,
)
from qkd_jax.data.clips import Clip
from qkd_jax.data.sources.audioset import read_audioset
from qkd_jax.data.sources.demo import read_demo
from qkd_jax.data.sources.desed import read_desed
from qkd_jax.data.sources.folders import read_folders
from qkd_jax.data.sources.folds import read_esc50, read_urbansound8k
from qkd_jax.data.sources.fsd50k import read_fsd50k
from qkd_jax.data.sources.manifest import read_manifest
from qkd_jax.data.sources.timed import read_audacity, read_raven, read_timed

SOURCES: dict[type, Callable[[Any], list[Clip]]] = {
    ManifestData: read_manifest,
    FoldersData: read_folders,
    TimedData: read_timed,
    AudacityData: read_audacity,
    RavenData: read_raven,
    AudioSetData: read_audioset,
    ESC50Data: read_esc50,
    UrbanSound8KData: read_urbansound8k,
    FSD50KData: read_fsd50k,
    DESEDData: read_desed,
    DemoData: read_demo,
}
