"""Image files: reading what people have, writing whole files."""

import hashlib
import json
import os
import stat
import struct
import zlib

import cv2
import numpy as np
import pytest

from jaxclnf.app import media
from jaxclnf.app.errors import MediaError
from jaxclnf.app.media import make_folder, read_image, write_bytes, write_png


@pytest.fixture
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 30, 3), np.uint8)


def _encoded(picture: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


def _png(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def test_written_pictures_come_back(picture, tmp_path):
    path = tmp_path / "Zoë ☺.png"
    write_png(path, picture)
    bgr, grey = read_image(path)
    np.testing.assert_array_equal(bgr, picture)
    np.testing.assert_array_equal(grey, cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.shared
def test_pixels_are_those_of_the_reference(shared, golden):
    expected = json.loads((golden / "image_md5.json").read_text())
    for path in sorted((shared / "faces" / "openface_reference").iterdir()):
        if path.name in expected:
            bgr, grey = read_image(path)
            sums = expected[path.name]
            assert hashlib.md5(bgr.tobytes()).hexdigest() == sums["bgr_md5"]
            assert hashlib.md5(grey.tobytes()).hexdigest() == sums["gray_md5"]


def test_16_bit_alpha_and_grey_files(picture, tmp_path):
    alpha = np.dstack([picture, np.zeros_like(picture[..., :1])])
    for name, stored, expected in [
        ("deep.png", picture.astype(np.uint16) * 256 + 77, picture),
        ("alpha.png", alpha, picture),
        ("grey.png", picture[..., 0], np.dstack([picture[..., 0]] * 3)),
    ]:
        (tmp_path / name).write_bytes(_encoded(stored, ".png"))
        np.testing.assert_array_equal(read_image(tmp_path / name)[0], expected, name)


def test_photographs_are_turned_upright(picture, tmp_path):
    jpeg = _encoded(picture, ".jpg")
    # An EXIF segment with one entry: orientation 6, turn by 90 degrees.
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "plain.jpg").write_bytes(jpeg)
    (tmp_path / "turned.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    plain, _ = read_image(tmp_path / "plain.jpg")
    turned, grey = read_image(tmp_path / "turned.jpg")
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))
    assert grey.shape == (30, 40)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files_are_refused_quietly(suffix, share, picture, tmp_path, capfd):
    data = _encoded(picture, suffix)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(MediaError, match="damaged, truncated|not an image") as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("place", ["within", "at the end"])
def test_a_picture_with_bytes_of_something_else(place, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    data = _encoded(cv2.blur(noise, (9, 9)), ".jpg")
    path = tmp_path / "a.jpg"
    if place == "within":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(2000) + data[middle + 2000 :])
        with pytest.raises(MediaError, match="a.jpg: damaged image .Corrupt JPEG"):
            read_image(path)
    else:  # some cameras write more than there should be
        path.write_bytes(data[:-2] + b"more" + data[-2:])
        assert read_image(path)[0].shape == (300, 300, 3)


def test_other_unusable_files(tmp_path, capfd):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(_png(60_000, 60_000))
    (tmp_path / "strip.png").write_bytes(_encoded(np.zeros((1, 40_000), "u1"), ".png"))
    for name, problem in [
        ("missing.jpg", "no such file"),
        ("empty.jpg", "empty"),
        ("", "is a folder"),
        ("pipe", "not a regular file"),
        ("text.jpg", "not an image"),
        ("text.jpg/below.jpg", "cannot be read"),
        ("x" * 300 + ".jpg", "cannot be read"),
        ("huge.png", "more pixels than"),
        ("strip.png", "40000 x 1 pixels"),
    ]:
        with pytest.raises(MediaError, match=problem):
            read_image(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_files_too_large_for_an_image_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MAX_FILE_BYTES", 10)
    (tmp_path / "a.png").write_bytes(bytes(11))
    with pytest.raises(MediaError, match="11 bytes are too many"):
        read_image(tmp_path / "a.png")


def test_one_pixel_is_an_image(tmp_path):
    write_png(tmp_path / "dot.png", np.full((1, 1, 3), 9, np.uint8))
    assert read_image(tmp_path / "dot.png")[1].tolist() == [[9]]


def test_writing_replaces_and_keeps_permissions_usual(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(media.os, "replace", full)
    with pytest.raises(MediaError, match="No space left"):
        write_bytes(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_writing_where_a_folder_is(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(MediaError, match="cannot be written"):
        write_bytes(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == ["a"]


def test_folders_are_made_or_refused(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match="is a file"):
        make_folder(tmp_path / "file")
    with pytest.raises(MediaError, match="cannot be made"):
        make_folder(tmp_path / "file" / "below")


def test_reading_without_an_error_stream(tmp_path) -> None:
    write_png(tmp_path / "a.png", np.full((2, 3, 3), 7, np.uint8))
    saved = os.dup(2)
    os.close(2)
    try:
        grey = read_image(tmp_path / "a.png")[1]
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    assert grey.tolist() == [[7] * 3] * 2
