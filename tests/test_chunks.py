"""Faces divided into chunks: everyone is in one, few programs, none too large."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxclnf.fitting.canvas import Canvas
from jaxclnf.fitting.chunks import plan_chunks

SIDES = st.sampled_from([128, 256, 512, 1024, 2048, 4096, 8192])
CANVASES = st.builds(
    Canvas,
    st.tuples(SIDES, SIDES),
    st.sampled_from([np.dtype(np.uint8), np.dtype(np.float32)]),
)


@given(
    canvases=st.lists(CANVASES, max_size=80),
    most=st.integers(1, 40),
    workers=st.integers(1, 3),
    devices=st.integers(1, 3),
)
def test_every_face_has_its_place(
    canvases: list[Canvas], most: int, workers: int, devices: int
):
    chunks = plan_chunks(dict(enumerate(canvases)), most, workers, devices)
    faces = [face for chunk in chunks for face in chunk.faces]
    assert sorted(faces) == list(range(len(canvases)))
    for chunk in chunks:
        assert 1 <= len(chunk.faces) <= devices * chunk.size
        assert chunk.size <= most
        assert chunk.size == 1 or chunk.size * chunk.canvas.area <= 1 << 26
        for face in chunk.faces:
            assert chunk.canvas.dtype == canvases[face].dtype
            assert np.all(np.array(chunk.canvas.shape) >= canvases[face].shape)


def square(side: int) -> Canvas:
    return Canvas((side, side), np.dtype(np.uint8))


def test_few_faces_of_small_canvases_move_up():
    needed = [square(256)] * 3 + [square(512)] * 2 + [square(1024)] * 40
    chunks = plan_chunks(dict(enumerate(needed)), 16, 2, 1)
    assert {(chunk.canvas, chunk.size) for chunk in chunks} == {(square(1024), 16)}
    assert [len(chunk.faces) for chunk in chunks] == [16, 16, 13]


def test_full_chunks_stay_where_they_are():
    needed = [square(256)] * 32 + [square(512)] * 32
    chunks = plan_chunks(dict(enumerate(needed)), 16, 2, 1)
    assert [chunk.canvas for chunk in chunks] == [square(256)] * 2 + [square(512)] * 2


def test_no_one_moves_where_chunks_would_shrink():
    needed = [square(512)] * 3 + [square(4096)] * 9
    chunks = plan_chunks(dict(enumerate(needed)), 16, 1, 1)
    assert [(chunk.canvas, chunk.size) for chunk in chunks] == [
        (square(512), 4),
        (square(4096), 4),
        (square(4096), 4),
        (square(4096), 4),
    ]


def test_every_worker_gets_some():
    chunks = plan_chunks({i: square(256) for i in range(6)}, 16, 2, 1)
    assert [len(chunk.faces) for chunk in chunks] == [3, 3]
    assert {chunk.size for chunk in chunks} == {4}
