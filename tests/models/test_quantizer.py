"""The codebook: the nearest code, gradients that pass straight through, and averages that learn."""

import torch

from ivideogpt.models.quantizer import CodebookAverage, VectorQuantizer


def quantizer(num_codes=12, dim=5):
    made = VectorQuantizer(num_codes, dim)
    with torch.no_grad():
        made.embedding.weight.copy_(torch.randn(num_codes, dim, generator=torch.Generator().manual_seed(0)))
    return made


def vectors(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_code_is_the_nearest():
    book, z = quantizer(), vectors(3, 4, 5)
    codes = book.encode(z)
    distances = (z[..., None, :] - book.embedding.weight).pow(2).sum(dim=-1)
    assert codes.shape == (3, 4) and codes.dtype == torch.int64
    assert torch.equal(codes, distances.argmin(dim=-1))


def test_codes_decode_to_themselves():
    book, codes = quantizer(), torch.arange(12).view(3, 4)
    assert torch.equal(book.encode(book.decode(codes)), codes)


def test_the_first_of_equal_codes_is_taken():
    book = quantizer()
    with torch.no_grad():
        book.embedding.weight[7] = book.embedding.weight[2]
    assert book.encode(book.decode(torch.tensor([2, 7]))).tolist() == [2, 2]


def test_codes_are_chosen_in_float32():
    book, z = quantizer(), vectors(50, 5)
    half = VectorQuantizer(12, 5).to(torch.bfloat16)
    half.load_state_dict(book.state_dict())
    exact = torch.cdist(z.to(torch.bfloat16).float(), half.embedding.weight.float()).argmin(dim=1)
    assert torch.equal(half.encode(z.to(torch.bfloat16)), exact)


def test_training_gives_the_code_the_loss_and_a_straight_gradient():
    book, z = quantizer(), vectors(6, 5).requires_grad_()
    quantized, loss, codes = book(z)
    code = book.embedding.weight[codes]
    torch.testing.assert_close(quantized, code)
    torch.testing.assert_close(loss, 2 * (z - code).pow(2).mean())
    quantized.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z)) and book.embedding.weight.grad is None


def test_the_loss_pulls_vectors_and_codes_together():
    book, z = quantizer(), vectors(6, 5).requires_grad_()
    _, loss, codes = book(z)
    loss.backward()
    apart = (z - book.embedding.weight[codes]).detach()
    assert (z.grad * apart).sum() > 0
    assert (book.embedding.weight.grad[codes] * apart).sum() < 0


def test_averages_move_codes_to_their_vectors():
    centres = vectors(12, 5, seed=3) * 4
    z = centres.repeat(40, 1) + 0.05 * vectors(480, 5, seed=4)
    book, random = quantizer(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        book.embedding.weight.copy_(centres + 0.5)
    average = CodebookAverage(book, decay=0.5)
    for _ in range(30):
        average.update(book, z, book.encode(z), random)
    assert torch.cdist(centres, book.embedding.weight).min(dim=1).values.max() < 0.1


def test_a_code_that_nobody_uses_starts_again():
    book, random = quantizer(num_codes=4), torch.Generator().manual_seed(0)
    with torch.no_grad():
        book.embedding.weight[3] = 1000.0
    average, z = CodebookAverage(book, decay=0.5, dead_below=0.1), vectors(40, 5)
    restarted = sum(average.update(book, z, book.encode(z), random) for _ in range(6))
    assert restarted >= 1 and book.embedding.weight.abs().max() < 10
