"""Inner layers of models of waveforms, and models that are refused."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.distill.waveform_model import open_model
from qkd_jax.system import isolation
from tests.faults import refused
from tests.recordings import noise
from tests.waveform_models import Graph, write_loudness

SHARED = Path(os.environ.get("QKD_SHARED", Path(__file__).parents[3] / "shared"))


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
def test_a_layer_is_the_output_of_its_operation(tmp_path, shape, layer, formula):
    samples, run = open_model(write_loudness(tmp_path / "m.tflite", shape, [0.2, 0.5]), layer)
    assert samples == (1000 if 1000 in shape else None)
    for seed in range(3):
        waveform = 2 * noise(1000, seed)
        *outputs, values = run(waveform)
        assert_allclose(outputs[-1].ravel(), np.abs(waveform).max() * np.float32([0.2, 0.5]), rtol=1e-6)
        assert_allclose(values.ravel(), formula(waveform), rtol=1e-6)


@pytest.mark.parametrize(("layer", "place"), [("absolute", 0), ("score", 1)])
def test_a_layer_of_an_onnx_model_is_one_of_its_outputs(tmp_path, layer, place):
    graph = Graph()
    absolute = graph.add("Abs", "waveform")
    loudest = graph.add("ReduceMax", absolute, keepdims=0)
    names = {
        "absolute": graph.add("Identity", absolute),
        "scores": graph.add("Mul", np.float32([[2]]), loudest),
    }
    for node in graph.nodes:
        node.output[0] = next((name for name, old in names.items() if node.output[0] == old), node.output[0])
    path = graph.write(tmp_path / "m.onnx", (1, "samples"), {"absolute": (1, "samples"), "scores": (1, 1)})
    _, run = open_model(path, layer)
    *outputs, values = run(noise(300))
    assert len(outputs) == 2
    assert_array_equal(values, outputs[place])
    with refused(r"layer: expected an output of .*m\.onnx, got 'scared', maybe 'scores'"):
        open_model(path, "scared")


def test_yamnets_embeddings_give_its_scores():
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    path = SHARED / "models" / "yamnet_tfhub_classification.tflite"
    if not path.is_file():
        pytest.skip(f"no YAMNet in {SHARED} (QKD_SHARED says where)")
    samples, run = open_model(path, "tower0/network/layer28/reduce_mean")
    assert samples == 15_600
    _, run_logits = open_model(path, "fc/BiasAdd")
    _, run_whole = open_model(path)
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    plain = Interpreter(str(path), experimental_op_resolver_type=resolver)
    plain.allocate_tensors()
    tensors = {item["name"]: item for item in plain.get_tensor_details()}

    def constant(name):
        step, zero = tensors[name]["quantization"]
        return (plain.get_tensor(tensors[name]["index"]).astype(np.float64) - zero) * step

    weights, bias = constant("tower0/network/layer29/fc/MatMul"), constant("network/layer29/fc/biases")
    (scale,) = (item["quantization"][0] for name, item in tensors.items() if name.endswith("fc/BiasAdd"))
    time = np.arange(15_600) / 16_000
    for waveform in (noise(15_600), 0.1 * noise(15_600), np.float32(0.5 * np.sin(2e3 * time**2))):
        (scores, embedding), logits = map(np.ravel, run(waveform)), run_logits(waveform)[-1][0]
        assert embedding.shape == (1024,) and (embedding > 0).sum() > 10
        # A code of 1 is worth 0.35 for logits and 1/256 for probabilities.
        assert_allclose(weights @ embedding + bias, logits, atol=0.501 * scale)
        probabilities = 1 / (1 + np.exp(-logits))
        assert_allclose(scores, probabilities, atol=0.51 / 256)
        assert_allclose(scores, run_whole(waveform)[0][0], atol=scale / 2)
        plain.set_tensor(plain.get_input_details()[0]["index"], waveform)
        plain.invoke()
        # The delegate rounds differently: up to two codes of a logit, at a slope of at most 1/4.
        assert_allclose(scores, plain.get_tensor(plain.get_output_details()[0]["index"])[0], atol=scale / 2)


def test_a_name_that_is_not_one_layer_is_refused(tmp_path):
    path = write_loudness(tmp_path / "m.tflite", (1, 1000), [0.2, 0.5])
    for layer, error in [
        ("loudset", r"layer: expected a tensor that .*m\.tflite computes, got 'loudset', maybe 'loudest'"),
        ("gains", r"expected a tensor that .*m\.tflite computes, got 'gains'$"),
        ("loudest/axis", r"computes, got 'loudest/axis', maybe 'loudest'$"),
        ("waveform", r"computes, got 'waveform'$"),
        ("s", r"a part of one name in .*, got 's', a part of 4: 'absolute', 'absolute/codes', 'loudest'$"),
    ]:
        with refused(error):
            open_model(path, layer)
    with refused(r"file: expected a model at .*gone\.tflite, found none"):
        open_model(tmp_path / "gone.tflite", "absolute")


STUB = """
import os, signal, time
class OpResolverType:
    BUILTIN_WITHOUT_DEFAULT_DELEGATES = 0
class Interpreter:
    def __init__(self, path, **options):
        {}
"""


def stub(folder, monkeypatch, statement):
    """Replace LiteRT with a runtime that executes a statement when it opens a model; add an empty model."""
    (folder / "ai_edge_litert").mkdir()
    (folder / "ai_edge_litert" / "__init__.py").touch()
    (folder / "ai_edge_litert" / "interpreter.py").write_text(STUB.format(statement))
    monkeypatch.syspath_prepend(folder)
    (folder / "m.tflite").touch()


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"made LiteRT crash \(SIGSEGV\); expected a model"),
        ("os.abort()", r"made LiteRT crash \(SIGABRT\); expected a model that it can run"),
        ("time.sleep(60)", r"took LiteRT more than 1 s; expected a model that it can run"),
        ("print('a', end=''); raise RuntimeError('no\\nmodel')", r"expected a model for LiteRT: no$"),
    ],
)
@pytest.mark.parametrize("layer", [(), ("loudest",)])
def test_a_model_that_crashes_or_hangs_its_runtime_is_refused(
    tmp_path, monkeypatch, tried, statement, error, layer
):
    stub(tmp_path, monkeypatch, statement)
    if "sleep" in statement:
        monkeypatch.setattr(isolation, "_SECONDS", 1)
    with refused(rf"m\.tflite: {error}"):
        open_model(tmp_path / "m.tflite", *layer)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_during_the_trial_interrupts_and_is_not_a_crash(tmp_path, monkeypatch, tried, name):
    stub(tmp_path, monkeypatch, f"os.kill(os.getpid(), signal.{name})")
    with pytest.raises(KeyboardInterrupt):
        open_model(tmp_path / "m.tflite")


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_sound_model_passes_the_trial(tmp_path, tried, suffix):
    samples, run = open_model(write_loudness(tmp_path / f"m{suffix}", (1, 1000), [0.2, 0.5]))
    assert samples == 1000
    assert_allclose(run(noise(1000))[1], np.abs(noise(1000)).max() * np.float32([[0.2, 0.5]]))


def test_an_input_too_long_or_names_that_are_not_text_are_refused(tmp_path):
    path = write_loudness(tmp_path / "m.onnx", (1, 2**31), [0.2, 0.5])
    with refused(r"m\.onnx: expected a model of one float32 waveform.*2147483648"):
        open_model(path)
    path = write_loudness(tmp_path / "m.tflite", (1, 1000), [0.2, 0.5])
    path.write_bytes(path.read_bytes().replace(b"waveform", b"wave\xff\xferm"))
    with refused(r"m\.tflite: expected a model for LiteRT: 'utf-8' codec"):
        open_model(path)


def test_outputs_that_are_not_numbers_are_refused(tmp_path):
    graph = Graph()
    texts = graph.add("Cast", "waveform", to=onnx.TensorProto.STRING)
    graph.write(tmp_path / "m.onnx", (1, 4), {texts: (1, 4)})
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    onnx.save(model, tmp_path / "m.onnx")
    _, run = open_model(tmp_path / "m.onnx")
    with refused(r"m\.onnx: expected arrays of numbers, found "):
        run(noise(4))


@pytest.mark.parametrize("where", ["../weights.bin", "{}/weights.bin"])
def test_weights_outside_the_folder_of_the_model_are_not_read(tmp_path, where):
    (tmp_path / "models").mkdir()
    (tmp_path / "weights.bin").write_bytes(np.float32([[0.2, 0.5]]).tobytes())
    path = write_loudness(tmp_path / "models" / "m.onnx", (1, 4), [0.2, 0.5])
    model = onnx.load(path)
    (weights,) = (item for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=where.format(tmp_path))
    path.write_bytes(model.SerializeToString())
    with refused(r"m\.onnx: expected a model for ONNX Runtime: .*[Ee]xternal data"):
        open_model(path)
