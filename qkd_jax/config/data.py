"""Sources of recordings and labels, a class per source."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field
from pydantic.dataclasses import dataclass

from qkd_jax.config.fields import STRICT, Count, Length


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Data:
    """Settings common to all sources."""

    root: str | None = None
    """Folder of the recordings; the demo generates its own in the run folder."""
    events: tuple[str, ...] = ()
    """Events to detect; default: all labels.  Recordings without any of these events are negatives."""
    negatives: Count | None = None
    """Number of negatives to keep, drawn at random; default: all."""
    skip_bad: bool = False
    """Skip and report unusable recordings instead of failing."""
    clip_seconds: Length = 10.0
    """Clip length in seconds; longer recordings are cropped (training) or windowed (evaluation), shorter ones
    repeated."""
    channel: Count | None = None
    """Channel to read, counted from 1; default: the mean of all."""
    unlabelled: str | None = None
    """Folder of further recordings, for training, that only the teachers label."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FoldData(_Data):
    """Settings common to sources that may be divided into folds."""

    folds: tuple[Count, ...] = ()
    """Folds to test on, one run each (cross-validation); with one, the fold before it is for validation."""

    def __post_init__(self) -> None:
        if len(set(self.folds)) < len(self.folds):
            raise ValueError(f"folds: expected each fold once, got {' '.join(map(str, self.folds))}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ManifestData(FoldData):
    """Your own recordings: a folder and a table of its files."""

    source: Literal["manifest"] = "manifest"
    manifest: str = "metadata.csv"
    """The table, relative to root."""
    filename_column: str = "filename"
    """Column with the path of a recording, relative to root."""
    labels_column: str = "labels"
    """Column with the labels of a recording; empty for none."""
    label_separator: Annotated[str, Field(min_length=1)] = ";"
    """Separator between labels."""
    split_column: str = "split"
    """Column with the split (train, valid or test); if absent, 70/10/20."""
    fold_column: str = "fold"
    """Column with the fold, a number, for --data.folds."""
    group_column: str = "group"
    """Column with the group (recording session, speaker); a group stays in one split."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FoldersData(_Data):
    """Your own recordings: a folder per class, within train, valid and test or without these."""

    source: Literal["folders"] = "folders"
    negative_folders: tuple[str, ...] = (
        *("_background_noise_", "background", "background_noise", "negative", "negatives", "no_event"),
        *("noise", "none", "nothing", "other", "others", "silence", "unknown"),
    )
    """Folders of negatives, in upper or lower case; a folder that is among the events is a class."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CutData(_Data):
    """Settings common to sources of timed labels, whose long recordings are cut into clips."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TimedData(CutData):
    """Your own recordings: a folder and a table of events with onsets and offsets."""

    source: Literal["timed"] = "timed"
    table: str = "annotations.csv"
    """The table, relative to root."""
    filename_column: str = "filename"
    """Column with the path of a recording, relative to root; alone in its row, it has no events."""
    onset_column: str = "onset"
    """Column with the start of an event, in seconds."""
    offset_column: str = "offset"
    """Column with the end of an event, in seconds."""
    label_column: str = "label"
    """Column with the event."""
    split_column: str = "split"
    """Column with the recording's split (train, valid or test); optional."""
    group_column: str = "group"
    """Column with the recording's group (recording session, speaker); a group stays in one split."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AudacityData(CutData):
    """Your own recordings, each with an Audacity label track beside it: x.txt for x.wav."""

    source: Literal["audacity"] = "audacity"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RavenData(CutData):
    """Your own recordings with Raven selection tables: x.Table.1.selections.txt for x.wav."""

    source: Literal["raven"] = "raven"
    label_column: str | None = None
    """Column with the event; default: the first of Annotation, Species and Common Name."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AudioSetData(_Data):
    """AudioSet (Gemmeke et al. 2017): published segments, recordings from any downloader."""

    source: Literal["audioset"] = "audioset"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ESC50Data(FoldData):
    """ESC-50 (Piczak 2015) as published: folds 1 to 3 for training, 4 for validation, 5 for the test."""

    source: Literal["esc50"] = "esc50"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UrbanSound8KData(FoldData):
    """UrbanSound8K (Salamon et al. 2014) as published: folds 1 to 8 for training, 9 and 10 held out."""

    source: Literal["urbansound8k"] = "urbansound8k"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FSD50KData(_Data):
    """FSD50K (Fonseca et al. 2022) as published: its training, validation and evaluation sets."""

    source: Literal["fsd50k"] = "fsd50k"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DESEDData(_Data):
    """DESED (Turpault et al. 2019), or folders like it: strongly labelled, weakly labelled or unlabelled."""

    source: Literal["desed"] = "desed"
    strong: Count | None = None
    """Number of strongly labelled training clips to keep, in name order; default: all."""
    weak: Count | None = None
    """Number of following clips reduced to weak labels; the rest become unlabelled."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DemoData(_Data):
    """Synthetic demo recordings."""

    source: Literal["demo"] = "demo"
    counts: tuple[Count, Count, Count] = (960, 240, 480)
    """Number of recordings in train, valid and test."""


AnyData = (
    ManifestData
    | FoldersData
    | TimedData
    | AudacityData
    | RavenData
    | AudioSetData
    | ESC50Data
    | UrbanSound8KData
    | FSD50KData
    | DESEDData
    | DemoData
)
DataConfig = Annotated[AnyData, Discriminator("source")]
