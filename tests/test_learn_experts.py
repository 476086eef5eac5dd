"""Learnt fields as patch experts: mirror images, views, what is stored."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.experts.ccnf import ccnf_responses
from jaxclnf.experts.sigma import with_sigma
from jaxclnf.experts.types import CCNFExperts
from jaxclnf.learn.ccnf.experts import (
    ViewFields,
    assemble_experts,
    mirrored_view,
    reflected,
)
from jaxclnf.learn.ccnf.field import FieldParams
from jaxclnf.learn.ccnf.neighbours import neighbour_matrices

TOL = 1e-12  # float64: maps of some hundred roundings

LANDMARKS, NEURONS, SUPPORT, WINDOW = 5, 2, 5, 7
MIRROR = np.asarray([1, 0, 2, 4, 3])

_responses = jax.jit(ccnf_responses)


def make_view(seed: int = 0, dtype: Any = np.float64) -> ViewFields:
    """A view from one side in which the fourth landmark is hidden."""
    rng = np.random.default_rng(seed)
    shape = (LANDMARKS, NEURONS)
    fields = FieldParams(
        filters=jnp.asarray(rng.normal(0.2, 1, (*shape, SUPPORT, SUPPORT)), dtype),
        bias=jnp.asarray(rng.normal(-1, 1, shape), dtype),
        log_alpha=jnp.asarray(rng.normal(1, 1, shape), dtype),
        log_beta=jnp.asarray(rng.normal(0, 1, (LANDMARKS, 3)), dtype),
    )
    return ViewFields(
        center=(0.1, 0.5, -0.2),
        fields=fields,
        confidence=jnp.asarray(rng.uniform(0.3, 0.9, LANDMARKS), dtype),
        visible=np.asarray([True, True, True, False, True]),
    )


def make_areas(seed: int = 1) -> np.ndarray:
    side = WINDOW + SUPPORT - 1
    return np.random.default_rng(seed).uniform(0, 255, (LANDMARKS, side, side))


def maps(experts: CCNFExperts, view: int, areas: np.ndarray) -> np.ndarray:
    number = jnp.asarray(view, jnp.int32)
    return np.asarray(_responses(experts, number, jnp.asarray(areas)))


def assert_same(one: ViewFields, other: ViewFields) -> None:
    assert one.center == other.center
    jax.tree.map(np.testing.assert_array_equal, one.fields, other.fields)
    np.testing.assert_array_equal(one.confidence, other.confidence)
    np.testing.assert_array_equal(one.visible, other.visible)


# Mirror images.


def test_mirrored_twice_is_the_view_itself():
    view = make_view()
    other = mirrored_view(view, MIRROR)
    assert other.center == (0.1, -0.5, 0.2)
    np.testing.assert_array_equal(other.visible, [True, True, True, True, False])
    np.testing.assert_array_equal(other.confidence, np.asarray(view.confidence)[MIRROR])
    assert_same(mirrored_view(other, MIRROR), view)


def test_reflection_turns_columns_round():
    fields = make_view().fields
    other = reflected(fields, MIRROR)
    for n, partner in enumerate(MIRROR):
        np.testing.assert_array_equal(
            other.filters[n], np.asarray(fields.filters)[partner, :, :, ::-1]
        )
        for name in ("bias", "log_alpha", "log_beta"):
            np.testing.assert_array_equal(
                getattr(other, name)[n], getattr(fields, name)[partner]
            )


def test_one_half_becomes_a_whole_face():
    """A field may serve on both sides: reflected for the partner."""
    fields = make_view().fields
    other = reflected(fields, np.asarray([2, 2, 0]))
    assert other.filters.shape == (3, NEURONS, SUPPORT, SUPPORT)
    np.testing.assert_array_equal(other.bias[0], other.bias[1])
    empty = reflected(fields, np.zeros(0, int))
    assert empty.filters.shape == (0, NEURONS, SUPPORT, SUPPORT)


@pytest.mark.parametrize("prepared", [False, True])
def test_mirrored_experts_see_mirrored_maps(prepared):
    view = make_view()
    experts = assemble_experts(0.5, [view, mirrored_view(view, MIRROR)], (WINDOW,))
    if prepared:
        experts = with_sigma(experts, (WINDOW,))
    areas = make_areas()
    plain = maps(experts, 0, areas)
    turned = maps(experts, 1, areas[MIRROR, :, ::-1])
    np.testing.assert_allclose(turned, plain[MIRROR, :, ::-1], rtol=0, atol=10 * TOL)
    assert np.ptp(plain[0]) > 0.05  # and they are not just flat


# What is stored.


def test_a_hidden_landmark_has_no_expert():
    view = make_view()
    lost = np.asarray(view.fields.log_beta).copy()
    lost[3] = np.nan  # whatever a field that was never learnt may hold
    view = dataclasses.replace(
        view, fields=dataclasses.replace(view.fields, log_beta=jnp.asarray(lost))
    )
    experts = assemble_experts(0.5, [view, mirrored_view(view, MIRROR)], (WINDOW,))
    for v, hidden in enumerate((3, 4)):
        expected = np.arange(LANDMARKS) != hidden
        np.testing.assert_array_equal(experts.visibility[v], expected)
        np.testing.assert_array_equal(experts.alpha[v].sum(axis=1) > 0, expected)
        for name in ("weights", "norm_weights", "bias", "alpha", "beta", "confidence"):
            np.testing.assert_array_equal(getattr(experts, name)[v, hidden], 0)
        found = maps(experts, v, make_areas())
        np.testing.assert_array_equal(found[hidden], 0)
        assert np.all(np.isfinite(found))
        assert np.all(found[expected].max(axis=(1, 2)) > 0)
    assert np.all(np.isfinite(with_sigma(experts, (WINDOW,)).sigma[WINDOW]))


def test_filters_are_stored_without_mean_and_gain():
    view = make_view()
    experts = assemble_experts(0.35, [view], (WINDOW, 11))
    seen = view.visible
    weights = np.asarray(experts.weights[0])[seen]
    np.testing.assert_allclose(weights.mean(axis=(2, 3)), 0, atol=TOL)
    np.testing.assert_allclose(np.sum(weights**2, axis=(2, 3)), 1, atol=TOL)
    filters = np.asarray(view.fields.filters)[seen]
    filters = filters - filters.mean(axis=(2, 3), keepdims=True)
    gain = np.asarray(experts.norm_weights[0])[seen]
    np.testing.assert_allclose(gain[..., None, None] * weights, filters, atol=TOL)
    np.testing.assert_allclose(
        experts.alpha[0, seen], np.exp(view.fields.log_alpha[seen]), rtol=1e-12
    )
    np.testing.assert_allclose(
        experts.beta[0, seen], np.exp(view.fields.log_beta[seen]), rtol=1e-12
    )
    assert float(experts.patch_scaling) == 0.35
    np.testing.assert_allclose(experts.view_centers, [view.center])
    assert set(experts.neighbours) == {WINDOW, 11} and experts.sigma == {}
    np.testing.assert_array_equal(experts.neighbours[11], neighbour_matrices(11))


def test_a_flat_filter_has_no_gain():
    """It answers everywhere what its offset says."""
    view = make_view()
    flat = dataclasses.replace(view.fields, filters=jnp.ones_like(view.fields.filters))
    # Offset alone, and no coupling across the window's border.
    flat = dataclasses.replace(flat, log_beta=jnp.full((LANDMARKS, 3), -jnp.inf))
    experts = assemble_experts(0.5, [dataclasses.replace(view, fields=flat)], (WINDOW,))
    np.testing.assert_array_equal(experts.norm_weights, 0)
    np.testing.assert_array_equal(experts.weights, 0)
    alpha = np.exp(flat.log_alpha)
    level = np.sum(alpha / (1 + np.exp(-np.asarray(flat.bias))), axis=1) / alpha.sum(1)
    expected = np.where(view.visible, level, 0)[:, None, None]
    found = maps(experts, 0, make_areas())
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=TOL)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_experts_have_the_type_of_the_fields(dtype):
    view = make_view(dtype=dtype)
    experts = assemble_experts(0.5, [view, mirrored_view(view, MIRROR)], (WINDOW,))
    types = {x.dtype for x in jax.tree.leaves(experts)}
    assert types == {np.dtype(dtype), np.dtype(bool)}
