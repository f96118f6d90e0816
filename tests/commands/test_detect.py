"""`qkd-jax detect` as a person runs it: files and pipes to events, and one line for each mistake."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
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
from tests.faults import refused, refused_in_one_line

ROOT = Path(__file__).parents[2]
RATE = 8000
FEATURES = FeatureConfig(sample_rate=RATE, win_length=200, hop_length=80, n_fft=256, n_mels=32, fmax=4000.0)
RANDOM = replace(random_detector(PLAIN), features=FEATURES)
POINTS = {"eer": dict(zip(RANDOM.events, (0.73, 0.94, 0.72)))}
POINTS["1/h"] = dict(zip(RANDOM.events, (0.78, 0.95, 0.76)))
EVENT_CONFIG = EventConfig(thresholds=POINTS, use="eer", end=1.0, median_seconds=0.05)
DETECTOR = replace(RANDOM, event_config=EVENT_CONFIG)


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


def events_in(samples, detector=DETECTOR):
    """The events of one recording, as the command prints them in JSON."""
    found = events.detect(detector, [samples])
    return [asdict(each) | {"onset": round(each.onset, 3), "offset": round(each.offset, 3)} for each in found]


def expected(path, **changes):
    detector = replace(DETECTOR, event_config=replace(EVENT_CONFIG, **changes))
    return events_in(read_audio(path, RATE), detector)


def detect(*arguments):
    main(list(arguments), "qkd-jax detect")


def printed(capsys, *arguments):
    """The events that the command prints as JSON, and their files."""
    detect(*arguments, "--format", "json")
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [item.pop("file") for item in items], items


def command(*arguments, stdin=subprocess.PIPE):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, ROOT / "detect.py", *arguments], env=environment, **pipes)


def raw(samples):
    """16-bit samples, and the floats that they are."""
    codes = np.rint(samples * 32767).astype("<i2")
    return codes.tobytes(), codes.astype(np.float32) / 32768


def test_files_of_any_rate_become_events(model, record, capsys):
    one, other = record("one.wav"), record("other.flac", rate=44_100, seed=1)
    files, items = printed(capsys, model, one, other)
    assert items == expected(one) + expected(other)
    assert files == [one] * len(expected(one)) + [other] * len(expected(other))
    assert len(set(files)) == 2


def test_a_table_is_the_default(model, record, capsys):
    path = record("one.wav")
    detect(model, path)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "onset", "offset", "event", "peak"]
    assert [row.split()[3] for row in rows] == [event["event"] for event in expected(path)] != []


def test_an_operating_point_or_a_threshold_can_be_asked_for(model, record, capsys):
    path = record("one.wav")
    given = {"given": dict.fromkeys(RANDOM.events, 0.75)}
    one_more = {"given": POINTS["eer"] | {RANDOM.events[0]: 0.78}}
    given_for_all = [f"{event}=0.75" for event in RANDOM.events]
    results = []
    for arguments, changes in (
        ([], {}),
        (["--false-alarms", "1"], {"use": "1/h"}),
        (["--events.use", "1/h"], {"use": "1/h"}),
        (["--threshold", "0.75"], {"thresholds": given, "use": "given"}),
        (["--threshold", *given_for_all], {"thresholds": given, "use": "given"}),
        (["--threshold", f"{RANDOM.events[0]}=0.78"], {"thresholds": one_more, "use": "given"}),
        (["--events.shortest-seconds", "0.3"], {"shortest_seconds": 0.3}),
    ):
        results.append(printed(capsys, model, path, *arguments)[1])
        assert results[-1] == expected(path, **changes) != []
    assert len({json.dumps(result) for result in results}) == 5


NUMBER = "expected a number between 0 and 1.*"
ELSEWHERE = "to score this file: qkd-jax eval"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", r"qkd-jax detect MODEL FILE…: expected a model and at least one file, got none; see --help"),
        ("MODEL --format json", r"expected a model and at least one file"),
        ("gone.safetensors FILE", r"gone\.safetensors: expected a detector's file, found none"),
        ("FILE FILE", r"a\.wav: expected a detector in a \.safetensors file"),
        ("x.onnx FILE", rf"x\.onnx: expected a \.safetensors file, got \.onnx; {ELSEWHERE} x"),
        ("x.h FILE", rf"x\.h: expected a \.safetensors file, got \.h; {ELSEWHERE} x"),
        (
            "MODEL FILE --false-alarms 2",
            r"^--false-alarms: .*\(eer, 1/h\), got 2/h; N/h requires at least 1/N hours of",
        ),
        ("MODEL FILE --false-alarms 1 --threshold 0.1", r"^--false-alarms, --thres.* got both"),
        ("MODEL FILE --events.use 2/h", r"^--events\.use: .*\(eer, 1/h\), got '2/h'"),
        ("MODEL FILE --threshold 1.5", rf"^--threshold: {NUMBER}'1\.5'$"),
        ("MODEL FILE --threshold dog=x", rf"^--threshold: {NUMBER}'dog=x'$"),
        ("MODEL FILE --threshold cow=0.5", r"^--threshold: expected an event \(.*\), got 'cow'$"),
        ("MODEL FILE --threshold", r"^--threshold: expected at least 1 value"),
        ("MODEL FILE --format xml", r"^--format: expected .*'audacity'.*, got 'xml'$"),
        ("MODEL FILE - --format audacity", r"^--format audacity: expected one file, got 2"),
        ("MODEL FILE --formt json", r"--formt.*--format"),
        ("MODEL FILE --runtime tpu", r"^--runtime: expected 'numpy'.*, got 'tpu'$"),
        ("MODEL FILE --state S", r"^--state: expected exactly one stream \(- or mic\), got .*a\.wav"),
        ("MODEL - mic --state S", r"^--state: expected exactly one stream .* got -, mic"),
        ("MODEL mic --state FILE", r"a\.wav: expected a state in a \.safetensors file"),
    ],
)
def test_what_is_wrong_is_one_line(model, record, arguments, message, capsys):
    places = {"MODEL": model, "FILE": record("a.wav")}
    with refused_in_one_line(message):
        detect(*(places.get(argument, argument) for argument in arguments.split()))
    assert capsys.readouterr().out == ""


def test_a_model_without_operating_points_says_so():
    with refused(r"expected none \(the detector has no operating points\), got 1/h"):
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
    data, waveform = raw(sound(3))
    samples.write_bytes(data)

    def from_file(path, *options):
        with open(path) as file:
            monkeypatch.setattr(sys, "stdin", file)
            return printed(capsys, model, "-", *map(str, options))

    files, items = from_file(samples)
    assert files == ["-"] * len(items)
    assert items == events_in(waveform) != []
    files, items = from_file(path)
    assert items == expected(path)
    state = tmp_path / "state"
    with refused("standard input: expected samples without a header, as --state needs, found a recording"):
        from_file(path, "--state", state)
    wide = tmp_path / "wide"
    wide.write_bytes(np.repeat(waveform, 2).astype("<f4").tobytes())
    options = ["--rate", RATE, "--sample-format", "f32", "--channels", 2]
    assert from_file(wide, *options)[1] == events_in(waveform)
    with refused("standard input: expected samples without a header, as --rate.*found a recording"):
        from_file(path, *options)
    with refused("--rate: expected 8000, the model's, with --state, got 16000"):
        from_file(samples, "--rate", 16_000, "--state", state)
    with refused("--rate, --sample-format, --channels: expected standard input"):
        printed(capsys, model, path, *map(str, options))


@pytest.mark.parametrize("runtime", ["jax", "onnx", "c"])
def test_any_runtime_can_be_asked_for(model, record, capsys, runtime):
    if runtime == "c" and shutil.which("cc") is None:
        pytest.skip("needs a C compiler, cc")
    path = record("a.wav")
    _, items = printed(capsys, model, path, "--runtime", runtime)
    for item, event in zip(items, expected(path), strict=True):
        # Front ends differ in last bits.
        assert item.pop("peak") == pytest.approx(event.pop("peak"), abs=0.05)
        assert item == pytest.approx(event, abs=0.05)


def test_what_is_heard_today_goes_on_tomorrow(model, tmp_path, capsys, monkeypatch):
    samples, state, items = sound(6), str(tmp_path / "state"), []
    for part in np.split(samples, [20_001, 20_002, 37_777]):
        monkeypatch.setattr("qkd_jax.audio.microphone.microphone_blocks", lambda rate, part=part: [part])
        files, found = printed(capsys, model, "mic", "--state", state)
        assert files == ["mic"] * len(found)
        items += found
    whole = events_in(samples)
    assert 5 < len(items) <= len(whole) and items == whole[: len(items)]
    faults = {("--runtime", "c"): "runtime c, found one with numpy", ("--threshold", "0.9"): "use"}
    for asked, message in faults.items():
        with refused(rf"state: expected a state with {message}"):
            printed(capsys, model, "mic", "--state", state, *asked)


def test_a_stream_that_is_stopped_by_signals_loses_and_repeats_nothing(model, tmp_path):
    asked = [model, "-", "--format", "json", "--state", str(tmp_path / "state")]
    (data, samples), lines, (read, write) = raw(sound(12)), [], os.pipe()
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
                errors = process.stderr.read().decode().splitlines()
                assert process.wait(60) == (130 if number else 0)
                assert errors[-1:] == (["stopped; run the same command again to continue"] if number else [])
    whole, items = events_in(samples), [json.loads(line) for line in lines]
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
    for words in (
        "qkd-jax detect MODEL FILE…",
        "--false-alarms",
        "--threshold",
        "--format",
        "--sample-format",
    ):
        assert words in text
    assert len(text.splitlines()) <= 48 and "--events.end 0.5" in text
    of_model = help_of(capsys, model)
    for words in ("--events.use eer", "--events.end 1", "--events.median-seconds 0.05", "1/h.dog 0.78"):
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
        process.stdin.write(raw(sound(5))[0])
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
