"""`qkd-jax detect` as a person runs it: files and pipes to events, and one line for each mistake."""

import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qkd_jax.audio.reading import read_audio
from qkd_jax.commands.detect import DetectOptions, chosen_events, main
from qkd_jax.config import EventConfig, FeatureConfig
from qkd_jax.detector import events
from qkd_jax.detector.file import save
from qkd_jax.errors import InputError
from tests.detectors import PLAIN, random_detector

ROOT = Path(__file__).parents[2]
RATE = 8000
FEATURES = FeatureConfig(sample_rate=RATE, win_length=200, hop_length=80, n_fft=256, n_mels=32, fmax=4000.0)
RANDOM = dataclasses.replace(random_detector(PLAIN), features=FEATURES)
POINTS = {
    "eer": dict(zip(RANDOM.events, (0.73, 0.94, 0.72))),
    "1/h": dict(zip(RANDOM.events, (0.78, 0.95, 0.76))),
}
DETECTOR = dataclasses.replace(
    RANDOM, event_config=EventConfig(thresholds=POINTS, use="eer", end=1.0, median_seconds=0.05)
)


def sound(seconds, rate=RATE, seed=0):
    """Noise whose loudness changes now and then."""
    rng = np.random.default_rng(seed)
    loudness = rng.uniform(0, 0.2, seconds * 5).repeat(rate // 5)
    return np.clip(rng.normal(0, 1, seconds * rate) * loudness, -1, 1).astype(np.float32)


@pytest.fixture
def model(tmp_path):
    save(DETECTOR, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


@pytest.fixture
def record(tmp_path):
    def record(name, seconds=3, rate=RATE, seed=0):
        soundfile.write(tmp_path / name, sound(seconds, rate, seed), rate)
        return str(tmp_path / name)

    return record


def expected(path, **changes):
    event_config = dataclasses.replace(DETECTOR.event_config, **changes)
    detector = dataclasses.replace(DETECTOR, event_config=event_config)
    return list(events.detect(detector, [read_audio(path, RATE)]))


def detect(*arguments):
    main(list(arguments), "qkd-jax detect")


def printed(capsys, *arguments):
    """The events that the command prints as JSON, and their files."""
    detect(*arguments, "--format", "json")
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [item.pop("file") for item in items], items


def rounded(found):
    times = ({"onset": round(event.onset, 3), "offset": round(event.offset, 3)} for event in found)
    return [dataclasses.asdict(event) | time for event, time in zip(found, times)]


def command(*arguments, stdin=subprocess.PIPE):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "detect.py"), *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def raw(samples):
    return np.rint(samples * 32767).astype("<i2").tobytes()


def test_files_of_any_rate_become_events(model, record, capsys):
    one, other = record("one.wav"), record("other.flac", rate=44_100, seed=1)
    files, items = printed(capsys, model, one, other)
    assert items == rounded(expected(one) + expected(other))
    assert files == [one] * len(expected(one)) + [other] * len(expected(other))
    assert len(set(files)) == 2


def test_a_table_is_the_default(model, record, capsys):
    path = record("one.wav")
    detect(model, path)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "onset", "offset", "event", "peak"]
    assert [row.split()[3] for row in rows] == [event.event for event in expected(path)] != []


def test_an_operating_point_or_a_threshold_can_be_asked_for(model, record, capsys):
    path = record("one.wav")
    given = {"given": dict.fromkeys(RANDOM.events, 0.75)}
    one_more = {"given": POINTS["eer"] | {RANDOM.events[0]: 0.78}}
    results = [
        printed(capsys, model, path, *arguments)[1]
        for arguments in (
            [],
            ["--false-alarms", "1"],
            ["--events.use", "1/h"],
            ["--threshold", "0.75"],
            ["--threshold", *(f"{event}=0.75" for event in RANDOM.events)],
            ["--threshold", f"{RANDOM.events[0]}=0.78"],
            ["--events.shortest-seconds", "0.3"],
        )
    ]
    assert results == [
        rounded(expected(path, **changes))
        for changes in (
            {},
            {"use": "1/h"},
            {"use": "1/h"},
            {"thresholds": given, "use": "given"},
            {"thresholds": given, "use": "given"},
            {"thresholds": one_more, "use": "given"},
            {"shortest_seconds": 0.3},
        )
    ]
    assert all(results) and len({json.dumps(result) for result in results}) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"qkd-jax detect MODEL FILE…: expected a model and at least one file, got none; see --help"),
        (["MODEL", "--format", "json"], r"expected a model and at least one file"),
        (["gone.safetensors", "FILE"], r"gone\.safetensors: expected a detector's file, found none"),
        (["FILE", "FILE"], r"a\.wav: expected a detector in a \.safetensors file"),
        (
            ["x.onnx", "FILE"],
            r"x\.onnx: expected a \.safetensors file, got \.onnx; to score this file: qkd-jax eval x",
        ),
        (
            ["x.h", "FILE"],
            r"x\.h: expected a \.safetensors file, got \.h; to score this file: qkd-jax eval x",
        ),
        (
            ["MODEL", "FILE", "--false-alarms", "2"],
            r"^--false-alarms: .*\(eer, 1/h\), got 2/h; N/h requires at least 1/N hours of",
        ),
        (
            ["MODEL", "FILE", "--false-alarms", "1", "--threshold", "0.1"],
            r"^--false-alarms, --thres.* got both",
        ),
        (["MODEL", "FILE", "--events.use", "2/h"], r"^--events\.use: .*\(eer, 1/h\), got '2/h'"),
        (
            ["MODEL", "FILE", "--threshold", "1.5"],
            r"^--threshold: expected a number between 0 and 1.*'1\.5'$",
        ),
        (
            ["MODEL", "FILE", "--threshold", "dog=x"],
            r"^--threshold: expected a number between 0 and 1.*'dog=x'$",
        ),
        (["MODEL", "FILE", "--threshold", "cow=0.5"], r"^--threshold: expected an event \(.*\), got 'cow'$"),
        (["MODEL", "FILE", "--threshold"], r"^--threshold: expected at least 1 value"),
        (["MODEL", "FILE", "--format", "xml"], r"^--format: expected .*'audacity'.*, got 'xml'$"),
        (["MODEL", "FILE", "-", "--format", "audacity"], r"^--format audacity: expected one file, got 2"),
        (["MODEL", "FILE", "--formt", "json"], r"--formt.*--format"),
        (["MODEL", "FILE", "--runtime", "tpu"], r"^--runtime: expected 'numpy'.*, got 'tpu'$"),
        (
            ["MODEL", "FILE", "--state", "S"],
            r"^--state: expected exactly one stream \(- or mic\), got .*a\.wav",
        ),
        (["MODEL", "-", "mic", "--state", "S"], r"^--state: expected exactly one stream .* got -, mic"),
        (["MODEL", "mic", "--state", "FILE"], r"a\.wav: expected a state in a \.safetensors file"),
    ],
)
def test_what_is_wrong_is_one_line(model, record, arguments, message, capsys):
    places = {"MODEL": model, "FILE": record("a.wav")}
    with pytest.raises(InputError, match=message) as caught:
        detect(*(places.get(argument, argument) for argument in arguments))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_model_without_operating_points_says_so():
    with pytest.raises(InputError, match=r"expected none \(the detector has no operating points\), got 1/h"):
        chosen_events(DetectOptions(false_alarms="1/h"), ("dog",))


def test_a_bad_recording_is_named_when_the_others_are_done(model, record, tmp_path, capsys):
    path, text = record("a.wav"), tmp_path / "text.wav"
    text.write_text("no recording")
    with pytest.raises(InputError) as caught:
        detect(model, "gone.wav", path, str(text), path, "--format", "json")
    first, second = str(caught.value).splitlines()
    assert first.startswith("gone.wav: expected a recording") and "text.wav: expected a recording" in second
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(expected(path)) > 0


def test_standard_input_is_samples_or_a_mistake(model, record, tmp_path, capsys, monkeypatch):
    path, samples = record("a.wav"), tmp_path / "samples"
    samples.write_bytes(raw(sound(3)))

    def from_file(path):
        with open(path) as file:
            monkeypatch.setattr(sys, "stdin", file)
            return printed(capsys, model, "-")

    files, items = from_file(samples)
    assert files == ["-"] * len(items)
    samples = np.frombuffer(raw(sound(3)), "<i2").astype(np.float32) / 32768
    assert items == rounded(list(events.detect(DETECTOR, [samples]))) != []
    with pytest.raises(InputError, match=r"standard input: expected samples without a header, found one"):
        from_file(path)


def test_the_microphone_is_a_file_of_that_name(model, capsys, monkeypatch):
    monkeypatch.setattr("qkd_jax.audio.microphone.microphone_blocks", lambda rate: [sound(3, rate)])
    files, items = printed(capsys, model, "mic")
    assert items == rounded(list(events.detect(DETECTOR, [sound(3)]))) != []
    assert set(files) == {"mic"}


@pytest.mark.parametrize("runtime", ["jax", "onnx", "c"])
def test_any_runtime_can_be_asked_for(model, record, capsys, runtime):
    if runtime == "c" and shutil.which("cc") is None:
        pytest.skip("needs a C compiler, cc")
    path = record("a.wav")
    _, items = printed(capsys, model, path, "--runtime", runtime)
    for item, event in zip(items, rounded(expected(path)), strict=True):
        # Front ends differ in last bits.
        assert item.pop("peak") == pytest.approx(event.pop("peak"), abs=0.05)
        assert item == pytest.approx(event, abs=0.05)


def test_what_is_heard_today_goes_on_tomorrow(model, tmp_path, capsys, monkeypatch):
    samples, state, items = sound(6), str(tmp_path / "state"), []
    for part in np.split(samples, [20_001, 20_002, 37_777]):
        monkeypatch.setattr("qkd_jax.audio.microphone.microphone_blocks", lambda rate, part=part: [part])
        items += printed(capsys, model, "mic", "--state", state)[1]
    whole = rounded(list(events.detect(DETECTOR, [samples])))
    assert 5 < len(items) <= len(whole) and items == whole[: len(items)]
    for asked, message in (
        (["--runtime", "c"], "runtime c, found one with numpy"),
        (["--threshold", "0.9"], "use"),
    ):
        with pytest.raises(InputError, match=rf"state: expected a state with {message}"):
            printed(capsys, model, "mic", "--state", state, *asked)


def test_a_stream_that_is_stopped_by_signals_loses_and_repeats_nothing(model, tmp_path):
    asked = [model, "-", "--format", "json", "--state", str(tmp_path / "state")]
    data, lines, (read, write) = raw(sound(12)), [], os.pipe()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb", buffering=0) as pipe:
        for number, pieces in (
            (signal.SIGTERM, (data[:30_001], data[30_001:60_000])),
            (signal.SIGINT, (data[60_000:120_000],)),
            (None, (data[120_000:150_001], data[150_001:])),
        ):
            with command(*asked, stdin=source) as process:
                for piece in pieces:
                    pipe.write(piece)
                if number:
                    lines.append(process.stdout.readline())  # it is in the midst, or waits for more
                    process.send_signal(number)
                else:
                    pipe.close()
                lines += process.stdout.readlines()
                said = process.stderr.read().decode().splitlines()
                assert process.wait(60) == (130 if number else 0)
                assert said[-1:] == (["stopped; run the same command again to continue"] if number else [])
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    whole, items = rounded(list(events.detect(DETECTOR, [samples]))), [json.loads(line) for line in lines]
    assert {item.pop("file") for item in items} == {"-"}
    assert items == whole[: len(items)] and len(whole) - len(items) <= len(RANDOM.events)


def test_options_may_come_first(model, record, capsys):
    path = record("one.wav")
    detect("--threshold", "0.75", "dog=0.75", "--format=json", model, path)
    first = capsys.readouterr().out
    detect(model, "--format", "json", path, "--threshold", "0.75")
    assert capsys.readouterr().out == first != ""


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        detect(*arguments, "--help")
    assert not caught.value.code
    return capsys.readouterr().out


def test_help_needs_no_model_and_shows_the_settings_of_one(model, capsys):
    text = help_of(capsys)
    for words in ("qkd-jax detect MODEL FILE…", "--false-alarms", "--threshold", "--format", "16-bit"):
        assert words in text
    assert len(text.splitlines()) <= 48 and "--events.end 0.5" in text
    of_model = help_of(capsys, model)
    for words in (
        "--events.use eer",
        "--events.end 1",
        "--events.median-seconds 0.05",
        "thresholds.1/h.dog 0.78",
    ):
        assert words in of_model and words not in text


HEAVY = ["jax", "jaxlib", "flax", "orbax", "grain", "optax", "librosa", "numba", "scipy", "sklearn"]
HEAVY += ["matplotlib", "onnx", "onnxruntime", "tensorboardX", "rich", "jaxtyping", "jinja2"]


def without(libraries, *arguments):
    """The finished command, run where `libraries` can't be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({libraries})); "
        "from qkd_jax.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("runtime", ["numpy", "c"])
def test_it_runs_where_jax_is_not_installed(model, record, runtime):
    if runtime == "c" and shutil.which("cc") is None:
        pytest.skip("needs a C compiler, cc")
    missing = [name for name in HEAVY if (runtime, name) != ("c", "jinja2")]
    path = record("a.flac", rate=44_100)
    done = without(missing, "detect", model, path, "--false-alarms", "1", "--runtime", runtime)
    assert done.returncode == 0 and done.stderr == "" and "dog" in done.stdout
    assert without(missing, "presets").returncode == 0 == without(missing, "--help").returncode


def test_an_event_in_a_pipe_is_said_when_it_is_over_and_ctrl_c_is_quiet(model):
    with command(model, "-", "--format", "json") as process:
        process.stdin.write(raw(sound(5)))
        process.stdin.flush()
        # The pipe stays open.
        assert select.select([process.stdout], [], [], 60)[0]
        assert json.loads(process.stdout.readline())["event"] in RANDOM.events
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""


def test_who_has_read_enough_may_close_the_pipe(model, record):
    with command(model, record("a.wav", seconds=20)) as process:
        assert process.stdout.readline().startswith(b"file")
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
