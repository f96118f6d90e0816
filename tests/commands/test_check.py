"""qkd-jax check: what it prints, its page, its status, and the warnings with which training begins."""

import csv
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import soundfile

from qkd_jax.commands import cli
from qkd_jax.commands.check import check
from qkd_jax.config import FoldersData, ManifestData, TimedData, with_data
from qkd_jax.errors import InputError
from qkd_jax.run_folder.folder import open_run
from qkd_jax.training.clips import batches, load
from tests.faults import refused
from tests.recordings import noise
from tests.tones import config_of, write_tones

SAMPLES = 6400
SETTINGS = ["--data.source", "manifest", "--data.clip-seconds", "0.4", "--recipe.batch-size", "8"]


class Folder:
    """Recordings of noise and their table: 10 per split of dogs, and of nothing."""

    def __init__(self, root, config):
        self.root, self.rows = root, []
        root.mkdir()
        data = ManifestData(root=str(root), clip_seconds=0.4)
        self.config = config(root.parent / "runs", name="yard", data=data)
        for index in range(60):
            self.add(f"{index}.wav", "dog" if index % 2 else "", ("train", "valid", "test")[index // 20])

    def add(self, name, labels, split, samples=None, group="", **form):
        samples = noise(SAMPLES, len(self.rows)) if samples is None else samples
        soundfile.write(self.root / name, samples, 16_000, **form)
        self.rows.append([name, labels, split, group or name])
        with open(self.root / "metadata.csv", "w", newline="") as file:
            csv.writer(file).writerows([["filename", "labels", "split", "group"], *self.rows])

    def spoil(self):
        """Add recordings with all kinds of faults, none of which stops a run."""
        self.add("copy.flac", "dog", "test", soundfile.read(self.root / "1.wav")[0])
        self.add("square.wav", "", "train", np.sign(noise(SAMPLES, 1)))
        self.add("long.wav", "dog", "train", noise(4 * SAMPLES, 2))
        opposite = noise(SAMPLES, 3)
        self.add("stereo.wav", "", "valid", np.stack([opposite, -0.99 * opposite], 1))
        soundfile.write(self.root / "forgotten.wav", noise(SAMPLES, 4), 16_000)
        for index, split in enumerate(("train", "valid", "test")):
            self.add(f"owl{index}.wav", "owl", split)

    @property
    def page(self):
        return Page((self.root.parent / "runs" / "yard-check.html").read_text())


class Page(HTMLParser):
    """The texts of a page, the names that its links lead to, and its tags."""

    def __init__(self, html):
        super().__init__()
        self.html, self.text, self.links, self.tags, self.pictures = html, "", [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        if "clip" in values.get("class", ""):
            self.links.append(Path(unquote(urlsplit(values["href"]).path)))
        if tag == "img":
            self.pictures.append(values["src"])

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path, tiny_config):
    return Folder(tmp_path / "yard", tiny_config)


def warnings_in(text):
    return re.findall(r"^warning: (.*) \(\d+\):\n  (.*)", text, flags=re.M)


def test_recordings_without_faults_are_described_and_nothing_but_the_page_is_written(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.root.parent.rglob("*")}
    check(folder.config)
    printed = capsys.readouterr().out
    assert warnings_in(printed) == [] and "warning" not in printed
    rows = [re.split(r"  +", line.strip()) for line in printed.splitlines()]
    assert ["recordings", "20 (8 s)", "20 (8 s)", "20 (8 s)", "60 (24 s)"] in rows
    assert ["dog", "10 (4 s)", "10 (4 s)", "10 (4 s)", "30 (12 s)"] in rows
    assert ["none of the events", *["10 (4 s)"] * 3, "30 (12 s)"] in rows
    for fact in (
        "splits: as the table says",
        "lengths: 0.4 s; a clip has 0.4 s",
        "sample rates: 16,000 Hz (60)",
        "channels: 1 (60)",
        "formats: .wav (60)",
    ):
        assert fact in printed.splitlines()
    page = folder.root.parent / "runs" / "yard-check.html"
    assert printed.splitlines()[-1] == f"Page: {page}"
    after = {path: path.stat().st_mtime_ns for path in folder.root.parent.rglob("*")}
    assert after.keys() - before.keys() == {page, page.parent}
    assert {path: after[path] for path in before if path != folder.root.parent} == {
        path: time for path, time in before.items() if path != folder.root.parent
    }
    assert "Nothing to warn of." in folder.page.text


def test_each_fault_is_found_worst_first_and_training_warns_of_the_cheap_ones(folder, capsys):
    folder.spoil()
    check(folder.config)
    found = dict(warnings_in(capsys.readouterr().out))
    expected = {
        "the same sound under several names in several splits": "1.wav, copy.flac (train, test)",
        "channels that cancel": "stereo.wav (46 dB)",
        "fewer than 10 positives": "owl: 1 train, 1 valid, 1 test",
        "recordings 3 or more times as long as a clip": "long.wav (1.6 s)",
        "clipped": "square.wav (100.0%)",
        f"recordings in {folder.root} that no table names": "forgotten.wav",
    }
    assert len(found) == len(expected)
    for title, items in expected.items():
        assert [value for key, value in found.items() if key.startswith(title)] == [items]
    assert next(iter(found)).startswith("the same sound") and list(found)[-1].startswith("recordings in")

    page = folder.page
    for title in found:
        assert title[1:] in page.text
    assert {folder.root / name for name in ("1.wav", "copy.flac", "forgotten.wav")} <= {*page.links}

    with open_run(folder.config):
        pass
    early = dict(warnings_in(capsys.readouterr().out))
    cheap = {key for key in found if not key.startswith(("channels", "clipped"))}
    assert early == {key: found[key] for key in cheap}


def change(folder, **fields):
    folder.config = with_data(folder.config, **fields)


def cut(folder):
    whole = (folder.root / "3.wav").read_bytes()
    (folder.root / "3.wav").write_bytes(whole[:5000])
    (folder.root / "5.wav").unlink()
    folder.add("silent.wav", "dog", "train", np.zeros(SAMPLES))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "3 of 61 recordings can't be used:"),
        (
            lambda folder: [folder.add(f"{split}.wav", "", split, group="g") for split in ("train", "test")],
            "group",
        ),
        (lambda folder: folder.add("owl.wav", "owl", "train"), "event 'owl': expected positive and negative"),
        (lambda folder: change(folder, events=("cat",)), "--data.events: expected one of dog"),
        (lambda folder: (folder.root / "metadata.csv").write_text("filename\n"), "expected columns"),
    ],
)
def test_it_ends_with_the_error_with_which_training_would(folder, spoil, message, capsys):
    spoil(folder)
    with refused(message) as caught:
        check(folder.config)
    with pytest.raises(InputError) as expected, open_run(folder.config):
        pass
    assert str(caught.value) == str(expected.value)
    printed = capsys.readouterr().out
    if "Page: " in printed:  # the recordings could be read
        assert "A run could not start" in folder.page.text
        assert str(caught.value).splitlines()[0] in folder.page.text


def test_fewer_clips_than_a_batch_will_do(folder):
    recipe = replace(folder.config.recipe, batch_size=44)
    folder.config = replace(folder.config, recipe=recipe)
    check(folder.config)
    with open_run(folder.config) as run:
        data = load(run)
        updates, batches_from = batches(run, next(iter(run.names)), data)
        first, second = (next(iter(batches_from(update)))["labels"] for update in (0, 1))
    assert updates == 1 and len(first) == 44
    # Twice each of the 20 clips, 10 of which have the event, and 4 more.
    assert 20 <= first.sum() <= 24 and first.sum() + second.sum() in range(42, 47)


def faint(folder):
    folder.add("faint.wav", "dog", "train", 3e-6 * noise(SAMPLES), subtype="FLOAT")
    folder.add("offset.wav", "dog", "train", np.full(SAMPLES, 1e-9), subtype="FLOAT")


def misnamed(folder):
    """A folder per class, one of whose recordings has a name in Latin-1."""
    for row in folder.rows:
        path = folder.root / row[2] / (row[1] or "other") / row[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        (folder.root / row[0]).rename(path)
    path.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.wav"))
    folder.config = replace(folder.config, data=FoldersData(root=str(folder.root), clip_seconds=0.4))


def late(folder):
    """An onset 4 ms after the end, which features tell to a hop, and one that is later than that."""
    rows = ["filename,onset,offset,label,split"]
    for name, label, split, _ in folder.rows:
        onset = {"1.wav": 0.404, "3.wav": 0.42}.get(name, 0.1)
        rows.append(f"{name},{onset},0.5,{label},{split}" if label else f"{name},,,,{split}")
    (folder.root / "annotations.csv").write_text("\n".join(rows) + "\n")
    folder.config = replace(folder.config, data=TimedData(root=str(folder.root), clip_seconds=0.4))


@pytest.mark.parametrize(
    ("spoil", "names"),
    [(faint, ["faint", "offset"]), (misnamed, ["caf"]), (late, ["3.wav"])],
)
def test_the_recordings_that_training_refuses_are_refused(folder, spoil, names):
    spoil(folder)
    with refused(f"{len(names)} of \\d+ recordings can't be used:") as caught:
        check(folder.config)
    with pytest.raises(InputError) as expected, open_run(folder.config):
        pass
    assert str(caught.value) == str(expected.value)
    assert all(name in str(caught.value) for name in names)


def test_recordings_without_labels_need_a_teacher(folder, tmp_path):
    config = replace(folder.config, models={"plain": folder.config.models["plain"]})
    with refused("--data.unlabelled: expected a model with teachers"):
        check(with_data(config, unlabelled=str(tmp_path)))


def test_long_recordings_are_refused_for_models_of_timed_events_with_teachers(tmp_path):
    write_tones(tmp_path / "tones")
    config = config_of(tmp_path / "tones", tmp_path / "runs")
    path = tmp_path / "tones" / "train" / "audio" / "train000.wav"
    soundfile.write(path, np.tile(soundfile.read(path)[0], 2), 8000)
    with refused("models.four: expected training recordings of at most .* for a model with teachers"):
        check(config)
    check(replace(config, models={"first": config.models["first"]}))


def test_the_source_is_read_once_and_says_so_once(folder, tmp_path, capsys):
    misnamed(folder)
    os.unlink(os.fsencode(folder.root) + b"/test/dog/caf\xe9.wav")
    soundfile.write(folder.root / "stray.wav", noise(SAMPLES, 99), 16_000)
    with open_run(folder.config):
        pass
    assert capsys.readouterr().out.count("stray.wav") == 1
    check(folder.config)
    printed = capsys.readouterr().out
    assert printed.count("folders: skipped recordings outside the folders of classes") == 1
    assert printed.count("stray.wav") == 2 and "stray.wav" in folder.page.text


def test_recordings_that_are_skipped_are_listed(folder, capsys):
    cut(folder)
    change(folder, skip_bad=True)
    check(folder.config)
    printed = capsys.readouterr().out
    assert "warning: recordings that can't be used (3):\n  3.wav (" in printed
    assert re.search(r"^ *recordings +18 ", printed, flags=re.M)
    assert "cut off" in folder.page.text and "silent.wav: silent" in folder.page.text


def test_the_command_and_its_page_elsewhere(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["check", "--data.root", str(folder.root), *SETTINGS]
    assert cli.main([*arguments, "--html", "out/page.html"]) == 0
    assert capsys.readouterr().out.endswith("Page: out/page.html\n")
    assert (tmp_path / "out" / "page.html").is_file() and not (tmp_path / "runs").exists()
    assert cli.main([*arguments, "--html", "a", "b"]) == 2
    assert capsys.readouterr().err == "error: --html: expected one file, got a b\n"
    (folder.root / "1.wav").unlink()
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: 1 of 60 recordings can't be used:")
    with pytest.raises(SystemExit):
        cli.main(["check", "small", "--help"])
    assert "--html FILE" in capsys.readouterr().out


def test_the_demo_makes_its_recordings_where_the_run_will_find_them(tiny_config, tmp_path):
    config = tiny_config(tmp_path)
    check(config)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny" / "data").rglob("*.wav")}
    with open_run(config) as run:
        assert len(run.clips) == len(made) == 60
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def test_splits_that_are_drawn_and_channels(folder, capsys):
    rows = [["filename", "labels"], *(row[:2] for row in folder.rows)]
    for name in ("1.wav", "2.wav"):
        soundfile.write(folder.root / name, np.stack([noise(SAMPLES, 9)] * 2, 1), 48_000)
    (folder.root / "metadata.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    check(folder.config)
    lines = capsys.readouterr().out.splitlines()
    assert "splits: 70/10/20, with each event in these shares" in lines
    assert "sample rates: 16,000 Hz (58), 48,000 Hz (2)" in lines
    assert "channels: 1 (58), 2 (2); in 2 recordings they are all the same" in lines
    assert "lengths: 0.133 s to 0.4 s, median 0.4 s; a clip has 0.4 s" in lines


def test_timed_events(tmp_path, capsys):
    write_tones(tmp_path / "tones")
    config = config_of(tmp_path / "tones", tmp_path / "runs")
    check(config)
    printed = capsys.readouterr().out
    assert [title.split(" in ")[0] for title, _ in warnings_in(printed)] == ["fewer than 10 positives"]
    assert re.search(r"^ *strongly labelled +24 .*\n *weakly labelled +24 ", printed, flags=re.M)
    page = Page((tmp_path / "runs" / "tones-check.html").read_text())
    assert page.html.count('<div class="bars">') > 6 and 'title="low"' in page.html
    table = tmp_path / "tones" / "valid" / "strong.tsv"
    table.write_text(re.sub(r"\t[\d.]+\t[\d.]+\tlow", "\t5\t6\tlow", table.read_text(), count=1))
    with refused(r"expected onsets before the end \(1 s\), found low at 5 s"):
        check(config)
    assert "events that begin after the end of their recording (1)" in capsys.readouterr().out


HOSTILE = ["<script>alert(1)</script>.wav", "# 100%41 ?a=b.wav", "naïve 鳥.wav", "\"q\" & 's'.wav"]


def test_the_page_shows_each_event_opens_without_a_network_and_escapes_names(folder, capsys):
    event = "</h3><img src=x onerror=alert(2)>"
    for index, name in enumerate(HOSTILE * 3):
        split = ("train", "valid", "test")[index // 4]
        folder.add(name.replace("/", "∕").replace(".wav", f"{index}.wav"), event, split)
    check(folder.config)
    page = folder.page
    assert "http" not in page.html.replace("http-equiv", "") and "src=x" not in page.tags
    assert page.tags.count("script") == 1 and event in page.text
    # Six of each event, and of none.
    assert len(page.pictures) == 18 and page.html.count("<figure") == 18
    assert all(picture.startswith("data:image/png;base64,iVBOR") for picture in page.pictures)
    assert all(path.is_file() for path in page.links) and len(page.links) >= 36
    names = {path.name for path in page.links}
    assert any("script" in name for name in names) and any("鳥" in name for name in names)
    check(folder.config)
    assert folder.page.html == page.html
    assert event in capsys.readouterr().out


def test_many_events_are_listed_on_the_page(folder, capsys):
    labels = ";".join(f"e{index:02}" for index in range(70))
    for split in ("train", "valid", "test"):
        for index in range(10):
            folder.add(f"{split}{index}.wav", labels, split)
    check(folder.config)
    printed, page = capsys.readouterr().out, folder.page
    assert "43 more rows are on the page" in printed and " e27 " in printed and " e28 " not in printed
    assert "e69" in page.text
    assert "The last 11 events are left out." in page.text
