"""Text encoder, and the codec that turns texts into what it takes: tokens, and bags of spellings."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log, sqrt
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from ashnets.config import ModelConfig
from hw.spellings import spellings

PAD, CLS, SEP, MASK = "[PAD]", "[CLS]", "[SEP]", "[MASK]"
_KEPT = 1 << 15  # texts whose encoding is kept, some 60 MB


class Tokens(NamedTuple):
    """ids [M, N]; padding [M, N], True where no token is; bags [M, G], the spellings of each text, padded with 0."""

    ids: Int[Tensor, "M N"]
    padding: Bool[Tensor, "M N"]
    bags: Int[Tensor, "M G"]

    def to(self, device: torch.device) -> "Tokens":
        return Tokens(*(value.to(device, non_blocking=True) for value in self))


def train_tokenizer(texts: Iterable[str], vocabulary: int, length: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocabulary` entries learned from `texts`, cutting and padding to `length`.

    Bytes are its alphabet, so that any script can be encoded. Every text starts with [CLS] and ends with [SEP].
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, CLS, SEP, MASK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    specials = [(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{CLS} $A {SEP}", special_tokens=specials)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(PAD), pad_token=PAD)
    return tokenizer


def train_lexicon(texts: Iterable[str], size: int, least: int = 3) -> dict[str, float]:
    """The spellings that at least `least` texts share, at most `size`, and their weights: sqrt(log(texts / count)).

    A rarer spelling would be learned by heart instead of meaning something in a text that training never saw. The root
    keeps a rare one that two unrelated words share by chance ("<pic" in "pick" and "picture") from deciding alone.
    """
    if not size:
        return {}
    counts: Counter[str] = Counter()
    documents = 0
    for text in texts:
        counts.update(spellings(text))
        documents += 1
    shared = sorted((s for s, n in counts.items() if n >= least), key=lambda s: (-counts[s], s))[:size]
    return {spelling: sqrt(log(documents / counts[spelling])) for spelling in shared}


class TextCodec:
    """A tokenizer and a lexicon; `encode` is all that a model needs to know of texts."""

    def __init__(self, tokenizer: Tokenizer, lexicon: dict[str, float]) -> None:
        self.tokenizer = tokenizer
        self.lexicon = dict(sorted(lexicon.items()))  # an order of its own, whatever file it came from
        self._index = {spelling: i for i, spelling in enumerate(self.lexicon, 1)}
        self._known: dict[str, tuple[list[int], list[int], list[int]]] = {}

    @property
    def special(self) -> tuple[int, int, int, int]:
        """Ids of [PAD], [CLS], [SEP] and [MASK]."""
        ids = tuple(self.tokenizer.token_to_id(token) for token in (PAD, CLS, SEP, MASK))
        return cast(tuple[int, int, int, int], ids)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokens cut to the longest text of the batch. Training asks for the same texts again and again: what they are
        encoded to is kept."""
        if len(self._known) > _KEPT:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for text, e in zip(new, self.tokenizer.encode_batch(new), strict=True):
            bag = sorted(self._index[s] for s in spellings(text) if s in self._index)
            self._known[text] = e.ids, e.attention_mask, bag
        ids, mask, bags = zip(*(self._known[text] for text in texts), strict=True)
        padding = torch.from_numpy(np.array(mask, np.int64) == 0)
        used = max(1, int((~padding).sum(1).max()))
        most = max(1, *map(len, bags))
        padded = np.array([bag + [0] * (most - len(bag)) for bag in bags], np.int64)
        return Tokens(torch.from_numpy(np.array(ids, np.int64))[:, :used], padding[:, :used], torch.from_numpy(padded))


class TextEncoder(nn.Module):
    """Token ids [M, N] -> W [M, N, D]; the first token is [CLS]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        t = config.text
        self.kind = t.kind
        if t.kind == "bert":
            from transformers import BertConfig, BertModel

            self.bert = BertModel(
                BertConfig(
                    vocab_size=t.vocabulary,
                    hidden_size=config.width,
                    num_hidden_layers=t.depth,
                    num_attention_heads=t.heads,
                    intermediate_size=4 * config.width,
                    hidden_dropout_prob=t.dropout,
                    attention_probs_dropout_prob=t.dropout,
                ),
                add_pooling_layer=False,
            )
            return
        self.tokens = nn.Embedding(t.vocabulary, config.width)
        self.positions = nn.Parameter(torch.randn(t.length, config.width) * 0.02)
        nn.init.normal_(self.tokens.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            config.width, t.heads, 4 * config.width, t.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, t.depth, norm=nn.LayerNorm(config.width), enable_nested_tensor=False)

    @property
    def embedding(self) -> Tensor:
        """The vectors of the vocabulary [vocabulary, D]."""
        return self.bert.embeddings.word_embeddings.weight if self.kind == "bert" else self.tokens.weight

    def forward(self, tokens: Tokens) -> Float[Tensor, "M N D"]:
        if self.kind == "bert":
            return self.bert(input_ids=tokens.ids, attention_mask=(~tokens.padding).long()).last_hidden_state
        x = self.tokens(tokens.ids) + self.positions[: tokens.ids.shape[1]]
        return self.blocks(x, src_key_padding_mask=tokens.padding)
