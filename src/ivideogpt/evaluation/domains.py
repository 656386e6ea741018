"""Measures of one world each, read from its pictures or from the model: a new measure is one more entry in a tuple.

domain = find_domain("pusht", resolution=64)
domain.measure(true, imagined, last_context_frame)["agent_near"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ivideogpt.evaluation.held_out import Clips
from ivideogpt.evaluation.pusht_metrics import IMAGE_SIZE, pusht_measures
from ivideogpt.evaluation.pusht_shape import shape_measures
from ivideogpt.evaluation.token_stability import stability_measures
from ivideogpt.worldmodel.world_model import WorldModel

#: (true ``[n f c h w]``, imagined, last context frame ``[n c h w]``), all uint8, to figures.
PictureMeasure = Callable[[Tensor, Tensor, Tensor], Mapping[str, float]]
#: (true ``[n f c h w]``, imagined), both uint8, to figures at each of the f frames.
FrameMeasure = Callable[[Tensor, Tensor], Mapping[str, list[float]]]
#: (model, held-out clips) to figures as JSON values, for example of its tokenizer.
ModelMeasure = Callable[[WorldModel, Clips], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Measures of one world.

    Attributes:
        size: side of the frames that they can read, in pixels.
        pictures: measured for every row.
        by_frame: measured for the imagined frames, the reconstruction and the copy, frame by frame.
        model: measured once.
    """

    size: int
    pictures: tuple[PictureMeasure, ...] = ()
    by_frame: tuple[FrameMeasure, ...] = ()
    model: tuple[ModelMeasure, ...] = ()

    def measure(self, true: Tensor, imagined: Tensor, last: Tensor) -> dict[str, float]:
        """Return the figures of all measures of pictures."""
        return {name: x for measure in self.pictures for name, x in measure(true, imagined, last).items()}

    def measure_frames(self, true: Tensor, imagined: Tensor) -> dict[str, list[float]]:
        """Return the figures of all measures by frame."""
        return {name: x for measure in self.by_frame for name, x in measure(true, imagined).items()}

    def measure_model(self, model: WorldModel, clips: Clips) -> dict[str, Any]:
        """Return the figures of all measures of the model."""
        return {name: x for measure in self.model for name, x in measure(model, clips).items()}


#: Name of a dataset -> measures of its world.
DOMAINS: Mapping[str, Domain] = {
    "pusht": Domain(
        size=IMAGE_SIZE, pictures=(pusht_measures,), by_frame=(shape_measures,), model=(stability_measures,)
    ),
}


def find_domain(dataset: str, resolution: int) -> Domain | None:
    """Return the measures of a dataset; None where it has none, or none for frames of that size."""
    domain = DOMAINS.get(dataset)
    return domain if domain is not None and domain.size == resolution else None
