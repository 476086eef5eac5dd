"""`jaxclnf check`: right derivatives pass, a wrong one is found and named."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclnf.app.check as check_module
from jaxclnf.app.check import TOLERANCES, check_model
from jaxclnf.app.cli import main
from jaxclnf.storage.npz import save_model
from tests import synthetic

DRAWS = 4  # one at zero, one at 90 degrees of yaw, two at random


@pytest.fixture(scope="module")
def model_file(example: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check") / "model.npz"
    save_model(example["model"], path)
    return path


def _bad_blocks(rows) -> set[tuple[str, str]]:
    return {(row.quantity, row.block) for row in rows if not row.passed}


@pytest.mark.slow
def test_a_right_model_passes_whatever_the_setting():
    """A float32 model, and 64-bit numbers switched off: it runs in float64 anyway."""
    pdm = synthetic.make_pdm(dtype=np.float32)
    with jax.enable_x64(False):
        rows = check_model(pdm, num_draws=DRAWS)
        assert jnp.zeros(1).dtype == jnp.float32  # the setting is put back
    assert not _bad_blocks(rows)
    keys = [(row.quantity, row.block, row.reference) for row in rows]
    assert len(set(keys)) == len(keys) == 3 * 4 * 2
    for row in rows:
        assert 0 <= row.error <= TOLERANCES[row.reference]
        assert 0 <= row.draw < DRAWS
        assert row.params_global.shape == (6,) and row.params_local.shape == (4,)


def _wrong(pdm, params):
    """A wrong sign in a rotation column, and a mode's entry that is no number."""
    wrong_sign = _JACOBIAN(pdm, params) * jnp.ones(10).at[2].set(-1)[None, None]
    return wrong_sign.at[3, 1, 7].set(jnp.nan)


_JACOBIAN = check_module.jacobian


@pytest.mark.slow
def test_wrong_derivatives_are_found_and_named(model_file, monkeypatch, capsys):
    monkeypatch.setattr(check_module, "jacobian", _wrong)
    assert main(["check", str(model_file), "--draws", str(DRAWS)]) == 1
    lines = capsys.readouterr().out.splitlines()
    bad = [line for line in lines if line.startswith("FAIL")]
    assert [line.split()[1:4] for line in bad] == [
        ["jacobian", block, reference]
        for block in ("rotation", "modes")
        for reference in ("autodiff", "differences")
    ]
    for sign, nan in zip(bad[:2], bad[2:], strict=True):
        assert ", 2) of draw" in sign  # the column
        assert " nan <= " in nan and "at (3, 1, 7) of draw" in nan
    assert lines[-1] == "4 beyond tolerance"


@pytest.mark.slow
def test_the_command_passes_a_right_model(model_file, capsys):
    assert main(["check", str(model_file), "--draws", str(DRAWS)]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == "all within tolerance"
    assert "FAIL" not in output


def test_a_number_of_draws_that_is_not_positive(model_file, capsys):
    assert main(["check", str(model_file), "--draws", "0"]) == 2
    assert "--draws 0" in capsys.readouterr().err
    assert main(["check", str(model_file), "--seed", "-1"]) == 2
    assert "--seed -1: must be 0 or more" in capsys.readouterr().err
