"""Where a loader stands in its endless row of clips: what resuming, batch sizes and ranks have to agree on."""

from __future__ import annotations

from ivideogpt.core.errors import UserError


class ClipCursor:
    """Which clips each batch takes. Clip k itself is a pure function of ``seed`` and k, made elsewhere.

    Attributes:
        seed: of the clips.
        step: batches given out so far.
    """

    def __init__(self, *, batch_size: int, seed: int = 0, rank: int = 0, ranks: int = 1) -> None:
        """Begins with clip 0.

        Args:
            batch_size: clips of a batch, on this rank.
            seed: of everything that is random, at least 0.
            rank: of this process among those that train together; it takes clips rank, rank + ranks and so on.
            ranks: how many train together.

        Raises:
            UserError: a number cannot be.
        """
        if batch_size < 1 or seed < 0 or not 0 <= rank < ranks:
            raise UserError(
                f"batch_size={batch_size}, seed={seed}, rank={rank}, ranks={ranks}; "
                "expected at least 1 and 0, and a rank from 0 to ranks - 1"
            )
        self.seed, self.step = seed, 0
        self._batch_size, self._rank, self._ranks = batch_size, rank, ranks

    def numbers(self, step: int) -> range:
        """The clips of batch ``step`` (from 0) of this rank."""
        first = step * self._clips_a_step + self._rank
        return range(first, first + self._clips_a_step, self._ranks)

    def state_dict(self) -> dict[str, int]:
        """Where it stands, as plain numbers: the same on every rank."""
        return {"seed": self.seed, "step": self.step, "clips_a_step": self._clips_a_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where another one stood, with any number of ranks; holds from the next ``iter`` on.

        Raises:
            UserError: the other one's clips do not fill whole batches of this one.
        """
        clips = state["step"] * state["clips_a_step"]
        if clips % self._clips_a_step:
            raise UserError(
                f"{clips} clips were given out, which is no whole number of batches of {self._clips_a_step} over all "
                "ranks; use the earlier batch size times the earlier number of ranks"
            )
        self.seed, self.step = state["seed"], clips // self._clips_a_step

    @property
    def _clips_a_step(self) -> int:
        return self._batch_size * self._ranks
