"""A request under way, and each of its choices: what they know, where their keys and values are, how they pick and end.

State only; `stepper` owns and changes it, `scheduler` reads the part it decides by.
"""

from collections.abc import Callable, Sequence

import numpy as np

from farthing.llm.choice_text import ChoiceText
from farthing.llm.sampler import Sampling
from farthing.llm.scheduler import Progress
from farthing.llm.speculation import Drafter
from farthing.types.errors import FarthingError
from farthing.types.generation import GenerateRequest, GenerationEvent, TokenLogprob
from farthing.types.grammar import GrammarState

OnEvent = Callable[[GenerationEvent | FarthingError], None]


class RequestState:
    """One request: its choices that have not ended, and its times."""

    __slots__ = (
        "admitted_ns", "arrival_ns", "cached_tokens", "choices", "completion_tokens", "eos_ids", "is_ended",
        "is_prompt_done", "on_event", "prompt_done_ns", "prompt_logprobs", "prompt_tokens", "request", "root", "seed",
        "stop_ids", "tokens_max", "unforked",
    )  # fmt: skip

    def __init__(
        self,
        request: GenerateRequest,
        on_event: OnEvent,
        *,
        arrival_ns: int,
        seed: int,
        stop_ids: frozenset[int],
        eos_ids: frozenset[int],
        tokens_max: int,
        root: bytes,
    ) -> None:
        self.request = request
        self.on_event = on_event
        self.arrival_ns = arrival_ns
        self.seed = seed
        self.stop_ids = stop_ids
        """Tokens that end a choice."""
        self.eos_ids = eos_ids
        """The model's own ends of text, whether or not they end a choice."""
        self.tokens_max = tokens_max
        """What the request asked for, as far as context and pool reach."""
        self.root = root
        """Where the chain of its blocks' names begins."""
        self.prompt_tokens = len(request.prompt_ids)
        self.choices: list[Generation] = []
        """Running or waiting."""
        self.unforked: list[Generation] = []
        """Choices that begin when the first has read the prompt."""
        self.is_ended = False
        self.is_prompt_done = False
        self.prompt_logprobs: list[TokenLogprob] = []
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.admitted_ns = 0
        self.prompt_done_ns = 0


class Generation(Progress):
    """One choice of a request."""

    __slots__ = (
        "drafter", "grammar", "ids", "index", "is_ended", "is_running", "keys", "last_ns", "named", "sampling", "state",
        "table", "text",
    )  # fmt: skip

    def __init__(
        self,
        state: RequestState,
        *,
        index: int,
        number: int,
        text: ChoiceText,
        sampling: Sampling,
        drafter: Drafter | None,
        grammar: GrammarState | None = None,
    ) -> None:
        request = state.request
        super().__init__(
            number=number,
            known=state.prompt_tokens,
            tenant=request.tenant,
            rank=request.priority,
            queued_ns=state.arrival_ns,
            wants_prompt_logits=request.prompt_logprobs is not None and index == 0,
        )
        self.state = state
        self.index = index
        self.ids: list[int] = list(request.prompt_ids)
        """All it knows: prompt and output."""
        self.text = text
        self.sampling = sampling
        self.drafter = drafter
        """None: its tokens depend on those before in ways that a draft would not see (penalties)."""
        self.grammar = grammar
        """How far it has come in what it must look like; preemption does not touch it, as it does not touch `ids`."""
        self.keys: list[bytes] = []
        """Names of its full blocks, as far as they were needed."""
        self.named = 0
        """Blocks of its table that are in the pool under their names."""
        self.table = np.empty(0, np.int32)
        """`blocks` as the runner reads it, with room to grow."""
        self.is_running = False
        self.is_ended = False
        self.last_ns = 0
        """When its last token came."""

    @property
    def takes_likeliest(self) -> bool:
        """Of the next step it wants the likeliest token as it stands, and nothing else."""
        return (
            self.sampling.is_plain
            and self.grammar is None
            and self.sampling.logprobs is None
            and not self.wants_prompt_logits
            and not self.state.request.ends.tokens_min
        )

    @property
    def generated(self) -> int:
        """Tokens of its output so far."""
        return self.known - self.state.prompt_tokens

    def banned(self) -> Sequence[int]:
        """Tokens that may not come yet."""
        tokens_min = self.state.request.ends.tokens_min
        return sorted(self.state.stop_ids) if tokens_min and self.generated < tokens_min else ()

    def unwanted(self) -> Sequence[int]:
        """Tokens that may come only when its grammar allows nothing else."""
        eos_ids = self.state.eos_ids
        return sorted({*self.banned(), *eos_ids}) if self.state.request.ends.ignores_eos else self.banned()
