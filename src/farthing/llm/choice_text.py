"""What a choice shows its reader: tokens in, deltas out, with text, token ids and logprobs that belong together.

Text is shown when no stop string can take it back and its characters are whole; a token's id and logprob go with the
delta that shows the last of its text. A token that ends the choice (end of text, `stop_token_ids`) adds no text. Of a
stop string that is cut away, tokens that begin behind the cut lose their logprobs and keep their ids: a reader joins
logprobs to the text, and counts ids.
"""

from collections import deque
from collections.abc import Callable

from farthing.llm.detokenizer import Detokenizer
from farthing.llm.stop import StopStrings
from farthing.types.generation import Delta, FinishReason, TokenLogprob

Wording = Callable[[bytes], TokenLogprob]
"""Makes a token's logprob, given the bytes it adds to the text."""


class ChoiceText:
    """The text of one choice, as far as it is known and as far as it was shown."""

    __slots__ = ("_detokenizer", "_index", "_shown", "_stops", "_unshown", "_written")

    def __init__(self, index: int, detokenizer: Detokenizer, stops: StopStrings | None) -> None:
        self._index = index
        self._detokenizer = detokenizer
        self._stops = stops
        self._written = 0  # characters decoded
        self._shown = 0  # characters shown
        self._unshown: deque[tuple[int, int, int, TokenLogprob | None]] = deque()  # (start, end, id, logprob)

    def add(self, token: int, wording: Wording | None, *, may_stop: bool, end: FinishReason | None) -> Delta | None:
        """The next token, and what can be shown now. `end`: why no more will come, unless a stop string is found."""
        detokenizer = self._detokenizer
        text = detokenizer.add(token)
        if end is not None:
            text += detokenizer.end()
        start = self._written
        self._written += len(text)
        is_inside = detokenizer.is_inside_character
        logprob = None if wording is None else wording(detokenizer.bytes_of(token))
        shown, found = text, None
        if self._stops is not None:
            shown, found = self._stops.add(text, may_stop=may_stop)
            if end is not None and found is None:
                shown += self._stops.end()
        if not self._unshown and not is_inside and found is None and len(shown) == len(text):
            self._shown = self._written
            return Delta(
                index=self._index,
                text=shown,
                token_ids=(token,),
                logprobs=() if logprob is None else (logprob,),
                finish=end,
            )
        self._unshown.append((start, self._written + (1 if is_inside else 0), token, logprob))
        if found is not None:
            return self._end(shown, FinishReason.STOP, found)
        if end is not None:
            return self._end(shown, end, None)
        return self._show(shown)

    def stop_at(self, token: int, wording: Wording | None, *, is_named: bool) -> Delta:
        """The token that ends the choice without being part of its text. `is_named`: the request named it."""
        text = self._detokenizer.end()
        self._written += len(text)
        found = None
        if self._stops is not None:
            text, found = self._stops.add(text)
            if found is None:
                text += self._stops.end()
        logprob = None if wording is None else wording(b"")
        self._unshown.append((self._written, self._written, token, logprob))
        return self._end(text, FinishReason.STOP, found or (token if is_named else None))

    def abandon(self, reason: FinishReason) -> Delta:
        """Ends without another token."""
        text = self._detokenizer.end()
        self._written += len(text)
        if self._stops is not None:
            text, found = self._stops.add(text)
            if found is not None:
                return self._end(text, FinishReason.STOP, found)
            text += self._stops.end()
        return self._end(text, reason, None)

    def _show(self, text: str) -> Delta | None:
        self._shown += len(text)
        ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        unshown = self._unshown
        while unshown and unshown[0][1] <= self._shown:
            _, _, token, logprob = unshown.popleft()
            ids.append(token)
            if logprob is not None:
                logprobs.append(logprob)
        if not text and not ids:
            return None
        return Delta(index=self._index, text=text, token_ids=tuple(ids), logprobs=tuple(logprobs))

    def _end(self, text: str, finish: FinishReason, stop: str | int | None) -> Delta:
        self._shown += len(text)
        is_cut = isinstance(stop, str)
        logprobs = tuple(
            logprob
            for start, end, _, logprob in self._unshown
            if logprob is not None and not (is_cut and start >= self._shown and end > self._shown)
        )
        ids = tuple(token for _, _, token, _ in self._unshown)
        self._unshown.clear()
        return Delta(index=self._index, text=text, token_ids=ids, logprobs=logprobs, finish=finish, stop_reason=stop)
