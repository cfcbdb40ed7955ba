"""A tokenizer whose tokens are single characters, for policies that start from random weights."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm_reinforce.errors import InputError

END_TOKEN = "<end>"


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character of `alphabet` and an end token.

    The end token also serves as pad token. There is no unknown token: encoding a character outside the
    alphabet raises an error. For a policy with random weights, the vocabulary should be small, because
    unneeded tokens make it less likely that a correct answer is sampled.

    Args:
        alphabet: the characters. Each character must occur exactly once.

    Raises:
        InputError: if the alphabet is empty or contains a character twice.
    """
    if not alphabet or len(set(alphabet)) != len(alphabet):
        raise InputError(
            f"alphabet {alphabet!r} is empty or contains a character twice; give each character exactly once"
        )
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    vocabulary[END_TOKEN] = len(alphabet)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        clean_up_tokenization_spaces=False,
    )
