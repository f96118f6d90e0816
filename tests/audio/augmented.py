"""What augmentation drew, read off its results: for the tests of clips and of frames."""

import jax
import numpy as np
from hypothesis import strategies as st

keys = st.integers(0, 2**31 - 1).map(jax.random.key)


def shifts_of(shifted, features, reach):
    """By how many frames each clip was rolled; fails unless exactly one number within ±reach fits."""
    ways = range(-reach, reach + 1)
    same = np.stack([(shifted == np.roll(features, k, axis=1)).all(axis=(1, 2)) for k in ways])
    np.testing.assert_array_equal(same.sum(axis=0), 1)
    return same.argmax(axis=0) - reach


def masks_of(masked, features):
    """Frames [batch, frames] and bands [batch, mels] that were masked; the rest must be unchanged."""
    hidden = masked != features
    frames, bands = hidden.all(axis=2), hidden.all(axis=1)
    np.testing.assert_array_equal(hidden, frames[:, :, None] | bands[:, None, :])
    mean = np.broadcast_to(features.mean(axis=(1, 2), dtype=np.float64)[:, None, None], features.shape)
    np.testing.assert_allclose(masked[hidden], mean[hidden], rtol=1e-5)
    return frames, bands


def mixed_from(labels):
    """(share, partner) of each clip, read off mixed labels that were the rows of an identity matrix."""
    others = labels - np.diag(np.diag(labels))
    # A clip that is its own partner has no other label.
    partner = np.where(others.any(axis=1), others.argmax(axis=1), np.arange(len(labels)))
    return np.diag(labels), partner


def mixed_by(values, share, partner):
    """`values`, a row per clip, after mixup."""
    own = share.reshape(-1, *[1] * (values.ndim - 1))
    return own * values + (1 - own) * values[partner]
