"""Which photograph the boxes of a table belong to."""

from pathlib import Path

import pytest

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.given_boxes import boxes_of_images


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def corners(names: list[str], images: list[str]) -> list[list[float]]:
    """The `x` of the boxes of each image, from a table where they count the rows."""
    lines = ["image,x,y,width,height", *(f"{n},{i},0,9,9" for i, n in enumerate(names))]
    Path("boxes.csv").write_text("\n".join(lines) + "\n")
    found = boxes_of_images("boxes.csv", [Path(image) for image in images])
    return [boxes[:, 0].tolist() for boxes in found]


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("./a.jpg", "./a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("a.jpg", "./a.jpg"),
        ("in//a.jpg", "in/a.jpg"),
        ("in/../a.jpg", "a.jpg"),
        ("a.jpg", "in/a.jpg"),
        ("{here}/in/a.jpg", "in/a.jpg"),
        ("in/a.jpg", "{here}/in/a.jpg"),
    ],
)
def test_paths_may_be_written_in_several_ways(here, name, image):
    assert corners([name.format(here=here)], [image.format(here=here)]) == [[0]]


def test_links_are_followed(here):
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    assert corners(["link/a.jpg"], ["real/a.jpg"]) == [[0]]


def test_rows_of_one_image_come_together(here):
    assert corners(["./a.jpg", "b.jpg", "a.jpg"], ["a.jpg", "b.jpg"]) == [[0, 2], [1]]


def test_a_path_belongs_to_its_own_image_alone(here, capsys):
    assert corners(["a.jpg"], ["a.jpg", "in/a.jpg"]) == [[0], []]
    assert corners(["in/a.jpg", "a.jpg"], ["in/a.jpg", "on/a.jpg"]) == [[0], [1]]
    assert capsys.readouterr().err == ""


def test_a_name_alone_must_mean_one_image(here):
    with pytest.raises(ArgumentError, match="'a.jpg' could mean in/a.jpg or on/a.jpg"):
        corners(["a.jpg"], ["in/a.jpg", "on/a.jpg"])
    assert corners(["a.jpg"], ["in/a.jpg", "in/a.jpg"]) == [[0], [0]]


def test_images_without_boxes_and_boxes_without_images(here, capsys):
    assert corners(["c.jpg", "a.jpg", "d.jpg"], ["a.jpg", "b.jpg"]) == [[1], []]
    shown = capsys.readouterr().err
    assert "2 other images" in shown and "the first is 'c.jpg'" in shown
