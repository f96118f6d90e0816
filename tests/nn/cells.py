"""What the tests of the LSTM and of the GRU share: sizes, bits, and eq. 3 in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from qkd_jax.config import QuantConfig
from tests.trees import assert_close

FLOAT, PAPER8, PAPER4 = QuantConfig(), QuantConfig.paper(8), QuantConfig.paper(4)
CHANNEL4 = QuantConfig.per_channel(4)
ALL16 = QuantConfig(weights=16, activations=16, gates=16, cell=16)
ONE_EACH = [QuantConfig(**{part: 4}) for part in ("weights", "activations", "gates", "cell")]
SOME_RANGES = [QuantConfig(weights=4, ranges=ranges) for ranges in ("split", "channel")]
INPUTS, HIDDEN, BATCH = 3, 6, (4, 6)  # the sizes that most tests share, compiled once


def sequence(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, INPUTS)), jnp.float32)


class Oracle:
    """A cell in float64, which records whether a quantizer came near a tie."""

    clear = True

    def __init__(self, quant):
        self.quant = quant

    def q(self, v, bits):
        """Eq. 3 on the whole of v, and back."""
        if bits == 32 or np.ptp(v) == 0:
            return v
        scale = np.ptp(v) / (2**bits - 1)
        position = (v - v.min()) / scale
        # float32 may shift a position by some 3e-7 of the values.
        self.clear &= bool((np.abs(position % 1 - 0.5) > 3e-7 / scale).all())
        return np.rint(position) * scale + v.min()

    def weights(self, w, gates=1):
        """The matrices of some gates, quantized one by one or per column."""
        parts = np.split(w, w.shape[1] if self.quant.ranges == "channel" else gates, axis=1)
        return np.concatenate([self.q(part, self.quant.weights) for part in parts], axis=1)


def assert_steps_are_the_oracles(step, params, oracle, states):
    """Each step starts from the oracle's states, so that a flipped tie does not grow over the steps."""
    x, compared, rough = sequence(len(states), 6), 0, oracle.quant == ALL16
    for t in range(x.shape[1]):
        # The oracle's states in float32, so that both quantize the very same values.
        carry = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows), jnp.float32), *states)
        new = step(params, carry, x[:, t], quant=oracle.quant)
        for index in range(len(states)):
            oracle.clear, given = True, jax.tree.map(lambda leaf: np.float64(leaf[index]), carry)
            states[index] = oracle.step(given, np.float64(x[index, t]))
            # At a tie, codes may differ by one; with 16 bits ties are frequent, but codes are small.
            if oracle.clear or rough:
                compared += 1
                got = jax.tree.map(lambda leaf: leaf[index], new)
                assert_close(got, states[index], rtol=0, atol=1e-4 if rough else 1e-5)
    assert compared > 5 * len(states) / 4
