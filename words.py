"""
Sentences -> tokens, for models that read. A vision-language model comes with a tokenizer.json, of its own
vocabulary; a small model that learns its words itself does with hashes.
"""
import re
import zlib

import torch
import torch.nn.functional as F

SAVED = '(in the checkpoint)'  # a tokenizer's name where the sentences will come as tokens, with the weights

# what weights were trained on, by the buffer `hashed` that goes with them
KINDS = "its words are a VLM's: tokenizer = its tokenizer.json", "its words are hashes: tokenizer = ''"


def hashed(text, vocab_size, known):
    """
    Tokens of a text without a tokenizer: each word's hash, digits one by one. known {token: word} grows; two
    words of one token are refused. None: they are not.
    """
    tokens = []
    for word in re.findall(r'\d|[^\W\d]+|[^\w\s]|\n', text.lower()):
        # 0 to 2 are no words; digits have tokens of their own
        token = 3 + int(word) if word.isdecimal() else 13 + zlib.crc32(word.encode()) % (vocab_size - 13)
        if known is not None and known.setdefault(token, word) != word:
            raise ValueError(f'vocab_size = {vocab_size}: {word!r} and {known[token]!r} would be one word; '
                             'want more, or a few less')
        tokens.append(token)
    return tokens


def reader(path, vocab_size, first, hashes=True, distinct=True):
    """
    text -> its tokens, by a tokenizer.json, or by `hashed`. first (token, number): what its vocabulary must
    have, so that no other one is taken for it. hashes: else a model has learned words of a tokenizer.
    distinct: no two words may have the same hash.
    """
    if path == SAVED:
        return lambda text: []
    if not path and not hashes:
        raise ValueError('its words are those of a tokenizer, and the checkpoint knows but the sentences of '
                         'its training; tell(tasks, tokenizer=PATH) for others')
    if not path:
        known = {} if distinct else None
        return lambda text: hashed(text, vocab_size, known)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(f"tokenizer = {path}: needs the package tokenizers: pip install -e '.[vla]'; "
                         "tokenizer = '' hashes words, for a model from scratch") from None
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:                           # the package raises nothing more special
        raise ValueError(f'tokenizer = {path}: {error}; want the tokenizer.json of the VLM') from None
    token, number = first
    n, there = tokenizer.get_vocab_size(), tokenizer.token_to_id(token)
    if abs(n - vocab_size) > 64 or there != number:      # the last few may have no row in the weights
        raise ValueError(f'tokenizer = {path}: {n:,} tokens, {token} is number {there}; the VLM has '
                         f'{vocab_size:,}, {token} is number {number}: it belongs to another one')
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def table(rows, width, texts=(), more=0):
    """
    Lists of tokens -> (rows, width) on the CPU, -1 behind their ends. texts: what they are, to name the one
    that does not fit with `more` tokens behind.
    """
    for row, text in zip(rows, texts):
        if len(row) + more > width:
            raise ValueError(f'tokenizer_max_length = {width}: {text!r} takes up to {len(row) + more} '
                             'tokens; we do not cut as LeRobot does')
    rows = [row + [-1] * (width - len(row)) for row in rows]
    return torch.tensor(rows, device='cpu').view(len(rows), width)


def longest(table):
    """Tokens in its longest row, at least 1."""
    return max(1, int((table >= 0).sum(1).max()))


def joined(pieces, width):
    """(B, n) tokens with -1 in between -> (B, width) with the -1 at the end."""
    order = (pieces < 0).to(torch.uint8).sort(dim=1, stable=True).indices
    return F.pad(pieces.gather(1, order), (0, width), value=-1)[:, :width]
