import pytest
import torch

from ivideogpt.training.tokenizer_loss import unrest


@pytest.fixture
def frames() -> torch.Tensor:
    """``[2 4 3 16 16]``: only the upper left quarter changes."""
    still = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(1, 4, 1, 1, 1)
    still[..., :8, :8] = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return still


def vectors(seed: int = 2) -> torch.Tensor:
    """``[2 4 4 8]``: four patches a frame."""
    return torch.randn(2, 4, 4, 8, generator=torch.Generator().manual_seed(seed))


def test_vectors_that_stay_are_at_rest_whatever_changing_patches_do(frames) -> None:
    found = vectors()
    found[:, :, 1:] = found[:, :1, 1:]
    assert unrest(found, frames) == 0


def test_vectors_that_know_nothing_of_those_before_them_have_an_unrest_of_one(frames) -> None:
    assert unrest(vectors(), frames) == pytest.approx(1, abs=0.3)
    assert unrest(5 * vectors(), frames) == pytest.approx(float(unrest(vectors(), frames)), rel=1e-5)


def test_only_patches_that_stay_and_show_something_pull(frames) -> None:
    found = vectors()
    found[:, :, 3] = 0
    found.requires_grad_(True)
    unrest(found, frames).backward()
    pulled = found.grad.abs().sum(dim=(0, 1, 3)) > 0
    assert pulled.tolist() == [False, True, True, False]


def test_where_everything_changes_there_is_nothing_to_rest() -> None:
    found = vectors().requires_grad_(True)
    unrest(found, torch.rand(2, 4, 3, 16, 16)).backward()
    assert not found.grad.any()
    assert unrest(vectors()[:, :1], torch.rand(2, 1, 3, 16, 16)) == 0, "a single frame has no other"
