"""The figures of the benchmark: medians, what is compared with what, and what is said where nothing was measured."""

from pathlib import Path
from typing import Any

from bench.bus.loads import ONE_TOKEN, PACED
from bench.bus.results import Point, Results
from bench.bus.slowest import Life, explain
from bench.bus.targets import targets


def measured(rate: float, gap: float | None = None, cpu: float = 1.0, **errors: int) -> dict[str, Any]:
    times = {"p50": 2.0, "p90": 3.0, "p99": 4.0, "max": 5.0}
    return {
        "seconds": 2.0,
        "requests_per_s": rate,
        "tokens_per_s": rate,
        "events_per_s": rate,
        "ended": 2 * rate,
        "tokens": 2 * rate,
        "events": 2 * rate,
        "first_content": times,
        "gap": times | {"p99": gap},
        "errors": errors,
        "said": dict.fromkeys(errors, "no"),
        "cpu_s": {"gateway": cpu},
        "rss_mb": {"gateway": 50.0},
        "loadgen_cpu_s": 0.1,
        "others_cores": 0.0,
    }


def verdicts(results: Results) -> dict[str, str]:
    return {target.work: f"{target.measured}: {target.verdict()}" for target in targets(results)}


def test_rounds_become_medians() -> None:
    rates = (100.0, 500.0, 200.0)
    points = [Point("tokenbus", ONE_TOKEN.name, 32, i, measured(rate)) for i, rate in enumerate(rates)]
    row = Results(points=points).row("tokenbus", ONE_TOKEN.name, 32)
    assert row is not None
    assert (row.requests_per_s, row.us_per_token) == (200.0, {"gateway": 2500.0})


def test_a_target_says_how_many_times_the_peer_was_reached() -> None:
    results = Results(points=[Point(name, ONE_TOKEN.name, 32, 0, measured(rate)) for name, rate in RATES.items()])
    assert verdicts(results)["one-token requests/s, 32 clients"] == "2,000 = 20.0 × 100: met"


def test_without_a_peer_or_a_measurement_no_target_is_met() -> None:
    assert all(target.met is None for target in targets(Results()))
    alone = Results(points=[Point("tokenbus", ONE_TOKEN.name, 32, 0, measured(2000.0))])
    assert verdicts(alone)["one-token requests/s, 32 clients"] == "2,000; no FastChat in this run: not measured"


def test_streams_are_smooth_up_to_the_most_clients_with_short_gaps() -> None:
    gaps = {128: 11.0, 256: 29.0, 512: 45.0}
    points = [Point("tokenbus", PACED.name, clients, 0, measured(1.0, gap)) for clients, gap in gaps.items()]
    work = "streams of one chunk per 10 ms with a p99 gap ≤ 30 ms"
    assert verdicts(Results(points=points))[work] == "256: met"


def test_cpu_is_compared_with_no_bus_at_the_same_load() -> None:
    points = [Point(name, PACED.name, 128, 0, measured(100.0, 10.0, cpu)) for name, cpu in CPU.items()]
    work = "CPU per streamed token (10 ms pace), all processes, against no bus"
    assert verdicts(Results(points=points))[work] == "1.50 × with 128 clients: missed"


def test_errors_are_told_with_what_was_said() -> None:
    points = [Point("litellm", PACED.name, 8, i, measured(1.0, 1.0, http_500=2)) for i in range(2)]
    assert Results(points=points).failures() == [f"litellm, {PACED.name}, 8 clients: 4 × http_500 no"]


def test_what_is_kept_can_be_read_again(tmp_path: Path) -> None:
    results = Results(points=[Point("tokenbus", ONE_TOKEN.name, 1, 0, measured(1.0))], dispatch={"p50": 0.2})
    results.save(tmp_path / "kept.json")
    assert Results.read(tmp_path / "kept.json") == results


def test_the_slowest_jobs_are_told_by_worker_and_wait() -> None:
    jobs = [Life("fast", 1, 10)] * 198 + [Life("slow", 2, 90)] * 2
    assert explain(jobs) == (
        "1% of all and 100% of the slowest 1% ran at the slowest worker; "
        "those waited 2 ms for a claim and 90 ms for their token"
    )
    assert explain([]) == "no traces"


RATES = {"tokenbus": 2000.0, "fastchat": 100.0}
CPU = {"tokenbus": 3.0, "floor": 2.0}
