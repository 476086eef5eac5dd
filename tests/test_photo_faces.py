"""Faces of one photograph: few programs, the same numbers, a word if it takes long."""

import io
import sys
import time

import numpy as np
import pytest

from jaxclnf.app import photo_faces
from jaxclnf.app.photo_faces import fit_photo_faces
from jaxclnf.fitting import fit, many
from jaxclnf.fitting.face import unfitted_face
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult
from tests import synthetic

QUICK = FitOptions(window_sizes=(7,))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


@pytest.mark.parametrize("takes", [0.0, 0.3])
@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_word_at_a_terminal_where_it_takes_long(
    takes: float, stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
):
    names = synthetic.example(np.float32)
    box = np.asarray(names["box"])

    def slow(*_, **__) -> FitResult:
        time.sleep(takes)
        return unfitted_face(names["model"])

    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(photo_faces, "fit_many", slow)
    monkeypatch.setattr(photo_faces, "_PATIENCE", 0.1)
    fit_photo_faces(names["model"], names["image"], box[None], QUICK)
    expected = "jaxclnf: compiling; the next run finds it in the cache\n"
    assert shown.getvalue() == (expected if takes and stream is Terminal else "")
