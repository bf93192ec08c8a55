"""A token <-> id table with the names of torchtext's; dictionary look-ups, so it is not what slows the peer down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch


class Table:
    """Holds the tokens; shared by a `Vocab` and the one it is made from."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self.tokens = list(tokens)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.default: int | None = None


class Vocab(torch.nn.Module):
    def __init__(self, vocab: Table) -> None:
        super().__init__()
        self.vocab = vocab

    def __len__(self) -> int:
        return len(self.vocab.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self.vocab.ids

    def __getitem__(self, token: str) -> int:
        found = self.vocab.ids.get(token, self.vocab.default)
        if found is None:
            msg = f"token {token!r} is not in the vocabulary and no default index is set"
            raise RuntimeError(msg)
        return found

    def forward(self, tokens: list[str]) -> list[int]:
        return [self[token] for token in tokens]

    lookup_indices = forward

    def lookup_token(self, index: int) -> str:
        return self.vocab.tokens[index]

    def insert_token(self, token: str, index: int) -> None:
        if token in self:
            msg = f"token {token!r} is in the vocabulary already"
            raise RuntimeError(msg)
        self.vocab.tokens.insert(index, token)
        if index == len(self) - 1:
            self.vocab.ids[token] = index
        else:
            self.vocab.ids = {held: i for i, held in enumerate(self.vocab.tokens)}

    def append_token(self, token: str) -> None:
        self.insert_token(token, len(self))

    def set_default_index(self, index: int | None) -> None:
        self.vocab.default = index

    def get_default_index(self) -> int | None:
        return self.vocab.default

    def get_itos(self) -> list[str]:
        return list(self.vocab.tokens)

    def get_stoi(self) -> dict[str, int]:
        return dict(self.vocab.ids)


def vocab(ordered_dict: Mapping[str, int], min_freq: int = 1) -> Vocab:
    """Tokens of at least `min_freq`, in the order of the dictionary."""
    return Vocab(Table(token for token, count in ordered_dict.items() if count >= min_freq))
