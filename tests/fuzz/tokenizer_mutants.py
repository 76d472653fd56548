"""Mutated tokenizer directories: every file that makes a tokenizer, changed in a few places."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tests.fuzz.mutate import damage_file, mutate_bytes, mutate_json_text
from tests.runtime import tiny_tokenizer as tiny
from tests.tokenizing.tokenizer_files import change

_JSON_FILES = (
    "tokenizer.json",
    "tokenizer.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TEMPLATES = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",
    "{%- for m in messages %}{{ bos_token + m.content | trim }}{%- endfor %}{{ eos_token }}",
    "{{ messages | tojson }}",
    "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{{ n.i }}"
    "{% endfor %}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(messages[0].content) }}",
)
_PIECES = {
    "normalizer": (
        {"type": "Lowercase"},
        {"type": "NFKC"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "bb"},
        {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]},
        {"type": "Prepend", "prepend": "▁"},
    ),
    "pre_tokenizer": (
        {"type": "Whitespace"},
        {"type": "Digits", "individual_digits": True},
        {"type": "FixedLength", "length": 0},
        {"type": "FixedLength", "length": 3},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
        {
            "type": "Split",
            "pattern": {"Regex": "(x+x+)+y"},
            "behavior": "Isolated",
            "invert": False,
        },
        {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
    ),
    "decoder": (
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Fuse"},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "Strip", "content": " ", "start": 9, "stop": 0},
        {"type": "CTC", "pad_token": "<s>", "word_delimiter_token": "|", "cleanup": True},
        {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    ),
    "post_processor": (
        {"type": "BertProcessing", "sep": ["</s>", 257], "cls": ["<s>", 256]},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
        },
        {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
    ),
    "model": (
        {"type": "WordLevel", "vocab": {"Hello": 0, "<s>": 1}, "unk_token": "<none>"},
        {
            "type": "WordPiece",
            "vocab": {"[UNK]": 0, "hel": 1, "##lo": 2},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        {
            "type": "Unigram",
            "vocab": [["<unk>", 0.0], ["He", -1.0], ["llo", -2.0]],
            "unk_id": 0,
        },
        {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 5},
        {"type": "BPE", "vocab": {"H": 0, "e": 7, "He": 3}, "merges": [["H", "e"]]},
        {"type": "BPE", "vocab": {"H": 0}, "merges": [], "dropout": 0.5},
    ),
    "truncation": (
        {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        {"direction": "Left", "max_length": 0, "strategy": "LongestFirst", "stride": 9},
    ),
    "padding": (
        {
            "strategy": {"Fixed": 20},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<s>",
        },
    ),
}


def make_mutant(directory: Path, number: int, seed: int = 0) -> Path:
    """Write the tokenizer directory of a number: valid, then changed in one to four places."""
    random = Random(f"{seed} tokenizer {number}")
    if random.random() < 0.7:
        tiny.write_byte_level(directory, chat=random.random() < 0.8)
    else:
        tiny.write_byte_fallback(directory)
    _write_others(directory, random)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        _change(directory, random)
    return directory


def _write_others(directory: Path, random: Random) -> None:
    """Write the files that only some tokenizers have."""
    if random.random() < 0.3:
        specials = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
        (directory / "special_tokens_map.json").write_text(json.dumps(specials))
    if random.random() < 0.2:
        (directory / "added_tokens.json").write_text(json.dumps({"<more>": 300, "<s>": 256}))
    if random.random() < 0.3:
        template = random.choice(_TEMPLATES)
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    if random.random() < 0.2:
        named = [
            {"name": name, "template": random.choice(_TEMPLATES)}
            for name in random.sample(("default", "tool_use", "rag"), 2)
        ]
        change(directory / "tokenizer_config.json", {"chat_template": named})


def _change(directory: Path, random: Random) -> None:
    choice = random.random()
    if choice < 0.3:
        part = random.choice(sorted(_PIECES))
        path = directory / "tokenizer.json"
        try:
            change(path, {part: random.choice(_PIECES[part])})
        except (OSError, ValueError, RecursionError):  # of an earlier change
            return
        return
    names = [name for name in _JSON_FILES if (directory / name).is_file()]
    template = directory / "chat_template.jinja"
    if choice < 0.4 and template.is_file():
        template.write_bytes(mutate_bytes(template.read_bytes(), random))
    elif choice < 0.45 and names:
        damage_file(directory / random.choice(names), random)
    elif names:
        path = directory / random.choice(names)
        try:
            path.write_bytes(_mutated_json(path.read_text("utf-8"), random))
        except (OSError, ValueError, RecursionError):
            return


def _mutated_json(text: str, random: Random) -> bytes:
    """Change a JSON text; its vocabulary, which is most of it, is changed seldom."""
    value = json.loads(text)
    vocabulary = None
    model = value.get("model") if isinstance(value, dict) else None
    if isinstance(model, dict) and random.random() < 0.8:
        vocabulary = model.pop("vocab", None)
    made = mutate_json_text(json.dumps(value), random)
    try:
        value = json.loads(made)
        if vocabulary is not None and isinstance(value.get("model"), dict):
            value["model"].setdefault("vocab", vocabulary)
            return json.dumps(value).encode("utf-8", errors="surrogatepass")
    except (ValueError, RecursionError, AttributeError):
        pass
    return made
