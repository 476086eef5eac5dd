"""The TOML file of a training run: what is read, and what is refused and how."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.toml_file import fill_dataclass
from jaxclnf.app.train_config import (
    BoxOptions,
    DataSource,
    LabelOptions,
    TrainConfig,
    read_train_config,
)
from jaxclnf.learn.options import ValidatorOptions

FULL = """
name = "mine"
seed = 7
out = "build/mine"
licence_files = ["NOTICES.txt"]
provenance = "from far"

[[data]]
images = "../faces"
[[data]]
images = "/"
labels = "labels.npz"
names_key = "files"
spread_key = "sd"
spread_unit = "percent_interocular"
eye_corners = [1, 2]
use_key = "good"
prefix = "b/"

[labels]
held_out = 0.2
max_face_px = 200
outline = []

[boxes]
calibrate = false

[validator]
lost_percent = 25
"""

LEAST = 'name = "a"\nout = "b"\n[[data]]\nimages = "."\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that `FULL` names."""
    (tmp_path / "faces").mkdir()
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "NOTICES.txt").touch()
    (folder / "labels.npz").touch()
    return folder


def read(folder: Path, text: str) -> TrainConfig:
    (folder / "train.toml").write_text(text)
    return read_train_config(folder / "train.toml")


def test_everything_is_read(folder: Path):
    assert read(folder, FULL) == TrainConfig(
        name="mine",
        seed=7,
        out=folder / "build/mine",
        licence_files=(folder / "NOTICES.txt",),
        provenance="from far",
        data=(
            DataSource(folder / "../faces"),
            DataSource(
                Path("/"),
                folder / "labels.npz",
                names_key="files",
                spread_key="sd",
                spread_unit="percent_interocular",
                eye_corners=(1, 2),
                use_key="good",
                prefix="b/",
            ),
        ),
        labels=LabelOptions(held_out=0.2, max_face_px=200.0, outline=()),
        boxes=BoxOptions(calibrate=False),
        validator=ValidatorOptions(lost_percent=25.0),
    )


def test_defaults(folder: Path):
    config = read(folder, LEAST)
    assert config.labels == LabelOptions() and config.boxes.calibrate
    assert config.labels.outline_of(68) == range(17)
    assert not config.labels.outline_of(51)
    assert not LabelOptions(outline=()).outline_of(68)
    assert LabelOptions(outline=(2, 5)).outline_of(5) == range(2, 5)
    with pytest.raises(ValueError, match="outline: found .2, 6., expected 0 to 5, as"):
        LabelOptions(outline=(2, 6)).outline_of(5)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('name = "mine"', "", "name: found no such key, expected text"),
        ('name = "mine"', "name = 3", "name: found 3, expected text"),
        ('"mine"', '"a/b"', 'name: found "a/b", expected a name that a file can have'),
        ("seed = 7", "seed = 7.0", "seed: found 7.0, expected a whole number"),
        ("seed = 7", "seed = true", "seed: found true, expected a whole number"),
        ("seed = 7", "seed = -1", "seed: found -1, expected 0 to 4294967295"),
        ('"mine"', '"a\\u0000"', 'name: found "a\\u0000", expected a name that a file'),
        ('"mine"', f'"{"a" * 101}"', 'name: found "aaaaaaa'),
        ('"mine"', '"."', 'name: found ".", expected a name that a file can have'),
        ('"mine"', '"a.npz"', 'name: found "a.npz", expected a name that a file can h'),
        ("seed = 7", "sede = 7", "sede: found an unknown key, expected name, out, d"),
        ('"build/mine"', '""', 'out: found "", expected a path, as text'),
        ('"build/mine"', '"a\\u0000"', 'out: found "a\\u0000", expected a path'),
        ('["NOTICES.txt"]', '"x"', 'licence_files: found "x", expected a list, each a'),
        ("NOTICES", "gone", 'licence_files #1: found "gone.txt", expected a file, and'),
        ("../faces", "x", '[data #1] images: found "x", expected a folder, and'),
        ("labels.npz", "x", '[data #2] labels: found "x", expected a file, and'),
        ("images =", "pictures =", "[data #1] pictures: found an unknown key, expec"),
        (
            '"percent_interocular"',
            '"mm"',
            '[data #2] spread_unit: found "mm", expected "px" or "percent_interocular"',
        ),
        (
            "[1, 2]",
            "[1]",
            "[data #2] eye_corners: found [1], expected a list of 2: a whole number, a",
        ),
        ("[1, 2]", "[1, -2]", "[data #2] eye_corners: found [1, -2], expected two di"),
        ("[labels]", "[[labels]]", "labels: found [{"),
        ("0.2", "1.0", "[labels] held_out: found 1.0, expected above 0 and below 1"),
        ("0.2", "nan", "[labels] held_out: found NaN, expected a finite number"),
        ("0.2", "-inf", "[labels] held_out: found -Infinity, expected a finite number"),
        ("0.2", '"x"', '[labels] held_out: found "x", expected a finite number'),
        ("= 200", "= 2" + "0" * 400, "[labels] max_face_px: found 2000"),
        ("= 200", "= 20", "[labels] max_face_px: found 20.0, expected 32 or more"),
        ("[]", "[5, 2]", "[labels] outline: found [5, 2], expected two landmarks"),
        ("[]", "[5, '2']", '[labels] outline #2: found "2", expected a whole number'),
        ("false", "0", "[boxes] calibrate: found 0, expected true or false"),
        ("= 25", "= 4", "[validator] lost_percent: found 4.0, expected in_place_perc"),
        ("calibrate", "calibrat", "[boxes] calibrat: found an unknown key, expected c"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, old: str, new: str, message: str):
    assert old in FULL
    with pytest.raises(ArgumentError) as caught:
        read(folder, FULL.replace(old, new, 1))
    assert str(caught.value).startswith(f"{folder / 'train.toml'}: {message}")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "section, line, message",
    [
        ("experts", "scales = [0.2, 0.2]", "[experts] scales: found [0.2, 0.2], expec"),
        ("experts", "scales = []", "[experts] scales: found [], expected positive num"),
        ("experts", "views_deg = [0, 0]", "[experts] views_deg: found [0.0, 0.0], exp"),
        ("experts", "views_deg = [-30, 0]", "experts.views_deg: found [-30.0, 0.0], e"),
        ("experts.field", "support = 4", "[experts] field.support: found 4, expected"),
        (
            "experts.field.augmentation",
            "blur = 0.6",
            "[experts] field.augmentation.blur: found 0.6, expected 0 to 0.5",
        ),
        (
            "experts.field.augmentation",
            "scale = -1",
            "[experts] field.augmentation.scale: found -1.0, expected 0 or more",
        ),
        ("shape", "num_samples = 1", "[shape] num_samples: found 1, expected none wit"),
        ("shape", "start_faces = 0", "[shape] start_faces: found 0.0, expected above"),
        ("labels", "num_landmarks = 3", "[labels] num_landmarks: found 3, expected 4"),
        ("labels", "min_spread_percent = 0", "[labels] min_spread_percent: found 0.0"),
    ],
)
def test_what_is_learnt_has_to_make_sense(
    folder: Path, section: str, line: str, message: str
):
    with pytest.raises(ArgumentError) as caught:
        read(folder, f"{LEAST}[{section}]\n{line}\n")
    assert str(caught.value).startswith(f"{folder / 'train.toml'}: {message}")
    one_sided = f"{LEAST}[shape]\nsymmetric = false\n[experts]\nviews_deg = [-30, 0]\n"
    assert read(folder, one_sided).experts.views_deg == (-30.0, 0.0)


def test_each_folder_is_given_once(folder: Path):
    again = LEAST + '[[data]]\nimages = "../config"\n'
    with pytest.raises(ArgumentError, match=r"data: found .*, expected each folder on"):
        read(folder, again)


def test_keys_below_a_table_are_its_own(folder: Path):
    with pytest.raises(ArgumentError, match="; keys of no table stand above the first"):
        read(folder, LEAST + "seed = 3")


def test_paths_may_begin_at_the_users_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(folder / "me"))
    monkeypatch.setenv("USERPROFILE", str(folder / "me"))
    config = read(folder, LEAST.replace('"b"', '"~/x"'))
    assert config.out == folder / "me" / "x"


def test_labels_have_to_be_npz(folder: Path):
    (folder / "labels.csv").touch()
    with pytest.raises(ArgumentError, match=r"labels.csv\", expected an .npz file"):
        read(folder, FULL.replace("labels.npz", "labels.csv"))


@pytest.mark.parametrize("key", ["use_key", "spread_key", "names_key", "landmarks_key"])
def test_keys_that_need_npz(folder: Path, key: str):
    with pytest.raises(ArgumentError, match=rf'#1\] {key}: found "a", expected none'):
        read(folder, LEAST + f'{key} = "a"')


def test_no_data(folder: Path):
    with pytest.raises(ArgumentError, match=r"data: found \[\], expected one \[\[data"):
        read(folder, 'name = "a"\nout = "b"\ndata = []')
    with pytest.raises(ArgumentError, match="data: found no such key, expected a list"):
        read(folder, 'name = "a"\nout = "b"')


def test_a_mark_of_the_byte_order_does_not_matter(folder: Path):
    (folder / "train.toml").write_bytes(b"\xef\xbb\xbf" + LEAST.encode())
    read_train_config(folder / "train.toml")


def test_files_that_are_no_toml(folder: Path):
    with pytest.raises(ArgumentError, match="train.toml: is no TOML file: .*line 2"):
        read(folder, 'name = "a"\nout = = 3')
    (folder / "train.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ArgumentError, match="is no TOML file"):
        read_train_config(folder / "train.toml")
    for name in ("gone.toml", "."):
        with pytest.raises(ArgumentError, match="cannot be read"):
            read_train_config(folder / name)


# Dataclasses of any kind.


@dataclasses.dataclass(frozen=True)
class Inner:
    """A table."""

    size: int
    kind: Literal["a", 1] = "a"

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("size: found 13, expected luck")


@dataclasses.dataclass(frozen=True)
class Outer:
    """A table with everything in it."""

    scales: tuple[float, ...] = ()
    pairs: tuple[tuple[int, str], ...] = ()
    inner: Inner = Inner(1)
    inners: tuple[Inner, ...] = ()
    maybe: tuple[int, ...] | None = None
    derived: int = dataclasses.field(init=False, default=3)


def test_any_dataclass_can_be_filled():
    table = {
        "scales": [1, 0.5],
        "pairs": [[1, "x"], [2, "y"]],
        "inner": {"size": 2, "kind": 1},
        "inners": [{"size": 3}, {"size": 4}],
        "maybe": [5],
    }
    filled = fill_dataclass(Outer, table, Path("a.toml"))
    assert filled == Outer(
        (1.0, 0.5), ((1, "x"), (2, "y")), Inner(2, 1), (Inner(3), Inner(4)), (5,)
    )
    assert all(isinstance(scale, float) for scale in filled.scales)
    assert fill_dataclass(Outer, {}, Path("a.toml")) == Outer()


@pytest.mark.parametrize(
    "table, message",
    [
        ({"scales": [1, "x"]}, 'a.toml: [out] scales #2: found "x", expected a fini'),
        ({"pairs": [[1, 2]]}, "a.toml: [out] pairs #1 #2: found 2, expected text"),
        ({"pairs": [[1]]}, "a.toml: [out] pairs #1: found [1], expected a list of 2: "),
        ({"inner": {}}, "a.toml: [out.inner] size: found no such key, expected a whol"),
        ({"inner": 3}, "a.toml: [out] inner: found 3, expected a table"),
        ({"inner": {"size": 13}}, "a.toml: [out.inner] size: found 13, expected luck"),
        ({"inners": [{"size": 13}]}, "a.toml: [out.inners #1] size: found 13, expecte"),
        ({"inners": {"size": 3}}, "a.toml: [out] inners: found a table, expected a li"),
        (
            {"inner": {"size": 1, "kind": True}},
            'a.toml: [out.inner] kind: found true, expected "a" or 1',
        ),
        ({"maybe": 5}, "a.toml: [out] maybe: found 5, expected a list, each a whole"),
        ({"derived": 5}, "a.toml: [out] derived: found an unknown key, expected sca"),
    ],
)
def test_places_inside_are_named(table: dict, message: str):
    with pytest.raises(ArgumentError) as caught:
        fill_dataclass(Outer, table, Path("a.toml"), "out")
    assert str(caught.value).startswith(message)


def test_types_without_counterpart():
    @dataclasses.dataclass
    class Odd:
        value: int | str
        other: complex = 1j

    with pytest.raises(TypeError, match="no counterpart"):
        fill_dataclass(Odd, {"value": 3}, Path("a.toml"))
    with pytest.raises(TypeError, match="no counterpart"):
        fill_dataclass(Odd, {"other": 3}, Path("a.toml"))
