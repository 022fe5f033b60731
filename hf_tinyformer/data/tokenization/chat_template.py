"""How a conversation is written down: the template that a tokenizer carries."""

from pathlib import Path

from hf_tinyformer.errors import ConfigError

# What the assistant says stands between generation marks, so that tuning can learn from it alone.
_CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{{- '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def list_chat_tokens(setting: str | None) -> list[str]:
    """List the special tokens that a template named here needs; one of your own lists its own."""
    return ["<|im_start|>", "<|im_end|>"] if setting == "chatml" else []


def read_chat_template(setting: str, *, begins_with_bos: bool) -> str:
    """Find the template that a setting names.

    Args:
        setting: `chatml`, a file, or the Jinja text itself, which has a brace.
        begins_with_bos: Whether a document begins with `<s>`. A template named here then does so
            too; one of your own does as it says.

    Returns:
        The Jinja text.

    Raises:
        ConfigError: If there is no such template or file.
    """
    if setting == "chatml":
        return ("{{- bos_token }}" if begins_with_bos else "") + _CHATML
    if "{" in setting:
        return setting
    try:
        return Path(setting).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(
            f"tokenizer.chat_template is {setting}, but there is no such file to read: {reason}. "
            "Take chatml, the path of a Jinja file, or the Jinja text itself."
        ) from None


def check_chat_template(tokenizer: object) -> None:
    """Write a short conversation down, to see that the tokenizer's template works.

    Raises:
        ConfigError: If it does not.
    """
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    try:
        tokenizer.apply_chat_template(turns, tokenize=False)  # type: ignore[attr-defined]
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigError(
            f"tokenizer.chat_template fails on a conversation of one question and one answer: "
            f"{error}. Repair the template."
        ) from None
