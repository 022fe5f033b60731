"""Tiny saved models, where transformers' tests of pipelines look for those they fetch elsewhere."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama

from hf_tinyformer import TinyFormerConfig
from hf_tinyformer.model import modeling_tinyformer

TASK_CLASSES = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Zero-shot classification looks these names up.
    "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
    "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Cut text into its bytes, with the usual marks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["This is a test. Another test."], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )


def write_tiny_hub(folder: Path, subject: str) -> None:
    """Save one model of each task.

    Args:
        folder: New folder, laid out as transformers' tests of pipelines expect it.
        subject: `"llama"`, or one of our position schemes.
    """
    tokenizer = tiny_tokenizer()
    settings = SIZES | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if subject == "llama":
        config, module, stem = LlamaConfig(**settings), modeling_llama, "Llama"
    else:
        config = TinyFormerConfig(**settings, position_embedding_type=subject)
        module, stem = modeling_tinyformer, "TinyFormer"
    torch.manual_seed(0)
    listed = {}
    for task_class in TASK_CLASSES:
        name = stem + task_class
        home = folder / config.model_type / name
        getattr(module, name)(config).save_pretrained(home)
        tokenizer.save_pretrained(home)
        listed[name] = {"tokenizer_classes": ["PreTrainedTokenizerFast"], "processor_classes": []}
    (folder / "reports").mkdir()
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(listed))
