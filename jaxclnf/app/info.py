"""`jaxclnf info`: what is in a model."""

import dataclasses
import itertools
import textwrap
from collections.abc import Iterable, Iterator
from typing import Annotated

import jax
import numpy as np
import tyro

from jaxclnf.experts.types import CCNFExperts, CENExperts, PatchExperts
from jaxclnf.fitting.joint import JointValidator
from jaxclnf.fitting.likelihood import LikelihoodValidator
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.validate import Validator
from jaxclnf.storage.load import DEFAULT_MODEL, load_model

_LICENCE_LINES, _LICENCE_WIDTH = 6, 76


@dataclasses.dataclass(frozen=True)
class InfoCommand:
    """Shows what is in a model."""

    model: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="[MODEL]", help_behavior_hint="(default: the embedded model)"
        ),
    ] = DEFAULT_MODEL
    """An OpenFace main file, an .npz file of jaxclnf,
    the name of an embedded model, or that of a converted
    one of OpenFace's: see jaxclnf models."""

    def run(self) -> int:
        """Prints the description.

        Returns:
            The exit code.
        """
        print(describe_model(load_model(self.model)))
        return 0


def describe_model(model: CLNFModel) -> str:
    """A model in words, for people.

    Args:
        model: The model.

    Returns:
        A few lines: name, sizes, scales, parts, memory, provenance, licence.

    Example:
        >>> describe_model(model).splitlines()[1].split()[0]
        'landmarks'
    """
    return "\n".join(_lines(model))


def _lines(model: CLNFModel) -> Iterator[str]:
    yield f"name        {model.info.name}"
    yield f"landmarks   {model.pdm.num_landmarks}"
    yield f"modes       {model.pdm.num_modes}"
    yield from _listed("scales", map(_describe_experts, model.experts))
    yield from _listed("parts", (_describe_part(p.name, p.model) for p in model.parts))
    if model.early_termination is not None:
        yield "starts      early termination"
    match model.validator:
        case Validator(mean=mean):
            num_views, height, width = mean.shape
            yield f"validator   network of {num_views} views, {width} x {height} pixels"
        case LikelihoodValidator(weights=weights):
            yield f"validator   log-likelihood at each of {len(weights)} scales"
        case JointValidator(network=Validator(mean=mean), network_weights=weights):
            _, height, width = mean.shape
            yield (
                f"validator   log-likelihood at each of {len(weights)} scales, and a"
                f" network, {width} x {height} pixels"
            )
        case None:
            yield "validator   none"
    if (boxes := model.box_calibration) is not None:
        yield f"boxes       shift {boxes.shift}, size {boxes.size} of a detected square"
    yield f"memory      {_num_bytes(model) / 1e6:.1f} MB"
    yield from _listed("provenance", model.info.provenance.splitlines())
    licence = filter(None, map(str.strip, model.info.licence.splitlines()))
    first = itertools.islice(licence, _LICENCE_LINES)
    lines = [
        textwrap.shorten(line, _LICENCE_WIDTH, placeholder=" ...") for line in first
    ]
    yield from _listed("licence", lines + ["..."] * any(licence))


def _listed(title: str, lines: Iterable[str]) -> Iterator[str]:
    text = "\n".join(lines) or "none"
    yield f"{title:12}" + textwrap.indent(text, " " * 12).lstrip()


def _describe_experts(experts: PatchExperts) -> str:
    return (
        f"{float(experts.patch_scaling):g} px/mm, {len(experts.view_centers)} views,"
        f" {_describe_family(experts)}"
    )


def _describe_family(experts: PatchExperts) -> str:
    region = f"{experts.support} x {experts.support}"
    if isinstance(experts, CENExperts):
        num, first, _ = experts.layers[0].weights.shape
        outputs = [first, *(layer.bias.shape[1] for layer in experts.layers[1:])]
        layers = "-".join(map(str, outputs))
        return f"CEN with {num} networks of layers {layers} on {region}"
    filters = experts.weights.shape[2]
    if isinstance(experts, CCNFExperts):
        sizes = ", ".join(map(str, sorted(experts.neighbours))) or "none"
        return (
            f"CCNF with {filters} filters of {region}, neighbour terms for windows"
            f" {sizes}"
        )
    return f"SVR with {filters} filters of {region}"


def _describe_part(name: str, model: CLNFModel) -> str:
    scales = " and ".join(f"{float(e.patch_scaling):g}" for e in model.experts)
    return (
        f"{name}, {model.pdm.num_landmarks} landmarks, {model.pdm.num_modes} modes,"
        f" {scales} px/mm"
    )


def _num_bytes(model: CLNFModel) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(model))
