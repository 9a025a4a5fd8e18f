"""The spans of a language model's answer, by the names of OpenTelemetry's conventions for generative AI.

chat NAME            gen_ai.* attributes
  queue
  prefill
  decode
"""

from collections.abc import Sequence
from typing import Final

from farthing.types.generation import Finished, FinishReason, GenerateRequest
from farthing.types.trace import Attribute, Trace

PROVIDER: Final = "farthing"


def note_generation(
    trace: Trace, operation: str, request: GenerateRequest, finished: Finished, reasons: Sequence[FinishReason]
) -> None:
    """Notes one prompt that was continued to its end; `operation` is `chat` or `text_completion`."""
    usage, sampling = finished.usage, request.sampling
    attributes: dict[str, Attribute] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model,
        "gen_ai.response.model": request.model,
        "gen_ai.response.id": request.id,
        "gen_ai.request.max_tokens": request.ends.tokens_max,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
    if reasons:
        attributes["gen_ai.response.finish_reasons"] = tuple(reason.value for reason in reasons)
    if request.n > 1:
        attributes["gen_ai.request.choice.count"] = request.n
    if sampling.top_k:
        attributes["gen_ai.request.top_k"] = sampling.top_k
    if sampling.seed is not None:
        attributes["gen_ai.request.seed"] = sampling.seed
    admitted_ns = request.arrival_ns + finished.queue_ns
    read_ns = admitted_ns + finished.prefill_ns
    end_ns = read_ns + finished.decode_ns
    place = trace.context.child()
    trace.note(f"{operation} {request.model}", request.arrival_ns, end_ns, attributes, context=place)
    trace.note("queue", request.arrival_ns, admitted_ns, context=place.child())
    trace.note("prefill", admitted_ns, read_ns, context=place.child())
    trace.note("decode", read_ns, end_ns, context=place.child())
