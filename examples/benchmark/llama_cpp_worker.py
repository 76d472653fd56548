"""llama.cpp as a process that answers one line of JSON at a time, with llama-cpp-python.

python llama_cpp_worker.py NUM_THREADS NUM_DRAFTS FILE.gguf…

It prints a line when all files are loaded. Then a line {"file": 0, "lookup": false, "prompt": ids,
"max_tokens": n} is answered by {"token_ids": …, "steps": n, "seconds": of all but the first token}.
Between two lines it waits, and no thread of it runs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

CONTEXT = 512


class CountingLlama(llama_cpp.Llama):
    """A model that counts its calls of llama_decode."""

    num_steps = 0

    def eval(self, tokens: Any) -> None:
        """Run one step."""
        self.num_steps += 1
        super().eval(tokens)


def load(path: Path, num_threads: int, num_drafts: int) -> CountingLlama:
    """Load a model, with prompt lookup if `num_drafts` is not 0."""
    lookup = LlamaPromptLookupDecoding(num_pred_tokens=num_drafts) if num_drafts else None
    return CountingLlama(
        str(path),
        n_ctx=CONTEXT,
        n_threads=num_threads,
        n_threads_batch=num_threads,
        draft_model=lookup,
        verbose=False,
    )


def answer(model: CountingLlama, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    """Return the greedy answer of exactly `max_tokens` tokens, and the time behind the first."""
    model.reset()
    tokens: list[int] = []
    start = 0.0
    for token in model.generate(prompt, temp=0.0):
        if not tokens:
            model.num_steps = 0
            start = time.perf_counter()
        tokens.append(int(token))
        if len(tokens) == max_tokens:
            break
    seconds = time.perf_counter() - start
    return {"token_ids": tokens, "steps": model.num_steps, "seconds": seconds}


def main() -> None:
    """Serve requests until stdin ends."""
    num_threads, num_drafts = int(sys.argv[1]), int(sys.argv[2])
    models = {}
    for index, path in enumerate(sys.argv[3:]):
        for lookup in (False, True):
            drafts = num_drafts if lookup else 0
            models[index, lookup] = load(Path(path), num_threads, drafts)
    system = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({"version": llama_cpp.__version__, "system": system}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        model = models[asked["file"], asked["lookup"]]
        print(json.dumps(answer(model, asked["prompt"], asked["max_tokens"])), flush=True)


if __name__ == "__main__":
    main()
