"""What tokens cost in money, and what failures cost in time."""


def usd_per_million_tokens(tokens_per_s: float, *, devices: int, usd_per_device_hour: float) -> float:
    """USD for a million training tokens, for as long as all devices are rented at one price.

    With the 1,543 tokens/s of each H800 and the 2 USD an hour of the DeepSeek-V3 report (Table 1: 180K GPU-hours for a
    trillion tokens) that is 0.36.

    Args:
        tokens_per_s: of all devices together.
        devices: how many are rented.
        usd_per_device_hour: price of each for an hour.
    """
    return usd_per_device_hour * devices / 3600 / tokens_per_s * 1e6


def uptime(seconds_per_failure: float, *, devices: int, device_hours_between_failures: float) -> float:
    """Share of the wall-clock time that is left after failures, each of which stops all devices.

    Args:
        seconds_per_failure: what one costs: until training steps again, and the steps that are computed again.
        devices: how many take part; any of them may fail.
        device_hours_between_failures: mean of one device.
    """
    between = device_hours_between_failures * 3600 / devices
    return between / (between + seconds_per_failure)
