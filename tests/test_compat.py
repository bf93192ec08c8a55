"""Optional packages, and kernels where nothing may be written."""

from __future__ import annotations

import numba
import pytest

from scgpt_tl._compat import jit, need


def test_need_gives_the_package():
    import json

    assert need("json") is json


def test_need_says_what_to_install():
    with pytest.raises(ImportError, match=r"pip install 'scgpt_tl\[atac\]'"):
        need("no_such_package", extra="atac")
    with pytest.raises(ImportError, match=r"pip install no_such_package$"):
        need("no_such_package.inside")


def test_jit_compiles_in_memory_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch):
    real, refused = numba.njit, []  # noqa: TID251 (what is watched here)

    def njit(*functions, **options):
        if options.get("cache"):
            refused.append(options)
            msg = "cannot cache function: no locator available"  # what numba raises in a read-only install
            raise RuntimeError(msg)
        return real(*functions, **options)

    monkeypatch.setattr(numba, "njit", njit)
    double = jit(nogil=True)(lambda x: 2 * x)
    assert double(21) == 42
    assert refused == [{"cache": True, "nogil": True}]
