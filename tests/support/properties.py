"""Settings of hypothesis: the same examples in each run, and few of them."""

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """A decorator that runs a property on this many examples."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )  # fmt: skip
