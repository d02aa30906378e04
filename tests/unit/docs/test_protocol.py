"""The protocol's page says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedlog.server import intake
from fedlog.telemetry.status import MAX_REFUSALS
from fedlog.transport.kafka.batches import LARGEST_ANSWER_BYTES
from fedlog.wire import bulk, errors, records, reference
from fedlog.wire.limits import Limits

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "protocol.md"
REFUSING = ["rounds/engine.py", "server/intake.py", "server/folding.py", "server/session.py"]


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_every_record_stands_there_as_it_is(tmp_path: Path, page: str) -> None:
    """`make docs` writes the tables."""
    copy = tmp_path / "protocol.md"
    copy.write_text(page, encoding="utf-8")
    reference.write(copy)
    assert copy.read_text(encoding="utf-8") == page


def test_no_record_and_no_member_is_left_out() -> None:
    text = reference.tables()
    kinds = {
        "events": records.EventRecord.__args__,
        "control": records.ControlRecord.__args__,
        "journal": records.JournalRecord.__args__,
    }
    for kind in [each for group in kinds.values() for each in group]:
        name = kind.model_fields["type"].default
        begin = text.index(f"**`{name}`**")
        table = text[begin : text.index("\n\n**", begin) if "\n\n**" in text[begin:] else None]
        for member in kind.model_fields.keys() - {"type"}:
            assert f"| `{member}` |" in table, f"{name}.{member}"


def test_a_new_member_would_show() -> None:
    class Longer(records.Left):
        mood: str

    assert "| `mood` | text | refused |" in reference._table(Longer)


def test_the_frame_on_the_page_is_the_real_one(page: str) -> None:
    (dump,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    documented = bytes.fromhex("".join(line[6:53] for line in dump.splitlines()))
    joined = records.Joined(
        run="fedlog.default.digits.manual", client="site/0", incarnation="0123456789abcdef"
    )
    assert documented == records.encode(joined)


def test_every_reason_of_a_refusal_is_told(page: str) -> None:
    source = "".join((ROOT / "runtime/fedlog" / path).read_text() for path in REFUSING)
    patterns = [
        r'Refuse\(\w+(?:\.\w+)*, "([a-z-]+)"',
        r'_refuse\(\w+, "([a-z-]+)"',
        r'_refuse\(\w+, f?"([a-z-]+):',
        r'UpdateRefused\(\s*[\w.]+, f"([a-z-]+):',
    ]
    found = {reason for pattern in patterns for reason in re.findall(pattern, source)}
    found |= {kind.reason for kind in (errors.WireError, *errors.WireError.__subclasses__())}
    assert {"malformed", "quota", "unknown-base", "unfit", "misplaced-bulk"} <= found
    assert [reason for reason in sorted(found) if f"`{reason}`" not in page] == []


def test_the_limits_are_those_of_the_code(page: str) -> None:
    limits = Limits(max_payload_bytes=1)
    assert f"{bulk.INLINE_BYTES:,} bytes raw" in page
    assert f"header of a frame | {records.MAX_HEADER_BYTES // 2**20} MiB" in page
    assert (
        f"header of tensors | {limits.max_header_bytes // 2**20} MiB, {limits.max_tensors:,} "
        f"tensors, {limits.max_rank} dimensions, names of {limits.max_name_bytes} bytes" in page
    )
    assert f"one answer of a broker | {LARGEST_ANSWER_BYTES // 2**20} MiB" in page
    quotas = {kind.model_fields["type"].default: n for kind, n in intake.QUOTAS.items()}
    assert quotas == {"joined": 256, "left": 256, "updated": 16, "evaluated": 16, "failed": 16}
    assert "`joined`, `left` of one client in a round | 256 each" in page
    assert "`updated`, `evaluated`, `failed` of one client in a round | 16 each" in page
    assert f"refusals in the status | {MAX_REFUSALS} entries" in page
