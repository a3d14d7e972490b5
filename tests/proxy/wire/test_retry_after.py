from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.retry_after import MOST, milliseconds, seconds


@pytest.mark.parametrize(
    ("told", "wait"),
    [(b"17", 17), (b"0", 0), (b"0.25", 0.25), (b" 2.5 ", 2.5), (b"3.", 3), (b"120000", MOST), (b"9" * 400, MOST)],
)
def test_seconds_can_have_a_fraction_and_are_bounded(told: bytes, wait: float) -> None:
    assert seconds(told) == wait


@pytest.mark.parametrize(
    "told",
    [b"", b"-5", b"1e3", b"nan", b"inf", b"1_0", b"soon", b"\xb2", b"\xd9\xa1", b"Fri, 99 Nov 2026 10:00:00 GMT"],
)
def test_an_invalid_value_is_none(told: bytes) -> None:
    assert seconds(told) is None and milliseconds(told) is None


def test_a_date_is_relative_to_now() -> None:
    assert seconds(formatdate(time.time() + 90, usegmt=True).encode()) == pytest.approx(90, abs=2)
    assert seconds(time.asctime(time.gmtime(time.time() + 90)).encode()) == pytest.approx(90, abs=2)
    assert seconds(time.strftime("%A, %d-%b-%y %H:%M:%S GMT", time.gmtime(time.time() + 90)).encode()) == pytest.approx(
        90, abs=2
    )


def test_a_past_date_is_no_wait_and_a_far_one_is_a_day() -> None:
    assert seconds(b"Sun, 06 Nov 1994 08:49:37 GMT") == 0
    assert seconds(b"Fri, 31 Dec 9999 23:59:59 GMT") == MOST


@pytest.mark.parametrize(("told", "wait"), [(b"250", 0.25), (b"1", 0.001), (b"1500.5", 1.5005), (b"9" * 400, MOST)])
def test_milliseconds_are_converted_to_seconds(told: bytes, wait: float) -> None:
    assert milliseconds(told) == wait


@given(st.binary(max_size=40))
def test_any_value_is_a_bounded_wait_or_none(told: bytes) -> None:
    assert all(wait is None or 0 <= wait <= MOST for wait in (seconds(told), milliseconds(told)))
