import io
import re

import matplotlib.image
import numpy as np
import pytest
from rich.cells import cell_len

from qkd_jax.evaluation.plots import plot_curves
from qkd_jax.evaluation.table import print_table

EVENTS = ("bell", "knock")


def row(auc, eer, size, events):
    """A model's results; the events' own differ from the average by 1, 2, ..., so that a mix-up shows."""
    own = {event: {"auc": auc - shift, "eer": eer + shift} for shift, event in enumerate(events, 1)}
    metrics = {"average": {"auc": auc, "eer": eer}, "events": own}
    return {"metrics": metrics, "bytes": size, "parameters": size // 4, "multiply_adds": 1000 * size}


def printed(models, path, encoding="utf-8"):
    # To a file, as beartype takes no StringIO for a TextIO.
    with path.open("w", encoding=encoding, errors="backslashreplace") as file:
        print_table({"split": "test", "clips": 480, "models": models}, file)
    return path.read_text(encoding=encoding)


def cells(table):
    """The cells of the header and of each row, separated by two blanks."""
    lines = (re.split(r"\s{2,}", line.strip()) for line in table.splitlines())
    return [line for line in lines if len(line) > 1]


def test_the_table_has_one_row_per_model(tmp_path):
    models = {"teacher": row(95.125, 8.5, 9_220_252, EVENTS), "distilled-4": row(90, 12.75, 171_020, EVENTS)}
    table = printed(models, tmp_path / "table.txt")
    assert "test: 480 clips" in table
    assert cells(table) == [
        ["model", "average", "bell", "knock", "bytes", "parameters", "MACs"],
        ["teacher", "95.12 / 8.50", "94.12 / 9.50", "93.12 / 10.50", "9,220,252", "2,305,063", "9,220.3 M"],
        ["distilled-4", "90.00 / 12.75", "89.00 / 13.75", "88.00 / 14.75", "171,020", "42,755", "171.0 M"],
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("events", "width", "shown"),
    [(8, 300, 8), (8, 130, 7), (8, 80, 2), (8, 62, 0), (12, 300, 5), (12, 80, 2)],
)
def test_of_many_events_or_on_a_narrow_terminal_the_worst_are_shown(monkeypatch, events, width, shown):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    events, terminal = [f"event-{index:02}" for index in range(events)], Terminal()
    models = {"teacher": row(95, 8, 9_220_252, events), "distilled-4": row(90, 12, 171_020, events)}
    print_table.__wrapped__({"split": "test", "clips": 480, "models": models}, terminal)
    text = re.sub(r"\x1b\[\d*m", "", terminal.getvalue())
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    # EER rises with the index.
    assert [event for event in events if event in text] == events[len(events) - shown :]
    for figure in ("9,220,252", "2,305,063", "9,220.3 M", "distilled-4", "95.00 /", "8.00"):
        assert figure in text
    left_out = [line for line in lines if line.startswith("Shown: ")]
    assert bool(left_out) == (shown < len(events))
    assert not shown or not left_out or f"{shown} of {len(events)} events, with the highest EER" in text


def test_events_may_have_the_names_of_columns(tmp_path):
    events = ("average", "model", "bytes", "auc", "events")
    header, values = cells(printed({"teacher": row(95, 8, 9_220_252, events)}, tmp_path / "table.txt"))
    assert header == ["model", "average", *events, "bytes", "parameters", "MACs"]
    assert values[1:7] == [f"{95 - shift}.00 / {8 + shift}.00" for shift in range(6)]


def test_events_in_any_script_align_as_a_terminal_shows_them(tmp_path):
    events = ("狗叫声", "كلب", "cafe\u0301", "🐕")
    models = {name: row(90, 10, size, events) for name, size in (("small", 4000), ("large", 4_000_000))}
    table = printed(models, tmp_path / "table.txt")
    assert all(event in table for event in events)
    heads, *rows = [line for line in table.splitlines() if re.match(r"\s*(model|small|large)", line)]
    assert {cell_len(line) for line in rows} == {cell_len(heads)}
    # The last event's figures end where its name ends.
    ends = {cell_len(line[: line.index("86.00 / 14.00")] + "86.00 / 14.00") for line in rows}
    assert ends == {cell_len(heads[: heads.index("🐕") + 1])}


def test_a_table_has_no_box_characters_where_the_encoding_lacks_them(tmp_path):
    figures = row(90, 10, 4000, ("狗",))
    del figures["parameters"]
    table = printed({"small": figures}, tmp_path / "table.txt", "ascii")
    assert r"\u72d7" in table and "----" in table and r"\u25" not in table


def test_nothing_is_cut_off_in_a_file(tmp_path):
    events = [f"event_number_{index}" for index in range(8)]
    header, values = cells(printed({"teacher": row(95, 8, 9_220_252, events)}, tmp_path / "table.txt"))
    assert header[2:10] == events
    assert values[9] == "87.00 / 16.00"


def test_curves_are_drawn_for_every_model(tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (200, 2))
    noise = {"good": 0.5, "bad": 3.0}
    logits = {name: targets + rng.normal(0, size, (200, 2)) for name, size in noise.items()}

    def ink(names):
        path = tmp_path / f"{'-'.join(names) or 'none'}.png"
        plot_curves(path, targets, {name: logits[name] for name in names}, EVENTS)
        picture = matplotlib.image.imread(path)
        assert picture.shape[:2] == (800, 840)
        # Matplotlib's first two colours, C0 and C1: #1f77b4 and #ff7f0e.
        colours = np.array([[0x1F, 0x77, 0xB4], [0xFF, 0x7F, 0x0E]]) / 255
        return [int((np.abs(picture[..., :3] - colour).max(axis=-1) < 0.02).sum()) for colour in colours]

    one, two = ink(["good"]), ink(["good", "bad"])
    assert one[0] > 500 and one[1] == 0
    assert two[1] > 500


@pytest.mark.filterwarnings("error")
def test_curves_have_titles_in_any_script_that_are_not_formulas(tmp_path):
    targets = np.array([[0], [1], [0], [1]])
    for event in ("犬", "🐕", "كلب", "$x^$", "100 % $"):
        plot_curves(tmp_path / "curves.png", targets, {"small": targets + 0.5}, (event,))
        assert matplotlib.image.imread(tmp_path / "curves.png").shape[:2] == (800, 420)


def test_names_are_neither_markup_nor_line_breaks(tmp_path):
    events = ("[/dog]", "[red]a", "b\n\x1b[2J")
    text = printed({"small": row(90.0, 10.0, 4000, events)}, tmp_path / "table.txt")
    assert "[/dog]" in text and "[red]a" in text and "b??[2J" in text
