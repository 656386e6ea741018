"""Use a session: step, fork to compare two actions, rewind, and replace an imagined frame by a recorded one.

python examples/interact.py
"""

import torch
from einops import rearrange

from ivideogpt import Sampling, WorldModel
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.worldmodel.shipped import SHIPPED


def main() -> None:
    model = WorldModel.from_pretrained("pusht-64-tokens")
    episode = load_episodes(SHIPPED["pusht-64-tokens"] / "episodes.safetensors")[0]
    frames = rearrange(torch.from_numpy(episode.frames), "t h w c -> 1 t c h w")  # uint8 or float
    actions = model.normalize_actions(torch.from_numpy(episode.actions))[None]
    count = model.context_frames

    session = model.session(frames[:, :count], sampling=Sampling(temperature=1.0, top_k=100), seed=0)
    for t in range(count - 1, count + 2):
        step = session.step(actions[:, t])
    print(f"after 3 steps: {list(session.frames.shape)}, log-probability {step.log_probs.sum():.1f}")

    # Two futures from here: in one the agent moves to the left, in the other to the right.
    both = session.fork(2, common_random=True)
    for _ in range(3):
        both.step(torch.tensor([[-0.8, 0.0], [0.8, 0.0]]))
    left, right = both.frames[:, -1]
    print(f"the two futures differ by {(left - right).abs().mean():.4f} a pixel")

    # Undo two steps. The same actions lead to the same frames again, because the random numbers are the same.
    before = session.frames
    session.rewind(2)
    for t in range(count, count + 2):
        session.step(actions[:, t])
    print(f"the same after rewinding: {torch.equal(session.frames, before)}")

    # Append the recorded frame instead of an imagined one. The log-probabilities of its tokens give its surprise.
    real = session.observe(frames[:, count + 3], actions[:, count + 2])
    print(f"surprise of the recorded frame: {-real.log_probs.mean():.2f} nats a token")


if __name__ == "__main__":
    main()
