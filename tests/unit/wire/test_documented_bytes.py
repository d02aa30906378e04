from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedlog.wire import records, tensors

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "wire-format.md"


def test_the_bytes_on_the_page_are_the_real_ones():
    dumps = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    documented = [
        bytes.fromhex("".join(line[6:53] for line in dump.splitlines())) for dump in dumps
    ]
    weights = {"bias": np.array([0.5], np.float32), "steps": np.array(3, np.int64)}
    failed = records.Failed(
        run="fedlog.default.digits.manual",
        client="site-a/0",
        incarnation="0123456789abcdef",
        round=3,
        reason="no data",
    )
    assert documented == [b"".join(tensors.encode(weights)), records.encode(failed)]
