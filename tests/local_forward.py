"""A separate forward pass of the local replacement model, written out source by source.

Shares no code with the engine: norms are held at their recorded denominators, attention mixes the
model's own value vectors by the recorded patterns, and every MLP output is rebuilt from features,
errors, biases and the linear skip. Sources can be scaled one by one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from replacement_models import ReadPoint, Recording, ReplacementModel, WritePoint


@dataclass
class LocalForward:
    """Affine in its sources: `token` (P), `error` (L, P), `feature` (active) scale them."""

    model: ReplacementModel
    recording: Recording
    skip_positions: int = 1

    def __post_init__(self) -> None:
        layers, positions = len(self.recording.layers), len(self.recording.tokens)
        dtype = self.recording.token_vectors.dtype
        self.token = torch.ones(positions, dtype=dtype)
        self.error = torch.ones(layers, positions, dtype=dtype)
        self.feature = torch.ones(len(self.recording.features), dtype=dtype)

    def __call__(self) -> tuple[list[Tensor], Tensor]:
        """Pre-activations of every layer, (P, F) each, and logits (P, V)."""
        model, seen = self.model, self.recording
        x = self.token[:, None] * seen.token_vectors
        if seen.position_vectors is not None:
            x = x + seen.position_vectors
        pre_activations, tokens, aside = [], x, torch.zeros_like(x)
        for layer, block in enumerate(model.host.blocks):
            entering = x + aside
            if block.value.shape[-1] > x.shape[-1]:
                entering = torch.cat([entering, tokens], -1)
            attended = self._attention(layer, entering)
            between = attended if block.aside else x + attended
            read = self._read(layer, x if block.parallel else between)
            weights = model.transcoder.layers[layer]
            pre_activations.append(read @ weights.W_enc.T + weights.b_enc)
            written = self._mlp(layer, read)
            aside = written if block.aside else torch.zeros_like(x)
            x = x if block.aside else x + attended + written
        normed = model.host.final_norm.frozen(x, seen.final_scale)
        return pre_activations, model.host.unembed(normed)

    def _attention(self, layer: int, x: Tensor) -> Tensor:
        block, frozen = self.model.host.blocks[layer], self.recording.layers[layer]
        if block.attention_norm is not None:
            x = block.attention_norm.frozen(x, frozen.attention_scale)
        out = block.attend(x, frozen.pattern, frozen.factors)
        if block.attention_post_norm is None:
            return out
        return block.attention_post_norm.frozen(out, frozen.attention_post_scale)

    def _read(self, layer: int, x: Tensor) -> Tensor:
        block, scale = self.model.host.blocks[layer], self.recording.layers[layer].mlp_scale
        read = self.model.transcoder.read_at(layer)
        if read is ReadPoint.RESIDUAL or block.mlp_norm is None:
            return x
        if read is ReadPoint.NORMED:
            return block.mlp_norm.frozen(x, scale)
        return block.mlp_norm.centre(x) / scale

    def _mlp(self, layer: int, read: Tensor) -> Tensor:
        """Features, error, bias, skip; at skipped positions the recorded output less the skip."""
        weights, seen = self.model.transcoder.layers[layer], self.recording
        whole = self._features(layer, torch.ones_like(self.feature)) + weights.b_dec
        scaled = self._features(layer, self.feature) + weights.b_dec
        skipped = torch.zeros_like(read)
        if weights.W_skip is not None:
            whole = whole + seen.inputs[layer] @ weights.W_skip
            skipped = read @ weights.W_skip
        out = scaled + self.error[layer][:, None] * (seen.outputs[layer] - whole) + skipped
        first = slice(0, self.skip_positions)
        out[first] = seen.outputs[layer][first]
        if weights.W_skip is not None:
            out[first] += ((read - seen.inputs[layer]) @ weights.W_skip)[first]
        norm = self.model.host.blocks[layer].mlp_post_norm
        if norm is None or self.model.transcoder.write_at(layer) is WritePoint.POST_NORM:
            return out
        return norm.frozen(out, seen.layers[layer].mlp_post_scale)

    def _features(self, layer: int, scale: Tensor) -> Tensor:
        transcoder, active = self.model.transcoder, self.recording.features
        out = torch.zeros_like(self.recording.outputs[layer])
        for index in range(len(active)):
            source = int(active.layer[index])
            if layer not in transcoder.targets(source):
                continue
            row = transcoder.decoder_rows(source, active.feature[index, None])[0]
            slot = list(transcoder.targets(source)).index(layer)
            out[active.position[index]] += scale[index] * active.activation[index] * row[slot]
        return out
