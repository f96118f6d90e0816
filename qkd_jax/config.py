"""Every setting of qkd_jax: frozen keyword-only dataclasses, checked when made.

Errors name the field, what was expected and what was found.
"""

import dataclasses
import functools
import unicodedata
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

T = TypeVar("T")

_LONGEST, _FOUND, _SAID = 1000, 200, 10
"""Letters of a line, and of a value in it; faults of which it speaks."""


class InputError(ValueError):
    """What a person gave is wrong: says which file or field, what was expected, what was found.

    Each of `lines` becomes one that can be printed, of at most 1000 letters, whatever a hostile file says.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(map(_shown, lines)))


def _shown(line: str) -> str:
    # Where it is stands at the beginning, what is wrong at the end.
    half = _LONGEST // 2
    return printable(line if len(line) <= _LONGEST else f"{line[: half - 1]}…{line[-half:]}")


_BREAKING = {"Cc", "Cs", "Zl", "Zp"}
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """`text` with ? for what would break a line, or a terminal."""
    return "".join(
        "?" if unicodedata.category(letter) in _BREAKING or letter in _TURNING else letter for letter in text
    )


def first_line(error: Exception) -> str:
    """What a library says of a fault, or the name of its class if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


MIN_BITS, MAX_BITS, OFF = 2, 16, 32


def check_bits(bits: int) -> int:
    """Return `bits` if a quantizer has it: 2 to 16, or 32 for off; else raise ValueError."""
    if not (MIN_BITS <= bits <= MAX_BITS or bits == OFF):
        raise ValueError(f"bits: expected {MIN_BITS} to {MAX_BITS}, or {OFF} for off, got {bits}")
    return bits


Bits = Annotated[int, AfterValidator(check_bits)]
Count = Annotated[int, Field(ge=1)]
TRAINED = "trained"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[int, Field(ge=1, le=1 << 20)]
Length = Annotated[float, Field(gt=0, le=24 * 3600)]
RuntimeName = Literal["numpy", "jax", "onnx", "litert", "c"]
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FeatureConfig:
    """Log-mel energies; the names are librosa's.  The default is the paper's: 998 x 64 for 10 s."""

    sample_rate: Rate = 16_000
    """Samples a second; recordings at other rates are resampled."""
    win_length: Count = 400
    """Samples in a window (25 ms)."""
    hop_length: Rate = 160
    """Samples between windows (10 ms)."""
    n_fft: Annotated[int, Field(ge=1, le=1 << 15)] = 512
    """Points of the FFT; windows are zero-padded to it."""
    n_mels: Annotated[int, Field(ge=1, le=1 << 10)] = 64
    """Mel bands."""
    fmin: Annotated[float, Field(ge=0)] = 50.0
    """Lower edge of the lowest band, Hz."""
    fmax: Positive = 8000.0
    """Upper edge of the highest band, Hz."""
    floor: Positive = 1e-6
    """Added to the energy before the logarithm."""

    def __post_init__(self) -> None:
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length: expected at most n_fft = {self.n_fft}, got {self.win_length}")
        if not self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(
                f"fmin, fmax: expected fmin < fmax <= sample_rate / 2 = {self.sample_rate / 2:g} Hz, "
                f"got {self.fmin:g} and {self.fmax:g}"
            )

    def frames(self, samples: int) -> int:
        """Frames in `samples` samples: none padded, none partial."""
        return max(0, 1 + (samples - self.win_length) // self.hop_length)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """Where recordings and labels come from."""

    source: str = "manifest"
    """The layout under root: manifest (a table of files), audioset, esc50, urbansound8k, desed, or demo."""
    root: str | None = None
    """Folder of the recordings; the demo makes its own, in the run's folder."""
    manifest: str = "metadata.csv"
    """The manifest, relative to root: comma-separated, or tab-separated if it ends in .tsv."""
    filename_column: str = "filename"
    """Column with a recording's path, relative to root."""
    labels_column: str = "labels"
    """Column with a recording's labels; empty for none."""
    label_separator: Annotated[str, Field(min_length=1)] = ";"
    """What separates several labels."""
    split_column: str = "split"
    """Column that says train, valid or test; without it clips are split 70/10/20."""
    group_column: str = "group"
    """Column of what a split must not part (a recording session, a speaker); optional."""
    events: tuple[str, ...] = ()
    """Events to detect; all labels of the source if none is given.  Other labels are negatives."""
    negatives: Count | None = None
    """Clips without any event to keep, drawn at random; all if none is given."""
    strong: Count | None = None
    """Of desed's training recordings that have onsets and offsets, how many keep them, the first by name."""
    weak: Count | None = None
    """How many of the next keep their labels alone, the others neither; without both all keep all."""
    skip_bad: bool = False
    """Leave out recordings that can't be used, and report them, instead of stopping."""
    clip_seconds: Length = 10.0
    """Length the models see: longer clips are cropped or windowed, shorter ones tiled."""
    demo_clips: tuple[Count, Count, Count] = (960, 240, 480)
    """Recordings that the demo makes for train, valid and test."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TeacherConfig:
    """A DenseNet (Huang et al. 2017) or ResNet (He et al. 2016); the default is the paper's DenseNet-63."""

    architecture: Literal["densenet", "resnet"] = "densenet"
    """DenseNet with bottlenecks, or ResNet with bottlenecks."""
    blocks: Annotated[tuple[Count, ...], Field(min_length=1)] = (3, 6, 12, 8)
    """Layers of each block: DenseNet-63 has 3 6 12 8, DenseNet-121 6 12 24 16, ResNet-50 3 4 6 3."""
    growth: Count = 32
    """Channels that a DenseNet's layer adds."""
    stem: Count = 64
    """Channels of the first convolution; a ResNet's width, doubled from block to block."""
    bottleneck: Count = 4
    """Channels within a DenseNet's layer, in units of growth, or out of a ResNet's, in units of its width."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the convolutions; parameters and statistics stay float32."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class QuantConfig:
    """Bit widths of a quantized student (eq. 6): 2 to 16, or 32 for off."""

    scheme: Literal["paper", "integer"] = "paper"
    """Ranges of each vector at each step, or static units for integer arithmetic on any device."""

    weights: Bits = 32
    """Those of the LSTM, one range per gate matrix, and of convolutions, one per kernel; but see `ranges`."""
    activations: Bits = 32
    """The inputs h and x of the LSTM's product, and of convolutions; one range per vector, or frame."""
    gates: Bits = 32
    """f, i, o, the candidate, and tanh of the cell."""
    cell: Bits = 32
    """The cell state where it is used; the paper keeps it at 16, as few bits make training diverge."""
    output: Bits = 32
    """Weights and inputs of a student's output layers, one range each; the paper keeps them in float."""
    ranges: Literal["joint", "split", "channel"] = "joint"
    """One range for [h, x] and for [W_h, W_x]; one each; or so, but weights by unit or channel."""

    @classmethod
    def paper(cls, bits: int) -> "QuantConfig":
        """The paper's choice: everything at `bits`, the cell at 16."""
        return cls(weights=bits, activations=bits, gates=bits, cell=16)

    @classmethod
    def per_channel(cls, bits: int) -> "QuantConfig":
        """Everything at `bits`, the output layers too, the cell at 16; `ranges` channel."""
        return cls(weights=bits, activations=bits, gates=bits, cell=16, output=bits, ranges="channel")

    @classmethod
    def integer(cls, weights: int, activations: int = 8) -> "QuantConfig":
        """The integer scheme: gates and cell at 16 bits, the output layers at 8."""
        return cls(
            scheme="integer",
            weights=weights,
            activations=activations,
            gates=16,
            cell=16,
            output=8,
            ranges="channel",
        )

    def __post_init__(self) -> None:
        few = max(self.weights, self.activations, self.output) <= 8
        if self.scheme == "integer" and self.ranges != "channel":
            raise ValueError(f"ranges: integer has those of channels, got {self.ranges}")
        if self.scheme == "integer" and not (few and (self.gates, self.cell) == (16, 16)):
            raise ValueError(
                "scheme: integer takes weights, activations, output of at most 8 bits, gates and cell of 16, "
                f"got {self.weights}, {self.activations}, {self.output}, {self.gates}, {self.cell}"
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StudentConfig:
    """An LSTM student; the default is the paper's: one layer, 256 units, last state."""

    convolutions: tuple[Count, ...] = ()
    """Channels of 3 x 3 convolutions in front of the LSTM; each halves the mel bands, rounded up."""
    halvings: Annotated[int, Field(ge=0)] = 0
    """How many of the convolutions, from the first, halve the frames too."""
    layers: Count = 1
    """Layers of the LSTM."""
    units: Count = 256
    """Hidden units of a layer."""
    pooling: Literal["last", "mean", "attention"] = "last"
    """What is read: the last hidden state, the mean over time, or each, weighed by attention."""
    distill: bool = True
    """Learn from the teacher and the labels (eq. 2), or from the labels alone (eq. 1)."""
    learning_rate: Positive = 3e-3
    """Adam's learning rate, at the start."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay a step of the moving average of weights and statistics, which is then kept; 0 for off."""
    quant: QuantConfig = QuantConfig()
    """Bit widths, in training and after it."""
    start: str | None = None
    """Whose best state it begins with: an earlier student of the run, or RUN/STUDENT of another run."""

    def __post_init__(self) -> None:
        if self.halvings > len(self.convolutions):
            raise ValueError(
                f"halvings: expected at most one for each of {len(self.convolutions)} convolutions, "
                f"got {self.halvings}"
            )

    def stride(self, index: int) -> int:
        """Frames from step to step of convolution `index`."""
        return 2 if index < self.halvings else 1

    def fits(self, other: "StudentConfig") -> bool:
        """Whether both have the same parameters."""
        shape = attrgetter("convolutions", "halvings", "layers", "units", "pooling")
        return shape(self) == shape(other)

    @property
    def span(self) -> tuple[int, int]:
        """Frames that a step of the LSTM reads, by 3-tap convolutions that pad none, and to the next."""
        frames, hop = 1, 1
        for index in reversed(range(len(self.convolutions))):
            frames, hop = (frames - 1) * self.stride(index) + 3, hop * self.stride(index)
        return frames, hop

    def steps(self, frames: int) -> int:
        """Steps of the LSTM over `frames` frames."""
        read, hop = self.span
        return max((frames - read) // hop + 1, 0)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AugmentConfig:
    """What happens to the features of a training batch; off by default, as in the paper."""

    time_shift: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest shift of a clip in time, around its end, as a share of its length."""
    time_masks: Annotated[int, Field(ge=0)] = 0
    """Spans of frames to blank (SpecAugment, Park et al. 2019)."""
    time_mask_frames: Count = 50
    """Frames of the longest of them."""
    mel_masks: Annotated[int, Field(ge=0)] = 0
    """Spans of mel bands to blank."""
    mel_mask_bands: Count = 8
    """Bands of the widest of them."""
    mixup: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Mix each clip with another by a share from Beta(mixup, mixup) (Zhang et al. 2018); 0 for off."""
    mixup_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Probability that a batch is mixed at all."""

    @property
    def on(self) -> bool:
        """Whether anything happens."""
        return bool(self.time_shift or self.time_masks or self.mel_masks or self.mixup)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TaggerConfig:
    """A pretrained tagger that teaches, as a TOML file says it; paths, from that file, may lead anywhere."""

    file: str
    """A model in .onnx or .tflite of a float32 waveform, [samples] or [1, samples]."""
    classes: str
    """Names of its classes in their order: a name a line, or in a .csv the column `display_name`."""
    events: Annotated[dict[str, Annotated[tuple[str, ...], Field(min_length=1)]], Field(min_length=1)]
    """For each event that it knows, the classes that say so."""
    output: Literal["probabilities", "logits"] = "probabilities"
    """What it gives for each class."""
    sample_rate: Rate = 16_000
    """Samples a second that it wants; recordings at other rates are resampled."""
    window_seconds: Length | None = None
    """What it hears at a time; by default what it is made for, or if it takes any length, all."""
    hop_seconds: Length | None = None
    """From window to window; half a window by default."""
    layer: str | None = None
    """An inner tensor whose values are embeddings, by its name, or a part of it that no other name has
    (LiteRT only)."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DistillConfig:
    """The distillation objective (eq. 1 and 2) and who teaches."""

    teachers: Annotated[tuple[str, ...], Field(min_length=1)] = (TRAINED,)
    """Whose logits are averaged: `trained` for the run's own, logits in an .npz, a tagger in a .toml."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the teacher's term against the labels'."""
    temperature: Positive = 2.0
    """Softness T of the teacher's logits, and in Hinton's form of the student's beside them."""
    form: Literal["hinton", "paper"] = "hinton"
    """Both sides tempered and the soft term unweighted, or eq. 2 to the letter."""
    positive_weight: Literal["negatives/positives", "positives/negatives"] | Positive = "negatives/positives"
    """w_c of eq. 1, per event from the training set's counts, or one number."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainConfig:
    """Optimization: Adam on batches that are a pure function of (seed, step)."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of initial parameters, order and crops."""
    batch_size: Count = 32
    """Clips a step."""
    teacher_learning_rate: Positive = 1e-3
    """Adam's learning rate for the teacher, at the start."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """The learning rate stays, or falls to zero along half a cosine over all epochs."""
    clip_norm: Positive = 5.0
    """Largest global norm of a gradient."""
    teacher_epochs: Count = 12
    """Passes over the training set for the teacher."""
    student_epochs: Count = 12
    """Passes over the training set for each student."""
    patience: Count | None = None
    """Stop a model after so many epochs in a row that were not its best on validation; a falling
    learning rate has then not fallen to the end."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """One run: a teacher and the students it teaches, under `runs`/`name`."""

    name: Name = "run"
    """Folder of the run within `runs`."""
    runs: str = "runs"
    """Folder of all runs."""
    cache: str | None = None
    """Folder where computed features are kept for all runs; `runs`/.features if none is given."""
    distributed: bool = False
    """For train.py: with other processes, here or elsewhere, each on a part of a batch (docs/scale.md)."""
    features: FeatureConfig = FeatureConfig()
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    students: dict[Name, StudentConfig] = Field(default_factory=dict)
    augment: AugmentConfig = AugmentConfig()
    distill: DistillConfig = DistillConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        for taken in {"teacher", "data"} & self.students.keys():
            raise ValueError(f"students: {taken!r} is a folder of every run, choose another name")
        foreign = [name for name in self.distill.teachers if name != TRAINED]
        if self.augment.on and foreign:
            raise ValueError(
                f"distill.teachers: expected {TRAINED!r} alone, as a teacher must see the augmented clip, "
                f"got {foreign[0]!r}"
            )
        if self.frames < 1:
            raise ValueError(f"data.clip_seconds: {self.data.clip_seconds:g} s is shorter than one window")
        earlier: dict[str, StudentConfig] = {}
        for name, student in self.students.items():
            own = student.start is not None and "/" not in student.start
            if own and not (student.start in earlier and student.fits(earlier[student.start])):
                raise ValueError(
                    f"students.{name}.start: expected an earlier student with its convolutions, halvings, "
                    f"layers, units and pooling, or RUN/STUDENT, got {student.start!r}"
                )
            begun = earlier.get(student.start or "")
            floating = student.start is not None and (begun is None or begun.quant == QuantConfig())
            if student.quant.scheme == "integer" and not floating:
                raise ValueError(
                    f"students.{name}.start: expected a float student, from which the integer scheme goes "
                    f"on, got {student.start!r}"
                )
            earlier[name] = student
            if student.steps(self.frames) < 1:
                raise ValueError(
                    f"students.{name}.convolutions: expected fewer, or fewer halvings: nothing is left of "
                    f"{self.frames} frames"
                )

    @property
    def networks(self) -> "dict[str, TeacherConfig | StudentConfig]":
        """What each model is, in the order in which they train: the run's own teacher, and the students."""
        own = {"teacher": self.teacher} if TRAINED in self.distill.teachers else {}
        return {**own, **self.students}

    def start(self, name: str) -> str | None:
        """Whose best state model `name` begins with."""
        return self.students[name].start if name in self.students else None

    @property
    def frames(self) -> int:
        """Frames of the clips that the models see."""
        return self.features.frames(round(self.data.clip_seconds * self.features.sample_rate))


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvalConfig:
    """What to score a run on."""

    split: Literal["train", "valid", "test"] = "test"
    """Which clips."""
    json: str | None = None
    """A file to write the figures to, to the last digit."""
    data: DataConfig = DataConfig()
    """Other recordings; the run's own by default.  Events and clip length stay the run's."""


Probability = Annotated[float, Field(gt=0, lt=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DetectionConfig:
    """How a detector's readings, a probability of each event at each step, become events."""

    thresholds: dict[str, dict[str, Probability]] = Field(default_factory=dict)
    """For each operating point (`eer`, `1/h` for a false alarm an hour) where each event begins."""
    use: str | None = None
    """The operating point in use; without one every event begins at 0.5."""
    end: Annotated[float, Field(gt=0, le=1)] = 0.5
    """An event ends where its probability falls below so much of its threshold."""
    median_seconds: Seconds = 0.0
    """Each probability is first replaced by the median of so long around it; 0 for off."""
    gap_seconds: Seconds = 0.0
    """Events of one class that are nearer than this are one."""
    shortest_seconds: Seconds = 0.0
    """Events that are shorter, once gaps are closed, are none."""
    history_seconds: Positive | None = None
    """The longest that a reading looks back, half of it the shortest; by default to the very start."""

    def __post_init__(self) -> None:
        if self.use is not None and self.use not in self.thresholds:
            raise ValueError(f"use: expected an operating point ({self.points}), got {self.use!r}")

    @property
    def points(self) -> str:
        """The names of the operating points."""
        return ", ".join(self.thresholds) or "there are none"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DetectConfig:
    """How to detect events, and how to say them."""

    format: Literal["table", "json", "audacity", "desed"] = "table"
    """A table to read, an object a line, labels for Audacity, or DESED's tab-separated table."""
    false_alarms: str | None = None
    """Take the operating point of so many false alarms an hour: 10, or 10/h."""
    threshold: Probability | None = None
    """Begin every event here, at no operating point."""
    runtime: RuntimeName = "numpy"
    """What computes: each but NumPy the model that export.py would write for it (C needs a compiler)."""
    state: str | None = None
    """Go on from the state in this file, and keep it there when the stream, - or mic, ends or is stopped."""
    detection: DetectionConfig = DetectionConfig()
    """The model's own by default."""

    def chosen(self, events: tuple[str, ...]) -> DetectionConfig:
        """`detection` with the operating point, or the threshold of all `events`, that is asked for.

        Raises InputError if there is no such point, or if both are asked for.
        """
        if self.false_alarms and self.threshold:
            raise InputError("false_alarms, threshold: expected one of them, got both")
        if self.threshold:
            given = {"given": dict.fromkeys(events, self.threshold)}
            return dataclasses.replace(self.detection, thresholds=given, use="given")
        if not self.false_alarms:
            return self.detection
        point = f"{self.false_alarms.removesuffix('/h')}/h"
        if point not in self.detection.thresholds:
            raise InputError(
                f"false_alarms: expected an operating point ({self.detection.points}), got {point}; N/h "
                "takes an Nth of an hour, and more, of validation recordings without the event"
            )
        return dataclasses.replace(self.detection, use=point)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ExportConfig:
    """Where a student goes."""

    format: Literal["safetensors", "onnx", "litert", "c"] = "safetensors"
    """What detect.py and NumPy read; a model for ONNX Runtime, or for LiteRT; a header for a C compiler."""
    out: str | None = None
    """The file; by default it lies in the student's folder and has its name."""


def with_data(config: T, **fields: Any) -> T:
    """`config`, of a run, with some of its `data` settings changed."""
    run: Any = config
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **fields))


def to_json(config: Any) -> str:
    """`config` as JSON, whole: `from_json` gives an equal one."""
    return _adapter(type(config)).dump_json(config, indent=2).decode()


_adapter: Any = functools.cache(TypeAdapter)


def from_json(kind: type[T], text: str, where: str) -> T:
    """The `kind` that `text` holds; raises InputError that names `where` and the field."""
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """One line: field, what was expected, what was found."""

    def line(item: Any) -> str:
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        found = "" if item["type"] in ("value_error", "missing") else f", got {item['input']!r:.{_FOUND}}"
        return f"{place}: {message}{found}" if place else message + found

    return "; ".join(line(item) for item in error.errors()[:_SAID])
