"""Strict settings for every test, the marker rules, and names for the doctests."""

import gc
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

EMITTERS = "--xla_cpu_use_fusion_emitters"
GIVEN_FLAGS = os.environ.get("XLA_FLAGS", "")
if jax.__version_info__[:2] == (0, 10) and EMITTERS not in GIVEN_FLAGS:
    # XLA's older way to emit code for CPU: half the time to compile a small fit. Only
    # in versions that are known to have it: an unknown flag ends the process. To test
    # what users run, set XLA_FLAGS to the flag with `=true`.
    flags = f"{GIVEN_FLAGS} {EMITTERS}=false"
    if "PYTEST_XDIST_WORKER" in os.environ:
        # A worker has one core: to split programs for several costs a twentieth.
        flags += " --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = flags.strip()

LITTLE_OPTIMISED = "jax_disable_most_optimizations"
CHOSEN = LITTLE_OPTIMISED.upper() in os.environ
"""Whether who started the tests has said how programs are compiled. To test what users
run, set the variable to 0."""

QUICKLY = {} if CHOSEN else {LITTLE_OPTIMISED.upper(): "true"}
"""For the environment of processes that tests start."""

LITTLE_NOW = pytest.StashKey[bool]()
"""Whether programs are compiled with little optimisation."""

MOST_MAPPINGS = 20_000
"""Of the 65530 memory mappings that Linux grants a process by default; a compiled
program takes some hundreds, and one too many ends the process without a word."""

SECONDS_BETWEEN_COUNTS = 5.0
LAST_COUNT = pytest.StashKey[float]()
"""When the mappings were counted last."""

RUNNING = "running"
"""A file among the programs that are kept, from the begin of a run to its end."""

DEFAULT_SHARED = Path("../shared")
SHARED = Path(os.environ.get("JAXCLNF_SHARED") or DEFAULT_SHARED)
SLOW_EXAMPLES = (
    "app.check.check_model",
    "app.face_rows.openface_row",
    "app.photo_faces.fit_photo_faces",
    "app.tables.faces_of",
    "diagnosis.agreement.judge_agreement",
    "diagnosis.diagnose.diagnose",
    "diagnosis.verify.Verification.certified",
    "diagnosis.verify.verify",
    "fitting.face.conclude_face",
    "fitting.face.fit_face",
    "fitting.face.level_of_fit",
    "fitting.fit.fit_with_trace",
    "fitting.hypotheses.fit_starts",
    "fitting.hypotheses.with_end",
    "fitting.many.fit_many",
    "fitting.parts.fit_parts",
    "fitting.phases.after_phases",
    "fitting.progress.report",
    "fitting.pruning.begin_start",
    "fitting.pruning.choose_starts",
    "fitting.pruning.finish_start",
    "fitting.pruning.keep_likeliest",
    "fitting.schedule.fit_scales",
    "fitting.schedule.run_scales",
    "fitting.separate.fit_face_separately",
    "fitting.track.track_frame",
    "fitting.track.track_step",
    "fitting.track.with_template",
    "fitting.track_state.advance",
    "learn.accuracy.held_out_accuracy",
    "learn.ccnf.field.log_likelihood",
    "learn.ccnf.samples.draw_samples",
    "learn.chain.learn_experts",
    "learn.chain.learn_shape",
    "learn.trial_fits.trial_fits",
    "learn.validator.learn_validator",
)
"""Functions whose examples take more than a few seconds to compile."""

IN_CI = bool(os.environ.get("CI"))


def pytest_configure(config: pytest.Config) -> None:
    """Refuses to leave out, in CI, tests whose data are there; keeps what it compiles.

    Nearly all the time of the tests is compilation. Programs are kept beside pytest's
    own cache, for the next run and for after `jax.clear_caches`; each worker has a
    folder of its own, since JAX does not lock one.
    """
    problem = missing_data(SHARED, DEFAULT_SHARED, IN_CI)
    if problem:
        raise pytest.UsageError(problem)
    # To look for garbage among all that was ever traced took a fifteenth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    if not config.pluginmanager.hasplugin("cacheprovider"):
        jax.config.update("jax_enable_compilation_cache", False)
        return
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    folder = config.cache.mkdir(f"jax-{jax.__version__}-{worker}")
    forget_half_written(folder)
    running = folder / RUNNING
    running.touch()
    config.add_cleanup(lambda: running.unlink(missing_ok=True))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def forget_half_written(folder: Path) -> None:
    """Removes the youngest program that is kept, if its run did not come to an end.

    JAX writes programs in place, and none that is there already, so half of one would
    be read, in vain, for ever.
    """
    if (folder / RUNNING).exists():
        programs = sorted(folder.glob("*-cache"), key=os.path.getmtime)
        for program in programs[-1:]:
            program.unlink()


def missing_data(shared: Path, default: Path, in_ci: bool) -> str | None:
    """Why the reference data may not be missing here, if they are."""
    if not in_ci or shared.is_dir() or not default.is_dir():
        return None
    return f"JAXCLNF_SHARED is {shared}, which is no folder, but there is {default}"


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leaves out slow tests by default, and shared ones where there is no data.

    Tests of optimised programs come first, as a change costs what is compiled by then.
    """
    selected = config.getoption("-m") or ""
    no_data = pytest.mark.skip(
        reason=f"no reference data in {SHARED} (set JAXCLNF_SHARED to their folder)"
    )
    too_slow = pytest.mark.skip(reason="slow: set CI=1 or pass -m slow to run it")
    for item in items:
        # Python 3.13 does not find the lines of some examples; pytest 9.2 then fails
        # to report that one is skipped.
        if isinstance(item, pytest.DoctestItem) and item.dtest.lineno is None:
            item.dtest.lineno = 0
        if item.name.endswith(SLOW_EXAMPLES):
            item.add_marker("slow")
        if "slow" in item.keywords and not IN_CI and "slow" not in selected:
            item.add_marker(too_slow)
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(no_data)
    items.sort(key=lambda item: "optimised" not in item.keywords)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Has programs compiled with little optimisation, in a third of the time.

    Not where a test computes more than it compiles, or where the last digits matter,
    which change with it; and not for whole fits beside the reference's, which are about
    what users get.
    """
    little = "optimised" not in item.keywords
    if not CHOSEN and item.config.stash.get(LITTLE_NOW, False) != little:
        item.config.stash[LITTLE_NOW] = little
        jax.config.update(LITTLE_OPTIMISED, little)
        jax.clear_caches()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Forgets the compiled programs before there are too many."""
    # To count takes some hundredths of a second, longer than most tests do.
    now, last = time.monotonic(), item.config.stash.get(LAST_COUNT, -math.inf)
    if now - last < SECONDS_BETWEEN_COUNTS:
        return
    item.config.stash[LAST_COUNT] = now
    if num_mappings() > MOST_MAPPINGS:
        jax.clear_caches()


def num_mappings() -> int:
    """Memory mappings of this process; 0 where the system does not tell."""
    table = Path("/proc/self/maps")
    return table.read_bytes().count(b"\n") if table.exists() else 0


@pytest.fixture(autouse=True)
def _traced_anew() -> Iterator[None]:
    """Tests look at what is traced, even after one that has it kept."""
    yield
    from jaxclnf.shelf import use_shelf

    use_shelf(None)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict, request: pytest.FixtureRequest) -> None:
    if not request.node.name.startswith("jaxclnf."):
        return
    import jaxclnf
    from tests import synthetic

    doctest_namespace.update(
        {name: getattr(jaxclnf, name) for name in jaxclnf.__all__},
        jax=jax,
        jnp=jnp,
        np=np,
        field_task=synthetic.field_task,
        **synthetic.example(),
    )
