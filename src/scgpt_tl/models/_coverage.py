"""Which weights of a file found their place: the table behind strict loading."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

_COLUMNS = ("loaded", "missing", "unexpected", "misshapen", "left out")


@dataclass(frozen=True)
class Coverage:
    """How a file's weights cover a network. Names are spelled as in the file.

    `print` it for a table with a row per part of the network and every name that is amiss.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """The network needs them, the file lacks them."""
    unexpected: tuple[str, ...] = ()
    """The file has them, the network has no place for them."""
    misshapen: tuple[tuple[str, Shape, Shape], ...] = ()
    """Name, shape in the file, shape that the network expects."""
    left_out: tuple[str, ...] = ()
    """Left out because `ignore=` said so."""
    absent_heads: tuple[str, ...] = ()
    """Heads of which the file has nothing: they are not built."""

    @property
    def complete(self) -> bool:
        """Nothing is missing, unexpected or misshapen."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        lists = (self.loaded, self.missing, self.unexpected, [name for name, *_ in self.misshapen], self.left_out)
        parts = list(dict.fromkeys(_part(name) for names in lists for name in names))
        width = max(map(len, (*parts, "part")))
        lines = [" ".join([f"{'part':{width}}", *(f"{column:>10}" for column in _COLUMNS)])]
        for part in parts:
            counts = (sum(_part(name) == part for name in names) for names in lists)
            lines.append(" ".join([f"{part:{width}}", *(f"{n or '.':>10}" for n in counts)]))
        lines += [f"{kind:<11} {name}" for kind, name in self._amiss()]
        if self.absent_heads:
            lines.append(f"no weights in the file for the heads {', '.join(self.absent_heads)}: not built")
        return "\n".join(lines)

    def _amiss(self) -> list[tuple[str, str]]:
        shapes = [f"{name} has shape {found}, expected {wanted}" for name, found, wanted in self.misshapen]
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "misshapen": shapes, "left out": self.left_out}
        return [(kind, name) for kind, names in kinds.items() for name in names]


def compare(
    found: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    *,
    spell: Callable[[str], str] = str,
    unexpected: Collection[str] = (),
    left_out: Collection[str] = (),
    absent_heads: Collection[str] = (),
) -> Coverage:
    """Hold a file's weights against a network's.

    Parameters
    ----------
    found, expected
        Our names -> shapes.
    spell
        Our name -> the name in the file.
    unexpected, left_out, absent_heads
        What the caller knows already, spelled as in the file.
    """
    both = [name for name in expected if name in found]
    return Coverage(
        loaded=tuple(spell(name) for name in both if found[name] == expected[name]),
        missing=tuple(spell(name) for name in expected if name not in found),
        unexpected=(*unexpected, *(spell(name) for name in found if name not in expected)),
        misshapen=tuple((spell(n), found[n], expected[n]) for n in both if found[n] != expected[n]),
        left_out=tuple(left_out),
        absent_heads=tuple(absent_heads),
    )


def _part(name: str) -> str:
    """`encoder.embedding.weight` -> `encoder`; `heads.gep.value.0.bias` -> `heads.gep`."""
    words = name.split(".")
    return ".".join(words[: 2 if words[0] in ("backbone", "heads") else 1])
