"""What tracer needs to know of a language model, the host of a replacement model.

MLPs are cut out, so the list is short: embeddings, the norms, each attention layer's value and
output maps, the unembedding, and the modules at which to listen. `hosts/` fills it in, one family a
module.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.around import PLAIN, Factors, Taps, Watch
from replacement_models.hooks import float64_experts, recorders_removed
from replacement_models.one_line import one_line
from replacement_models.sites import Site, Stage


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm or RMSNorm: `y = (x - mean x) / scale · weight + bias`."""

    module: nn.Module
    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    eps: float
    centred: bool
    """Whether the mean is taken off: LayerNorm does, RMSNorm does not."""
    fixed: bool = False
    """No norm but what the block does to `module`'s output: the denominator is always 1."""

    __repr__ = one_line

    @property
    def device(self) -> torch.device:
        """Where its vectors stand."""
        return self.weight.device

    def to(self, device: torch.device) -> "Norm":
        """The same norm with its vectors on `device`; its module stays."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def centre(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """`x` less its mean, where this norm takes it off. Its own transpose."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """The denominator at `x`: root of the mean square (of the variance) plus eps."""
        if self.fixed:
            return torch.ones_like(x[..., :1])
        return (self.centre(x).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def frozen(
        self, x: Float[Tensor, "*rows d_model"], scale: Float[Tensor, "*rows 1"]
    ) -> Float[Tensor, "*rows d_model"]:
        """The norm with its denominator held at `scale`: affine in `x`."""
        out = self.centre(x) / scale * self.weight
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block: pre-norm, post-norm or both, sequential or parallel."""

    module: nn.Module
    """Its first input is the residual stream."""
    attention_norm: Norm | None
    """Norm on the way in; None where attention reads the residual stream itself (OLMo 2)."""
    attention: nn.Module
    """Returns (output, pattern, ...); pattern (1, heads, queries, keys), row sums at most 1. The
    output alone where `watch` says which kernel makes the pattern."""
    mlp_norm: Norm | None
    mlp: nn.Module
    """Returns its output, alone or first in a tuple; experts with their router are one MLP. A block
    without one has `NoMLP` (no_mlp.py)."""
    value: Float[Tensor, "kv_heads d_head d_read"]
    """Of what attention reads: d_model wide, or twice that where `attention_norm` is: the tokens'
    part of the first residual stream then follows what stands in the stream now (Zamba)."""
    value_bias: Float[Tensor, "kv_heads d_head"] | None
    output: Float[Tensor, "heads d_head d_model"]
    output_bias: Float[Tensor, " d_model"] | None
    values: Callable[[Tensor], Tensor]
    """The model's own value map: (..., d_read) to (..., kv_heads · d_head)."""
    project: Callable[[Tensor], Tensor]
    """The model's own output map: (..., heads · d_head) to (..., d_model)."""
    attention_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    parallel: bool = False
    """Attention and MLP both read the block's input (GPT-NeoX) instead of one after the other."""
    aside: bool = False
    """Nothing is added to the residual stream: the MLP reads attention's output alone, and what it
    writes is added to what the next block's attention reads (Zamba's shared blocks)."""
    taps: Taps | None = None
    """A short convolution that values pass before the pattern mixes them."""
    mixed_bias: Float[Tensor, "heads d_head"] | None = None
    """Added to what the pattern mixes, before factors: of LFM2's convolutions."""
    watch: Watch | None = None
    """Where a prompt's factors, or a pattern that attention does not return, are read off."""
    attention_out: nn.Module | None = None
    """Returns attention's output, where `attention` adds it to the stream itself (BLOOM)."""
    attention_beside: nn.Module | None = None
    """Runs before it, and its output is added to attention's (Falcon-H1)."""
    mlp_out: nn.Module | None = None
    """Returns the MLP's output, where `mlp` does not and is only what reads first (OPT)."""
    mlp_beside: nn.Module | None = None
    """Runs before it, and its output is added to the MLP's (experts before a shared one)."""
    mlp_maps: Any = None
    """Has the MLP's linear modules as attributes, where `mlp` has not."""

    __repr__ = one_line

    @property
    def device(self) -> torch.device:
        """Where the block stands: its weights, and what is recorded of it."""
        return self.value.device

    @property
    def plain(self) -> bool:
        """Whether nothing stands around the pattern."""
        return self.taps is None and self.watch is None

    @property
    def reads_tokens(self) -> bool:
        """Whether attention reads the tokens' part of the first stream beside the stream."""
        return self.value.shape[-1] > self.output.shape[-1]

    @property
    def by_kernel(self) -> bool:
        """Whether a kernel makes the pattern, or that of some heads."""
        return self.watch is not None and self.watch.kernel is not None

    @property
    def returns_pattern(self) -> bool:
        """Whether attention returns its pattern, or that of some heads."""
        return self.watch is None or self.watch.kernel is None or self.watch.mixer is not None

    @property
    def attention_end(self) -> nn.Module:
        """Returns attention's output, alone or first in a tuple."""
        return self.attention if self.attention_out is None else self.attention_out

    def attend(
        self,
        hidden: Float[Tensor, "positions d_read"],
        pattern: Float[Tensor, "heads q k"],
        factors: Factors = PLAIN,
    ) -> Float[Tensor, "positions d_model"]:
        """The attention layer's output with its pattern given, through the model's own maps."""
        mixed = self.mix(self.mixable(hidden, factors), pattern)
        return self.project(factors.of_outputs(mixed).flatten(-2))

    def mixable(
        self, hidden: Float[Tensor, "positions d_read"], factors: Factors = PLAIN
    ) -> Float[Tensor, "positions kv_heads d_head"]:
        """The values that the pattern mixes, through the model's own map."""
        return self.passed_on(self.values(hidden).unflatten(-1, self.value.shape[:2]), factors)

    def passed_on(
        self, values: Float[Tensor, "positions kv_heads d_head"], factors: Factors
    ) -> Float[Tensor, "positions kv_heads d_head"]:
        """Values past taps and factors."""
        return factors.of_values(values if self.taps is None else self.taps(values))

    def mix(
        self,
        values: Float[Tensor, "positions kv_heads d_head"],
        pattern: Float[Tensor, "heads q k"],
    ) -> Float[Tensor, "q heads d_head"]:
        """Every head's mix of the values that it reads."""
        per_head = values.repeat_interleave(len(self.output) // len(self.value), dim=-2)
        mixed = torch.einsum("hqk,khd->qhd", pattern, per_head)
        return mixed if self.mixed_bias is None else mixed + self.mixed_bias


@dataclass(frozen=True, eq=False)
class Host:
    """A language model with names for its parts."""

    family: str
    model: nn.Module
    blocks: Sequence[Block]
    embedding: nn.Module
    """Its output, times `embedding_scale`, is the token part of the first residual stream."""
    final_norm: Norm
    unembedding: Float[Tensor, "vocabulary d_model"]
    unembedding_bias: Float[Tensor, " vocabulary"] | None = None
    position_embedding: nn.Module | None = None
    """Learned positions, added once at the bottom."""
    embedding_scale: float = 1.0
    embedding_norm: Norm | None = None
    """Norm that the tokens' part passes at the bottom (BLOOM, nanochat)."""
    logit_cap: float | None = None
    """Soft cap c: logits shown are c·tanh(logit / c)."""
    context: int | None = None
    """Longest prompt in tokens, or None where the model sets no limit."""

    __repr__ = one_line

    @property
    def device(self) -> torch.device:
        """Where the model ends: final norm, unembedding and logits."""
        return self.unembedding.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Every device that it computes on, each once, in the order of the layers, its end last."""
        return tuple(dict.fromkeys([*(block.device for block in self.blocks), self.device]))

    @property
    def mlp_sites(self) -> list[Site]:
        """Where each layer's MLP reads: the residual stream, but in blocks that stand aside."""
        return [
            Site(layer, Stage.RESID_PRE if block.parallel else Stage.RESID_MID)
            for layer, block in enumerate(self.blocks)
        ]

    @property
    def final_norm_calls(self) -> int:
        """How often one pass runs the final norm's module: nanochat's also norms embeddings."""
        first = self.embedding_norm
        return 1 + (first is not None and first.module is self.final_norm.module)

    @property
    def stream_sites(self) -> list[Site]:
        """Where the residual stream can be read, from below."""
        entering = [Site(layer, Stage.RESID_PRE) for layer in range(len(self.blocks) + 1)]
        reading = zip(self.mlp_sites, self.blocks, strict=True)
        return sorted({*entering, *(site for site, block in reading if not block.aside)})

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.unembedding.shape[1]

    @property
    def vocabulary(self) -> int:
        """Entries of the vocabulary."""
        return self.unembedding.shape[0]

    def embed(self, tokens: Float[Tensor, "positions d_model"]) -> Tensor:
        """The token part of the first residual stream, from the embedding's output."""
        found = tokens * self.embedding_scale
        norm = self.embedding_norm
        return found if norm is None else norm.frozen(found, norm.scale(found))

    def cap(self, logits: Float[Tensor, "*rows vocabulary"]) -> Float[Tensor, "*rows vocabulary"]:
        """The logits the model shows, from those before its soft cap."""
        if self.logit_cap is None:
            return logits
        return self.logit_cap * torch.tanh(logits / self.logit_cap)

    def run(
        self, tokens: Sequence[int], patterns: bool = True, last_logits: bool = False
    ) -> Float[Tensor, "positions vocabulary"]:
        """The model's own logits on a prompt, from one forward pass.

        Args:
            tokens: ids.
            patterns: ask the model for its attention patterns, which makes it collect them all.
            last_logits: those of the last position only, where the model can leave out the others.
        """
        ids = torch.tensor([list(tokens)], device=self.device)
        known = inspect.signature(self.model.forward).parameters
        fewer = {"logits_to_keep": 1} if last_logits and "logits_to_keep" in known else {}
        with float64_experts(self.model), recorders_removed(self.model):
            out = self.model(input_ids=ids, use_cache=False, output_attentions=patterns, **fewer)
        logits: Tensor = out.logits[0].to(self.device)
        return logits[-1:] if last_logits else logits

    def unembed(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocabulary"]:
        """Logits before the cap, from the final norm's output."""
        return nn.functional.linear(hidden, self.unembedding, self.unembedding_bias)
