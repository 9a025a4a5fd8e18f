"""How alike are two sentences? MiniLM turns each into a unit vector; the dot product of two is the answer."""

from typing import Final

import numpy as np
from tokenizers import Tokenizer

from farthing.cli.demo_tasks.task import Finding, Infers, is_near
from farthing.repository.samples import sample_path
from farthing.types.tensors import Tensor

TOKENS_MAX: Final = 256
"""What the model was trained on; the tokenizer's file says 128, which is only its last user's setting."""
TOLERANCE: Final = 0.001

EXPECTED: Final = (
    ("The weather is lovely today.", "It's so sunny outside!", 0.6660),
    ("The weather is lovely today.", "He drove to the stadium.", 0.1046),
    ("A man is eating food.", "A man is eating a piece of bread.", 0.7553),
)


class Sentences:
    sample = "minilm-l6"
    question = "how alike are two sentences (cosine)?"

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(sample_path(self.sample) / "tokenizer.json"))
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.enable_padding()
        self._one = self.tokens([EXPECTED[0][0]])

    def tokens(self, sentences: list[str]) -> dict[str, Tensor]:
        """The model's inputs, padded to the longest sentence."""
        encoded = self._tokenizer.encode_batch(sentences)
        return {
            "input_ids": np.array([sentence.ids for sentence in encoded], np.int64),
            "attention_mask": np.array([sentence.attention_mask for sentence in encoded], np.int64),
        }

    def check(self, server: Infers) -> list[Finding]:
        findings = []
        for left, right, expected in EXPECTED:
            vectors = server.infer("minilm-l6", self.tokens([left, right]))["embedding"]
            likeness = float(vectors[0] @ vectors[1])
            findings.append(
                Finding(
                    input=f"{left} / {right}",
                    answer=f"{likeness:.4f}",
                    expected=f"{expected:.4f}",
                    is_right=is_near(likeness, expected, TOLERANCE),
                )
            )
        return findings

    def ask(self, server: Infers) -> None:
        server.infer("minilm-l6", self._one)
