"""Where a model of ours may differ from Llama, and why a maintainer of transformers would agree."""

import re
from dataclasses import dataclass

WITHOUT_ROTARY = ("learned", "sinusoidal", "alibi", "relative", "none")


@dataclass(frozen=True)
class Difference:
    """Tests that Llama passes and one of ours need not."""

    tests: str
    """A pattern for their names."""

    subjects: tuple[str, ...]
    """The models it holds for."""

    reason: str
    """Why the scheme itself forbids it."""


DECLARED = (
    Difference(
        r"test_model_rope_",
        WITHOUT_ROTARY,
        "Nothing turns in this scheme, so there are no angles to stretch. The test runs because "
        "one config serves all schemes and so has the field `rope_parameters`, which is `None` "
        "here.",
    ),
    Difference(
        r"test_tp_(forward|backward|generation|plan_matches_params)|test_tied_head_has_a_tp_plan_entry",
        ("alibi", "relative"),
        "The bias on the scores is made for all heads, once, above the layers, while a rank of "
        "tensor parallelism holds some of the heads. The config states no plan in these schemes, "
        "as transformers' own T5 and Bloom state none.",
    ),
)


def missing(measure: dict[str, dict], ours: dict[str, dict]) -> list[str]:
    """List the tests that the measure passes and ours does not; a skipped test is not passed."""
    return [
        name
        for name, end in measure.items()
        if end["outcome"] == "passed" and ours.get(name, {}).get("outcome") != "passed"
    ]


def reason_for(subject: str, test: str) -> str | None:
    """Find the declared reason for a difference, or `None`."""
    for difference in DECLARED:
        if subject in difference.subjects and re.match(difference.tests, test):
            return difference.reason
    return None


def idle(subject: str, measure: dict[str, dict], ours: dict[str, dict]) -> list[str]:
    """List declared differences of a model that are none: all of their tests that ran passed."""
    apart = missing(measure, ours)
    return [
        difference.tests
        for difference in DECLARED
        if subject in difference.subjects
        and any(re.match(difference.tests, name) for name in measure)
        and not any(re.match(difference.tests, name) for name in apart)
    ]
