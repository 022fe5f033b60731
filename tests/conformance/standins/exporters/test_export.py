"""Stands in for transformers' tests of its exporters: the graph that `torch.export` captures."""

import torch


class ExportTesterMixin:
    """Exports the language model with a free batch and length."""

    def test_torch_export(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.model_tester.causal_lm_class(config).eval()
        rows, others = (torch.randint(3, config.vocab_size, shape) for shape in [(2, 7), (3, 11)])
        batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2)

        exported = torch.export.export(
            model,
            (),
            {"input_ids": rows, "use_cache": False},
            dynamic_shapes={"input_ids": {0: batch, 1: length}, "use_cache": None},
            strict=False,
        ).module()

        for tokens in (rows, others):
            with torch.no_grad():
                logits = exported(input_ids=tokens, use_cache=False).logits
                torch.testing.assert_close(logits, model(tokens).logits, atol=1e-5, rtol=1e-5)
