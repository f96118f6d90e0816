"""The README's table is that of docs/results/demo."""

import re

from benchmarks.common import RESULTS, ROOT
from experiments.demo import SEEDS, cells, parts
from qkd_jax.commands.cli import load_preset


def test_cells_are_the_preset_with_another_seed():
    for seed in SEEDS:
        (cell,) = cells(seed)
        assert cell.config.recipe.seed == seed and cell.config.data.root is None
        assert cell.results == tuple(load_preset("demo").models)


def test_the_readme_has_the_table_of_the_page():
    pages = [(path / name).read_text() for path, name in ((ROOT, "README.md"), (RESULTS, "demo.md"))]
    (readme,), (page,) = (
        re.findall(r"<!-- begin demo -->(.*?)<!-- end demo -->", text, re.S) for text in pages
    )
    assert readme == page and "| distilled-4 |" in page
    if (RESULTS / "demo/cells").is_dir():
        assert page.strip() == parts(RESULTS / "demo")["demo"]
