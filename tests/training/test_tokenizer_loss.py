"""The official objective of the tokenizer, its parts on known numbers, and what is kept beside it while training."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ivideogpt import UserError
from ivideogpt.core.config import from_dict, to_dict
from ivideogpt.core.training_state import flatten, unflatten
from ivideogpt.models.discriminator import Discriminator, DiscriminatorConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer, Reconstruction
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.training.codebooks import CodebookUsage, freeze_codebooks
from ivideogpt.training.tokenizer_loss import TokenizerLoss, TokenizerLossConfig, frame_weights, last_layer_of
from ivideogpt.training.weight_average import ExponentialAverage

TINY = TokenizerConfig(
    resolution=16,
    block_channels=(32, 32),
    layers_per_block=1,
    latent_channels=4,
    norm_groups=8,
    context_codes=16,
    dynamics_codes=12,
    patch_size=2,
    max_attention_resolution=8,
    dropout=0.0,
)
PLAIN = replace(TINY, norm_groups=0, dynamics_codes=16, patch_size=1, conditional=False)


def squared(found, true):
    """Stands in for a perceptual distance: one number a frame."""
    return (found - true).square().mean((1, 2, 3))


class Edges(nn.Module):
    """A perceptual distance with frozen weights: random filters, as a network has."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.filters = nn.Conv2d(3, 8, 3).requires_grad_(False)

    def forward(self, found, true):
        return (self.filters(found).relu() - self.filters(true).relu()).abs().mean((1, 2, 3))


class Constant(nn.Module):
    """A discriminator that gives the logits it was given, one a frame."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, frames):
        assert len(frames) == len(self.logits)
        return self.logits[:, None, None, None] + 0 * frames.sum()


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def reconstruction(context, future, context_loss=0.0, dynamics_loss=0.0):
    nothing = torch.zeros(0)
    losses = torch.tensor(context_loss), torch.tensor(dynamics_loss)
    return Reconstruction(context, future, *losses, nothing, nothing, nothing, nothing)


@pytest.fixture(scope="module")
def frames():
    """Coloured squares that move: two context and two future frames of four clips."""
    made = torch.full((4, 4, 3, 16, 16), 0.9)
    for clip in range(4):
        for t in range(4):
            x, y = 2 * t + clip, 3 * clip
            made[clip, t, :, y : y + 5, x : x + 5] = torch.tensor([0.1, 0.2 * clip, 0.7])[:, None, None]
    return made


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return CompressiveTokenizer(TINY)


@pytest.fixture
def discriminator():
    torch.manual_seed(1)
    return Discriminator(DiscriminatorConfig(hidden=32, depth=3))


def generator(loss, tokenizer, frames, step=0, **options):
    found = tokenizer(frames)
    return loss.generator(
        found, frames[:, :2], frames[:, 2:], step=step, last_layer=last_layer_of(tokenizer), **options
    )


# The parts


def test_the_total_is_the_weighted_sum_of_the_parts():
    context, future = noise(2, 1, 3, 8, 8), noise(2, 3, 3, 8, 8, seed=1)
    found = reconstruction(context + 0.1, future - 0.2, context_loss=0.3, dynamics_loss=0.5)
    config = TokenizerLossConfig(l1_weight=2.0, l2_weight=3.0, perceptual_weight=5.0, commitment_weight=7.0)
    losses = TokenizerLoss(config, squared).generator(
        found, context, future, step=0, last_layer=torch.zeros(()), quantized=True
    )
    parts = {name: value.item() for name, value in losses.figures().items()}
    expected = {
        "context_l1": 0.1,
        "future_l1": 0.2,
        "context_l2": 0.01,
        "future_l2": 0.04,
        "context_perceptual": 0.01,
        "future_perceptual": 0.04,
        "context_commitment": 0.3,
        "dynamics_commitment": 0.5,
    }
    assert parts == pytest.approx(expected, abs=1e-6)
    assert losses.total.item() == pytest.approx(2 * 0.3 + 3 * 0.05 + 5 * 0.05 + 7 * 0.8, abs=1e-5)


def test_the_defaults_are_the_official_objective():
    context, future = noise(2, 1, 3, 8, 8), noise(2, 3, 3, 8, 8, seed=1)
    found = reconstruction(context + 0.1, future - 0.2, context_loss=0.3, dynamics_loss=0.5)
    loss = TokenizerLoss(TokenizerLossConfig(), squared)
    losses = loss.generator(found, context, future, step=0, last_layer=torch.zeros(()))
    assert losses.total.item() == pytest.approx(0.1 + 0.2 + 0.01 + 0.04 + 0.3 + 0.5, abs=1e-5)
    assert losses.generator is None and losses.adaptive_weight is None


def test_balanced_counts_context_and_future_by_their_share_of_frames():
    assert frame_weights(1, 3, balanced=True) == (0.25, 0.75)
    assert frame_weights(2, 6, balanced=False) == (1.0, 1.0)
    context, future = noise(2, 1, 3, 8, 8), noise(2, 3, 3, 8, 8, seed=1)
    found = reconstruction(context + 0.1, future - 0.2, context_loss=0.3, dynamics_loss=0.5)
    loss = TokenizerLoss(TokenizerLossConfig(balanced=True), squared)
    losses = loss.generator(found, context, future, step=0, last_layer=torch.zeros(()))
    # All frames then count alike in pixels and perception; the codebooks count as before.
    pixels = torch.cat([found.context - context, found.future - future], dim=1)
    assert losses.total.item() == pytest.approx((pixels.abs().mean() + pixels.square().mean()).item() + 0.8, abs=1e-5)


def test_without_codes_the_codebooks_do_not_count():
    context, future = noise(2, 1, 3, 8, 8), noise(2, 3, 3, 8, 8, seed=1)
    found = reconstruction(context, future, context_loss=0.3, dynamics_loss=0.5)
    options = {"step": 0, "last_layer": torch.zeros(())}
    losses = TokenizerLoss(TokenizerLossConfig()).generator(found, context, future, quantized=False, **options)
    assert losses.total == 0 and losses.context_commitment is None and losses.dynamics_commitment is None


def test_a_perceptual_distance_of_weight_0_is_not_computed(frames):
    def refuses(found, true):
        raise AssertionError

    found = reconstruction(frames[:, :2], frames[:, 2:])
    config = TokenizerLossConfig(perceptual_weight=0.0)
    TokenizerLoss(config, refuses).generator(found, frames[:, :2], frames[:, 2:], step=0, last_layer=torch.zeros(()))


def test_the_perceptual_distance_sees_every_frame_once_as_it_is(frames):
    seen = []

    def watch(found, true):
        seen.append((found, true))
        return squared(found, true)

    found = reconstruction(frames[:, :2] * 1.5, frames[:, 2:] * 1.5)
    TokenizerLoss(TokenizerLossConfig(), watch).generator(
        found, frames[:, :2], frames[:, 2:], step=0, last_layer=torch.zeros(())
    )
    ((given, true),) = seen
    assert torch.equal(true, torch.cat([frames[:, :2].flatten(0, 1), frames[:, 2:].flatten(0, 1)]))
    assert torch.equal(given, true * 1.5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"l1_weight": -1.0}, "l1_weight is -1.0; expected a number of at least 0"),
        ({"perceptual_weight": math.nan}, "perceptual_weight is nan"),
        ({"adaptive_weight_limit": math.inf}, "adaptive_weight_limit is inf"),
        ({"discriminator_start": -1}, "discriminator_start is -1"),
        ({"l1_weight": 0.0}, "l1_weight and l2_weight are both 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        TokenizerLossConfig(**changes)


def test_the_configuration_is_plain_json():
    config = TokenizerLossConfig(l2_weight=2.0, balanced=True)
    assert from_dict(TokenizerLossConfig, to_dict(config)) == config


# The discriminator's part


def test_the_hinge_counts_only_what_is_not_sure_enough():
    frames = noise(3, 3, 8, 8)
    judge = Constant(2.0, 0.5, -1.0, -3.0, -0.5, 1.0)  # three real ones, three fake ones
    losses = TokenizerLoss(TokenizerLossConfig(), None, judge).discriminator(frames, frames)
    assert losses.loss.item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 0.5 + 2) / 3)
    assert losses.real_logits.item() == pytest.approx(0.5) and losses.fake_logits.item() == pytest.approx(-2.5 / 3)
    losses.loss.backward()
    assert torch.allclose(judge.logits.grad, torch.tensor([0, -1, -1, 0, 1, 1]) / 3)


def test_the_generator_wants_all_its_frames_to_look_real():
    context, future = noise(1, 1, 3, 8, 8).requires_grad_(), noise(1, 2, 3, 8, 8, seed=1).requires_grad_()
    found = reconstruction(context * 1.0, future * 1.0)
    loss = TokenizerLoss(TokenizerLossConfig(), squared, Constant(2.0, 0.5, -1.0))
    losses = loss.generator(found, context.detach(), future.detach() + 0.1, step=0, last_layer=future)
    assert losses.generator.item() == pytest.approx(-0.5)


def test_the_generator_teaches_the_tokenizer_and_not_the_discriminator(tokenizer, discriminator, frames):
    loss = TokenizerLoss(TokenizerLossConfig(), Edges(), discriminator)
    losses = generator(loss, tokenizer, frames)
    alone = torch.autograd.grad(losses.generator, last_layer_of(tokenizer), retain_graph=True)[0]
    losses.total.backward()
    assert alone.abs().max() > 0
    assert all(weight.grad is not None for weight in tokenizer.parameters())
    assert all(weight.grad is None for weight in discriminator.parameters())
    assert all(weight.requires_grad for weight in discriminator.parameters())


def test_the_discriminator_learns_and_the_tokenizer_does_not(tokenizer, discriminator, frames):
    loss = TokenizerLoss(TokenizerLossConfig(), Edges(), discriminator)
    found = tokenizer(frames)
    loss.discriminator(torch.cat([found.context, found.future], dim=1), frames).loss.backward()
    assert all(weight.grad is None for weight in tokenizer.parameters())
    assert all(weight.grad is not None for weight in discriminator.parameters())


@pytest.mark.parametrize("shape", [TINY, PLAIN], ids=["conditional", "plain"])
@pytest.mark.parametrize("perceptual", [Edges(), None], ids=["perceptual", "pixels"])
def test_the_adaptive_weight_is_the_ratio_of_separate_gradients(shape, perceptual, discriminator, frames):
    torch.manual_seed(0)
    tokenizer = CompressiveTokenizer(shape)
    discriminator.eval()  # so that a second pass finds the same weights
    config = TokenizerLossConfig(l1_weight=2.0, l2_weight=1.0, perceptual_weight=3.0, balanced=True)
    losses = generator(TokenizerLoss(config, perceptual, discriminator), tokenizer, frames)

    def norm(of):
        copy = deepcopy(tokenizer)
        found = copy(frames)
        of(found).backward()
        layer = copy.cond_decoder if shape.conditional else copy.decoder
        return layer.conv_out.weight.grad.norm()

    def looks(found):
        if perceptual is None:
            return 2 * F.l1_loss(found.future, frames[:, 2:]) + F.mse_loss(found.future, frames[:, 2:])
        return perceptual(found.future.flatten(0, 1), frames[:, 2:].flatten(0, 1)).mean()

    def fools(found):
        return -discriminator(torch.cat([found.context, found.future], dim=1).flatten(0, 1)).mean()

    expected = 0.8 * norm(looks) / norm(fools)
    torch.testing.assert_close(losses.adaptive_weight, expected, rtol=1e-4, atol=0)
    assert not losses.adaptive_weight.requires_grad


def test_the_generator_loss_is_weighed_adaptively_in_the_total(tokenizer, discriminator, frames):
    discriminator.eval()
    edges = Edges()
    with_it = generator(TokenizerLoss(TokenizerLossConfig(), edges, discriminator), tokenizer, frames)
    without = generator(TokenizerLoss(TokenizerLossConfig(), edges), tokenizer, frames)
    assert with_it.adaptive_weight > 0
    torch.testing.assert_close(with_it.total, without.total + with_it.adaptive_weight * with_it.generator)


def test_the_adaptive_weight_has_a_limit():
    layer = torch.ones(4, requires_grad=True)
    loss = TokenizerLoss(TokenizerLossConfig(adaptive_weight_limit=50.0, discriminator_weight=0.5))
    assert loss.adaptive_weight(30 * layer.sum(), 2 * layer.sum(), layer).item() == pytest.approx(0.5 * 15)
    assert loss.adaptive_weight(300 * layer.sum(), 2 * layer.sum(), layer).item() == pytest.approx(0.5 * 50)
    assert loss.adaptive_weight(300 * layer.sum(), 0 * layer.sum(), layer).item() == pytest.approx(0.5 * 50)
    assert loss.adaptive_weight(0 * layer.sum(), 0 * layer.sum(), layer).item() == 0


def test_before_its_start_the_discriminator_takes_no_part(tokenizer, discriminator, frames):
    config = TokenizerLossConfig(discriminator_start=3)
    loss = TokenizerLoss(config, Edges(), discriminator)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    early = generator(loss, tokenizer, frames, step=2)
    alone = generator(TokenizerLoss(config, Edges()), tokenizer, frames, step=2)
    assert [loss.is_adversarial(step) for step in range(5)] == [False, False, False, True, True]
    assert early.generator is None and early.adaptive_weight is None and torch.equal(early.total, alone.total)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    late = generator(loss, tokenizer, frames, step=3)
    assert late.generator is not None and not torch.equal(late.total, alone.total)


def test_a_discriminator_of_weight_0_takes_no_part(tokenizer, discriminator, frames):
    loss = TokenizerLoss(TokenizerLossConfig(discriminator_weight=0.0), Edges(), discriminator)
    assert not loss.is_adversarial(10**9) and generator(loss, tokenizer, frames).generator is None


def test_losses_are_float32_under_autocast(tokenizer, discriminator, frames):
    loss = TokenizerLoss(TokenizerLossConfig(), Edges(), discriminator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = generator(loss, tokenizer, frames)
        judged = loss.discriminator(frames + 0.1, frames)
    assert {value.dtype for value in (*losses, *judged) if value is not None} == {torch.float32}
    losses.total.backward()
    assert torch.isfinite(last_layer_of(tokenizer).grad).all()


@pytest.mark.parametrize("shape", [TINY, PLAIN], ids=["conditional", "plain"])
def test_twenty_updates_against_a_discriminator_lower_the_loss(shape, discriminator, frames):
    torch.manual_seed(0)
    tokenizer = CompressiveTokenizer(shape)
    loss = TokenizerLoss(TokenizerLossConfig(), Edges(), discriminator)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=2e-3)
    judge = torch.optim.AdamW(discriminator.parameters(), lr=2e-3)
    seen = []
    for step in range(20):
        found = tokenizer(frames)
        losses = loss.generator(found, frames[:, :2], frames[:, 2:], step=step, last_layer=last_layer_of(tokenizer))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        judged = loss.discriminator(torch.cat([found.context, found.future], dim=1), frames)
        judge.zero_grad()
        judged.loss.backward()
        judge.step()
        seen.append(losses.context_l1 + losses.future_l1 + losses.context_perceptual + losses.future_perceptual)
        assert losses.adaptive_weight > 0
    assert seen[-1] < 0.5 * seen[0]


def test_a_discriminator_learns_to_tell_blurred_frames(discriminator, frames):
    loss = TokenizerLoss(TokenizerLossConfig(), None, discriminator)
    blurred = F.avg_pool2d(frames.flatten(0, 1), 5, stride=1, padding=2).view_as(frames)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-2)
    seen = []
    for _ in range(30):
        seen.append(loss.discriminator(blurred, frames))
        optimizer.zero_grad()
        seen[-1].loss.backward()
        optimizer.step()
    assert seen[-1].loss < 0.9 * seen[0].loss
    assert seen[-1].real_logits - seen[-1].fake_logits > 0.2


# Codebooks


def test_frozen_codebooks_keep_their_codes_while_the_rest_learns(tokenizer, frames):
    freeze_codebooks(tokenizer)
    frozen = {name for name, weight in tokenizer.named_parameters() if not weight.requires_grad}
    assert frozen == {"quantize.embedding.weight", "dynamics_quantize.embedding.weight"}
    losses = generator(TokenizerLoss(TokenizerLossConfig(), Edges()), tokenizer, frames)
    losses.total.backward()
    assert losses.context_commitment > 0
    assert all((weight.grad is None) == (name in frozen) for name, weight in tokenizer.named_parameters())
    plain = CompressiveTokenizer(PLAIN)
    freeze_codebooks(plain)
    assert not plain.quantize.embedding.weight.requires_grad


def test_usage_counts_codes_of_both_kinds_apart():
    usage = CodebookUsage(8, 4)
    assert usage.figures() == {}
    usage.add(torch.tensor([[0, 0], [3, 3]]), "context")
    assert usage.figures() == pytest.approx({"context_usage": 0.25, "context_perplexity": 2.0})
    usage.add(torch.tensor([7, 7, 7, 7]), "context")
    usage.add(torch.tensor([1, 1, 1]), "dynamics")
    entropy = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert usage.figures() == pytest.approx(
        {
            "context_usage": 3 / 8,
            "context_perplexity": math.exp(entropy),
            "dynamics_usage": 0.25,
            "dynamics_perplexity": 1.0,
        }
    )
    usage.add(torch.arange(4), "dynamics")
    assert usage.figures()["dynamics_usage"] == 1.0
    usage.reset()
    assert usage.figures() == {}


def test_equally_frequent_codes_have_the_perplexity_of_their_number():
    usage = CodebookUsage(8192, 8192)
    usage.add(torch.arange(8192).repeat(3), "dynamics")
    assert usage.figures() == pytest.approx({"dynamics_usage": 1.0, "dynamics_perplexity": 8192.0}, rel=1e-4)


def test_a_resumed_count_goes_on_where_it_stopped():
    first, second = CodebookUsage(8, 4), CodebookUsage(8, 4)
    first.add(torch.tensor([1, 2, 3]), "context")
    tensors: dict[str, torch.Tensor] = {}
    second.load_state_dict(unflatten(flatten(first.state_dict(), tensors), tensors))
    for usage in (first, second):
        usage.add(torch.tensor([1, 0]), "context")
    assert first.figures() == second.figures()


# The average of the weights


def test_the_average_follows_its_formula_with_a_decay_that_warms_up():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    average, expected = ExponentialAverage(model, decay=0.3), 5.0
    for updates, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3)):
        nn.init.constant_(model.weight, float(updates))
        average.update(model)
        expected = decay * expected + (1 - decay) * updates
        assert average.model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 4.0


def test_the_average_is_a_model_that_is_evaluated_and_saved(tokenizer, frames, tmp_path):
    average = ExponentialAverage(tokenizer, decay=0.5)
    with torch.no_grad():
        for weight in tokenizer.parameters():
            weight.add_(0.1)
    average.update(tokenizer)
    assert not average.model.training and not any(weight.requires_grad for weight in average.model.parameters())
    average.model.save_pretrained(tmp_path)
    loaded, copied = CompressiveTokenizer.from_pretrained(tmp_path), CompressiveTokenizer(TINY).eval()
    average.copy_to(copied)
    assert torch.equal(loaded(frames).future, average.model(frames).future)
    assert torch.equal(copied(frames).future, average.model(frames).future)
    assert copied.quantize.embedding.weight.requires_grad
    assert not torch.equal(tokenizer.eval()(frames).future, average.model(frames).future)


def test_buffers_are_copied_into_the_average():
    model = nn.BatchNorm1d(3)
    average = ExponentialAverage(model)
    model(noise(4, 3))
    average.update(model)
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert average.model.num_batches_tracked == 1


def test_a_resumed_average_goes_on_as_if_it_had_never_stopped():
    models = [nn.Linear(2, 2) for _ in range(12)]
    first, second = ExponentialAverage(models[0]), ExponentialAverage(models[1])
    for model in models[2:6]:
        first.update(model)
    tensors: dict[str, torch.Tensor] = {}
    second.load_state_dict(unflatten(flatten(first.state_dict(), tensors), tensors))
    for model in models[6:]:
        first.update(model)
        second.update(model)
    assert first.updates == second.updates == 10
    assert torch.equal(first.model.weight, second.model.weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(UserError, match="the decay of the averaged weights is"):
        ExponentialAverage(nn.Linear(1, 1), decay)


def test_rest_joins_the_total_by_its_weight(tokenizer, frames):
    torch.manual_seed(0)
    still = frames[:, :1].expand_as(frames).contiguous()
    config = TokenizerLossConfig(perceptual_weight=0.0, discriminator_weight=0.0)
    with_rest = TokenizerLoss(replace(config, still_weight=3.0), conditional=tokenizer.config.conditional)
    found = generator(with_rest, tokenizer.eval(), still)
    plain = generator(TokenizerLoss(config), tokenizer, still)
    assert found.unrest is not None and plain.unrest is None
    assert found.total.item() == pytest.approx(plain.total.item() + 3 * found.unrest.item(), rel=1e-5)


def test_vectors_of_two_kinds_are_not_compared(frames):
    context, future = noise(2, 2, 3, 8, 8), noise(2, 2, 3, 8, 8, seed=1)
    context[:, 1], future[:, 0], future[:, 1] = context[:, 0], context[:, 0], context[:, 0]
    found = reconstruction(context, future)
    found = replace(
        found, context_vectors=torch.ones(2, 2, 4, 3), dynamics_vectors=noise(2, 1, 4, 3).expand(-1, 2, -1, -1)
    )
    config = TokenizerLossConfig(perceptual_weight=0.0, discriminator_weight=0.0, still_weight=1.0)
    unrests = []
    for conditional in (True, False):
        loss = TokenizerLoss(config, conditional=conditional)
        layer = torch.nn.Parameter(torch.ones(1))
        unrests.append(loss.generator(found, context, future, step=0, last_layer=layer, quantized=False).unrest.item())
    assert unrests[0] == 0 < unrests[1]
