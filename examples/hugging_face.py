"""GPT-2 of the package transformers, built from its config, as blocks that mach trains.

No weights are downloaded: the network begins untrained. In this folder, after
pip install 'mach[examples]':

    mach train model=custom model.factory=hugging_face:blocks model.logits=true \
        data=text data.path=FILE data.context=64 components=4 steps=200

`mach plan` with the same overrides says what that will cost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

# B batch, T tokens, D width, V vocabulary


class Embed(nn.Module):
    """Tokens and their positions. [B, T] -> [B, T, D]."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.tokens, self.positions = model.transformer.wte, model.transformer.wpe

    def forward(self, x_BT: Tensor) -> Tensor:
        places_T = torch.arange(x_BT.shape[1], device=x_BT.device)
        return self.tokens(x_BT) + self.positions(places_T)


class Block(nn.Module):
    """One of its layers, returning the hidden state alone. [B, T, D], same out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h_BTD: Tensor) -> Tensor:
        out = self.layer(h_BTD)
        return out if isinstance(out, Tensor) else out[0]


def blocks(layers: int = 4, width: int = 64, heads: int = 4, context: int = 64) -> list[nn.Module]:
    """Embedding, layers, and norm with unembedding: `layers` + 2 blocks, the last one's output the
    logits (model.logits=true).

    Dropout is 0, as mach runs forwards again; the unembedding is a matrix of its own, as the
    embedding is in another process.
    """
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256,  # bytes
            n_positions=context,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )
    last = nn.Sequential(model.transformer.ln_f, model.lm_head)
    return [Embed(model), *(Block(layer) for layer in model.transformer.h), last]
