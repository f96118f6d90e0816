"""Strict JAX: shapes that only fit by rank promotion are mistakes, and so are silent warnings."""

import os
import signal

# Before jax starts: two virtual devices, so that sharding is real.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# In the background of a shell SIGINT is ignored, here and in the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")
