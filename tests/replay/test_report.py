"""What a replay reports."""

from __future__ import annotations

from tests.replay.conftest import ATTACK, Desk, combined, haproxy, run


def test_what_people_see(desk: Desk) -> None:
    more = [haproxy(n, "192.0.2.9") for n in range(120)]
    desk.write([*ATTACK, *more])
    result = run(str(desk.log), "--config", str(desk.config), "-n", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "limit default: 100 in 1s, then blocked for 10s, 1m, 10m, 1h\n"
        "client     throttled  blocked  blocks  blocked for                first"
        "                 last  peak in 1s\n"
        "192.0.2.7          0       51       1      0:00:10  2026-11-24 12:00:00"
        "  2026-11-24 12:00:10         150\n"
        "\n"
        f"{desk.log}: HAProxy HTTP log, 2026-11-24 12:00:00 to 2026-11-24 12:00:11\n"
        "272 lines, 272 requests of 2 clients\n"
        "71 refused (26.1%) of 2 clients\n"
        "0 throttled, 71 blocked in 2 blocks\n"
        "showing the 1 most refused of 2 clients\n"
    )


def test_nobody_is_refused(desk: Desk) -> None:
    desk.write([haproxy(n * 100) for n in range(10)])
    result = run(str(desk.log))
    assert result.exit_code == 0
    assert "client " not in result.stdout
    assert "0 refused (0.0%) of 0 clients\n" in result.stdout


def test_times_are_shown_in_the_log_s_own_zone(desk: Desk) -> None:
    lines = [combined(0).replace("+0000", "-0800")] * 101
    (offender,) = desk.found(lines)["offenders"]
    assert offender["first"] == "2026-11-24T12:00:00-08:00"
    assert "2026-11-24 12:00:00" in run(str(desk.log)).stdout
