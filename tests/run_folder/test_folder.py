"""What a run's folder holds, damaged or not of this run: one line, which names the file."""

import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.config import CRNNConfig, DataConfig, DistillConfig, FeatureConfig, ModelConfig, RunConfig
from qkd_jax.data.dataset import Dataset
from qkd_jax.data.timed import SedDataset
from qkd_jax.errors import InputError
from qkd_jax.run_folder import checkpoints as checkpoint
from qkd_jax.run_folder.folder import Run, load_run
from qkd_jax.run_folder.state import TrainState
from qkd_jax.training.sed_teachers import taught
from qkd_jax.training.teachers import foreign_logits

EVENTS = ("bell", "knock")
DATA = Dataset(["a", "b", "c"], [], np.zeros((3, 2), np.float32), EVENTS)
CLIPS = RunConfig(
    features=FeatureConfig(n_mels=8),
    data=DataConfig(events=EVENTS, clip_seconds=0.4),
    distill=DistillConfig(teachers=("x.npz",)),
)
SOUNDS = RunConfig(
    features=FeatureConfig(n_mels=8),
    data=DataConfig(source="desed", events=EVENTS, clip_seconds=0.4),
    models={
        "m": ModelConfig(
            network=CRNNConfig(channels=(2,), pools=((2, 2),), hidden_size=2), embeddings="tagger.toml"
        )
    },
)
STEPS = SOUNDS.networks["m"].steps(SOUNDS.frames)
ROWS = np.random.default_rng(0).normal(0, 1, (3, 5, 6)).astype(np.float16)


def float32(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"mean": float32(8)},
        {"mean": float32(7), "std": float32(7)},
        {"mean": float32(8), "std": float32(7)},
        {"mean": float32(8), "std": 0 * float32(8)},
        {"mean": np.nan * float32(8), "std": float32(8)},
        {"mean": np.array(["x"] * 8), "std": float32(8)},
    ],
)
def test_a_norm_that_is_none_is_named(tmp_path, arrays):
    np.savez(tmp_path / "norm.npz", **arrays)
    with pytest.raises(InputError, match=r"norm\.npz: expected mean and deviation of the training features"):
        Run(tmp_path, CLIPS).norm([])


@pytest.mark.parametrize(
    "logits", [float32(1, 3, 3), float32(2, 3, 2), float32(3, 2), np.inf * float32(1, 3, 2)]
)
def test_logits_of_foreign_teachers_that_are_others_are_named(tmp_path, logits):
    np.save(tmp_path / "foreign.npy", logits)
    with pytest.raises(InputError, match=r"foreign\.npy: expected logits of foreign teachers"):
        foreign_logits(Run(tmp_path, CLIPS), DATA)
    (tmp_path / "foreign.npy").write_bytes(b"PK\x05\x06" + bytes(18))  # an archive of nothing
    with pytest.raises(InputError, match=r"foreign\.npy: expected logits .*: expected an array, found Npz"):
        foreign_logits(Run(tmp_path, CLIPS), DATA)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": ROWS[:2]},
        {"rows": ROWS[..., :5]},
        {"rows": ROWS * np.float16(np.inf)},
        {"row_of_step": np.full(STEPS, 5)},
        {"row_of_step": np.full(STEPS, -1)},
        {"row_of_step": np.zeros(STEPS - 1, int)},
        {"row_of_step": np.zeros(STEPS)},
        {"size": 0},
        {"size": 10**6},
        {"size": np.array([6])},
    ],
)
def test_embeddings_that_are_others_are_named(tmp_path, changes):
    (tmp_path / "m").mkdir()
    arrays = {"rows": ROWS, "row_of_step": np.arange(STEPS) % 5, "size": 6}
    run = Run(tmp_path, SOUNDS)
    data = SedDataset(
        ["a", "b", "c"], [], DATA.targets, np.zeros(3, np.int8), [], [], EVENTS, SOUNDS.features
    )

    def read():
        run.model("m")
        return taught(run, "m", {"train": data})["embeddings"]

    np.savez(run.embeddings("m"), **arrays)
    np.testing.assert_array_equal(read(), ROWS)
    np.savez(run.embeddings("m"), **arrays | changes)
    with pytest.raises(InputError, match=r"m/embeddings\.npz: expected embeddings"):
        read()


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"[" * 100_000, b'{"data": {"clip_seconds": 1e999}}'])
def test_settings_that_are_none_are_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: "):
        load_run(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's coroutines
def test_a_checkpoint_whose_notes_speak_of_no_arrays_is_named(tmp_path):
    state = TrainState(step=jnp.int32(1), params={"w": jnp.ones(3)}, average=None, variables={}, opt_state=())
    with checkpoint.open_checkpoints(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, state, {"auc": 50.0, "eer": 50.0})
    notes = tmp_path / "checkpoints" / "1" / "default" / "_METADATA"
    content = notes.read_text()
    assert "jax.Array" in content
    notes.write_text(content.replace("jax.Array", "None", 1))
    with pytest.raises(InputError, match=r"checkpoints/1: could not be read as a checkpoint"):
        checkpoint.best_model(tmp_path / "checkpoints", state)
