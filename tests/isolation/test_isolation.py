"""Every default of design section 6, by trying from inside a running sandbox (see docs/security.md)."""

import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.stack import Stack
from tests.isolation.conftest import LIMITS
from tests.isolation.probes import Inside

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.docker,
    pytest.mark.xdist_group("isolation"),
    pytest.mark.timeout(300),
]

TOKEN = "/run/tyrum/gateway-token"
VNC_PASSWORD = "/run/tyrum/vnc-password"
REFUSED = re.compile(
    r"permission denied|operation not permitted|read-only file system|must be superuser|authentication failure",
    re.I,
)
IDENTITY = "/var/lib/tyrum-node/desktop-node/device-identity.json"


def status_of(sandbox: Inside, process: str) -> dict[str, str]:
    """`/proc/<process>/status` in the sandbox."""
    code, text = sandbox.sh(f"cat /proc/{process}/status")
    assert code == 0, text
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


# --- file system and user ----------------------------------------------------------------------------------------


def test_root_file_system_is_not_written(desktop: Inside) -> None:
    for path in ("/usr/bin/x", "/etc/x", "/opt/desktop-sandbox/x", "/x", "/usr/share/novnc/x"):
        code, text = desktop.sh(f"echo evil > {path}")
        assert code != 0, path
        assert "Read-only file system" in text or "Permission denied" in text, text
    # Not a matter of modes only: the mount itself is read-only.
    code, text = desktop.sh("awk '$2 == \"/\" {print $4}' /proc/self/mounts")
    assert code == 0 and "ro" in text.strip().split(","), text
    assert desktop.sh("echo fine > /tmp/x && echo fine > /var/lib/tyrum-node/x")[0] == 0


def test_user_is_nobody_special(desktop: Inside) -> None:
    assert desktop.sh("id -u")[1].strip() == "1000"
    image = desktop.container.image
    assert image is not None and image.attrs["Config"]["User"] == "1000:1000"
    # Neither an exec nor the desktop itself.
    assert set(status_of(desktop, "1")["Uid"].split()) == {"1000"}


def test_secrets_are_read_only_and_the_users_own(desktop: Inside) -> None:
    for path in (TOKEN, IDENTITY, VNC_PASSWORD):
        code, text = desktop.sh(f"stat -c '%u %a' {path}")
        assert (code, text.split()) == (0, ["1000", "600"]), (path, text)
        for attempt in (f"echo x >> {path}", f"rm -f {path}", f"mv {path} {path}.old", f"chmod 644 {path}"):
            code, text = desktop.sh(attempt)
            assert code != 0, attempt
    assert desktop.sh(f"test -s {TOKEN} && test -s {IDENTITY}")[0] == 0


def test_secrets_are_the_users_own_on_the_host(desktop: Inside, stack: Stack) -> None:
    home = stack.state_dir / "desktop-environments" / desktop.environment["environment_id"]
    assert home.stat().st_mode & 0o077 == 0
    for path in [*home.glob("secrets/*"), *home.glob("identity/*")]:
        if path.is_file():
            assert path.stat().st_mode & 0o777 == 0o600, path.name


# --- privileges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["self", "1"])
def test_no_capability_is_held_or_in_reach(desktop: Inside, process: str) -> None:
    status = status_of(desktop, process)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


@pytest.mark.parametrize(
    "attempt",
    [
        "unshare --user --map-root-user id",
        "unshare --mount id",
        "unshare --net id",
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw /",
        "umount /run",
        "nsenter --target 1 --mount id",
        "mknod /tmp/disk b 8 0",
        "chown 0 /tmp",
        "chroot / id",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo x > /sys/kernel/uevent_helper",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "dmesg",
        "su -c id",
        "echo max > $(ls /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2> /dev/null)",
    ],
)
def test_privileged_acts_fail(desktop: Inside, attempt: str) -> None:
    code, text = desktop.run("timeout", "10", "/bin/sh", "-c", f"{attempt} < /dev/null")
    assert code != 0, text
    assert "uid=0" not in text
    # Refused, rather than not found or mistyped.
    assert REFUSED.search(text), text


def test_a_set_user_id_program_gives_nothing(desktop: Inside) -> None:
    """`mount` belongs to root and is set-user-id: run, it is still nobody special."""
    code, text = desktop.sh("find /usr/bin -perm -4000 -user root")
    assert code == 0 and "/usr/bin/su" in text
    script = (
        "import json, os, subprocess, sys, time\n"
        "held = subprocess.Popen(['/usr/bin/su', '-c', 'id'], stdin=subprocess.PIPE,"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "time.sleep(0.3)\n"
        "lines = open(f'/proc/{held.pid}/status').read().splitlines()\n"
        "print(json.dumps(next(line for line in lines if line.startswith('Uid:')).split()[1:]))\n"
        "held.kill(); held.wait()\n"
    )
    assert desktop.python(script) == ["1000"] * 4


# --- other containers and the host -------------------------------------------------------------------------------


def test_only_its_own_processes_are_seen(desktop: Inside, neighbour: Inside) -> None:
    for sandbox, other in ((desktop, neighbour), (neighbour, desktop)):
        marker = other.environment["environment_id"]
        _, text = sandbox.sh("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
        assert sandbox.environment["environment_id"] in text
        assert marker not in text and "temporal" not in text and "workers.host" not in text
    first, second = desktop.sh("readlink /proc/self/ns/*")[1], neighbour.sh("readlink /proc/self/ns/*")[1]
    for kind in ("pid", "mnt", "net", "ipc", "uts"):
        mine, theirs = (re.findall(rf"{kind}:\[\d+\]", text)[0] for text in (first, second))
        assert mine != theirs, kind


def test_no_file_of_another_or_of_the_host_is_seen(desktop: Inside, neighbour: Inside, stack: Stack) -> None:
    neighbour.sh(
        "echo mine > /var/lib/tyrum-node/only-here; echo mine > /tmp/only-here; echo mine > /dev/shm/only-here"
    )
    _, text = desktop.sh("find / -xdev -name only-here 2>/dev/null; ls /var/lib/tyrum-node /tmp /dev/shm")
    assert "only-here" not in text
    for path in (stack.state_dir, "/var/run/docker.sock", "/run/docker.sock", "/var/lib/docker", "/dev/sda"):
        assert desktop.sh(f"test -e {path}")[0] != 0, path
    assert "docker.sock" not in desktop.sh("cat /proc/self/mountinfo")[1]


def test_sandboxes_do_not_reach_each_other_but_the_gateway(
    desktop: Inside, neighbour: Inside, stack: Stack
) -> None:
    node_port = urlsplit(stack.up["node_url"]).port
    gateway = f"host.containers.internal:{node_port}"
    for sandbox, other in ((desktop, neighbour), (neighbour, desktop)):
        own = sandbox.connect("127.0.0.1:5900", f"{sandbox.address}:5900", gateway)
        # What is refused below is refused by the network, not for want of a listener.
        assert set(own.values()) == {"open"}, own
        ports = (5900, 6080)
        for port in ports:
            with socket.create_connection((other.address, port), 5):
                pass
        theirs = sandbox.connect(*(f"{other.address}:{port}" for port in ports))
        assert set(theirs.values()) == {"silent"}, theirs


def test_the_control_plane_is_out_of_reach(desktop: Inside, stack: Stack) -> None:
    ports = [urlsplit(stack.up[name]).port for name in ("api_url", "temporal_ui_url")]
    ports.append(int(stack.up["temporal_address"].rsplit(":", 1)[1]))
    for port in ports:
        with socket.create_connection(("127.0.0.1", port or 0), 5):
            pass
    docker_tcp = [2375, 2376]
    hosts = ["127.0.0.1", desktop.gateway, "host.containers.internal", *other_addresses()]
    answers = desktop.connect(*(f"{host}:{port}" for host in hosts for port in [*ports, *docker_tcp]))
    assert "open" not in answers.values(), answers


def test_a_sandboxs_published_ports_are_out_of_reach_of_others(desktop: Inside, neighbour: Inside) -> None:
    published = [port for bound in neighbour.published.values() for _, port in bound]
    hosts = ["127.0.0.1", desktop.gateway, "host.containers.internal", *other_addresses()]
    answers = desktop.connect(*(f"{host}:{port}" for host in hosts for port in published))
    assert "open" not in answers.values(), answers


def test_ports_are_published_on_loopback_only(desktop: Inside) -> None:
    assert set(desktop.published) == {"5900/tcp", "6080/tcp"}
    addresses = other_addresses()
    assert addresses, "this machine has no other address to try"
    for bound in desktop.published.values():
        for host, port in bound:
            assert host == "127.0.0.1"
            with socket.create_connection((host, port), 5):
                pass
            for address in addresses:
                with pytest.raises(OSError, match=r"refused|timed out"):
                    socket.create_connection((address, port), 3).close()


def test_the_node_listener_offers_a_sandbox_nothing_else(desktop: Inside, stack: Stack) -> None:
    script = (
        "import json, sys, urllib.error, urllib.request\n"
        "token = open('/run/tyrum/gateway-token').read().strip()\n"
        "answers = {}\n"
        "for path in sys.argv[2:]:\n"
        "    request = urllib.request.Request(sys.argv[1] + path,"
        " headers={'Authorization': 'Bearer ' + token})\n"
        "    try: answers[path] = urllib.request.urlopen(request, timeout=10).status\n"
        "    except urllib.error.HTTPError as error: answers[path] = error.code\n"
        "print(json.dumps(answers))\n"
    )
    origin = f"http://host.containers.internal:{urlsplit(stack.up['node_url']).port}"
    admin = ["/desktop-environments", "/nodes", "/pairings", "/docs", "/openapi.json", "/audit", "/tokens"]
    answers = desktop.python(script, origin, "/nodes/self", *admin)
    assert answers.pop("/nodes/self") == 200
    assert set(answers.values()) == {404}, answers


def other_addresses() -> list[str]:
    """This machine's IPv4 addresses that are not loopback: its interfaces' and the Docker bridges'."""
    trie = Path("/proc/net/fib_trie").read_text()
    found = set(re.findall(r"\|-- ([\d.]+)\n\s+/32 host LOCAL", trie))
    found = {address for address in found if not address.startswith("127.")}
    return sorted(found)


# --- limits ------------------------------------------------------------------------------------------------------


def test_processes_stop_at_the_limit(desktop: Inside) -> None:
    script = (
        "import json, os, signal, time\n"
        "children, stopped = [], None\n"
        "try:\n"
        "    for _ in range(400):\n"
        "        child = os.fork()\n"
        "        if child == 0:\n"
        "            time.sleep(20); os._exit(0)\n"
        "        children.append(child)\n"
        "except OSError as error:\n"
        "    stopped = error.strerror\n"
        "for child in children:\n"
        "    os.kill(child, signal.SIGKILL); os.waitpid(child, 0)\n"
        "print(json.dumps([len(children), stopped]))\n"
    )
    made, stopped = desktop.python(script)
    assert stopped == "Resource temporarily unavailable"
    assert made < LIMITS["pids"]
    desktop.container.reload()
    assert desktop.container.status == "running"
    assert desktop.run("true")[0] == 0


def test_memory_is_limited_and_the_desktop_survives(desktop: Inside) -> None:
    """A hog is killed by the kernel within its own container; what the limit counts includes no swap."""
    hog = (
        "import sys\n"
        "open('/proc/self/oom_score_adj', 'w').write('1000')\n"
        "kept = []\n"
        "for _ in range(1024): kept.append(bytearray(b'x') * 1048576)\n"
    )
    code, _ = desktop.run("/usr/bin/python3", "-c", hog)
    assert code == 137
    # So is what is written to a tmpfs, and to shared memory.
    code, text = desktop.sh("dd if=/dev/zero of=/dev/shm/full bs=1M count=200 2>&1; rm -f /dev/shm/full")
    assert "No space left" in text, text
    desktop.container.reload()
    assert desktop.container.status == "running"


def test_limits_are_the_kernels(desktop: Inside) -> None:
    values = {
        "cpu": cgroup(desktop, ["cpu/cpu.cfs_quota_us", "cpu.max"]),
        "memory": cgroup(desktop, ["memory/memory.limit_in_bytes", "memory.max"]),
        "pids": cgroup(desktop, ["pids/pids.max", "pids.max"]),
    }
    assert values == {
        "cpu": int(LIMITS["cpus"] * 100_000),
        "memory": LIMITS["memory_mb"] * 1024**2,
        "pids": LIMITS["pids"],
    }
    assert desktop.sh("df -m --output=size /dev/shm | tail -1")[1].strip() == str(LIMITS["shm_mb"])


def test_cpu_is_throttled(desktop: Inside) -> None:
    spin = (
        "import json, os, time\n"
        "start, spent = time.monotonic(), os.times()\n"
        "pids = []\n"
        "for _ in range(2):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        end = time.monotonic() + 2\n"
        "        while time.monotonic() < end: pass\n"
        "        os._exit(0)\n"
        "    pids.append(child)\n"
        "for child in pids: os.waitpid(child, 0)\n"
        "now = os.times()\n"
        "used = now.children_user + now.children_system\n"
        "print(json.dumps(used / (time.monotonic() - start)))\n"
    )
    # A bound from above: a busy machine makes it less.
    assert desktop.python(spin) < LIMITS["cpus"] * 1.5


def cgroup(sandbox: Inside, names: list[str]) -> int:
    """A limit as the kernel has it, version 1 or 2."""
    for name in names:
        code, text = sandbox.sh(f"cat /sys/fs/cgroup/{name}")
        if code == 0:
            return int(text.split()[0])
    raise AssertionError(f"none of {names} is there")


# --- the looser profile ------------------------------------------------------------------------------------------


def test_compatible_still_holds(compatible: Inside, neighbour: Inside, stack: Stack) -> None:
    status = status_of(compatible, "1")
    # The image names a user, so Docker's default capabilities are in the bounding set and none is effective.
    assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (0, "1", "2")
    raw, admin = 13, 21
    for capability in (raw, admin):
        assert not int(status["CapBnd"], 16) >> capability & 1
    assert set(compatible.connect(f"{neighbour.address}:5900", f"{neighbour.address}:6080").values()) == {
        "silent"
    }
    port = urlsplit(stack.up["api_url"]).port
    assert "open" not in compatible.connect(f"127.0.0.1:{port}", f"{compatible.gateway}:{port}").values()
    assert compatible.sh("test -e /var/run/docker.sock")[0] != 0
    assert {host for bound in compatible.published.values() for host, _ in bound} == {"127.0.0.1"}
    for path in (TOKEN, IDENTITY, VNC_PASSWORD):
        assert compatible.sh(f"echo x >> {path}")[0] != 0
    assert cgroup(compatible, ["pids/pids.max", "pids.max"]) == 512
    assert cgroup(compatible, ["memory/memory.limit_in_bytes", "memory.max"]) == 2048 * 1024**2


# --- choosing limits ---------------------------------------------------------------------------------------------


def test_a_change_makes_the_desktop_anew(stack: Stack, neighbour: Inside) -> None:
    environment = stack.create(limits={"memory_mb": 1024})
    environment_id = environment["environment_id"]
    try:
        assert environment["limits"] == {"cpus": 2.0, "memory_mb": 1024, "pids": 512, "shm_mb": 256}
        changed = stack.desktopctl(
            "update", environment_id, "--pids", "200", "--security-profile", "compatible", "--wait"
        )
        assert (changed["status"], changed["generation"]) == ("running", environment["generation"] + 1)
        assert changed["limits"] == environment["limits"] | {"pids": 200}
        assert changed["security_profile"] == "compatible"
    finally:
        stack.call("DELETE", f"/desktop-environments/{environment_id}", wait=60)


def test_above_the_hosts_maximum_is_refused(stack: Stack, desktop: Inside) -> None:
    host = stack.call("GET", "/desktop-environment-hosts").json()["hosts"][0]
    path = f"/desktop-environments/{desktop.environment['environment_id']}"
    for name, most in host["max_limits"].items():
        for method, where in (("POST", "/desktop-environments"), ("PATCH", path)):
            answer = stack.call(method, where, {"limits": {name: most + 1}})
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"] == "invalid_request"
            assert f"{name} {most + 1:g} is above the maximum {most:g}" in answer.json()["message"]
    assert stack.call("GET", path).json()["environment"]["limits"] == LIMITS
