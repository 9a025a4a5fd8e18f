"""A request under way, and each of its choices: what they know, where their keys and values are, how they pick and end.

State only; `stepper` owns and changes it, `scheduler` reads the part it decides by.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from farthing.llm.choice_text import ChoiceText
from farthing.llm.sampler import Sampling
from farthing.llm.scheduler import Progress
from farthing.types.errors import FarthingError
from farthing.types.generation import GenerateRequest, GenerationEvent, TokenLogprob

OnEvent = Callable[[GenerationEvent | FarthingError], None]


class RequestState:
    """One request: its choices that have not ended, and its times."""

    __slots__ = (
        "admitted_ns", "arrival_ns", "cached_tokens", "choices", "completion_tokens", "first_token_ns", "is_ended",
        "is_prompt_done", "on_event", "prompt_done_ns", "prompt_logprobs", "request", "root", "seed", "stop_ids",
        "tokens_max", "unforked",
    )  # fmt: skip

    def __init__(
        self, request: GenerateRequest, on_event: OnEvent, *, seed: int, stop_ids: frozenset[int], tokens_max: int
    ) -> None:
        self.request = request
        self.on_event = on_event
        self.seed = seed
        self.stop_ids = stop_ids
        """Tokens that end a choice."""
        self.tokens_max = tokens_max
        """What the request asked for, as far as context and pool reach."""
        self.arrival_ns = request.arrival_ns
        self.choices: list[Generation] = []
        """Running or waiting."""
        self.unforked: list[Generation] = []
        """Choices that begin when the first has read the prompt."""
        self.root = b""
        self.is_ended = False
        self.is_prompt_done = False
        self.prompt_logprobs: list[TokenLogprob] = []
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.admitted_ns = 0
        self.prompt_done_ns = 0
        self.first_token_ns = 0


class Generation(Progress):
    """One choice of a request."""

    __slots__ = (
        "draft", "ids", "index", "is_ended", "is_running", "keys", "last_ns", "named", "sampling", "state", "table",
        "text",
    )  # fmt: skip

    def __init__(
        self, state: RequestState, *, index: int, number: int, text: ChoiceText, sampling: Sampling, **given: Any
    ) -> None:
        super().__init__(
            number=number,
            known=len(state.request.prompt_ids),
            tenant=state.request.tenant,
            rank=state.request.priority,
            queued_ns=state.arrival_ns,
            **given,
        )
        self.state = state
        self.index = index
        self.ids: list[int] = list(state.request.prompt_ids)
        """All it knows: prompt and output."""
        self.text = text
        self.sampling = sampling
        self.keys: list[bytes] = []
        """Names of its full blocks, as far as they were needed."""
        self.named = 0
        """Blocks of its table that are in the pool under their names."""
        self.table = np.empty(0, np.int32)
        """`blocks` as the runner reads it, with room to grow."""
        self.draft: list[int] = []
        """Tokens guessed to come, verified in this step."""
        self.is_running = False
        self.is_ended = False
        self.last_ns = 0
        """When its last token came."""

    @property
    def generated(self) -> int:
        """Tokens of its output so far."""
        return len(self.ids) - len(self.state.request.prompt_ids)
