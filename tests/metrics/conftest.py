"""Real recordings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "samples"


@pytest.fixture(scope="session")
def recordings():
    """Real recordings, float [t 3 64 64] in [0, 1] each: two cameras of a BAIR episode, and one of Fractal."""
    if not SAMPLES.exists():
        pytest.skip("the samples of BAIR and Fractal are not here")
    with np.load(SAMPLES / "bair_sample.npz") as bair, np.load(SAMPLES / "fractal_sample.npz") as fractal:
        arrays = [bair["aux1_image"], bair["image"], fractal["image"]]
    videos = [rearrange(torch.from_numpy(array.astype(np.float32)), "t h w c -> t c h w") / 255 for array in arrays]
    return [F.interpolate(video, (64, 64), mode="bilinear", antialias=True).clamp(0, 1) for video in videos]
