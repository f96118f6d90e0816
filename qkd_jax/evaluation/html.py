"""Self-contained HTML pages from the templates of this folder."""

from pathlib import Path
from typing import Any

from qkd_jax.evaluation.plots import PALETTE
from qkd_jax.system.files import whole_file


def link(name: str, path: Path) -> str:
    """The URI of a recording or, for a part, which is named PATH#t=10,20, of what a browser then plays.

    >>> link("a.wav#t=10,20", Path("/dogs/a.wav"))
    'file:///dogs/a.wav#t=10,20'
    """
    return path.absolute().as_uri() + ("" if name.endswith(path.name) else f"#{name.rpartition('#')[2]}")


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write the page that `template` makes of `values`, all text escaped, to `path`; raises InputError."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(palette=PALETTE, **values)
    with whole_file(path) as file:
        # File names need not be valid Unicode.
        file.write(page.encode("utf-8", "xmlcharrefreplace"))
