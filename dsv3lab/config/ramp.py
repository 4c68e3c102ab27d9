"""Which windows each optimizer step takes when the batch grows: exact integer arithmetic between steps and tokens."""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Piece:
    """Steps that follow each other with one batch size.

    step, window: number of the first step and of its first window, both from 0 and through the whole run.
    steps: how many.
    batch_size: windows (sequences) of each.
    """

    step: int
    window: int
    steps: int
    batch_size: int


@dataclass(frozen=True)
class Ramp:
    """The batch of every step of a run, as a function of the step.

    A step has the batch size that holds at the first token which it takes, and the run ends with the step that reaches
    the budget: at most one batch less one token beyond it. So a run with a constant batch has ceil(budget / batch) steps.
    After the last piece the batch stays as it is.
    """

    pieces: tuple[Piece, ...]
    tokens: int
    """The budget."""
    sequence_length: int

    @staticmethod
    def of(corners: list[tuple[Fraction, int]], *, tokens: int, sequence_length: int) -> "Ramp":
        """The ramp with a batch size up to each corner, a fraction of the budget; the last corner is 1."""
        pieces, step, window = [], 0, 0
        for until, batch_size in corners:
            left = until * tokens - window * sequence_length
            steps = max(0, -(-left // (batch_size * sequence_length)))
            if steps:
                pieces.append(Piece(step, window, steps, batch_size))
            step, window = step + steps, window + steps * batch_size
        return Ramp(tuple(pieces), tokens, sequence_length)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.pieces[-1].step + self.pieces[-1].steps

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that occur, in their order."""
        return tuple(dict.fromkeys(piece.batch_size for piece in self.pieces))

    def batch_size(self, step: int) -> int:
        """Windows of a step (from 0)."""
        return self._piece(step).batch_size

    def windows(self, step: int) -> int:
        """Windows taken before a step (from 0): where in the data it begins."""
        piece = self._piece(step)
        return piece.window + (step - piece.step) * piece.batch_size

    def tokens_before(self, step: int) -> int:
        """Targets of the next-token loss before a step (from 0)."""
        return self.windows(step) * self.sequence_length

    def step_at(self, fraction: float) -> int:
        """The first step (from 0) that begins at or behind this fraction of the budget."""
        wanted = exact(fraction) * self.tokens
        for piece in self.pieces:
            left = wanted - piece.window * self.sequence_length
            steps = max(0, -(-left // (piece.batch_size * self.sequence_length)))
            if steps <= piece.steps:
                return piece.step + steps
        return self.steps

    def _piece(self, step: int) -> Piece:
        return self.pieces[max(0, bisect_right([piece.step for piece in self.pieces], step) - 1)]


def exact(value: float) -> Fraction:
    """The number as it is written in the configuration: 0.1 is a tenth, not the nearest binary fraction."""
    return Fraction(str(value))
