"""Experiments behind docs/results: configurations, one driver, and the pages made from what it keeps.

To add an experiment, write a module with

    cells(seed) -> list[Cell]      the runs of one seed or fold, each of at most 75 minutes
    parts(folder) -> dict          the marked parts of its page, from the results in folder/cells

add a line to `EXPERIMENTS` in __main__.py, and write docs/results/NAME.md with a pair of comments,
`<!-- begin PART -->` and `<!-- end PART -->`, for each part.  `read_results` reads what the driver kept.
"""
