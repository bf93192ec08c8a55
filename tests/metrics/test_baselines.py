from __future__ import annotations

import inspect

from scgpt_tl import metrics
from scgpt_tl.metrics import baselines


def test_every_baseline_of_the_tables_is_public():
    for name, (title, function) in {**baselines.EMBEDDINGS, **baselines.CLASSIFIERS}.items():
        assert function is getattr(metrics, name)
        assert function.__name__ == name
        assert title
    titles = [title for title, _ in [*baselines.EMBEDDINGS.values(), *baselines.CLASSIFIERS.values()]]
    assert len(set(titles)) == len(titles)


def test_those_that_take_batches_are_those_that_need_a_package():
    for name, (_, function) in baselines.EMBEDDINGS.items():
        needed = [a.name for a in inspect.signature(function).parameters.values() if a.default is a.empty]
        assert ("batches" in needed) == (name in baselines.NEEDS)
