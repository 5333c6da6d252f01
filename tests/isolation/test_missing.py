"""A host that cannot give every wall: a user namespace without network namespaces stands for it."""

import json
import subprocess
import sys

import pytest

from teuthis.errors import ConfigurationError
from teuthis.jail import host, walls

from ..guests.processes import CLI

PREPARE = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
MISSING = {"identity", "network-namespace"}


def poor_host(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs `command` where no network namespace can be made, and only one user id exists."""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", PREPARE, "sh", *command],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_the_host_is_asked_for_its_walls() -> None:
    assert host.missing() == {}
    probe = poor_host(sys.executable, "-I", "-m", "teuthis.jail.probe")
    assert set(json.loads(probe.stdout)) == MISSING


def test_starting_refuses_and_names_the_wall() -> None:
    refused = poor_host(*CLI, "run", "--", "true")
    assert refused.returncode == 125
    assert "does not give the wall 'identity'" in refused.stderr
    refused = poor_host(*CLI, "run", "--allow-missing-wall", "identity", "--", "true")
    assert refused.returncode == 125
    assert "does not give the wall 'network-namespace'" in refused.stderr


def test_a_user_may_go_without_it() -> None:
    allowed = [word for wall in sorted(MISSING) for word in ("--allow-missing-wall", wall)]
    ran = poor_host(*CLI, "run", *allowed, "--", "echo", "less safe")
    assert (ran.returncode, ran.stdout) == (0, "less safe\n")


def test_a_wall_that_does_not_exist_cannot_be_missing() -> None:
    with pytest.raises(ConfigurationError, match="'moat' is not the name of a wall"):
        host.check_names(["landlock", "moat"])


@pytest.mark.parametrize("name", walls.NAMES)
def test_exit_statuses_name_the_wall(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "missing", lambda: {name: "no"})
    error = host.missing_wall(walls.exit_status(name))
    assert error is not None
    assert (error.name, error.reason) == (name, "no")
    assert f"--allow-missing-wall {name}" in str(error)


@pytest.mark.parametrize("status", [0, 1, 64, 99, 100 + len(walls.NAMES), -9])
def test_other_exit_statuses_do_not(status: int) -> None:
    assert host.missing_wall(status) is None
