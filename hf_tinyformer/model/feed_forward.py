# Copyright 2026 The hf_tinyformer authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Feed-forward: the same two-layer network applied to every token alone.

Sources: the sublayer, Vaswani et al. 2017, section 3.3; GELU in its tanh form, Hendrycks and Gimpel
2016, section 2; SwiGLU, Shazeer 2020, section 2; squared ReLU, So et al. 2021, section 4.1.
"""

from torch import Tensor, nn

from .configuration_tinyformer import TinyFormerConfig


def gelu(hidden_states: Tensor) -> Tensor:
    """Weigh each number by the chance that a normal variable lies below it, in the tanh form.

    `h / 2 * (1 + tanh(sqrt(2 / pi) * (h + 0.044715 * h^3)))`, the form GPT-2 was trained with.

    Args:
        hidden_states: Any shape.

    Returns:
        Same shape.
    """
    return nn.functional.gelu(hidden_states, approximate="tanh")


def squared_relu(hidden_states: Tensor) -> Tensor:
    """Square what is positive, drop what is not: `max(0, h)^2`.

    Args:
        hidden_states: Any shape.

    Returns:
        Same shape.
    """
    return nn.functional.relu(hidden_states).square()


ACTIVATIONS = {"gelu": gelu, "relu2": squared_relu}


class TinyFormerMLP(nn.Module):
    """Two layers with a nonlinearity between: `down_proj(activation(up_proj(h)))`.

    Shapes: `(batch, sequence, hidden_size)` in and out, `intermediate_size` wide between.
    """

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(
            config.intermediate_size, config.hidden_size, bias=config.mlp_bias
        )
        self.activation = ACTIVATIONS[config.mlp_type]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Transform each token's vector.

        Args:
            hidden_states: Shape `(batch, sequence, hidden_size)`.

        Returns:
            Same shape.
        """
        return self.down_proj(self.activation(self.up_proj(hidden_states)))


class TinyFormerGatedMLP(nn.Module):
    """SwiGLU: one branch gates the other, `down_proj(silu(gate_proj(h)) * up_proj(h))`.

    `silu(h) = h * sigmoid(h)`. Shapes: `(batch, sequence, hidden_size)` in and out.
    """

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(
            config.hidden_size, config.intermediate_size, bias=config.mlp_bias
        )
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(
            config.intermediate_size, config.hidden_size, bias=config.mlp_bias
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Transform each token's vector.

        Args:
            hidden_states: Shape `(batch, sequence, hidden_size)`.

        Returns:
            Same shape.
        """
        gate = nn.functional.silu(self.gate_proj(hidden_states))
        return self.down_proj(gate * self.up_proj(hidden_states))


MLPS = {"swiglu": TinyFormerGatedMLP, "gelu": TinyFormerMLP, "relu2": TinyFormerMLP}
