"""Stands in for transformers' test of this pipeline."""

import pytest
from transformers import ZeroShotClassificationPipeline


class ZeroShotClassificationPipelineTests:
    def get_test_pipeline(self, model, tokenizer, dtype="float32", **processors):
        pipeline = ZeroShotClassificationPipeline(
            model=model, tokenizer=tokenizer, dtype=dtype, candidate_labels=["polemics", "health"]
        )
        return pipeline, ["Who are you voting for?", "My stomach hurts."]

    def run_pipeline_test(self, pipeline, examples):
        outputs = pipeline(examples[0])
        assert set(outputs["labels"]) == {"polemics", "health"}
        assert sum(outputs["scores"]) == pytest.approx(1, abs=1e-3)
        assert len(pipeline(examples)) == 2
