"""A tokenizer's batch in parts gives what the whole gives; a discriminator has a rate of its own."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.loader import ClipLoader
from ivideogpt.envs.record.moving_square import collect_squares
from ivideogpt.models.discriminator import Discriminator, DiscriminatorConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.training import tokenizer as tokenizer_module
from ivideogpt.training.tokenizer import TokenizerTrainer, TokenizerTraining, train_tokenizer
from ivideogpt.training.tokenizer_loss import TokenizerLoss, TokenizerLossConfig, last_layer_of

CONDITIONAL = TokenizerConfig(
    resolution=32,
    block_channels=(32, 32),
    layers_per_block=1,
    latent_channels=4,
    norm_groups=8,
    context_codes=8,
    dynamics_codes=8,
    patch_size=2,
    pixel_unshuffle=4,
    max_attention_resolution=8,
    dropout=0.0,
)
PLAIN = replace(CONDITIONAL, norm_groups=0, patch_size=1, conditional=False, background=True)
ADVERSARIAL = TokenizerLossConfig(perceptual_weight=0.0, discriminator_start=2)
SMALL = DiscriminatorConfig(hidden=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("squares") / "store"
    collect_squares(folder, episodes=6)
    return str(folder)


@pytest.fixture
def train(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``train(**settings)``: a few updates; each line of the log, and the tokenizer."""

    monkeypatch.setattr(tokenizer_module, "SAMPLE", 40)  # enough colours, read in no time
    monkeypatch.setattr(tokenizer_module, "START_BATCHES", 4)

    def go(**settings: object) -> tuple[list[dict[str, float]], CompressiveTokenizer]:
        config = TokenizerTraining(
            tokenizer=CONDITIONAL, steps=5, batch_size=4, horizon=4, continuous_steps=0, warmup_steps=2, log_every=0
        )
        config = replace(config, **settings)  # type: ignore[arg-type]
        spec = ClipSpec(frames=4, mode="random_after_context", horizon=6, size=32, stride=1, actions=False)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        run = Run(folder, device="cpu", log_every=0, save_every=0)
        trained = train_tokenizer(config, ClipLoader(data, spec, batch_size=config.batch_size), run)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: x for name, x in line.items() if name != "seconds"} for line in lines], trained

    return go


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(4, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def adversarial() -> tuple[CompressiveTokenizer, TokenizerLoss]:
    """In evaluation mode, in which a discriminator judges the same frames alike every time."""
    torch.manual_seed(0)
    loss = TokenizerLoss(replace(ADVERSARIAL, discriminator_start=0), None, Discriminator(SMALL))
    return CompressiveTokenizer(CONDITIONAL), loss.eval()


def trainer_of(tokenizer: CompressiveTokenizer, loss: TokenizerLoss, folder: Path, parts: int) -> TokenizerTrainer:
    """A trainer whose updates change no weight, so that the gradients can be looked at."""
    config = TokenizerTraining(
        tokenizer=CONDITIONAL,
        steps=5,
        batch_size=4,
        codes="gradient",
        continuous_steps=0,
        learning_rate=0.0,
        clip_norm=None,
        loss=loss.config,
        discriminator=SMALL,
        gradient_accumulation=parts,
    )
    return TokenizerTrainer(config, tokenizer, loss, Run(folder, device="cpu"))


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


# Parts


@pytest.mark.parametrize("shape", [PLAIN, CONDITIONAL], ids=["plain", "conditional"])
@pytest.mark.parametrize("codes", ["averages", "gradient", "frozen"])
def test_a_batch_in_parts_gives_the_figures_of_the_whole(train, shape, codes) -> None:
    settings = {"tokenizer": shape, "codes": codes, "continuous_steps": 2 if codes == "averages" else 0}
    whole, plain = train(**settings)
    parts, divided = train(**settings, gradient_accumulation=2)
    for line, again in zip(whole, parts, strict=True):
        assert line == pytest.approx(again, rel=1e-5, abs=1e-5)
    assert whole[0]["loss"] != whole[-1]["loss"]
    if codes == "averages":  # all vectors of an update moved the codes, once
        torch.testing.assert_close(divided.quantize.embedding.weight, plain.quantize.embedding.weight)


def test_gradients_of_parts_add_up_to_those_of_the_whole(tmp_path, frames) -> None:
    loss, found = TokenizerLoss(TokenizerLossConfig(perceptual_weight=0.0, discriminator_weight=0.0)), []
    for parts in (1, 4):
        torch.manual_seed(0)
        tokenizer = CompressiveTokenizer(CONDITIONAL)
        _, made = trainer_of(tokenizer, loss, tmp_path, parts).generator_step(frames, 0)
        assert made.future.shape == frames[:, 2:].shape and not made.future.requires_grad
        found.append({**gradients(tokenizer), **{name: value for name, value in vars(made).items()}})
    torch.testing.assert_close(found[1], found[0])


def test_each_part_has_an_adaptive_weight_of_its_own(tmp_path, frames, adversarial) -> None:
    tokenizer, loss = adversarial
    frames[2:] *= 0.2  # the parts differ
    layer, apart = last_layer_of(tokenizer), []
    for part in frames.chunk(2):
        made = tokenizer(part)
        apart.append(loss.generator(made, part[:, :2], part[:, 2:], step=0, last_layer=layer).adaptive_weight)
    figures, _ = trainer_of(tokenizer, loss, tmp_path, 2).generator_step(frames, 0)
    assert apart[0].item() != pytest.approx(apart[1].item(), rel=0.01)
    torch.testing.assert_close(figures["adaptive_weight"], torch.stack(apart).mean())


def test_gradients_of_a_discriminator_add_up_to_those_of_the_whole(tmp_path, frames, adversarial) -> None:
    tokenizer, loss = adversarial
    with torch.no_grad():
        made, found = tokenizer(frames), []
    for parts in (1, 4):
        copy = deepcopy(loss)
        figures = trainer_of(tokenizer, copy, tmp_path, parts).discriminator_step(frames, made, 0)
        found.append({**gradients(copy.network), **figures})
    assert {"discriminator_loss", "discriminator_real_logits", "logits.weight"} <= found[0].keys()
    torch.testing.assert_close(found[1], found[0])


def test_all_parts_of_the_tokenizer_come_before_those_of_the_discriminator(train, monkeypatch) -> None:
    seen = []
    for name in ("generator", "discriminator"):
        method = getattr(TokenizerLoss, name)

        def watch(self, *given, name=name, method=method, **options):
            seen.append(name)
            return method(self, *given, **options)

        monkeypatch.setattr(TokenizerLoss, name, watch)
    loss = replace(ADVERSARIAL, discriminator_start=1)
    train(steps=2, codes="gradient", loss=loss, discriminator=SMALL, gradient_accumulation=2)
    assert seen == ["generator"] * 2 + ["generator"] * 2 + ["discriminator"] * 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gradient_accumulation": 3}, "gradient_accumulation is 3 and batch_size 4;"),
        ({"gradient_accumulation": 0}, "gradient_accumulation is 0; expected at least 1"),
        ({"discriminator_learning_rate": -1.0}, "discriminator_learning_rate is -1.0; expected at least 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(train, changed, said) -> None:
    with pytest.raises(UserError, match=said):
        train(**changed)


# The rate of the discriminator


def rates(lines: list[dict[str, float]]) -> list[float]:
    return [line["discriminator_learning_rate"] for line in lines if "discriminator_learning_rate" in line]


def test_a_discriminator_learns_at_its_own_rate_which_warms_up_when_it_joins(train) -> None:
    settings = {"codes": "gradient", "loss": ADVERSARIAL, "discriminator": SMALL, "learning_rate": 6e-4}
    lines, _ = train(**settings, schedule="cosine", discriminator_learning_rate=3e-3, discriminator_schedule="constant")
    assert rates(lines) == pytest.approx([1e-3, 2e-3, 3e-3])
    assert [line["learning_rate"] for line in lines][2] == pytest.approx(6e-4)  # at its peak already
    lines, _ = train(**settings, schedule="constant")
    assert rates(lines) == pytest.approx([2e-4, 4e-4, 6e-4])
    lines, _ = train(**settings, steps=7, schedule="constant", warmup_steps=0, discriminator_schedule="cosine")
    assert rates(lines) == sorted(rates(lines), reverse=True) and rates(lines)[0] == 6e-4 > rates(lines)[-1] > 0


def test_a_discriminator_at_rate_0_stays_as_it_is(train) -> None:
    settings = {"codes": "gradient", "loss": ADVERSARIAL, "discriminator": SMALL, "learning_rate": 1e-3}
    still, _ = train(**settings, discriminator_learning_rate=0.0)
    moved, _ = train(**settings)
    same = [
        line["discriminator_loss"] == again["discriminator_loss"]
        for line, again in zip(still, moved, strict=True)
        if "discriminator_loss" in line
    ]
    assert same == [True, False, False]
