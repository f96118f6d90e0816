import json
import re
import shutil
import subprocess
import threading
import wave
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.image
import numpy as np
import pytest

from qkd_jax.evaluation.metrics import eer_threshold, evaluate
from qkd_jax.evaluation.plots import PALETTE, size
from qkd_jax.evaluation.report import write_report

MODELS = {"teacher": (169_060, 42_265, 2.0), "plain": (47_212, 11_803, 1.0), "small-4": (6_892, 11_803, 1.5)}
EVENTS = ("bell", "knock")
HOSTILE = [
    "<script>alert(1)</script>.wav",
    "\"quoted\" & 'single'.wav",
    "naïve 鳥 🐦.wav",
    "# 100%41 ?a=b.wav",
    "javascript:alert(1).wav",
    "</table></details><img src=x onerror=alert(1)>.wav",
    "no text \udcff.wav",
    "a_very_long_name_without_a_blank_" * 8 + ".wav",
]


def example(events=EVENTS, models=MODELS, clips=60, names=None, epochs=3, folder=Path("/recordings"), seed=0):
    """Arguments of `write_report` for made-up models; the third figure of each is its separation."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((clips, len(events))) < 0.4).astype(np.float32)
    targets[0], targets[1] = 0, 1
    # Rounded, so that clips tie.
    logits = {
        name: np.round(rng.normal(separation * targets), 1).astype(np.float32)
        for name, (_, _, separation) in models.items()
    }
    rows = {
        name: {"metrics": evaluate(targets, logits[name], events), "bytes": count}
        | {"parameters": parameters, "multiply_adds": 200 * parameters, "quantized_values": parameters}
        for name, (count, parameters, _) in models.items()
    }
    history = [
        {"epoch": epoch, "epoch_loss": 1 / epoch, "valid": {"auc": 70.0 + epoch, "eer": 30.0 - epoch}}
        for epoch in range(1, epochs + 1)
    ]
    return {
        "results": {"split": "test", "clips": clips, "models": rows},
        "title": "demo",
        "targets": targets,
        "logits": logits,
        "clips": {name: folder / name for name in names or [f"{index:03}.wav" for index in range(clips)]},
        "history": {name: list(history) for name in models if epochs},
        "config_json": '{"name": "demo"}',
        "versions": {"jax": "0.10.2"},
        "teachers": {"teacher", "yamnet.toml"},
    }


def hostile_example(folder):
    """Names of recordings, events, models and the run with a meaning in HTML, SVG or a URI."""
    events = ("<b>bell</b>", "\"a\" & 'b'", "long_event_name_without_a_blank_" * 5)
    models = {"teacher": MODELS["teacher"], "</svg><script>alert(2)</script>$x$": MODELS["small-4"]}
    # So few clips that each is among the worst of some event.
    arguments = example(events, models, len(HOSTILE), HOSTILE, folder=folder)
    title, config = "<script>alert(3)</script>", "</pre><script>alert(4)</script>"
    return arguments | {"title": title, "config_json": config}


def write(path, arguments):
    write_report(path, **arguments)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def page_of(tmp_path):
    return lambda arguments: Page(write(tmp_path / "report.html", arguments))


class Page(HTMLParser):
    """The page's tables as lists of rows of (text, marked), all its tags, links, and the text outside SVG."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.tags, self.links, self.text = [], [], [], ""
        self.cell, self.marked = None, False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell, self.marked = "", False
        elif tag == "mark":
            self.marked = True
        elif tag == "a":
            self.links.append(dict(attributes)["href"])

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append((self.cell.strip(), self.marked))
            self.cell = None

    def handle_data(self, data):
        self.text += data
        if self.cell is not None:
            self.cell += data

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def count(self, tag):
        return [each for each, _ in self.tags].count(tag)


def texts(row):
    return [text for text, _ in row]


def test_the_table_of_results(page_of):
    arguments = example()
    heads, subheads, *rows = page_of(arguments).tables[0]
    assert texts(heads) == ["model", "average", "bell", "knock", "bytes", "parameters", "MACs", "rounded"]
    assert texts(subheads) == ["AUC", "EER"] * 3
    assert [texts(row)[0] for row in rows] == list(MODELS)
    for row, (name, model) in zip(rows, arguments["results"]["models"].items()):
        metrics = model["metrics"]
        every = [metrics["average"], *(metrics["events"][event] for event in EVENTS)]
        figures = [each[key] for each in every for key in ("auc", "eer")]
        count, parameters, _ = MODELS[name]
        sizes = [
            f"{count:,}",
            f"{parameters:,}",
            f"{200 * parameters / 1e6:.1f} M",
            f"{parameters / 1e6:.2f} M",
        ]
        assert texts(row)[1:] == [f"{figure:.2f}" for figure in figures] + sizes


def test_events_in_any_script_are_shown(page_of):
    events = ("犬", "كلب", "🐕", "average")
    page = page_of(example(events=events, models={"small": MODELS["small-4"]}))
    assert texts(page.tables[0][0])[1:6] == ["average", *events]
    assert page.tags.count(("bdi", {})) >= 3 * len(events)


def test_the_best_student_of_a_column_is_marked(page_of):
    """Nothing is marked where students are equal, and the teacher, the best of all, never is."""
    arguments = example()
    models = arguments["results"]["models"]
    errors = {"plain": ((80, 20), (80, 20), (80, 20)), "small-4": ((81, 21), (80, 19), (80.5, 20))}
    for name, pairs in errors.items():
        *events, average = ({"auc": auc, "eer": eer} for auc, eer in pairs)
        models[name]["metrics"] = {"average": average, "events": dict(zip(EVENTS, events))}
    _, _, teacher, plain, small = page_of(arguments).tables[0]
    assert not any(marked for _, marked in teacher)
    assert [text for text, marked in plain if marked] == ["20.00"]
    assert plain[4] == ("20.00", True)  # EER of bell
    # AUC on average and of bell, EER of knock, bytes; the work and parameters are equal.
    assert [column for column, (_, marked) in enumerate(small) if marked] == [1, 3, 6, 7]


def test_the_smallest_student_comes_first(page_of):
    text = " ".join(page_of(example()).text.split())
    head = text[: text.index("AUC and EER in percent")]
    for part in ("test: 60 clips · 2 events · 3 models", "Smallest model: small-4", "6.89 kB", "24.5 ×"):
        assert part in head
    assert "teacher 169 kB" in head
    alone = " ".join(page_of(example(models={"one": (512, 128, 1.0)})).text.split())
    assert "512 B" in alone and "teacher" not in alone and "1 model AUC" not in alone


def test_the_smallest_student_is_compared_with_the_largest_teacher(page_of):
    models = {"small": (9_000, 2_250, 1.0), "large": (90_000, 22_500, 2.0)} | MODELS
    arguments = example(models=models) | {"teachers": ["small", "large", "plain"]}
    text = " ".join(page_of(arguments).text.split())
    average = arguments["results"]["models"]["large"]["metrics"]["average"]
    assert "13.1 ×" in text and "large 90 kB" in text
    assert f"large {average['auc']:.2f} %" in text and f"large {average['eer']:.2f} %" in text


def test_sizes_to_three_digits():
    assert [size(count) for count in (0, 999, 1000, 171_020)] == ["0 B", "999 B", "1 kB", "171 kB"]
    assert [size(count) for count in (999_600, 9_220_252)] == ["1 MB", "9.22 MB"]


def test_the_worst_clips_in_their_order(page_of):
    arguments = example()
    targets, names = arguments["targets"], list(arguments["clips"])
    page = page_of(arguments)
    tables = iter(page.tables[1:])
    for model in ("small-4", "teacher", "plain"):  # the smallest first
        for column, event in enumerate(EVENTS):
            scores = arguments["logits"][model][:, column]
            for label, sign in ((0, -1), (1, 1)):
                clips = [clip for clip in range(len(names)) if targets[clip, column] == label]
                worst = sorted(clips, key=lambda clip: (sign * scores[clip], clip))[:5]
                _, *rows = next(tables)
                for (name, probability, logit), clip in zip(map(texts, rows), worst, strict=True):
                    held = [EVENTS[index] for index in np.flatnonzero(targets[clip])]
                    assert name == names[clip] + (", ".join(held) or "none")
                    assert (event in held) == (label == 1)
                    assert probability == f"{100 / (1 + np.exp(-scores[clip])):.1f} %"
                    assert logit == f"{scores[clip]:.2f}"
            figure = arguments["results"]["models"][model]["metrics"]["events"][event]["eer"]
            threshold = eer_threshold(targets[:, column], scores)
            assert f"EER {figure:.2f} % at a logit of {threshold:.2f}" in page.text
    assert next(tables, None) is None


def test_hostile_names_are_text_and_their_links_lead_to_the_files(tmp_path):
    folder = tmp_path / "a folder #1 %20"
    arguments = hostile_example(folder)
    html = write(tmp_path / "report.html", arguments)
    page = Page(html)
    assert html.count("<script") == html.count("</script") == 1
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "iframe", "link", "object"})
    models = arguments["results"]["models"]
    for name in models | models["teacher"]["metrics"]["events"]:
        assert name in page.text
    assert "<script>alert(3)</script>" in page.text and "</pre><script>alert(4)</script>" in page.text
    files = {link for link in page.links if not link.startswith("#")}
    assert all(urlsplit(link).scheme == "file" and not urlsplit(link).fragment for link in files)
    decoded = {unquote(urlsplit(link).path, errors="surrogateescape") for link in files}
    assert decoded == {str(folder / name) for name in HOSTILE}
    for name in HOSTILE:
        assert name.replace("\udcff", "\ufffd") in page.text


def test_the_page_needs_nothing_else(tmp_path):
    html = write(tmp_path / "report.html", example())
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html.replace("file:///", ""))
    assert page.attributes("src") == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\(#(\w+)\)", html)) <= set(ids)
    # Every plot has a label, and every header cell a scope.
    assert page.count("svg") == page.attributes("role").count("img") == 2 + 2 * 2 + 3 + 3 * 2
    assert all(attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, second = tmp_path / "first.html", tmp_path / "second.html"
    write_report(first, **example())
    write_report(second, **example())
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".html"] == []


def drawn(html, label):
    """The SVG of the plot with this label."""
    return re.search(rf'aria-label="{label}[^"]*"><svg.*?</svg>', html, re.DOTALL)[0]


def test_points_lie_at_their_bytes_and_errors(tmp_path):
    arguments = example()
    svg = drawn(write(tmp_path / "report.html", arguments), "average EER")
    uses = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: var\(--model-(\d)\)', svg)
    assert [int(model) for _, _, model in uses] == [0, 1, 2]
    x, y = np.array([(float(x), float(y)) for x, y, _ in uses]).T
    sizes = np.log10([count for count, _, _ in MODELS.values()])
    eers = [model["metrics"]["average"]["eer"] for model in arguments["results"]["models"].values()]
    for drawn_at, expected, sign in ((x, sizes, 1), (y, eers, -1)):  # SVG's y grows downwards
        slope, start = np.polyfit(expected, drawn_at, 1)
        assert sign * slope > 0
        np.testing.assert_allclose(slope * np.array(expected) + start, drawn_at, atol=0.01)
    assert all(f">{name}</text>" in svg for name in MODELS)


@pytest.mark.parametrize("label", ["ROC curves for bell", "DET curves for knock", "validation AUC"])
def test_each_model_has_a_line_in_its_colour(tmp_path, label):
    svg = drawn(write(tmp_path / "report.html", example()), label)
    lines = re.findall(r"<path [^>]*stroke: var\(--model-(\d)\); stroke-width: 1.5", svg)
    assert lines == ["0", "1", "2"]


def test_models_without_epochs_are_left_out(tmp_path):
    arguments = example()
    arguments["history"]["teacher"] = []
    del arguments["history"]["plain"]
    svg = drawn(write(tmp_path / "report.html", arguments), "training loss")
    assert set(re.findall(r"var\(--model-(\d)\)", svg)) == {"2"}


MANY = {f"model-{index}": (10_000 - index, 2_500, 1.0) for index in range(len(PALETTE) + 2)}
CHOICES = {
    "ten events": dict(events=[f"event {index}" for index in range(10)], clips=40),
    "one of everything": dict(models={"one": MODELS["small-4"]}, events=("bell",), epochs=1),
    "more models than colours": dict(models=MANY),
    "equal bytes": dict(models={name: (1000, 250, 1.0) for name in ("teacher", "a", "b")}),
    "no history": dict(epochs=0),
    "one epoch": dict(epochs=1),
    "two clips": dict(clips=2),
    "no errors": dict(models={name: (*row[:2], 50.0) for name, row in MODELS.items()}),
}


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_any_number_of_models_events_and_clips(tmp_path, choices):
    arguments = example(**choices)
    html = write(tmp_path / "report.html", arguments)
    page = Page(html)
    models, events = arguments["results"]["models"], arguments["targets"].shape[1]
    shown, by_event = min(events, 8), events > 8
    assert len(page.tables) == 1 + by_event + 2 * len(models) * shown
    plots = 2 + (2 + len(models)) * shown + (3 if arguments["history"] else 0)
    assert page.count("svg") == plots
    assert ('id="learning"' in html) == bool(arguments["history"])
    assert "nan" not in html.lower()


def single_label_example(events, clips=96):
    """Each clip has one event, the next one in turn; `small-4` takes every eighth for the event after it."""
    arguments = example(events, clips=clips)
    truth = np.arange(clips) % len(events)
    guesses = np.where(np.arange(clips) % 8 == 3, (truth + 1) % len(events), truth)
    targets, guessed = (np.eye(len(events), dtype=np.float32)[which] for which in (truth, guesses))
    logits = arguments["logits"] | {"small-4": 4 * guessed - 2}
    rows = arguments["results"]["models"]
    for name, scores in logits.items():
        rows[name]["metrics"] = evaluate(targets, scores, events)
    return arguments | {"targets": targets, "logits": logits}


def test_confusions_are_shown_where_each_clip_has_one_event(tmp_path):
    html = write(tmp_path / "report.html", single_label_example(("bell", "knock", "dog")))
    page = Page(html)
    heads, _, *rows = page.tables[0]
    assert texts(heads)[4:8] == ["dog", "accuracy", "mAP", "macro F1"]
    accuracy = 100 * 84 / 96
    assert texts(rows[2])[9] == f"{accuracy:.2f}"
    plot = drawn(html, "Confusion matrix of small-4")
    assert all(plot.count(f">{event}</text>") == 2 for event in ("bell", "knock", "dog"))
    assert re.findall(r">(\d+)</text>", plot) == ["28", "4", "0", "0", "28", "4", "4", "0", "28"]
    # The smallest model first.  Of 96 clips every eighth is wrong: 4 of each event.
    head, *errors = page.tables[1]
    assert texts(head) == ["event", "predicted", "clips"]
    expected = [("bell", "knock"), ("knock", "dog"), ("dog", "bell")]
    assert [tuple(texts(row)) for row in errors] == [(*pair, "4 of 32") for pair in expected]
    assert f"accuracy{accuracy:.2f} %" in "".join(page.text.split("\n"))


def test_of_many_events_the_worst_have_curves_and_all_are_in_a_table(page_of):
    events = tuple(f"event-{index:02}" for index in range(12))
    arguments = single_label_example(events)
    page = page_of(arguments)
    metrics = [row["metrics"]["events"] for row in arguments["results"]["models"].values()]
    order = sorted(events, key=lambda event: -sum(each[event]["eer"] for each in metrics))
    assert texts(page.tables[0][0])[:4] == ["model", "average", "accuracy", "mAP"]
    _, _, *rows = page.tables[1]
    assert [texts(row)[0] for row in rows] == order
    assert texts(rows[0])[1:] == [f"{each[order[0]][key]:.2f}" for each in metrics for key in ("auc", "eer")]
    # Three confusions, sizes by three metrics, three curves of training.
    assert page.count("svg") == 3 + 3 + (2 + 3) * 8 + 3
    assert "The 8 events with the highest EER." in " ".join(page.text.split())


def test_equal_scores_have_a_histogram_too(tmp_path):
    arguments = example()
    arguments["logits"]["plain"][:] = -0.5
    assert "at a logit of -0.50" in write(tmp_path / "report.html", arguments)


def test_a_page_of_thousands_of_clips_stays_small(tmp_path):
    models = {f"model-{index}": (1000 * index, 250, 1.0 + index / 5) for index in range(1, 6)}
    write_report(tmp_path / "report.html", **example(("a", "b", "c"), models, clips=3000, epochs=12))
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")


def chromium(tmp_path, page, *flags):
    """The command that opens a file in Chromium without a window, its console on stderr."""
    # Root can't have a sandbox.
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *flags)
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    return [CHROMIUM, *flags, profile, "--enable-logging=stderr", page.as_uri()]


def browse(tmp_path, page, *flags):
    """The output of Chromium for a file, and the messages of its console."""
    command = chromium(tmp_path, page, *flags)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, re.findall(r":CONSOLE.*", done.stderr)


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, **hostile_example(tmp_path))
    return path


@needs_browser
def test_a_browser_shows_the_table_without_messages(tmp_path, report):
    dom, console = browse(tmp_path, report, "--dump-dom")
    assert console == []
    # As the browser understood it.
    rows = Page(dom).tables[0]  # as the browser understood it
    assert rows == Page(report.read_text(encoding="utf-8")).tables[0] and len(rows) == 2 + 2


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_the_page_in_light_and_dark(tmp_path, report, scheme):
    picture = tmp_path / "page.png"
    preferred = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    browse(tmp_path, report, f"--screenshot={picture}", "--window-size=1280,3000", preferred)
    pixels = (255 * matplotlib.image.imread(picture)[..., :3]).round() @ [65536, 256, 1]
    assert pixels.shape == (3000, 1280)
    colours, counts = np.unique(pixels, return_counts=True)
    assert len(colours) > 100
    assert (colours[counts.argmax()] > 0x808080) == (scheme == "light")
    for pair in PALETTE[:2]:  # both models have ink
        colour = pair[scheme == "dark"]
        assert counts[colours == int(colour[1:], 16)].sum() > 200


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_screen(tmp_path, report, width):
    # Chromium makes no windows narrower than 500 pixels, but frames.
    outer = tmp_path / "outer.html"
    outer.write_text(f"""
        <iframe src="report.html" style="width: {width}px; border: 0"></iframe><p></p><script>
        onload = () => {{
          const inner = document.querySelector('iframe').contentDocument;
          inner.querySelectorAll('details').forEach(item => item.open = true);
          const {{clientWidth, scrollWidth}} = inner.documentElement;
          const table = inner.querySelector('table').getBoundingClientRect().height;
          document.querySelector('p').textContent = JSON.stringify({{clientWidth, scrollWidth, table}});
        }}
        </script>""")
    dom, _ = browse(tmp_path, outer, "--dump-dom", "--window-size=1400,900", "--allow-file-access-from-files")
    sizes = json.loads(re.search(r"<p>(.*?)</p>", dom)[1])
    assert sizes["clientWidth"] == sizes["scrollWidth"] == width
    assert sizes["table"] > 100


@needs_browser
def test_a_link_plays_its_recording(tmp_path):
    folder = tmp_path / "a folder #1 %20"
    folder.mkdir()
    arguments = example(clips=4, names=["naïve 鳥#?.wav", "b%41.wav", "c.wav", "d.wav"], folder=folder)
    for path in arguments["clips"].values():
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.zeros(4000, np.int16).tobytes())
    copy = tmp_path / "copy.html"
    listen = (
        "<script>const links = [...document.querySelectorAll('a.clip')].slice(0, 4);"
        "const next = () => links.length ? links.pop().click() : console.log('done');"
        "audio.onplaying = () => { console.log('playing', audio.duration); next(); };"
        "next();</script></body>"
    )
    copy.write_text(write(tmp_path / "report.html", arguments).replace("</body>", listen), encoding="utf-8")
    command = chromium(tmp_path, copy, "--autoplay-policy=no-user-gesture-required")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        messages = []
        for line in process.stderr:
            messages += re.findall(r':CONSOLE.*?"(.*?)"', line)
            if messages[-1:] == ["done"]:
                break
        process.kill()
        watchdog.cancel()
    assert messages == ["playing 0.5"] * 4 + ["done"]


def test_a_part_of_a_recording_is_played_as_that_part(page_of):
    arguments = example(clips=4)
    names = ["a b.wav#t=0,10", "a b.wav#t=10,20.5", "x#t=1,2.wav", "c/d.wav"]
    paths = ["a b.wav", "a b.wav", "x#t=1,2.wav", "c/d.wav"]
    page = page_of(arguments | {"clips": {name: Path("/r") / path for name, path in zip(names, paths)}})
    uris = {uri for uri in page.attributes("src") if uri.startswith("file:")} | {
        uri for uri in page.links if uri.startswith("file:")
    }
    assert uris == {
        "file:///r/a%20b.wav#t=0,10",
        "file:///r/a%20b.wav#t=10,20.5",
        "file:///r/x%23t%3D1%2C2.wav",
        "file:///r/c/d.wav",
    }
