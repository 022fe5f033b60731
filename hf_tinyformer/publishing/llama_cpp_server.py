"""Answer one set of questions with llama.cpp; run as a program by `llama_cpp.py`.

llama.cpp ends its whole process when a file makes no sense to it, and brings threads of its own, so
it gets a process of its own. Nothing of hf_tinyformer is imported here.
"""

import http.client
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np

KEY = secrets.token_hex()
"""So that no other program of this machine asks it anything."""


def _start(model: str, context: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = context
    params.n_parallel = 1
    params.api_keys = [KEY]
    params.warmup = False
    params.fit_params = False
    params.verbosity = 1  # errors
    # Plain float32 arithmetic wherever llama.cpp has it, so that what is left is rounding: no
    # repacked weights, no flash attention, keys and values in float32.
    params.no_extra_bufts = True
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    threads = max(1, (os.cpu_count() or 1) // 2)  # its threads wait for each other by spinning
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def _post(
    server: http.client.HTTPConnection, path: str, question: dict[str, Any]
) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    try:
        server.request("POST", path, json.dumps(question), headers)
        response = server.getresponse()
    except ConnectionError:  # it closes a connection that was silent for some seconds
        server.close()
        server.request("POST", path, json.dumps(question), headers)
        response = server.getresponse()
    body = response.read().decode("utf-8", "replace")
    if response.status != http.client.OK:
        raise RuntimeError(body)
    return dict(json.loads(body))


def _score(
    server: http.client.HTTPConnection, row: list[int], vocab_size: int, letter: int
) -> np.ndarray:
    question = {
        "prompt": row,
        "n_predict": 1,
        "n_probs": vocab_size,
        "temperature": 0,
        # It keeps to itself what it chose from if that ends the text, or is a part of a character.
        # So it is made to choose a letter; the probabilities are those from before.
        "logit_bias": [[letter, 1e6]],
    }
    answer = _post(server, "/completion", question)
    scores = np.full(vocab_size, np.nan, np.float32)
    for entry in answer["completion_probabilities"][0]["top_logprobs"]:
        scores[entry["id"]] = entry["logprob"]
    return scores


def main(question_path: str, answer_path: str) -> None:
    """Read questions from a JSON file and write the answers to an .npz file.

    Args:
        question_path: What `llama_cpp.ask` wrote.
        answer_path: Where the answers go.
    """
    question = json.loads(Path(question_path).read_text(encoding="utf-8"))
    running = _start(question["model"], question["context"])
    server = http.client.HTTPConnection(running.listening_address.removeprefix("http://"))
    answers: dict[str, Any] = {}
    for index, text in enumerate(question["texts"]):
        cut = _post(server, "/tokenize", {"content": text, "add_special": True})
        answers[f"tokens_{index}"] = np.array(cut["tokens"], np.int64)
    letter = _post(server, "/tokenize", {"content": "a", "add_special": False})["tokens"][0]
    scores = [_score(server, row, question["vocab_size"], letter) for row in question["rows"]]
    answers["scores"] = np.stack(scores) if scores else np.zeros((0, 0), np.float32)
    if question["max_new_tokens"]:
        greedy = {
            "prompt": question["prompt"],
            "n_predict": question["max_new_tokens"],
            "temperature": 0,
            "return_tokens": True,
        }
        reply = _post(server, "/completion", greedy)
        answers["greedy"] = np.array(reply["tokens"], np.int64)
        answers["tokens_per_second"] = np.array(reply["timings"]["predicted_per_second"])
    np.savez(answer_path, **answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
