"""One face as a whole: what stands for one that was not looked for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.fitting.face import fit_face, unfitted_face
from jaxclnf.fitting.hypotheses import starts_from_box
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult
from jaxclnf.status import Status
from tests import synthetic

OPTIONS = {
    "one start": FitOptions(window_sizes=(7,), starts=1),
    "two scales": FitOptions(window_sizes=(9, 7)),
    "passes": FitOptions(window_sizes=(7,), starts=1, max_passes=3),
    "a short search": FitOptions(window_sizes=(7,), short_search=2),
    "openface": FitOptions.openface(parts=False, starts=11),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, "model") for kind in OPTIONS), ("one start", "with_part")],
)
def test_is_like_a_fitted_one(kind: str, name: str, dtype: type):
    options = OPTIONS[kind]
    names = synthetic.example(dtype)
    model = names[name]

    def fitted(image: jax.Array, size: jax.Array) -> FitResult:
        starts = starts_from_box(model.pdm, jnp.ones(4, dtype), options.starts)
        return fit_face(model, image, size, starts, options)[0]

    image = jax.ShapeDtypeStruct((8, 8), jnp.uint8)
    expected = jax.eval_shape(fitted, image, jax.ShapeDtypeStruct((2,), jnp.int32))
    found = unfitted_face(
        model,
        num_starts=options.num_starts,
        with_parts=options.use_parts,
        several_passes=options.max_passes > 1,
    )
    shapes = partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.leaves(shapes(found)) == jax.tree.leaves(shapes(expected))


def test_nothing_is_known():
    nobody = unfitted_face(synthetic.example(np.float32)["with_part"], with_parts=True)
    for leaf in jax.tree.leaves(nobody):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isnan(leaf).all()
    assert Status(int(nobody.status)) is Status.BAD_START
    assert not (nobody.success or nobody.converged or nobody.certified)
    assert int(nobody.num_steps.sum()) == 0 and list(nobody.parts) == ["part"]
    assert not nobody.parts["part"].fitted
