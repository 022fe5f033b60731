"""Stands in for transformers' test of this pipeline."""

from transformers import TokenClassificationPipeline


class TokenClassificationPipelineTests:
    def get_test_pipeline(self, model, tokenizer, dtype="float32", **processors):
        pipeline = TokenClassificationPipeline(model=model, tokenizer=tokenizer, dtype=dtype)
        return pipeline, ["This is a test", "Another test"]

    def run_pipeline_test(self, pipeline, examples):
        tokens = pipeline(examples[0])
        assert len(tokens) == len(pipeline.tokenizer(examples[0])["input_ids"])
        assert {token["entity"] for token in tokens} <= set(pipeline.model.config.id2label.values())
        assert len(pipeline(examples)) == 2
