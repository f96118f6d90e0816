"""Heads: fitted to labels on the outputs of taggers, by a path of penalties, and what they teach.

A head is fitted by L-BFGS.  The loss of a weakly labelled clip is that of multiple-instance learning: with
window posteriors p, the clip holds an event with probability 1 - ∏(1 - p) ("noisy-or", Maron & Lozano-Pérez
1998).  That of a strongly labelled clip is the sum over its windows.
"""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qkd_jax.config import HeadConfig, StepNetwork, step_clock
from qkd_jax.data.dataset import Dataset
from qkd_jax.distill.head_inputs import HeadInputs, fit_projections, read_projections, write_projections
from qkd_jax.distill.tagger import files_of, read_tagger, run_tagger
from qkd_jax.evaluation.metrics import evaluate, kept_epoch
from qkd_jax.models.build import Model
from qkd_jax.run_folder.log import read_epochs
from qkd_jax.run_folder.run import Run
from qkd_jax.run_folder.state import TrainState
from qkd_jax.system.devices import lacking
from qkd_jax.system.progress import track
from qkd_jax.training.loop import fit

_WINDOWS = 32  # that a head reads at once; any number gives the same logits
_ITERATIONS = 60
_FOLDS = 5
_MOST_CLIPS = 20_000
_NAMED = 8  # events
_OVERLAP = 0.3  # seconds of an event, or half of it, that make a window positive
_PRIOR = 100  # our choice; others do as well on validation (docs/results/few.md)


class Rows(NamedTuple):
    """Windows of several clips, one after the other.

    `inputs` [rows, size]; `clip` [rows], the clip of each; `labels` [clips, events]; `weights` [clips];
    `strong` [clips], 1 where windows have labels of their own, `positive` and `negative` [rows, events].
    """

    inputs: Any
    clip: Any
    labels: Any
    weights: Any
    strong: Any
    positive: Any
    negative: Any


def load_heads(run: Run, data: dict[str, Dataset]) -> None:
    """Run the taggers of all heads over all clips and cache their outputs.  Raises InputError for a fault."""
    for name in run.config.heads:
        for split, dataset in data.items():
            inputs, path = _inputs(run, name, dataset), run.inputs_file(name)
            if split == "train" and lacking(path):
                network, clips = run.config.heads[name], [int(clip) for clip in dataset.labelled]
                # Without a fit, any projection will do.
                some, components = (clips, network.components) if network.fit else (clips[:1], 1)
                write_projections(path, fit_projections(inputs, some, components), inputs.identity)


def read_by(run: Run, name: str, dataset: Dataset) -> Dataset:
    """`dataset` as model `name` reads it: for a head, the features are `HeadInputs`."""
    if name not in run.config.heads:
        return dataset
    inputs = _inputs(run, name, dataset)
    projections = read_projections(run.inputs_file(name), inputs.identity)
    return dataclasses.replace(dataset, features=HeadInputs(inputs.taggers, inputs.events, projections))


def head_logits(run: Run, name: str, inputs: Dataset, variables: Any) -> np.ndarray:
    """A head's logits on clips that are `read_by` it, float32 [clips, events]: maxima over windows."""
    return _of_clips(_by_clip(run.model(name), variables, inputs.features))


def train_head(run: Run, name: str, data: dict[str, Dataset]) -> None:
    """Fit head `name`, or resume: an epoch of its log is one penalty, of which validation chooses the best.

    An event with n positive clips has the zero-shot logits with gain 100 / (100 + n), so that with few
    recordings the tagger's own classes dominate.  With `recipe.final`, the penalty is chosen without the
    validation clips in the training split, and a last epoch fits to all clips.
    """
    network, model = run.config.heads[name], run.model(name)
    train, valid = (read_by(run, name, data[split]) for split in ("train", "valid"))
    fitted = _fitted(network, train)
    rows = _rows(run, train) if fitted.any() else None
    first = run.new_state(name)
    gain = _PRIOR / (_PRIOR + train.targets[_fitted_on(train)].sum(axis=0))
    chosen = {"events": jnp.asarray(fitted), "gain": jnp.asarray(gain, jnp.float32), "penalty": jnp.zeros(())}
    penalties = network.penalties if network.fit else (np.inf,)
    final, epochs = run.config.final, len(penalties) + run.config.final
    held_out = np.isin([train.names[clip] for clip in _fitted_on(train)], valid.names)
    tried = [record["valid"] for record in read_epochs(run.model_folder(name))]

    def train_step(state: TrainState, penalty: float) -> tuple[TrainState, dict[str, Any]]:
        variables = {"fitted": state.variables["fitted"] | {"penalty": jnp.float32(penalty)}}
        params, loss = first.params, jnp.zeros(())
        if rows is not None:
            all_clips = not final or int(state.step) == len(penalties)
            weights = rows.weights if all_clips else rows.weights * ~held_out
            params, loss = _fit(model, params, variables, rows._replace(weights=weights))
        return TrainState(state.step + 1, params, None, variables, state.opt_state), {"loss": loss}

    def validate(variables: Any) -> dict[str, float]:
        logits = head_logits(run, name, valid, variables)
        figures: dict[str, float] = evaluate(valid.targets, logits, valid.events)["average"]
        tried.append(figures)
        return figures

    def announce(_: int) -> None:
        print(f"{name}: {_origins(train, fitted)}", flush=True)

    def penalties_from(step: int) -> Iterator[float]:
        del tried[step:]  # a killed run may have logged an epoch that it did not save
        yield from penalties[step:]
        if final:
            yield penalties[kept_epoch([{"valid": figures} for figures in tried[: len(penalties)]])]

    fit(
        train_step,
        dataclasses.replace(first, variables={"fitted": chosen}),
        penalties_from,
        validate,
        folder=run.model_folder(name),
        epochs=epochs,
        epoch_steps=1,
        keep_last=final,
        announce=announce,
    )


def cross_fitted(run: Run, name: str, train: Dataset) -> list[np.ndarray]:
    """What head `name` teaches: logits of the windows of each training clip, float32 [windows, events].

    Those of a labelled clip, or of a view of it, are from a head that was fitted without its fold of groups:
    its own would repeat its labels.  Where all positives of an event are in one fold, they are from the head
    itself.  Penalties and maxima over windows distort posteriors, so logits get a slope and an offset per
    event, by logistic regression of the labels on the maxima.
    """
    train, model = read_by(run, name, train), run.model(name)
    variables = run.best_variables(name)
    logits = _by_clip(model, variables, train.features)
    if variables["fitted"]["events"].any():
        folds, rows = folds_of(train, run.config.recipe.seed), _rows(run, train)
        start = run.new_state(name).params
        fold_of = {train.clips[clip].group: fold for clip, fold in zip(train.labelled, folds)}
        positive = train.targets[train.labelled] == 1
        spread = np.array([len(set(folds[column])) > 1 for column in positive.T])
        of_rows = folds[np.searchsorted(train.labelled, _fitted_on(train))]
        different = np.unique(folds).tolist() if spread.any() else []
        for fold in track(different, len(different), f"{name}: cross-fitting"):
            weights = rows.weights * (of_rows != fold)
            params, _ = _fit(model, start, {"fitted": variables["fitted"]}, rows._replace(weights=weights))
            for place, clip in enumerate(train.clips):
                if fold_of.get(clip.group) == fold:
                    others = _window_logits(model, variables | {"params": params}, train.features[place])
                    logits[place] = np.where(spread, others, logits[place])
    slope, offset = calibration(_of_clips(logits)[train.labelled], train.targets[train.labelled])
    return [slope * each + offset for each in logits]


def calibration(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset [events] of the logistic regression of `targets` on `logits`, both [clips, events].

    A slope that isn't positive would turn the order around: then 1 and 0.
    """
    from sklearn.linear_model import LogisticRegression

    fits = (LogisticRegression().fit(z[:, None], y) for z, y in zip(logits.T, targets.T))
    pairs = np.array([(each.coef_[0, 0], each.intercept_[0]) for each in fits], np.float32)
    pairs[pairs[:, 0] <= 0] = 1, 0
    return pairs[:, 0], pairs[:, 1]


def on_steps(
    run: Run, network: StepNetwork, inputs: Dataset, clip: int, logits: np.ndarray, frames: int | None = None
) -> np.ndarray:
    """The logits [windows, events] of a clip at its steps, [steps, events]: those of the nearest window.

    With `frames`, the steps are those of the clip's features repeated to so many frames.
    """
    assert isinstance(inputs.features, HeadInputs)
    centres = inputs.features.clock.centres(clip, len(logits))
    config = run.config.features
    first, step = step_clock(config, network)
    own = config.frames(round(inputs.seconds[clip] * config.sample_rate))
    times = first + step * np.arange(max(network.steps(frames or own), 1))
    # Features of shorter clips are repeated, frame by frame.
    half, period = config.win_length / 2 / config.sample_rate, own * config.hop_length / config.sample_rate
    times = half + (times - half) % period
    return logits[np.abs(times[:, None] - centres).argmin(axis=1)]


def head_step_logits(
    run: Run, name: str, inputs: Dataset, variables: Any
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A head's logits as `step_logits` gives them, on clips that are `read_by` it."""
    network, windows = run.config.heads[name], _by_clip(run.model(name), variables, inputs.features)
    steps = []
    if run.config.timed:
        steps = [on_steps(run, network, inputs, clip, each) for clip, each in enumerate(windows)]
    return _of_clips(windows), steps


def bytes_of_taggers(network: HeadConfig) -> int:
    """The bytes of the models of a head's taggers."""
    descriptions = [Path(tagger) for tagger in network.taggers]
    models = (files_of(path.parent / read_tagger(path).file) for path in descriptions)
    return sum(file.stat().st_size for files in models for file in files)


def _inputs(run: Run, name: str, dataset: Dataset) -> HeadInputs:
    """The outputs of head `name`'s taggers on the clips of `dataset`, not yet projected."""
    channel, paths = run.config.data.channel, map(Path, run.config.heads[name].taggers)
    taggers = [run_tagger(path, dataset.clips, run.cache, channel) for path in paths]
    return HeadInputs(taggers, dataset.events)


def _fitted(network: HeadConfig, train: Dataset) -> np.ndarray:
    """The events to fit, bool [events]: those with enough positive clips, or without classes of a tagger."""
    assert isinstance(train.features, HeadInputs)
    enough = train.targets[_fitted_on(train)].sum(axis=0) >= network.fewest
    return (enough | ~train.features.known()) & network.fit


def _origins(train: Dataset, fitted: np.ndarray) -> str:
    """What the logits of which events come from."""
    assert isinstance(train.features, HeadInputs)
    known = train.features.known()
    origins = {
        "fitted to labels": fitted,
        "only the tagger's own classes": ~fitted & known,
        "nothing, since the tagger has no classes for it": ~fitted & ~known,
    }
    events = np.array(train.events)

    def names(some: np.ndarray) -> str:
        more = some.sum() - _NAMED
        return ", ".join(events[some][:_NAMED]) + (f" and {more} more" if more > 0 else "")

    return "; ".join(f"{names(some)}: {what}" for what, some in origins.items() if some.any())


def _fitted_on(train: Dataset) -> np.ndarray:
    """The clips that heads are fitted on."""
    return train.labelled[:: -(-len(train.labelled) // _MOST_CLIPS)]


def _rows(run: Run, train: Dataset) -> Rows:
    """The windows of the clips to fit on."""
    assert isinstance(train.features, HeadInputs)
    clock = train.features.clock
    chosen = [int(clip) for clip in _fitted_on(train)]
    inputs = [train.features[clip] for clip in chosen]
    counts = [len(each) for each in inputs]
    positive, negative, strong = [], [], []
    for clip, count in zip(chosen, counts):
        annotations = train.clips[clip].annotations
        strong.append(annotations is not None and bool(clock.hop))
        overlap = np.zeros((count, len(train.events)), np.float32)
        enough = np.zeros_like(overlap)
        centres = clock.centres(clip, count)
        for event, onset, offset in (annotations or ()) if strong[-1] else ():
            if event in train.events:
                ends = np.minimum(centres + clock.window / 2, offset)
                seconds = ends - np.maximum(centres - clock.window / 2, onset)
                place, least = train.events.index(event), min(_OVERLAP, (offset - onset) / 2)
                overlap[:, place] = np.maximum(overlap[:, place], seconds > 0)
                enough[:, place] = np.maximum(enough[:, place], (seconds > 0) & (seconds >= least))
        positive.append(enough)
        negative.append(1 - overlap)
    return Rows(
        np.concatenate(inputs),
        np.repeat(np.arange(len(chosen)), counts),
        train.targets[chosen],
        np.ones(len(chosen), np.float32),
        np.array(strong, np.float32),
        np.concatenate(positive),
        np.concatenate(negative),
    )


def folds_of(train: Dataset, seed: int) -> np.ndarray:
    """The fold of each labelled training clip: groups stay together, and positives are spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [train.clips[clip].group for clip in train.labelled]
    kinds = [str(row) for row in train.targets[train.labelled].astype(int).tolist()]
    count = min(_FOLDS, len(set(groups)))
    if max(Counter(kinds).values()) < count:  # no kind has a clip for each fold
        kinds = [""] * len(kinds)
    folds = np.zeros(len(groups), int)
    if count > 1:
        split = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        with warnings.catch_warnings():  # of kinds with fewer members than folds
            warnings.simplefilter("ignore", UserWarning)
            for fold, (_, held_out) in enumerate(split.split(groups, kinds, groups)):
                folds[held_out] = fold
    return folds


def _by_clip(model: Model, variables: Any, features: Iterable[np.ndarray]) -> list[np.ndarray]:
    """A head's logits of the windows of each clip, [windows, events]."""
    return [_window_logits(model, variables, inputs) for inputs in features]


def _of_clips(logits: list[np.ndarray]) -> np.ndarray:
    """The logits of clips, [clips, events]: the maxima of those of their windows."""
    return np.stack([each.max(axis=0) for each in logits])


def _window_logits(model: Model, variables: Any, inputs: np.ndarray) -> np.ndarray:
    """A head's logits of a clip's windows, [windows, events]."""
    padded = np.pad(inputs, ((0, -len(inputs) % _WINDOWS), (0, 0)))  # so that few shapes are compiled
    return np.asarray(_step_logits(model, variables, padded[None])[0, : len(inputs)])


@partial(jax.jit, static_argnames="model")
def _step_logits(model: Model, variables: Any, inputs: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, inputs, method="step_logits")
    return logits.steps


@partial(jax.jit, static_argnames="model")
def _fit(model: Model, params: Any, variables: Any, rows: Rows) -> tuple[Any, jax.Array]:
    """`params` after L-BFGS from there, and the loss."""
    value_and_gradient = optax.value_and_grad_from_state(loss := partial(_loss, model, variables, rows))
    optimizer = optax.lbfgs()

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        params, state = carry
        value, gradient = value_and_gradient(params, state=state)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(params, updates), state), value

    (params, _), values = jax.lax.scan(step, (params, optimizer.init(params)), None, length=_ITERATIONS)
    return params, values[-1]


def _loss(model: Model, variables: Any, rows: Rows, params: Any) -> jax.Array:
    result: Any = model.apply({"params": params, **variables}, rows.inputs[None], method="step_logits")
    logits = result.steps[0]
    by_clip = partial(jax.ops.segment_sum, segment_ids=rows.clip, num_segments=len(rows.labels))
    absent = by_clip(jax.nn.softplus(logits))  # -log ∏(1 - p)
    present = -jnp.log(-jnp.expm1(-jnp.maximum(absent, 1e-30)))
    weak = jnp.where(rows.labels == 1, present, absent)
    strong = by_clip(rows.positive * jax.nn.softplus(-logits) + rows.negative * jax.nn.softplus(logits))
    of_clips = jnp.where(jnp.broadcast_to(rows.strong[:, None], weak.shape) == 1, strong, weak)
    of_clips = jnp.where(jnp.broadcast_to(variables["fitted"]["events"], weak.shape), of_clips, 0).sum(axis=1)
    squares = sum(jnp.square(leaf).sum() for name, leaf in params.items() if name.endswith("w"))
    data = (rows.weights * of_clips).sum() / rows.weights.sum()
    return data + variables["fitted"]["penalty"] / 2 * squares
