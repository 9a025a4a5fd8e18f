"""What does a step of the generator cost besides the model? Microseconds a step, by generations that decode.

    python benchmarks/llm_step.py

The runner answers at once with logits made beforehand, so what is measured is planning, block tables, picking tokens
and telling readers, with warm caches. After a real pass over the weights caches are cold, and the same work takes about
twice as long.
"""

from functools import partial
from statistics import median, quantiles
from typing import Any

import numpy as np

from farthing.llm.runners.runner import Step
from farthing.llm.scheduler import Limits
from farthing.llm.spec import DecoderSpec, Rotary, RotaryKind
from farthing.llm.stepper import Stepper
from farthing.types.generation import GenerateRequest, SamplingParameters, StopConditions

VOCABULARY = 49_152
STEPS = 300
WARM_UP_STEPS = 20
PROMPT_TOKENS = 128


class InstantRunner:
    """Logits of a language model's shape: few likely tokens, a long tail."""

    spec = DecoderSpec(
        architecture="none",
        vocabulary=VOCABULARY,
        context_tokens=4096,
        layers=1,
        width=2,
        heads=1,
        kv_heads=1,
        head_size=2,
        ffn_width=2,
        norm_epsilon=1e-5,
        rotary_kind=RotaryKind.HALVES,
        rotaries=(Rotary(frequencies=(1.0,)),),
        rotary_of_layer=(0,),
        window_of_layer=(0,),
        attention_scale=1.0,
    )
    block_tokens = 32
    blocks = 4096

    def __init__(self) -> None:
        chance = np.random.default_rng(0)
        self._logits = chance.gumbel(size=(600, VOCABULARY)).astype(np.float32) * 1.5

    def run(self, step: Step) -> np.ndarray:
        return self._logits[: len(step.logits_rows)]

    def copy_block(self, source: int, target: int) -> None:
        pass

    def close(self) -> None:
        pass


class Words:
    """A tokenizer whose every token is a word."""

    eos_ids = frozenset({0})
    special_ids = frozenset({0})

    def token_bytes(self, token: int) -> bytes:
        return b" word"


def measure(generations: int, *, stop: tuple[str, ...] = (), speculates: bool = True, **sampling: Any) -> list[float]:
    """Microseconds of each step."""
    stepper = Stepper(InstantRunner(), Words(), limits=Limits(), speculates=speculates)
    told: list[Any] = []
    tokens = STEPS + WARM_UP_STEPS + 50
    for number in range(generations):
        request = GenerateRequest(
            id=str(number),
            model="none",
            prompt_ids=tuple(range(100 + number, 100 + number + PROMPT_TOKENS)),
            sampling=SamplingParameters(seed=number, **sampling),
            ends=StopConditions(tokens_max=tokens, ignores_eos=True, stop=stop),
        )
        stepper.roster.add(request, told.append, tokens, 1)
    for _ in range(WARM_UP_STEPS):
        stepper.step()
    took = []
    for _ in range(STEPS):
        stepper.step()
        took.append(stepper.roster.counters.last_step.other_ns / 1e3)
    return took


def main() -> None:
    cases = {
        "greedy": partial(measure, temperature=0.0, speculates=False),
        "greedy, drafting": partial(measure, temperature=0.0),
        "greedy, stop strings": partial(measure, temperature=0.0, speculates=False, stop=("\n\nUser:", "###")),
        "temperature 1": partial(measure, temperature=1.0, speculates=False),
        "temperature 0.8, top_p 0.95": partial(measure, temperature=0.8, top_p=0.95, speculates=False),
    }
    print(f"{'us a step, median (90 %)':30}" + "".join(f"{count:>18}" for count in (1, 8, 32)))
    for name, case in cases.items():
        cells = []
        for count in (1, 8, 32):
            took = case(count)
            cells.append(f"{median(took):,.0f} ({quantiles(took, n=10)[-1]:,.0f})")
        print(f"{name:30}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
