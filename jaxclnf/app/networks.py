"""Where the networks of OpenFace's face detector are."""

from pathlib import Path

from jaxclnf.app.errors import ArgumentError
from jaxclnf.openface.mtcnn_file import LIST_FOLDER, LIST_NAME
from jaxclnf.openface.release import find_model_folder, read_release, standard_folder


def find_networks(model: str, *, required: bool) -> Path | None:
    """Looks for them beside a model and among OpenFace's installed models.

    Args:
        model: As `--model` has it; beside a main file they are looked for first.
        required: Whether there is no other detector.

    Returns:
        Their folder, or None.

    Raises:
        ArgumentError: They are required, and nowhere.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model, networks = Path(folder, "main.txt"), Path(folder, LIST_FOLDER)
        ...     networks.mkdir()
        ...     for file in (model, networks / LIST_NAME):
        ...         file.touch()
        ...     find_networks(str(model), required=True).name
        'mtcnn_detector'
    """
    release = read_release()
    base = standard_folder(release.version)
    places = [(find_model_folder(base, release) or base) / LIST_FOLDER]
    if Path(model).is_file():
        places.insert(0, Path(model).parent / LIST_FOLDER)
    for place in places:
        if (place / LIST_NAME).is_file():
            return place
    if not required:
        return None
    raise ArgumentError(
        f"--detector mtcnn: found no {LIST_NAME} in"
        f" {' or '.join(map(str, places))}; --mtcnn PATH names another place"
    )
