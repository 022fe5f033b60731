"""`Trainer` on the model: is a step the same step however it is cut?"""

import pytest
import torch
from tiny_models import random_tokens, tiny_config
from transformers import Trainer, TrainingArguments

from hf_tinyformer import TinyFormerForCausalLM


@pytest.fixture
def rows():
    """Rows of which very different shares count, so that a mean of means would be another loss."""
    torch.manual_seed(0)
    rows = []
    for index in range(8):
        ids = random_tokens(1, 24)[0]
        labels = ids.clone()
        labels[: 3 * index] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def train(rows, folder, **settings):
    torch.manual_seed(0)
    model = TinyFormerForCausalLM(tiny_config())
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        learning_rate=1e-2,
        optim="sgd",  # Adam would hide a wrong scale of the gradient
        max_grad_norm=0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    Trainer(model, arguments, train_dataset=rows).train()
    return model.state_dict()


def largest_difference(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_accumulated_micro_batches_are_one_batch(rows, tmp_path):
    whole = train(rows, tmp_path, per_device_train_batch_size=8)

    parts = train(rows, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)

    assert largest_difference(whole, parts) < 1e-6


def test_the_test_above_would_notice_a_mean_of_means(rows, tmp_path, monkeypatch):
    whole = train(rows, tmp_path, per_device_train_batch_size=8)
    monkeypatch.setattr(TinyFormerForCausalLM, "accepts_loss_kwargs", False, raising=False)

    parts = train(rows, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)

    assert largest_difference(whole, parts) > 1e-5


def test_activations_computed_twice_give_the_same_step(rows, tmp_path):
    kept = train(rows, tmp_path, per_device_train_batch_size=8)

    again = train(rows, tmp_path, per_device_train_batch_size=8, gradient_checkpointing=True)

    assert largest_difference(kept, again) < 1e-6
