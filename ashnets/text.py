"""Text encoder and tokenizer."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from ashnets.config import ModelConfig

PAD, CLS, SEP, MASK = "[PAD]", "[CLS]", "[SEP]", "[MASK]"


def train_tokenizer(texts: Iterable[str], vocabulary: int, length: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocabulary` entries learned from `texts`, cutting and padding to
    `length` tokens.

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


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Int[Tensor, "M N"], Bool[Tensor, "M N"]]:
    """Token ids and padding (True where there is no token), cut to the longest text of the batch."""
    encodings = tokenizer.encode_batch(list(texts))
    ids = torch.tensor([e.ids for e in encodings])
    padding = torch.tensor([e.attention_mask for e in encodings]) == 0
    used = max(1, int((~padding).sum(1).max()))
    return ids[:, :used], padding[:, :used]


class TextEncoder(nn.Module):
    """Token ids [M, N] -> W [M, N, D]; the first token, [CLS], stands for the whole text."""

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

    def forward(self, ids: Int[Tensor, "M N"], padding: Bool[Tensor, "M N"]) -> Float[Tensor, "M N D"]:
        if self.kind == "bert":
            return self.bert(input_ids=ids, attention_mask=(~padding).long()).last_hidden_state
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        return self.blocks(x, src_key_padding_mask=padding)
