"""A LeRobot dataset as a source of clips: the clips of its converted store."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.convert import lerobot
from ivideogpt.data.lerobot_episodes import LeRobotEpisodes, open_source
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.mixtures import MixtureSource, absolute_path
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.store.writer import convert_to_store

pytest.importorskip("pyarrow")


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "convert"))
    return importlib.import_module("test_lerobot")


@pytest.fixture(params=["v2.1", "v3.0"])
def sources(request: pytest.FixtureRequest, make: ModuleType, tmp_path: Path) -> tuple[str, str]:
    """The dataset, and the store that its conversion makes."""
    root = tmp_path / "pick"
    (make.write_v2 if request.param == "v2.1" else make.write_v3)(root)
    convert_to_store(lerobot.tasks(root), tmp_path / "store", facts=lerobot.facts(root), workers=0)
    return f"lerobot:{root}", str(tmp_path / "store")


@pytest.mark.parametrize("mode", ["contiguous", "random_order"])
def test_clips_are_those_of_the_converted_store(sources: tuple[str, str], mode: str) -> None:
    spec = ClipSpec(frames=6, stride=1, mode=mode, context_frames=2)
    direct, converted = (
        ClipLoader(MixtureSource(path=path, split=None), spec, batch_size=4, seed=3) for path in sources
    )
    for _ in range(3):
        ours, theirs = next(iter(direct)), next(iter(converted))
        assert (ours.frames == theirs.frames).all() and (ours.frame_index == theirs.frame_index).all()
        if theirs.actions is not None:
            assert (ours.actions == theirs.actions).all() and (ours.action_mask == theirs.action_mask).all()


def test_names_numbers_and_statistics_are_those_of_the_store(sources: tuple[str, str]) -> None:
    direct, converted = open_source(sources[0]), EpisodeStore(sources[1])
    assert direct.keys == converted.keys and direct.splits == converted.splits
    np.testing.assert_array_equal(direct.lengths, converted.lengths)
    ours, theirs = direct.facts, converted.facts
    assert ours.dataset.name == theirs.dataset.name and ours.frames == theirs.frames
    assert (ours.actions.count, ours.actions.fields) == (theirs.actions.count, theirs.actions.fields)
    for name in ("low", "high", "mean", "std"):
        np.testing.assert_allclose(getattr(ours.actions, name), getattr(theirs.actions, name), rtol=1e-9)
    for index in range(len(direct)):
        wanted = ["actions", "rewards", "terminated", "state"]
        ours, theirs = direct.arrays(index, wanted), converted.arrays(index, wanted)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_camera_is_chosen_by_the_end_of_its_name(sources: tuple[str, str]) -> None:
    direct, converted = open_source(sources[0]), EpisodeStore(sources[1])
    frames = direct.arrays(1, (), [5, 2, 2], camera="wrist")["frames"]
    np.testing.assert_array_equal(frames, converted.camera(1, "observation.images.wrist", [5, 2, 2]))
    with pytest.raises(UserError, match="has no camera 'left'; it has observation.images.top"):
        direct.arrays(1, (), [0], camera="left")


def test_worker_processes_read_the_same(sources: tuple[str, str]) -> None:
    source, spec = MixtureSource(path=sources[0], split=None), ClipSpec(frames=4, stride=1)
    alone, helped = (ClipLoader(source, spec, batch_size=2, workers=workers) for workers in (0, 1))
    assert (next(iter(alone)).frames == next(iter(helped)).frames).all()


def test_paths_become_absolute_and_hub_ids_stay(
    sources: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_path("lerobot:pick") == f"lerobot:{tmp_path}/pick"
    assert absolute_path("lerobot:owner/name") == "lerobot:owner/name"


def test_a_missing_dataset_is_one_sentence() -> None:
    with pytest.raises(UserError, match="there is no folder absent; give one with a LeRobot dataset, or a Hub id"):
        LeRobotEpisodes("lerobot:absent")
