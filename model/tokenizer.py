"""Text to ids and back: a Hugging Face `tokenizer.json`, or a byte-level BPE trained on the corpus."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.config import SpecialTokens

FILE = "tokenizer.json"
# The published folder's other tokenizer files: kept as they are, for whoever reads the folder with other tools.
COMPANIONS = ("tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
SPECIAL = {
    "bos_token_id": "<|im_start|>",
    "eos_token_id": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}


class TextTokenizer:
    """Plain text only: special tokens frame it in the packer and never come out of user text."""

    def __init__(self, tokenizer: Tokenizer, companions: dict[str, bytes] | None = None):
        self._had = {token for token in SPECIAL.values() if tokenizer.token_to_id(token) is not None}
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL.values() if token not in self._had])
        # Text that spells a special token must stay text: a prompt cannot close its own turn.
        tokenizer.encode_special_tokens = True
        # Kept in the file by whoever used it last: a text is as long as it is.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._companions = tokenizer, companions or {}

    @classmethod
    def from_folder(cls, folder: str | Path) -> "TextTokenizer | None":
        """The Hugging Face tokenizer of a folder: `tokenizer.json`, or Qwen2's `vocab.json` and `merges.txt`; None without."""
        folder = Path(folder)
        companions = {name: (folder / name).read_bytes() for name in COMPANIONS if (folder / name).exists()}
        if (folder / FILE).exists():
            return cls(Tokenizer.from_file(str(folder / FILE)), companions)
        if {"vocab.json", "merges.txt"} <= companions.keys():
            from transformers import Qwen2Tokenizer

            return cls(Qwen2Tokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer, companions)
        return None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "TextTokenizer":
        """Byte-level BPE; ids 0 to 3 are the special tokens."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @property
    def special_tokens(self) -> SpecialTokens:
        return SpecialTokens(**{name: self._tokenizer.token_to_id(token) for name, token in SPECIAL.items()})

    @property
    def size(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def rows(self) -> int:
        """Embedding rows for all ids that texts and their frames are made of, special tokens that had to be added apart."""
        # Other special tokens never come out of a text.
        unused = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special and token.content not in self._had}
        return max((i for i in self._tokenizer.get_vocab().values() if i not in unused), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        self._tokenizer.save(str(Path(folder) / FILE))
        for name, content in self._companions.items():
            (Path(folder) / name).write_bytes(content)
