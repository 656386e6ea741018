"""Use the imagined world as a gymnasium environment.

python examples/imagined_env.py
"""

import numpy as np

from ivideogpt import WorldModel
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.envs.imagined import ImaginedVectorEnv
from ivideogpt.envs.start_states import EpisodeStarts
from ivideogpt.worldmodel.shipped import SHIPPED


def main(steps: int = 8) -> None:
    model = WorldModel.from_pretrained("pusht-64")
    episodes = load_episodes(SHIPPED["pusht-64"] / "episodes.safetensors")
    environments = ImaginedVectorEnv(
        model,
        EpisodeStarts(episodes, frames=3),
        num_envs=4,
        horizon=5,  # every 5 steps a row begins again from a recorded state
        frame_stack=3,
        raw_actions=False,  # -1 to 1: where in the picture the agent is drawn to
    )
    observations, _ = environments.reset(seed=0)
    print(f"observations: {observations.dtype} {list(observations.shape)}")
    random, total = np.random.default_rng(0), np.zeros(4)
    for _ in range(steps):
        actions = random.uniform(-1, 1, environments.action_space.shape).astype(np.float32)
        observations, rewards, terminated, truncated, _ = environments.step(actions)
        total += rewards
    print(f"covered share of the goal, summed over {steps} steps: {total.round(2).tolist()}")

    # A state can be kept, and gone back to: two plans from the same place.
    state, seen = environments.get_state(), []
    for towards in (-0.8, 0.8):
        environments.set_state(state)
        for _ in range(3):
            observations, *_ = environments.step(np.full((4, 2), towards, np.float32))
        seen.append(observations[:, -1].astype(float))
    print(f"the two plans end {np.abs(seen[0] - seen[1]).mean():.1f} of 255 a pixel apart")


if __name__ == "__main__":
    main()
