"""A Hugging Face Trainer on the service's batches: each example once an epoch, also from a checkpoint on."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Trainer, TrainingArguments

import sampler_client as sampler
from sampler_client.pytorch.transformers import SampledTrainer
from tests.frameworks.conftest import BATCH, SKETCH_DIM, STEPS, N, assert_each_once, losses_of
from trainer_examples import train_huggingface
from trainer_examples.texts import VOCABULARY, tokens

EPOCHS = 3


class Numbers(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([float(index)])}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def arguments(folder, **changes) -> TrainingArguments:
    given = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "save_strategy": "no", **changes}
    return TrainingArguments(
        str(folder), learning_rate=0.01, report_to="none", disable_tqdm=True, use_cpu=True, **given
    )


def trainer_of(attach, folder, dataset: Dataset | None = None, **changes) -> SampledTrainer:
    return SampledTrainer(
        Model(),
        arguments(folder, **changes),
        train_dataset=dataset or Numbers(),
        attach=attach,
        losses=lambda model, inputs: losses_of(model, inputs["x"]),
    )


def test_training_reports_every_example_with_its_sketch_once_an_epoch_and_closes_the_loader(
    attach, served, reported, tmp_path
):
    trainer = trainer_of(attach, tmp_path)
    with sampler.GradientSketcher(trainer.model, dim=SKETCH_DIM) as trainer._sketcher:
        trainer.train()
    assert_each_once(reported, EPOCHS)
    said = served.service.statistics("r")
    assert (said.reported_rows, said.rejected_rows, said.trainers) == (len(reported), {}, 0)
    assert said.sketch_coverage == 1


def test_two_batches_accumulated_make_the_step_of_one_twice_as_large(served, tmp_path):
    made = []
    for size, accumulated in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        trainer = trainer_of(
            lambda plain: sampler.attach(plain, served.address, run=f"steps-{len(plain)}", policy="shuffle"),
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            dataset=Subset(Numbers(), range(8)),
            num_train_epochs=1,
            optim="sgd",
            lr_scheduler_type="constant",
        )
        trainer.train()
        made.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
    torch.testing.assert_close(*made)


@pytest.mark.parametrize(("steps", "workers"), [(3, 0), (STEPS, 0), (STEPS + 2, 2)])
def test_going_on_from_a_checkpoint_loses_and_repeats_nothing(attach, reported, tmp_path, steps, workers):
    loading = {"dataloader_num_workers": workers}
    trainer_of(attach, tmp_path, max_steps=steps, save_strategy="steps", save_steps=steps, **loading).train()
    kept = json.loads((tmp_path / f"checkpoint-{steps}" / "trainer_state.json").read_text())
    position = kept["stateful_callbacks"]["SampledPosition"]["attributes"]["position"]
    assert (position["epoch"], position["examples"]) == (steps // STEPS, steps % STEPS * BATCH)
    trainer_of(attach, tmp_path, **loading).train(resume_from_checkpoint=True)
    assert_each_once(reported, EPOCHS)


def test_going_on_after_a_whole_epoch_begins_the_next(attach, reported, tmp_path):
    trainer_of(attach, tmp_path, num_train_epochs=1, save_strategy="epoch").train()
    trainer_of(attach, tmp_path).train(resume_from_checkpoint=True)
    assert_each_once(reported, EPOCHS)


def test_a_checkpoint_of_another_trainer_is_refused(attach, tmp_path):
    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            return losses_of(model, inputs["x"]).mean()

    Own(Model(), arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2), train_dataset=Numbers()).train()
    with pytest.raises(sampler.ConfigError, match="made by another Trainer"):
        trainer_of(attach, tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("returned", "error", "says"),
    [
        (lambda loader: loader.loader, sampler.ConfigError, r"transformers\.trainer iterates .*SampledTrainer"),
        (lambda loader: loader, AttributeError, r"the Trainer without ignore_data_skip=True"),
    ],
    ids=["the loader beneath", "skipping batches"],
)
def test_a_plain_trainer_is_told_what_to_write(attach, tmp_path, returned, error, says):
    class Own(Trainer):
        def get_train_dataloader(self):
            return returned(loader)

        def compute_loss(self, model, inputs, return_outputs=False, **_):
            return losses_of(model, torch.zeros(1, 1)).mean()

        def _prepare_inputs(self, inputs):
            return inputs

    with attach() as loader:
        first = Own(Model(), arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2))
        with pytest.raises(error, match=says):
            first.train()
            Own(Model(), arguments(tmp_path)).train(resume_from_checkpoint=True)


def test_several_gpus_in_one_process_are_refused(attach, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(sampler.ConfigError, match=r"nn.DataParallel on 2 GPUs.*torchrun"):
        trainer_of(attach, tmp_path)


def test_batches_that_are_no_mappings_are_refused(attach, tmp_path):
    trainer = trainer_of(attach, tmp_path)
    trainer.data_collator = lambda items: torch.stack([item["x"] for item in items])
    with pytest.raises(sampler.ConfigError, match="mappings of inputs, the collator made a Tensor"):
        trainer.train()


def test_a_gpt_neox_is_sketched_as_a_whole():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCABULARY, **shape))
    with sampler.GradientSketcher(model, dim=SKETCH_DIM) as sketcher:
        train_huggingface.losses(model, {"input_ids": tokens(["one text", "another text"])}).sum().backward()
        assert sketcher.take([1.0, 1.0]).usable.all()
        assert sketcher.skipped == {}
