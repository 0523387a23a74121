"""The tokenizer: byte-level BPE in which every word of the corpus is one token.

Whole words come first (`ignore_merges`, as in Llama 3), so the vocabulary needs no chain of merges
per word; 256 bytes and a few merges spell whatever the corpus never says.
"""

import json
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

START = "<|endoftext|>"
MERGES = 120


def build_tokenizer(texts: Sequence[str], context: int) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a corpus sample that contains every word of the corpus.

    Args:
        texts: plain sentences.
        context: the model's longest prompt, in tokens.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)}
    small = Tokenizer(models.BPE())
    small.pre_tokenizer = splitter
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1 + 256 + MERGES,
        special_tokens=[START],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    small.train_from_iterator(sorted(words), trainer)
    learnt = json.loads(small.to_str())["model"]
    vocabulary = dict(learnt["vocab"])
    for word in sorted(words - set(vocabulary)):
        vocabulary[word] = len(vocabulary)
    merges = [tuple(pair) for pair in learnt["merges"]]
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    whole.pre_tokenizer = splitter
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens([START])
    whole.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, vocabulary[START])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token=START,
        eos_token=START,
        model_max_length=context,
        add_prefix_space=True,
        clean_up_tokenization_spaces=False,
    )
