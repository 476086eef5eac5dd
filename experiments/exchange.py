"""Is it the shape model or the experts that cost a model its accuracy?

    python experiments/exchange.py --shared FOLDER [--every N] [--out FOLDER]

The shipped model and OpenFace's general one exchange their mean shapes, or their whole
shape models, turned and resized onto the other's. Every annotated face is fitted from
its exact box with the default options, and from the truth itself: what fails then, no
better start would mend.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sample import Face, chosen_models, known_faces, save_text

import jaxclnf
from jaxclnf.app.datasets import interocular_error
from jaxclnf.learn.pdm.loadings import Loadings, loadings_of, pdm_of, unique
from jaxclnf.learn.pdm.shapes import nearest_rotation

POINTS = {
    "68 points": slice(0, 68),
    "51 inner": slice(17, 68),
    "Jaw": slice(0, 17),
    "Brows": slice(17, 27),
    "Nose": slice(27, 36),
    "Eyes": slice(36, 48),
    "Mouth": slice(48, 68),
}
INNER = "51 inner"
LIMIT = 0.08


class Variant(NamedTuple):
    """Where the parts of a model come from."""

    experts: str
    mean: str
    modes: str


VARIANTS = (
    Variant("shipped", "shipped", "shipped"),
    Variant("shipped", "general", "shipped"),
    Variant("shipped", "shipped", "general"),
    Variant("shipped", "general", "general"),
    Variant("general", "general", "general"),
    Variant("general", "shipped", "general"),
    Variant("general", "general", "shipped"),
    Variant("general", "shipped", "shipped"),
)


def onto(shape: Loadings, target: Loadings) -> Loadings:
    """A shape model, turned and resized so that its mean lies on that of another."""
    mean, goal = (x.mean - x.mean.mean(axis=0) for x in (shape, target))
    turn = nearest_rotation(goal.T @ mean)
    size = np.sum(goal * (mean @ turn.T)) / np.sum(mean**2)
    loads = size * np.einsum("ab,nbm->nam", turn, shape.loads)
    return Loadings(size * mean @ turn.T + target.mean.mean(axis=0), loads)


def exchanged(
    models: dict[str, jaxclnf.CLNFModel], variant: Variant
) -> jaxclnf.CLNFModel:
    """The model that a variant describes, of the size of its experts' own."""
    shapes = {k: loadings_of(m.pdm, m.pdm.num_modes) for k, m in models.items()}
    own = shapes[variant.experts]
    mean = onto(shapes[variant.mean], own).mean
    loads = onto(shapes[variant.modes], own).loads
    # Without what a pose can do about another mean.
    shape, _, _ = unique(Loadings(mean, loads), mean - mean.mean(axis=0))
    pdm = pdm_of(shape, np.float32)
    return dataclasses.replace(models[variant.experts], pdm=pdm, parts=())


_params_of = jax.jit(jaxclnf.params_from_landmarks)


def run(
    model: jaxclnf.CLNFModel, faces: list[Face], options: jaxclnf.FitOptions
) -> dict[str, np.ndarray]:
    """Errors of every face by points, and of the inner ones from the truth on."""
    errors: dict[str, list[float]] = {name: [] for name in (*POINTS, "from truth")}
    for face in faces:
        assert face.landmarks is not None
        box = np.asarray(face.box, np.float32)
        found = jaxclnf.fit(model, face.grey, box, options=options)
        for name, points in POINTS.items():
            errors[name].append(
                interocular_error(np.asarray(found.landmarks), face.landmarks, points)
            )
        truth = _params_of(model.pdm, jnp.asarray(face.landmarks, jnp.float32))
        found = jaxclnf.fit(model, face.grey, params=truth, options=options)
        landmarks = np.asarray(found.landmarks)
        errors["from truth"].append(
            interocular_error(landmarks, face.landmarks, POINTS[INNER])
        )
    return {name: np.array(x) for name, x in errors.items()}


def report(results: dict[Variant, dict[str, np.ndarray]], num_faces: int) -> str:
    """The table as Markdown."""
    head = ["Experts", "Mean shape", "Modes", *POINTS]
    head += [f"Inner > {LIMIT:.2f}", "From the truth"]
    lines = [
        "# Shape models exchanged\n",
        f"{num_faces} annotated faces, exact boxes, float32, the default options, no "
        "parts. Median errors over the distance of the outer eye corners; share of "
        f"faces whose 51 inner points are off by more than {LIMIT:.2f} in the mean, "
        "from the box and from the truth.\n",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for variant, errors in results.items():
        cells = [*variant, *(f"{np.median(errors[name]):.4f}" for name in POINTS)]
        cells += [f"{np.mean(errors[x] > LIMIT):.1%}" for x in (INNER, "from truth")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="every N-th face")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.set_defaults(models=["shipped", "general"])
    args = parser.parse_args()

    options = dataclasses.replace(jaxclnf.FitOptions(), use_parts=False)
    faces, _ = known_faces(args.shared, args.every, move=0.0)
    models = {name: model for name, model, _ in chosen_models(args, np.float32)}
    results = {}
    for variant in VARIANTS:
        model = exchanged(models, variant).prepared(options.window_sizes)
        results[variant] = run(model, faces, options)
        print(variant, flush=True)
    text = report(results, len(faces))
    print(text)
    save_text(args.out / "exchange.md", text)


if __name__ == "__main__":
    main()
