"""Examples of a page of docs/, run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path


def check_examples(text: str, page: Path, more_than: int) -> None:
    """They do what they say, and there are more than so many; the last `client` of theirs is closed."""
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    assert len(test.examples) > more_than
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST).run(test, out=told.append, clear_globs=False)
    test.globs["client"].close()
    assert result.failed == 0, "".join(told)
