"""OpenAI's API: bytes to requests, and what is generated to bytes. No sockets, no models."""

from farthing.protocols.openai.answers import Choice, Heading, chat_completion, sum_usage, text_completion
from farthing.protocols.openai.calls import Calling
from farthing.protocols.openai.chat import ChatBody, parse_chat
from farthing.protocols.openai.chunks import ChatChunks, Chunks, CompletionChunks
from farthing.protocols.openai.completions import CompletionBody, CompletionRequest, Prompt, parse_completion
from farthing.protocols.openai.errors import encode_error, status_of
from farthing.protocols.openai.fields import Fields, SamplingDefaults, sampling, stops
from farthing.protocols.openai.messages import template_messages
from farthing.protocols.openai.models import ListedModel, model_json, models_json
from farthing.protocols.openai.tokens import detokenize_json, parse_detokenize, parse_tokenize, tokenize_json

__all__ = [
    "Calling",
    "ChatBody",
    "ChatChunks",
    "Choice",
    "Chunks",
    "CompletionBody",
    "CompletionChunks",
    "CompletionRequest",
    "Fields",
    "Heading",
    "ListedModel",
    "Prompt",
    "SamplingDefaults",
    "chat_completion",
    "detokenize_json",
    "encode_error",
    "model_json",
    "models_json",
    "parse_chat",
    "parse_completion",
    "parse_detokenize",
    "parse_tokenize",
    "sampling",
    "status_of",
    "stops",
    "sum_usage",
    "template_messages",
    "text_completion",
    "tokenize_json",
]
