"""OpenFace's command-line options, for `jaxclnf fit` and `jaxclnf track`.

OpenFace's options have one dash and long names, `-out_dir`; ours have two. Before the
command parses its arguments, each of OpenFace's is replaced by ours, or refused with
the reason and what to do instead: nothing is ignored that would change the results. Who
uses one of them gets OpenFace's numbers, unless `--dialect` says otherwise.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import NoReturn

from jaxclnf.app.errors import ArgumentError

COMMANDS = ("fit", "track")
"""Our commands that take OpenFace's options: the first does the work of
FaceLandmarkImg, the second that of FeatureExtraction and FaceLandmarkVidMulti."""


@dataclasses.dataclass(frozen=True)
class Refused:
    """Why an option is not for us, and what to do instead."""

    reason: str
    """A sentence without its stop."""


Outcome = str | Refused | Mapping[str, str | Refused]
"""What becomes of an option: our arguments, in which its placeholder stands for its
value; nothing at all; a refusal; or one of these for each value that it may have."""


@dataclasses.dataclass(frozen=True)
class OpenFaceOption:
    """One option of OpenFace."""

    name: str
    """With its dash."""
    value: str
    """Placeholder of the value that follows it; empty if none does."""
    fit: Outcome
    """What becomes of it in `jaxclnf fit`."""
    track: Outcome
    """What becomes of it in `jaxclnf track`."""


_NO_GAZE = Refused(
    "gaze is not estimated; --columns-gaze writes OpenFace's columns with the landmarks"
    " of the eyes and a gaze of 0"
)
_NO_UNITS = Refused("facial action units are not estimated; leave it out")
_NO_ALIGNED = Refused(
    "aligned faces and their HOG features are not made; leave it out, and cut faces out"
    " by the landmarks in the table"
)
_NO_WINDOW = Refused(
    "nothing is shown while it works; leave it out, and look at what it writes"
)
_NO_LIVE = Refused("live cameras are not read; record a video first, then track it")
_NO_ROOT = Refused("there is no root folder; give whole paths")
_ONLY_TRACK = Refused("a photograph has no camera stream; this is for jaxclnf track")
_VALIDATION = {
    "1": "",
    "0": Refused("fits are always judged; use the landmarks whatever the confidence"),
}
_STARTS = {"0": "--starts 1", "1": "--starts 11"}


def _same(name: str, value: str, outcome: Outcome) -> OpenFaceOption:
    return OpenFaceOption(name, value, outcome, outcome)


OPTIONS = (
    _same("-f", "FILE", "FILE"),
    _same("-fdir", "DIR", "DIR"),
    OpenFaceOption("-device", "NUMBER", _ONLY_TRACK, _NO_LIVE),
    OpenFaceOption("-cam_width", "PIXELS", _ONLY_TRACK, _NO_LIVE),
    OpenFaceOption("-cam_height", "PIXELS", _ONLY_TRACK, _NO_LIVE),
    _same("-root", "DIR", _NO_ROOT),
    _same("-inroot", "DIR", _NO_ROOT),
    OpenFaceOption(
        "-bboxdir",
        "DIR",
        Refused(
            "boxes come in one table: --boxes CSV with the columns image, x, y, width"
            " and height"
        ),
        Refused("OpenFace has boxes for photographs only; this is for jaxclnf fit"),
    ),
    _same("-out_dir", "DIR", "--out DIR"),
    _same("-of", "NAME", "--name NAME"),
    _same("-2Dfp", "", "--columns-2d"),
    _same("-3Dfp", "", "--columns-3d"),
    _same("-pdmparams", "", "--columns-pdm"),
    _same("-pose", "", "--columns-pose"),
    _same("-gaze", "", _NO_GAZE),
    _same("-aus", "", _NO_UNITS),
    _same("-au_static", "", _NO_UNITS),
    _same("-hogalign", "", _NO_ALIGNED),
    _same("-simalign", "", _NO_ALIGNED),
    _same("-nobadaligned", "", _NO_ALIGNED),
    _same("-simscale", "SCALE", _NO_ALIGNED),
    _same("-simsize", "PIXELS", _NO_ALIGNED),
    _same("-format_aligned", "FORMAT", _NO_ALIGNED),
    _same("-nomask", "", _NO_ALIGNED),
    _same("-g", "", _NO_ALIGNED),
    OpenFaceOption("-tracked", "", "", "--overlay"),
    OpenFaceOption(
        "-format_vis_image",
        "FORMAT",
        {"png": "", "*": Refused("pictures are PNG files; leave it out")},
        Refused("OpenFace has it for photographs only; leave it out"),
    ),
    OpenFaceOption(
        "-oc",
        "FOURCC",
        Refused("photographs give no video; leave it out"),
        Refused("the codec of the overlay cannot be chosen; leave it out"),
    ),
    _same("-mloc", "FILE", "--model FILE"),
    _same(
        "-fdloc",
        "FILE",
        Refused(
            "--detector chooses the face detector, --mtcnn PATH names OpenFace's"
            " networks"
        ),
    ),
    OpenFaceOption("-wild", "", "--wild --starts 11", "--wild"),
    _same("-multi_view", "0|1", _STARTS),
    _same("-sigma", "NUMBER", "--sigma NUMBER"),
    _same("-reg", "NUMBER", "--reg-factor NUMBER"),
    _same("-w_reg", "NUMBER", "--weight-factor NUMBER"),
    _same("-n_iter", "COUNT", "--max-steps COUNT"),
    _same("-validate_detections", "0|1", _VALIDATION),
    _same("-fx", "PIXELS", "--fx PIXELS"),
    _same("-fy", "PIXELS", "--fy PIXELS"),
    _same("-cx", "PIXELS", "--cx PIXELS"),
    _same("-cy", "PIXELS", "--cy PIXELS"),
    _same("-q", "", ""),
    _same("-verbose", "", _NO_WINDOW),
    _same("-vis-track", "", _NO_WINDOW),
    _same("-vis-hog", "", _NO_WINDOW),
    _same("-vis-align", "", _NO_WINDOW),
    _same("-vis-aus", "", _NO_WINDOW),
)
"""Every option of OpenFace's three programs, in the order of the user's table."""

_BY_NAME = {option.name: option for option in OPTIONS}
_OFTEN = {"-f", "-fdir"}
_MAY_MEET = {"--starts", "--wild"}
"""Options of ours that may be given beside one of OpenFace's that brings them."""
_NUMBERS = {"NUMBER": float, "PIXELS": float, "COUNT": int}
_PATHS = {"FILE", "DIR"}
_PAIRS = (("-fx", "-fy"), ("-cx", "-cy"))


def translate(argv: Sequence[str]) -> list[str]:
    """Replaces OpenFace's options by ours.

    Args:
        argv: The arguments of `jaxclnf`: first the command, then its own. Our options
            (two dashes, `-h`), numbers and names of files may be among them.

    Returns:
        The arguments with our options only. Files and folders of `-f` and `-fdir` come
        right after the command, then `--dialect openface` if there was an option of
        OpenFace and no `--dialect`; all else keeps its order. Arguments of commands
        other than `fit` and `track`, and all after `--`, are as they were.

    Raises:
        ArgumentError: An option is refused, unknown, given twice, without its value, or
            without the one it belongs with; the message says what to do.

    Example:
        >>> translate(["fit", "-f", "me.jpg", "-multi_view", "1"])
        ['fit', 'me.jpg', '--dialect', 'openface', '--starts', '11']
    """
    args = list(argv)
    if not args or args[0] not in COMMANDS:
        if args and args[0] in _BY_NAME:
            commands = " or ".join(COMMANDS)
            raise ArgumentError(
                f"{args[0]}: found before any command; begin with {commands}"
            )
        return args
    command, *rest = args
    files: list[str] = []
    options: list[str] = []
    ended: list[str] = []
    seen: set[str] = set()
    own: set[str] = set()
    translated: dict[str, str] = {}
    starts_of_wild: int | None = None
    while rest:
        word = rest.pop(0)
        if word == "--":
            ended = [word, *rest]
            break
        if not _is_foreign(word):
            options.append(word)
            own.add(word.split("=")[0])
            continue
        option = _BY_NAME.get(word) or _unknown(word)
        if word in seen - _OFTEN:
            raise ArgumentError(f"{word}: found twice; expected once")
        seen.add(word)
        value = _value_of(option, rest) if option.value else ""
        ours = _outcome(option, command, value)
        if word == "-wild" and "--starts" in ours:
            starts_of_wild = len(options) + ours.index("--starts")
        (files if word in _OFTEN else options).extend(ours)
        translated |= {flag: word for flag in ours if flag.startswith("--")}
    for flag in sorted(translated.keys() & own - _MAY_MEET):
        raise ArgumentError(f"{translated[flag]} and {flag}: expected one of them")
    for one, other in _PAIRS:
        if (one in seen) != (other in seen):
            missing = other if one in seen else one
            raise ArgumentError(
                f"{one} and {other} belong together: found no {missing}; OpenFace would"
                " ignore the other without a word"
            )
    if starts_of_wild is not None:
        _drop_starts_of_wild(options, starts_of_wild)
    says = any(word.split("=")[0] == "--dialect" for word in options)
    dialect = ["--dialect", "openface"] if seen and not says else []
    return [command, *files, *dialect, *options, *ended]


def _is_foreign(word: str) -> bool:
    """Whether it looks like an option of OpenFace: one dash, and no number."""
    if not word.startswith("-") or word.startswith("--") or word in ("-", "-h"):
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def _unknown(word: str) -> NoReturn:
    near = difflib.get_close_matches(word, _BY_NAME, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ArgumentError(
        f"{word}: no option of OpenFace that is known here, and ours begin with two"
        f" dashes{hint}"
    )


def _value_of(option: OpenFaceOption, rest: list[str]) -> str:
    if not rest or rest[0].startswith("--") or rest[0] in _BY_NAME:
        found = f"'{rest[0]}'" if rest else "nothing"
        raise ArgumentError(f"{option.name}: found {found}, expected {option.value}")
    return rest.pop(0)


def _outcome(option: OpenFaceOption, command: str, value: str) -> list[str]:
    outcome = option.fit if command == "fit" else option.track
    if isinstance(outcome, Mapping):
        if value not in outcome and "*" not in outcome:
            allowed = " or ".join(sorted(outcome))
            raise ArgumentError(f"{option.name}: found '{value}', expected {allowed}")
        outcome = outcome[value if value in outcome else "*"]
    if isinstance(outcome, Refused):
        given = f"{option.name} {value}".rstrip()
        raise ArgumentError(f"{given}: {outcome.reason}")
    if option.value in _NUMBERS:
        try:
            _NUMBERS[option.value](value)
        except ValueError:
            kind = "a whole number" if option.value == "COUNT" else "a number"
            raise ArgumentError(
                f"{option.name}: found '{value}', expected {kind}"
            ) from None
    if option.value in _PATHS and value.startswith("-"):
        value = os.path.join(os.curdir, value)  # or it would be taken for an option
    return [value if word == option.value else word for word in outcome.split()]


def _drop_starts_of_wild(options: list[str], place: int) -> None:
    """Drops the starts that `-wild` brought, at `place`, where others are given."""
    others = options[:place] + options[place + 2 :]
    if any(word.split("=")[0] == "--starts" for word in others):
        options[:] = others
