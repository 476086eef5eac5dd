"""The machine that `speed.py` runs on: clock, memory, and what it can do at best."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclnf.fitting.cores import num_cores


def median_ms(function: Callable[[], Any], seconds: float = 3.0) -> float:
    """Median time of a call that was made before.

    Args:
        function: What to call; its arrays are waited for.
        seconds: How long to go on, but three calls at least and 200 at most.

    Returns:
        Milliseconds.

    Example:
        >>> median_ms(lambda: None) < 1e3
        True
    """
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 1e3 * seconds and len(times) < 200):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times))


def on_cpu() -> bool:
    """Whether the default device is a CPU.

    Example:
        >>> on_cpu() == (jax.default_backend() == "cpu")
        True
    """
    return jax.default_backend() == "cpu"


def machine() -> dict:
    """What runs.

    Returns:
        The device, the cores that may be used, the version of JAX, and whose memory
        the peaks are of.

    Example:
        >>> machine()["peak_of"] in ("device", "process", "nothing")
        True
    """
    return {
        "device": jax.devices()[0].device_kind,
        "cores": num_cores(),
        "jax": jax.__version__,
        "peak_of": peak_memory()[1],
    }


def rates() -> dict:
    """What the machine can do at best: the two floors of every stage.

    Returns:
        Operations of a large product, as exact as the stages' own, and bytes read and
        written by a large copy; both by the thousand million in a second.
    """
    # A device that is fast would be done before the next call has come.
    side, numbers = (1536, 1 << 26) if on_cpu() else (8192, 1 << 28)
    random = np.random.default_rng(0).standard_normal((side, side), np.float32)
    a, much = jnp.asarray(random), jnp.zeros(numbers, jnp.float32)
    product = jax.jit(partial(jnp.matmul, precision="highest")).lower(a, a).compile()
    # In place: to be given new memory takes longer than to fill it.
    add = jax.jit(lambda x: x + 1, donate_argnums=0).lower(much).compile()
    places = [much]

    def copy() -> jax.Array:
        places.append(add(places.pop()))
        return places[0]

    jax.block_until_ready((product(a, a), copy()))
    flops = 2 * side**3 / median_ms(lambda: product(a, a)) * 1e3
    rate = 2 * 4 * numbers / median_ms(copy) * 1e3
    return {
        "gflops": round(flops / 1e9, 1),
        "gbytes_per_s": round(rate / 1e9, 1),
    }


def peak_memory() -> tuple[float | None, str]:
    """The most memory in use at any time so far; it never falls.

    Returns:
        Bytes, and whose: of the `"device"` where JAX knows it, else of this `"process"`
        on the host; `None` of `"nothing"` where neither is known.

    Example:
        >>> peak, whose = peak_memory()
        >>> (peak is None) == (whose == "nothing")
        True
    """
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"]), "device"
    try:
        import resource  # not on Windows
    except ImportError:
        return None, "nothing"
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "process"


def start_up(photograph: Path) -> dict:
    """Time to import JAX alone, then the package with all that `fit` needs; and of the
    whole command, where nothing has been compiled yet and where all has.

    Args:
        photograph: What the command is given.

    Returns:
        Seconds, the least of five runs; the first command has one only.
    """

    def seconds(statement: str) -> float:
        code = f"import time; t = time.perf_counter(); {statement}"
        code += "; print(time.perf_counter() - t)"
        runs = [
            subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            )
            for _ in range(5)
        ]
        return min(float(run.stdout) for run in runs)

    jax_alone = seconds("import jax, jax.numpy")
    ours = seconds("import jax, jax.numpy, jaxclnf; jaxclnf.fit")
    first, *later = commands(photograph, 6)
    times = {
        "import jax": jax_alone,
        "beyond it": ours - jax_alone,
        "command, first": first,
        "command, later": min(later),
    }
    return {name: round(time, 3) for name, time in times.items()}


def commands(photograph: Path, times: int) -> list[float]:
    """Times of `jaxclnf fit`, each a process of its own, with a cache of its own.

    Args:
        photograph: The photograph.
        times: How many.

    Returns:
        Seconds of each, the first of which compiles.
    """
    ours = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    with tempfile.TemporaryDirectory() as folder:
        environment["JAXCLNF_CACHE_DIR"] = folder
        command = ["fit", str(photograph), "--out", f"{folder}/out"]
        taken = []
        for _ in range(times):
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "jaxclnf", *command],
                env=environment,
                check=True,
                capture_output=True,
            )
            taken.append(time.perf_counter() - begin)
    return taken
