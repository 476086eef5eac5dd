"""The whole chain: labelled faces in, a complete model out."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxclnf.experts.types import CCNFExperts
from jaxclnf.learn.ccnf.experts import ViewFields, assemble_experts, mirrored_view
from jaxclnf.learn.ccnf.samples import FaceBank, make_bank
from jaxclnf.learn.ccnf.training import (
    FieldTask,
    Learning,
    begin,
    confidences,
    learn_fields,
)
from jaxclnf.learn.faces import LabelledFaces
from jaxclnf.learn.masking import mask_far_outline
from jaxclnf.learn.options import ExpertOptions, ShapeOptions
from jaxclnf.learn.pdm.factorise import rigid_shape
from jaxclnf.learn.pdm.landmark_fit import centred, fit_landmarks
from jaxclnf.learn.pdm.landmark_shapes import pdm_from_landmarks
from jaxclnf.learn.pdm.shapes import (
    camera_frame,
    pdm_from_shapes,
    sample_expressions,
    sample_shapes,
)
from jaxclnf.learn.pdm.symmetry import mirror_index
from jaxclnf.shape.pdm import PDM, PDMParams

Say = Callable[[str], None]
"""Shows a line of progress."""

_LEAST_LABELS = 50
"""A view does not learn a landmark that fewer faces label, unless that is half of its
faces or more."""
_RADIUS = 60.0
"""Size of a shape that is found from landmarks alone: their root-mean-square distance
from the centre, millimetres."""


@runtime_checkable
class Store(Protocol):
    """Keeps what is done, so that an interrupted run goes on where it was."""

    def load(self, name: str, like: Any) -> Any:
        """What was saved under a name, in the structure of `like`, or None."""
        ...

    def save(self, name: str, tree: Any) -> None:
        """Saves the arrays of a tree under a name, in place of older ones."""
        ...


@dataclasses.dataclass(frozen=True)
class LearntShape:
    """The shape model and what learning it found."""

    pdm: PDM
    """The model."""
    noise: Float[np.ndarray, " n"]
    """What its modes do not explain of each landmark, millimetres."""
    mirror: Int[np.ndarray, " n"] | None
    """The partner of every landmark on the other side; None for asymmetric faces."""
    faces: LabelledFaces
    """All faces, without the labels that cannot be used."""
    params: PDMParams
    """Pose and shape of every face, held-out ones too."""


def learn_shape(
    faces: LabelledFaces,
    is_held_out: Bool[np.ndarray, " f"],
    options: ShapeOptions,
    *,
    blendshapes: dict[str, np.ndarray] | None = None,
    outline: range = range(0),
    outline_limit: float = np.pi,
    seed: int = 0,
    say: Say = lambda text: None,
) -> LearntShape:
    """Learns the shape model from the labels, starting from a linear model if given.

    Args:
        faces: The faces.
        is_held_out: Which of them not to learn from.
        options: How to learn.
        blendshapes: Arrays of a linear model, see `ShapeOptions.blendshapes`.
        outline: Landmarks of the face's outline, see `mask_far_outline`.
        outline_limit: Yaw beyond which its far half is not used, radians.
        seed: Of the random numbers.
        say: Shows progress.

    Returns:
        The model, the faces with the labels to use, and their parameters.

    Raises:
        ValueError: The faces are too few or not symmetric, or do not fit together with
            the linear model.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> pose = [np.ones(30), *rng.normal(0, 0.3, (3, 30)), *np.zeros((2, 30))]
        >>> modes = rng.normal(0, 8, (30, pdm.num_modes))
        >>> many = jax.vmap(PDMParams.from_global)(np.stack(pose, 1), modes)
        >>> points = np.asarray(jax.vmap(project, (None, 0))(pdm, many))
        >>> names = tuple(str(i) for i in range(30))
        >>> faces = LabelledFaces(names, (image,) * 30, points, np.ones((30, 12)))
        >>> options = ShapeOptions(num_modes=2, num_rounds=2, symmetric=False)
        >>> learn_shape(faces, np.arange(30) < 3, options).pdm.princ_comp.shape
        (12, 3, 2)
    """
    start = None
    if blendshapes is not None:
        start, mirror = _start_shape(blendshapes, options, seed)
    else:
        points, _ = centred(faces.landmarks, faces.spread)
        mean = rigid_shape(points, faces.spread, _RADIUS)
        mirror = _mirror_of(mean, "labels", "more faces") if options.symmetric else None

    def learn(faces: LabelledFaces, labels: str) -> tuple[PDM, np.ndarray]:
        taught = faces.pick(~is_held_out)
        learnt = pdm_from_landmarks(
            taught.landmarks,
            taught.spread,
            num_modes=options.num_modes,
            start=start,
            start_faces=options.start_faces,
            mirror=mirror,
            num_rounds=options.num_rounds,
            radius=_RADIUS,
            report=lambda i, residual: say(
                f"shape: round {i}/{options.num_rounds} with {labels},"
                f" {residual:.3f} mm from them"
            ),
        )
        return learnt.pdm, learnt.noise

    if start is not None:
        first = fit_landmarks(start, faces.landmarks, faces.spread)
    else:
        pdm, noise = learn(faces, "all labels")
        first = fit_landmarks(pdm, faces.landmarks, faces.spread, noise=noise)
    faces = mask_far_outline(faces, yaw_of(first), outline, outline_limit)
    pdm, noise = learn(faces, "the labels to use")
    params = fit_landmarks(pdm, faces.landmarks, faces.spread, noise=noise)
    return LearntShape(pdm, noise, mirror, faces, params)


def _start_shape(
    blendshapes: dict[str, np.ndarray], options: ShapeOptions, seed: int
) -> tuple[PDM, Int[np.ndarray, " n"] | None]:
    names = [str(name) for name in blendshapes["expression_names"]]
    neutral, identity, expression = (
        blendshapes[key].astype(np.float64)
        for key in ("neutral", "identity", "expression")
    )
    weights = sample_expressions(names, options.num_samples, seed=seed)
    drawn = sample_shapes(neutral, identity, expression, weights, seed=seed)
    shapes = camera_frame(drawn)
    mean = shapes.mean(axis=0)
    mirror = _mirror_of(mean, "blendshapes", "others") if options.symmetric else None
    pdm = pdm_from_shapes(shapes, num_modes=options.num_start_modes, mirror=mirror)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), pdm), mirror


def _mirror_of(
    mean: Float[np.ndarray, "n 3"], source: str, cure: str
) -> Int[np.ndarray, " n"]:
    try:
        return mirror_index(mean)
    except ValueError as error:
        raise ValueError(
            f"{error}. The shape is that of the {source}; expected {cure}, or"
            " symmetric = false"
        ) from error


def yaw_of(params: PDMParams) -> Float[np.ndarray, " f"]:
    """Yaw of every face.

    Args:
        params: Parameters with a leading axis.

    Returns:
        Yaw, radians.

    Example:
        >>> two = jax.tree.map(lambda x: jnp.stack([x, x]), params)
        >>> yaw_of(two).shape
        (2,)
    """
    return np.asarray(jax.jit(jax.vmap(lambda p: p.euler[1]))(params))


def learn_experts(
    shape: LearntShape,
    is_held_out: Bool[np.ndarray, " f"],
    options: ExpertOptions,
    *,
    seed: int = 0,
    store: Store | None = None,
    say: Say = lambda text: None,
) -> tuple[CCNFExperts, ...]:
    """Learns the patch experts of all scales and views.

    Args:
        shape: The shape model and the faces.
        is_held_out: Which faces to check on.
        options: How to learn.
        seed: Of the random numbers.
        store: Where to keep what is done.
        say: Shows progress.

    Returns:
        The experts, one object per scale, views in the order of their yaw.

    Raises:
        ValueError: A view has no faces to learn from or to check on.

    Example:
        >>> from jaxclnf.learn.ccnf.tasks import FieldOptions
        >>> points = np.stack([project(pdm, params)] * 2)
        >>> faces = LabelledFaces(("a", "b"), (image,) * 2, points, np.ones((2, 12)))
        >>> two = jax.tree.map(lambda x: jnp.stack([x, x]), params)
        >>> shape = LearntShape(pdm, np.ones(12), None, faces, two)
        >>> field = FieldOptions(window_size=5, support=3, num_neurons=1, num_epochs=1)
        >>> options = ExpertOptions(scales=(0.5,), samples_per_epoch=1, field=field)
        >>> experts = learn_experts(shape, np.asarray([True, False]), options)
        >>> len(experts), experts[0].weights.shape
        (1, (1, 12, 1, 3, 3))
    """
    bank = make_bank(shape.pdm, shape.faces, shape.params)
    yaw = yaw_of(shape.params)
    scales = []
    for row, patch_scaling in enumerate(options.scales):
        views: list[ViewFields] = []
        front: ViewFields | None = None
        # The most frontal view first: the others start from its fields.
        for view_deg in sorted(options.views_deg, key=abs):
            title = f"scale {patch_scaling:g}, view {view_deg:g}"
            key = jax.random.key(seed)
            for part in (row, round(1000 * view_deg) % 2**31):
                key = jax.random.fold_in(key, part)
            view = _learn_view(
                key,
                shape,
                bank,
                yaw,
                is_held_out,
                options,
                row,
                view_deg,
                front,
                store,
                lambda text, title=title: say(f"{title}: {text}"),
            )
            front = view if front is None else front
            views.append(view)
            if shape.mirror is not None and view_deg != 0:
                views.append(mirrored_view(view, shape.mirror))
        views.sort(key=lambda view: view.center[1])
        scales.append(assemble_experts(patch_scaling, views, options.neighbour_windows))
    return tuple(scales)


def _learn_view(
    key: jax.Array,
    shape: LearntShape,
    bank: FaceBank,
    yaw: Float[np.ndarray, " f"],
    is_held_out: Bool[np.ndarray, " f"],
    options: ExpertOptions,
    scale_index: int,
    view_deg: float,
    front: ViewFields | None,
    store: Store | None,
    say: Say,
) -> ViewFields:
    patch_scaling, field = options.scales[scale_index], options.field_at(scale_index)
    task = _task(shape, bank, yaw, is_held_out, options, patch_scaling, view_deg)
    state = begin(key, task, field)
    chosen = np.asarray(task.landmarks)
    if front is not None:
        given = jax.tree.map(lambda x: x[chosen], front.fields)
        state = dataclasses.replace(state, params=given, best=given)
    name = f"fields_{patch_scaling:g}_{view_deg:g}"
    if store is not None and (saved := store.load(name, state)) is not None:
        state = saved
        say(f"went on after epoch {int(state.epoch)}")

    def on_epoch(state: Learning) -> None:
        if store is not None:
            store.save(name, state)
        known = np.isfinite(np.asarray(state.loss))
        say(
            f"epoch {int(state.epoch)}/{field.num_epochs}, held-out loss"
            f" {np.asarray(state.loss)[known].mean():.4f}"
        )

    state = learn_fields(key, task, field, state=state, on_epoch=on_epoch)
    confidence = confidences(key, task, field, state.best)
    visible = np.isfinite(np.asarray(state.best_loss)) & _is_taught(task)
    if not visible.all():
        say(f"too few labels to learn landmarks {chosen[~visible].tolist()}")
    return _whole_face(chosen, shape.mirror, view_deg, state, confidence, visible)


def _task(
    shape: LearntShape,
    bank: FaceBank,
    yaw: Float[np.ndarray, " f"],
    is_held_out: Bool[np.ndarray, " f"],
    options: ExpertOptions,
    patch_scaling: float,
    view_deg: float,
) -> FieldTask:
    center, reach = np.radians(view_deg), np.radians(options.view_reach_deg)
    near = [(np.abs(yaw - center) <= reach, False)]
    everyone = np.arange(bank.landmarks.shape[1])
    mirror, landmarks = everyone, everyone
    if shape.mirror is not None:
        mirror = shape.mirror
        near.append((np.abs(-yaw - center) <= reach, True))
        if view_deg == 0:  # one landmark of each pair, and the middle ones
            landmarks = np.nonzero(mirror >= everyone)[0]

    def pick(which: Bool[np.ndarray, " f"]) -> tuple[np.ndarray, np.ndarray]:
        rows = [np.nonzero(is_near & which)[0] for is_near, _ in near]
        flips = [np.full(len(r), flip) for r, (_, flip) in zip(rows, near, strict=True)]
        return np.concatenate(rows), np.concatenate(flips)

    index, flipped = pick(~is_held_out)
    check_index, check_flipped = pick(is_held_out)
    for what, found in (("learn from", index), ("check on", check_index)):
        if not len(found):
            raise ValueError(
                f"views_deg: found no face to {what} within {options.view_reach_deg:g}"
                f" degrees of {view_deg:g}, expected one or more"
            )
    repeats = -(-options.samples_per_epoch // len(index))
    return FieldTask(
        bank=bank,
        faces=jnp.asarray(np.tile(index, repeats)),
        flipped=jnp.asarray(np.tile(flipped, repeats)),
        check_faces=jnp.asarray(check_index),
        check_flipped=jnp.asarray(check_flipped),
        landmarks=jnp.asarray(landmarks),
        mirror=jnp.asarray(mirror),
        patch_scaling=jnp.asarray(patch_scaling, bank.landmarks.dtype),
    )


def _is_taught(task: FieldTask) -> Bool[np.ndarray, " k"]:
    """Which landmarks enough faces label, themselves or mirrored."""
    faces, flipped = np.asarray(task.faces), np.asarray(task.flipped)
    chosen = np.asarray(task.landmarks)
    known = np.isfinite(np.asarray(task.bank.spread))
    usable = np.zeros((len(known), len(chosen)), bool)
    for landmarks, which in (
        (chosen, ~flipped),
        (np.asarray(task.mirror)[chosen], flipped),
    ):
        seen = np.unique(faces[which])
        usable[seen] |= known[np.ix_(seen, landmarks)]
    num_faces = len(np.unique(faces))
    return usable.sum(axis=0) >= min(_LEAST_LABELS, (num_faces + 1) // 2)


def _whole_face(
    chosen: Int[np.ndarray, " k"],
    mirror: Int[np.ndarray, " n"] | None,
    view_deg: float,
    state: Learning,
    confidence: jax.Array,
    visible: Bool[np.ndarray, " k"],
) -> ViewFields:
    """Fields of every landmark, from those learnt and their mirror images."""
    center = (0.0, float(np.radians(view_deg)), 0.0)
    if mirror is None or len(chosen) == len(mirror):
        return ViewFields(center, state.best, confidence, visible)
    row = np.full(len(mirror), -1)
    row[chosen] = np.arange(len(chosen))
    is_own = row >= 0
    source = np.where(is_own, row, row[mirror])
    fields = jax.tree.map(lambda x: x[source], state.best)
    filters = jnp.where(
        is_own[:, None, None, None], fields.filters, fields.filters[..., ::-1]
    )
    fields = dataclasses.replace(fields, filters=filters)
    return ViewFields(center, fields, confidence[source], visible[source])
