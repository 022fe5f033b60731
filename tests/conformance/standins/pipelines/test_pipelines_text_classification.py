"""Stands in for transformers' test of this pipeline."""

from transformers import TextClassificationPipeline


class TextClassificationPipelineTests:
    def get_test_pipeline(self, model, tokenizer, dtype="float32", **processors):
        pipeline = TextClassificationPipeline(model=model, tokenizer=tokenizer, dtype=dtype)
        return pipeline, ["This is a test", "Another test"]

    def run_pipeline_test(self, pipeline, examples):
        labels = set(pipeline.model.config.id2label.values())
        (best,) = pipeline(examples[0])
        assert best["label"] in labels
        every = pipeline(examples, top_k=None)
        assert [{label["label"] for label in each} for each in every] == [labels, labels]
