"""One completion, as the client saw it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """Times are seconds of one monotonic clock."""

    begin_s: float
    first_s: float
    """When the first chunk with text was there."""
    end_s: float
    """When the last chunk with text was there."""
    prompt_tokens: int
    tokens: int
    """Generated, as the server's own usage says."""

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.begin_s

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first one."""
        return (self.tokens - 1) / (self.end_s - self.first_s) if self.end_s > self.first_s else 0.0
