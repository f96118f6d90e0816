"""Damaged or foreign files in a run's folder: one line that names the file."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import qkd_jax.config as cfg
from qkd_jax.data.dataset import Dataset
from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.folder import find_model, load_run
from qkd_jax.run_folder.run import Run
from qkd_jax.run_folder.state import TrainState
from qkd_jax.training.teachers import embedding_targets, teacher_logits
from tests.faults import refused

EVENTS = ("bell", "knock")
DATA = Dataset(["a", "b", "c"], [], np.zeros((3, 2), np.float32), EVENTS, np.ones(3, np.int8))
SETTINGS = {"events": EVENTS, "clip_seconds": 0.4}
FEATURES = cfg.FeatureConfig(n_mels=8)
STUDENT = cfg.ModelConfig(network=cfg.LSTMConfig(), teachers=("x.npz",))
CRNN = cfg.CRNNConfig(channels=(2,), pools=((2, 2),), hidden_size=2)
GUIDED = cfg.ModelConfig(network=CRNN, objective=cfg.EventObjective(embeddings="tagger.toml"))
CLIPS = cfg.RunConfig(features=FEATURES, data=cfg.ManifestData(**SETTINGS), models={"m": STUDENT})
TIMED = cfg.RunConfig(
    features=FEATURES, data=cfg.DESEDData(**SETTINGS), recipe=cfg.EventRecipe(), models={"m": GUIDED}
)
STEPS = TIMED.models["m"].network.steps(TIMED.frames)
ROWS = np.random.default_rng(0).normal(0, 1, (3, 5, 6)).astype(np.float16)


def float32(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        *((None, None), (float32(8), None), (float32(7), float32(7)), (float32(8), float32(7))),
        *((float32(8), 0 * float32(8)), (np.nan * float32(8), float32(8)), (np.array(["x"] * 8), float32(8))),
    ],
)
def test_a_damaged_norm_is_named(tmp_path, mean, std):
    arrays = {"mean": mean, "std": std}
    np.savez(tmp_path / "norm.npz", **{key: array for key, array in arrays.items() if array is not None})
    with refused(r"norm\.npz: expected mean and standard deviation of the training"):
        Run(tmp_path, CLIPS).norm([])


@pytest.mark.parametrize("logits", [float32(3, 3), float32(2, 2), float32(1, 3, 2), np.inf * float32(3, 2)])
def test_damaged_logits_of_a_teacher_from_a_file_are_named(tmp_path, logits):
    run = Run(tmp_path, CLIPS)
    path = run.teacher_file("x.npz")
    path.parent.mkdir()
    np.save(path, logits)
    with refused(r"teachers/x-\w+\.npy: expected logits of x\.npz"):
        teacher_logits(run, "m", DATA)
    path.write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
    with refused(r"x-\w+\.npy: expected logits .*: expected an array, found Npz"):
        teacher_logits(run, "m", DATA)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        *(("rows", rows) for rows in (ROWS[:2], ROWS[..., :5], ROWS * np.float16(np.inf))),
        *(("row_of_step", np.full(STEPS, row)) for row in (5, -1)),
        *(("row_of_step", rows) for rows in (np.zeros(STEPS - 1, int), np.zeros(STEPS))),
        *(("size", size) for size in (0, 10**6, np.array([6]))),
    ],
)
def test_damaged_embeddings_are_named(tmp_path, key, wrong):
    arrays = {"rows": ROWS, "row_of_step": np.arange(STEPS) % 5, "size": 6}
    run = Run(tmp_path, TIMED)
    run.model_folder("m").mkdir(parents=True)

    def read():
        run.model("m")
        return embedding_targets(run, "m", 3).rows

    np.savez(run.embeddings_file("m"), **arrays)
    assert_array_equal(read(), ROWS)
    np.savez(run.embeddings_file("m"), **arrays | {key: wrong})
    with refused(r"m/embeddings\.npz: expected embeddings"):
        read()


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"[" * 100_000, b'{"data": {"clip_seconds": 1e999}}'])
def test_damaged_settings_are_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with refused(r"config\.json: "):
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
    with refused(r"checkpoints/1: could not be read as a checkpoint"):
        checkpoints.best_model(tmp_path / "checkpoints", state)


def test_models_are_found_under_both_of_their_paths(finished, monkeypatch):
    monkeypatch.chdir(finished)
    for path in (finished / "four", finished / "models" / "four", "models/four"):
        run, model = find_model(path)
        assert (run.config, model) == (load_run(finished).config, "four")
    assert find_model(finished)[1] is None
    with refused(r"expected a model of the run \(teacher, plain, four\), got 'five'"):
        find_model(finished / "five")
