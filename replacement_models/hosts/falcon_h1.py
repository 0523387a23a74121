"""Falcon-H1: softmax attention and a Mamba 2 side by side behind one norm, multipliers everywhere.

Both are one attention layer here: its first heads are softmax's, the others the scan's; narrower
ones end in zeros. What the layer adds is written in units of softmax attention's output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.around import Call, Factors, Taps, Watch
from replacement_models.host import Block, Host
from replacement_models.hosts.llama import host, separate
from replacement_models.hosts.norms import multiplied, norm_of
from replacement_models.hosts.projections import Projections
from replacement_models.hosts.state_space import scan


def falcon_h1(model: Any) -> Host:
    """Name the parts of a `FalconH1ForCausalLM`."""
    body = model.model
    blocks = [_block(module, model.config) for module in body.layers]
    plain = host(model, blocks, norm_of(body.final_layernorm))
    return replace(
        plain,
        embedding_scale=body.embedding_multiplier,
        unembedding=plain.unembedding * body.lm_head_multiplier,
    )


def _block(module: Any, config: Any) -> Block:
    norm, attention, mamba = norm_of(module.input_layernorm), module.self_attn, module.mamba
    softmax = separate(attention, config, norm.weight)
    scanned = scan(mamba, norm.weight, mamba.mup_vector[0, 0])
    own = Projections(**{name: scanned[name] for name in vars(softmax)})
    both = _SideBySide(softmax, own, *_multipliers(module))
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        attention_out=attention,
        attention_beside=mamba,
        attention_post_norm=multiplied(attention, module.attn_out_multiplier, norm.weight),
        mlp_norm=norm_of(module.pre_ff_layernorm),
        mlp=module.feed_forward,
        mlp_maps=_mlp_maps(module.feed_forward),
        **vars(both.maps()),
        taps=both.taps(scanned["taps"]),
        watch=both.watch(scanned["watch"], mamba),
    )


def _multipliers(module: Any) -> tuple[tuple[float, float], float]:
    """Of what softmax and the scan read; of what the scan writes, in units of softmax's output."""
    reads = (module.attention_in_multiplier, module.mamba.ssm_in_multiplier)
    return reads, module.ssm_out_multiplier / module.attn_out_multiplier


@dataclass(frozen=True, eq=False)
class _SideBySide:
    """Two sets of heads as one, each head with values of its own."""

    softmax: Projections
    scan: Projections
    reads: tuple[float, float]
    writes: float

    @property
    def widths(self) -> tuple[int, int]:
        """Of a head of either set."""
        return self.softmax.output.shape[1], self.scan.output.shape[1]

    @property
    def heads(self) -> tuple[int, int]:
        """How many each set has."""
        return len(self.softmax.output), len(self.scan.output)

    def joined(self, softmax: Tensor, scan: Tensor, fill: float = 0.0) -> Tensor:
        """(..., heads, d_head, *rest) of both sets as one, from those of either."""
        parts = []
        for part, width in ((softmax, self.widths[0]), (scan, self.widths[1])):
            short = max(self.widths) - width
            parts.append(nn.functional.pad(part, (0, short), value=fill))
        return torch.cat(parts, dim=-2)

    def maps(self) -> Projections:
        """Value and output maps."""
        group = self.heads[0] // len(self.softmax.value)
        softmax, scan = self.softmax, self.scan
        value = self.joined(
            softmax.value.repeat_interleave(group, 0).permute(2, 0, 1) * self.reads[0],
            scan.value.permute(2, 0, 1) * self.reads[1],
        )
        output = self.joined(
            softmax.output.permute(2, 0, 1), scan.output.permute(2, 0, 1) * self.writes
        )
        return Projections(
            value=value.permute(1, 2, 0).contiguous(),
            value_bias=self._value_bias(group),
            output=output.permute(1, 2, 0).contiguous(),
            output_bias=self._output_bias(),
            values=self._values,
            project=self._project,
        )

    def _value_bias(self, group: int) -> Tensor | None:
        if self.softmax.value_bias is None and self.scan.value_bias is None:
            return None
        softmax, scan = (
            one.value.new_zeros(one.value.shape[:2]) if one.value_bias is None else one.value_bias
            for one in (self.softmax, self.scan)
        )
        return self.joined(softmax.repeat_interleave(group, 0), scan)

    def _output_bias(self) -> Tensor | None:
        own, beside = self.softmax.output_bias, self.scan.output_bias
        if beside is None:
            return own
        return beside * self.writes if own is None else own + beside * self.writes

    def _values(self, hidden: Tensor) -> Float[Tensor, "*rows heads_d_head"]:
        softmax = self.softmax.values(hidden * self.reads[0]).unflatten(-1, (-1, self.widths[0]))
        softmax = softmax.repeat_interleave(self.heads[0] // softmax.shape[-2], -2)
        scan = self.scan.values(hidden * self.reads[1]).unflatten(-1, (-1, self.widths[1]))
        return self.joined(softmax, scan).flatten(-2)

    def _project(self, mixed: Float[Tensor, "*rows heads_d_head"]) -> Tensor:
        by_head = mixed.unflatten(-1, (-1, max(self.widths)))
        softmax, scan = by_head.split(self.heads, dim=-2)
        own = self.softmax.project(softmax[..., : self.widths[0]].flatten(-2))
        beside = self.scan.project(scan[..., : self.widths[1]].flatten(-2))
        return own + beside * self.writes

    def taps(self, scan: Taps) -> Taps:
        """Softmax's values pass none."""
        none = scan.weight.new_zeros(self.heads[0], self.widths[0], scan.weight.shape[-1])
        none[..., 0] = 1
        weight = self.joined(none.permute(2, 0, 1), scan.weight.permute(2, 0, 1))
        bias = None if scan.bias is None else self.joined(none[..., 0] * 0, scan.bias)
        return Taps(weight.permute(1, 2, 0).contiguous(), bias)

    def watch(self, scan: Watch, mamba: nn.Module) -> Watch:
        """Softmax's factors are ones."""

        def factors(calls: Mapping[str, Call]) -> Factors:
            found = scan.factors(calls)
            assert found.values is not None
            assert found.outputs is not None
            ones = found.values.new_ones(len(found.values), self.heads[0], self.widths[0])
            return Factors(self.joined(ones, found.values), self.joined(ones, found.outputs))

        return replace(scan, factors=factors, mixer=mamba)


class _Scaled(nn.Module):
    """A linear module and the factor on what it makes."""

    def __init__(self, linear: nn.Module, factor: float) -> None:
        super().__init__()
        self.linear, self.factor = linear, factor

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.linear(x) * self.factor
        return scaled


def _mlp_maps(mlp: Any) -> SimpleNamespace:
    return SimpleNamespace(
        gate_proj=_Scaled(mlp.gate_proj, mlp.gate_multiplier),
        up_proj=mlp.up_proj,
        down_proj=_Scaled(mlp.down_proj, mlp.down_multiplier),
        act_fn=mlp.act_fn,
    )
