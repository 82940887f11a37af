"""A second oracle is not called a leak; a leak that was planted is."""

import pytest
from perf.false_alarms import run


@pytest.mark.slow
def test_a_second_oracle_raises_at_most_one_alarm_in_twenty_and_a_planted_leak_does():
    found = run(oracles=5, shares=(0.5,))
    assert len(found["null"]) >= 20
    assert sum(finding.alarm for finding in found["null"]) <= 1
    assert sum(finding.alarm for finding in found["50%"]) >= 4
