"""What Tracr compiles RASP programs into: a transformer without norms, as a model of transformers.

Lindner et al. 2023, "Tracr: Compiled Transformers as a Laboratory for Interpretability". Learned
positions, softmax attention, MLPs of rectified units, all with biases; nothing norms the residual
stream. transformers has no such class; `load_model` takes this one for `model_type` "tracr". Any
other transformer without norms fits it as well.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from replacement_models.errors import ModelError


class TracrConfig(PretrainedConfig):
    """Sizes; one vocabulary numbers the tokens that go in and, behind them, what comes out."""

    model_type = "tracr"

    def __init__(
        self,
        vocab_size: int = 8,
        hidden_size: int = 16,
        intermediate_size: int = 32,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 1,
        head_dim: int = 16,
        max_position_embeddings: int = 16,
        **rest: Any,
    ) -> None:
        """Sizes as in any configuration of transformers; embeddings are never tied."""
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.intermediate_size, self.num_hidden_layers = intermediate_size, num_hidden_layers
        self.num_attention_heads, self.head_dim = num_attention_heads, head_dim
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**{**rest, "tie_word_embeddings": False})


class TracrAttention(nn.Module):
    """Causal softmax attention."""

    def __init__(self, config: Any) -> None:
        """Maps of `num_attention_heads` heads of `head_dim`."""
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner)
        self.k_proj = nn.Linear(config.hidden_size, inner)
        self.v_proj = nn.Linear(config.hidden_size, inner)
        self.o_proj = nn.Linear(inner, config.hidden_size)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What it adds to the stream (B, P, D), and the pattern (B, heads, queries, keys)."""
        query, key, value = (
            part(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = query @ key.mT / self.head_dim**0.5
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(later, -torch.inf).softmax(-1)
        return self.o_proj((pattern @ value).transpose(1, 2).flatten(-2)), pattern


class TracrMLP(nn.Module):
    """Rectified units."""

    def __init__(self, config: Any) -> None:
        """`intermediate_size` units."""
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, P, D)."""
        written: Tensor = self.fc2(self.act(self.fc1(hidden)))
        return written


class TracrLayer(nn.Module):
    """Attention, then the MLP, each added to the stream."""

    def __init__(self, config: Any) -> None:
        """Of the configuration's sizes."""
        super().__init__()
        self.attention = TracrAttention(config)
        self.mlp = TracrMLP(config)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The stream (B, P, D), and the layer's pattern."""
        attended, pattern = self.attention(hidden)
        hidden = hidden + attended
        return hidden + self.mlp(hidden), pattern


class TracrForCausalLM(PreTrainedModel):
    """Embeddings, layers, unembedding."""

    config_class = TracrConfig

    def __init__(self, config: Any) -> None:
        """Of the configuration's sizes."""
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(TracrLayer(config) for _ in range(config.num_hidden_layers))
        self.final = nn.Identity()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        use_cache: bool = False,
        output_attentions: bool = False,
        past_key_values: None = None,
    ) -> CausalLMOutput:
        """Logits (B, P, V) of ids (B, P).

        Raises:
            ModelError: keys and values are to be kept for the tokens that follow.
        """
        if use_cache or past_key_values is not None:
            raise ModelError(
                "a model of type 'tracr' answers at every position and generates nothing; "
                "intervene on a prompt instead"
            )
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden, patterns = self.embed_tokens(input_ids) + self.embed_positions(places), []
        for layer in self.layers:
            hidden, pattern = layer(hidden)
            patterns.append(pattern)
        logits = self.lm_head(self.final(hidden))
        kept = tuple(patterns) if output_attentions else None
        return CausalLMOutput(logits=logits, attentions=kept)
