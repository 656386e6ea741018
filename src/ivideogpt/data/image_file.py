"""A picture file as an array: the one place that knows which pictures are RGB frames."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from ivideogpt.core.errors import UserError


def upright_rgb(image: Image.Image, name: str) -> np.ndarray:
    """An opened picture as uint8 ``[h w 3]``, turned as its camera says.

    Raises:
        UserError: it has more than 8 bits a channel, or is partly transparent.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        raise UserError(f"{name} has more than 8 bits a channel ({upright.mode}); convert it to 8-bit RGB")
    if upright.has_transparency_data and np.asarray(upright.convert("RGBA"))[..., 3].min() < 255:
        raise UserError(f"{name} is partly transparent; put it on a background and save it as RGB")
    return np.asarray(upright.convert("RGB"))
