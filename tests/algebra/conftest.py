"""One hypothesis profile for these tests: no deadline, as a merge touches the disk; derandomised."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "merges", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("merges")
