"""Money for tokens and time for failures, against published figures."""

import pytest

from dsv3lab import plan


def test_a_million_tokens_of_the_report_cost_36_cents() -> None:
    """180K H800-hours for 10^12 tokens at 2 USD an hour (DeepSeek-V3 report, Table 1 and section 1)."""
    rate = 1e12 / (180_000 * 3600)  # of one GPU
    assert round(rate) == 1543
    for devices in (1, 2048):
        cost = plan.usd_per_million_tokens(rate * devices, devices=devices, usd_per_device_hour=2.0)
        assert cost == pytest.approx(0.36)
    assert plan.usd_per_million_tokens(rate, devices=2, usd_per_device_hour=2.0) == pytest.approx(0.72)


def test_the_uptime_of_many_devices_hangs_on_how_soon_they_are_back() -> None:
    """At 50,700 GPU-hours between failures, 99.9 % leaves 64 devices 48 minutes for each, 2,048 of them 1.5."""
    assert plan.uptime(0.0, devices=64, device_hours_between_failures=50_700.0) == 1.0
    for devices, minutes in ((64, 47.5), (2048, 1.48)):
        enough = plan.uptime(60 * minutes, devices=devices, device_hours_between_failures=50_700.0)
        late = plan.uptime(60 * minutes * 1.01, devices=devices, device_hours_between_failures=50_700.0)
        assert late < 0.999 < enough
    # One failure for each hour of 8 devices that costs an hour: half of the time.
    assert plan.uptime(3600.0, devices=8, device_hours_between_failures=8.0) == pytest.approx(0.5)
