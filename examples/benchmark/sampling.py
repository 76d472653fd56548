"""How many drafts are accepted when tokens are sampled: with shared noise, with drafts of the
largest logit, and by the reference package's rejection sampling.

The target answers each prompt with each seed, choosing by the noise that our engines have. None of
the three ways changes the distribution of the answers, so all are counted on the same ones. From
each position that a way comes to, the drafter drafts a block in the context of the answer so far:

    shared noise  a draft is accepted if logit / temperature + noise of the drafter is the largest
                  at the answer's own token
    argmax        if the drafter's largest logit is
    rejection     with probability min(1, q / p) of the answer's own token, where p is the target's
                  probability of it and q the drafter's. So it is in `dflash` 0.1.0, where a draft x
                  of q is accepted with min(1, p / q): both come to min(p, q) / p of the tokens x

Our ways draft from the engine's draft vocabulary, rejection from the whole one. Models are torch's,
the drafter the reference package's own class, in float32.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import torch

from trtllm_dflash.graph.builder import OPSET, GraphBuilder
from trtllm_dflash.graph.ops.noise import gumbel_noise
from trtllm_dflash.runtime.preprocess import noise_key

PAIR = Path(__file__).parent.parent / "demo_pair"
WAYS = ("shared noise", "argmax", "rejection")
GOALS = {0.6: (1.05, 0.97), 1.0: (1.05, 0.9)}  # over argmax, and over rejection


def _input(name: str, rank: int) -> ir.Value:
    shape = ir.Shape([f"{name}_{axis}" for axis in range(rank)])
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=shape)


class Noise:
    """Our operator's noise, run by ONNX Runtime."""

    def __init__(self, vocab_size: int) -> None:
        import onnxruntime

        g = GraphBuilder()
        inputs = [_input("key", 2), _input("positions", 2), _input("tokens", 1)]
        out = gumbel_noise(g, *inputs)
        out.name, out.type = "noise", ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(inputs, [out], nodes=g.nodes, opset_imports={"": OPSET}, name="noise")
        model = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._tokens = np.arange(vocab_size)

    def __call__(self, keys: np.ndarray, position: int) -> torch.Tensor:
        """Return float32 [B, V] of slots with these keys [B, 4] at a position."""
        positions = np.full((len(keys), 1), position)
        feeds = {"key": keys, "positions": positions, "tokens": self._tokens}
        return torch.from_numpy(self._session.run(None, feeds)[0][:, 0])


@dataclass(frozen=True)
class Settings:
    """What all answers to a prompt have in common, and their rows: temperature and seed."""

    temperatures: torch.Tensor  # [B, 1]
    keys: np.ndarray  # [B, 4]
    top_p: float
    top_k: int

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log probabilities [B, V] at the temperature, -infinity where a filter drops."""
        if self.top_k:
            lowest = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < lowest, -torch.inf)
        scores = torch.log_softmax(logits / self.temperatures, -1)
        if self.top_p < 1:
            ordered, places = scores.exp().sort(descending=True)
            before = ordered.cumsum(-1) - ordered
            dropped = torch.zeros_like(scores, dtype=torch.bool)
            dropped.scatter_(1, places, before >= self.top_p)
            scores = torch.log_softmax(scores.masked_fill(dropped, -torch.inf), -1)
        return scores


@dataclass
class Answers:
    """Answers to one prompt with all settings, and what the drafter needs of them."""

    tokens: torch.Tensor  # [B, P + N]
    scores: list[torch.Tensor]  # [B, V] of each answer's tokens in turn
    features: torch.Tensor  # [B, P + N - 1, K·hidden]
    prompt_length: int


class Pair:
    """The demo pair in torch."""

    def __init__(self, target: Path, drafter: Path, draft_vocab: Path | None) -> None:
        from dflash.model import DFlashDraftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.target = AutoModelForCausalLM.from_pretrained(target).float().eval()
        self.tokenizer = AutoTokenizer.from_pretrained(target)
        self.drafter = DFlashDraftModel.from_pretrained(drafter).float().eval()
        self.head = self.target.get_output_embeddings()
        self.table = self.target.get_input_embeddings().weight
        self.noise = Noise(self.head.weight.shape[0])
        self.left_out = torch.zeros(self.head.weight.shape[0], dtype=torch.bool)
        if draft_vocab is not None:
            self.left_out[:] = True
            self.left_out[json.loads(draft_vocab.read_text(encoding="utf-8"))] = False

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a conversation of one message."""
        chat = [{"role": "user", "content": text}]
        found = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        return list(found if isinstance(found, list) else found["input_ids"])

    def answers(self, prompt: list[int], settings: Settings, count: int) -> Answers:
        """Return `count` tokens of each answer, as an engine of ours chooses them."""
        batch = len(settings.keys)
        tokens = torch.tensor([prompt] * batch)
        taken, past = tokens, None
        scores, features = [], []
        for place in range(count):
            found = self.target(
                taken, past_key_values=past, use_cache=True, output_hidden_states=True
            )
            past = found.past_key_values
            taps = [found.hidden_states[i + 1] for i in self.drafter.target_layer_ids]
            features.append(torch.cat(taps, -1))
            scores.append(settings.scores(found.logits[:, -1]))
            noise = self.noise(settings.keys, len(prompt) + place)
            taken = (scores[-1] + noise).argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, taken], 1)
        return Answers(tokens, scores, torch.cat(features, 1), len(prompt))

    def lengths(self, answers: Answers) -> list[int]:
        """Return how many tokens each answer has, up to its end of turn."""
        found = []
        for row in answers.tokens[:, answers.prompt_length :].tolist():
            ends = [*row, self.tokenizer.eos_token_id].index(self.tokenizer.eos_token_id)
            found.append(min(len(row), ends + 1))
        return found

    def draft_logits(self, answers: Answers, anchor: int) -> torch.Tensor:
        """Return the drafter's logits [B, T-1, V] of a block whose anchor stands at a position."""
        size = self.drafter.block_size
        masks = torch.full((len(answers.tokens), size - 1), self.drafter.mask_token_id)
        block = torch.cat([answers.tokens[:, anchor : anchor + 1], masks], 1)
        hidden = self.drafter(
            target_hidden=answers.features[:, :anchor],
            noise_embedding=self.table[block],
            position_ids=torch.arange(anchor + size)[None].expand(len(block), -1),
        )
        return self.head(hidden[:, 1 - size :])

    def acceptances(self, answers: Answers, settings: Settings) -> dict[str, np.ndarray]:
        """Return by way the probabilities [N-1, B, T-1] that a draft is accepted after others.

        There is a block behind each of the answer's tokens but the last; 0 beyond the answer.
        """
        first, count = answers.prompt_length, len(answers.scores)
        sizes = count - 1, len(settings.keys), self.drafter.block_size - 1
        found = {way: np.zeros(sizes) for way in WAYS}
        for start in range(count - 1):
            logits = self.draft_logits(answers, first + start)
            for j in range(min(sizes[2], count - 1 - start)):
                own = answers.tokens[:, first + start + 1 + j][:, None]
                listed = logits[:, j].masked_fill(self.left_out, -torch.inf)
                noise = self.noise(settings.keys, first + start + 1 + j)
                p = answers.scores[start + 1 + j].gather(1, own)
                q = settings.scores(logits[:, j]).gather(1, own)
                chosen = (settings.scores(listed) + noise).argmax(-1, keepdim=True)
                accepted = {
                    "shared noise": chosen == own,
                    "argmax": listed.argmax(-1, keepdim=True) == own,
                    "rejection": (q - p).exp().clamp(max=1),
                }
                for way, values in accepted.items():
                    found[way][start, :, j] = values[:, 0].numpy()
        return found


def steps_of(probabilities: np.ndarray) -> float:
    """Return the expected number of steps of an answer of N tokens, the first of them known.

    probabilities [N-1, T-1]: that a block's draft is accepted after those before it. Steps behind
    the last token count as far as they reach, as those of an engine whose answer ends.
    """
    count, width = probabilities.shape
    expected = np.zeros(count + 1)  # steps from each token on; none from the last
    for start in reversed(range(count)):
        reached, steps = 1.0, 1.0
        for j in range(width):
            accepted = probabilities[start, j] if start + 1 + j < count else 0.0
            steps += reached * (1 - accepted) * expected[min(count, start + 1 + j)]
            reached *= accepted
        expected[start] = steps + reached * expected[min(count, start + 1 + width)]
    return float(expected[0])


def rows_of(totals: Counter[tuple[str, float]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each temperature: acceptance lengths by way, ratios, and the goals.

    `totals` has the steps by way and temperature, and the tokens behind the first.
    """
    for temperature in sorted({temperature for _, temperature in totals}):
        tokens = totals["tokens", temperature]
        lengths = {way: tokens / totals[way, temperature] for way in WAYS}
        over = [lengths["shared noise"] / lengths[way] for way in ("argmax", "rejection")]
        row: dict[str, Any] = {"temperature": temperature, "tokens": tokens}
        row["acceptance_length"] = {way: round(length, 3) for way, length in lengths.items()}
        row["over_argmax"], row["over_rejection"] = (round(ratio, 3) for ratio in over)
        if temperature in GOALS:
            pairs = zip(over, GOALS[temperature], strict=True)
            row["goals"] = [
                f"{goal}: {'reached' if ratio >= goal else 'missed'}" for ratio, goal in pairs
            ]
        yield row


@click.command()
@click.option("--target", type=click.Path(path_type=Path), default=Path("demo/target"))
@click.option("--drafter", type=click.Path(path_type=Path), default=PAIR / "drafter")
@click.option(
    "--prompts", type=click.Path(path_type=Path), default=PAIR / "prompts/unseen.jsonl"
)
@click.option("--limit", type=int, help="of prompts; default: all")
@click.option("--seeds", default=3, show_default=True, help="answers to each prompt")
@click.option("--temperatures", default="0.6,1.0", show_default=True)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--top-k", default=0, show_default=True)
@click.option("--max-tokens", default=48, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@torch.inference_mode()
def main(
    target: Path,
    drafter: Path,
    prompts: Path,
    limit: int | None,
    seeds: int,
    temperatures: str,
    top_p: float,
    top_k: int,
    max_tokens: int,
    threads: int,
    json_path: Path | None,
) -> None:
    """Compare three ways of drafting for a target that samples, on the demo pair."""
    torch.set_num_threads(threads)
    pair = Pair(target, drafter, drafter / "draft_vocab.json")
    degrees = [float(word) for word in temperatures.split(",")]
    lines = prompts.read_text(encoding="utf-8").splitlines()[:limit]
    totals: Counter[tuple[str, float]] = Counter()
    result: dict[str, Any] = {}
    for index, line in enumerate(lines):
        own_seeds = [1000 * index + seed for seed in range(seeds)] * len(degrees)
        settings = Settings(
            torch.tensor(degrees).repeat_interleave(seeds)[:, None],
            np.array([noise_key(seed) for seed in own_seeds]),
            top_p,
            top_k,
        )
        answers = pair.answers(pair.encode(json.loads(line)["prompt"]), settings, max_tokens)
        lengths = pair.lengths(answers)
        found = pair.acceptances(answers, settings)
        for place, temperature in enumerate(np.repeat(degrees, seeds).tolist()):
            behind_first = lengths[place] - 1
            totals["tokens", temperature] += behind_first
            for way, probabilities in found.items():
                totals[way, temperature] += steps_of(probabilities[:behind_first, place])
        result = {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "prompts": index + 1,
            "seeds": seeds,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "top_k": top_k,
            "rows": list(rows_of(totals)),
        }
        click.echo(json.dumps(result["rows"]), err=True)
        if json_path is not None:
            json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
