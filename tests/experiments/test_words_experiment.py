"""The experiment on words: recordings cut by the table, and intervals over speakers and seeds."""

import csv

import numpy as np
import pytest
import soundfile

from experiments import words
from experiments.cells import Place, Result, read_results, write_result
from qkd_jax.evaluation.metrics import evaluate
from tests.faults import refused

WORDS, SPEAKERS = ("open", "close"), ("01", "02", "03")


@pytest.fixture
def place(tmp_path):
    """Six words per speaker, each of one value."""
    data = tmp_path / "data"
    (data / "audio").mkdir(parents=True)
    rows = [(speaker, word, f"{take}") for speaker in SPEAKERS for word in WORDS for take in range(3)]
    with open(data / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([("speaker", "word", "take", "split"), *((*row, "test") for row in rows)])
    for index, speaker in enumerate(SPEAKERS):
        values = np.repeat(np.arange(6) + 10 * index, words.SECOND).astype(np.int16)
        soundfile.write(data / "audio" / f"{speaker}.ogg", values / 2**15, words.SECOND, format="FLAC")
    return Place(data, tmp_path / "runs", tmp_path / "cells", tmp_path, "the command")


def test_each_word_is_its_second_of_the_speakers_recording(place):
    folder = words.prepared(place).data
    with open(folder / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for index, row in enumerate(rows):
        samples, rate = soundfile.read(folder / row["filename"], dtype="int16")
        speaker, place_of_word = divmod(index, 6)
        assert (rate, set(samples.tolist())) == (words.SECOND, {10 * speaker + place_of_word})
        assert (row["labels"], row["group"]) == (WORDS[place_of_word // 3], SPEAKERS[speaker])
    assert words.prepared(place).data == folder


def test_a_table_that_does_not_fit_a_recording_is_refused(place):
    with open(place.data / "clips.csv", "a", newline="") as file:
        csv.writer(file).writerow(("03", "open", "3", "test"))
    with refused(r"clips\.csv: expected 6 words of 03, got 7"):
        words.prepared(place)


def test_intervals_are_over_speakers_and_seeds(tmp_path):
    """One speaker's words are all wrong for seed 0, and none for seed 1."""
    names = [f"{word}/{speaker}_{take}.wav" for speaker in SPEAKERS for word in WORDS for take in range(3)]
    truth = np.array([[name.startswith(word) for word in WORDS] for name in names], np.float32)
    for seed, wrong in enumerate(("01_", "none")):
        flipped = np.array([wrong in name for name in names])
        logits = np.where(flipped[:, None], 1 - truth, truth) * 4 - 2
        result = Result(metrics=evaluate(truth, logits, WORDS), bytes=100)
        write_result(tmp_path / f"plain-256-seed{seed}.json", result, names, WORDS, logits)
    results = read_results(tmp_path)
    draws = words.eer_draws(tmp_path, results)["plain-256"]
    # Draws without the speaker, and those of seed 1 alone, have no errors; those of the speaker alone in
    # both of seed 0 have nothing else.
    assert draws.min() == 0 and draws.max() == 100
    assert draws.mean() == pytest.approx(100 / 3 / 2, abs=4)
    assert "| LSTM | 2 |" in words._models(results, words.ROWS)


def test_students_train_as_the_paper_says_and_are_quantized_from_the_start():
    for cell in words.cells(0):
        if cell.name == "small":
            continue
        recipe = cell.config.recipe
        assert (recipe.batch_size, recipe.learning_rate, recipe.schedule, recipe.clip_norm) == (
            64,
            1e-3,
            "constant",
            None,
        )
        assert not any(model.start for model in cell.config.models.values())
    seeds = {seed: {name for cell in words.cells(seed) for name in cell.results} for seed in words.SEEDS}
    assert seeds[4] < seeds[2] < seeds[0]
    assert {"plain-64", "distilled-256-pm4", "distilled-64-8"} <= seeds[4]
