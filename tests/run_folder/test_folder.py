"""Damaged or foreign files in a run's folder: one line that names the file."""

import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.config import (
    CRNNConfig,
    DESEDData,
    EventObjective,
    EventRecipe,
    FeatureConfig,
    LSTMConfig,
    ManifestData,
    ModelConfig,
    RunConfig,
)
from qkd_jax.data.dataset import Dataset
from qkd_jax.errors import InputError
from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.folder import find_model, load_run
from qkd_jax.run_folder.run import Run
from qkd_jax.run_folder.state import TrainState
from qkd_jax.training.teachers import embedding_targets, teacher_logits

EVENTS = ("bell", "knock")
DATA = Dataset(["a", "b", "c"], [], np.zeros((3, 2), np.float32), EVENTS, np.ones(3, np.int8))
CLIPS = RunConfig(
    features=FeatureConfig(n_mels=8),
    data=ManifestData(events=EVENTS, clip_seconds=0.4),
    models={"m": ModelConfig(network=LSTMConfig(), teachers=("x.npz",))},
)
TIMED = RunConfig(
    features=FeatureConfig(n_mels=8),
    data=DESEDData(events=EVENTS, clip_seconds=0.4),
    recipe=EventRecipe(),
    models={
        "m": ModelConfig(
            network=CRNNConfig(channels=(2,), pools=((2, 2),), hidden_size=2),
            objective=EventObjective(embeddings="tagger.toml"),
        )
    },
)
STEPS = TIMED.models["m"].network.steps(TIMED.frames)
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
def test_a_damaged_norm_is_named(tmp_path, arrays):
    np.savez(tmp_path / "norm.npz", **arrays)
    with pytest.raises(InputError, match=r"norm\.npz: expected mean and standard deviation of the training"):
        Run(tmp_path, CLIPS).norm([])


@pytest.mark.parametrize("logits", [float32(3, 3), float32(2, 2), float32(1, 3, 2), np.inf * float32(3, 2)])
def test_damaged_logits_of_a_teacher_from_a_file_are_named(tmp_path, logits):
    run = Run(tmp_path, CLIPS)
    path = run.teacher_file("x.npz")
    path.parent.mkdir()
    np.save(path, logits)
    with pytest.raises(InputError, match=r"teachers/x-\w+\.npy: expected logits of x\.npz"):
        teacher_logits(run, "m", DATA)
    path.write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
    with pytest.raises(InputError, match=r"x-\w+\.npy: expected logits .*: expected an array, found Npz"):
        teacher_logits(run, "m", DATA)


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
def test_damaged_embeddings_are_named(tmp_path, changes):
    arrays = {"rows": ROWS, "row_of_step": np.arange(STEPS) % 5, "size": 6}
    run = Run(tmp_path, TIMED)
    run.model_folder("m").mkdir(parents=True)

    def read():
        run.model("m")
        return embedding_targets(run, "m", 3).rows

    np.savez(run.embeddings_file("m"), **arrays)
    np.testing.assert_array_equal(read(), ROWS)
    np.savez(run.embeddings_file("m"), **arrays | changes)
    with pytest.raises(InputError, match=r"m/embeddings\.npz: expected embeddings"):
        read()


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"[" * 100_000, b'{"data": {"clip_seconds": 1e999}}'])
def test_damaged_settings_are_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: "):
        load_run(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's coroutines
def test_a_checkpoint_whose_metadata_lack_an_array_is_named(tmp_path):
    state = TrainState(step=jnp.int32(1), params={"w": jnp.ones(3)}, average=None, variables={}, opt_state=())
    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, state, {"auc": 50.0, "eer": 50.0})
    metadata = tmp_path / "checkpoints" / "1" / "default" / "_METADATA"
    content = metadata.read_text()
    assert "jax.Array" in content
    metadata.write_text(content.replace("jax.Array", "None", 1))
    with pytest.raises(InputError, match=r"checkpoints/1: could not be read as a checkpoint"):
        checkpoints.best_model(tmp_path / "checkpoints", state)


def test_models_are_found_under_both_of_their_paths(finished, monkeypatch):
    monkeypatch.chdir(finished)
    for path in (finished / "four", finished / "models" / "four", "models/four"):
        run, model = find_model(path)
        assert (run.config, model) == (load_run(finished).config, "four")
    assert find_model(finished)[1] is None
    with pytest.raises(InputError, match=r"expected a model of the run \(teacher, plain, four\), got 'five'"):
        find_model(finished / "five")
