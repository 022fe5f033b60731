"""Stands in for transformers' tests of generation, which its distribution leaves out.

The names are those of the tests that they stand in for.
"""

import torch
from transformers import DynamicCache, StaticCache, set_seed

BATCH, PROMPT, NEW = 2, 6, 4


class GenerationTesterMixin:
    """What `generate` has to do with every causal language model."""

    def prepare_config_and_inputs_for_generate(self, batch_size=BATCH):
        """Give a config, and a prompt with a mask."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        input_ids = torch.randint(3, config.vocab_size, (batch_size, PROMPT))
        return config, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def generator(self, attention="sdpa"):
        """Make a model whose first weights are wide enough for one token to stand out."""
        config, inputs = self.prepare_config_and_inputs_for_generate()
        config.initializer_range = 0.5
        config._attn_implementation = attention
        set_seed(0)
        return self.model_tester.causal_lm_class(config).eval(), inputs

    def generate(self, model, inputs, **settings):
        """Write `NEW` tokens, never fewer."""
        defaults = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
        return model.generate(**inputs, **(defaults | settings))

    def generate_in_full(self, model, inputs, **settings):
        """Write tokens and give back everything that `generate` can give back."""
        return self.generate(
            model,
            inputs,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            output_hidden_states=True,
            output_attentions=True,
            **settings,
        )

    def check_parts(self, outputs, config, rows, uses_cache):
        """Check the shapes of everything a step gives back."""
        assert len(outputs.hidden_states) == NEW
        for step, (states, weights) in enumerate(
            zip(outputs.hidden_states, outputs.attentions, strict=True)
        ):
            keys = PROMPT + step
            queries = 1 if uses_cache and step else keys
            assert len(states) == config.num_hidden_layers + 1
            assert len(weights) == config.num_hidden_layers
            for each in states:
                assert each.shape == (rows, queries, config.hidden_size)
            for each in weights:
                assert each.shape == (rows, config.num_attention_heads, queries, keys)

    def test_greedy_generate(self):
        model, inputs = self.generator()
        written = self.generate(model, inputs)

        assert written.shape == (BATCH, PROMPT + NEW)
        rows = inputs["input_ids"]
        for _ in range(NEW):
            best = model(rows).logits[:, -1].argmax(dim=-1, keepdim=True)
            rows = torch.cat([rows, best], dim=1)
        assert written.tolist() == rows.tolist()

    def test_greedy_generate_dict_outputs(self):
        model, inputs = self.generator("eager")
        self.check_parts(
            self.generate_in_full(model, inputs, use_cache=False), model.config, BATCH, False
        )

    def test_greedy_generate_dict_outputs_use_cache(self):
        model, inputs = self.generator("eager")
        outputs = self.generate_in_full(model, inputs)

        self.check_parts(outputs, model.config, BATCH, True)
        assert isinstance(outputs.past_key_values, DynamicCache)
        assert outputs.past_key_values.get_seq_length() == PROMPT + NEW - 1

    def test_sample_generate(self):
        model, inputs = self.generator()
        written = self.generate(model, inputs, do_sample=True, num_return_sequences=2)

        assert written.shape == (2 * BATCH, PROMPT + NEW)

    def test_sample_generate_dict_output(self):
        model, inputs = self.generator("eager")
        outputs = self.generate_in_full(model, inputs, do_sample=True, num_return_sequences=2)

        self.check_parts(outputs, model.config, 2 * BATCH, True)

    def test_beam_search_generate(self):
        model, inputs = self.generator()
        written = self.generate(model, inputs, num_beams=3, num_return_sequences=2)
        without = self.generate(model, inputs, num_beams=3, num_return_sequences=2, use_cache=False)

        assert written.shape == (2 * BATCH, PROMPT + NEW)
        assert written.tolist() == without.tolist()

    def test_beam_search_generate_dict_output(self):
        model, inputs = self.generator("eager")
        outputs = self.generate_in_full(model, inputs, num_beams=3)

        self.check_parts(outputs, model.config, 3 * BATCH, True)
        assert outputs.sequences_scores.shape == (BATCH,)

    def test_beam_sample_generate(self):
        model, inputs = self.generator()
        written = self.generate(model, inputs, num_beams=3, do_sample=True)

        assert written.shape == (BATCH, PROMPT + NEW)

    def test_generate_without_input_ids(self):
        model, _ = self.generator()
        written = self.generate(model, {}, bos_token_id=1)

        assert written.shape == (1, 1 + NEW)

    def test_assisted_decoding_matches_greedy_search(self):
        model, inputs = self.generator()
        inputs = {name: each[:1] for name, each in inputs.items()}
        set_seed(1)
        assistant = self.model_tester.causal_lm_class(model.config).eval()

        for each in (assistant, model):  # one that is mostly wrong, one that is always right
            written = self.generate(model, inputs, assistant_model=each)
            assert written.tolist() == self.generate(model, inputs).tolist()

    def test_prompt_lookup_decoding_matches_greedy_search(self):
        model, inputs = self.generator()
        inputs = {name: each[:1].repeat(1, 2) for name, each in inputs.items()}
        written = self.generate(model, inputs, prompt_lookup_num_tokens=2)

        assert written.tolist() == self.generate(model, inputs).tolist()

    def test_left_padding_compatibility(self):
        model, inputs = self.generator()
        padded = {name: torch.nn.functional.pad(each, (5, 0)) for name, each in inputs.items()}
        written = self.generate_in_full(model, padded | {"use_cache": True})
        plain = self.generate_in_full(model, inputs)

        assert written.sequences[:, 5:].tolist() == plain.sequences.tolist()
        for ours, theirs in zip(written.logits, plain.logits, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

    def test_past_key_values_format(self):
        model, inputs = self.generator()
        cache = model(**inputs, use_cache=True).past_key_values

        assert len(cache) == model.config.num_hidden_layers
        shape = (BATCH, model.config.num_key_value_heads, PROMPT, model.config.head_dim)
        for layer in cache.layers:
            assert layer.keys.shape == shape
            assert layer.values.shape == shape

    def test_generate_from_inputs_embeds(self):
        model, inputs = self.generator()
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        from_tokens = self.generate(model, inputs)
        from_embeds = self.generate(
            model, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
        )

        assert from_embeds.tolist() == from_tokens[:, PROMPT:].tolist()

    def test_generate_continue_from_past_key_values(self):
        model, inputs = self.generator()
        at_once = self.generate(model, inputs, max_new_tokens=2 * NEW)
        first = self.generate(model, inputs, return_dict_in_generate=True)
        rows = first.sequences
        second = self.generate(
            model,
            {"input_ids": rows, "attention_mask": torch.ones_like(rows)},
            past_key_values=first.past_key_values,
        )

        assert second.tolist() == at_once.tolist()

    def test_generate_with_static_cache(self):
        model, inputs = self.generator()
        outputs = self.generate(
            model,
            inputs,
            cache_implementation="static",
            return_dict_in_generate=True,
            disable_compile=True,
        )

        assert isinstance(outputs.past_key_values, StaticCache)
        assert outputs.sequences.tolist() == self.generate(model, inputs).tolist()

    def test_generate_compile_model_forward_fullgraph(self):
        torch.compiler.reset()
        model, inputs = self.generator()
        plain = self.generate(model, inputs)
        model.forward = torch.compile(model.forward, fullgraph=True, backend="eager")

        written = self.generate(model, inputs, cache_implementation="static", disable_compile=True)

        assert written.tolist() == plain.tolist()

    def test_generate_methods_with_logits_to_keep(self):
        model, inputs = self.generator()
        kept = self.generate_in_full(model, inputs)
        every = self.generate_in_full(model, inputs, logits_to_keep=0)

        assert kept.sequences.tolist() == every.sequences.tolist()

    def test_forward_with_logits_to_keep(self):
        model, inputs = self.generator()
        every = model(**inputs).logits

        assert torch.equal(model(**inputs, logits_to_keep=0).logits, every)
        kept = model(**inputs, logits_to_keep=1).logits
        torch.testing.assert_close(kept, every[:, -1:])

    def test_generate_with_and_without_position_ids(self):
        model, inputs = self.generator()
        position_ids = torch.arange(PROMPT)[None].expand(BATCH, -1)
        written = self.generate(model, inputs | {"position_ids": position_ids})

        assert written.tolist() == self.generate(model, inputs).tolist()

    def test_eager_matches_sdpa_generate(self):
        written = []
        for attention in ("eager", "sdpa"):
            set_seed(0)
            written.append(self.generate(*self.generator(attention)).tolist())

        assert written[0] == written[1]

    def check_packed_rows(self, attention):
        """Two texts in one row are as each of them alone."""
        model, inputs = self.generator(attention)
        rows = inputs["input_ids"]
        position_ids = torch.arange(PROMPT).repeat(BATCH)[None]

        packed = model(rows.view(1, -1), position_ids=position_ids, use_cache=False).logits

        alone = model(rows).logits
        torch.testing.assert_close(packed.view_as(alone), alone, atol=1e-4, rtol=1e-4)

    def test_eager_padding_matches_padding_free_with_position_ids(self):
        self.check_packed_rows("eager")

    def test_sdpa_padding_matches_padding_free_with_position_ids(self):
        self.check_packed_rows("sdpa")

    def test_custom_4d_attention_mask(self):
        model, inputs = self.generator()
        first, second = inputs["input_ids"]
        shared = first[: PROMPT // 2]
        half = PROMPT // 2
        # One row holds a beginning and two ways on from it; neither sees the other.
        row = torch.cat([shared, first[half:], second[half:]])[None]
        sees = torch.ones(len(row[0]), len(row[0]), dtype=torch.bool).tril()
        sees[PROMPT:, half:PROMPT] = False
        places = torch.cat([torch.arange(PROMPT), torch.arange(half, PROMPT)])[None]
        smallest = torch.finfo(torch.float32).min
        mask = torch.zeros(sees.shape).masked_fill(~sees, smallest)[None, None]

        packed = model(row, attention_mask=mask, position_ids=places, use_cache=False).logits[0]

        one = model(first[None]).logits[0]
        other = model(torch.cat([shared, second[half:]])[None]).logits[0]
        torch.testing.assert_close(packed[:PROMPT], one, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed[PROMPT:], other[half:], atol=1e-4, rtol=1e-4)
