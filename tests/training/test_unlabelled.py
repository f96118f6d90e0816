"""Recordings without labels: listed, mixed into batches, and trained by the soft loss alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.config import AugmentConfig, ClipRecipe, LSTMConfig, ManifestData, ModelConfig, with_data
from qkd_jax.data.batches import clip_batches
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import UNLABELLED, with_splits
from qkd_jax.data.dataset import Dataset, load_split
from qkd_jax.data.logits import read_logits
from qkd_jax.distill.objectives import positive_weights
from qkd_jax.run_folder.folder import load_run, open_run
from qkd_jax.run_folder.log import read_epochs
from qkd_jax.run_folder.run import Run
from qkd_jax.training import clips as recipe
from qkd_jax.training.clips import make_loss
from qkd_jax.training.run import check_config, train_models
from tests.faults import refused, refused_exactly
from tests.recordings import noise, numbered, record

LENGTHS = [4, 5, 6, 4, 9, 7, 6, 4, 12, 5]
KIND = np.array([1, 1, 2, 1, 2, 1, 1, 2, 1, 1], np.int8)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def bce(z, y):
    return -(y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z)))


@pytest.mark.parametrize("form", ["hinton", "paper"])
def test_the_loss_of_an_unlabelled_clip_is_its_soft_loss_and_of_others_as_before(form):
    """By hand: no label of it counts, and no event that no teacher covers."""
    rng = np.random.default_rng(0)
    z, teacher = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    y, known = rng.integers(0, 2, (4, 3)), np.array([True, True, False])
    labelled, weight, alpha, temperature = np.array([1, 0, 1, 0]), np.array([2.0, 3.0, 5.0]), 0.25, 3.0
    targets = sigmoid(teacher / temperature)
    w = weight if form == "paper" else 1
    student = z if form == "paper" else z / temperature
    soft = -(w * targets * np.log(sigmoid(student)) + (1 - targets) * np.log(1 - sigmoid(student)))
    hard = -(weight * y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z)))
    a = np.where(known, alpha, 0)
    of_labelled = a * temperature**2 * soft + (1 - a) * hard
    of_others = np.where(known, temperature**2 * soft, 0)
    expected = np.where(labelled[:, None] == 1, of_labelled, of_others).mean()

    loss = make_loss(
        ClipRecipe(alpha=alpha, temperature=temperature, form=form), jnp.asarray(weight, jnp.float32), known
    )
    batch = {"labels": y, "teacher_logits": teacher, "labelled": labelled}
    batch = {name: jnp.asarray(value, jnp.float32) for name, value in batch.items()}
    logits = jnp.asarray(z, jnp.float32)
    assert_allclose(loss(logits, batch), expected, rtol=1e-5)
    gradient = jax.grad(loss)(logits, batch)
    assert_array_equal(gradient[1::2, 2], 0)
    assert (gradient[1::2, :2] != 0).all()
    other = batch | {"labels": jnp.where(batch["labelled"][:, None] == 1, batch["labels"], 1)}
    assert_array_equal(jax.grad(loss)(logits, other), gradient)
    del batch["labelled"]
    assert_allclose(loss(logits, batch), of_labelled.mean(), rtol=1e-5)


def dataset(kind=KIND, lengths=LENGTHS):
    ids = np.arange(len(lengths), dtype=np.float32)
    names = [str(index) for index in range(len(lengths))]
    return Dataset(names, numbered(lengths), np.stack([ids, -ids], axis=1), ("x", "y"), kind)


def test_a_model_without_teachers_gets_the_batches_that_it_gets_without_unlabelled_clips():
    keep = np.flatnonzero(KIND != 2)
    data = dataset()
    only = Dataset(
        [data.names[clip] for clip in keep],
        [data.features[clip] for clip in keep],
        data.targets[keep],
        data.events,
        KIND[keep],
    )
    some, alone = (clip_batches(each, None, frames=4, batch_size=3, seed=1) for each in (data, only))
    for step in range(6):
        assert some[step].keys() == {"features", "labels"}
        for key, value in alone[step].items():
            assert_array_equal(some[step][key], value)


def test_a_model_with_teachers_gets_all_clips_each_once_per_epoch_and_which_are_labelled():
    logits = 10 * dataset().targets
    batches = clip_batches(dataset(), logits, frames=4, batch_size=5, seed=0, unlabelled=True)
    for epoch in range(2):
        both = [batches[2 * epoch], batches[2 * epoch + 1]]
        clips = np.concatenate([batch["features"][:, 0, 0].astype(int) // 100 for batch in both])
        assert_array_equal(np.sort(clips), np.arange(10))
        assert_array_equal(np.concatenate([batch["labelled"] for batch in both]), KIND[clips] != 2)
        assert_array_equal(np.concatenate([batch["teacher_logits"] for batch in both]), logits[clips])
    # Without unlabelled clips nothing changes.
    plain = dataset(np.ones(10, np.int8))
    with_flag, without = (
        clip_batches(plain, logits, frames=4, batch_size=5, seed=0, unlabelled=flag) for flag in (True, False)
    )
    for key, value in without[3].items():
        assert_array_equal(with_flag[3][key], value)
    assert with_flag[3].keys() == without[3].keys()


@pytest.fixture
def more(tmp_path):
    """A folder of recordings without labels; one of 1 s is longer than a clip of 0.4 s."""
    (tmp_path / "more/day").mkdir(parents=True)
    record(tmp_path / "more", "day/long.wav", noise(16_000, 1))
    for index in range(5):
        record(tmp_path / "more", f"{index}.wav", noise(6400, index))
    return str(tmp_path / "more")


def test_unlabelled_recordings_are_for_training_and_those_that_the_source_lists_are_not_among_them(
    tmp_path, more
):
    (tmp_path / "metadata.csv").write_text("filename,labels\nmore/3.wav,dog\n0.wav,dog\nmore/./4.wav,\n")
    data = ManifestData(root=str(tmp_path), unlabelled=more, negatives=1)
    clips = with_splits(read_clips(data), ("dog",))
    others = clips[3:]
    assert [clip.name for clip in others] == [f"{UNLABELLED}{n}.wav" for n in ("0", "1", "2", "day/long")]
    assert all(clip.split == "train" and not clip.labelled and clip.path.is_file() for clip in others)
    assert clips[1].name == "0.wav" and clips[1].path != others[0].path
    # Negatives that are left out are not taken up again.
    assert len(read_clips(replace(data, negatives=1, events=("dog",)))) == 7
    with refused_exactly(
        f"--data.unlabelled: expected a folder of recordings at {tmp_path}/none, found none"
    ):
        read_clips(replace(data, unlabelled=str(tmp_path / "none")))
    text = "filename,labels\n" + "".join(f"more/{name},dog\n" for name in ("day/long.wav", "0.wav", "1.wav"))
    (tmp_path / "metadata.csv").write_text(text + "more/2.wav,\nmore/3.wav,\nmore/4.wav,\n")
    with refused_exactly(f"--data.unlabelled: expected recordings without labels in {more}, found none"):
        read_clips(data)


@pytest.fixture
def two(tiny_config, tmp_path, more, monkeypatch):
    """Settings of a run with unlabelled recordings: a teacher, of which the initial weights are best, and a
    student.
    """

    def initial(run, name):
        return run.new_state(name, (np.zeros(8, np.float32), np.ones(8, np.float32))).model

    monkeypatch.setattr(Run, "best_variables", initial)
    network = LSTMConfig(convolutions=(2,), time_strides=1, hidden_size=2)
    models = {
        "teacher": ModelConfig(network=network),
        "student": ModelConfig(network=network, teachers=("teacher",)),
    }
    config = tiny_config(tmp_path, recipe=ClipRecipe(batch_size=8, epochs=1), models=models)
    return with_data(config, unlabelled=more)


def test_a_run_with_unlabelled_recordings(two, capsys):
    """The student gets them with the teacher's logits; a model without teachers gets what it gets without."""
    with open_run(two) as run:
        data = recipe.load(run)
    train = data["train"]
    assert "unlabelled: 8 train" in capsys.readouterr().out
    unlabelled = [name for name in train.names if name.startswith(UNLABELLED)]
    # Five recordings of a clip's length, and three parts of the long one.
    assert len(train.names) == 24 + 8 and len(unlabelled) == 8
    assert f"{UNLABELLED}day/long.wav#t=0.6,1" in unlabelled
    updates, batches = recipe.batches(run, "student", data)
    assert updates == 4  # per epoch, of 8 clips each
    seen = [batch for _, batch in zip(range(4), batches(0))]
    assert sum(int((batch["labelled"] == 0).sum()) for batch in seen) == 8
    logits = read_logits(run.model_folder("teacher") / "teaching.npz", train.names, train.events)
    rows = np.concatenate([batch["teacher_logits"] for batch in seen])
    assert_array_equal(np.sort(rows, axis=0), np.sort(logits, axis=0))
    # Unlabelled clips are never scored, and the run is read as it was written.
    assert len(load_split(run.config, run.clips, "train", run.cache).names) == 24
    assert load_run(run.folder).clips == run.clips

    with open_run(replace(with_data(two, unlabelled=None), name="without")) as other:
        alone = recipe.load(other)
    for of_run in zip(recipe.batches(run, "teacher", data), recipe.batches(other, "teacher", alone)):
        if isinstance(of_run[0], int):
            assert of_run == (3, 3)
            continue
        for _, batch, same in zip(range(4), *(batches_from(0) for batches_from in of_run)):
            jax.tree.map(assert_array_equal, batch, same)
    weights = [positive_weights(each["train"].targets[each["train"].labelled]) for each in (data, alone)]
    assert_array_equal(*weights)


def test_augmented_batches_tell_which_clips_are_labelled(two):
    """A clip mixed with an unlabelled one isn't labelled."""
    config = replace(two, augment=AugmentConfig(time_shift=0.1, mixup=1.0))
    with open_run(config) as run:
        data = recipe.load(run)
        _, batches = recipe.batches(run, "student", data)
        plain = clip_batches(
            data["train"], None, frames=config.frames, batch_size=8, seed=config.recipe.seed, unlabelled=True
        )
        mixed = 0
        for step, batch in zip(range(4), batches(0)):
            assert batch.keys() == {"features", "labels", "labelled", "teacher_logits"}
            assert batch["labels"].shape == (8, 3) and {*np.unique(batch["labelled"])} <= {0, 1}
            assert (batch["labelled"] <= plain[step]["labelled"]).all()
            mixed += int((batch["labelled"] < plain[step]["labelled"]).sum())
        assert mixed


@pytest.mark.slow
def test_models_without_teachers_end_in_the_bits_that_they_end_in_without(tiny_config, tmp_path, more):
    best = []
    for name, folder in (("with", more), ("without", None)):
        config = tiny_config(tmp_path, name=name, recipe=ClipRecipe(batch_size=8, epochs=1))
        with open_run(with_data(config, unlabelled=folder)) as run:
            train_models(run)
            best.append([run.best_variables(model) for model in ("teacher", "plain")])
            updates = [read_epochs(run.model_folder(model))[-1]["step"] for model in run.names]
            assert updates == [3, 3, 4 if folder else 3]
    jax.tree.map(assert_array_equal, *best)


def test_unlabelled_recordings_need_a_teacher(tiny_config, tmp_path, more):
    config = tiny_config(tmp_path)
    config = replace(config, models={"plain": config.models["plain"]})
    with refused_exactly("--data.unlabelled: expected a model with teachers, since they label, found none"):
        check_config(with_data(config, unlabelled=more))


def test_a_file_of_logits_must_cover_unlabelled_recordings(tiny_config, tmp_path, more):
    config = tiny_config(tmp_path)
    with open_run(replace(config, name="first")) as run:
        data = recipe.load(run)["train"]
    np.savez(tmp_path / "file.npz", names=data.names, events=data.events, logits=data.targets)
    student = ModelConfig(network=config.models["plain"].network, teachers=(str(tmp_path / "file.npz"),))
    config = replace(config, models={"student": student})
    with (
        refused(
            rf"file\.npz: expected logits for all clips, found none for 8 \(first: '{UNLABELLED}0\.wav'\)"
        ),
        open_run(with_data(config, unlabelled=more)) as run,
    ):
        recipe.load(run)


def test_a_tagger_gets_the_unlabelled_recordings_in_the_order_of_the_features(
    tiny_config, tmp_path, more, monkeypatch
):
    asked = []

    def logits_of(path, clips, events, cache, channel):
        asked.append([clip.name for clip in clips])
        return np.zeros((len(clips), len(events)), np.float32)

    monkeypatch.setattr("qkd_jax.training.teachers.tagger_logits", logits_of)
    config = tiny_config(tmp_path)
    student = ModelConfig(network=config.models["plain"].network, teachers=(str(tmp_path / "tagger.toml"),))
    config = replace(config, models={"student": student})
    with open_run(with_data(config, unlabelled=more)) as run:
        data = recipe.load(run)["train"]
    assert asked == [data.names] and len(data.names) == 32
