"""What limits are accepted, where, and with what words."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from temporalio.exceptions import ApplicationError

from activities.container_spec import NETWORK_OPTIONS, HostConfig, plan, refuse_open_network
from activities.hostfiles import environment_files
from api.bodies import EnvironmentCreate, EnvironmentPatch
from models.identifiers import new_environment_id
from models.messages import LEAST_LIMITS, EnvironmentSpec, HostRecord, Limits
from models.settings import ConfigurationError, HostSettings, load

MOST = Limits(cpus=4, memory_mb=4096, pids=1000, shm_mb=512)


@pytest.mark.parametrize(
    "limits",
    [
        {"cpus": 0.09},
        {"cpus": -1},
        {"cpus": "1"},
        {"cpus": True},
        {"cpus": float("nan")},
        {"cpus": float("inf")},
        {"cpus": None},
        {"memory_mb": 255},
        {"memory_mb": 512.5},
        {"memory_mb": 10**30},
        {"pids": 63},
        {"pids": -1},
        {"pids": 0},
        {"shm_mb": 0},
        {"swap_mb": 1},
        None,
        [],
        "1",
    ],
)
@pytest.mark.parametrize("body", [EnvironmentCreate, EnvironmentPatch])
def test_what_no_desktop_can_have_is_refused(
    body: type[EnvironmentCreate | EnvironmentPatch], limits: Any
) -> None:
    with pytest.raises(ValidationError) as refused:
        body.model_validate({"limits": limits})
    assert refused.value.errors()[0]["loc"][0] == "limits"


def test_absent_limits_stay_as_they_are() -> None:
    patch = EnvironmentPatch.model_validate({"limits": {"cpus": 1}})
    assert patch.limits.over(MOST) == MOST.model_copy(update={"cpus": 1})
    assert EnvironmentPatch.model_validate({}).limits.over(MOST) == MOST


def test_the_least_is_accepted() -> None:
    body = EnvironmentCreate.model_validate({"limits": LEAST_LIMITS.model_dump()})
    assert body.limits.over(MOST) == LEAST_LIMITS


def test_above_and_lowered() -> None:
    assert MOST.above(MOST) is None
    assert Limits(pids=1001).above(MOST) == "pids 1001 is above the maximum 1000"
    assert Limits(cpus=4.5).above(MOST) == "cpus 4.5 is above the maximum 4"
    assert Limits(memory_mb=10**6, shm_mb=64).lowered_to(MOST) == Limits(memory_mb=4096, shm_mb=64)


def test_the_host_refuses_what_went_round_the_api(tmp_path: Path) -> None:
    config = HostConfig("h", tmp_path, "ws://gateway/ws", max_limits=MOST)
    spec = EnvironmentSpec(
        environment_id=new_environment_id(), host_id="h", image_ref="i", limits=Limits(memory_mb=4097)
    )
    files = environment_files(tmp_path, spec.environment_id)
    with pytest.raises(
        ApplicationError, match="memory_mb 4097 is above the maximum 4096 of this host"
    ) as refused:
        plan(config, spec, 1, files, "1000:1000", (1000, 1000), image_names_user=True)
    assert (refused.value.type, refused.value.non_retryable) == ("start_failed", True)
    fitting = spec.model_copy(update={"limits": MOST})
    made = plan(config, fitting, 1, files, "1000:1000", (1000, 1000), image_names_user=True)
    assert made.host_arguments["mem_limit"] == 4096 * 1024**2


def test_a_hosts_own_maxima(monkeypatch: pytest.MonkeyPatch) -> None:
    most = load(HostSettings).max_limits
    assert LEAST_LIMITS.above(most) is None
    assert most.pids == 4096 and most.shm_mb <= most.memory_mb
    monkeypatch.setenv("DESKTOP_MAX_MEMORY_MB", "1024")
    assert load(HostSettings).max_limits.memory_mb == 1024
    for value in ("0", "100", "much"):
        monkeypatch.setenv("DESKTOP_MAX_MEMORY_MB", value)
        with pytest.raises(ConfigurationError, match="DESKTOP_MAX_MEMORY_MB"):
            load(HostSettings)


def test_an_older_hosts_report_is_read() -> None:
    assert HostRecord.model_validate({"host_id": "h"}).max_limits is None


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("bridge", {}),
        ("bridge", None),
        ("bridge", {"com.docker.network.bridge.enable_icc": "true"}),
        ("macvlan", NETWORK_OPTIONS),
    ],
)
def test_a_network_that_joins_sandboxes_is_refused(driver: str, options: dict[str, str] | None) -> None:
    with pytest.raises(ApplicationError, match="lets containers reach each other"):
        refuse_open_network([{"Name": "theirs", "Driver": driver, "Options": options}])
    refuse_open_network([{"Name": "ours", "Driver": "bridge", "Options": NETWORK_OPTIONS | {"more": "1"}}])
    refuse_open_network([])
