"""Which tokens may come in a step: masks of constrained choices, made while the model runs.

The model's threads and the one that waits for them leave Python alone meanwhile, and so does the library that makes
masks. Steps without constrained choices never come here. What a mask says belongs to `grammar`.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from farthing.llm.generation import Generation
from farthing.types.errors import EngineFailed, FarthingError
from farthing.types.grammar import Masks

Made = dict[int, Masks | FarthingError]
"""By generation number; an error ends the request of its generation alone."""


log = logging.getLogger(__name__)


class MaskMaker:
    """A generator's own thread for masks, begun when the first is wanted."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def begin(self, wanted: Sequence[tuple[Generation, Sequence[int]]]) -> "Future[Made]":
        """Masks for the next token of each of these, and for those after the tokens of its draft."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        return self._thread.submit(_made, wanted)


def _made(wanted: Sequence[tuple[Generation, Sequence[int]]]) -> Made:
    made: Made = {}
    for one, draft in wanted:
        assert one.grammar is not None
        try:
            made[one.number] = one.grammar.masks(draft, one.unwanted())
        except FarthingError as error:
            made[one.number] = error
        except BaseException as error:  # a panic of the library is no Exception; it must not end the generator
            log.exception("no mask for request `%s`", one.state.request.id)
            made[one.number] = EngineFailed(f"the grammar failed: {error}")
    return made
