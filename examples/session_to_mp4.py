"""Write the frames of a session to a video that browsers play: python examples/session_to_mp4.py."""

from pathlib import Path

import torch

from ivideogpt import WorldModel
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.data.render import to_uint8, write_mp4
from ivideogpt.worldmodel.shipped import SHIPPED


def main(output: Path = Path("outputs/session.mp4")) -> None:
    model = WorldModel.from_pretrained("pusht-64")
    episode = load_episodes(SHIPPED["pusht-64"] / "episodes.safetensors")[0]
    session = model.session(torch.from_numpy(episode.frames[:2]).permute(0, 3, 1, 2)[None])
    for action in model.normalize_actions(torch.from_numpy(episode.actions[1:15])):
        session.step(action[None])
    write_mp4(output, to_uint8(session.frames[0]), fps=5)  # row 0: context frames, then imagined ones
    print(output)


if __name__ == "__main__":
    main()
