"""The peers' sides of `trainers`: `PEER_PYTHON -m benchmarks.trainer_peers JOB.json`.

Each peer's own model class, loss, optimiser, schedules and loop; only where rows come from is
replaced. What had to be changed besides:

clt-training (EleutherAI): its Triton kernels need a GPU. The decoder runs by its own fallback for
machines without, `embedding_bag`; for the encoder's gradient it has none, and gets ours, one sort
and an `embedding_bag`, the fastest we know. Its untied decoders fail as they stand (the result
of a source below is made with two fields too many, and one of two names of the same weight has to
be a copy before it is saved), which is mended. The offset that it adds to
active features is left out (`train_post_encoder=False`, one of its own variants): no decoder of a
replacement model can express it. Else its sweep's settings for GPT-2, without a skip.
CLT-Forge (LLM-Interp): biases are to let each feature fire on 10,000 / F of the tokens, which for
less than 10,000 features is more than all; its GPT-2 recipe's share, 10,000 / 24,576, stands
instead. Numbers are float32, and steps of its schedules are shares of the run. Its recipe trains at
rate 0 in the last quarter (it expects to be stopped before); here the rate falls until the end.
sparsify (EleutherAI) and SAELens run as they stand.
"""

import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.trainer_rows import Job, Rows

NORM_BATCHES = 10
"""That CLT-Forge estimates norms from, by its default."""
FIRING = 10_000 / 24_576


class Written(nn.Module):
    """In the place of an MLP: gives what is known to be written."""

    output: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Of whatever was read."""
        return self.output


class Model(nn.Module):
    """In the place of a language model: its tokens are numbers of rows."""

    dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}  # noqa: RUF012
    device = torch.device("cpu")

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows
        self.h = nn.ModuleList(nn.ModuleDict({"mlp": Written()}) for _ in range(rows.layers))
        self.config = types.SimpleNamespace(num_hidden_layers=rows.layers, bos_token_id=-1)

    @property
    def base_model(self) -> "Model":
        """It has no head."""
        return self

    def forward(self, input_ids: Tensor) -> None:
        """Let every MLP say what it wrote, with the hooks on it."""
        first, count = int(input_ids[0, 0]), input_ids.numel()
        size = self.rows.job.batch
        counted = count == size
        inputs, outputs = (
            self.rows.batch(first // size) if counted else self.rows.part(first, first + count)
        )
        for at, block in enumerate(self.h):
            block["mlp"].output = outputs[None, :, at].contiguous()
            block["mlp"](inputs[None, :, at].contiguous())


class Sequences:
    """A dataset whose sequences are batches."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __len__(self) -> int:
        return self.job.steps

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        if number >= len(self):
            raise IndexError(number)
        size = self.job.batch
        return {"input_ids": torch.arange(number * size, (number + 1) * size)}


def sparsify(job: Job, rows: Rows) -> None:
    """EleutherAI's sparsify: TopK, signs of gradients without a schedule."""
    sys.path.insert(0, job.source)
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    rows.start()
    config = TrainConfig(
        SparseCoderConfig(num_latents=job.features, k=int(job.setting), transcode=True),
        batch_size=1,
        hookpoints=["h.*.mlp"],
        lr=job.rate,
        **_kept(job),
    )
    Trainer(config, Sequences(job), Model(rows)).fit()


def clt_training(job: Job, rows: Rows) -> None:
    """EleutherAI's clt-training: TopK, each target's own loss."""
    _without_triton()
    sys.path.insert(0, job.source)
    from safetensors.torch import save_file
    from sparsify import SparseCoderConfig, TrainConfig, Trainer, fused_encoder, sparse_coder, utils

    rows.start()
    utils.save_file = lambda tensors, path: save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, path
    )
    fused_encoder.triton_sparse_transpose_dense_matmul = _gradient
    kept = sparse_coder.ForwardOutput
    sparse_coder.ForwardOutput = lambda *parts: kept(*parts[:4], parts[-1])
    tied = {"coalesce_topk": "concat"} if job.side.endswith("tied") else {}
    config = TrainConfig(
        SparseCoderConfig(
            num_latents=job.features, k=int(job.setting), transcode=True, normalize_io=True,
            train_post_encoder=False, **tied,
        ),
        batch_size=1,
        hookpoints=[f"h.{at}.mlp" for at in range(rows.layers)],
        cross_layer=rows.layers,
        optimizer="adam",
        lr=job.rate,
        lr_warmup_steps=50,
        filter_bos=True,
        **_kept(job),
    )  # fmt: skip
    Trainer(config, Sequences(job), Model(rows)).fit()


def _kept(job: Job) -> dict[str, Any]:
    return {
        "save_dir": job.out,
        "run_name": "dictionary",
        "log_to_wandb": False,
        "save_every": 10**9,
    }


def _without_triton() -> None:
    """Let its module of kernels be imported; torch must have found that there is none before."""
    import torch._dynamo  # noqa: F401

    os.environ |= {
        "SPARSIFY_DISABLE_TRITON": "1", "SPARSIFY_NO_COMPILE": "1", "TORCHDYNAMO_DISABLE": "1",
    }  # fmt: skip
    triton, language = types.ModuleType("triton"), types.ModuleType("triton.language")
    triton.jit, triton.language, language.constexpr = lambda function: function, language, int
    sys.modules |= {"triton": triton, "triton.language": language}


def _gradient(indices: Tensor, values: Tensor, dense: Tensor, N: int) -> Tensor:  # noqa: N803
    """(N, width): the transposed sparse matrix times `dense`."""
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=N)
    return nn.functional.embedding_bag(
        order // indices.shape[1], dense, counts.cumsum(0) - counts,
        mode="sum", per_sample_weights=values.flatten()[order],
    )  # fmt: skip


class Store:
    """In the place of CLT-Forge's store: its start reads the first batches, then all are read."""

    def __init__(self, rows: Rows, before: int) -> None:
        self.rows, self.before = rows, before
        size = rows.job.batch
        read, written = rows.part(0, NORM_BATCHES * size)
        root = rows.width**0.5
        self.read, self.written = (root / one.norm(dim=-1).mean(0) for one in (read, written))
        self.asked = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        number, self.asked = self.asked, self.asked + 1
        size = self.rows.job.batch
        if number < self.before:
            yield self._scaled(*self.rows.part(number * size, (number + 1) * size))
            return
        for at in range(self.rows.job.steps):
            yield self._scaled(*self.rows.batch(at))

    def _scaled(self, read: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        return read * self.read[:, None], written * self.written[:, None]


def clt_forge(job: Job, rows: Rows) -> None:
    """LLM-Interp's CLT-Forge: JumpReLU, a penalty that grows over the run."""
    sys.path.insert(0, str(Path(job.source) / "src"))
    from clt_forge.clt import CLT
    from clt_forge.config import CLTConfig, CLTTrainingRunnerConfig
    from clt_forge.training.clt_trainer import CLTTrainer

    rows.start()

    class Fitting(CLT):
        @torch.no_grad()
        def _initialize_b_enc(self, hidden_pre: Tensor) -> None:
            rank = int(FIRING * len(hidden_pre)) + 1
            there = hidden_pre.sort(dim=0, descending=True).values[rank]
            self.b_enc.copy_(self.log_threshold.exp() - there)

    steps = job.steps
    config = CLTTrainingRunnerConfig(
        device="cpu", dtype="float32", distributed_setup="None", n_checkpoints=0,
        checkpoint_path=job.out, logger_verbose=False, log_to_wandb=False,
        d_in=rows.width, d_latent=job.features, jumprelu_init_threshold=0.03,
        jumprelu_bandwidth=1.0, total_training_tokens=steps * job.batch,
        train_batch_size_tokens=job.batch, adam_beta1=0.9, adam_beta2=0.999,
        lr=job.rate, lr_warm_up_steps=steps // 50, lr_decay_steps=max(1, steps // 20),
        l0_coefficient=job.setting, dead_penalty_coef=1e-5, l0_warm_up_steps=int(0.7 * steps),
    )  # fmt: skip
    coder = Fitting(config.create_sub_config(CLTConfig, n_layers=rows.layers))
    store = Store(rows, before=5)
    coder.estimated_norm_scaling_factor_in.copy_(store.read)
    coder.estimated_norm_scaling_factor_out.copy_(store.written)
    trainer = CLTTrainer(coder, store, config, lambda **_: None)
    trainer.fit()
    coder.save_model(str(Path(job.out) / "dictionary"))


def sae_lens(job: Job, rows: Rows) -> None:
    """SAELens: BatchTopK, written as the thresholds that it is."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, LoggingConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    rows.start()
    steps = job.steps
    coder = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(d_in=rows.width, d_sae=job.features, k=job.setting)
    )
    coder.cfg.metadata.hook_name = "blocks.0.hook_resid_pre"
    config = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
        total_training_samples=steps * job.batch, device="cpu", autocast=False, lr=job.rate,
        lr_end=job.rate / 10, lr_scheduler_name="constant", lr_warm_up_steps=0,
        adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=steps // 5, n_restart_cycles=1,
        train_batch_size_samples=job.batch, dead_feature_window=100,
        feature_sampling_window=10**6, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    given = (rows.batch(at)[0][:, 0].contiguous() for at in range(steps))
    SAETrainer(config, coder, given).fit()
    coder.save_inference_model(str(Path(job.out) / "dictionary"))


SIDES: dict[str, Callable[[Job, Rows], None]] = {
    "clt-training": clt_training,
    "clt-training tied": clt_training,
    "CLT-Forge": clt_forge,
    "sparsify": sparsify,
    "SAELens": sae_lens,
}


def main() -> None:
    """Train and write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    job = Job.read(sys.argv[1])
    rows = Rows(job)
    SIDES[job.side](job, rows)
    rows.finish()


if __name__ == "__main__":
    main()
