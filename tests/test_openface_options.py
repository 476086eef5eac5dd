"""OpenFace's options become ours or are refused, as the table of the guide says."""

import re

import pytest

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.openface_options import COMMANDS, OPTIONS, translate
from tests.markdown import ROOT

PAGE = ROOT / "docs" / "openface-options.md"

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `-")
]
DIALECT = ["--dialect", "openface"]
NUMBERS = {"NUMBER", "COUNT", "PIXELS"}
PARTNERS = {"-fx": "-fy", "-fy": "-fx", "-cx": "-cy", "-cy": "-cx"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("`"))
def test_the_table_is_what_happens(row, command):
    given, meaning, *outcomes = row
    assert meaning
    words = given.strip("`").split()
    outcome = outcomes[COMMANDS.index(command)]
    partner = PARTNERS.get(words[0])
    rest = [partner, "5"] if partner else []
    if outcome.startswith("refused: "):
        reason = re.escape(outcome.removeprefix("refused: "))
        with pytest.raises(ArgumentError, match=f"^{given.strip('`')}: {reason}$"):
            translate([command, *words])
        return
    ours = [] if outcome == "nothing to do" else outcome.strip("`").split()
    # What stands for a number is one.
    words, ours = (["7" if w in NUMBERS else w for w in some] for some in (words, ours))
    files = ours if words[0] in ("-f", "-fdir") else []
    options = [*ours[len(files) :], *(f"-{word}" for word in rest[:1]), *rest[1:]]
    expected = [command, *files, *DIALECT, *options]
    assert translate([command, *words, *rest]) == expected


def test_every_option_is_in_the_table():
    names = [row[0].strip("`").split()[0] for row in ROWS]
    assert list(dict.fromkeys(names)) == [option.name for option in OPTIONS]
    for row, option in ((row, o) for o in OPTIONS for row in ROWS):
        words = row[0].strip("`").split()
        if words[0] == option.name:
            assert len(words) == (2 if option.value else 1)


def test_ours_pass_unchanged():
    args = "fit a.jpg --wild --sigma -1.5 --window-sizes 11 9 -h --out o -".split()
    assert translate(args) == args
    args = ["track", "--", "-f", "-odd-name.avi"]
    assert translate(args) == args
    for other in ("train", "info", "check"):
        assert translate([other, "-f", "a"]) == [other, "-f", "a"]
    assert translate([]) == []
    assert translate(["--help"]) == ["--help"]


def test_files_come_first_whatever_follows_them():
    """Options with many values would otherwise swallow them."""
    args = "fit --window-sizes 11 9 -f a.jpg -fdir b -wild -f -1 c.jpg"
    expected = (
        "fit a.jpg b ./-1 --dialect openface --window-sizes 11 9 --wild --starts 11"
        " c.jpg"
    )
    assert translate(args.split()) == expected.split()


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("-wild -multi_view 0", "--wild --starts 1"),
        ("-multi_view 0 -wild", "--starts 1 --wild"),
        ("--starts 3 -wild --sigma 2", "--starts 3 --wild --sigma 2"),
        ("-wild --starts 3", "--wild --starts 3"),
        ("-wild --starts=3", "--wild --starts=3"),
        ("--wild -wild --starts 3", "--wild --wild --starts 3"),
        ("--wild -wild -q", "--wild --wild --starts 11"),
    ],
)
def test_wild_starts_elevenfold_unless_said_otherwise(given, ours):
    assert translate(["fit", *given.split()]) == ["fit", *DIALECT, *ours.split()]


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("-q", "--dialect openface"),
        ("-q --dialect converged", "--dialect converged"),
        ("--dialect=converged -f a", "a --dialect=converged"),
        ("-q -- --dialect", "--dialect openface -- --dialect"),
        ("--wild --starts 3", "--wild --starts 3"),
    ],
)
def test_options_of_openface_bring_its_numbers_unless_said_otherwise(given, ours):
    for command in COMMANDS:
        assert translate([command, *given.split()]) == [command, *ours.split()]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("fit -out_dir", "-out_dir: found nothing, expected DIR"),
        ("fit -out_dir -wild", "-out_dir: found '-wild', expected DIR"),
        ("fit -f --wild", "-f: found '--wild', expected FILE"),
        ("fit -multi_view yes", "-multi_view: found 'yes', expected 0 or 1"),
        ("fit -fx 500", "-fx and -fy belong together: found no -fy"),
        ("track -cy 5 -fx 5 -fy 5", "-cx and -cy belong together: found no -cx"),
        ("fit -wild -wild", "-wild: found twice"),
        ("fit -out_dir a --out b", "-out_dir and --out: expected one of them"),
        ("track --sigma=2 -sigma 2", "-sigma and --sigma: expected one of them"),
        ("fit -n_iter 2.5", "-n_iter: found '2.5', expected a whole number"),
        ("fit -sigma abc", "-sigma: found 'abc', expected a number"),
        ("fit -of a -of b", "-of: found twice"),
        ("fit -2dfp", "-2dfp: no option of OpenFace.*did you mean -2Dfp?"),
        ("fit -camera-calibration", "-camera-calibration: no option of OpenFace"),
        ("-f a.jpg", "-f: found before any command; begin with fit or track"),
    ],
)
def test_mistakes_are_explained(given, problem):
    with pytest.raises(ArgumentError, match=problem):
        translate(given.split())


def test_one_dash_and_one_letter_is_no_word_of_ours():
    with pytest.raises(ArgumentError, match="^-x: no option"):
        translate(["track", "-x"])
