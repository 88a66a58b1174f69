"""What HAProxy says about itself, and the commands for its servers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.haproxy import stats
from ratelimit.haproxy.stats import Server


@given(st.text())
def test_no_server_writes_a_command_of_its_own(name: str) -> None:
    server = Server(name, name, "", "UP", 1, 0, 0, "")
    try:
        command = stats.set_server(server, "drain")
    except ValueError:
        return
    assert re.fullmatch(r"set server [A-Za-z0-9_.:-]+/[A-Za-z0-9_.:-]+ state drain", command)


ANSWER = """\
Name: HAProxy
Version: 2.6.12-1+deb12u1
Uptime_sec: 77

# pxname,svname,scur,status,weight,req_rate,req_tot,hrsp_2xx,hrsp_3xx,dreq,dcon,stot,type,addr
web,FRONTEND,2,OPEN,,3,100,60,10,30,4,,0,
app,app1,1,UP,10,,,,,,,55,2,127.0.0.1:1
app,BACKEND,1,UP,10,,,,,,,55,1,
spoa,agent,0,UP,1,,,,,,,9,2,unix
spoa,BACKEND,0,DOWN,1,,,,,,,9,1,
none,BACKEND,0,UP,0,,,,,,,0,1,

# table: t_block, type: ipv6, size:1048576, used:3
# table: t_other, type: ip, size:10, used:1

admin

date_now: 1700000000.25

HAPROXY_CFGFILES=/etc/haproxy/haproxy.cfg;/etc/haproxy/more.cfg
""".splitlines()


def test_a_report_is_read_from_the_answers_of_one_query() -> None:
    report = stats.read_report("/h.sock", ANSWER)
    assert (report.socket, report.problem) == ("/h.sock", "")
    assert (report.version, report.uptime, report.level) == ("2.6.12-1+deb12u1", 77, "admin")
    assert report.clock == 1_700_000_000.25
    assert report.files == ("/etc/haproxy/haproxy.cfg", "/etc/haproxy/more.cfg")
    [web] = report.frontends
    assert (web.name, web.status, web.sessions, web.request_rate) == ("web", "OPEN", 2, 3)
    assert (web.requests, web.answered) == (100, 70)
    assert (web.denied_requests, web.denied_connections) == (30, 4)
    assert [(one.name, [s.full_name for s in one.servers]) for one in report.backends] == [
        ("app", ["app/app1"]),
        ("spoa", ["spoa/agent"]),
    ]
    assert report.agent == "DOWN", "of the backend, not of its server"
    assert report.edge == stats.Table("t_block", "ipv6", 1_048_576, 3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# pxname,svname", "# pxname,name"),
        ("date_now: 1700000000.25", "date_now: soon"),
        ("date_now: 1700000000.25", "date_now: inf"),
    ],
)
def test_an_answer_that_can_not_be_read_is_an_error(old: str, new: str) -> None:
    answer = [line.replace(old, new) for line in ANSWER]
    assert answer != ANSWER
    with pytest.raises((ValueError, LookupError)):
        stats.read_report("/h.sock", answer)


def test_an_answer_without_statistics_is_an_empty_report() -> None:
    assert stats.read_report("/h.sock", []) == stats.Report("/h.sock")


@pytest.mark.parametrize(
    ("change", "command"),
    [
        ("drain", "set server app/app1 state drain"),
        ("ready", "set server app/app1 state ready"),
        (0, "set server app/app1 weight 0"),
    ],
)
def test_a_change_of_a_server_is_one_command(change: stats.Change, command: str) -> None:
    assert stats.set_server(Server("app", "app1", "", "UP", 1, 0, 0, ""), change) == command
