"""What an inner layer of a model of waveforms holds, and models that must not be run."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from qkd_jax.distill.waveform_model import open_inner, open_model
from qkd_jax.errors import InputError
from qkd_jax.system import isolation as trial
from tests.waveform_models import Graph, write_loudness

SHARED = Path(os.environ.get("QKD_SHARED", Path(__file__).parents[3] / "shared"))


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, samples).astype(np.float32)


@pytest.mark.parametrize("shape", [(1000,), (1, 1000), (1, "samples")])
@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        ("absolute", np.abs),  # a part of absolute/codes too
        ("codes", lambda x: np.clip(np.rint(64 * np.abs(x)), 0, 255) / 64),
        ("loudest", lambda x: np.abs(x).max(keepdims=True)),
        ("oud", lambda x: np.abs(x).max(keepdims=True)),  # a part of a constant's name too
        ("scores", lambda x: np.abs(x).max() * np.float32([0.2, 0.5])),
    ],
)
def test_a_layer_is_what_its_operation_gives(tmp_path, shape, layer, formula):
    samples, run = open_inner(write_loudness(tmp_path / "m.tflite", shape, [0.2, 0.5]), layer)
    assert samples == (1000 if 1000 in shape else None)
    for seed in range(3):
        waveform = 2 * noise(1000, seed)
        values = run(waveform)
        assert values.dtype == np.float32 and values.ndim == 1
        np.testing.assert_allclose(values, formula(waveform), rtol=1e-6)


def yamnet():
    path = SHARED / "models" / "yamnet_tfhub_classification.tflite"
    if not path.is_file():
        pytest.skip(f"no YAMNet in {SHARED} (QKD_SHARED says where)")
    return path


def test_yamnets_embeddings_give_its_scores():
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    path = yamnet()
    samples, run = open_inner(path, "tower0/network/layer28/reduce_mean")
    assert samples == 15_600
    _, run_logits = open_inner(path, "fc/BiasAdd")
    _, run_scores = open_inner(path, "tower0/network/layer32/final_output")
    _, run_whole = open_model(path)
    plain = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    plain.allocate_tensors()
    tensors = {item["name"]: item for item in plain.get_tensor_details()}

    def constant(name):
        scale, zero = tensors[name]["quantization"]
        return (plain.get_tensor(tensors[name]["index"]).astype(np.float64) - zero) * scale

    weights, bias = constant("tower0/network/layer29/fc/MatMul"), constant("network/layer29/fc/biases")
    (unit,) = (item["quantization"][0] for name, item in tensors.items() if name.endswith("fc/BiasAdd"))
    time = np.arange(15_600) / 16_000
    for waveform in (noise(15_600), 0.1 * noise(15_600), np.float32(0.5 * np.sin(2e3 * time**2))):
        embedding, logits = run(waveform), run_logits(waveform)
        assert embedding.shape == (1024,) and (embedding > 0).sum() > 10
        # Codes of logits are of 0.35 each, and probabilities' of 1/256.
        np.testing.assert_allclose(weights @ embedding + bias, logits, atol=0.501 * unit)
        probabilities = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(run_scores(waveform), probabilities, atol=0.51 / 256)
        plain.set_tensor(plain.get_input_details()[0]["index"], waveform)
        plain.invoke()
        np.testing.assert_array_equal(
            run_scores(waveform), plain.get_tensor(plain.get_output_details()[0]["index"])[0]
        )
        # The delegate's operations round otherwise: by two codes of a logit, at a slope of at most 1/4.
        np.testing.assert_allclose(run_whole(waveform)[0][0], probabilities, atol=unit / 2)


def test_what_is_no_layer_is_said(tmp_path):
    path = write_loudness(tmp_path / "m.tflite", (1, 1000), [0.2, 0.5])
    for layer, said in [
        ("loudset", r"layer: expected a tensor that .*m\.tflite computes, got 'loudset', maybe 'loudest'"),
        ("gains", r"expected a tensor that .*m\.tflite computes, got 'gains'$"),
        ("loudest/axis", r"computes, got 'loudest/axis', maybe 'loudest'$"),
        ("waveform", r"computes, got 'waveform'$"),
        ("s", r"a part of one name in .*, got 's', a part of 4: 'absolute', 'absolute/codes', 'loudest'$"),
    ]:
        with pytest.raises(InputError, match=said):
            open_inner(path, layer)
    write_loudness(tmp_path / "m.onnx", (1, 1000), [0.2, 0.5])
    with pytest.raises(InputError, match=r"layer: expected a \.tflite for inner layers, got .*m\.onnx"):
        open_inner(tmp_path / "m.onnx", "absolute")
    with pytest.raises(InputError, match=r"file: expected a model at .*gone\.tflite, found none"):
        open_inner(tmp_path / "gone.tflite", "absolute")


STUB = """
import os, signal, time
class OpResolverType:
    BUILTIN_WITHOUT_DEFAULT_DELEGATES = 0
class Interpreter:
    def __init__(self, path, **options):
        {}
"""


def stub(folder, monkeypatch, fate):
    """Put a runtime of this fate in LiteRT's place, and an empty model beside it."""
    (folder / "ai_edge_litert").mkdir()
    (folder / "ai_edge_litert" / "__init__.py").touch()
    (folder / "ai_edge_litert" / "interpreter.py").write_text(STUB.format(fate))
    monkeypatch.syspath_prepend(folder)
    (folder / "m.tflite").touch()


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            r"m\.tflite: made LiteRT crash \(SIGSEGV\); expected a model",
        ),
        ("os.abort()", r"m\.tflite: made LiteRT crash \(SIGABRT\); expected a model that it can run"),
        ("time.sleep(60)", r"m\.tflite: took LiteRT more than 1 s; expected a model that it can run"),
        (
            "print('a', end=''); raise RuntimeError('no\\nmodel')",
            r"m\.tflite: expected a model for LiteRT: no$",
        ),
    ],
)
@pytest.mark.parametrize("layer", [(), ("loudest",)])
def test_a_model_that_ends_its_runtime_ends_no_run(tmp_path, monkeypatch, tried, fate, said, layer):
    stub(tmp_path, monkeypatch, fate)
    if "sleep" in fate:
        monkeypatch.setattr(trial, "_SECONDS", 1)
    with pytest.raises(InputError, match=said):
        (open_inner if layer else open_model)(tmp_path / "m.tflite", *layer)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_being_stopped_meanwhile_is_no_crash(tmp_path, monkeypatch, tried, name):
    stub(tmp_path, monkeypatch, f"os.kill(os.getpid(), signal.{name})")
    with pytest.raises(KeyboardInterrupt):
        open_model(tmp_path / "m.tflite")


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_model_that_does_what_it_shall_passes_the_trial(tmp_path, tried, suffix):
    samples, run = open_model(write_loudness(tmp_path / f"m{suffix}", (1, 1000), [0.2, 0.5]))
    assert samples == 1000
    np.testing.assert_allclose(run(noise(1000))[1], np.abs(noise(1000)).max() * np.float32([[0.2, 0.5]]))


def test_what_takes_any_number_of_samples_need_not_take_those_of_the_trial(tmp_path, tried):
    graph = Graph()
    parts = graph.add("Reshape", "waveform", np.array([-1, 3, 1000]))
    scores = graph.add("ReduceMax", parts, np.array([0, 2]), keepdims=0)
    _, run = open_model(graph.write(tmp_path / "m.onnx", (1, "samples"), {scores: (3,)}))
    assert run(noise(6000))[0].shape == (3,)
    with pytest.raises(InputError, match=r"m\.onnx: failed on 4000 samples"):
        run(noise(4000))


def test_what_is_no_waveform_for_memory_is_refused(tmp_path):
    path = write_loudness(tmp_path / "m.onnx", (1, 2**31), [0.2, 0.5])
    with pytest.raises(InputError, match=r"m\.onnx: expected a model of one float32 waveform.*2147483648"):
        open_model(path)


def test_names_of_tensors_that_are_no_text_are_refused(tmp_path):
    path = write_loudness(tmp_path / "m.tflite", (1, 1000), [0.2, 0.5])
    path.write_bytes(path.read_bytes().replace(b"waveform", b"wave\xff\xferm"))
    with pytest.raises(InputError, match=r"m\.tflite: expected a model for LiteRT: 'utf-8' codec"):
        open_model(path)


def test_outputs_that_are_no_numbers_are_refused(tmp_path):
    graph = Graph()
    texts = graph.add("Cast", "waveform", to=onnx.TensorProto.STRING)
    graph.write(tmp_path / "m.onnx", (1, 4), {texts: (1, 4)})
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    onnx.save(model, tmp_path / "m.onnx")
    _, run = open_model(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx: expected arrays of numbers, found "):
        run(noise(4))


@pytest.mark.parametrize("where", ["../weights.bin", "{}/weights.bin"])
def test_weights_outside_the_models_folder_are_not_read(tmp_path, where):
    (tmp_path / "models").mkdir()
    (tmp_path / "weights.bin").write_bytes(np.float32([[0.2, 0.5]]).tobytes())
    path = write_loudness(tmp_path / "models" / "m.onnx", (1, 4), [0.2, 0.5])
    model = onnx.load(path)
    (weights,) = (item for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=where.format(tmp_path))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"m\.onnx: expected a model for ONNX Runtime: .*[Ee]xternal data"):
        open_model(path)
