"""Kept tokens are those that the tokenizer gives, whatever makes and reads them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.mixture_reader import as_mixture
from ivideogpt.data.mixtures import Mixture, MixtureSource
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.data.tokens import TokenLoader, TokenStore
from ivideogpt.envs.record.moving_square import collect_squares
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.training.tokenize_store import tokenize_stores

PLAIN = TokenizerConfig(
    resolution=16,
    block_channels=(8, 8),
    layers_per_block=1,
    latent_channels=4,
    norm_groups=0,
    context_codes=8,
    dynamics_codes=8,
    patch_size=1,
    pixel_unshuffle=2,
    conditional=False,
    background=True,
)
CONDITIONAL = replace(PLAIN, block_channels=(32, 32), norm_groups=8, patch_size=2, conditional=True, background=False)
SHAPES = {"plain": PLAIN, "conditional": CONDITIONAL}
# Episodes of these many frames, two a shard.
LENGTHS = (9, 4, 12, 7, 2)


def drawn(numbers: tuple[int, ...]):
    for number in numbers:
        random = np.random.default_rng(number)
        frames = random.integers(0, 256, (LENGTHS[number], 16, 16, 3), dtype=np.uint8)
        rows = random.normal(size=(LENGTHS[number], 2)).astype(np.float32)
        rows[-1] = 0
        yield SourceEpisode(key=f"e{number}", cameras={"image": frames}, actions=rows, rewards=rows[:, 0])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and a tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("tokenizing")
    tasks = [ShardTask(f"s{k}", partial(drawn, numbers)) for k, numbers in enumerate(((0, 1), (2, 3), (4,)))]
    convert_to_store(tasks, folder / "store", facts=StoreFacts(name="noise"), workers=0)
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        CompressiveTokenizer(shape).save_pretrained(folder / name)
    return folder


def made(place: Path, kind: str, out: Path, **options) -> TokenStore:
    settings = {"frames": 5, "stride": 1, "hop": 2, "workers": 0} | options
    tokenize_stores(place / kind, as_mixture(str(place / "store")), out, **settings)
    return TokenStore(out)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", SHAPES)
def test_every_clip_is_what_the_tokenizer_says_of_its_frames(place, tmp_path, kind, stride) -> None:
    tokenizer, store = CompressiveTokenizer.from_pretrained(place / kind), EpisodeStore(place / "store")
    tokens = made(place, kind, tmp_path / "tokens", stride=stride)
    known = {}
    for index in range(len(store)):
        episode = store[index]
        used = max(1, min(stride, len(episode) // 5))
        for start in range(max(len(episode) - 4 * used, 1)):
            rows = np.minimum(start + used * np.arange(5), len(episode) - 1)
            frames = torch.from_numpy(episode.frames[rows]).permute(0, 3, 1, 2)[None].float() / 255
            leads = np.append(start + used * np.arange(1, 5) < len(episode), False)
            wanted = np.where(leads[:, None], episode.actions[rows], 0)
            ids = tuple(tokenizer.tokenize(frames)[0][0].tolist())
            known[ids] = (wanted, np.where(leads, episode.rewards[rows], 0))
    found = set()
    for take in range(len(tokens)):
        for start in range(int(tokens.length[take]) - 4 if tokens.facts.whole else 1):
            clip = tokens.clip(take, start, 5)
            ids = tuple(tokenizer.layout.join(clip.context, clip.dynamics)[0].tolist())
            actions, rewards = known[ids]  # no clip that is none
            assert np.array_equal(clip.actions[0], actions) and np.array_equal(clip.rewards[0], rewards)
            assert np.array_equal(clip.action_mask[0].any(-1), actions.any(-1))
            found.add(ids)
    assert found == set(known) if kind == "plain" else len(found) > len(store)


def test_a_shorter_clip_is_the_beginning_of_a_kept_one(place, tmp_path) -> None:
    tokens = made(place, "conditional", tmp_path / "tokens")
    whole, short = tokens.clip(1, 0, 5), tokens.clip(1, 0, 3)
    assert torch.equal(short.dynamics, whole.dynamics[:, :1]) and torch.equal(short.context, whole.context)
    assert torch.equal(short.actions[:, :2], whole.actions[:, :2]) and not short.actions[:, 2].any()
    with pytest.raises(UserError, match="no clip of 6 frames"):
        tokens.clip(1, 0, 6)


def test_a_goal_stands_before_its_clip(place, tmp_path) -> None:
    tokenizer = CompressiveTokenizer.from_pretrained(place / "plain")
    tokens, episode = made(place, "plain", tmp_path / "tokens", goal_first=True), EpisodeStore(place / "store")[0]
    assert not tokens.facts.whole
    clip = tokens.clip(0, 0, 5)
    frames = torch.from_numpy(episode.frames[[3, 0, 1, 2, 3]]).permute(0, 3, 1, 2)[None].float() / 255
    assert torch.equal(tokenizer.layout.join(clip.context, clip.dynamics), tokenizer.tokenize(frames)[0])
    assert not clip.action_mask[0, 0].any() and clip.action_mask[0, 1].all()
    with pytest.raises(UserError, match="begin with a goal and have 5"):
        TokenLoader(tokens, batch_size=1, frames=4)


def test_a_stopped_command_goes_on_and_finished_shards_stay(place, tmp_path) -> None:
    out = tmp_path / "tokens"
    before = made(place, "plain", out).clip(0, 0, 5)
    kept, lost = out / "shards" / "000-s0.safetensors", out / "shards" / "000-s1.safetensors"
    written, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    (out / "index.safetensors").unlink()
    with pytest.raises(UserError, match="is not finished; give the same"):
        TokenStore(out)
    again = made(place, "plain", out)
    assert kept.stat().st_mtime_ns == written and lost.read_bytes() == content
    assert torch.equal(again.clip(0, 0, 5).context, before.context)


def test_processes_write_the_same_files(place, tmp_path) -> None:
    made(place, "conditional", tmp_path / "here")
    made(place, "conditional", tmp_path / "there", workers=2)
    files = sorted(path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("[!.]*.*"))
    assert len(files) == 5
    assert all((tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes() for file in files)


@pytest.mark.parametrize(("changed", "said"), [({"frames": 6}, "another frames"), ({"hop": 3}, "another hop")])
def test_a_folder_holds_the_tokens_of_one_choice(place, tmp_path, changed, said) -> None:
    made(place, "conditional", tmp_path / "tokens")
    with pytest.raises(UserError, match=said):
        made(place, "conditional", tmp_path / "tokens", **changed)


def test_a_folder_that_holds_something_else_is_left_alone(place, tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="something else than tokens"):
        made(place, "plain", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="holds no tokens"):
        TokenStore(tmp_path)


def test_a_damaged_file_is_named(place, tmp_path) -> None:
    tokens = made(place, "plain", tmp_path / "tokens")
    shard = tmp_path / "tokens" / "shards" / "000-s0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UserError, match="tokens/shards/000-s0.safetensors has .*it was cut off"):
        tokens.clip(0, 0, 5)


def test_clips_are_a_function_of_seed_and_number_on_any_number_of_ranks(place, tmp_path) -> None:
    tokens = made(place, "plain", tmp_path / "tokens")
    one = TokenLoader(tokens, batch_size=4, frames=5, seed=3)
    two = [TokenLoader(tokens, batch_size=2, frames=5, seed=3, rank=rank, ranks=2) for rank in range(2)]
    stream = iter(one)
    whole = [next(stream).context for _ in range(3)]
    for step, batch in enumerate(whole):
        parts = [loader.clips(loader.numbers(step)).context for loader in two]
        assert torch.equal(batch[0::2], parts[0]) and torch.equal(batch[1::2], parts[1])
    again = TokenLoader(tokens, batch_size=4, frames=5)
    again.load_state_dict(json.loads(json.dumps(one.state_dict() | {"step": 2})))
    assert torch.equal(next(iter(again)).context, whole[2])
    assert not torch.equal(TokenLoader(tokens, batch_size=4, frames=5, seed=4).clips(range(4)).context, whole[0])


def test_every_episode_is_as_likely_as_any_other_and_so_are_its_windows(place, tmp_path) -> None:
    tokens = made(place, "plain", tmp_path / "tokens")
    loader = TokenLoader(tokens, batch_size=1, frames=5)
    rooms = {take: length - 4 for take, length in enumerate(tokens.length.tolist())}
    counts = dict.fromkeys(((take, start) for take, room in rooms.items() for start in range(room)), 0)
    for number in range(3000):
        counts[loader._place(number)] += 1  # and no other window
    expected = {(take, start): 3000 / len(tokens) / rooms[take] for take, start in counts}
    chi_square = sum((counts[key] - expected[key]) ** 2 / expected[key] for key in counts)
    assert chi_square < 2.5 * len(counts)


def test_sources_come_as_often_as_their_weights_say(place, tmp_path) -> None:
    collect_squares(tmp_path / "squares", episodes=2)
    sources = (
        MixtureSource(path=str(place / "store"), weight=3),
        MixtureSource(path=str(tmp_path / "squares"), weight=1),
    )
    tokenize_stores(place / "plain", Mixture(sources=sources), tmp_path / "tokens", frames=5, stride=1, workers=0)
    tokens = TokenStore(tmp_path / "tokens")
    assert tokens.facts.action_width == 2 and tokens.facts.embodiments == ("noise", "squares")
    loader = TokenLoader(tokens, batch_size=1, frames=5)
    first = [tokens.source[loader._place(number)[0]] == 0 for number in range(1000)]
    assert 700 < sum(first) < 800
    clip = tokens.clip(int(np.flatnonzero(tokens.source == 1)[0]), 0, 5)
    assert clip.action_mask[0, 0].tolist() == [True, False]
