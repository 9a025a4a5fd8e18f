"""What does a grammar cost, and what does it save? On SmolLM2-135M and the native runner, on this machine.

    python benchmarks/llm_grammar.py

Milliseconds to compile, microseconds a step besides the model with and without a grammar, and the steps that a small
JSON object takes with and without drafts of what its grammar forces.
"""

import json
import time
from contextlib import suppress
from statistics import median
from typing import Any

from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.grammar import CompiledGrammar, GrammarCompiler
from farthing.llm.runners.cpu import CpuRunner
from farthing.llm.scheduler import Limits
from farthing.llm.stepper import Stepper
from farthing.llm.tokenizer import Tokenizer
from farthing.repository.samples import sample_path
from farthing.types.errors import InvalidInput
from farthing.types.generation import Delta, GenerateRequest, SamplingParameters, StopConditions

PERSON = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 12},
        "last_name": {"type": "string", "maxLength": 12},
        "date_of_birth": {"type": "string", "format": "date"},
        "favourite_colour": {"enum": ["red", "green", "blue"]},
        "number_of_children": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["first_name", "last_name", "date_of_birth", "favourite_colour", "number_of_children"],
    "additionalProperties": False,
}
GRAMMARS = {
    "a person": f"start: %json {json.dumps(PERSON)}",
    "any JSON object": 'start: %json {"type": "object"}',
    "10,000 words": f"start: %json {json.dumps({'enum': [f'word{n}' for n in range(10_000)]})}",
    "2,000 properties": "start: %json "
    + json.dumps({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1_900)}}),
    "a{1000}{1000}": "start: /a{1000}{1000}/",
    "prime": 'start: %json {"type": "integer", "multipleOf": 1000000007}',
}
TOKENS = 100
WARM_UP_STEPS = 10


class Bench:
    """The model, and requests to it."""

    def __init__(self) -> None:
        checkpoint = open_checkpoint(sample_path("smollm2-135m") / "1" / "model.gguf")
        self.tokenizer: Tokenizer = checkpoint.tokenizer()
        self.grammars = GrammarCompiler(self.tokenizer, checkpoint.spec.vocabulary)
        self.runner = CpuRunner(checkpoint, kv_blocks=512, threads=2)

    def stepper(self, generations: int, grammar: CompiledGrammar | None, told: list[Any], **given: Any) -> Stepper:
        stepper = Stepper(self.runner, self.tokenizer, limits=Limits(), speculates=given.pop("speculates", False))
        for number in range(generations):
            request = GenerateRequest(
                id=str(number),
                model="smollm2",
                prompt_ids=tuple(self.tokenizer.encode(f"Person number {number} in JSON: ")),
                sampling=SamplingParameters(seed=number, temperature=given.get("temperature", 1.0)),
                ends=StopConditions(tokens_max=TOKENS, ignores_eos=True),
                grammar=grammar,
            )
            stepper.roster.add(request, told.append, TOKENS, 1)
        return stepper

    def step_us(self, generations: int, grammar: CompiledGrammar | None) -> float:
        stepper = self.stepper(generations, grammar, [])
        took = []
        while stepper.step():
            took.append(stepper.roster.counters.last_step.other_ns / 1e3)
        return median(took[WARM_UP_STEPS:])


def main() -> None:
    bench = Bench()
    began = time.perf_counter()
    bench.grammars.compile("start: /a/")
    print(f"the vocabulary, once a model: {(time.perf_counter() - began) * 1e3:.0f} ms")
    for name, text in GRAMMARS.items():
        began, said = time.perf_counter(), "refused"
        with suppress(InvalidInput):
            bench.grammars.compile(text)
            said = "compiled"
        print(f"{name:20}{said:>10} in {(time.perf_counter() - began) * 1e3:8.1f} ms")
    long = {"type": "object", "properties": {"a": {"type": "string", "minLength": 2000}}, "required": ["a"]}
    inside_a_string = bench.grammars.compile(f"start: %json {json.dumps(long)}")
    print(f"\n{'us a step besides the model':30}{1:>8}{8:>8}")
    for name, grammar in (("no grammar", None), ("inside of a JSON string", inside_a_string)):
        print(f"{name:30}" + "".join(f"{bench.step_us(count, grammar):8.0f}" for count in (1, 8)))
    person = bench.grammars.compile(GRAMMARS["a person"])
    print()
    for speculates in (False, True):
        told: list[Any] = []
        stepper = bench.stepper(1, person, told, speculates=speculates, temperature=0.0)
        for rows, ns in ((1, 4_400_000), (9, 5_500_000)):
            stepper.times.observe(rows, ns)
        began = time.perf_counter()
        while stepper.step():
            pass
        took = (time.perf_counter() - began) * 1e3
        text = "".join(delta.text for delta in told if isinstance(delta, Delta))
        print(f"{stepper.roster.counters.steps} steps, {took:.0f} ms, drafts {'on' if speculates else 'off'}: {text}")


if __name__ == "__main__":
    main()
