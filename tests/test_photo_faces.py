"""Faces of one photograph: few programs, and the numbers of a fit."""

import numpy as np
import pytest

from jaxclnf.app.photo_faces import fit_photo_faces
from jaxclnf.fitting import fit, many
from jaxclnf.fitting.options import FitOptions
from tests import synthetic

QUICK = FitOptions(window_sizes=(7,))


@pytest.mark.slow
def test_faces_of_photographs_of_all_sizes_share_a_program():
    names = synthetic.example(np.float32)
    model, grey, box = names["model"], names["image"], np.asarray(names["box"])
    alone = fit.fit(model, grey, box, options=QUICK)
    wide = np.zeros((700, 1500), np.uint8)
    wide[100:340, 900:1160] = grey
    boxes = np.stack([box + np.array([900, 100, 0, 0]), np.full(4, np.nan)])
    fit_photo_faces(model, grey, box[None], QUICK)
    programs = many._fit_chunk._cache_size()  # pyright: ignore
    found = fit_photo_faces(model, wide, boxes, QUICK)
    assert many._fit_chunk._cache_size() == programs  # pyright: ignore
    away = np.asarray(found.landmarks)[0] - [900, 100] - np.asarray(alone.landmarks)
    assert np.abs(away).max() < 1e-3
    assert not found.success[1]
