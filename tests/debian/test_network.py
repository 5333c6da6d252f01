"""Throughput between two machines, as iperf3 sees it: everything arrives, at a useful rate."""

import json

import pytest

import teuthis

SECONDS = 5


@pytest.mark.parametrize("direction", [[], ["--reverse"]], ids=["to-server", "from-server"])
def test_iperf3_between_two_vms(image: str, direction: list[str]) -> None:
    with (
        teuthis.VM("512M", image=image, network="switch:iperf") as server,
        teuthis.VM("512M", image=image, network="switch:iperf") as client,
        server.popen(["iperf3", "--server", "--one-off"]) as running,
    ):
        assert server.address is not None
        command = ["iperf3", "--json", "--time", str(SECONDS), *direction]
        for _ in range(50):  # until the server listens
            done = client.run([*command, "--client", server.address], timeout=200)
            if done.exit_code == 0:
                break
        report = json.loads(done.stdout)
        assert done.exit_code == 0, report
        running.wait(60)
        sums = report["end"]["sum_received"]
        print(f"{sums['bits_per_second'] / 8e6:.1f} MB/s")
        assert sums["bytes"] > 1_000_000
