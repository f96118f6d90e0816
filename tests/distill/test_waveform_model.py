"""What an inner layer of a model of waveforms holds."""

import os
from pathlib import Path

import numpy as np
import pytest

from qkd_jax.config import InputError
from qkd_jax.distill.waveform_model import open_inner, open_model
from tests.waveform_models import write_loudness

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
