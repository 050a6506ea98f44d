"""Prints how long a list of 1,000 environments takes, JSON included; design section 7 allows 30 ms at p95."""

import json
import statistics
import time
from datetime import datetime

from sqlalchemy import Engine

from inventory import environments
from inventory.engine import reading, writing
from models.lifecycle import Status
from tests.inventory.makers import error, record, spec


def test_list_of_a_thousand(engine: Engine, now: datetime) -> None:
    tail = ["x" * 100] * 100
    with writing(engine) as session:
        for n in range(1000):
            failed = n % 10 == 0
            one = record(
                spec(label=f"desktop {n}"),
                n,
                now,
                Status.ERROR if failed else Status.RUNNING,
                logs=tail,
                last_error=error(now, tail) if failed else None,
            )
            environments.record(session, one, now)
    took, worked = [], []
    for _ in range(40):
        started, cpu = time.perf_counter(), time.process_time()
        with reading(engine) as session:
            page = environments.list_page(session, limit=1000)
        text = json.dumps([one._asdict() for one in page.environments], default=datetime.isoformat)
        took.append((time.perf_counter() - started) * 1000)
        worked.append((time.process_time() - cpu) * 1000)
    assert len(page.environments) == 1000 and len(text) > 100_000
    p95 = statistics.quantiles(took, n=20)[-1]
    name, median, cpu_median = engine.dialect.name, statistics.median(took), statistics.median(worked)
    print(f"{name}: list of 1,000 median {median:.1f} ms ({cpu_median:.1f} ms of CPU), p95 {p95:.1f} ms")
