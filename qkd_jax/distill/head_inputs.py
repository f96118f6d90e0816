"""What a head reads of a clip: for each window, zero-shot logits, and projections of taggers' outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkd_jax.data.arrays import read_npz
from qkd_jax.distill.tagger import Tagger
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

_MOST_ROWS, _MOST_PROJECTIONS = 20_000, 100
_SHRINKAGE = 3000  # rows; our choice; others do as well on validation (docs/results/few.md)


class Projection(NamedTuple):
    """Principal components of one kind of outputs: (x - `mean` [size]) · `matrix` [size, components]."""

    mean: np.ndarray
    matrix: np.ndarray


def fit_projection(rows: np.ndarray, components: int | None, sampled_from: int = 0) -> Projection:
    """The first `components` principal components of `rows` [rows, size]; with None, the values themselves.

    Each is divided by its standard deviation, to whose square the mean variance of a value is added
    1 + 3000 / rows times: few recordings say nothing about components that hardly vary.  `sampled_from` is
    the number of rows that count here, if `rows` are a sample of them.

    >>> fit_projection(np.tile([[1.0, 5.0], [3.0, 5.0]], (750, 1)), 1).matrix.round(3).ravel()
    array([0.632, 0.   ], dtype=float32)
    """
    shrinkage, rows = 1 + _SHRINKAGE / max(sampled_from, len(rows)), rows.astype(np.float64)
    mean = rows.mean(axis=0)
    if components is None:
        variance = rows.var(axis=0)
        matrix = np.diag(1 / np.sqrt(variance + shrinkage * variance.mean() + 1e-9))
        return Projection(mean.astype(np.float32), matrix.astype(np.float32))
    centred = rows - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    order = np.argsort(-values)[: min(components, len(rows), len(values))]
    deviation = np.sqrt(np.maximum(values[order], 0) + shrinkage * max(values.mean(), 0) + 1e-9)
    # The sign of an eigenvector is arbitrary, and differs between machines.
    signs = np.sign(vectors[np.abs(vectors[:, order]).argmax(axis=0), order])
    return Projection(mean.astype(np.float32), (vectors[:, order] * signs / deviation).astype(np.float32))


class HeadInputs(Sequence[np.ndarray]):
    """The inputs of a head by clip: float32 [windows, events + components].

    The windows are those of the tagger with the smallest hop; each has the outputs of the others' windows
    whose centres are nearest.  `projections` are those of each tagger's logits, and of its layer, if any.
    """

    def __init__(
        self, taggers: Sequence[Tagger], events: Sequence[str], projections: Sequence[Projection] = ()
    ):
        self.taggers, self.events, self.projections = taggers, events, projections
        self.clock = min(taggers, key=lambda tagger: tagger.hop or np.inf)

    @property
    def identity(self) -> str:
        """What tells these taggers from others."""
        return "\n".join(tagger.identity for tagger in self.taggers)

    def __len__(self) -> int:
        return len(self.clock.clips)

    def __getitem__(self, clip):
        clip = int(clip)
        zero_shot, *parts = self.outputs(clip)
        with np.errstate(invalid="ignore"):  # OpenBLAS sometimes raises this flag for finite numbers
            projected = [(part - mean) @ matrix for part, (mean, matrix) in zip(parts, self.projections)]
        return np.concatenate([zero_shot, *projected], axis=1, dtype=np.float32)

    def outputs(self, clip: int) -> list[np.ndarray]:
        """Zero-shot logits [windows, events], 0 for events without classes; logits and layer by tagger."""
        own = self.clock.outputs(clip)
        centres = self.clock.centres(clip, len(own))
        zero_shot, parts = [], []
        for tagger in self.taggers:
            rows = tagger.outputs(clip)
            theirs = tagger.centres(clip, len(rows))
            rows = rows[np.abs(centres[:, None] - theirs).argmin(axis=1)]
            logits = tagger.logits(rows)
            if tagger.config.classes is not None:
                zero_shot.append(tagger.event_logits(rows, self.events))
            parts += [part for part in (logits, rows[:, tagger.classes :]) if part.shape[1]]
        return [self._mean(zero_shot, len(own)), *parts]

    def _mean(self, logits: list[np.ndarray], windows: int) -> np.ndarray:
        """The mean over the taggers that know an event, 0 if none does."""
        if not logits:
            return np.zeros((windows, len(self.events)), np.float32)
        known = ~np.isnan(logits)
        return np.where(known, logits, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)

    def known(self) -> np.ndarray:
        """Whether some tagger has classes of an event, bool [events]."""
        return np.array(
            [any(event in tagger.config.events for tagger in self.taggers) for event in self.events]
        )


def fit_projections(inputs: HeadInputs, clips: Sequence[int], components: int | None) -> list[Projection]:
    """The projections of taggers' outputs on `clips`: on at most 20,000 of their windows, drawn at random."""
    ends = np.cumsum([len(inputs.clock.outputs(clip)) for clip in clips])
    total = int(ends[-1])
    drawn = np.sort(np.random.default_rng(0).choice(total, min(total, _MOST_ROWS), replace=False))
    by_clip = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    rows: list[list[np.ndarray]] = []
    for clip, end, chosen in zip(clips, ends, by_clip):
        if len(chosen):
            outputs = inputs.outputs(clip)[1:]
            rows.append([part[chosen - end] for part in outputs])  # counted from the last window
    return [fit_projection(np.concatenate(part), components, total) for part in zip(*rows)]


def write_projections(path: Path, projections: Sequence[Projection], identity: str) -> None:
    """Write `projections` of the taggers of this `identity` to the file that `read_projections` reads."""
    arrays = {
        f"{name}{place}": array
        for place, each in enumerate(projections)
        for name, array in each._asdict().items()
    }
    size = sum(each.matrix.shape[1] for each in projections)
    with whole_file(path) as file:
        np.savez(file, **arrays, size=size, count=len(projections), identity=np.array(identity))


def read_projections(path: Path, identity: str) -> list[Projection]:
    """The projections in the file at `path`; raises InputError, also if they are those of other taggers."""
    what = "projections of taggers' outputs (delete the file to compute them again)"
    count, written = read_npz(path, what, count=("iu", 0), identity=("U", 0))
    if str(written) != identity:
        raise InputError(
            f"{path}: expected the taggers that the run began with, found others: a description or a model "
            "has changed; use another --name"
        )
    kinds = {"mean": ("f", 1), "matrix": ("f", 2)}
    found = [
        Projection(*read_npz(path, what, **{f"{name}{place}": kind for name, kind in kinds.items()}))
        for place in range(min(int(count), _MOST_PROJECTIONS))
    ]
    if any(len(each.mean) != len(each.matrix) or not np.isfinite(each.matrix).all() for each in found):
        raise InputError(f"{path}: expected {what}, found other numbers")
    return found
