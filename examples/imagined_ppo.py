"""Train an agent of stable-baselines3 in the world model (pip install '.[sb3]').

This shows how it is connected; to learn something takes a hundred times as many steps.

python examples/imagined_ppo.py
"""

from stable_baselines3 import PPO

from ivideogpt import WorldModel
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.envs.sb3 import ImaginedVecEnv
from ivideogpt.envs.start_states import EpisodeStarts
from ivideogpt.worldmodel.shipped import SHIPPED


def main(steps: int = 256) -> None:
    model = WorldModel.from_pretrained("metaworld-64")
    episodes = load_episodes(SHIPPED["metaworld-64"] / "episodes.safetensors")
    slides = [episode for episode in episodes if episode.meta["task"] == "plate-slide"]
    environments = ImaginedVecEnv(model, EpisodeStarts(slides, frames=3), num_envs=8, horizon=10, frame_stack=3, seed=0)
    agent = PPO("CnnPolicy", environments, n_steps=16, batch_size=32, n_epochs=1, seed=0, verbose=0)
    agent.learn(steps)
    print(f"{agent.num_timesteps} imagined steps")
    actions, _ = agent.predict(environments.reset(), deterministic=True)
    print(f"actions of the trained policy: {list(actions.shape)}, within {actions.min():.2f} to {actions.max():.2f}")


if __name__ == "__main__":
    main()
