"""LPIPS against its formula, ST-LPIPS against what the published code gives, and both against common sense."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.metrics import perceptual
from ivideogpt.metrics.perceptual import load_perceptual

from .pictures import blurred, needs, noisy, waves

# Of torchvision's "features": number and channels of each convolution, and after which of them LPIPS compares.
CONVOLUTIONS = {
    "vgg": [(0, 64), (2, 64), (5, 128), (7, 128), (10, 256), (12, 256), (14, 256)]
    + [(number, 512) for number in (17, 19, 21, 24, 26, 28)],
    "alex": [(0, 64), (3, 192), (6, 384), (8, 256), (10, 256)],
}
COMPARED = {"vgg": [2, 7, 14, 21, 28], "alex": [0, 3, 6, 8, 10]}
FILES = {"vgg": "vgg16-397923af", "alex": "alexnet-owt-7be5be79"}


def settings(network, number):
    """Kernel, stride and padding of a convolution, and the pool before it as (size, stride) or None."""
    if network == "vgg":
        return 3, 1, 1, (2, 2) if number in (5, 10, 17, 24) else None
    return {0: (11, 4, 2, None), 3: (5, 1, 2, (3, 2)), 6: (3, 1, 1, (3, 2))}.get(number, (3, 1, 1, None))


def random_weights(network):
    """A trunk and heads under the names of the published files, scaled so that signals keep their size."""
    generator = torch.Generator().manual_seed(1)
    trunk, heads, width = {}, {}, 3
    for number, channels in CONVOLUTIONS[network]:
        kernel = settings(network, number)[0]
        shape = (channels, width, kernel, kernel)
        trunk[f"features.{number}.weight"] = torch.randn(shape, generator=generator) * (2 / (width * kernel**2)) ** 0.5
        trunk[f"features.{number}.bias"] = torch.randn(channels, generator=generator) * 0.1
        width = channels
    widths = dict(CONVOLUTIONS[network])
    for depth, number in enumerate(COMPARED[network]):
        heads[f"lin{depth}.model.1.weight"] = torch.rand(1, widths[number], 1, 1, generator=generator)
    return trunk, heads


def recomputed(network, trunk, heads, found, true):
    """LPIPS of [b 3 h w] in [0, 1] from the equations of Zhang et al. 2018, in float64."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).double().view(3, 1, 1)
    maps = []
    for frames in (found, true):
        x, seen = (frames.double() * 2 - 1 - shift) / scale, []
        for number, _ in CONVOLUTIONS[network]:
            _, stride, padding, pool = settings(network, number)
            x = F.max_pool2d(x, *pool) if pool else x
            weight, bias = (trunk[f"features.{number}.{part}"].double() for part in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, stride, padding).clamp(min=0)
            if number in COMPARED[network]:
                seen.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        maps.append(seen)
    total = 0
    for depth, (a, b) in enumerate(zip(*maps, strict=True)):
        weights = heads[f"lin{depth}.model.1.weight"].double().flatten()
        total = total + torch.einsum("bchw,c->bhw", (a - b) ** 2, weights).mean((1, 2))
    return total


@pytest.fixture
def alex_folder(tmp_path):
    """A folder with published names: an AlexNet of random weights, and random heads."""
    trunk, heads = random_weights("alex")
    torch.save({**trunk, "classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alexnet-owt-7be5be79.pth")
    torch.save(heads, tmp_path / "alex.pth")
    return tmp_path


@pytest.fixture(scope="module")
def real_alex():
    return load_perceptual(network="alex")


@pytest.fixture(scope="module")
def real_vgg():
    return load_perceptual(network="vgg")


@pytest.fixture
def pair():
    """Float [2 3 3 32 40] twice; the second is the first with more and more noise."""
    true = torch.stack([waves(32, 40, phase) for phase in range(6)]).unflatten(0, (2, 3))
    return torch.stack([noisy(frame, 0.05 * (1 + i)) for i, frame in enumerate(true.flatten(0, 1))]).view_as(true), true


# LPIPS, with weights that a user has


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_lpips_is_the_formula_of_the_paper(tmp_path, pair, network):
    trunk, heads = random_weights(network)
    torch.save(trunk, tmp_path / f"{FILES[network]}.pth")
    torch.save(heads, tmp_path / f"{network}.pth")
    distance = load_perceptual(tmp_path, network=network)
    assert distance.name == {"vgg": "LPIPS (VGG16)", "alex": "LPIPS (AlexNet)"}[network]
    found, true = (frames[0, :2] for frames in pair)
    expected = recomputed(network, trunk, heads, found, true)
    torch.testing.assert_close(distance(found, true).double(), expected, rtol=1e-5, atol=0)


def test_every_form_of_the_files_gives_the_same_lpips(tmp_path, alex_folder, pair, monkeypatch):
    expected = load_perceptual(alex_folder, network="alex")(*pair)
    trunk, heads = random_weights("alex")

    tensors = tmp_path / "tensors"
    tensors.mkdir()
    save_file(trunk, tensors / "alexnet.safetensors")
    save_file(heads, tensors / "alex.safetensors")
    assert torch.equal(load_perceptual(str(tensors), network="alex")(*pair), expected)

    # As the lpips package saves a whole network: layers in slices, heads twice.
    whole = {name.replace("features", "net.slice1"): tensor for name, tensor in trunk.items()}
    whole |= heads | {name.replace("lin", "lins."): tensor for name, tensor in heads.items()}
    torch.save(whole, tmp_path / "whole.pth")
    assert torch.equal(load_perceptual(tmp_path / "whole.pth", network="alex")(*pair), expected)

    monkeypatch.setenv("IVIDEOGPT_LPIPS", str(alex_folder))
    assert torch.equal(load_perceptual(network="alex")(*pair), expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "alex.pth").unlink(), "must hold the heads of AlexNet in one file, alex.pth"),
        (lambda folder: (folder / "alexnet-2.pth").touch(), "found: alexnet-2.pth, alexnet-owt-7be5be79.pth"),
        (lambda folder: (folder / "alex.pth").write_bytes(b"no"), "alex.pth is damaged"),
        (lambda folder: torch.save({}, folder / "alex.pth"), "lacks heads.0.weight; expected the weights of LPIPS"),
        (lambda folder: torch.save(random_weights("vgg")[1], folder / "alex.pth"), "holds heads.1.weight of shape"),
    ],
)
def test_a_bad_folder_is_one_clear_error(alex_folder, spoil, message):
    spoil(alex_folder)
    with pytest.raises(UserError, match=message):
        load_perceptual(alex_folder, network="alex")


def test_weights_that_are_asked_for_are_never_replaced_by_others(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="do not exist"):
        load_perceptual(tmp_path / "nowhere")
    monkeypatch.setenv("IVIDEOGPT_LPIPS", str(tmp_path))
    with pytest.raises(UserError, match=r"must hold the trunk of VGG16 in one file, vgg16-\*.pth.*found: none"):
        load_perceptual()


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match="'squeeze'; expected one of vgg, alex"):
        load_perceptual(network="squeeze")


# ST-LPIPS, with the weights in the package


@needs("stlpips_pytorch")
@pytest.mark.parametrize(
    ("network", "name", "shape", "shifted", "smooth"),
    [
        ("alex", "ST-LPIPS (AlexNet)", (64, 64), 0.02149367, 0.00019116),
        ("alex", "ST-LPIPS (AlexNet)", (31, 44), 0.02736461, 0.00082433),
        ("vgg", "ST-LPIPS (VGG16)", (64, 64), 0.06483708, 0.00158478),
        ("vgg", "ST-LPIPS (VGG16)", (31, 44), 0.11300924, 0.00751634),
    ],
)
def test_st_lpips_is_what_the_published_code_gives(request, network, name, shape, shifted, smooth):
    distance = request.getfixturevalue(f"real_{network}")
    assert distance.name == name
    true = waves(*shape)
    found = torch.stack([waves(*shape, 0.4), blurred(true, 1.0)])
    expected = torch.tensor([shifted, smooth])
    torch.testing.assert_close(distance(found, true.expand_as(found)), expected, rtol=1e-4, atol=1e-7)


@needs("stlpips_pytorch")
@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_every_weight_of_the_package_is_used(request, network):
    distance = request.getfixturevalue(f"real_{network}")
    stored = perceptual.read_weights(
        perceptual.packaged_file("stlpips_pytorch", f"weights/vST0.0/{network}_shift_tolerant.pth")
    )
    held = distance.state_dict()
    assert len(stored) == len(held)
    for name, tensor in perceptual._renamed(stored).items():
        assert torch.equal(held.pop(name), tensor), name
    assert not held


@needs("stlpips_pytorch")
def test_every_weight_has_a_say_in_the_distance(pair):
    distance = load_perceptual(network="alex").requires_grad_(True)
    found, true = pair
    distance(found.clone().requires_grad_(), true).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in distance.parameters())


@needs("stlpips_pytorch")
def test_loading_imports_no_foreign_package_and_draws_no_random_numbers(monkeypatch):
    monkeypatch.delitem(sys.modules, "stlpips_pytorch", raising=False)  # an earlier test may have imported it
    before = torch.get_rng_state()
    load_perceptual(network="alex")
    assert torch.equal(torch.get_rng_state(), before)
    assert "stlpips_pytorch" not in sys.modules and "torchvision" not in sys.modules


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.delenv("IVIDEOGPT_LPIPS", raising=False)
    monkeypatch.setattr("ivideogpt.metrics.pretrained.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"stlpips_pytorch is not installed.*ivideogpt\[evaluation\]"):
        load_perceptual()


# What a distance must do


@needs("stlpips_pytorch")
@pytest.mark.parametrize("network", ["alex", "vgg"])
@pytest.mark.parametrize("spoil", ["blur", "noise", "shift"])
def test_a_real_picture_is_farther_the_more_it_is_spoilt(request, recordings, network, spoil):
    distance = request.getfixturevalue(f"real_{network}")
    true = torch.stack([recordings[0][5], recordings[2][5]])
    found = {
        "blur": [blurred(true, sigma) for sigma in (0.7, 1.5, 3)],
        "noise": [noisy(true, deviation) for deviation in (0.05, 0.1, 0.2)],
        "shift": [true.roll(pixels, -1) for pixels in (1, 3, 8)],
    }[spoil]
    assert (distance(true, true) == 0).all()
    scores = distance(torch.stack(found), true.expand(3, *true.shape))
    assert (scores[0] > 0).all() and (scores.diff(dim=0) > 0).all()


@needs("stlpips_pytorch")
def test_pictures_are_scored_alone_in_any_shape_and_chunk(real_alex, pair, monkeypatch):
    found, true = pair
    expected = real_alex(found, true)
    assert expected.shape == (2, 3) and expected.dtype == torch.float32 and (expected > 0).all()
    torch.testing.assert_close(real_alex(found[1, 2], true[1, 2]), expected[1, 2])
    torch.testing.assert_close(real_alex(true, found), expected)
    monkeypatch.setattr(perceptual, "_CHUNK_PIXELS", 2 * 32 * 40 + 1)
    sizes = []
    hook = real_alex.trunk.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    torch.testing.assert_close(real_alex(found, true), expected)
    hook.remove()
    assert sizes == [2] * 6
    monkeypatch.setattr(perceptual, "_CHUNK_PIXELS", 1)
    torch.testing.assert_close(real_alex(found, true), expected)


@needs("stlpips_pytorch")
def test_many_samples_of_one_future_are_scored_as_one_by_one_but_look_at_it_once(real_alex, pair):
    found, true = pair
    sizes = []
    hook = real_alex.trunk.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    scores = real_alex(found, true[0])
    hook.remove()
    assert sizes == [3, 3, 3]
    torch.testing.assert_close(scores, torch.stack([real_alex(sample, true[0]) for sample in found]))


@needs("stlpips_pytorch")
def test_gradients_reach_the_pictures_and_pull_them_together(real_alex, pair):
    found, true = pair[0].clone().requires_grad_(), pair[1]
    first = real_alex(found, true).sum()
    first.backward()
    assert not any(weight.requires_grad for weight in real_alex.parameters())
    step = 0.01 * found.grad / found.grad.abs().max()
    assert real_alex((found - step).clamp(0, 1).detach(), true).sum() < first


@needs("stlpips_pytorch")
def test_gradients_are_finite_where_pictures_are_equal(real_alex, pair):
    found = pair[1].clone().requires_grad_()
    real_alex(found, pair[1]).sum().backward()
    assert found.grad.isfinite().all()


@needs("stlpips_pytorch")
def test_gradients_are_finite_where_a_network_sees_nothing(pair):
    distance = load_perceptual(network="alex")
    for weight in distance.trunk.parameters():
        weight.zero_()
    found = pair[0].clone().requires_grad_()
    scores = distance(found, pair[1])
    scores.sum().backward()
    assert not scores.any() and found.grad.isfinite().all()


@needs("stlpips_pytorch")
def test_mixed_precision_changes_no_measurement_and_leaves_a_loss_close(real_alex, pair):
    found, true = pair
    expected = real_alex(found, true)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(real_alex(found, true), expected)
        loss = real_alex(found.clone().requires_grad_(), true)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), expected, rtol=0.1, atol=0.002)


@needs("stlpips_pytorch")
def test_a_decoder_may_overshoot_with_and_without_gradients(real_alex, pair):
    found = (pair[0] * 1.2 - 0.1).requires_grad_()
    scores = real_alex(found, pair[1])
    assert scores.isfinite().all()
    torch.testing.assert_close(real_alex(found.detach(), pair[1]), scores.detach())


@needs("stlpips_pytorch")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :2], r"expected \[... 3 h w\] twice, not empty"),
        (lambda x: x[0], r"shapes \[3, 3, 32, 40\] and \[2, 3, 3, 32, 40\]"),
        (lambda x: x[:, :, :1], r"expected \[... 3 h w\] twice"),
        (lambda x: (x * 255).byte(), "the imagined pictures have type torch.uint8.*divide whole numbers by 255"),
    ],
)
def test_what_is_no_picture_is_refused(real_alex, pair, change, message):
    with pytest.raises(UserError, match=message):
        real_alex(change(pair[0]), pair[1])


@needs("stlpips_pytorch")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x * 255).byte(), "the true pictures have type torch.uint8"),
        (lambda x: x * 255, r"the true pictures have values from .*expected \[0, 1\]: clamp or divide by 255"),
        (lambda x: x * float("nan"), "from nan to nan"),
    ],
)
def test_true_pictures_of_another_range_are_refused(real_alex, pair, change, message):
    with pytest.raises(UserError, match=message):
        real_alex(pair[0], change(pair[1]))


@needs("stlpips_pytorch")
def test_empty_grey_and_tiny_pictures_are_refused(real_alex):
    for shape in [(0, 3, 32, 32), (32, 32), (1, 32, 32)]:
        with pytest.raises(UserError, match="not empty"):
            real_alex(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(UserError, match=r"20 x 32 pixels; ST-LPIPS \(AlexNet\) needs at least 21 x 21"):
        real_alex(torch.zeros(3, 32, 20), torch.zeros(3, 32, 20))
