"""Annotated photographs on disk."""

from pathlib import Path

import pytest

from jaxclnf.app.datasets import read_pts
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
