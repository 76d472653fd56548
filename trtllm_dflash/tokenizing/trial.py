"""What `build` tries out on a tokenizer, inside a process of its own."""

from __future__ import annotations

from typing import Any

from trtllm_dflash.tokenizing.library import Library, RefusalError

PLAIN_TEXT = "Hello, world! The quick brown fox jumps over 13 lazy dogs.\n"
FOREIGN_TEXT = "Grüße, Ελλάδα, Привет, 你好, 日本, 안녕, مرحبا 🙂"
ANSWER = "Hello."
_MAX_TRIED = 2000  # ordinary tokens outside the vocabulary
_MAX_NAMED = 3


class Trial(Library):
    """A tokenizer that is tried out."""

    def try_texts(self, vocab_size: int) -> list[str]:
        """Encode and decode texts and every special token.

        Returns what is odd, as sentences that begin with "the tokenizer".

        Raises:
            RefusalError: for what makes the tokenizer useless, as the rest of such a sentence.
        """
        ids = self._try_text(PLAIN_TEXT)
        beyond = [token for token in ids if not 0 <= token < vocab_size]
        if beyond:
            raise RefusalError(
                f"makes the id {beyond[0]} of an ordinary text, and the vocabulary has"
                f" {vocab_size} tokens: it is another model's"
            )
        odd = []
        if not ids:
            odd.append(f"makes no token of the text {PLAIN_TEXT.strip()!r}")
        try:
            self._try_text(FOREIGN_TEXT)
        except RefusalError as error:
            odd.append(str(error))
        self._try_special_tokens()
        return odd + self._beyond(vocab_size)

    def end_of_turn(self, options: dict[str, Any], max_characters: int) -> list[Any] | None:
        """Return text and id of the special token behind an answer in a rendered conversation.

        None where there is none, or where the template takes no answers.
        """
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ANSWER}]
        try:
            text = self.render(messages, options, max_characters, answer_follows=False)
        except RefusalError:
            return None
        _, found, rest = text.rpartition(ANSWER)
        if not found:
            return None
        special = {index: token for token, index in self.special_tokens().items()}
        for token in self.encode(rest, special_tokens=False):
            if token in special:
                return [special[token], token]
        return None

    def _try_text(self, text: str) -> list[int]:
        try:
            ids = self.encode(text, special_tokens=True)
            self.decode(ids, skip_special_tokens=True)
        except BaseException as error:
            raise RefusalError(f"fails with {text[:20]!r}: {_cause(error)}") from error
        return ids

    def _try_special_tokens(self) -> None:
        for text, token in self.special_tokens().items():
            try:
                self.encode(text, special_tokens=False)
                self.decode([token], skip_special_tokens=False)
            except BaseException as error:
                raise RefusalError(
                    f"fails with its special token {text[:60]!r}: {_cause(error)}"
                ) from error

    def _beyond(self, vocab_size: int) -> list[str]:
        """Return what is odd about tokens outside the vocabulary that a text can have."""
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        vocabulary = self._tokenizer.get_vocab()
        outside = {token: text for text, token in vocabulary.items() if token >= vocab_size}
        named = {token: text for token, text in outside.items() if text in added}
        odd = []
        if named:
            odd.append(f"has {_listed(named)} {_outside(vocab_size)}")
        ordinary = [token for token in sorted(outside) if token not in named]
        made = {t: outside[t] for t in ordinary[:_MAX_TRIED] if self._makes(t)}
        if made:
            odd.append(f"can make {_listed(made)} {_outside(vocab_size)}")
        return odd

    def _makes(self, token: int) -> bool:
        text = self.decode([token], skip_special_tokens=False)
        return token in self.encode(text, special_tokens=False)


def _listed(tokens: dict[int, str]) -> str:
    names = [f"{text[:40]!r} ({token})" for token, text in sorted(tokens.items())]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _outside(vocab_size: int) -> str:
    return f"outside the vocabulary of {vocab_size}: a prompt with such a token is refused"


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
