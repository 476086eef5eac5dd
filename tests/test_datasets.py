"""Annotated photographs on disk."""

from pathlib import Path

import pytest

from jaxclnf.app.datasets import faces_with_pts, read_pts
from jaxclnf.app.errors import TableError


@pytest.mark.parametrize(
    "header",
    ["version: 1\nn_points: 2\n", "version: 1\nn_points : 02\n", "version: 1\n", ""],
)
def test_headers_of_landmark_files(header: str, tmp_path: Path):
    file = tmp_path / "a.pts"
    file.write_text(header + "{\n1 2\n\n3 4\n}\n")
    assert read_pts(file).tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("n_points: 3\n{\n1 2\n3 4\n}", "found 2 points, not 3"),
        ("n_points: 1\n{\n1,2\n}", "found '1,2', expected a line 'x y'"),
        ("1 2\n3 4", "found no points between braces"),
    ],
)
def test_what_is_no_landmark_file(text: str, problem: str, tmp_path: Path):
    file = tmp_path / "a.pts"
    file.write_text(text)
    with pytest.raises(TableError, match="a.pts: " + problem):
        read_pts(file)


def test_photographs_and_points_belong_together_by_name(tmp_path: Path) -> None:
    """Whatever the case of the suffix; what a system hides is not looked at."""
    text = "version: 1\nn_points: 2\n{\n1 1\n2 2\n}\n"
    for name in ("b.PTS", "a.pts", "._a.pts"):
        (tmp_path / name).write_text(text)
    for name in ("b.JPG", "a.png", "a.jpg", "c.jpg"):
        (tmp_path / name).touch()
    found = faces_with_pts(tmp_path)
    assert [(face.name, face.image.name) for face in found] == [
        ("a", "a.jpg"),
        ("b", "b.JPG"),
    ]
    (tmp_path / "b.JPG").unlink()
    with pytest.raises(TableError, match="b.PTS: found no photograph of that name"):
        faces_with_pts(tmp_path)
