"""The three loops on tiny generated data: they learn, stop and go on as if they had never stopped."""

import functools
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ivideogpt.core.errors import Stopped, UserError
from ivideogpt.core.run import Run
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.mixture_reader import as_mixture
from ivideogpt.data.tokens import TokenLoader, TokenStore
from ivideogpt.envs.record.moving_square import collect_squares
from ivideogpt.models.discriminator import DiscriminatorConfig
from ivideogpt.models.dynamics import Heads, HeadsConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.training.token_batches import LiveTokens, StoredTokens, TokenBatch
from ivideogpt.training.token_forecast import ForecastTraining, train_forecast
from ivideogpt.training.tokenize_store import tokenize_stores
from ivideogpt.training.tokenizer import TokenizerTraining, train_tokenizer
from ivideogpt.training.tokenizer_loss import RareColours, TokenizerLossConfig
from ivideogpt.training.transformer import TransformerTraining, partly_imagined, train_transformer
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel

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
CONDITIONAL = replace(
    PLAIN, block_channels=(32, 32), norm_groups=8, patch_size=2, conditional=True, background=False, dropout=0.0
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of a square that moves right by the action, 1 or 2 px a frame."""
    folder = tmp_path_factory.mktemp("squares") / "store"
    collect_squares(folder, episodes=6)
    return str(folder)


def frames_of(data: str, config: TokenizerTraining) -> ClipLoader:
    """What a tokenizer trains on."""
    spec = ClipSpec(
        frames=2 + config.future_frames, mode="random_after_context", horizon=2 + config.horizon, size=16, stride=1
    )
    return ClipLoader(data, replace(spec, actions=False), batch_size=config.batch_size)


def tokens_of(model: WorldModel, data: str, frames: int = 5, size: int = 2, seed: int = 0) -> LiveTokens:
    """What a transformer trains on."""
    spec = ClipSpec(frames=frames, size=16, stride=1, rewards=True)
    return LiveTokens(model, ClipLoader(data, spec, batch_size=size, seed=seed))


def one_batch(model: WorldModel, data: str, size: int) -> TokenBatch:
    return next(iter(tokens_of(model, data, size=size)))


def tokenizer_training(shape: TokenizerConfig, **changes: object) -> TokenizerTraining:
    config = TokenizerTraining(
        tokenizer=shape, steps=4, batch_size=2, horizon=4, continuous_steps=2, log_every=0, save_every=2, warmup_steps=1
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def new_model(shape: TokenizerConfig) -> WorldModel:
    torch.manual_seed(0)
    grid = 0 if shape.conditional else 4
    heads = HeadsConfig(action_dim=1, reward=True, forecast_grid=grid, forecast_width=16, forecast_blocks=1)
    config = WorldModelConfig(context_frames=2, clip_frames=5, heads=heads, action_mean=(1.5,), action_std=(0.5,))
    tokenizer = CompressiveTokenizer(shape).eval()
    transformer = Transformer(
        TransformerConfig(
            vocab_size=tokenizer.layout.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_layers=1,
            num_heads=2,
            max_positions=tokenizer.layout.length(2, 3),
        )
    )
    return WorldModel(config, tokenizer, transformer, Heads(heads, 32, shape.dynamics_codes))


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.mark.parametrize("shape", [PLAIN, CONDITIONAL], ids=["plain", "conditional"])
def test_a_stopped_tokenizer_run_goes_on_as_if_it_had_never_stopped(
    shape: TokenizerConfig, data: str, tmp_path: Path
) -> None:
    config = tokenizer_training(shape)
    straight = train_tokenizer(config, frames_of(data, config), Run(tmp_path / "a", save_every=2, log_every=0))
    train_tokenizer(config, frames_of(data, config), Run(tmp_path / "b", save_every=2, log_every=0), until=2)
    resumed = train_tokenizer(config, frames_of(data, config), Run(tmp_path / "b", save_every=2, log_every=0))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    saved = CompressiveTokenizer.from_pretrained(tmp_path / "b" / "checkpoints" / "step-00000004" / "tokenizer")
    assert torch.equal(saved.quantize.embedding.weight, straight.quantize.embedding.weight)


def test_a_tokenizer_learns_to_draw(data: str, tmp_path: Path) -> None:
    config = tokenizer_training(PLAIN, steps=60, batch_size=4, continuous_steps=30, learning_rate=3e-3, save_every=60)
    train_tokenizer(config, frames_of(data, config), Run(tmp_path, save_every=60, log_every=0))
    found = losses(tmp_path)
    assert found[-1][1] < 0.5 * found[0][1]


@pytest.mark.slow
def test_a_compiled_tokenizer_has_the_same_losses(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced and differentiated as for any backend; what the default one generates takes a minute to build.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    config = tokenizer_training(PLAIN, steps=3)  # two without codes, one with
    for name, compile in (("a", False), ("b", True)):
        run = Run(tmp_path / name, save_every=0, log_every=0)
        train_tokenizer(replace(config, compile=compile), frames_of(data, config), run)
    plain, compiled = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert [loss for _, loss in compiled] == pytest.approx([loss for _, loss in plain], rel=1e-3)


@pytest.mark.parametrize("shape", [PLAIN, CONDITIONAL], ids=["plain", "conditional"])
def test_a_stopped_transformer_run_goes_on_as_if_it_had_never_stopped(
    shape: TokenizerConfig, data: str, tmp_path: Path
) -> None:
    config = TransformerTraining(steps=4, batch_size=2, clip_frames=5, warmup_steps=1)
    config = config if shape.conditional else replace(config, imagined_share=0.5)

    def train(name: str, until: int | None = None) -> WorldModel:
        model, run = new_model(shape), Run(tmp_path / name, save_every=2, log_every=0)
        return train_transformer(config, model, tokens_of(model, data), run, until=until)

    straight = train("a")
    train("b", until=2)
    resumed = train("b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    saved = WorldModel.from_pretrained(tmp_path / "b")  # a run folder is a checkpoint: its newest
    assert torch.equal(saved.transformer.embed.weight, straight.transformer.embed.weight)


def test_a_transformer_learns_and_leaves_the_tokenizer_as_it_is(data: str, tmp_path: Path) -> None:
    model = new_model(PLAIN)
    before = {name: value.clone() for name, value in model.tokenizer.state_dict().items()}
    config = TransformerTraining(steps=40, batch_size=4, clip_frames=5, learning_rate=3e-3, warmup_steps=1)
    train_transformer(config, model, tokens_of(model, data, size=4), Run(tmp_path, save_every=40, log_every=0))
    found = losses(tmp_path)
    assert found[-1][1] < 0.7 * found[0][1]
    assert all(torch.equal(value, before[name]) for name, value in model.tokenizer.state_dict().items())


@pytest.mark.parametrize("shape", [PLAIN, CONDITIONAL], ids=["plain", "conditional"])
def test_a_transformer_trains_on_kept_tokens_and_goes_on_where_it_stopped(
    shape: TokenizerConfig, data: str, tmp_path: Path
) -> None:
    model = new_model(shape)
    model.tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenize_stores(tmp_path / "tokenizer", as_mixture(data), tmp_path / "tokens", frames=5, hop=1, stride=1, workers=0)
    config = TransformerTraining(steps=4, batch_size=2, clip_frames=5, warmup_steps=1)

    def train(name: str, until: int | None = None) -> None:
        model, run = new_model(shape), Run(tmp_path / name, save_every=2, log_every=0)
        stored = TokenLoader(TokenStore(tmp_path / "tokens"), batch_size=2, frames=5)
        train_transformer(config, model, StoredTokens(model, stored), run, until=until)

    train("a")
    train("b", until=2)
    train("b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and len(losses(tmp_path / "a")) == 4


def test_tokens_of_another_tokenizer_are_refused(data: str, tmp_path: Path) -> None:
    model = new_model(PLAIN)
    model.tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenize_stores(tmp_path / "tokenizer", as_mixture(data), tmp_path / "tokens", frames=5, stride=1, workers=0)
    with torch.no_grad():
        model.tokenizer.quantize.embedding.weight[0, 0] += 1
    with pytest.raises(UserError, match="tokens of another tokenizer"):
        StoredTokens(model, TokenLoader(TokenStore(tmp_path / "tokens"), batch_size=2, frames=5))


def test_actions_are_in_model_units_and_those_of_the_transitions_to_each_future_frame(data: str) -> None:
    model = new_model(PLAIN)
    batches = tokens_of(model, data, size=3)
    clip, batch = batches.loader.clips(range(3)), next(iter(batches))
    assert torch.equal(batch.ids, model.tokenizer.tokenize(clip.frames)[0])
    assert clip.actions is not None and clip.rewards is not None and batch.actions is not None
    assert torch.allclose(batch.actions, (clip.actions[:, 1:-1] - 1.5) / 0.5)
    assert batch.rewards is not None and torch.equal(batch.rewards, clip.rewards[:, 1:-1])


def test_a_model_with_other_actions_than_the_data_is_refused(data: str) -> None:
    model = new_model(PLAIN)
    with pytest.raises(UserError, match="actions of 0 numbers; this model needs 1"):
        LiveTokens(model, ClipLoader(data, ClipSpec(frames=5, size=16, actions=False), batch_size=1))


@pytest.mark.parametrize("run", [1.0, 3.0])
def test_partly_imagined_clips_hold_frames_that_the_forecast_guesses_from_what_is_read(data: str, run: float) -> None:
    model = new_model(PLAIN)
    layout, generator = model.layout, torch.Generator().manual_seed(0)
    ids, actions, *_ = next(iter(tokens_of(model, data, frames=8, size=40)))
    inputs = partly_imagined(model, ids, actions, 0.4, run, generator)
    assert inputs is not None and partly_imagined(model, ids, actions, 0.0, run, generator) is None
    context, future = layout.split(ids, 2)
    seen, read = layout.split(inputs, 2)
    assert torch.equal(seen, context) and torch.equal(read[:, -1], future[:, -1])
    assert actions is not None
    changed = []
    for frame in range(6):
        history = torch.cat([context, read], dim=1)[:, frame : frame + 2]
        guess = model.dynamics.forecast(history, actions[:, frame])
        assert guess is not None
        logits = model.dynamics.forecast_logits(guess, layout.dynamics_ids)
        behind = logits.max(dim=-1).values - logits.gather(2, read[:, frame, :, None])[..., 0]
        as_true = (read[:, frame] == future[:, frame]).all(1)
        assert (as_true | (behind < 1e-4).all(1)).all()  # rounding may decide between equals
        changed.append(~as_true)
    imagined = torch.stack(changed, dim=1)
    assert 0.2 < imagined.float().mean() < 0.5
    again = (imagined[:, 1:] & imagined[:, :-1]).sum() / imagined[:, :-1].sum()
    assert again < 0.1 if run == 1.0 else 0.4 < again < 0.9  # a guess may be right


@pytest.mark.parametrize(
    ("share", "run", "said"),
    [
        (0.6, 1.0, "expected at most 0.5, or a longer imagined_run"),
        (0.9, 3.0, "expected at most 0.75"),
        (-0.1, 1.0, "imagined_share is -0.1; expected at least 0"),
        (0.5, 0.5, "imagined_run is 0.5; expected at least 1"),
    ],
)
def test_shares_that_cannot_be_are_refused(share: float, run: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        TransformerTraining(imagined_share=share, imagined_run=run)


def test_the_largest_share_that_is_allowed_is_reached(data: str) -> None:
    model = new_model(PLAIN)
    ids, actions, *_ = next(iter(tokens_of(model, data, frames=8, size=40)))
    drawn = torch.Generator().manual_seed(0)
    inputs = partly_imagined(model, ids, actions, 0.75, 3.0, drawn)
    _, future = model.layout.split(ids, 2)
    _, read = model.layout.split(inputs, 2)
    assert (read != future).any(dim=-1)[:, 1:-1].float().mean() > 0.6, "a guess may be right"


def test_frames_that_are_read_wrong_are_no_targets(data: str) -> None:
    model = new_model(PLAIN)
    start, length = model.layout.context_length(2), model.layout.frame_length
    ids, actions, *_ = one_batch(model, data, 2)
    inputs = ids.clone()
    inputs[:, start + 1 : start + length] = model.layout.dynamics_ids.start
    other = ids.clone()
    other[:, start + 1 : start + length] = model.layout.dynamics_ids.start + 1
    first, second = (model.dynamics.losses(x, actions, inputs=inputs) for x in (ids, other))
    assert first.tokens == second.tokens and first.accuracy == second.accuracy
    other[:, -1] = model.layout.dynamics_ids.start
    assert model.dynamics.losses(other, actions, inputs=inputs).tokens != first.tokens


@pytest.mark.parametrize("unroll", [0, 2])
def test_a_forecast_learns_alone_and_a_stopped_run_goes_on(data: str, tmp_path: Path, unroll: int) -> None:
    config = ForecastTraining(steps=30, batch_size=16, unroll=unroll, learning_rate=3e-3, warmup_steps=1)
    model = new_model(PLAIN)
    layers = [weight.clone() for weight in model.transformer.layers.parameters()]

    def train(name: str, model: WorldModel, until: int | None = None) -> WorldModel:
        batches = tokens_of(model, data, frames=config.clip_frames(2), size=16)
        return train_forecast(config, model, batches, Run(tmp_path / name, save_every=15, log_every=1), until=until)

    straight = train("a", model)
    train("b", new_model(PLAIN), until=15)
    resumed = train("b", new_model(PLAIN))
    found = losses(tmp_path / "a")
    assert found == losses(tmp_path / "b") and found[-1][1] < 0.7 * found[0][1]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert all(torch.equal(a, b) for a, b in zip(layers, straight.transformer.layers.parameters(), strict=True))


def test_pixels_of_rare_colours_count_more(data: str) -> None:
    frames = frames_of(data, tokenizer_training(PLAIN)).clips(range(50)).frames.flatten(0, 1)
    weigh = RareColours(frames, 25.0)
    white = torch.ones(1, 1, 3, 16, 16)
    red = torch.tensor([200, 30, 30])[:, None, None].float().expand(1, 1, 3, 16, 16) / 255
    assert weigh(white).shape == (1, 1, 1, 16, 16) and weigh(white).unique().tolist() == [1.0]
    assert 2 < weigh(red).min() <= 25


OFFICIAL = TokenizerLossConfig(discriminator_start=2)


@pytest.mark.parametrize("codes", ["gradient", "frozen", "averages"])
def test_a_stopped_official_run_goes_on_as_if_it_had_never_stopped(data: str, tmp_path: Path, codes: str) -> None:
    pytest.importorskip("stlpips_pytorch", reason="the perceptual distance needs the extra evaluation")
    shape = replace(CONDITIONAL, resolution=32, pixel_unshuffle=4)
    config = tokenizer_training(
        shape,
        codes=codes,
        continuous_steps=0,
        loss=OFFICIAL,
        rare_colour_weight=1.0,
        perceptual="alex",
        discriminator=DiscriminatorConfig(hidden=16),
        average_decay=0.9,
        schedule="constant",
    )
    spec = ClipSpec(frames=4, mode="random_after_context", horizon=6, size=32, stride=1, actions=False)

    def train(name: str, until: int | None = None) -> CompressiveTokenizer:
        run = Run(tmp_path / name, save_every=2, log_every=0)
        return train_tokenizer(config, ClipLoader(data, spec, batch_size=2), run, until=until)

    straight = train("a")
    train("b", until=3)
    resumed = train("b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert ["discriminator_loss" in line for line in lines] == [False, False, True, True]
    assert all({"future_perceptual", "context_commitment", "psnr"} <= line.keys() for line in lines)
    assert "dynamics_usage" in lines[-1] and "dynamics_usage" not in lines[0]
    first = CompressiveTokenizer(shape) if codes != "frozen" else None
    if first is None:  # the codes are those that it began with
        torch.manual_seed(0)
        start = CompressiveTokenizer(shape)
        assert torch.equal(straight.quantize.embedding.weight, start.quantize.embedding.weight)


def test_settings_of_codes_that_exclude_each_other_are_refused(data: str, tmp_path: Path) -> None:
    config = tokenizer_training(PLAIN, codes="gradient")
    with pytest.raises(UserError, match="set continuous_steps to 0"):
        train_tokenizer(config, frames_of(data, config), Run(tmp_path, log_every=0))


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(data: str, tmp_path: Path) -> None:
    config = tokenizer_training(PLAIN, steps=6)

    class Terminating(ClipLoader):
        def __iter__(self):
            for number, clip in enumerate(super().__iter__()):
                if number == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield clip

    terminated = Terminating(data, frames_of(data, config).mixture.spec, batch_size=config.batch_size)
    with pytest.raises(Stopped, match="stopped after update 3 of 6"):
        train_tokenizer(config, terminated, Run(tmp_path / "a", save_every=0, log_every=0))
    train_tokenizer(config, frames_of(data, config), Run(tmp_path / "a", save_every=0, log_every=0))
    train_tokenizer(config, frames_of(data, config), Run(tmp_path / "b", save_every=0, log_every=0))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
