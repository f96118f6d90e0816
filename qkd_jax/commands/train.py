"""Train the models of PRESET, or resume its run.  --teacher MODEL|FILE … sets all students' teachers."""

from typing import TYPE_CHECKING

from qkd_jax.commands.cli import docstring, load_preset
from qkd_jax.commands.override import override, take, with_teachers
from qkd_jax.config import RunConfig
from qkd_jax.system.interrupt import stop_requests

if TYPE_CHECKING:
    from qkd_jax.run_folder.run import Run


def main(arguments: list[str], prog: str) -> None:
    """Train the preset, a name or a file, that `arguments` start with; by default demo."""
    config = config_of(arguments, prog, docstring(__file__))
    from qkd_jax.system.devices import join_processes, use_all_cores

    if config.distributed:
        join_processes()
    else:
        use_all_cores(config.recipe.batch_size)
    train(config)


def config_of(arguments: list[str], prog: str, description: str | None) -> RunConfig:
    """The preset, a name or a file, that `arguments` start with (by default demo), with its other arguments.

    Prints the settings and exits for --help; raises InputError for a wrong argument.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = load_preset(arguments[0] if named else "demo")
    teachers, settings = take("--teacher", arguments[named:])
    if teachers:
        preset = with_teachers(preset, teachers)
    return override(
        preset, settings, prog=f"{prog} {arguments[0] if named else '[PRESET]'}", description=description
    )


def train(config: RunConfig) -> "Run":
    """Train the models of `config` in order, or resume the run, then score them on the test split.

    The folder of the returned run holds everything (see `qkd_jax.run_folder.run`); `run.results` has the
    figures.  Raises InputError, and KeyboardInterrupt when asked to stop: the same call then resumes.
    """
    # Imported here, since JAX takes seconds and --help needs none of it.
    from qkd_jax.commands.evaluate import score
    from qkd_jax.run_folder.folder import open_run
    from qkd_jax.system.devices import computing
    from qkd_jax.training.run import check_config, train_models

    with computing(), stop_requests():
        check_config(config)
        with open_run(config) as run:
            train_models(run)
            score(run)
    return run
