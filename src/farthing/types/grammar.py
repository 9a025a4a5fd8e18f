"""What a text must look like, as those who continue it see it: which tokens may come next, and when nothing more can.

A grammar is compiled by `llm.grammar` for one vocabulary and shared by all who use it; where a choice is in it belongs
to that choice. Values of the wire that ask for one are in `types.tools` and `types.forms`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.uint32]
"""A row for each position and a bit for each token, lowest first: set where the token may come."""


class GrammarState(Protocol):
    """How far one choice has come in its grammar. One thread at a time."""

    @property
    def is_complete(self) -> bool:
        """Can nothing follow but the end of the text?"""
        ...

    def allowed(self, draft: Sequence[int], /) -> int:
        """How many of these tokens may follow, one after the other. Ends of text are not counted."""
        ...

    def forced(self) -> Sequence[int]:
        """Tokens that will come whatever the model says, as far as that is known."""
        ...

    def masks(self, draft: Sequence[int], unwanted: Sequence[int], /) -> Masks:
        """Which tokens may come next, and after each of these, which are `allowed`; the state stays as it is.

        Those `unwanted` may not come where there is a choice. Raises a `FarthingError` when the grammar breaks down.
        """
        ...

    def accept(self, token: int, /) -> None:
        """This token came. Raises a `FarthingError` if it may not."""
        ...


class Grammar(Protocol):
    """Compiled; immutable for those who use it."""

    def start(self) -> GrammarState:
        """The beginning of a text."""
        ...
