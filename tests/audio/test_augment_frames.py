"""Augmentation of frames and their targets: the draws are read off the results, as for clips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.audio.augment import augment_frames, spec_augment
from qkd_jax.config import AugmentConfig
from tests.audio.augmented import keys, masks_of, mixed_by, mixed_from, shifts_of
from tests.trees import assert_close, assert_equal

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIZES = (8, 7, 5)
STRONG, WEAK, UNLABELLED = slice(8), slice(8, 15), slice(15, 20)
KIND = np.repeat([0, 1, 2], SIZES)
jitted = jax.jit(augment_frames, static_argnames=("config", "stride", "sizes"))
ALL_OF_FRAMES = AugmentConfig(time_shift=0.4, mixup=0.5, time_masks=2, time_mask_frames=6)


def sed_batch(seed=0):
    """The first two bands of a strong clip are its targets, the next two of any clip those of a teacher."""
    rng = np.random.default_rng(seed)
    strong = (rng.random((20, 20, 2)) < 0.1) * (KIND == 0)[:, None, None]
    teacher, noise = rng.random((20, 20, 2)), rng.normal(0, 1, (20, 20, 3))
    batch = {
        "features": np.concatenate([strong, teacher, noise], axis=2),
        "strong": strong,
        "weak": np.where((KIND == 1)[:, None], rng.random((20, 2)) < 0.5, strong.max(axis=1)),
        "has_strong": KIND == 0,
        "has_weak": KIND == 1,
        "teacher": teacher,
        "teacher_clip": rng.random((20, 2)),
        "embedding": rng.normal(0, 1, (20, 5, 3)),
    }
    return {name: jnp.asarray(values, jnp.float32) for name, values in batch.items()}


def augmented_frames(key, config, batch=None, sizes=SIZES, hop=4, function=jitted):
    result = function(key, sed_batch() if batch is None else batch, config, stride=hop, sizes=sizes)
    return {name: np.asarray(values) for name, values in result.items()}


@settings(deadline=None, max_examples=6)
@given(keys, st.sampled_from([1, 3, 4]), st.floats(0, 0.45))
def test_frames_and_their_targets_are_shifted_together(key, hop, largest):
    batch = jax.tree.map(np.asarray, sed_batch())
    batch["embedding"] = np.random.default_rng(1).random((20, 20 // hop, 3), np.float32)
    result = augmented_frames(key, AugmentConfig(time_shift=largest), batch, hop=hop)
    shifts = shifts_of(result["features"], batch["features"], reach=int(largest * 20))
    assert not (shifts % hop).any()
    for name, per_step in (("strong", 1), ("teacher", 1), ("embedding", hop)):
        for clip, shift in enumerate(shifts):
            rolled = np.roll(batch[name][clip], shift // per_step, axis=0)
            np.testing.assert_array_equal(result[name][clip], rolled)
    for name in batch.keys() - {"features", "strong", "teacher", "embedding"}:
        np.testing.assert_array_equal(result[name], batch[name])


@pytest.mark.parametrize(("time", "frames", "mel"), [(2, 6, 1), (1, 4, 0), (0, 1, 1)])
def test_masked_frames_have_no_events(time, frames, mel):
    batch = jax.tree.map(np.asarray, sed_batch())
    config = AugmentConfig(time_masks=time, time_mask_frames=frames, mel_masks=mel, mel_mask_bands=2)
    for key in jax.random.split(jax.random.key(16), 5):
        result = augmented_frames(key, config)
        blank, _ = masks_of(result["features"], batch["features"])
        assert blank.any() == (time > 0)
        for name in ("strong", "teacher"):
            np.testing.assert_array_equal(result[name], np.where(blank[:, :, None], 0, batch[name]))
        # A strong clip has the events that remain; the labels of others are unchanged.
        np.testing.assert_array_equal(result["weak"][STRONG], result["strong"][STRONG].max(axis=1))
        np.testing.assert_array_equal(result["weak"][WEAK], batch["weak"][WEAK])
        np.testing.assert_array_equal(result["teacher_clip"], batch["teacher_clip"])
        # Equal to `spec_augment` up to the order of the sum of a mean.
        features = spec_augment(jax.random.split(key, 3)[2], sed_batch()["features"], config)
        np.testing.assert_allclose(result["features"], features, rtol=1e-5, atol=1e-6)


def test_strong_and_weak_clips_are_mixed_among_themselves_and_unlabelled_ones_not():
    """The teacher's logits name the clips, so each result shows its share and its partner."""
    batch = jax.tree.map(np.asarray, sed_batch() | {"teacher_clip": jnp.eye(20)})
    mixed_with = {0: set(), 1: set()}
    for seed in range(15):
        result = augmented_frames(jax.random.key(seed), AugmentConfig(mixup=1.0), batch)
        share, partner = mixed_from(result["teacher_clip"])
        np.testing.assert_array_equal(KIND[partner], KIND)
        np.testing.assert_array_equal(result["teacher_clip"][UNLABELLED], np.eye(20)[UNLABELLED])
        mixed = {name: mixed_by(values, share, partner) for name, values in batch.items()}
        for name in ("features", "strong", "teacher", "embedding"):
            np.testing.assert_allclose(result[name], mixed[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(result["weak"][WEAK], mixed["weak"][WEAK], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(result["weak"][STRONG], result["strong"][STRONG].max(axis=1))
        for name in ("has_strong", "has_weak"):
            np.testing.assert_array_equal(result[name], batch[name])
        for kind, others in mixed_with.items():
            others.update(partner[kind == KIND])
        # The two kinds draw independently.
        assert (share[STRONG][:7] != share[WEAK]).any()
    assert mixed_with == {0: set(range(8)), 1: set(range(8, 15))}


def test_mixtures_of_frames_are_within_a_kind_and_have_the_events_of_both():
    batch = jax.tree.map(np.asarray, sed_batch() | {"teacher_clip": jnp.eye(20)})
    for seed in range(5):
        result = augmented_frames(jax.random.key(seed), AugmentConfig(mixtures=0.8), batch)
        _, partner = mixed_from(result["teacher_clip"])
        np.testing.assert_array_equal(KIND[partner], KIND)
        np.testing.assert_array_equal(partner[UNLABELLED], np.arange(20)[UNLABELLED])
        mixed = partner != np.arange(20)  # 1 - (1 - p)² for its own partner, which only probabilities show
        for name in ("strong", "teacher"):
            expected = 1 - (1 - batch[name]) * (1 - batch[name][partner])
            np.testing.assert_allclose(result[name][mixed], expected[mixed], rtol=1e-5, atol=1e-6)
        expected = np.maximum(batch["weak"], batch["weak"][partner])
        np.testing.assert_array_equal(result["weak"][WEAK], expected[WEAK])
        np.testing.assert_array_equal(result["weak"][STRONG], result["strong"][STRONG].max(axis=1))
        assert mixed[STRONG].any() and mixed[WEAK].any()


def test_both_kinds_are_mixed_or_neither_as_often_as_set():
    batch = sed_batch()
    config = AugmentConfig(mixup=1.0, mixup_share=0.5)
    function = functools.partial(augment_frames, config=config, stride=1, sizes=SIZES)
    result = jax.jit(jax.vmap(function, in_axes=(0, None)))(jax.random.split(jax.random.key(11), 300), batch)
    same = (np.asarray(result["features"]) == np.asarray(batch["features"])).all(axis=(2, 3))
    strong, weak = same[:, STRONG].all(axis=1), same[:, WEAK].all(axis=1)
    np.testing.assert_array_equal(strong, weak)
    assert scipy.stats.binomtest(int(strong.sum()), 300, 0.5).pvalue > 1e-3


@settings(deadline=None, max_examples=10)
@given(keys)
def test_features_and_targets_agree_after_all_changes(key):
    result = augmented_frames(key, ALL_OF_FRAMES)
    # The last bands are noise: where they are constant, the frame is masked.
    blank = (result["features"] == result["features"][:, :, :1]).all(axis=2)
    for bands, name, rows in (((0, 2), "strong", STRONG), ((2, 4), "teacher", slice(20))):
        expected = np.where(blank[:, :, None], 0, result["features"][:, :, slice(*bands)])
        np.testing.assert_allclose(expected[rows], result[name][rows], rtol=1e-5, atol=1e-6)
    assert (result["strong"] <= 1).all() and (result["strong"][8:] == 0).all()


@pytest.mark.parametrize("sizes", [(20, 0, 0), (0, 20, 0), (0, 0, 20)])
def test_a_kind_may_be_missing(sizes):
    batch, (strong, weak, _) = sed_batch() | {"teacher_clip": jnp.eye(20)}, sizes
    result = augmented_frames(jax.random.key(12), AugmentConfig(mixup=1.0, time_shift=0.2), batch, sizes)
    _, partner = mixed_from(result["teacher_clip"])
    assert (partner[:strong] < strong).all() and (partner[strong:] >= strong).all()
    changed = (result["teacher_clip"] != np.eye(20)).any(axis=1)
    assert not changed[strong + weak :].any() and changed[: strong + weak].any() == (strong + weak > 0)


def test_a_batch_without_a_teacher_is_augmented_alike():
    with_teacher = augmented_frames(jax.random.key(13), ALL_OF_FRAMES)
    batch = {name: values for name, values in sed_batch().items() if "teacher" not in name}
    result = augmented_frames(jax.random.key(13), ALL_OF_FRAMES, batch)
    assert result.keys() == batch.keys()
    for name, values in result.items():
        np.testing.assert_array_equal(values, with_teacher[name])


def test_draws_for_frames_depend_on_the_key_alone_and_jit_changes_nothing():
    once, compiled = (
        augmented_frames(jax.random.key(14), ALL_OF_FRAMES, function=function)
        for function in (augment_frames, jitted)
    )
    assert_close(compiled, once, rtol=1e-5, atol=1e-6)
    other = augmented_frames(jax.random.key(15), ALL_OF_FRAMES)
    assert (once["features"] != other["features"]).any(axis=(1, 2)).mean() > 0.7
    plain = augmented_frames(jax.random.key(14), AugmentConfig())
    assert_equal(plain, jax.tree.map(np.asarray, sed_batch()))


def test_sizes_that_are_not_the_batchs_are_refused():
    with pytest.raises(ValueError, match=r"sizes: expected 20 clips in all, got \(8, 7, 4\)"):
        augmented_frames(jax.random.key(0), AugmentConfig(), sizes=(8, 7, 4))
