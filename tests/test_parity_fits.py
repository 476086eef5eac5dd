"""Whole fits in the openface dialect against the C++ program's, every configuration.

"The same" is what a second build of the C++ program finds. Every face of the samples
and, for two configurations, every eighth of the annotated photographs;
`benchmarks/parity.py` has them all.

Rounding turns which sample position, of a tenth of a pixel, a landmark uses: it decides
about some faces of each 48. Three ways to add the same squares, each within 4e-7 of
them, give 90 % of 0.044 to 0.064 px for one configuration, and of 0.025 to 0.031 for
all but the wild ones together (the second build: 0.032). A test of one allows for that:
nine in ten are held against the second build's 95 %, and 19 in 20 against its largest,
or the bound if that is less.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from reference_fits import EXPERTS, MODES, cases, compare

import jaxclnf

pytestmark = [pytest.mark.shared, pytest.mark.slow]

MEDIAN, WILD_MEDIAN = 0.01, 0.05  # px
# px; 0.0100 over all faces where parts are fitted, but 56 of them vary more, and with
# the machine: 0.0179 was seen with other vector instructions.
PHOTO_MEDIAN = 0.025
# px; 0.036 and 0.039 over all faces with the wild experts, where a face differs by
# nearly nothing or by 0.1: the median of 56 is 0.037 or 0.055, as rounding has it.
WILD_PHOTO_MEDIAN = 0.075
BOUND, WILD_BOUND = 0.2, 0.5  # px
SLACK = 0.02  # px
SAME = 1e-3  # px
CERTAINTY_STEP = 1 / 30 + 1e-6  # a neighbouring bin of the validator
CEN_TOL = 2e-3  # px
MEAN_ERROR = 0.01  # relative
EVERY = 8


def _is_wild(configuration: str) -> bool:
    return "wild" in configuration


def _bound(configuration: str) -> float:
    return WILD_BOUND if _is_wild(configuration) else BOUND


@pytest.mark.optimised
@pytest.mark.parametrize("configuration", EXPERTS)
def test_configuration(configuration: str):
    """All in one process: they share programs that take long to compile."""
    for mode in MODES:
        _check_samples(configuration, mode)
        if configuration in ("clnf_general", "clnf_wild"):
            _check_annotated_photographs(configuration, mode)


def _check_samples(configuration: str, mode: str) -> None:
    rows = [compare(configuration, mode, c) for c in cases(configuration, mode, "fits")]
    ours = np.array([row.difference for row in rows])
    second = np.array([row.case.second_build for row in rows])
    assert np.median(ours) < (WILD_MEDIAN if _is_wild(configuration) else MEDIAN)
    for percent, theirs in ((90, 95), (95, 100)):
        bound = min(np.percentile(second, theirs), _bound(configuration))
        assert np.percentile(ours, percent) <= bound + SLACK
    assert max(abs(row.likelihood) for row in rows) < 0.03
    # The validator's likeliest bin can jump when its picture of the face differs, seen
    # at 0.006 px; where the landmarks agree, it does not.
    same = [row for row in rows if row.difference < SAME]
    assert len(same) > len(rows) / 4
    assert all(abs(row.certainty) < CERTAINTY_STEP for row in same)
    near = [row for row in rows if row.difference < _bound(configuration)]
    assert sum(abs(row.certainty) >= CERTAINTY_STEP for row in near) <= 1
    # Two starts may be equally likely to the fifth decimal, above all wild.
    assert sum(not row.same_start for row in rows) <= 2


def _check_annotated_photographs(configuration: str, mode: str) -> None:
    faces = cases(configuration, mode, "fits300w", EVERY)
    rows = [compare(configuration, mode, case) for case in faces]
    assert len(rows) == 56
    ours = np.array([row.difference for row in rows])
    median = WILD_PHOTO_MEDIAN if _is_wild(configuration) else PHOTO_MEDIAN
    assert np.median(ours) < median
    assert np.percentile(ours, 90) < _bound(configuration)
    errors = np.array([(row.our_error, row.their_error) for row in rows])
    mean, reference = errors.mean(axis=0)
    assert abs(mean / reference - 1) < MEAN_ERROR


@pytest.mark.parametrize("name", ["", "_early", "_never"])
def test_convolutional_experts_and_early_termination(golden: Path, name: str):
    folder = golden / "cen_synth"
    model = jaxclnf.load_model(folder / f"main_cen_synth{name}.txt")
    options = dataclasses.replace(
        jaxclnf.FitOptions.openface_cen(), window_sizes=(11, 7)
    )
    with np.load(golden / "gray_images.npz") as file:
        images = {key: file[key] for key in file.files}
    with np.load(folder / "cen_synth_golden.npz") as file:
        arrays = dict(file)
    fits = json.loads(str(arrays[f"main_cen_synth{name}_fits"]))["fits"]
    assert len(fits) == 3
    for k, facts in enumerate(fits):
        image = images[facts["image"].replace(".", "_")]
        box = np.asarray(facts["bbox"], np.float32)
        result = jaxclnf.fit(model, image, box, options=options)
        stored = arrays[f"main_cen_synth{name}_fit{k}_landmarks"]
        assert np.abs(np.asarray(result.landmarks) - stored).max() < CEN_TOL
        found = np.asarray(result.start_log_likelihoods)
        last = np.array(facts["phase_loglikelihoods"])[1::2]
        if name == "":
            # Every start went through both scales.
            assert np.abs(found - last[1::2]).max() < 1e-3
        elif name == "_early":
            assert np.isfinite(found).tolist() == [True] + [False] * 10
        else:
            # The three best scores of the first scale were completed.
            completed = found[np.isfinite(found)]
            assert np.abs(np.sort(completed) - np.sort(last[11:])).max() < 1e-3
