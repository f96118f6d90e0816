"""Where recordings and labels come from: one class for each source."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field
from pydantic.dataclasses import dataclass

from qkd_jax.config.fields import STRICT, Count, Length


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Data:
    """What all sources share."""

    root: str | None = None
    """Folder of the recordings; the demo makes its own, in the run's folder."""
    events: tuple[str, ...] = ()
    """Events to detect; all labels of the source if none is given.  Other recordings are negatives."""
    negatives: Count | None = None
    """Recordings without any event to keep, drawn at random; all if none is given."""
    skip_bad: bool = False
    """Leave out and report recordings that can't be used, instead of stopping."""
    clip_seconds: Length = 10.0
    """Length of the models' input: longer recordings are cropped or windowed, shorter ones tiled."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ManifestData(_Data):
    """Your own recordings: a folder and a table of its files."""

    source: Literal["manifest"] = "manifest"
    manifest: str = "metadata.csv"
    """The table, relative to root: comma-separated, or tab-separated if it ends in .tsv."""
    filename_column: str = "filename"
    """Column with the path of a recording, relative to root."""
    labels_column: str = "labels"
    """Column with the labels of a recording; empty for none."""
    label_separator: Annotated[str, Field(min_length=1)] = ";"
    """What separates several labels."""
    split_column: str = "split"
    """Column that says train, valid or test; without it recordings are split 70/10/20."""
    group_column: str = "group"
    """Column of what must stay in one split (a recording session, a speaker); optional."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AudioSetData(_Data):
    """AudioSet (Gemmeke et al. 2017): published segments, recordings from any downloader."""

    source: Literal["audioset"] = "audioset"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ESC50Data(_Data):
    """ESC-50 (Piczak 2015) as published: folds 1 to 3 for training, 4 for validation, 5 for the test."""

    source: Literal["esc50"] = "esc50"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UrbanSound8KData(_Data):
    """UrbanSound8K (Salamon et al. 2014) as published: folds 1 to 8 for training, 9 and 10 held out."""

    source: Literal["urbansound8k"] = "urbansound8k"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DESEDData(_Data):
    """DESED (Turpault et al. 2019), or folders like it: recordings with timed labels, labels, or none."""

    source: Literal["desed"] = "desed"
    strong: Count | None = None
    """How many timed training recordings keep their times, the first by name; all if none is given."""
    weak: Count | None = None
    """How many of the next keep their labels without times; the others lose both."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DemoData(_Data):
    """Recordings that the demo synthesises itself."""

    source: Literal["demo"] = "demo"
    counts: tuple[Count, Count, Count] = (960, 240, 480)
    """Recordings to make for train, valid and test."""


AnyData = ManifestData | AudioSetData | ESC50Data | UrbanSound8KData | DESEDData | DemoData
DataConfig = Annotated[AnyData, Discriminator("source")]
