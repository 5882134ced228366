"""Both tokenizers, made from the training's own sentences: CLIP's byte pairs and T5's unigrams."""

import json
import re
from collections import Counter

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5TokenizerFast

import scenes

CLIP_LENGTH = 77
T5_LENGTH = 24
# Enough for every word of the corpus to be one token; what is left over are letters and pairs of letters.
CLIP_VOCABULARY = 900
# What any other prompt is spelled in. The rest is unknown.
SIGNS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-/&+"


def write_clip_tokenizer(folder):
    """`vocab.json` and `merges.txt` as CLIP has them: byte level, the end of a word marked."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False)
    sentences = [re.sub(r"([,.])", r" \1", sentence) for sentence in scenes.vocabulary_corpus()]
    tokenizer.train_from_iterator(sentences, trainer)
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    words = alphabet + [sign + "</w>" for sign in alphabet] + [left + right for left, right in merges]
    words = list(dict.fromkeys(words)) + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({word: index for index, word in enumerate(words)}, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2"] + [f"{left} {right}" for left, right in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=CLIP_LENGTH,
    ).save_pretrained(folder)
    # The two files above say it all, to any version of transformers.
    (folder / "tokenizer.json").unlink()
    return len(words)


def corpus_words():
    """Every word of the training's sentences with its count, in lower case."""
    return Counter(word for sentence in scenes.vocabulary_corpus() for word in re.findall(r"[a-z]+", sentence))


def spellings(word):
    """A word as it stands in a sentence, at the head of one, and in a shout."""
    return list(dict.fromkeys([word, word.capitalize(), word.upper()]))


def write_t5_tokenizer(folder):
    """`tokenizer.json`: the corpus's words whole, any other text letter by letter."""
    counts = corpus_words()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    # A word as one piece always outweighs its letters.
    pieces += [("▁" + spelling, -8.0) for word in sorted(counts) for spelling in spellings(word)]
    pieces += [("▁", -12.0)] + [(sign, -12.0) for sign in SIGNS]
    tokenizer = T5TokenizerFast(
        vocab=pieces, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_ids=0, model_max_length=T5_LENGTH)
    tokenizer.save_pretrained(folder)
    return len(pieces)


def as_written(rng, sentence):
    """Now and then as people write: a capital, a full stop, a title, a shout."""
    roll = rng.random()
    if roll < 0.25:
        sentence = sentence[0].upper() + sentence[1:]
    elif roll < 0.28:
        sentence = sentence.title()
    elif roll < 0.30:
        sentence = sentence.upper()
    return sentence + "." if rng.random() < 0.2 else sentence
