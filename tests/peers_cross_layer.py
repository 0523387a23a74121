"""clt-training (and sparsify), OpenMOSS, CLT-Forge, and the two crosslayer trainers' files."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from replacement_models import ReadPoint, WritePoint
from tests.peers import POSITIONS, D, F, K, L, Peer, positive, write_json, write_tensors


class Sparsify(Peer):
    """One folder a hook point; `targets` above 0 is clt-training's cross-layer variant."""

    read, write = ReadPoint.NORMED, WritePoint.MLP_OUTPUT

    def __init__(
        self, targets: int = 0, coalesce: str = "none", tied: bool = False, norms: bool = True
    ) -> None:
        super().__init__()
        self.targets, self.coalesce, self.tied, self.norms = targets, coalesce, tied, norms
        self.cross_layer = targets > 0
        self.coders = [self.coder(index) for index in range(L)]

    def reach(self, layer: int) -> int:
        return min(self.targets, L - layer)

    def writers(self, target: int) -> list[int]:
        return [s for s in range(target + 1) if s + max(self.reach(s), 1) > target]

    def coder(self, index: int) -> dict[str, Tensor]:
        found = {"encoder.weight": self.normal(F, D), "encoder.bias": self.normal(F)}
        if self.norms:
            found |= {"in_norm": self.normal(1).abs() + 1, "out_norm": self.normal(1).abs() + 1}
        rows = F * len(self.writers(index)) if self.coalesce == "per-layer" else F
        if self.targets == 0 or self.coalesce != "none":
            found |= {"b_dec": self.normal(D), "W_skip": self.normal(D, D)}
            found["W_dec"] = self.normal(rows, D)
        if self.targets == 0:
            return found | {"post_enc": torch.zeros(F), "post_enc_scale": self.normal(F)}
        if self.tied:
            found["W_dec"] = self.normal(F, D)
        for j in range(self.reach(index)):
            found |= {f"post_encs.{j}": torch.zeros(F), f"post_enc_scales.{j}": self.normal(F)}
            if self.coalesce == "none":
                found |= {f"b_decs.{j}": self.normal(D), f"W_decs.{j}": self.normal(F, D)}
                found[f"W_skips.{j}"] = self.normal(D, D) * (j == 0)
        if self.tied:
            found = {key: value for key, value in found.items() if "W_decs" not in key}
        return found

    def save(self, folder: Path) -> None:
        for index, coder in enumerate(self.coders):
            config = {
                "activation": "topk",
                "k": K,
                "skip_connection": True,
                "transcode": True,
                "normalize_io": self.norms,
                "n_targets": self.reach(index),
                "n_sources": len(self.writers(index)),
                "coalesce_topk": self.coalesce,
                "topk_coalesced": False,
                "per_source_tied": self.tied,
                "d_in": D,
            }
            write_tensors(folder / f"h.{index}.mlp" / "sae.safetensors", coder)
            write_json(folder / f"h.{index}.mlp" / "cfg.json", config)

    def scaled(self, x: list[Tensor]) -> list[Tensor]:
        if not self.norms:
            return x
        return [at * (D**0.5 / w["in_norm"]) for at, w in zip(x, self.coders, strict=True)]

    def activations(self, x: list[Tensor]) -> list[Tensor]:
        return [
            positive(at @ w["encoder.weight"].T + w["encoder.bias"])
            for at, w in zip(self.scaled(x), self.coders, strict=True)
        ]

    def outputs(self, x: list[Tensor]) -> list[Tensor]:
        x, active, found = self.scaled(x), self.activations(x), []
        for m, own in enumerate(self.coders):
            y = sum(self.written(s, m, x, active) for s in self.writers(m))
            if self.coalesce != "none" or not self.targets:
                y = y + own["b_dec"] + x[m] @ own["W_skip"].T
            found.append(y * (own["out_norm"] / D**0.5) if self.norms else y)
        return found

    def written(self, s: int, m: int, x: list[Tensor], active: list[Tensor]) -> Tensor:
        """What one source adds to one target, in the target's unit."""
        j, w = m - s, self.coders[s]
        acts = active[s] * w[f"post_enc_scales.{j}" if self.targets else "post_enc_scale"]
        if self.coalesce == "concat":
            return acts @ self.coders[m]["W_dec"]
        if self.coalesce == "per-layer":
            return acts @ self.coders[m]["W_dec"].unflatten(0, (-1, F))[self.writers(m).index(s)]
        y = acts @ w.get(f"W_decs.{j}", w.get("W_dec"))
        return y + w[f"b_decs.{j}"] + x[s] @ w[f"W_skips.{j}"].T if self.targets else y


class OpenMoss(Peer):
    """One file for a CLT, target-grouped; a folder a layer for per-layer ones."""

    read, write = ReadPoint.NORMED_UNWEIGHTED, WritePoint.POST_NORM

    def __init__(
        self, cross_layer: bool, act: str, norm: str = "dataset-wise", gate: bool = True
    ) -> None:
        super().__init__()
        self.cross_layer, self.act, self.norm, self.gate = cross_layer, act, norm, gate
        self.own_unit = act == "topk" and gate
        self.encoder, self.bias = self.normal(L, D, F), self.normal(L, F)
        self.decoders = [self.normal(m + 1, F, D) for m in range(L)]
        self.biases, self.log_threshold = self.normal(L, D), self.normal(L, F).abs().log()
        self.hooks_in = [f"blocks.{i}.ln2.hook_normalized" for i in range(L)]
        self.hooks_out = [f"blocks.{i}.hook_mlp_out" for i in range(L)]
        self.norms = {name: i + 2.0 for i, name in enumerate([*self.hooks_in, *self.hooks_out])}

    def config(self) -> dict[str, Any]:
        return {
            "d_model": D,
            "expansion_factor": F / D,
            "use_decoder_bias": True,
            "act_fn": self.act,
            "norm_activation": self.norm,
            "sparsity_include_decoder_norm": self.gate,
            "top_k": K,
            "use_triton_kernel": False,
        }

    def stored_norms(self, names: list[str]) -> dict[str, Tensor]:
        prefix = "dataset_average_activation_norm."
        return {prefix + name: torch.tensor(self.norms[name]) for name in names}

    def save(self, folder: Path) -> None:
        threshold = "activation_function.log_jumprelu_threshold"
        jump = self.act == "jumprelu"
        if self.cross_layer:
            weights = {"W_E": self.encoder, "b_E": self.bias}
            weights |= {f"W_D.{m}": decoder for m, decoder in enumerate(self.decoders)}
            weights |= {f"b_D.{m}": bias for m, bias in enumerate(self.biases)}
            weights |= self.stored_norms([*self.hooks_in, *self.hooks_out])
            weights |= {threshold: self.log_threshold} if jump else {}
            extra = {"hook_points_in": self.hooks_in, "hook_points_out": self.hooks_out}
            write_tensors(folder / "sae_weights.safetensors", weights)
            write_json(folder / "config.json", self.config() | {"sae_type": "clt"} | extra)
            return
        for i, (source, target) in enumerate(zip(self.hooks_in, self.hooks_out, strict=True)):
            weights = {"W_E": self.encoder[i], "b_E": self.bias[i]}
            weights |= {"W_D": self.decoders[i][i], "b_D": self.biases[i]}
            weights |= self.stored_norms([source, target])
            weights |= {threshold: self.log_threshold[i]} if jump else {}
            extra = {"hook_point_in": source, "hook_point_out": target, "use_glu_encoder": False}
            write_tensors(folder / f"L{i}M" / "sae_weights.safetensors", weights)
            write_json(
                folder / f"L{i}M" / "config.json", self.config() | {"sae_type": "sae"} | extra
            )

    def factor(self, name: str) -> float:
        return D**0.5 / self.norms[name] if self.norm == "dataset-wise" else 1.0

    def trained(self, x: list[Tensor]) -> list[Tensor]:
        """Activations in the unit of training."""
        found = []
        for i, name in enumerate(self.hooks_in):
            hidden = (x[i] * self.factor(name)) @ self.encoder[i] + self.bias[i]
            targets = range(i, L) if self.cross_layer else [i]
            size = torch.stack([self.decoders[m][i].norm(dim=1) for m in targets]).norm(dim=0)
            size = size if self.gate else torch.ones(F)
            found.append(self.activated(hidden * size, i) / size)
        return found

    def activated(self, hidden: Tensor, layer: int) -> Tensor:
        if self.act == "topk":
            return positive(hidden)
        if self.act == "jumprelu":
            return hidden * (hidden > self.log_threshold[layer].exp())
        return hidden.relu()

    def activations(self, x: list[Tensor]) -> list[Tensor]:
        """In the unit of the real input, as after OpenMOSS's own folding."""
        pairs = zip(self.trained(x), self.hooks_in, strict=True)
        return [active / self.factor(name) for active, name in pairs]

    def outputs(self, x: list[Tensor]) -> list[Tensor]:
        active, found = self.trained(x), []
        for m, name in enumerate(self.hooks_out):
            y = sum(active[i] @ self.decoders[m][i] for i in self.sources(m)) + self.biases[m]
            found.append(y / self.factor(name))
        return found


class CltForge(Peer):
    """A flat tensor of (source, target) pairs; `shards` deals features out over files."""

    read, write = ReadPoint.NORMED_UNWEIGHTED, WritePoint.POST_NORM

    def __init__(self, cross_layer: bool = True, shards: int = 1) -> None:
        super().__init__()
        self.cross_layer, self.shards = cross_layer, shards
        self.pairs = [(i, m) for i in range(L) for m in range(i, L if cross_layer else i + 1)]
        self.weights = {
            "W_enc": self.normal(L, D, F),
            "b_enc": self.normal(L, F),
            "W_dec": self.normal(len(self.pairs), F, D),
            "b_dec": self.normal(len(self.pairs), D),
            "log_threshold": self.normal(L, F) - 1,
            "feature_count": torch.zeros(L, F, dtype=torch.long),
            "estimated_norm_scaling_factor_in": self.normal(L).abs() + 0.5,
            "estimated_norm_scaling_factor_out": self.normal(L).abs() + 0.5,
        }
        if cross_layer:
            self.weights["layer_mask"] = torch.zeros(L, len(self.pairs))

    def save(self, folder: Path) -> None:
        config = {
            "device": "cpu",
            "dtype": "float32",
            "seed": 0,
            "model_name": "gpt2",
            "d_in": D,
            "d_latent": F,
            "n_layers": L,
            "cross_layer_decoders": self.cross_layer,
            "normalize_decoder": False,
            "feature_sharding": self.shards > 1,
        }
        write_json(folder / "clt_cfg.json", config)
        along = {"W_enc": 2, "b_enc": 1, "W_dec": 1, "log_threshold": 1, "feature_count": 1}
        for rank in range(self.shards):
            part = {
                key: value.chunk(self.shards, along[key])[rank] if key in along else value
                for key, value in self.weights.items()
            }
            prefix = f"rank{rank}_" if self.shards > 1 else ""
            write_tensors(folder / f"{prefix}clt_weights.safetensors", part)

    def activations(self, x: list[Tensor]) -> list[Tensor]:
        found = []
        for i, scale in enumerate(self.weights["estimated_norm_scaling_factor_in"]):
            hidden = (x[i] * scale) @ self.weights["W_enc"][i] + self.weights["b_enc"][i]
            found.append(hidden * (hidden > self.weights["log_threshold"][i].exp()))
        return found

    def outputs(self, x: list[Tensor]) -> list[Tensor]:
        active, y = self.activations(x), [torch.zeros(POSITIONS, D) for _ in range(L)]
        for at, (i, m) in enumerate(self.pairs):
            y[m] = y[m] + active[i] @ self.weights["W_dec"][at] + self.weights["b_dec"][at]
        return [y[m] / self.weights["estimated_norm_scaling_factor_out"][m] for m in range(L)]


class CrosslayerTranscoder(Peer):
    """config.yaml and checkpoint.safetensors, standardisers folded or not."""

    read, write = ReadPoint.RESIDUAL, WritePoint.MLP_OUTPUT

    def __init__(self, kind: str, cross_layer: bool = True, folded: bool = False) -> None:
        super().__init__()
        self.kind, self.cross_layer, self.folded = kind, cross_layer, folded
        self.encoder, self.bias = self.normal(L, D, F), self.normal(L, F)
        self.decoders = [self.normal(m + 1, F, D) for m in range(L)]
        self.own, self.biases = self.normal(L, F, D), self.normal(L, D)
        self.theta = {
            "JumpReLU": {"theta": self.normal(1, L, F), "bandwidth": torch.tensor(0.01)},
            "BatchTopK": {"threshold": torch.tensor([0.4])},
            "PerLayerBatchTopK": {"threshold": torch.tensor([0.4, -0.2, 1.0])},
        }.get(kind, {})
        self.mean = {side: self.normal(L, D) for side in ("input", "output")}
        self.std = {side: self.normal(L, D).abs() + 0.3 for side in ("input", "output")}
        if folded:
            self.mean = {side: torch.zeros(L, D) for side in self.mean}
            self.std = {side: torch.ones(L, D) for side in self.std}

    def save(self, folder: Path) -> None:
        weights = {"encoder.W": self.encoder, "encoder.b": self.bias, "decoder.b": self.biases}
        if self.cross_layer:
            weights |= {f"decoder.W_{m}": decoder for m, decoder in enumerate(self.decoders)}
        else:
            weights["decoder.W"] = self.own
        weights |= {f"nonlinearity.{key}": value for key, value in self.theta.items()}
        if not self.folded:
            weights |= {f"{side}_standardizer.mean": mean for side, mean in self.mean.items()}
            weights |= {f"{side}_standardizer.std": std for side, std in self.std.items()}
        write_tensors(folder / "checkpoint.safetensors", weights)
        config = self.part("clt.CrossLayerTranscoder", **self.parts()) | {"is_folded": self.folded}
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": config}))

    def parts(self) -> dict[str, Any]:
        decoder = "clt.CrosslayerDecoder" if self.cross_layer else "clt.Decoder"
        module = "jumprelu" if self.kind.endswith("ReLU") else "topk"
        size = {"d_acts": D, "d_features": F, "n_layers": L}
        found: dict[str, Any] = {
            "encoder": self.part("clt.Encoder", **size),
            "decoder": self.part(decoder, **size),
            "nonlinearity": self.part(f"{module}.{self.kind}", k=K),
            "input_standardizer": None,
            "output_standardizer": None,
        }
        for side in () if self.folded else ("input", "output"):
            name = f"standardize.Dimensionwise{side.title()}Standardizer"
            found[f"{side}_standardizer"] = self.part(name, n_layers=L, activation_dim=D)
        return found

    def part(self, path: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": f"crosslayer_transcoder.model.{path}", "init_args": arguments}

    def activations(self, x: list[Tensor]) -> list[Tensor]:
        mean, std = self.mean["input"], self.std["input"]
        standard = [(at - mean[i]) / std[i] for i, at in enumerate(x)]
        return [
            self.activated(at @ self.encoder[i] + self.bias[i], i) for i, at in enumerate(standard)
        ]

    def activated(self, hidden: Tensor, layer: int) -> Tensor:
        if self.kind == "PerLayerTopK":
            return positive(hidden)
        theta = torch.zeros(1)
        if self.kind == "JumpReLU":
            theta = self.theta["theta"][0, layer]
        elif self.theta:
            theta = self.theta["threshold"][layer if self.kind.startswith("PerLayer") else 0]
        return torch.logical_and(hidden > theta, hidden > 0) * hidden

    def outputs(self, x: list[Tensor]) -> list[Tensor]:
        active, found = self.activations(x), []
        for m in range(L):
            decoders = self.decoders[m] if self.cross_layer else {m: self.own[m]}
            y = sum(active[i] @ decoders[i] for i in self.sources(m)) + self.biases[m]
            found.append(y * self.std["output"][m] + self.mean["output"][m])
        return found


class CrosslayerCoding(Peer):
    """cfg.json, model.safetensors and norm_stats.json; decoders untied or tied two ways."""

    cross_layer = True
    read, write = ReadPoint.RESIDUAL, WritePoint.MLP_OUTPUT

    def __init__(
        self, tying: str = "none", method: str = "mean_std", act: str = "jumprelu"
    ) -> None:
        super().__init__()
        self.tying, self.method, self.act = tying, method, act
        self.skips = [f"{i}->{i}" if tying == "none" else str(i) for i in range(L)]
        self.weights = {f"decoder_module.skip_weights.{s}": self.normal(D, D) for s in self.skips}
        for name in sorted({self.decoder(s, t) for t in range(L) for s in range(t + 1)}):
            self.weights |= {f"{name}.weight": self.normal(D, F)}
            self.weights |= {f"{name}.bias_param": self.normal(D)}
        for i in range(L):
            name = f"encoder_module.encoders.{i}"
            self.weights |= {f"{name}.weight": self.normal(F, D)}
            self.weights |= {f"{name}.bias_param": self.normal(F)}
            if tying != "none":
                self.weights[f"decoder_module.feature_offset.{i}"] = torch.zeros(F)
                self.weights[f"decoder_module.feature_scale.{i}"] = self.normal(F)
        if act == "jumprelu":
            self.weights["theta_manager.log_threshold"] = self.normal(L, F) - 1
        self.statistics = {
            str(i): {
                end: {"mean": self.normal(D).tolist(), "std": (self.normal(D).abs() + 0.3).tolist()}
                for end in ("inputs", "targets")
            }
            for i in range(L)
        }

    def decoder(self, source: int, target: int) -> str:
        names = {"none": f"{source}->{target}", "per_source": source, "per_target": target}
        return f"decoder_module.decoders.{names[self.tying]}"

    def save(self, folder: Path) -> None:
        write_tensors(folder / "model.safetensors", self.weights)
        if self.method == "mean_std":
            write_json(folder / "norm_stats.json", self.statistics)
        config = {
            "num_features": F,
            "num_layers": L,
            "d_model": D,
            "model_name": "gpt2",
            "normalization_method": self.method,
            "activation_fn": self.act,
            "mlp_input_template": "transformer.h.{}.ln_2.input",
            "mlp_output_template": "transformer.h.{}.mlp.output",
            "tl_input_template": None,
            "decoder_tying": self.tying,
            "skip_connection": True,
        }
        write_json(folder / "cfg.json", config)

    def moments(self, end: str, layer: int) -> tuple[Tensor, Tensor]:
        if self.method == "sqrt_d_model":
            return torch.zeros(D), torch.full((D,), D**-0.5)
        if self.method == "none":
            return torch.zeros(D), torch.ones(D)
        found = self.statistics[str(layer)][end]
        return torch.tensor(found["mean"]), torch.tensor(found["std"]) + 1e-6

    def standard(self, x: list[Tensor]) -> list[Tensor]:
        moments = [self.moments("inputs", i) for i in range(L)]
        return [(at - mean) / std for at, (mean, std) in zip(x, moments, strict=True)]

    def activations(self, x: list[Tensor]) -> list[Tensor]:
        found = []
        for i, at in enumerate(self.standard(x)):
            name = f"encoder_module.encoders.{i}"
            hidden = at @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias_param"]
            if self.act == "jumprelu":
                hidden = hidden * (hidden >= self.weights["theta_manager.log_threshold"][i].exp())
            found.append(hidden.relu())
        return found

    def outputs(self, x: list[Tensor]) -> list[Tensor]:
        active, standard, found = self.activations(x), self.standard(x), []
        for m in range(L):
            y = standard[m] @ self.weights[f"decoder_module.skip_weights.{self.skips[m]}"].T
            scale = self.weights.get(f"decoder_module.feature_scale.{m}", torch.ones(F))
            for i in range(m + 1):
                name = self.decoder(i, m)
                y = y + (active[i] * scale) @ self.weights[f"{name}.weight"].T
                if self.tying != "per_target" or i == m:
                    y = y + self.weights[f"{name}.bias_param"]
            mean, std = self.moments("targets", m)
            found.append(y * std + mean)
        return found
