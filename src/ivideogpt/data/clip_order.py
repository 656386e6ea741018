"""The position of a loader in its endless sequence of clips, independent of batch size and number of ranks."""

from __future__ import annotations

from ivideogpt.core.errors import UserError


class ClipCursor:
    """Numbers of the clips of each batch. The loader computes clip k itself, a pure function of ``seed`` and k.

    Attributes:
        seed: of the clips.
        step: number of batches returned so far.
    """

    def __init__(self, *, batch_size: int, seed: int = 0, rank: int = 0, ranks: int = 1) -> None:
        """Begin with clip 0.

        Args:
            batch_size: clips of a batch, on this rank.
            seed: of all random numbers, at least 0.
            rank: of this process among those that train together; it takes clips rank, rank + ranks and so on.
            ranks: number of processes that train together.

        Raises:
            UserError: a number is out of range.
        """
        if batch_size < 1 or seed < 0 or not 0 <= rank < ranks:
            raise UserError(
                f"batch_size={batch_size}, seed={seed}, rank={rank}, ranks={ranks}; "
                "expected at least 1 and 0, and a rank from 0 to ranks - 1"
            )
        self.seed, self.step = seed, 0
        self._batch_size, self._rank, self._ranks = batch_size, rank, ranks

    def numbers(self, step: int) -> range:
        """Return the clips of batch ``step`` (from 0) of this rank."""
        first = step * self._clips_per_step + self._rank
        return range(first, first + self._clips_per_step, self._ranks)

    def state_dict(self) -> dict[str, int]:
        """Return the position as plain numbers, the same on every rank."""
        return {"seed": self.seed, "step": self.step, "clips_a_step": self._clips_per_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved position, with any number of ranks; takes effect at the next ``iter``.

        Raises:
            UserError: the clips so far do not fill whole batches of this cursor.
        """
        clips = state["step"] * state["clips_a_step"]
        if clips % self._clips_per_step:
            raise UserError(
                f"{clips} clips were used, which is no whole number of batches of {self._clips_per_step} on all ranks; "
                "use the earlier batch size times the earlier number of ranks"
            )
        self.seed, self.step = state["seed"], clips // self._clips_per_step

    @property
    def _clips_per_step(self) -> int:
        return self._batch_size * self._ranks
