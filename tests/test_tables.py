"""Tables of faces and of boxes."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.app.errors import MediaError, TableError
from jaxclnf.app.tables import (
    ANY_IMAGE,
    faces_of,
    read_boxes,
    write_boxes,
    write_openface_rows,
    write_rows,
)
from jaxclnf.fitting.result import FitResult
from jaxclnf.openface.csv_table import OpenFaceColumns, OpenFaceRow, openface_header
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.status import Status


def _repeated(params: PDMParams) -> PDMParams:
    """The same parameters at the end of each of 2 x 2 phases."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (2, 2, *x.shape)), params)


def test_faces_come_off_the_device():
    euler = jnp.asarray([0.1, -0.2, 0.3])

    def single(status: Status, x: float) -> FitResult:
        vector = jnp.asarray([2.0, *euler.tolist(), x, 60.0])
        return FitResult(
            landmarks=jnp.full((5, 2), x),
            params=PDMParams.from_global(vector, jnp.zeros(4)),
            status=jnp.asarray(status, jnp.int32),
            converged=jnp.asarray(status == Status.CONVERGED),
            num_steps=jnp.asarray([[1, 2], [3, 4]], jnp.int32),
            shape_delta=jnp.zeros((2, 2)),
            gradient_norm=jnp.zeros((2, 2)),
            newton_distance=jnp.zeros((2, 2)),
            smallest_curvature=jnp.ones((2, 2)),
            num_active_bounds=jnp.zeros((2, 2), jnp.int32),
            certified=jnp.asarray(status == Status.CONVERGED),
            phase_params=_repeated(PDMParams.from_global(vector, jnp.zeros(4))),
            start_params=PDMParams.from_global(vector, jnp.zeros(4)),
            num_passes=jnp.asarray(1, jnp.int32),
            pass_delta=jnp.asarray(0.1),
            pass_status=jnp.asarray(Status.MAX_STEPS, jnp.int32),
            log_likelihood=jnp.asarray(x),
            landmark_log_likelihoods=jnp.zeros(5),
            view=jnp.asarray(1, jnp.int32),
            certainty=jnp.asarray(np.nan),
            success=jnp.asarray(status == Status.CONVERGED),
            start=jnp.asarray(0, jnp.int32),
            start_log_likelihoods=jnp.asarray([x]),
            reach=jnp.full(4, x),
        )

    singles = single(Status.CONVERGED, 7.0), single(Status.BAD_START, np.nan)
    result = jax.tree.map(lambda *x: jnp.stack(x), *singles)
    good, bad = faces_of(np.arange(8.0).reshape(2, 4), result)
    assert (good.status, good.converged, good.failed) == (Status.CONVERGED, True, False)
    assert (bad.status, bad.converged, bad.failed) == (Status.BAD_START, False, True)
    assert good.steps == 10 and good.log_likelihood == 7.0 and good.view == 1
    np.testing.assert_allclose(good.params_global, [2.0, 0.1, -0.2, 0.3, 7.0, 60.0])
    np.testing.assert_array_equal(bad.box, [4, 5, 6, 7])
    assert np.isnan(bad.landmarks).all()


COLUMNS = OpenFaceColumns(form="photo", num_landmarks=3, num_modes=2)


def test_a_table_of_no_faces_has_its_header(tmp_path):
    write_openface_rows(tmp_path / "a.csv", COLUMNS, [])
    (header,) = (tmp_path / "a.csv").read_text().splitlines()
    assert header == openface_header(COLUMNS)


def test_rows_replace_what_was_there(tmp_path):
    (tmp_path / "a.csv").write_text("old")
    rows = [OpenFaceRow(face_id=i, status=Status.BAD_START) for i in range(2)]
    write_openface_rows(tmp_path / "a.csv", COLUMNS, rows)
    assert os.listdir(tmp_path) == ["a.csv"]
    _, *lines = (tmp_path / "a.csv").read_text().splitlines()
    assert [line.split(", ")[0] for line in lines] == ["0", "1"]
    assert all(line.endswith(", BAD_START, , ") for line in lines)


def test_unwritable_rows_are_named(tmp_path):
    with pytest.raises(MediaError, match="no/such/a.csv: cannot be written"):
        write_openface_rows(tmp_path / "no" / "such" / "a.csv", COLUMNS, [])


def test_names_that_are_no_text_are_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write_rows(tmp_path / "a.csv", ("image",), [(name,)])
    assert (tmp_path / "a.csv").read_bytes() == b"image\n" + b"caf\xe9.jpg\n"


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\nb", 'a"\rb'])
def test_names_with_line_breaks_are_read_back(name, tmp_path):
    boxes = {name: np.array([[1.0, 2.0, 3.0, 4.0]]), "other": np.ones((2, 4))}
    write_boxes(tmp_path / "a.csv", boxes)
    again = read_boxes(tmp_path / "a.csv")
    assert list(again) == list(boxes)
    for key, value in boxes.items():
        np.testing.assert_array_equal(again[key], value)


def test_unwritable_table_is_named(tmp_path):
    with pytest.raises(MediaError, match="no/such"):
        write_rows(tmp_path / "no" / "such" / "a.csv", ("a",), [])


def test_boxes_by_image(tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_bytes(
        b"\xef\xbb\xbfnote,Image, x ,y,width,height\r\n"
        b'first,"a, b.jpg",1,2.5,3e1,40\r\n'
        b"\r\n"
        b",c.jpg,nan,0,-5,inf\r\n"
        b',"a, b.jpg",5,6,7,8\r\n'
    )
    boxes = read_boxes(table)
    assert list(boxes) == ["a, b.jpg", "c.jpg"]
    assert boxes["a, b.jpg"].tolist() == [[1, 2.5, 30, 40], [5, 6, 7, 8]]
    np.testing.assert_array_equal(boxes["c.jpg"], [[np.nan, 0, -5, np.inf]])


def test_boxes_without_image(tmp_path):
    (tmp_path / "boxes.csv").write_text("x,y,width,height\n1,2,3,4\n")
    assert read_boxes(tmp_path / "boxes.csv")[ANY_IMAGE].tolist() == [[1, 2, 3, 4]]


HEADER = "image,x,y,width,height\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: no column 'x'"),
        ("image,x,y,w,h\n", "line 1: no column 'width'"),
        ("x,x,y,width,height\n", "line 1: column 'x' occurs twice"),
        (HEADER + "a.jpg,1,2,3,4\na.jpg,1,two,3,4\n", "line 3, column 'y': 'two'"),
        (HEADER + "a.jpg,1,2,,4\n", "line 2, column 'width': ''"),
        (HEADER + "a.jpg,1,2,3\n", "line 2: 4 values"),
        (HEADER + "a.jpg,1,2,3,4,5\n", "line 2: 6 values"),
        (HEADER + " ,1,2,3,4\n", "line 2, column 'image'"),
        (HEADER + '"a.jpg,1,2,3,4\n', "line 2: unexpected end of data"),
        (HEADER + "caf\udce9,1,\udce9,3,4\n", "line 2, column 'y': '.*' is not a"),
        ("caf\udce9," + HEADER, "byte 3 is not UTF-8"),
    ],
)
def test_malformed_boxes_are_located(text, problem, tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TableError, match=problem) as error:
        read_boxes(table)
    assert str(table) in str(error.value)


def test_boxes_of_names_that_are_no_text_are_read_back(tmp_path):
    boxes = {os.fsdecode(name): np.ones((1, 4)) for name in (b"a\xff.jpg", b"\xc3\xa9")}
    write_boxes(tmp_path / "boxes.csv", boxes)
    assert list(read_boxes(tmp_path / "boxes.csv")) == list(boxes)


def test_unreadable_boxes(tmp_path):
    with pytest.raises(TableError, match="no such file"):
        read_boxes(tmp_path / "missing.csv")
    with pytest.raises(TableError, match="cannot be read"):
        read_boxes(tmp_path)
