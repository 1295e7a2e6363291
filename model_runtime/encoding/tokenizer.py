"""Text to token ids and back, so that only the runtime itself can write structural tokens.

Enters: plain text, control markers, or segments of both; leaves: token ids. Plain text is tokenised by the bare BPE
model without any added token, so `<｜User｜>` in a page becomes ordinary tokens. Knows nothing of messages.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v32.model_runtime.encoding.dialect import V32, Dialect, Segment
from v32.model_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class ChatTokenizer:
    """A byte-level BPE tokenizer that has the role markers of a dialect as single tokens."""

    def __init__(self, serialized: str, dialect: Dialect = V32, source: str = "tokenizer.json") -> None:
        specification = _specification(serialized, source)
        self.dialect = dialect
        self._added = {token["content"]: token["id"] for token in specification["added_tokens"]}
        self._control = self._find_control(source)
        self._marker_of = {token_id: marker for marker, token_id in self._control.items()}
        self.backend = _backend(serialized, source)
        """The tokenizer as the checkpoint has it, added tokens and all; for grammars, not for prompts."""
        self._plain = _without_added_tokens(self.backend)
        self.fingerprint = hashlib.sha256(serialized.encode()).hexdigest()[:16]
        """Two tokenizers with the same fingerprint give the same ids."""
        self._bytes_of = _BytesOfTokens(specification)
        self.bos_id = self._control[dialect.bos]
        self.eos_id = self._control[dialect.eos]
        self.user_id = self._control[dialect.user]
        self.assistant_id = self._control[dialect.assistant]
        self.think_open_id = self._control[dialect.think_open]
        self.think_close_id = self._control[dialect.think_close]

    @classmethod
    def from_file(cls, path: str | Path, dialect: Dialect = V32) -> ChatTokenizer:
        """`path` is a tokenizer.json. Raises CheckpointError when it is missing, damaged or of another model."""
        try:
            serialized = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read the tokenizer {path}: {error}; a tokenizer.json is needed") from error
        return cls(serialized, dialect, source=str(path))

    @classmethod
    def from_dir(cls, path: str | Path, dialect: Dialect = V32) -> ChatTokenizer:
        """`path` is a checkpoint folder that holds a tokenizer.json."""
        return cls.from_file(Path(path) / "tokenizer.json", dialect)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return self._bytes_of.vocab_size

    def encode_text(self, text: str) -> list[int]:
        """Ordinary tokens, whatever the text spells. A lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
        if not text:
            return []
        ids: list[int] = self._plain.encode(_without_surrogates(text), add_special_tokens=False).ids
        return ids

    def encode_control(self, marker: str) -> list[int]:
        """The id of a role marker; for `｜DSML｜` several ordinary ids where the tokenizer has no token for it."""
        token_id = self._control.get(marker)
        return [token_id] if token_id is not None else self.encode_text(marker)

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """The ids of a prompt.

        Plain text between two control tokens is tokenised in one piece, wherever it came from: the tokenizer of the
        checkpoint splits at added tokens too, before BPE. So the ids equal those of the whole string, as long as no
        plain text spells an added token.
        """
        ids: list[int] = []
        plain: list[str] = []
        for text, is_control in segments:
            token_id = self._control.get(text) if is_control else None
            if token_id is None:
                plain.append(text)
            else:
                ids += self.encode_text("".join(plain))
                ids.append(token_id)
                plain.clear()
        return ids + self.encode_text("".join(plain))

    def marker_of(self, token_id: int) -> str | None:
        """The control marker that this id stands for; None for ordinary tokens."""
        return self._marker_of.get(token_id)

    def is_structural(self, token_id: int) -> bool:
        """True for every added token of the checkpoint; no plain text yields one."""
        return self._bytes_of.is_added(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for; empty for an id that the vocabulary does not have."""
        return self._bytes_of[token_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, added tokens as their strings; bytes that are not UTF-8 become U+FFFD."""
        detokenizer = Detokenizer(self)
        return "".join([*map(detokenizer.feed, ids), detokenizer.finish()])

    def _find_control(self, source: str) -> dict[str, int]:
        missing = [marker for marker in self.dialect.role_markers if marker not in self._added]
        if missing:
            raise CheckpointError(
                f"{source} is not a DeepSeek-V3.2 tokenizer: it lacks the tokens {', '.join(missing)}; "
                "use the tokenizer.json of the checkpoint"
            )
        return {marker: self._added[marker] for marker in self.dialect.control_markers if marker in self._added}


class Detokenizer:
    """Ids one at a time to text; a character that spans several tokens appears with its last one."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._bytes_of = tokenizer._bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that has become certain. An added token ends a character that was left incomplete."""
        piece = self._bytes_of[token_id]
        if self._bytes_of.is_added(token_id):
            return self.finish() + piece.decode("utf-8")
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """What is left of an incomplete character."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _specification(serialized: str, source: str) -> dict[str, Any]:
    try:
        specification: dict[str, Any] = json.loads(serialized)
        model, decoder = specification["model"], specification["decoder"]
        vocabulary = model["vocab"]
        added = [(token["content"], token["id"]) for token in specification["added_tokens"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source} is not a tokenizer.json: {type(error).__name__}: {error}") from error
    if model.get("type") != "BPE" or not isinstance(vocabulary, dict) or not _is_byte_level(decoder):
        raise CheckpointError(f"{source} is not a byte-level BPE tokenizer; DeepSeek-V3.2 has one")
    for content, token_id in added:
        if not isinstance(content, str) or not isinstance(token_id, int):
            raise CheckpointError(f"{source} has a damaged added token: {content!r} with id {token_id!r}")
    return specification


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteLevel" or any(map(_is_byte_level, decoder.get("decoders", ())))


def _backend(serialized: str, source: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(serialized)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{source} is not a tokenizer.json: {error}") from error


def _without_added_tokens(backend: Tokenizer) -> Tokenizer:
    """The same model, which is shared and not copied, behind the same normalizer and pre-tokenizer."""
    from tokenizers import Tokenizer

    plain = Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    return plain


class _BytesOfTokens:
    """id -> bytes, filled as ids are seen."""

    def __init__(self, specification: dict[str, Any]) -> None:
        self._added: dict[int, bytes] = {t["id"]: t["content"].encode() for t in specification["added_tokens"]}
        self._token_of: dict[int, str] = {
            token_id: token for token, token_id in specification["model"]["vocab"].items()
        }
        self._known: dict[int, bytes] = dict(self._added)
        self.vocab_size = 1 + max([*self._token_of, *self._added], default=-1)

    def is_added(self, token_id: int) -> bool:
        return token_id in self._added

    def __getitem__(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            token = self._token_of.get(token_id, "")
            known = b"".join([_BYTE_OF.get(character) or character.encode() for character in token])
            self._known[token_id] = known
        return known


def _byte_level_alphabet() -> dict[str, bytes]:
    """GPT-2's printable stand-in of every byte: printable Latin-1 for itself, the others from U+0100 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    stand_ins = {chr(byte): bytes([byte]) for byte in printable}
    return stand_ins | {chr(0x100 + position): bytes([byte]) for position, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


def _without_surrogates(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
