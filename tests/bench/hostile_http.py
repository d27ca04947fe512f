"""Requests of the page's server over HTTP that nobody should send."""

from __future__ import annotations

import json

import httpx
import strategies
from hypothesis import strategies as st
from pages import EXAMPLES
from tally import Tally, hammer

ALONE = httpx.Limits(max_keepalive_connections=0)  # a refusal closes its connection
ROUTES = (
    *("/gradio_api/file=", "/gradio_api/proxy=", "/file=", "/", "//", "/\\"),
    *("/gradio_api/stream/", "/static/", "/assets/", "/theme.css?", "/logout?u="),
    *("/login?_target_url=", "/gradio_api/process_recording", "/monitoring"),
)
PLACES = (
    *("/etc/passwd", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "//192.0.2.1/"),
    *("http://192.0.2.1/", "https:192.0.2.1", "\\\\192.0.2.1\\x", "x", ""),
)


def requests(count: int, url: str) -> Tally:
    """Calls by name, server functions, uploads, routes, and bodies of any bytes."""
    client = httpx.Client(base_url=url, timeout=20, limits=ALONE)
    files = {"files": (EXAMPLES / "meadow.webp").read_bytes()}
    (uploaded,) = client.post("/gradio_api/upload", files=files).json()
    config = client.get("/config").json()
    names = [each["api_name"] for each in config["dependencies"] if each["api_name"]]
    servers = [
        (each["id"], name)
        for each in config["components"]
        for name in each["props"].get("server_fns", ())
    ]
    wrong = st.one_of(strategies.values(), strategies.file_values(uploaded))
    shapes = st.one_of(
        st.tuples(
            st.just("call"), st.sampled_from(names), st.lists(wrong, max_size=12)
        ),
        st.tuples(st.just("serve"), st.sampled_from(servers), wrong),
        st.tuples(st.just("serve"), st.sampled_from(servers), wrong),
        st.tuples(st.just("upload"), strategies.prompts(), strategies.files()),
        st.tuples(st.just("route"), st.sampled_from(ROUTES), st.sampled_from(PLACES)),
        st.tuples(
            st.just("body"),
            st.sampled_from(("call/detect", "component_server", "queue/join", "reset")),
            st.one_of(
                st.binary(max_size=300),
                st.builds(bytes.__mul__, st.just(b"["), st.integers(1, 200_000)),
                st.builds(
                    lambda count: b'{"data":[' + b"[]," * count + b"1]}",
                    st.integers(1, 1_000_000),
                ),
                strategies.values().map(lambda value: json.dumps(value).encode()),
            ),
        ),
    )

    def act(value: tuple) -> bool:
        kind, what, data = value
        if kind == "call":
            return called(client, what, data)
        if kind == "serve":
            id, name = what
            asked = {"component_id": id, "fn_name": name, "data": data}
            body = json.dumps({**asked, "session_hash": "x"}).encode()
            return judged(sent(client, "component_server", body))
        if kind == "upload":
            name = what.encode("utf-8", "replace").decode()[:200]
            reply = client.post("/gradio_api/upload", files={"files": (name, data)})
            return judged(reply)
        if kind == "route":
            return judged(client.get(f"{url}{what}{data}"))
        return judged(sent(client, what, data))

    return hammer("requests over HTTP", count, shapes, act)


def called(client: httpx.Client, name: str, data: list) -> bool:
    reply = sent(client, f"call/{name}", json.dumps({"data": data}).encode())
    if not judged(reply):
        return False
    event = reply.json()["event_id"]
    told = client.get(f"/gradio_api/call/{name}/{event}").text.strip().splitlines()
    if told[-2] == "event: complete":
        return True
    assert json.loads(told[-1].removeprefix("data: "))["error"], "an error of no words"
    return False


def sent(client: httpx.Client, path: str, body: bytes) -> httpx.Response:
    kind = {"content-type": "application/json"}
    return client.post(f"/gradio_api/{path}", content=body, headers=kind)


def judged(reply: httpx.Response) -> bool:
    """Whether it is an answer. A fault of the server or a way elsewhere is a crash."""
    assert reply.status_code < 500, f"{reply.status_code} {reply.request.url.path[:40]}"
    if reply.is_redirect:
        there = reply.request.url.join(reply.headers["location"])
        assert there.host == reply.request.url.host, f"a redirect to {there}"
    assert "access-control-allow-origin" not in reply.headers
    return reply.status_code < 400
