"""The tokenizer of the stories: each word and each punctuation mark is one token.

A word carries the space before it, as in SentencePiece, so that it is the same token wherever it stands, and decoding
gives the text back exactly. Like GPT-2's, the tokenizer has one token for both ends of a document; words that no story
has become a separate token, lest they pass for ends.
"""

from __future__ import annotations

from typing import Any

from ldlm.stories.process import StoryProcess
from ldlm.stories.words import PUNCTUATION

ENDS = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
SPACE = "▁"


def tokenizer(source: StoryProcess) -> Any:
    """A transformers tokenizer with all words of a source, in alphabetical order after the special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [word if word in PUNCTUATION else SPACE + word for word in source.vocabulary]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate([ENDS, UNKNOWN, *words])}, UNKNOWN))
    spaced: Any = pre_tokenizers.Metaspace(SPACE, "always")
    marks = [pre_tokenizers.Split(mark, "isolated") for mark in PUNCTUATION]
    made.pre_tokenizer = pre_tokenizers.Sequence([spaced, *marks])
    made.decoder = decoders.Metaspace(SPACE, "always")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=ENDS,
        eos_token=ENDS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
