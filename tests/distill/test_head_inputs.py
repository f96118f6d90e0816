"""What a head reads: windows of several taggers side by side, zero-shot logits, and projections."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.distill.head_inputs import (
    HeadInputs,
    Projection,
    fit_projection,
    fit_projections,
    read_projections,
    write_projections,
)
from tests.faults import refused_in_one_line
from tests.recordings import clip
from tests.taggers import tagger_of


def centres_of(windows, window, hop):
    """The centres of a recording's windows; the last, which ends with it, is half a hop early."""
    return [window / 2 + hop * place - hop / 2 * (place == windows - 1 > 0) for place in range(windows)]


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.floats(0.05, 2), st.floats(0.05, 2)),
    st.tuples(st.floats(0.05, 2), st.floats(0.05, 2)),
    st.none() | st.tuples(st.floats(0, 6), st.floats(0.05, 4)),
)
def test_each_window_of_the_finer_tagger_gets_the_nearest_of_the_other(
    tmp_path_factory, counts, hops, windows, at
):
    """The outputs of two taggers are the centres of their windows, of a recording or of a part of it."""
    folder, item = tmp_path_factory.mktemp("rows"), clip("a.wav")
    if at is not None:
        item = replace(item, name="a.wav#t=0,1", file="a.wav", part=(at[0], sum(at)))
    times, taggers, inside = [], [], []
    for count, hop, window in zip(counts, hops, windows):
        times = centres_of(count, window, hop)
        taggers.append(tagger_of(folder, [item], [[[time] for time in times]], hop=hop, window=window))
        if at is not None:
            middle = at[0] + at[1] / 2
            nearest = min(times, key=lambda time: abs(time - middle))
            within = [(time, time) for time in times if at[0] <= time < sum(at)]
            inside.append(within or [(middle, nearest)])  # place, and the window that stands there
        else:
            inside.append([(time, time) for time in times])
    inputs = HeadInputs(taggers, ("x",))
    _, *parts = inputs.outputs(0)
    finer = int(hops[1] < hops[0])
    assert_allclose(parts[finer][:, 0], [value for _, value in inside[finer]], rtol=1e-6)
    for (place, _), value in zip(inside[finer], parts[1 - finer][:, 0]):
        apart = [abs(place - other) for other, _ in inside[1 - finer]]
        fitting = [there for (_, there), gap in zip(inside[1 - finer], apart) if gap <= min(apart) + 1e-9]
        assert min(abs(value - there) for there in fitting) < 1e-5


def test_a_tagger_of_whole_recordings_is_read_beside_one_of_windows(tmp_path):
    whole = tagger_of(tmp_path, [clip("a.wav")], [[[7.0]]], hop=0.0, window=0.0)
    fine = tagger_of(tmp_path, [clip("a.wav")], [[[1.0], [2.0], [3.0]]])
    _, first, second = HeadInputs([whole, fine], ("x",)).outputs(0)
    assert_array_equal(np.hstack([first, second]), [[7, 1], [7, 2], [7, 3]])
    assert_array_equal(np.hstack(HeadInputs([whole], ("x",)).outputs(0)), [[0, 7]])


def test_zero_shot_logits_are_the_mean_over_the_taggers_that_have_classes_of_an_event(tmp_path):
    item, rng = clip("a.wav"), np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 3))
    names = ("Dog", "Bark", "Siren")
    mapped = [{"dog": ("Dog", "Bark"), "siren": ("Siren",)}, {"dog": ("Siren",)}]
    probabilities = [1 / (1 + np.exp(-each)) for each in logits]
    taggers = [
        tagger_of(tmp_path, [item], [row], classes=names, events=events, output="probabilities")
        for row, events in zip(probabilities, mapped)
    ]
    taggers.append(tagger_of(tmp_path, [item], [np.full((4, 2), 9.0)]))  # no classes
    inputs = HeadInputs(taggers, ("siren", "bell", "dog"))
    zero_shot, *parts = inputs.outputs(0)
    dog = (logits[0][:, :2].max(axis=1) + logits[1][:, 2]) / 2
    assert_allclose(zero_shot, np.stack([logits[0][:, 2], np.zeros(4), dog], axis=1), rtol=1e-4, atol=1e-5)
    assert inputs.known().tolist() == [True, False, True]
    assert_allclose(np.stack(parts[:2]), logits, rtol=1e-4, atol=1e-5)
    # A head reads them in this order, the others projected.
    projections = [Projection(np.full(3, 2.0), 3 * np.eye(3)[:, :2]), Projection(np.zeros(3), np.eye(3))]
    projections.append(Projection(np.zeros(2), np.ones((2, 1))))
    row = HeadInputs(taggers, inputs.events, projections)[0]
    assert row.dtype == np.float32
    expected = np.hstack([zero_shot, 3 * (logits[0][:, :2] - 2), logits[1], np.full((4, 1), 18.0)])
    assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def test_the_layer_is_projected_apart_from_the_scores(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    tagger = tagger_of(tmp_path, [clip("a.wav")], [rows], classes=("Dog", "Siren"), events={"dog": ("Dog",)})
    inputs = HeadInputs([tagger], ("dog",))
    _, scores, layer = inputs.outputs(0)
    assert_array_equal(np.hstack([scores, layer]), rows)
    found = fit_projections(inputs, [0], 3)
    assert [each.matrix.shape for each in found] == [(2, 2), (3, 3)]
    assert_allclose(found[1].mean, rows[:, 2:].mean(axis=0), atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 200), st.integers(1, 8), st.integers(1, 10))
def test_projections_are_orthogonal_principal_components_with_shrunk_variances(seed, rows, size, components):
    """Against a singular value decomposition of the same rows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, size)) @ rng.normal(size=(size, size)) + 5 * rng.normal(size=size)
    mean, matrix = fit_projection(x, components)
    assert_allclose(mean, x.mean(axis=0), rtol=1e-4, atol=1e-4)
    assert matrix.shape == (size, min(components, rows, size)) and matrix.dtype == np.float32
    centred = x - x.mean(axis=0)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    variances = np.zeros(size)
    variances[: len(singular)] = singular**2 / rows
    shrunk = variances + (1 + 3000 / rows) * x.var(axis=0).mean()
    count = matrix.shape[1]
    inner = matrix.astype(np.float64).T @ matrix
    assert_allclose(inner * np.sqrt(np.outer(shrunk[:count], shrunk[:count])), np.eye(count), atol=1e-3)
    assert_allclose((centred @ matrix).var(axis=0), (variances / shrunk)[:count], rtol=1e-3, atol=1e-6)
    # Each is the direction of the decomposition, but for its sign, if variances are apart.
    for place in range(min(count, len(singular))):
        others = np.delete(variances, place)
        if len(others) == 0 or np.abs(others - variances[place]).min() > 0.05 * variances[0]:
            unit = matrix[:, place] * np.sqrt(shrunk[place])
            assert abs(unit @ vectors[place]) > 0.99
            assert unit[np.abs(unit).argmax()] > 0


def test_without_components_values_are_scaled_one_by_one():
    x = np.random.default_rng(0).normal(3, [1, 10, 100], (50, 3))
    mean, matrix = fit_projection(x, None)
    scale = 1 / np.sqrt(x.var(axis=0) + (1 + 3000 / 50) * x.var(axis=0).mean())
    assert_allclose(matrix, np.diag(scale), rtol=1e-5)
    assert_allclose(mean, x.mean(axis=0), rtol=1e-5)


def test_values_that_do_not_vary_are_projected_to_zero():
    for components in (2, None):
        mean, matrix = fit_projection(np.full((9, 3), 4.0), components)
        assert np.isfinite(matrix).all()
        assert_array_equal((np.full((1, 3), 4.0, np.float32) - mean) @ matrix, np.zeros((1, matrix.shape[1])))


def test_projections_are_read_as_they_were_written(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "inputs.npz"
    written = [
        Projection(rng.normal(size=size).astype(np.float32), rng.normal(size=(size, 2)).astype(np.float32))
        for size in (3, 5)
    ]
    write_projections(path, written, "yamnet 521")
    for one, other in zip(read_projections(path, "yamnet 521"), written, strict=True):
        assert_array_equal(one.mean, other.mean)
        assert_array_equal(one.matrix, other.matrix)


GOOD = {"mean0": np.zeros(3), "matrix0": np.zeros((3, 2)), "count": 1, "size": 2, "identity": "a"}


@pytest.mark.parametrize(
    "changes",
    [
        {"count": "1"},
        {"count": 2},
        {"mean0": np.zeros(4)},
        {"matrix0": np.full((3, 2), np.nan)},
        {"matrix0": np.zeros(3)},
        {"mean0": np.array([None] * 3)},
    ],
)
def test_damaged_projections_are_refused(tmp_path, changes):
    path = tmp_path / "inputs.npz"
    np.savez(path, **GOOD | changes)
    with refused_in_one_line(r"inputs\.npz: expected projections of taggers' outputs \(delete the file"):
        read_projections(path, "a")


def test_projections_of_other_taggers_are_refused(tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, **GOOD)
    with refused_in_one_line(r"inputs\.npz: expected the taggers that the run began with, found others"):
        read_projections(path, "b")


def test_a_cut_or_missing_file_of_projections_is_refused(tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, **GOOD)
    read_projections(path, "a")
    path.write_bytes(path.read_bytes()[:-30])
    for file in (path, tmp_path / "none.npz"):
        with refused_in_one_line(r"expected projections of taggers' outputs \(delete the file"):
            read_projections(file, "a")
