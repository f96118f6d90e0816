"""The recipe for clip models: loading, batches, update and validation."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qkd_jax.audio.augment import augment
from qkd_jax.config import AugmentConfig, ClipRecipe, RunConfig
from qkd_jax.data.batches import Batch, clip_batches, from_step
from qkd_jax.data.clips import SPLITS, Clip
from qkd_jax.data.dataset import Dataset, load_split
from qkd_jax.distill.objectives import (
    class_loss,
    distillation_loss,
    event_cross_entropy,
    positive_weights,
    weighted_bce,
)
from qkd_jax.evaluation.metrics import evaluate, single_label
from qkd_jax.evaluation.prediction import clip_logits, make_predict
from qkd_jax.models.common import Logits
from qkd_jax.run_folder.run import Run
from qkd_jax.run_folder.state import make_optimizer
from qkd_jax.system.devices import spread
from qkd_jax.training.classes import read_classes, write_classes
from qkd_jax.training.heads import load_heads
from qkd_jax.training.step import Loss, TrainStep, make_train_step
from qkd_jax.training.teachers import cache_file_logits, covered_events, teacher_logits
from qkd_jax.training.views import views_of

_LEAST = 1e-4  # of a posterior: at 0, its logit would be minus infinity


def load(run: Run) -> dict[str, Dataset]:
    """The splits; features, and logits of teachers from files, are computed unless they are cached.

    With `recipe.final`, the validation clips are in the training split too.  Faults in any of them, also in
    the test split, are raised here as InputError, before anything trains.
    """
    clips = run.clips
    if run.config.final:
        more = [dataclasses.replace(clip, split="train") for clip in clips if clip.split == "valid"]
        clips += more
        note = "are trained on too, so figures on them are too good"
        print(f"final: the {len(more)} validation recordings {note}", flush=True)
    data = {
        split: load_split(run.config, clips, split, run.cache, unlabelled=split == "train")
        for split in SPLITS
    }
    load_heads(run, data)
    if run.config.makes_views:
        clips = [*clips, *views_of(run, data["train"])]
        data["train"] = load_split(run.config, clips, "train", run.cache, unlabelled=True)
        load_heads(run, {"train": data["train"]})
    cache_file_logits(run, data["train"])
    write_classes(run, data["train"])
    return data


def check_clips(config: RunConfig, clips: Sequence[Clip]) -> None:
    """Any clips will do: with fewer than a batch, a batch holds some of them several times."""


def batches(run: Run, name: str, data: dict[str, Dataset]) -> tuple[int, Callable[[int], Iterator[Batch]]]:
    """Updates per epoch, and the function update -> the batches from that update on.

    Each batch is a pure function of the seed and the update.  An epoch is a pass over the labelled clips, for
    models with teachers over the unlabelled ones too, or several passes, so that epochs have
    `recipe.min_updates` in all.
    """
    recipe, train, config = _recipe(run), data["train"], run.config
    has_teachers = bool(config.models[name].teachers)
    rows = clip_batches(
        train,
        teacher_logits(run, name, train)[0] if has_teachers else None,
        frames=config.frames,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        unlabelled=has_teachers,
        classes=read_classes(run, name, len(train.names)),
    )

    @jax.jit
    def augmented(update: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), update)
        return augment_clips(key, batch, config.augment, config.features.floor)

    epochs = config.model(name).epochs
    assert epochs is not None
    in_a_pass = _count(run, name, train) // recipe.batch_size
    return max(in_a_pass, -(-recipe.min_updates // epochs), 1), lambda first: (
        augmented(update, spread(batch)) if config.augment.on else spread(batch)
        for update, batch in enumerate(from_step(rows, first), first)
    )


def augment_clips(
    key: jax.Array, batch: Mapping[str, jax.Array], config: AugmentConfig, floor: float
) -> dict[str, jax.Array]:
    """A batch of `clip_batches`, augmented: mixing mixes labels and the teachers' posteriors.

    A clip that is mixed with an unlabelled one isn't labelled either.
    """
    targets = {"labels": batch["labels"]}
    if "teacher_logits" in batch:
        targets["teacher"] = jax.nn.sigmoid(batch["teacher_logits"])
    if "classes" in batch:
        targets["classes"] = batch["classes"]
    if "labelled" in batch:
        targets["unlabelled"] = 1 - batch["labelled"]
    features, targets = augment(key, batch["features"], targets, config, floor)
    result = {"features": features, "labels": targets["labels"]}
    if "teacher" in targets:
        result["teacher_logits"] = jax.scipy.special.logit(jnp.clip(targets["teacher"], _LEAST, 1 - _LEAST))
    if "classes" in targets:
        result["classes"] = targets["classes"]
    if "unlabelled" in targets:
        result["labelled"] = (targets["unlabelled"] < _LEAST).astype(features.dtype)
    return result


def train_step(run: Run, name: str, data: dict[str, Dataset], updates: int) -> TrainStep:
    """The jitted update (state, batch) -> (state, metrics), one of `updates`."""
    recipe, config, train = _recipe(run), run.config.model(name), data["train"]
    assert config.learning_rate is not None and config.ema_decay is not None
    known = covered_events(run, name, train) if config.teachers else None
    loss, method = loss_on(train.targets[train.labelled], recipe, known), "__call__"
    if (classes := read_classes(run, name, len(train.names))) is not None:
        prior = classes.mean(axis=0, dtype=np.float32)
        loss, method = with_classes(loss, recipe.class_weight, jnp.asarray(prior)), "step_logits"
    optimizer = make_optimizer(recipe, config.learning_rate, updates)
    return make_train_step(run.model(name), optimizer, loss, ema_decay=config.ema_decay, method=method)


def validate(run: Run, name: str, data: dict[str, Dataset]) -> Callable[[Any], dict[str, float]]:
    """The function variables -> AUC and EER on the validation split, averaged over events."""
    predict, valid, size = make_predict(run.model(name)), data["valid"], _recipe(run).batch_size

    def figures(variables: Any) -> dict[str, float]:
        logits = clip_logits(predict, variables, valid, run.config.frames, size)
        return evaluate(valid.targets, logits, valid.events)["average"]

    return figures


def loss_on(targets: np.ndarray, recipe: ClipRecipe, known: np.ndarray | None) -> Loss:
    """`make_loss` with w_c of the labels `targets` [clips, events], and for single-label ones with softmax.

    Teachers have a part in the softmax if they cover all events.
    """
    loss = make_loss(recipe, jnp.asarray(positive_weights(targets, recipe.positive_weight)), known)
    if not (recipe.softmax_weight and single_label(targets)):
        return loss
    return with_softmax(loss, recipe, soft=known is not None and bool(known.all()))


def make_loss(recipe: ClipRecipe, weight: jnp.ndarray, known: np.ndarray | None) -> Loss:
    """Eq. 2 for the events that a teacher covers, eq. 1 for the others, and for all without a teacher.

    `weight` [events] weights positive labels (w_c); `known` is bool [events], or None without a teacher.
    """
    if known is None:
        return lambda logits, batch: weighted_bce(logits, batch["labels"], weight)
    return lambda logits, batch: distillation_loss(
        logits,
        batch["labels"],
        batch["teacher_logits"],
        alpha=jnp.where(known, recipe.alpha, 0.0),
        temperature=recipe.temperature,
        positive_weight=weight,
        form=recipe.form,
        labelled=batch.get("labelled"),
    )


def with_softmax(loss: Loss, recipe: ClipRecipe, *, soft: bool) -> Loss:
    """`loss`, plus the softmax cross-entropy of labels and, if `soft`, of teachers."""

    def both(logits: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
        more = event_cross_entropy(
            logits,
            batch["labels"],
            batch["teacher_logits"] if soft else None,
            alpha=recipe.alpha,
            temperature=recipe.temperature,
            labelled=batch.get("labelled"),
        )
        return loss(logits, batch) + recipe.softmax_weight * more

    return both


def with_classes(loss: Loss, weight: float, prior: jax.Array) -> Loss:
    """`loss`, plus `weight` times the loss of a tagger's classes; `prior` are their mean posteriors.

    The student's logits of classes are relative to the prior: most classes are rare.
    """
    offset = jax.scipy.special.logit(prior)[None]

    def both(logits: Logits, batch: Mapping[str, Any]) -> jax.Array:
        assert logits.classes is not None
        return loss(logits.clip, batch) + weight * class_loss(logits.classes + offset, batch["classes"])

    return both


def _count(run: Run, name: str, train: Dataset) -> int:
    """The number of clips that model `name` trains on."""
    return len(train.names) if run.config.models[name].teachers else len(train.labelled)


def _recipe(run: Run) -> ClipRecipe:
    assert isinstance(run.config.recipe, ClipRecipe)
    return run.config.recipe
