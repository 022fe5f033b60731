"""Stands in for transformers' test of this pipeline."""

from transformers import FeatureExtractionPipeline


class FeatureExtractionPipelineTests:
    def get_test_pipeline(self, model, tokenizer, dtype="float32", **processors):
        pipeline = FeatureExtractionPipeline(model=model, tokenizer=tokenizer, dtype=dtype)
        return pipeline, ["This is a test", "Another test"]

    def run_pipeline_test(self, pipeline, examples):
        (vectors,) = pipeline(examples[0])
        assert len(vectors) == len(pipeline.tokenizer(examples[0])["input_ids"])
        assert {len(vector) for vector in vectors} == {pipeline.model.config.hidden_size}
        assert len(pipeline(examples)) == 2
