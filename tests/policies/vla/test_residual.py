"""A corrected policy: from its folder, within its bounds, with the chunks of the frozen one, also of a server."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from ivideogpt.commands.policy_choice import choose_policy  # noqa: E402
from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.evaluation.policy_trials import PolicyTrial  # noqa: E402
from ivideogpt.policies.drqv2 import AgentConfig  # noqa: E402
from ivideogpt.policies.vla.residual import (  # noqa: E402
    ResidualConfig,
    ResidualPolicy,
    annotated_frames,
    new_residual_agent,
)
from ivideogpt.policies.vla.tiny_flow import FlowPolicy, TinyFlow, TinyFlowConfig  # noqa: E402

SIZES = TinyFlowConfig(width=16, heads=2, halvings=0, points=2, encoder_layers=1, expert_layers=1, chunk=3)
CONFIG = ResidualConfig(scale=0.25, agent=AgentConfig(encoder_channels=4, hidden_size=8))
WORDS = ["push the red square to the left", "push the blue square to the right"]
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 2, 1, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def policy() -> ResidualPolicy:
    """A policy whose correction is as large as it can be."""
    torch.manual_seed(0)
    agent = new_residual_agent(CONFIG)
    torch.nn.init.constant_(agent.actor.policy[-1].bias, 50.0)  # type: ignore[arg-type,index]
    return ResidualPolicy(CONFIG, FlowPolicy(TinyFlow(SIZES).eval()), agent)


def acted(policy, count: int = 2) -> np.ndarray:
    policy.reset(range(count), WORDS[:count])
    return np.stack([policy.act({"frames": frames[:count]}) for frames in FRAMES])


def test_every_action_is_that_of_the_frozen_policy_within_the_scale(policy: ResidualPolicy) -> None:
    actions = acted(policy)
    policy.base.reset(range(2), WORDS)
    first, second = (policy.base.act({"frames": FRAMES[step]}) for step in (0, 3))
    frozen = np.concatenate([first, second], axis=1)[:, :5].swapaxes(0, 1)  # chunks of three
    assert actions.shape == (5, 2, 2) and np.abs(actions - frozen).max() <= CONFIG.scale + 1e-6
    np.testing.assert_allclose(actions, np.minimum(frozen + CONFIG.scale, 1), atol=1e-6)


def test_a_row_that_goes_on_keeps_its_chunk_and_its_words(policy: ResidualPolicy) -> None:
    acted(policy)
    policy.reset([None, 7], ["", WORDS[0]])
    assert [len(queue) for queue in policy._waiting] == [1, 0] and policy._instructions == [WORDS[0], WORDS[0]]


def test_a_folder_gives_the_same_policy_and_names_another_environment(policy, tmp_path: Path) -> None:
    policy.base.network.save_pretrained(tmp_path / "policy")
    policy.save_pretrained(tmp_path / "corrected", tmp_path / "policy")
    choice = choose_policy(str(tmp_path / "corrected"), "toy-push", trials=1)
    assert (choice.settings.frame_stack, choice.settings.image_size) == (1, 32)
    loaded = choice.make(PolicyTrial(task="toy-push", seed=0), 2, 32)
    np.testing.assert_array_equal(acted(policy), acted(loaded))
    with pytest.raises(UserError, match="corrects actions of 2 numbers and libero_spatial/0 takes 7"):
        choice.make(PolicyTrial(task="libero_spatial/0", seed=0), 7, 32)
    (tmp_path / "corrected" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="describes no correction"):
        choose_policy(str(tmp_path / "corrected"), "toy-push", trials=1)


def test_the_pictures_of_the_agent_show_frame_action_and_words() -> None:
    frames = np.full((2, 16, 16, 3), 7, np.uint8)
    pictures = annotated_frames(frames, np.array([[-1, 1], [-1, 1]], np.float32), ["push left", "push right"])
    assert pictures.shape == (2, 24, 24, 3) and (pictures[:, :16, :16] == 7).all()
    assert (pictures[0, -1, 0] == 0).all() and (pictures[0, -1, 2] == 255).all()
    assert not np.array_equal(pictures[0], pictures[1])


def test_the_frozen_policy_may_be_a_served_one(policy: ResidualPolicy, tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    from ivideogpt.policies.vla.openpi_server import PolicyServer

    network = policy.base.network  # type: ignore[attr-defined]
    server = PolicyServer(lambda number: FlowPolicy(network), metadata={"image_size": 32}, image_size=32)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        served = ResidualConfig(base=f"ws://127.0.0.1:{server.port}", scale=CONFIG.scale, agent=CONFIG.agent)
        ResidualPolicy(served, policy.base, policy.agent).save_pretrained(tmp_path / "corrected")
        assert not (tmp_path / "corrected" / "base").exists()
        choice = choose_policy(str(tmp_path / "corrected"), "toy-push", trials=1)
        loaded = choice.make(PolicyTrial(task="toy-push", seed=0), 2, 32)
        np.testing.assert_allclose(acted(policy, 1), acted(loaded, 1), atol=1e-6)
    finally:
        server.shutdown()
        thread.join()
