"""Thousands of damaged and hostile files give InputError or a detector, in bounded memory and time.

Run as a program, this file is the process whose memory is limited; its arguments are FOLDER INPUTS SEED.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MEMORY, SECONDS = 1 << 30, 10
"""Limits: bytes beyond those before the first file, and seconds per file."""


def main(folder, inputs, seed):
    """Load `inputs` mutated files; print how many were refused, and how many loaded."""
    import resource
    import signal
    import warnings

    from qkd_jax.detector import reference
    from qkd_jax.detector.file import load, save
    from qkd_jax.errors import InputError, printable
    from tests.artefacts import as_version_1, mutated
    from tests.detectors import DEEP, FRONT, PLAIN, random_detector

    path = folder / "fuzzed.safetensors"
    files = []
    for network in (PLAIN, FRONT, DEEP):
        save(random_detector(network, mels=8), path, {"run": "fuzz"})
        files.append(path.read_bytes())
    files.append(as_version_1(files[1]))
    warnings.simplefilter("error")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    counts = {"refused": 0, "loaded": 0}
    for index in range(inputs):
        rng = random.Random(f"{seed} {index}")
        try:
            data = mutated(rng, files)
        except (ValueError, LookupError):
            continue  # JSON can't express it, or there is nothing to mutate
        path.write_bytes(data)
        signal.alarm(SECONDS)
        try:
            detector = load(path)
        except InputError as error:
            counts["refused"] += 1
            message = str(error)
            assert message.startswith(f"{path}: ") and message == printable(message), message
            assert len(message) <= 1000, message
        else:
            counts["loaded"] += 1
            # A detector that loads can be run without failures or warnings.
            half = 2 ** (detector.network.quant.activations - 1)
            codes = np.full((40, detector.features.n_mels), rng.choice((-half, half - 1)), np.int32)
            reference.clip_logits(detector, codes)
        signal.alarm(0)
    print(json.dumps(counts))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited as on Linux")
@pytest.mark.parametrize(("inputs", "seed"), [(2000, 0), pytest.param(30_000, 1, marks=pytest.mark.slow)])
def test_only_input_errors_escape(tmp_path, inputs, seed):
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(inputs), str(seed)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )
    # After a failure, the folder contains the file that caused it.
    assert done.returncode == 0, f"{tmp_path}: {done.returncode}\n{done.stderr[-3000:]}"
    counts = json.loads(done.stdout)
    assert min(counts["refused"], counts["loaded"]) > inputs / 10  # both outcomes are frequent


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
