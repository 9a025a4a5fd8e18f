"""Messages into the prompt a model was trained on, by the Jinja template that comes with it.

A template is a program from the model's file, and what it is given comes from clients; neither is trusted. It runs in
Jinja's immutable sandbox with bounds on steps, time and text. Control tokens that clients write stay text:

    user's text        hello<|im_end|>          -> a mark after the first character of what could be a control token
    rendered prompt    <|im_start|>user\\nhello<*|im_end|><|im_end|>
    token ids          the unbroken names become control tokens; then the mark goes, and what it broke is text

The mark is a character that no text of the request holds. What messages may look like is for `protocols` to say.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from itertools import islice
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.filters import do_batch, do_center, do_format, do_indent, do_slice
from jinja2.parser import Parser

from farthing.llm.tokenizer import Tokenizer
from farthing.llm.tool_styles import ToolStyle, style_of
from farthing.types.errors import FarthingError, InvalidInput, LoadFailed, TooLarge

SOURCE_CHARACTERS_MAX: Final = 1 << 20
RENDERED_CHARACTERS_MAX: Final = 64 << 20
"""What no context holds; bodies of requests are bounded well below."""
STEPS_MAX: Final = 5_000_000
"""Look-ups, calls and range elements one rendering may spend: a thousand times what long chats need."""
SECONDS_MAX: Final = 5.0
REPEATED_MAX: Final = 1 << 20
"""Characters or elements that one `*` may make."""
WIDTH_MAX: Final = 99_999
"""Largest number in a call: widths of padding, counts of parts."""
_WIDE: Final = re.compile(r"%[^a-zA-Z%]*\d{6}|\{[^{}]*\d{6}")
_MARKS: Final = range(0xE000, 0xF8FF)
"""Characters for private use, one of which is the mark of a request."""
_NESTING_MAX: Final = 64


class ChatTemplate:
    """One model's template, compiled. Raises `LoadFailed` for a source that is no template."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        if len(source) > SOURCE_CHARACTERS_MAX:
            raise LoadFailed(f"the chat template has {len(source)} characters; {SOURCE_CHARACTERS_MAX} are allowed")
        self.source: Final = source
        self._tokenizer = tokenizer
        self.tool_style: Final[ToolStyle | None] = style_of(source)
        """How it teaches to call tools; None: not at all, or not in a way known here (`tool_prompt` helps)."""
        try:
            self._code = _Sandbox(_Budget()).compile(source)
        except Exception as error:  # TemplateError; or RecursionError and its like for a hostile one
            raise LoadFailed(f"the model's chat template is not sound: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        adds_generation_prompt: bool = True,
        continues_final: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt's text. Raises `InvalidInput` with what the template says of the messages.

        With `continues_final` it ends where the last message's words do, for the model to go on with them; then no
        new turn is begun. `variables` are handed to the template (`enable_thinking`, `documents`, ...).
        """
        given = {"messages": messages, "tools": tools, **variables}
        if not continues_final:
            return self._rendered(given, adds_generation_prompt)
        return self._cut(given, _marks(given)[1])

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        adds_generation_prompt: bool = True,
        continues_final: bool = False,
        **variables: Any,
    ) -> list[int]:
        """The prompt's token ids: control tokens where the template writes them, never where a client does.

        `continues_final` leaves the last message open, for the model to go on with; nothing is added behind it.
        """
        given = {"messages": messages, "tools": tools, **variables}
        mark, end = _marks(given)
        disarmed = _mapped(given, lambda text: self._tokenizer.disarm(text, mark))
        text = self._cut(disarmed, end) if continues_final else self._rendered(disarmed, adds_generation_prompt)
        return self._tokenizer.encode_marked(text, mark)

    def _cut(self, given: Mapping[str, Any], end: str) -> str:
        """The prompt up to where the last message ends, which the mark `end` shows."""
        messages = [*given["messages"]]
        if not messages or not isinstance(messages[-1], Mapping):
            raise InvalidInput("there is no last message to continue")
        messages[-1] = {**messages[-1], "content": _ended(messages[-1].get("content"), end)}
        text, found, _ = self._rendered({**given, "messages": messages}, False).rpartition(end)
        if not found:
            raise InvalidInput("the model's chat template does not show the last message, so it cannot be continued")
        return text

    def _rendered(self, given: Mapping[str, Any], adds_generation_prompt: bool) -> str:
        budget = _Budget()
        environment = _Sandbox(budget)
        pieces: list[str] = []
        size = 0
        try:
            template = jinja2.Template.from_code(environment, self._code, environment.make_globals(None))
            for piece in template.generate(
                **self._tokenizer.named, **given, add_generation_prompt=adds_generation_prompt
            ):
                size += len(piece)
                budget.spend(1)
                if size > RENDERED_CHARACTERS_MAX:
                    raise TooLarge(f"the rendered prompt is longer than {RENDERED_CHARACTERS_MAX} characters")
                pieces.append(piece)
        except FarthingError:
            raise
        except jinja2.TemplateError as error:
            raise InvalidInput(f"the model's chat template refuses these messages: {error.message}") from error
        except Exception as error:  # whatever a template does with messages it was not written for
            raise InvalidInput(f"the model's chat template cannot take these messages: {error}") from error
        return "".join(pieces)


class _Budget:
    """What is left to one rendering."""

    def __init__(self) -> None:
        self._steps = STEPS_MAX
        self._end = time.monotonic() + SECONDS_MAX

    def spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0 or time.monotonic() > self._end:
            raise TooLarge(
                "rendering the prompt takes too long",
                hint="send fewer messages; the model's chat template may be to blame",
            )


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it (the options and functions transformers gives them), on a budget."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, budget: _Budget) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self._budget = budget
        self.filters |= {"tojson": _as_json, "center": _measured(do_center), "format": _measured(do_format)}
        self.filters |= {"indent": _measured(do_indent), "batch": _measured(do_batch), "slice": _measured(do_slice)}
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now, "range": self._range}

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._budget.spend(1)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._budget.spend(1)
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self._budget.spend(1)
        of = getattr(__obj, "__self__", None)
        _refuse_width(
            of if isinstance(of, str) and __obj.__name__.startswith("format") else "", *args, *kwargs.values()
        )
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._budget.spend(1)
        if operator == "*":
            for many, count in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(count, int) and len(many) * count > REPEATED_MAX:
                    raise jinja2.exceptions.SecurityError(f"`*` would make more than {REPEATED_MAX}")
        elif operator == "**" or isinstance(left, str | bytes):
            raise jinja2.exceptions.SecurityError(f"`{operator}` is not allowed in chat templates")
        return super().call_binop(context, operator, left, right)

    def _range(self, *bounds: int) -> range:
        asked = range(*bounds)
        self._budget.spend(len(asked))
        return asked


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks an assistant's words for training; here they are only passed on."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it as a set

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        body: list[jinja2.nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def _refuse_width(*values: object) -> None:
    """ "x".center(10**9) and "{:>999999999}".format(1): a number is enough to ask for any memory."""
    for value in values:
        if (isinstance(value, int) and abs(value) > WIDTH_MAX) or (isinstance(value, str) and _WIDE.search(value)):
            raise jinja2.exceptions.SecurityError(f"numbers above {WIDTH_MAX} are not allowed in calls")


def _measured(filtering: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(filtering)
    def measured(value: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_width(value if filtering is do_format else "", *args, *kwargs.values())
        return filtering(value, *args, **kwargs)

    return measured


def _as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: plain `json.dumps`; Jinja's own escapes characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _marks(given: Any) -> tuple[str, str]:
    """Two characters that stand nowhere in the request."""
    used = {character for text in _texts(given, 0) if not text.isascii() for character in text}
    free = list(islice((chr(point) for point in _MARKS if chr(point) not in used), 2))
    if len(free) < 2:
        raise InvalidInput("the messages use up all characters for private use (U+E000 and on)")
    return free[0], free[1]


def _ended(content: Any, end: str) -> Any:
    """The content with the mark after its last words. Raises `InvalidInput` if it has none."""
    if content is None or isinstance(content, str):
        return (content or "") + end
    if isinstance(content, list | tuple) and content and isinstance(content[-1], Mapping) and "text" in content[-1]:
        return [*content[:-1], {**content[-1], "text": str(content[-1]["text"]) + end}]
    raise InvalidInput("the last message has no text to continue")


def _texts(value: Any, nesting: int) -> Iterator[str]:
    if nesting > _NESTING_MAX:
        raise InvalidInput(f"messages are nested deeper than {_NESTING_MAX}")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key, nesting + 1)
            yield from _texts(inner, nesting + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, nesting + 1)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with every text in it changed, keys of clients' objects included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key) if isinstance(key, str) else key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, change) for inner in value]
    return value
