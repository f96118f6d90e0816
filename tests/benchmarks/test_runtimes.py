"""What the tables of runtimes say, by hand, and the whole page of a tiny detector."""

import dataclasses
import importlib.util
import re

import numpy as np
import pytest

from benchmarks import runtimes
from benchmarks.runtimes import Times, byte_row, c_memory, detectors, time_rows, timed, untrained, written
from qkd_jax.audio import log_mel_numpy as front_end
from qkd_jax.commands.cli import run_command
from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector import file as artefact
from qkd_jax.detector import reference
from qkd_jax.errors import InputError
from qkd_jax.runtimes import onnx
from tests.detectors import FRONT, random_detector

TINY = LSTMConfig(hidden_size=6, pooling="mean", quant=QuantConfig.integer(4))


def test_rows_of_times_by_hand():
    times = {
        "C": Times([0.003, 0.001, 0.002, 0.005, 0.004], [0.006, 0.006, 0.009, 0.007, 0.001], 0.00012),
        "NumPy": Times([0.2], [0.25], 0.0),
    }
    dash = ["–"] * 5
    assert time_rows("tiny", times) == [
        ["tiny", "NumPy", "200.0", "200.0 to 200.0", "250.0", "50", "0"],
        ["tiny", "JAX", *dash],
        ["tiny", "ONNX Runtime", *dash],
        ["tiny", "LiteRT", *dash],
        ["tiny", "C", "3.0", "2.0 to 4.0", "6.0", "3,333", "0.0001"],
    ]


def test_runtimes_take_turns():
    heard = []

    def runtime(name, logit):
        def clip_logits(waveform):
            heard.append(name)
            return logit * waveform

        return clip_logits

    given = {"C": runtime("C", 2.01), "NumPy": runtime("NumPy", 2.0), "LiteRT": runtime("LiteRT", 5.0)}
    times = timed(given, np.array([-1.0, 0.5], np.float32), 2)
    assert heard[-6:] == ["C", "NumPy", "LiteRT"] * 2
    assert {name: (len(each.cpu), len(each.wall)) for name, each in times.items()} == dict.fromkeys(
        given, (2, 2)
    )
    differences = [times[name].difference for name in ("C", "NumPy", "LiteRT")]
    np.testing.assert_allclose(differences, [0.01, 0, 3], atol=1e-6)


@pytest.mark.parametrize("logit", [2.1, np.nan])
def test_other_logits_are_refused(logit):
    given = {"NumPy": lambda waveform: 2 * waveform, "C": lambda waveform: logit * waveform}
    with pytest.raises(InputError, match="C: expected NumPy's logits, found them off by"):
        timed(given, np.ones(1, np.float32), 1)


def test_bytes_are_those_of_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    detector = random_detector(FRONT)
    files = written(detector, tmp_path)
    row = byte_row("tiny", detector, files)
    onnx.save(onnx.step_model(detector), tmp_path / "step.onnx")
    numbers = [int(cell.replace(",", "")) for cell in row[1:7]]
    whole, clip, front, graph, weights, step = numbers
    assert [whole, clip, step] == [
        (tmp_path / name).stat().st_size for name in ("detector.safetensors", "detector.onnx", "step.onnx")
    ]
    assert min(front, graph, weights) > 0 and front + graph + weights == clip
    assert row[0] == "tiny" and row[7] == "–" and len(row) == 10
    assert "LiteRT" not in files


def test_memory_is_read_from_the_header():
    header = "/* a * b\n * Flash: 12345 bytes of constants, beside the code.  RAM: 678 bytes, the state. */\n"
    assert c_memory(header) == (12345, 678)


def test_an_untrained_detector_neither_sleeps_nor_saturates(monkeypatch):
    monkeypatch.setattr(runtimes, "SECONDS", 1)
    detector = untrained(TINY, FeatureConfig(n_mels=8))
    artefact.check(detector)
    codes = reference.input_codes(detector, front_end.log_mel(detector.features, runtimes.noise(16_000)))
    assert abs(codes.mean()) < 20 < codes.std() < 90
    assert detector.clip_seconds == 1
    assert abs(reference.clip_logits(detector, codes)).min() > 0.02


def test_files_of_one_name_are_refused(tmp_path):
    paths = [tmp_path / run / "student.safetensors" for run in "ab"]
    for path in paths:
        artefact.save(random_detector(FRONT), path)
    with pytest.raises(InputError, match="different names"):
        detectors([str(path) for path in paths])
    assert list(detectors([str(paths[0])])) == ["student"]


def test_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtimes, "SECONDS", 1)
    monkeypatch.setattr(runtimes, "STARTS", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # the converter takes seconds
    detector = dataclasses.replace(random_detector(FRONT), clip_seconds=1.0)
    model, out = tmp_path / "tiny.safetensors", tmp_path / "page" / "runtimes.md"
    artefact.save(detector, model)
    arguments = ["--model", str(model), "--rounds", "1", "--out", str(out)]
    assert run_command(runtimes.main, arguments) == 0
    page = out.read_text()
    assert page == capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| tiny")]
    by_runtime = {row[1]: row for row in rows[:5]}
    assert set(by_runtime) == {"NumPy", "JAX", "ONNX Runtime", "LiteRT", "C"} and len(rows) == 7
    assert all(float(row[2]) > 0 for name, row in by_runtime.items() if name != "LiteRT")
    assert rows[5][1] == f"{model.stat().st_size:,}" and float(rows[6][1]) > 0
    assert re.search(r"Written by `python -m benchmarks.runtimes`.*Python 3\.", page, re.DOTALL)
