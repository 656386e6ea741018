"""Every policy acts in real simulators and in the imagination through one loop."""

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from ivideogpt.core.episode import Episode  # noqa: E402
from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.core.protocols import Policy  # noqa: E402
from ivideogpt.envs.imagined import ImaginedVectorEnv, as_bytes  # noqa: E402
from ivideogpt.envs.start_states import EpisodeStarts  # noqa: E402
from ivideogpt.envs.vector import make_vector  # noqa: E402
from ivideogpt.planning.models import RepeatedFrame  # noqa: E402
from ivideogpt.planning.objectives import make_objective  # noqa: E402
from ivideogpt.planning.optimizers import ActionNoise, OptimizerConfig  # noqa: E402
from ivideogpt.planning.planner import PlannerConfig  # noqa: E402
from ivideogpt.policies import registry  # noqa: E402
from ivideogpt.policies.drqv2 import AgentConfig  # noqa: E402
from ivideogpt.policies.registry import POLICIES, make_policy  # noqa: E402

PLANNER = {
    "model": RepeatedFrame(2, 16),
    "objective": make_objective({"last-pixels": 1.0}, None),
    "settings": PlannerConfig(
        horizon=2, optimizer=OptimizerConfig(candidates=4, elites=2), noise=ActionNoise(std=(0.5, 0.5))
    ),
    "goals": np.zeros((2, 16, 16, 3), np.uint8),
}
SMALL = AgentConfig(encoder_channels=2, feature_size=4, hidden_size=8)
#: Policy, its options, the environment, its options, numbers of an action and of the state.
CASES = {
    "random": ({"action_dim": 2}, "reacher", {"size": 16}, 2, 4),
    "reacher-script": ({}, "reacher", {"size": 16}, 2, 4),
    "planner": (PLANNER, "reacher", {"size": 16}, 2, 4),
    "drqv2": ({"image": 16, "stack": 2, "action_dim": 2, "config": SMALL}, "reacher", {"size": 16}, 2, 4),
    "toy-push-script": ({}, "toy-push", {"size": 16}, 2, 8),
    "pusht-drag": ({}, "pusht", {}, 2, 5),
    "pusht-goal": ({"noise": 2.0}, "pusht", {}, 2, 5),
    "metaworld-script": ({"task": "plate-slide"}, "plate-slide", {"size": 16, "shadow_size": 0}, 4, 39),
}


def play(policy: Policy, environments, steps: int) -> np.ndarray:
    """The one loop: actions ``[t b a]`` of a policy in real or imagined environments."""
    seeds = list(range(environments.num_envs))
    frames, info = environments.reset(seed=seeds)
    policy.reset(seeds)
    chosen = []
    for _ in range(steps):
        observation = {"frames": frames} | ({"state": info["state"]} if "state" in info else {})
        chosen.append(policy.act(observation))
        frames, _, _, _, info = environments.step(chosen[-1])
    return np.stack(chosen)


def imagined(model, starts, action_dim: int, state_size: int) -> ImaginedVectorEnv:
    def state(frames: np.ndarray) -> np.ndarray:
        return np.resize(frames.mean(axis=(1, 2)), (len(frames), state_size))

    return ImaginedVectorEnv(model, starts, num_envs=2, horizon=5, frame_stack=2, raw_actions=False, state=state)


def test_the_cases_are_all_policies() -> None:
    assert CASES.keys() == POLICIES.keys() - {"openpi", "lerobot"}  # tests in vla/


@pytest.mark.parametrize("name", CASES)
def test_every_policy_acts_in_a_simulator_and_in_the_imagination_through_one_loop(name, build, frames_for) -> None:
    options, environment, environment_options, action_dim, state_size = CASES[name]
    try:
        real = make_vector(environment, 2, frame_stack=2, **environment_options)
    except UserError as error:
        pytest.skip(str(error))
    from ivideogpt.mbrl.world_model_source import with_new_heads

    model = with_new_heads(build("action_free"), action_dim, rewards=True)
    starts = EpisodeStarts([Episode(frames=as_bytes(frames_for(model, rows=1, count=8)[0]))], 2)
    for environments in (real, imagined(model, starts, action_dim, state_size)):
        actions = play(make_policy(name, **options), environments, 4)
        assert actions.shape == (4, 2, action_dim) and actions.dtype == np.float32
        assert np.abs(actions).max() <= 1
        again = play(make_policy(name, **options), environments, 4)
        assert again.shape == actions.shape and (name == "drqv2" or np.array_equal(actions, again))
        environments.close()


def test_a_row_that_goes_on_keeps_its_random_numbers() -> None:
    policy, other = make_policy("random", action_dim=3), make_policy("random", action_dim=3)
    policy.reset([1, 2])
    other.reset([1, 2])
    first = policy.act({})
    assert np.array_equal(first, other.act({})) and not np.array_equal(first[0], first[1])
    policy.reset([1, None])
    again = policy.act({})
    assert np.array_equal(again[0], first[0]) and np.array_equal(again[1], other.act({})[1])


def test_a_script_without_a_state_says_what_to_do() -> None:
    policy = make_policy("reacher-script")
    policy.reset([0])
    with pytest.raises(UserError, match="reads the simulator's state, and this environment gives none"):
        policy.act({"frames": np.zeros((1, 1, 16, 16, 3), np.uint8)})


@pytest.fixture
def dummy(tmp_path, monkeypatch) -> Iterator[str]:
    """A policy of one file and one row."""
    (tmp_path / "dummy_policy.py").write_text(
        "import numpy as np\n\n\nclass Still:\n"
        "    def reset(self, seeds, instructions=None):\n        self.rows = len(seeds)\n\n"
        "    def act(self, observation):\n        return np.zeros((self.rows, 2), np.float32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.POLICIES, "still", "dummy_policy:Still")
    yield "still"


def test_a_new_policy_is_one_file_and_one_row(dummy) -> None:
    assert not play(make_policy(dummy), make_vector("reacher", 2, size=16), 3).any()
    with pytest.raises(UserError, match="there is no policy 'stil'; did you mean 'still'"):
        make_policy("stil")
    with pytest.raises(UserError, match=r"policy still does not take the options \['speed'\]"):
        make_policy(dummy, speed=3)
