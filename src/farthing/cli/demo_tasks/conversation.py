"""What is the capital of Japan? SmolLM2 is asked alone, then by 32 people at once, each of whom reads along.

What somebody hears must not depend on who else is talking: each stream of the burst is held against the same question
asked alone afterwards, token by token, sampling included.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from farthing.cli.demo_tasks.task import Finding, Infers

USERS: Final = 32
TOKENS: Final = 24
SUBJECTS: Final = ("rain", "bread", "the moon", "a violin", "winter", "chess", "the sea", "a lighthouse")
QUESTION: Final = "What is the capital of Japan?"


class Conversation:
    sample = "smollm2-135m"
    question = "what is the capital of Japan, and do 32 people at once hear what each would hear alone?"

    def check(self, server: Infers) -> list[Finding]:
        said = _answer(server, QUESTION, max_tokens=32, temperature=0)
        with ThreadPoolExecutor(USERS) as users:
            began = time.perf_counter()
            together = list(users.map(lambda user: _heard(server, user), range(USERS)))
            took_s = time.perf_counter() - began
        alone = [_heard(server, user) for user in range(USERS)]
        same = sum(
            text == lone and tokens == count > 0 for (text, tokens), (lone, count) in zip(together, alone, strict=True)
        )
        rate = sum(tokens for _, tokens in together) / took_s
        return [
            Finding(input=QUESTION, answer=said.strip(), expected="Tokyo is named", is_right="Tokyo" in said),
            Finding(
                input=f"{USERS} people at once",
                answer=f"{same} streams equal to the lone ones, {rate:,.0f} tokens/s together",
                expected=f"{USERS} equal",
                is_right=same == USERS,
            ),
        ]

    def ask(self, server: Infers) -> None:
        _answer(server, QUESTION, max_tokens=8, temperature=0)


def _answer(server: Infers, question: str, **fields: float) -> str:
    messages = [{"role": "user", "content": question}]
    return "".join(piece.text for piece in server.chat("smollm2-135m", messages, **fields))


def _heard(server: Infers, user: int) -> tuple[str, int]:
    """What a user hears, and how many tokens that was."""
    messages = [{"role": "user", "content": f"Tell me {user + 2} things about {SUBJECTS[user % len(SUBJECTS)]}."}]
    pieces = list(server.chat("smollm2-135m", messages, max_tokens=TOKENS, temperature=0.8, seed=user))
    return "".join(piece.text for piece in pieces), sum(piece.completion_tokens for piece in pieces)
