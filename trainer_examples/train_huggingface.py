"""A language model from scratch under the Trainer of Hugging Face Transformers.

    sampler-service up                                                    # in another terminal
    python -m trainer_examples.train_huggingface                          # descriptions of scikit-learn's data sets
    python -m trainer_examples.train_huggingface --data path/to/multi30k --out out/huggingface
    torchrun --nproc-per-node 2 -m trainer_examples.train_huggingface --run mine

It is an ordinary Trainer but for the lines marked (1), (2) and (3). Its checkpoints hold the loader's position; with
--resume, and the same --run and --out, training goes on from the latest.
"""

from __future__ import annotations

import math
import tempfile
import time
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, TrainingArguments

import sampler_client as sampler
from sampler_client.pytorch.transformers import SampledTrainer
from trainer_examples.texts import LENGTH, VOCABULARY, load_texts, sequence_losses

BATCH_SIZE = 32
LEARNING_RATE = 3e-3
SKETCH_DIM = 64


class Rows(Dataset):
    """Texts (n, t) as a Trainer wants them."""

    def __init__(self, texts: Tensor) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._texts[index]}


def losses(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Mean loss of each text, (n,)."""
    text = inputs["input_ids"]
    return sequence_losses(model(input_ids=text[:, :-1]).logits, text)


def main(
    data: Annotated[
        str | None, typer.Option(help="text file, or folder with Parquet files; none: descriptions")
    ] = None,
    address: Annotated[str, typer.Option(help="host:port of the service")] = "localhost:50051",
    run: Annotated[str | None, typer.Option(help="name of this training job, for all its processes")] = None,
    policy: Annotated[str, typer.Option(help="what to prefer; shuffle is the baseline")] = "auto",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 3,
    out: Annotated[str | None, typer.Option(help="folder for checkpoints; none: no checkpoints")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the latest checkpoint")] = False,
) -> float:
    """Train; returns the loss on the test texts, in bits a byte."""
    texts = load_texts(data)
    print(texts)
    run = run or f"{texts.name}-{policy}-{time.strftime('%H%M%S')}"
    arguments = TrainingArguments(
        output_dir=out or tempfile.mkdtemp(),
        save_strategy="no" if out is None else "epoch",
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = GPTNeoXForCausalLM(config)
    trainer = SampledTrainer(
        model,
        arguments,
        train_dataset=Rows(texts.train),
        attach=lambda loader: sampler.attach(loader, address, run=run, policy=policy, epochs=epochs),  # (1)
        losses=losses,  # (2) per example; weighted and reported by the Trainer
        sketcher=sampler.GradientSketcher(model, dim=SKETCH_DIM),  # (3)
    )
    trainer.train(resume_from_checkpoint=resume or None)
    model.eval()
    with torch.no_grad():
        test = losses(model, {"input_ids": texts.test.to(model.device)}).mean().item() / math.log(2)
    if trainer.is_world_process_zero():
        print(f"test loss {test:.3f} bits a byte")
    return test


if __name__ == "__main__":
    typer.run(main)
