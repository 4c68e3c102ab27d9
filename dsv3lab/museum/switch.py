"""Many mistakes in one program: each text becomes a choice between the right and the wrong value.

A training program takes seconds to compile and a fraction of one to run, so the notebook compiles one for all mistakes and
gives it the number of the mistake. It chooses among the texts of the table, the ones that the tests have to catch. (Among
whole steps, with `lax.switch`, the program would hold each of them, and compile as long.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dsv3lab.museum.table import Mistake

NAME = "_right_or_wrong"
"""What the choice is called in the modules of the copy."""


class Switch:
    """Which mistake is made: `number`, of `mistakes`; `None` or a number outside of them: none."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        self.number: Int[Array, ""] | int | None = None

    @contextmanager
    def set_to(self, number: Int[Array, ""] | int) -> Iterator[None]:
        """Make the mistake `number` inside."""
        self.number = number
        try:
            yield
        finally:
            self.number = None

    def text(self, file: str, text: str) -> str:
        """The text of a file with a choice in place of each mistake that belongs there.

        Raises:
            ValueError: if an earlier mistake has changed what a later one replaces.
        """
        for number, mistake in enumerate(self.mistakes):
            if mistake.file == file:
                if mistake.right not in text:
                    raise ValueError(
                        f"mistake '{mistake.name}': an earlier one of the switch has changed its text in {file}; "
                        "put the outer text first in dsv3lab/museum/table.py"
                    )
                choice = f"{NAME}({number}, lambda: ({mistake.right}), lambda: ({mistake.wrong}))"
                text = text.replace(mistake.right, choice)
        return text

    def __call__(self, number: int, right: Callable[[], Any], wrong: Callable[[], Any]) -> Any:
        """The value of `right`, or of `wrong` where `self.number` is `number`."""
        value = right()
        if callable(value):
            return lambda *args: self(number, lambda: right()(*args), lambda: wrong()(*args))
        if isinstance(value, float | Later):
            return Later(lambda: self._choose(number, _now(right()), _now(wrong())))
        return value if self.number is None else self._choose(number, value, wrong())

    def _choose(self, number: int, right: Any, wrong: Any) -> Any:
        if self.number is None:
            return right
        return jax.tree.map(lambda r, w: jnp.where(self.number == number, w, r), right, wrong)


class Later:
    """A number of the model's configuration that hangs on the mistake: computed where an array is multiplied with it."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.compute = compute

    def __mul__(self, other: Any) -> Any:
        return self.compute() * other if isinstance(other, jax.Array) else Later(lambda: self.compute() * _now(other))

    __rmul__ = __mul__


def _now(value: Any) -> Any:
    return value.compute() if isinstance(value, Later) else value
