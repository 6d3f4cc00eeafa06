"""Metrics as Prometheus gets them."""

import subprocess

from prometheus_client.parser import text_string_to_metric_families


def scrape(*address: str) -> dict:
    """All samples, by name and label values, as curl gets them and Prometheus reads them."""
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--fail", "--max-time", "20", *address],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(done.stdout)
        for sample in family.samples
    }
