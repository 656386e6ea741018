r"""Write the checkpoint of a Meta-World run as it ships, with a held-out episode of each task.

python runs/publish_metaworld.py runs/metaworld-64/training --test datasets/metaworld-test-shaken \
    --out runs/metaworld-64/checkpoint
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro

from ivideogpt import Episode, WorldModel
from ivideogpt.core.config import load_json
from ivideogpt.data.episode_files import save_episodes
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.worldmodel.config import ActionSpace
from ivideogpt.worldmodel.shipped import EPISODES_FILE

SHIPPED_FRAMES = 49


def publish(
    run: tyro.conf.Positional[Path], *, test: Path, out: Path, name: str = "metaworld-64", facts: Path | None = None
) -> None:
    """Write the checkpoint.

    Args:
        run: folder of the run, or a checkpoint.
        test: store of held-out episodes.
        out: folder of the checkpoint.
        name: of the model.
        facts: JSON file with metadata for the model card: data, training, results and what the model cannot do.
    """
    model = WorldModel.from_pretrained(run)
    metadata = {"license": "mit"} | ({} if facts is None else load_json(facts))
    # the whole range of the environment, not only what the recordings hold
    space = ActionSpace(names=("x", "y", "z", "gripper"), low=(-1.0,) * 4, high=(1.0,) * 4)
    model.config = replace(model.config, name=name, metadata=metadata, action_space=space)
    episodes: dict[str, Episode] = {}
    for episode in EpisodeStore(test):
        episodes.setdefault(episode.meta["task"], episode)
    chosen = [episode.window(0, SHIPPED_FRAMES) for episode in episodes.values()]
    # half as large; the figures are those of this checkpoint
    model.save_pretrained(out, dtype=torch.bfloat16, also=lambda inside: save_episodes(inside / EPISODES_FILE, chosen))
    print(f"{out}: {len(chosen)} held-out episodes")


if __name__ == "__main__":
    tyro.cli(publish)
