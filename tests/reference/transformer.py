"""A second TinyFormer: float64, one token and one head at a time, from the papers' formulas.

It shares no code with the package and reads only weights and settings, so a mistake would have to
be made twice.
"""

import math

import numpy as np


def logits(state_dict, config, tokens):
    """Logits of one row of tokens, shape (sequence, vocabulary)."""
    weights = {name: tensor.double().numpy() for name, tensor in state_dict.items()}
    stream = [weights["model.embed_tokens.weight"][token].copy() for token in tokens]
    for place, vector in enumerate(stream):
        if config.position_embedding_type == "learned":
            vector += weights["model.embeddings.positions.weight"][place]
        if config.position_embedding_type == "sinusoidal":
            vector += sinusoid(place, config.hidden_size)

    for layer in range(config.num_hidden_layers):
        layer_weights = _below(weights, f"model.layers.{layer}.")
        attend = lambda rows, w=layer_weights: attention(w, config, rows, weights)  # noqa: E731
        feed = lambda rows, w=layer_weights: [feed_forward(w, config, row) for row in rows]  # noqa: E731
        stream = sublayer(layer_weights, config, "attention_norm.", attend, stream)
        stream = sublayer(layer_weights, config, "mlp_norm.", feed, stream)

    if config.norm_placement == "pre":
        stream = [normalize(_below(weights, "model.norm."), config, row) for row in stream]
    return np.array([weights["lm_head.weight"] @ row for row in stream])


def sublayer(weights, config, norm_name, function, stream):
    """One residual sum, with its norm before or after."""
    norm = _below(weights, norm_name)
    if config.norm_placement == "pre":
        changes = function([normalize(norm, config, row) for row in stream])
        return [row + change for row, change in zip(stream, changes, strict=True)]
    changes = function(stream)
    return [
        normalize(norm, config, row + change) for row, change in zip(stream, changes, strict=True)
    ]


def normalize(weights, config, row, norm_type=None):
    """LayerNorm or RMSNorm of one vector."""
    if (norm_type or config.norm_type) == "layernorm":
        variance = sum((number - row.mean()) ** 2 for number in row) / len(row)
        return weights["weight"] * (row - row.mean()) / math.sqrt(
            variance + config.norm_eps
        ) + weights.get("bias", 0.0)
    mean_square = sum(number**2 for number in row) / len(row)
    return weights["weight"] * row / math.sqrt(mean_square + config.norm_eps)


def attention(weights, config, rows, all_weights):
    """Causal multi-head attention of a whole row of vectors."""
    size = config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    query = [linear(weights, "self_attn.q_proj", row) for row in rows]
    key = [linear(weights, "self_attn.k_proj", row) for row in rows]
    value = [linear(weights, "self_attn.v_proj", row) for row in rows]
    outputs = []
    for here in range(len(rows)):
        heads = []
        for head in range(config.num_attention_heads):
            shared = head // group
            own = slice(head * size, (head + 1) * size)
            theirs = slice(shared * size, (shared + 1) * size)
            asked = prepare(weights, config, "self_attn.q_norm.", query[here][own], here)
            scores = []
            for there in range(here + 1):
                offered = prepare(weights, config, "self_attn.k_norm.", key[there][theirs], there)
                bias = score_bias(config, all_weights, head, here - there)
                scores.append(asked @ offered / math.sqrt(size) + bias)
            exponentials = [math.exp(score) for score in scores]
            heads.append(
                sum(
                    share / sum(exponentials) * value[there][theirs]
                    for there, share in enumerate(exponentials)
                )
            )
        outputs.append(linear(weights, "self_attn.o_proj", np.concatenate(heads)))
    return outputs


def prepare(weights, config, norm_name, vector, place):
    """Query-key norm, then rotation, of one head of one token."""
    if config.use_qk_norm:
        vector = normalize(_below(weights, norm_name), config, vector, "rmsnorm")
    if config.position_embedding_type != "rope":
        return vector
    half = len(vector) // 2
    turned = vector.copy()
    for pair in range(half):
        angle = place * config.rope_parameters["rope_theta"] ** (-2 * pair / len(vector))
        first, second = vector[pair], vector[pair + half]
        turned[pair] = first * math.cos(angle) - second * math.sin(angle)
        turned[pair + half] = first * math.sin(angle) + second * math.cos(angle)
    return turned


def score_bias(config, weights, head, distance):
    """What a scheme adds to one score of a key `distance` tokens back."""
    if config.position_embedding_type == "alibi":
        return -alibi_slope(head, config.num_attention_heads) * distance
    if config.position_embedding_type == "relative":
        bucket = relative_bucket(
            distance,
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )
        return weights["model.score_bias.bucket_bias.weight"][bucket, head]
    return 0.0


def alibi_slope(head, num_heads):
    """Press et al. 2022, section 3, for a power of two heads: a geometric sequence down to 2^-8."""
    return 2.0 ** (-8.0 * (head + 1) / num_heads)


def relative_bucket(distance, num_buckets, max_distance):
    """Raffel et al. 2020, section 2.1, one direction: half the buckets exact, half logarithmic."""
    exact = num_buckets // 2
    if distance < exact:
        return distance
    steps = math.log(distance / exact) / math.log(max_distance / exact)
    return min(exact + int(steps * (num_buckets - exact)), num_buckets - 1)


def sinusoid(place, size):
    """Vaswani et al. 2017, section 3.5, one position."""
    row = np.zeros(size)
    for pair in range(size // 2):
        angle = place / 10_000 ** (2 * pair / size)
        row[2 * pair], row[2 * pair + 1] = math.sin(angle), math.cos(angle)
    return row


def feed_forward(weights, config, row):
    """The feed-forward network on one vector."""
    up = linear(weights, "mlp.up_proj", row)
    if config.mlp_type == "swiglu":
        gate = linear(weights, "mlp.gate_proj", row)
        inner = gate / (1 + np.exp(-gate)) * up
    elif config.mlp_type == "gelu":
        inner = up / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    else:
        inner = np.maximum(up, 0) ** 2
    return linear(weights, "mlp.down_proj", inner)


def linear(weights, name, row):
    """A linear layer, with its bias if it has one."""
    return weights[f"{name}.weight"] @ row + weights.get(f"{name}.bias", 0.0)


def _below(weights, prefix):
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
