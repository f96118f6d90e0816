"""The front end on one core: log-mel energies of an hour."""

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed.turns import Row, agree, in_turns
from qkd_jax.audio import log_mel_numpy as front_end
from qkd_jax.audio.log_mel import TILE, log_mel
from qkd_jax.audio.mel import mel_basis, window
from qkd_jax.config import FeatureConfig

QUESTION = "Log-mel energies of an hour, on one core"
ABOUT = """Noise at 16 kHz, now loud, now nearly silent, in blocks of 30 s, as recordings are read: 64 bands
from 50 to 8000 Hz, windows of 25 ms every 10 ms, FFT of 512. librosa's `melspectrogram` and
kaldi-native-fbank have our settings (Hann, bands of Slaney's scale and area; no dither, no emphasis, the
mean left in), and NumPy adds the floor and takes the logarithm. All features of the hour are compared.
Kaldi's are read a frame at a time, which is all that its Python interface has. Below them stand parts of
`log_mel` by themselves, in the same tiles: no way that takes them is faster than they are."""
PACKAGES = ("librosa", "kaldi-native-fbank")
FEATURES = FeatureConfig()
SECONDS, BLOCK = 3600, 30
CLOSE = 1e-5
"""Orders of summation in float32; an edge wrong by 1 Hz, or a floor by a thousandth, is off by more."""
GOALS = {"librosa": 10.0, "kaldi-native-fbank": 1.0}

Way = Callable[[np.ndarray], np.ndarray]
"""A waveform float32 [samples], full scale 1, to log-mel energies float32 [frames, mels]."""


def noise(seconds: int, sample_rate: int = FEATURES.sample_rate, seed: int = 0) -> np.ndarray:
    """Noise whose loudness changes every second, from 80 dB below full scale to 10, float32 [samples]."""
    rng = np.random.default_rng(seed)
    loudness = 10 ** rng.uniform(-4, -0.5, seconds).astype(np.float32)
    return rng.standard_normal(seconds * sample_rate, np.float32) * loudness.repeat(sample_rate)


def blocks(waveform: np.ndarray, seconds: int) -> list[np.ndarray]:
    """Pieces of `waveform` whose frames, one piece's after the other's, are those of the whole."""
    step, overlap = seconds * FEATURES.sample_rate, FEATURES.win_length - FEATURES.hop_length
    starts = range(0, len(waveform) - FEATURES.win_length + 1, step)
    return [waveform[start : start + step + overlap] for start in starts]


def in_jax(features: FeatureConfig) -> Way:
    """Ours in JAX, on the CPU, where recordings are read."""
    (cpu, *_) = jax.devices("cpu")

    def way(waveform: np.ndarray) -> np.ndarray:
        with jax.default_device(cpu):
            return np.asarray(log_mel(jnp.asarray(waveform), features))

    return way


def in_librosa(features: FeatureConfig) -> Way:
    """`librosa.feature.melspectrogram`, and the logarithm."""
    import librosa

    # It centres a window in the FFT's points; ours begins with them.
    spare = features.n_fft - features.win_length
    padding = (spare // 2, spare - spare // 2)

    def way(waveform: np.ndarray) -> np.ndarray:
        energies = librosa.feature.melspectrogram(
            y=np.pad(waveform, padding),
            sr=features.sample_rate,
            n_fft=features.n_fft,
            hop_length=features.hop_length,
            win_length=features.win_length,
            center=False,
            n_mels=features.n_mels,
            fmin=features.fmin,
            fmax=features.fmax,
        )
        return np.log(energies + np.float32(features.floor)).T

    return way


def in_kaldi(features: FeatureConfig) -> Way:
    """kaldi-native-fbank's energies, and the logarithm."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.use_log_fbank = False  # that has a floor of its own, below which all are one
    frames, bands, rate = options.frame_opts, options.mel_opts, features.sample_rate
    frames.samp_freq, frames.window_type, frames.snip_edges = rate, "hann", True
    frames.frame_length_ms = 1e3 * features.win_length / rate
    frames.frame_shift_ms = 1e3 * features.hop_length / rate
    frames.dither, frames.preemph_coeff, frames.remove_dc_offset = 0.0, 0.0, False
    bands.num_bins, bands.low_freq, bands.high_freq = features.n_mels, features.fmin, features.fmax
    bands.is_librosa = True

    def way(waveform: np.ndarray) -> np.ndarray:
        bank = kaldi_native_fbank.OnlineFbank(options)
        bank.accept_waveform(rate, waveform)
        bank.input_finished()
        energies = np.stack([bank.get_frame(frame) for frame in range(bank.num_frames_ready)])
        return np.log(energies + np.float32(features.floor))

    return way


def parts(features: FeatureConfig) -> dict[str, Way]:
    """What `log_mel` takes of a waveform's frames, a tile at a time: to their power, or from it."""
    hann, basis = jnp.asarray(window(features)), jnp.asarray(mel_basis(features))

    def power(signal: jax.Array, starts: jax.Array) -> jax.Array:
        cut = partial(jax.lax.dynamic_slice_in_dim, signal, slice_size=features.win_length)
        spectrum = jnp.fft.rfft(jax.vmap(cut)(starts) * hann[None], features.n_fft)
        return spectrum.real**2 + spectrum.imag**2

    def product(signal: jax.Array, starts: jax.Array) -> jax.Array:
        # Of samples in place of powers, which takes as long.
        cut = partial(jax.lax.dynamic_slice_in_dim, signal, slice_size=features.n_fft // 2 + 1)
        return jnp.matmul(jax.vmap(cut)(starts), basis, precision=jax.lax.Precision.HIGHEST)

    def by_tiles(of_tile: Callable[[jax.Array, jax.Array], jax.Array]) -> Way:
        @jax.jit
        def whole(waveform: jax.Array) -> jax.Array:
            frames = features.frames(len(waveform))
            starts = jnp.arange(frames // TILE * TILE) * features.hop_length
            return jax.lax.map(partial(of_tile, waveform), starts.reshape(-1, TILE))

        (cpu, *_) = jax.devices("cpu")
        return lambda waveform: np.asarray(whole(jax.device_put(waveform, cpu)))

    return {"to the power spectrum": by_tiles(power), "the product with the mel bands": by_tiles(product)}


def rows(rounds: int, seconds: int = SECONDS, block: int = BLOCK) -> Iterator[Row]:
    """Ours in JAX and in NumPy, each beside each peer; the goals are those of JAX."""
    pieces = blocks(noise(seconds), block)
    mine: dict[str, Way] = {
        "log_mel, JAX": in_jax(FEATURES),
        "front_end, NumPy": partial(front_end.log_mel, FEATURES),
    }
    peers: dict[str, Way] = {"librosa": in_librosa(FEATURES)}
    if importlib.util.find_spec("kaldi_native_fbank"):
        peers["kaldi-native-fbank"] = in_kaldi(FEATURES)
    pairs = list(itertools.product(mine, peers))
    off = {
        (ours, peer): max(agree(peer, mine[ours](piece), peers[peer](piece), CLOSE) for piece in pieces)
        for ours, peer in pairs
    }

    def whole(way: Way) -> list[np.ndarray]:
        return [way(piece) for piece in pieces]

    within = parts(FEATURES)
    took = in_turns({name: partial(whole, way) for name, way in (mine | peers | within).items()}, rounds)
    for ours, peer in pairs:
        yield Row(
            what=f"{seconds} s",
            ours=ours,
            peer=peer,
            seconds=took[ours],
            peer_seconds=took[peer],
            off=off[ours, peer],
            at_least=GOALS[peer] if "JAX" in ours else None,
            note=f"{seconds / np.median(took[ours]):,.0f} times real time",
        )
    for name in within:
        yield Row(what=f"{seconds} s", ours=f"of log_mel, {name}", seconds=took[name])
