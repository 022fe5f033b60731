"""A page to type into: the model goes on token by token, and shows where each token looked.

The page is served by gradio from this machine, to this machine unless told otherwise; it loads
nothing from elsewhere and reports to nobody. Attention is drawn as an HTML table, since a table
shows every script that the browser has a font for.
"""

import html
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.inference.evaluation import evaluation_mode
from hf_tinyformer.inference.generation import TEMPERATURE, TOP_K, encode_prompt, generate_text

if TYPE_CHECKING:
    from gradio import Blocks

SHOWN_TOKENS = 40
"""Newest tokens that the table of attention has room for."""

TOKEN_COLOURS = ("#1f77b433", "#ff7f0e33", "#2ca02c33", "#9467bd33")
PART_OF_CHARACTER = "\u25ab"

# Marked important, since gradio frames every table.
TABLE_STYLE = """<style>
.attention {border-collapse: separate; border-spacing: 1px; border: 0 !important; white-space: pre}
.attention * {border: 0 !important; padding: 0 2px !important; font: 12px monospace}
.attention td {min-width: 15px; height: 15px; outline: 1px solid #8882}
.attention tr:first-child th {writing-mode: vertical-rl; text-align: right}
.attention th:first-child {text-align: right}
</style>"""


class _Stopped(Exception):  # noqa: N818 - not an error: whoever was listening has left
    """Ends a generation that nobody reads any more."""


class _TokenQueue:
    """A streamer that hands over each group of token ids as it comes."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[list[int] | Exception | None] = queue.SimpleQueue()
        self.is_stopped = False

    def put(self, value: Tensor) -> None:
        if self.is_stopped:
            raise _Stopped
        self.items.put(value.reshape(-1).tolist())

    def end(self) -> None:
        self.items.put(None)


def stream_ids(model: Any, tokenizer: Any, prompt: str, **settings: Any) -> Iterator[list[int]]:
    """Generate on a thread of its own, and yield all ids so far after each new one.

    A consumer that stops early stops the generation too.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: Text to continue; may be empty.
        **settings: As for `generate_text`.

    Yields:
        The prompt's ids first, then with one more each time.
    """
    stream = _TokenQueue()

    def generate() -> None:
        try:
            generate_text(model, tokenizer, prompt, streamer=stream, **settings)
        except _Stopped:
            pass
        except Exception as error:
            # It is raised again where the ids are read.
            stream.items.put(error)

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    ids: list[int] = []
    try:
        while (item := stream.items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            ids = ids + item
            yield ids
    finally:
        stream.is_stopped = True
        thread.join()


def label_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Make each token readable.

    Args:
        tokenizer: Any tokenizer.
        ids: Token ids of a text.

    Returns:
        A label for each id. Where several tokens spell one character, the last of them carries it.
    """
    labels: list[str] = []
    pending: list[int] = []
    for index in ids:
        pending.append(index)
        text = tokenizer.decode(pending, skip_special_tokens=False)
        if "\ufffd" in text and len(pending) < 4:  # UTF-8 has at most four bytes a character
            labels.append(PART_OF_CHARACTER)
            continue
        labels.append(text)
        pending = []
    return labels


def render_tokens(labels: Sequence[str], num_prompt_tokens: int) -> str:
    """Draw a text as HTML, one coloured box a token, the prompt's without colour."""
    boxes = []
    for index, label in enumerate(labels):
        colour = TOKEN_COLOURS[index % len(TOKEN_COLOURS)]
        style = f"background:{colour}" if index >= num_prompt_tokens else "opacity:.65"
        text = html.escape(label).replace("\n", "\u21b5\n")
        boxes.append(f'<span style="{style}">{text}</span>')
    joined = "".join(boxes)
    return f'<div style="white-space:pre-wrap;font-family:monospace;line-height:1.7">{joined}</div>'


def compute_attention(model: Any, ids: Sequence[int]) -> Tensor:
    """Compute where each token looks.

    Args:
        model: A model whose attention function is `eager`, the only one that gives weights.
        ids: Token ids, no more than the model's context.

    Returns:
        Weights of shape `(layers, heads, query, key)`, each row summing to 1.

    Raises:
        ConfigError: If the model gives no weights.
    """
    with evaluation_mode(model):
        outputs = model(
            input_ids=torch.tensor([list(ids)], device=model.device),
            output_attentions=True,
            use_cache=False,
        )
    attentions = [layer for layer in outputs.attentions or () if layer is not None]
    if not attentions:
        raise ConfigError(
            f"{type(model).__name__} gives 0 attention maps, but 1 a layer is drawn. "
            "Take a model that supports attn_implementation='eager'."
        )
    return torch.stack([layer[0] for layer in attentions]).float().cpu()


def _cell(weight: float, query: str, key: str) -> str:
    title = html.escape(f"{query!r} looks at {key!r}: {weight:.3f}", quote=True)
    return f'<td title="{title}" style="background:rgba(214,39,40,{weight:.3f})"></td>'


def render_attention(labels: Sequence[str], weights: Tensor) -> str:
    """Draw one head's attention as an HTML table: a row for each token, a column for each it sees.

    Args:
        labels: One for each token.
        weights: Shape `(query, key)`. Of more than `SHOWN_TOKENS` tokens the newest are drawn, and
            what they give to earlier ones stands in one column.
    """
    first = max(0, len(labels) - SHOWN_TOKENS)
    names = [repr(label)[1:-1] if label.strip() else repr(label) for label in labels[first:]]
    columns = (["earlier"] if first else []) + names
    header = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = []
    for number, name in enumerate(names):
        row = weights[first + number]
        shown = row[first : first + number + 1].tolist()
        if first:
            shown.insert(0, float(row[:first].sum()))
        cells = "".join(_cell(w, name, key) for w, key in zip(shown, columns, strict=False))
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    table = f'<table class="attention"><tr><th></th>{header}</tr>{"".join(rows)}</table>'
    return f'<div style="overflow:auto">{TABLE_STYLE}{table}</div>'


class Demo:
    """What the page asks for: writing, and looking.

    Args:
        model: A causal language model. Its attention function is set to `eager`.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        model.set_attn_implementation("eager")
        self._model = model
        self._tokenizer = tokenizer
        self.num_layers: int = model.config.num_hidden_layers
        self.num_heads: int = model.config.num_attention_heads

    def write(
        self, prompt: str, max_new_tokens: int, temperature: float, seed: int
    ) -> Iterator[tuple[str, list[int]]]:
        """Continue a prompt; yields the tokens as HTML and their ids."""
        num_prompt_tokens = len(encode_prompt(self._tokenizer, prompt))
        for ids in stream_ids(
            self._model,
            self._tokenizer,
            prompt,
            max_new_tokens=int(max_new_tokens),
            temperature=temperature,
            top_k=TOP_K,
            seed=int(seed),
        ):
            yield render_tokens(label_tokens(self._tokenizer, ids), num_prompt_tokens), ids

    def look(self, ids: list[int] | None, layer: int, head: int) -> str:
        """Draw where the newest tokens looked; head 0 is the mean of all heads."""
        if not ids:
            return "Nothing is written yet."
        ids = ids[-getattr(self._model.config, "max_position_embeddings", len(ids)) :]
        weights = compute_attention(self._model, ids)[int(layer) - 1]
        chosen = weights.mean(dim=0) if int(head) == 0 else weights[int(head) - 1]
        return render_attention(label_tokens(self._tokenizer, ids), chosen)


def build_page(model: Any, tokenizer: Any, *, name: str) -> "Blocks":
    """Lay out the page.

    Args:
        model: A causal language model. Its attention function is set to `eager`.
        tokenizer: Its tokenizer.
        name: Shown as the title.

    Returns:
        The page, not yet served. Its functions are also callable as `/write` and `/look`.

    Raises:
        ConfigError: If gradio is not installed.
    """
    # Read by gradio whenever it is about to report home or to look for a newer version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise ConfigError(
            "gradio is not installed, but the page is served by it. "
            "Run: pip install 'hf-tinyformer[demo]'"
        ) from None

    demo = Demo(model, tokenizer)
    with gradio.Blocks(title=name, analytics_enabled=False) as page:
        gradio.Markdown(f"## {name}")
        ids = gradio.State(None)
        with gradio.Row():
            with gradio.Column():
                prompt = gradio.Textbox(label="Text to continue", lines=4, autofocus=True)
                num_tokens = gradio.Slider(1, 400, 80, step=1, label="New tokens at most")
                temperature = gradio.Slider(
                    0, 2, TEMPERATURE, step=0.05, label="Temperature (0: the likeliest each time)"
                )
                seed = gradio.Number(0, precision=0, minimum=0, label="Seed")
                with gradio.Row():
                    start = gradio.Button("Write", variant="primary")
                    stop = gradio.Button("Stop")
            text = gradio.HTML(label="Tokens", container=True, padding=True, min_height=260)
        gradio.Markdown(
            f"### Attention\nEach row is a token, each column one that it sees; the redder, the "
            f"more it looks there. The newest {SHOWN_TOKENS} tokens."
        )
        with gradio.Row():
            layer = gradio.Slider(1, demo.num_layers, 1, step=1, label="Layer")
            head = gradio.Slider(0, demo.num_heads, 0, step=1, label="Head (0: mean of all)")
        attention = gradio.HTML()
        look = {"fn": demo.look, "inputs": [ids, layer, head], "outputs": attention}
        inputs = [prompt, num_tokens, temperature, seed]
        writing = start.click(demo.write, inputs, [text, ids], api_name="write")
        writing.then(**look, api_name="look")
        stop.click(None, cancels=[writing]).then(**look, api_visibility="private")
        for slider in (layer, head):
            slider.release(**look, api_visibility="private")
    return page


def serve_page(
    page: "Blocks", *, host: str = "127.0.0.1", port: int = 7860, block: bool = True
) -> str:
    """Serve a page until the program is interrupted.

    Args:
        page: From `build_page`.
        host: Address to listen on. Anything but loopback lets other machines use the model.
        port: Port to listen on; 0 for any free one.
        block: Return only when interrupted.

    Returns:
        The page's address.

    Raises:
        ConfigError: If the port is taken.
    """
    import gradio

    theme = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ConfigError(
            f"--port is {port}, but nothing can listen there: {error}. Take another one."
        ) from None
    if block:
        page.block_thread()
    return str(address)
