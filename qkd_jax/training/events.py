"""The recipe for timed events: loading, batches, update and validation."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from qkd_jax.audio.augment import augment_frames
from qkd_jax.config import EventRecipe, RunConfig, StepNetwork
from qkd_jax.data.batches import Batch, from_step, timed_batches
from qkd_jax.data.clips import SPLITS, Clip
from qkd_jax.data.dataset import Dataset, load_split
from qkd_jax.errors import InputError
from qkd_jax.evaluation.prediction import make_predict_steps, step_logits
from qkd_jax.evaluation.timed_events import load_sed_scores_eval, timed_metrics
from qkd_jax.run_folder.run import Run
from qkd_jax.system.devices import spread
from qkd_jax.training.heads import load_heads
from qkd_jax.training.step import TrainStep, make_timed_step
from qkd_jax.training.teachers import (
    check_step_teachers,
    embedding_targets,
    fused_posteriors,
    write_embeddings,
)


def load(run: Run) -> dict[str, Dataset]:
    """The splits; features are computed unless they are cached.

    Faults in them, in teachers from files and in taggers raise InputError here, before anything trains.
    """
    config, clips = run.config, run.clips
    data = {split: load_split(config, clips, split, run.cache) for split in SPLITS}
    train = data["train"]
    check_clips(config, clips)
    check_longest(config, max(map(len, train.features)))
    load_sed_scores_eval()
    load_heads(run, data)
    for name in config.models:
        check_step_teachers(run, name, train)
        embeddings = run.objective(name).embeddings
        if embeddings is not None and embeddings.endswith(".toml"):
            write_embeddings(run, name, train)
    return data


def check_clips(config: RunConfig, clips: Sequence[Clip]) -> None:
    """Raise InputError unless the strongly labelled training clips fill their part of a batch."""
    assert isinstance(config.recipe, EventRecipe)
    strong = sum(clip.split == "train" and clip.kind == "strong" for clip in clips)
    if (size := config.recipe.strong) > strong:
        raise InputError(
            f"--recipe.strong: expected at most {strong} (strongly labelled training clips), got {size}"
        )


def check_longest(config: RunConfig, longest: int) -> None:
    """Raise InputError if the longest training clip has more frames than models with teachers read."""
    for name, model in config.models.items():
        network: Any = model.network
        guided = model.teachers or (model.objective and model.objective.embeddings)
        if guided and longest - config.frames >= network.stride:
            raise InputError(
                f"models.{name}: expected training recordings of at most --data.clip-seconds "
                f"{config.data.clip_seconds:g} for a model with teachers, found one of {longest} frames "
                f"against {config.frames}"
            )


def batches(run: Run, name: str, data: dict[str, Dataset]) -> tuple[int, Callable[[int], Iterator[Batch]]]:
    """Updates per epoch, and the function update -> the batches from that update on.

    Each batch is a pure function of the seed and the update.  An epoch is a pass over the strong clips.
    """
    config, recipe, train = run.config, _recipe(run), data["train"]
    write_embeddings(run, name, train)
    sizes, stride = (recipe.strong, recipe.weak, recipe.unlabelled), _network(run, name).stride
    rows = timed_batches(
        train,
        config.features,
        frames=config.frames,
        sizes=sizes,
        seed=recipe.seed,
        stride=stride,
        teacher=fused_posteriors(run, name, data),
        embeddings=embedding_targets(run, name, len(train.names)),
    )
    epoch = len(train.indices("strong")) // recipe.strong
    if not config.augment.on:
        return epoch, lambda first: map(spread, from_step(rows, first))

    @jax.jit
    def augmented(update: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), update)
        return augment_frames(
            key, batch, config=config.augment, stride=stride, sizes=sizes, floor=config.features.floor
        )

    return epoch, lambda first: (
        augmented(update, spread(batch)) for update, batch in enumerate(from_step(rows, first), first)
    )


def train_step(run: Run, name: str, data: dict[str, Dataset], updates: int) -> TrainStep:
    """The jitted update (state, batch) -> (state, metrics), one of `updates`."""
    return make_timed_step(run.model(name), run.config.model(name), _recipe(run), updates)


def validate(run: Run, name: str, data: dict[str, Dataset]) -> Callable[[Any], dict[str, float]]:
    """The function variables -> PSDS1, PSDS2, their mean `psds`, AUC and EER on the validation split."""
    predict, network, valid = make_predict_steps(run.model(name)), _network(run, name), data["valid"]

    def figures(variables: Any) -> dict[str, float]:
        logits = step_logits(predict, variables, valid, run.config.frames, network)
        table, _ = timed_metrics(run.config, network, valid, *logits, f1=False)
        average = table["average"]
        both = (average["psds1"] + average["psds2"]) / 2
        return {"psds": both, **{key: average[key] for key in ("psds1", "psds2", "auc", "eer")}}

    return figures


def _network(run: Run, name: str) -> StepNetwork:
    network: Any = run.config.models[name].network
    return network


def _recipe(run: Run) -> EventRecipe:
    assert isinstance(run.config.recipe, EventRecipe)
    return run.config.recipe
