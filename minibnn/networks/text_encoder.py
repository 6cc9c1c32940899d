"""CLIP's text encoder: it turns token ids into one vector for each token, which the UNet attends to.

Follows: transformers' `CLIPTextModel` as configured by Stable Diffusion v1.x (OpenAI's ViT-L/14, quick_gelu) and v2.x
(OpenCLIP's ViT-H/14, gelu, 23 of its 24 layers); Radford et al. 2021. Attribute names are the names in
`text_encoder/model.safetensors`.

But: no pooled output and no projection; padding is not masked, as in Stable Diffusion.

Shapes: B prompts, L ≤ 77 tokens, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError
from ..files.layouts import SIZE, Network
from ..files.schema import integer, number, text
from .layers import attention


@dataclass(frozen=True)
class TextEncoderConfig:
    """The values of the official `text_encoder/config.json` that change the computation; defaults are SD v1.5's."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    FIXED = {"attention_dropout": 0.0, "dropout": 0.0}
    IGNORED = None  # all other keys: transformers writes dozens of settings that have no effect here

    KINDS = {  # what a config.json may say
        "vocab_size": integer(1, 10**7), "hidden_size": SIZE, "intermediate_size": SIZE,
        "num_hidden_layers": integer(1, 256), "num_attention_heads": SIZE, "max_position_embeddings": SIZE,
        "hidden_act": text, "layer_norm_eps": number(above=0),
    }

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            why = f"hidden_size {self.hidden_size} does not divide by {self.num_attention_heads} heads"
            raise UserError(f"text encoder config: {why}")
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"text encoder config: hidden_act = {self.hidden_act!r} is not one of {list(ACTIVATIONS)}")


def quick_gelu(x):
    """x·sigmoid(1.702 x), OpenAI's approximation of GELU.   (Hendrycks & Gimpel 2016, §2)"""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Causal self-attention, where a token sees itself and the tokens before it: (B, L, D) -> (B, L, D)."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        width = config.hidden_size
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=True))


class MLP(nn.Module):
    """Two linear layers with `intermediate_size` units between them: (B, L, D) -> (B, L, D)."""

    def __init__(self, config):
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Attention, then an MLP. Each takes the normalised input, and its output is added to the input."""

    def __init__(self, config):
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextModel(nn.Module):
    """The whole encoder. The official files keep it under the name `text_model`."""

    def __init__(self, config):
        super().__init__()
        self.embeddings = nn.ModuleDict({
            "token_embedding": nn.Embedding(config.vocab_size, config.hidden_size),
            "position_embedding": nn.Embedding(config.max_position_embeddings, config.hidden_size),
        })
        layers = (Layer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*layers)})
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, ids):
        x = self.embeddings["token_embedding"](ids) + self.embeddings["position_embedding"].weight[: ids.shape[1]]
        return self.final_layer_norm(self.encoder["layers"](x))


class TextEncoder(Network):
    """context = text_encoder(ids): (B, L) int64 -> (B, L, D), the last hidden state after the final layer norm."""

    Config, official_class, part = TextEncoderConfig, "CLIPTextModel", "text_encoder"

    def __init__(self, config: TextEncoderConfig = TextEncoderConfig()) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.text_model(ids)
