"""Stands in for transformers' test of this pipeline."""

from transformers import TextGenerationPipeline


class TextGenerationPipelineTests:
    def get_test_pipeline(self, model, tokenizer, dtype="float32", **processors):
        pipeline = TextGenerationPipeline(
            model=model, tokenizer=tokenizer, dtype=dtype, max_new_tokens=5
        )
        return pipeline, ["This is a test", "Another test"]

    def run_pipeline_test(self, pipeline, examples):
        (one,) = pipeline(examples[0])
        assert one["generated_text"].startswith(examples[0])
        (rest,) = pipeline(examples[0], return_full_text=False)
        assert not rest["generated_text"].startswith(examples[0])
        both = pipeline(examples, num_return_sequences=2, do_sample=True)
        assert [len(each) for each in both] == [2, 2]
        (tokens,) = pipeline(examples[0], return_tensors=True)
        assert all(isinstance(token, int) for token in tokens["generated_token_ids"])
