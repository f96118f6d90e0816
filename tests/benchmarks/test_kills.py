"""The tally of kills: what a run was at, told by what it has left."""

from benchmarks.reliability.kills import EXPORTED, LAST_STEP, phase


def test_a_run_is_at_what_it_has_not_finished(tmp_path):
    def left(name):
        (tmp_path / name).mkdir(parents=True)

    def written(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert phase(tmp_path, spoken=False) == "recordings"
    written(".features/00/1.npy")
    assert phase(tmp_path, spoken=False) == "features"
    written("demo/config.json")
    assert phase(tmp_path, spoken=False) == "start, again"
    assert phase(tmp_path, spoken=True) == "steps"
    left("demo/teacher/checkpoints/6.orbax-checkpoint-tmp-1")
    assert phase(tmp_path, spoken=True) == "a checkpoint"
    assert phase(tmp_path, spoken=False) == "start, again"
    left(f"demo/{EXPORTED}/checkpoints/{LAST_STEP}")
    assert phase(tmp_path, spoken=False) == "evaluation"
    written("demo/results.json")
    assert phase(tmp_path, spoken=False) == "report"
    written("demo/report.html")
    assert phase(tmp_path, spoken=False) == "export"
