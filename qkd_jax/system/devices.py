"""Data parallel: the rows of a batch over all devices, of this machine or of several, all else on each.

Of several processes (jax.distributed) each goes through the whole run, and writes the same files, whole at
once.  What devices compute they compute together; recordings are shared out where reading them is the work.

What `jit` makes of arrays that lie so is one program over all of them: means over a batch, batch-norm's
too, are over the whole batch, and a row's own arithmetic doesn't know on which device it is done.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qkd_jax.errors import InputError
from qkd_jax.system.interrupt import asked_to_stop

Tree = TypeVar("Tree")


def join_processes() -> None:
    """Train with others: to be called before anything is computed; raises InputError if there are none.

    JAX finds out from Slurm, Open MPI, Kubernetes and Cloud TPU.  Elsewhere JAX_COORDINATOR_ADDRESS is the
    first one's HOST:PORT, JAX_NUM_PROCESSES their number, JAX_PROCESS_ID which this one is, from 0.
    Only the first prints what it does.
    """
    numbers = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        count, index = (None if number is None else int(number) for number in numbers)
        # Whoever fails waits so long for the others, and they for it.
        jax.distributed.initialize(num_processes=count, process_id=index, shutdown_timeout_seconds=60)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            "--distributed: expected Slurm, Open MPI, Kubernetes or Cloud TPU, or JAX_COORDINATOR_ADDRESS="
            f"HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID: {str(error).splitlines()[0]}"
        ) from None
    if jax.device_count() != jax.local_device_count() * jax.process_count():
        raise InputError(
            f"--distributed: expected as many devices in each of {jax.process_count()} processes, found "
            f"{jax.local_device_count()} here, {jax.device_count()} in all"
        )
    if not is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_first() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return jax.process_index() == 0


def wait_for_all(where: object) -> None:
    """Go on when all processes have come here; raises InputError if one has failed."""
    if jax.process_count() > 1:
        with _others():
            multihost_utils.sync_global_devices(str(where))


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any of the processes, which all ask; raises InputError if one has failed."""
    if jax.process_count() == 1:
        return flag
    with _others():
        return bool(multihost_utils.process_allgather(np.array(flag)).any())


@contextlib.contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:  # of what connects them, a class for each
        raise InputError(
            f"--distributed: another process has failed, or is out of reach: {str(error).splitlines()[0]}"
        ) from None


def stop_all_if_asked() -> None:
    """Raise KeyboardInterrupt in all processes, which all come here, if a signal came to any."""
    if any_process(asked_to_stop()):
        raise KeyboardInterrupt


def lacking(path: Path) -> bool:
    """Whether there is no file `path`: the same in all processes, each of which may write it then."""
    return any_process(not path.is_file())


@functools.cache
def all_devices() -> Mesh:
    """All devices of all processes, as one axis `batch`, in the order of the processes' rows."""
    return Mesh(np.array(jax.devices()), ("batch",), axis_types=(AxisType.Auto,))


def on_each() -> NamedSharding:
    """The whole of an array on each device."""
    return NamedSharding(all_devices(), PartitionSpec())


def everywhere(tree: Tree) -> Tree:
    """`tree` with its arrays on each device."""
    return jax.device_put(tree, on_each())


def check_batch(field: str, size: int) -> None:
    """Raise InputError, naming the setting `field`, unless each device gets as many rows of `size`."""
    if size % (count := jax.device_count()):
        raise InputError(
            f"{field}: expected a multiple of the {count} devices, got {size}; where there are more than "
            "are wanted, CUDA_VISIBLE_DEVICES names some"
        )


def whole_rows(size: int) -> int:
    """The least multiple of the devices that is no less than `size`."""
    return -(-size // jax.device_count()) * jax.device_count()


def shares() -> list[slice]:
    """Of a list of things to do, this process's; of several, then all, for what others couldn't do."""
    own = slice(jax.process_index(), None, jax.process_count())
    return [own] if jax.process_count() == 1 else [own, slice(None)]


def own_rows(size: int) -> slice:
    """The rows of a batch of `size` that this process reads and hands to its devices."""
    share = size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def spread(rows: Any) -> Any:
    """Batches over all devices; `rows` is a tree of this process's own, [rows, …] each."""
    along = NamedSharding(all_devices(), PartitionSpec("batch"))
    return jax.tree.map(lambda each: jax.make_array_from_process_local_data(along, np.asarray(each)), rows)
