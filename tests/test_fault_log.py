"""The table of faults at the end of a session of tests."""

from __future__ import annotations

from support import fault_log


def test_a_fault_has_its_times_and_its_longest_recovery() -> None:
    seen: fault_log.Faults = {}
    fault_log.add(seen, "a kill", 1, 2.26)
    fault_log.add(seen, "a bad input", 1234, None)
    fault_log.add(seen, "a kill", 2, 11.0)
    fault_log.add(seen, "a kill", 1, None)
    assert fault_log.table(seen)[2:] == ["| a kill | 4 | 11.0 s |", "| a bad input | 1,234 | – |"]
