"""Single NU-RLMS iterations against the C++ program's traces.

The reference centres its kernel on a 0.1 px grid but measures the mean shift from the
true position, clamped to the window. The table is a later issue; here the exact kernel
is evaluated at the reference's own snapped position.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.shape.pdm import (
    PDM,
    PDMParams,
    clamp,
    jacobian,
    project,
    retract,
    rigid_jacobian,
)
from jaxclnf.solver.box import solve
from jaxclnf.solver.kde import log_kde
from jaxclnf.solver.quadratic import normal_equations
from tests.reference import PARTS, largest, params_from, phases, points, read_model

pytestmark = [pytest.mark.shared, pytest.mark.slow]

SHIFT_TOL = 3e-5  # px of the map; the two builds: 2e-5
NORMAL_TOL = 2e-6  # relative; the two builds: 1e-6
RIGHT_TOL = 2e-6  # relative to the sum of magnitudes that cancel in it
UPDATE_TOL = 1e-4  # the two builds: 1e-4
CONFIGURATIONS = ("clnf_general", "clnf_wild", "clm_general", "clnf_multi_pie")


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def traces(request: pytest.FixtureRequest, golden: Path, openface_dir: Path):
    rows = []
    for facts, rigid, arrays in phases(golden, request.param):
        name = PARTS.get(facts["model"], request.param)
        model = read_model(openface_dir, name)
        visible = np.asarray(model.experts[facts["scale"]].visibility[facts["view"]])
        rows.append((model.pdm, visible, facts, rigid, arrays))
    assert len(rows) > 20
    return rows


def test_positions_in_the_maps(traces):
    for _, visible, facts, _, arrays in traces:
        window = facts["window"]
        base = points(arrays["base_shape"].reshape(-1))
        shapes = points(arrays["it_shape"])
        offsets = (shapes - base) @ arrays["sim_img_to_ref"].T + (window - 1) / 2
        stored = np.stack([arrays["it_dxs"], arrays["it_dys"]], axis=-1)
        assert largest((offsets - stored)[:, visible]) < 2e-6


def test_mean_shifts(traces):
    shift = jax.jit(jax.vmap(log_kde, (None, 0, None)))
    for _, visible, facts, _, arrays in traces:
        positions = np.stack([arrays["it_dxs"], arrays["it_dys"]], axis=-1)
        clamped = np.clip(positions, 0, np.float32(facts["window"] - 0.1))
        tenth = np.float32(0.1)
        snapped = np.floor(clamped / tenth + np.float32(0.5)) * tenth
        _, from_snapped = shift(
            jnp.asarray(arrays["responses"]),
            jnp.asarray(snapped.astype(np.float32)),
            jnp.asarray(facts["sigma"], jnp.float32),
        )
        found = np.asarray(from_snapped) + snapped - clamped
        stored = points(arrays["it_ms_ref"])
        difference = (found - stored)[:, visible]
        # A position within float32 rounding of a cell's border may snap otherwise.
        away = np.abs((clamped / 0.1 + 0.5) % 1 - 0.5) < 0.4999
        assert largest(difference[away[:, visible]]) < SHIFT_TOL
        assert largest(difference) < 0.1
        in_image = stored @ arrays["sim_ref_to_img"].T
        assert largest((in_image - points(arrays["it_ms_img"]))[:, visible]) < SHIFT_TOL


@partial(jax.jit, static_argnames="rigid")
def one_step(
    pdm: PDM,
    params: PDMParams,
    equations: tuple[jax.Array, jax.Array, jax.Array],
    stored: tuple[jax.Array, jax.Array],
    *,
    rigid: bool,
) -> tuple[Any, ...]:
    """Each part of a step, from what the reference stored of the one before it.

    Returns:
        Landmarks and Jacobian, both sides of the equations, their solution for the
        stored right side, and where the stored update leads.
    """
    weights, shifts, precision = equations
    right, update = stored
    columns = (rigid_jacobian if rigid else jacobian)(pdm, params)
    found, normal = normal_equations(params, columns, weights, shifts, precision)
    moved = retract(params, update)
    moved = moved if rigid else clamp(pdm, moved)
    return project(pdm, params), columns, found, normal, solve(normal, right), moved


def test_normal_equations_and_update(traces):
    num_matrices = 0
    for pdm, visible, facts, rigid, arrays in traces:
        n = pdm.num_landmarks
        weights = np.where(visible, arrays["weight_diag"].reshape(-1)[:n], 0)
        weights = jnp.asarray(weights.astype(np.float32))
        size = 6 if rigid else 6 + pdm.num_modes
        precision = jnp.zeros(size, jnp.float32)
        if not rigid:
            prior = jnp.float32(facts["reg_factor"]) / pdm.eigen_values
            precision = precision.at[6:].set(prior)
        steps = len(arrays["it_update"])
        matrices = dict(
            zip(
                range(steps) if rigid else (0, steps - 1),
                arrays["it_Hessian"],
                strict=False,
            )
        )
        for t in range(steps):
            params = params_from(
                arrays["it_global"][t].reshape(-1), arrays["it_local"][t].reshape(-1)
            )
            shifts = jnp.asarray(points(arrays["it_ms_img"][t]))
            stored = arrays["it_J_w_t_m"][t].reshape(-1)
            update = arrays["it_update"][t].reshape(-1)
            landmarks, columns, right, normal, step, moved = one_step(
                pdm,
                params,
                (weights, shifts, precision),
                (jnp.asarray(stored), jnp.asarray(update)),
                rigid=rigid,
            )
            assert largest(landmarks - points(arrays["it_shape"][t])) < 2e-4
            scale = np.einsum(
                "nad,n,na->d", np.abs(columns), weights, np.abs(np.asarray(shifts))
            )
            assert np.all(np.abs(right - stored) <= RIGHT_TOL * (scale + 1))
            if t in matrices:
                assert largest(normal - matrices[t]) < NORMAL_TOL * largest(matrices[t])
                num_matrices += 1
            assert largest(step - update) < UPDATE_TOL * max(1, largest(update))
            last = t + 1 == steps
            after = arrays["global_end"] if last else arrays["it_global"][t + 1]
            local = arrays["local_end"] if last else arrays["it_local"][t + 1]
            vector = np.asarray(moved.params_global)
            assert largest(vector - after.reshape(-1)) < 1e-4
            assert largest(moved.params_local - local.reshape(-1)) < 2e-5
    assert num_matrices > 20
