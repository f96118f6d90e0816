"""Data parallelism: batches are sharded over all devices; everything else is replicated.

With several processes (jax.distributed), each runs the whole program and atomically writes the same files.
The processes compute together, and divide the reading of recordings among themselves.

`jit` compiles one program over all devices for arrays sharded in this way: means over a batch, also those of
batch-norm, are over the whole batch, and the arithmetic of a row does not depend on its device.
"""

import contextlib
import ctypes
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

from qkd_jax.errors import InputError, first_line, naming
from qkd_jax.system.interrupt import asked_to_stop

Tree = TypeVar("Tree")
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1  # of glibc's malloc.h
_LEAST_ROWS = 8


def join_processes() -> None:
    """Join the other processes of the run; call it before any computation.

    JAX gets the addresses from Slurm, Open MPI, Kubernetes or Cloud TPU.  Elsewhere set
    JAX_COORDINATOR_ADDRESS to HOST:PORT of the first process, JAX_NUM_PROCESSES to their number, and
    JAX_PROCESS_ID to the index of this one, from 0.  Only the first process prints.  Raises InputError
    without such a configuration.
    """
    numbers = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    expected = (
        "Slurm, Open MPI, Kubernetes or Cloud TPU, or JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES "
        "and JAX_PROCESS_ID"
    )
    with naming("--distributed", expected):
        count, index = (None if number is None else int(number) for number in numbers)
        # A failed process and the others wait this long for each other.
        jax.distributed.initialize(num_processes=count, process_id=index, shutdown_timeout_seconds=60)
    if jax.device_count() != jax.local_device_count() * jax.process_count():
        raise InputError(
            f"--distributed: expected as many devices in each of {jax.process_count()} processes, found "
            f"{jax.local_device_count()} here, {jax.device_count()} in all"
        )
    if not is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def use_all_cores(batch_size: int) -> None:
    """Train faster on CPUs; call it before any computation, in a process that does nothing else.

    Each core becomes a device with its share of a batch of `batch_size`, as long as that is equal and at
    least 8 rows, unless XLA_FLAGS sets the number of devices.  Memory that is freed stays in the process:
    XLA asks for hundreds of megabytes at each update, and pages that the system clears anew each time would
    take a quarter of it.
    """
    most = min(len(os.sched_getaffinity(0)), batch_size // _LEAST_ROWS) if sys.platform == "linux" else 1
    devices = max((count for count in range(1, most + 1) if batch_size % count == 0), default=1)
    if "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)
    malloc_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if malloc_option is not None:  # musl has none
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
            malloc_option(option, value)


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """A block, or as `@computing()` a function, whose new arrays have 32 bits, also with JAX_ENABLE_X64=1.

    Raises InputError if JAX finds none of the devices that JAX_PLATFORMS asks for.
    """
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, and an AssertionError where an NVIDIA driver is missing
        asked = os.environ.get("JAX_PLATFORMS", "")
        cuda = (
            ", or for NVIDIA GPUs: pip install 'qkd_jax[cuda]'" if "cuda" in asked or "gpu" in asked else ""
        )
        raise InputError(
            f"JAX_PLATFORMS={asked}: expected devices that JAX can use, found none ({first_line(error)}); "
            f"set JAX_PLATFORMS=cpu{cuda}"
        ) from None
    with jax.enable_x64(False):
        yield


def is_first() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return jax.process_index() == 0


def wait_for_all(where: object) -> None:
    """Wait until all processes have reached `where`; raises InputError if one has failed."""
    if jax.process_count() > 1:
        with naming("--distributed", "all other processes to be running"):
            multihost_utils.sync_global_devices(str(where))


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process; all must call this.  Raises InputError if one has failed."""
    if jax.process_count() == 1:
        return flag
    with naming("--distributed", "all other processes to be running"):
        return bool(multihost_utils.process_allgather(np.array(flag)).any())


def stop_all_if_asked() -> None:
    """Raise KeyboardInterrupt in every process if any received a signal; all must call this."""
    if any_process(asked_to_stop()):
        raise KeyboardInterrupt


def lacking(path: Path) -> bool:
    """True in every process if any process lacks the file `path`."""
    return any_process(not path.is_file())


@functools.cache
def all_devices() -> Mesh:
    """All devices of all processes as one axis `batch`, in the order of the processes."""
    return Mesh(np.array(jax.devices()), ("batch",), axis_types=(AxisType.Auto,))


def on_each() -> NamedSharding:
    """Replication: each device holds the whole array."""
    return NamedSharding(all_devices(), PartitionSpec())


def everywhere(tree: Tree) -> Tree:
    """`tree` with its arrays replicated on all devices."""
    return jax.device_put(tree, on_each())


def check_batch(field: str, size: int) -> None:
    """Raise InputError, naming the setting `field`, unless the devices can share `size` rows equally."""
    if size % (count := jax.device_count()):
        raise InputError(
            f"{field}: expected a multiple of the {count} devices, got {size}; to use fewer devices, "
            "set CUDA_VISIBLE_DEVICES"
        )


def whole_rows(size: int) -> int:
    """`size` rounded up to a multiple of the number of devices."""
    return -(-size // jax.device_count()) * jax.device_count()


def shares() -> list[slice]:
    """Slices of a list of tasks in the order in which this process tries them.

    First its share; with several processes, then all tasks, for those at which others failed.
    """
    share = slice(jax.process_index(), None, jax.process_count())
    return [share] if jax.process_count() == 1 else [share, slice(None)]


def own_rows(size: int) -> slice:
    """The rows of a batch of `size` that this process reads for its devices."""
    share = size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def spread(rows: Any) -> Any:
    """Batches sharded over all devices; `rows` is a tree with this process's rows of each, [rows, …]."""
    sharding = NamedSharding(all_devices(), PartitionSpec("batch"))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), rows)
