"""Gemma Scope 1 and 2, and SAELens, as those write their files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replacement_models import ReadPoint, WritePoint
from tests.peers import POSITIONS, D, F, K, L, Peer, positive, write_json, write_tensors


class GemmaScope(Peer):
    """params.npz; JumpReLU over ReLU."""

    read, write = ReadPoint.NORMED_UNWEIGHTED, WritePoint.POST_NORM

    def __init__(self) -> None:
        super().__init__()
        self.layers = [
            {
                "W_enc": self.normal(D, F),
                "W_dec": self.normal(F, D),
                "b_enc": self.normal(F),
                "b_dec": self.normal(D),
                "threshold": self.normal(F),
            }
            for _ in range(L)
        ]

    def save(self, folder: Path) -> None:
        for index, layer in enumerate(self.layers):
            place = folder / f"layer_{index}" / "width_16k" / "average_l0_7"
            place.mkdir(parents=True)
            np.savez(place / "params.npz", **{key: value.numpy() for key, value in layer.items()})

    def activations(self, x: list[Tensor]) -> list[Tensor]:
        hidden = [at @ w["W_enc"] + w["b_enc"] for at, w in zip(x, self.layers, strict=True)]
        return [(h > w["threshold"]) * h.relu() for h, w in zip(hidden, self.layers, strict=True)]

    def outputs(self, x: list[Tensor]) -> list[Tensor]:
        active = self.activations(x)
        return [a @ w["W_dec"] + w["b_dec"] for a, w in zip(active, self.layers, strict=True)]


class GemmaScope2(Peer):
    """params.safetensors a layer, or params_layer_{l} of one CLT with a full target axis."""

    read, write = ReadPoint.NORMED, WritePoint.POST_NORM

    def __init__(self, cross_layer: bool = False, skip: bool = True) -> None:
        super().__init__()
        self.cross_layer, self.skip = cross_layer, skip
        self.layers = [self.layer() for _ in range(L)]

    def layer(self) -> dict[str, Tensor]:
        found = {
            "w_enc": self.normal(D, F),
            "w_dec": self.normal(F, L, D) if self.cross_layer else self.normal(F, D),
            "b_enc": self.normal(F),
            "b_dec": self.normal(D),
            "threshold": self.normal(F).abs(),
        }
        return found | ({"affine_skip_connection": self.normal(D, D)} if self.skip else {})

    def config(self, index: int) -> dict[str, Any]:
        return {
            "hf_hook_point_in": f"model.layers.{index}.pre_feedforward_layernorm.output",
            "hf_hook_point_out": f"model.layers.{index}.post_feedforward_layernorm.output",
            "width": F,
            "model_name": "google/gemma-3-270m",
            "architecture": "jump_relu",
            "l0": 20,
            "affine_connection": self.skip,
            "type": "clt" if self.cross_layer else "transcoder",
        }

    def save(self, folder: Path) -> None:
        for index, layer in enumerate(self.layers):
            place = folder / f"layer_{index}_width_16k_l0_small_affine"
            if self.cross_layer:
                write_tensors(folder / f"params_layer_{index}.safetensors", layer)
                write_json(folder / "config.json", self.config(0))
            else:
                write_tensors(place / "params.safetensors", layer)
                write_json(place / "config.json", self.config(index))

    def activations(self, x: list[Tensor]) -> list[Tensor]:
        hidden = [at @ w["w_enc"] + w["b_enc"] for at, w in zip(x, self.layers, strict=True)]
        return [(h > w["threshold"]) * h.relu() for h, w in zip(hidden, self.layers, strict=True)]

    def outputs(self, x: list[Tensor]) -> list[Tensor]:
        active, found = self.activations(x), []
        for m, layer in enumerate(self.layers):
            y = layer["b_dec"].expand(POSITIONS, D)
            for source in self.sources(m):
                decoder = self.layers[source]["w_dec"]
                y = y + active[source] @ (decoder[:, m] if self.cross_layer else decoder)
            found.append(y + x[m] @ layer["affine_skip_connection"] if self.skip else y)
        return found


class SaeLens(Peer):
    """cfg.json and sae_weights.safetensors; `old` is the layout before version 6, unfolded."""

    read, write = ReadPoint.RESIDUAL, WritePoint.MLP_OUTPUT

    def __init__(self, activation: str = "relu", skip: bool = False, old: bool = False) -> None:
        super().__init__()
        self.activation, self.skip, self.old = activation, skip, old
        self.scale = 1.7 if old else 1.0
        self.layers = [self.layer() for _ in range(L)]

    def layer(self) -> dict[str, Tensor]:
        found = {"W_enc": self.normal(D, F), "b_enc": self.normal(F), "W_dec": self.normal(F, D)}
        found["b_dec"] = self.normal(D)
        if self.skip:
            found["W_skip"] = self.normal(D, D)
        if self.activation == "jumprelu" and self.old:
            found["log_threshold"] = self.normal(F).abs().log()
        elif self.activation == "jumprelu":
            found["threshold"] = self.normal(F)
        return found | ({"scaling_factor": torch.ones(F)} if self.old else {})

    def config(self, index: int) -> dict[str, Any]:
        hooks = {
            "hook_name": f"blocks.{index}.hook_resid_mid",
            "hook_name_out": f"blocks.{index}.mlp.hook_out",
            "model_name": "gpt2",
        }
        jump = "jumprelu_" if self.activation == "jumprelu" else ""
        found: dict[str, Any] = {
            "architecture": f"{jump}{'skip_' if self.skip else ''}transcoder",
            "d_in": D,
            "d_out": D,
            "d_sae": F,
            "dtype": "float32",
            "apply_b_dec_to_input": False,
            "normalize_activations": "expected_average_only_in" if self.old else "none",
            "reshape_activations": "none",
        }
        if self.old:
            extra = {"activation_fn_str": self.activation, "activation_fn_kwargs": {"k": K}}
            return found | hooks | extra
        return found | {"metadata": hooks | {"sae_lens_version": "6.0.0"}}

    def save(self, folder: Path) -> None:
        for index, layer in enumerate(self.layers):
            place = folder / f"l{index}"
            write_tensors(place / "sae_weights.safetensors", layer)
            write_json(place / "cfg.json", self.config(index))
            if self.old:
                write_json(place / "activation_scaler.json", {"scaling_factor": self.scale})

    def activations(self, x: list[Tensor]) -> list[Tensor]:
        return [self.act(at * self.scale, w) for at, w in zip(x, self.layers, strict=True)]

    def act(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        hidden = x @ weights["W_enc"] + weights["b_enc"]
        if self.activation == "topk":
            return positive(hidden)
        if "log_threshold" in weights:
            return hidden.relu() * (hidden > weights["log_threshold"].exp())
        return hidden.relu() * (hidden > weights.get("threshold", torch.zeros(F)))

    def outputs(self, x: list[Tensor]) -> list[Tensor]:
        found = []
        for at, a, w in zip(x, self.activations(x), self.layers, strict=True):
            y = (a @ w["W_dec"] + w["b_dec"]) / self.scale
            found.append(y + at @ w["W_skip"].T if self.skip else y)
        return found
