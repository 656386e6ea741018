"""Policies of LeRobot, where it is installed: random weights, saved and loaded in its own format."""

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.policies.registry import make_policy

pytest.importorskip("lerobot", reason="LeRobot is not installed; it has a virtual environment of its own")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A small random ACT policy of one camera and a state of 2 numbers."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.manual_seed(0)
    config = ACTConfig(
        input_features={
            "observation.images.top": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 64, 64)),
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(2,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(2,))},
        chunk_size=4,
        n_action_steps=2,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        latent_dim=4,
        n_vae_encoder_layers=1,
        pretrained_backbone_weights=None,
        device="cpu",
    )
    place = tmp_path_factory.mktemp("act")
    ACTPolicy(config).save_pretrained(place)
    numbers = {"mean": torch.full((2,), 256.0), "std": torch.full((2,), 100.0)}
    image = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.ones(3, 1, 1)}
    stats = {"observation.state": numbers, "action": numbers, "observation.images.top": image}
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(place)
    return str(place)


def observation(seed: int, rows: int = 2, size: int = 64) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (rows, 1, size, size, 3), dtype=np.uint8)
    return {"frames": frames, "state": random.uniform(0, 512, (rows, 5))}


def test_a_policy_acts_in_the_units_of_the_environment(folder) -> None:
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    policy = make_policy("lerobot", path=folder, low=0, high=512, state=2, device="cpu")
    policy.reset([0, 1], ["push", "push"])
    seen = observation(0)
    actions = policy.act(seen)
    assert actions.shape == (2, 2) and actions.dtype == np.float32

    own = ACTPolicy.from_pretrained(folder)
    before, after = make_pre_post_processors(own.config, pretrained_path=folder)
    for row in range(2):
        own.reset()
        picture = torch.from_numpy(seen["frames"][row, 0]).permute(2, 0, 1)[None].float() / 255
        state = torch.from_numpy(seen["state"][row, :2].astype(np.float32))[None]
        batch = {"observation.images.top": picture, "observation.state": state, "task": ["push"]}
        with torch.no_grad():
            raw = after(own.select_action(before(batch)))[0].numpy()
        np.testing.assert_allclose(actions[row], np.clip(raw / 256 - 1, -1, 1), atol=1e-5)


def test_rows_have_queues_of_their_own(folder) -> None:
    policy = make_policy("lerobot", path=folder, low=0, high=512, state=2, device="cpu")
    policy.reset([0, 1])
    first, second = policy.act(observation(0)), policy.act(observation(1))  # the second is of the same chunk
    policy.reset([0, 1])
    assert np.allclose(policy.act(observation(0)), first)
    policy.reset([0, None])
    after = policy.act(observation(0))
    assert np.allclose(after[0], first[0]) and np.allclose(after[1], second[1])


def test_what_does_not_fit_is_a_sentence(folder, tmp_path) -> None:
    policy = make_policy("lerobot", path=folder, device="cpu")
    policy.reset([0, 1])
    with pytest.raises(UserError, match="reads a state of 2 numbers and the environment gives 5; .* or state=2"):
        policy.act(observation(0))
    with pytest.raises(UserError, match="cannot be loaded"):
        make_policy("lerobot", path=str(tmp_path), device="cpu")
    with pytest.raises(UserError, match="low is 1 and high is 0"):
        make_policy("lerobot", path=folder, low=1, high=0)
