"""Many users of one engine: their order, who goes away, and how long one may take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from bench.running import App, Call, Question
from fake_engine import SENTENCE, FakeEngine
from pages import PATIENT, PICTURE, answered, ask, opened, serve
from PIL import Image
from playwright.sync_api import Page, expect
from waiting import until

from vlm.ui import faults, listening, old_files, patience
from vlm.ui import page as pages
from vlm.ui import turn as turns

QUEUE = 3
SESSIONS = 8
SECONDS = 20  # a shared machine may be slow


class Shared(FakeEngine):
    """Keeps the prompts in their order; counts steps; fails when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []
        self.steps = 0

    def stream(self, image, prompt, **how):
        self.prompts.append(prompt)
        for step in super().stream(image, prompt, **how):
            self.steps += 1
            if step.index == 2 and "memory" in prompt:
                raise MemoryError
            if step.index == 2 and "mistake" in prompt:
                raise KeyError("a secret")
            yield step


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def site(folder) -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as small:
        small.setenv("GRADIO_TEMP_DIR", str(folder))
        small.setattr(pages, "QUEUE", QUEUE)
        small.setattr(pages, "SESSIONS", SESSIONS)
        small.setattr(listening, "LATER", 1)
        with serve(Shared()) as served:
            yield served


@pytest.fixture
def engine(site) -> Iterator[Shared]:
    site.engine.prompts.clear()
    yield site.engine
    until(lambda: not site.engine.live, "the engine to be idle")


@pytest.fixture(scope="module")
def app(site, folder) -> App:
    return App(site.url, None, folder)


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    yield from opened(site, browser, width=1280, height=860)


class Listener:
    """Who waits for an answer, in a thread, until it ends or `leave` is set."""

    def __init__(self, call: Call) -> None:
        self.call, self.said, self.leave = call, [], threading.Event()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        with contextlib.closing(self.call.messages()) as messages:
            for message in messages:
                self.said.append(message)
                if self.leave.is_set():
                    return

    def first(self) -> dict:
        until(lambda: self.said, "a word")
        return self.said[0]

    def end(self) -> dict:
        self.thread.join(SECONDS)
        (end,) = (each for each in self.said if each["msg"] == "process_completed")
        return end["output"]


def comes(app: App, prompt: str) -> Listener:
    """Who joins the queue with a question about PICTURE."""
    return Listener(app.ask(Question(PICTURE, prompt)))


def busy(app: App, engine: Shared) -> Listener:
    """Whose question takes long, and is being answered."""
    listener = comes(app, "caption forever")
    until(lambda: engine.live, "the long answer to begin")
    return listener


def text(end: dict) -> str:
    return end["data"][0]["text"]


def alone(app: App, prompt: str) -> dict:
    return app.ask(Question(PICTURE, prompt)).answer()


def test_who_comes_first_is_answered_first_and_told_a_place(app, engine):
    long = busy(app, engine)
    waiting = [comes(app, f"caption {word}") for word in ("b", "a", "c")]
    places = [(one.first()["msg"], one.first()["rank"]) for one in waiting]
    assert places == [("estimation", place) for place in range(3)]
    long.leave.set()
    assert [text(one.end()) for one in waiting] == [SENTENCE] * 3
    assert engine.prompts == [f"caption {word}" for word in ("forever", "b", "a", "c")]


def test_when_the_queue_is_full_who_comes_is_told_and_the_others_are_answered(
    app, engine
):
    long = busy(app, engine)
    waiting = [comes(app, "caption en") for _ in range(QUEUE)]
    with pytest.raises(httpx.HTTPStatusError) as full:
        comes(app, "caption gone")
    assert full.value.response.status_code == 503
    assert f"Max size is {QUEUE}" in full.value.response.json()["detail"]
    long.leave.set()
    assert [text(one.end()) for one in waiting] == [SENTENCE] * QUEUE
    assert alone(app, "caption en")["text"] == SENTENCE
    assert "caption gone" not in engine.prompts


def test_no_call_jumps_the_queue(site, engine):
    sent = {"data": [None, "cat", 9, ""]}
    for way in ("run", "api"):
        address = f"{site.url}/gradio_api/{way}/detect"
        reply = httpx.post(address, json=sent, timeout=SECONDS)
        assert reply.status_code == 404
        assert "join the queue" in reply.json()["detail"]
    assert engine.prompts == []


# What endpoints are sent, beside the picture; the last three tell nothing before the
# end.
LONG = {
    "probe": ["forever", "", "Greedy", 1.0, 0.9, 40, 0, 1, 512, "", None],
    "detect": ["forever", 512, ""],
    "attention": ["forever", -1, "", None, None, ""],
    "compare": ["forever", None, "", "", ""],
}


@pytest.mark.parametrize("endpoint", LONG)
def test_a_connection_that_breaks_ends_the_answer_within_a_step(
    site, app, engine, endpoint
):
    picture = app.upload(PICTURE)
    address = f"{site.url}/gradio_api/call/{endpoint}"
    sent = {"data": [picture, *LONG[endpoint]]}
    event = httpx.post(address, json=sent, timeout=SECONDS).json()["event_id"]
    with httpx.stream("GET", f"{address}/{event}", timeout=SECONDS):
        until(lambda: engine.live, "the answer to begin")
    steps = engine.steps
    until(lambda: not engine.live, "the answer to end")
    assert engine.steps - steps < 50, "it was not gone on with"
    assert alone(app, "caption en")["text"] == SENTENCE


def test_who_cancels_what_tells_nothing_before_its_end_ends_it(site, app, engine):
    every = site.demo.config["dependencies"]
    (detect,) = (each["id"] for each in every if each["api_name"] == "detect")
    data = [app.upload(PICTURE), *LONG["detect"]]
    one = Listener(Call(app.http, detect, data))
    until(lambda: engine.live, "the answer to begin")
    told = {"session_hash": one.call.session, "fn_index": detect}
    told["event_id"] = one.first()["event_id"]
    address = f"{site.url}/gradio_api/cancel"
    httpx.post(address, json=told, timeout=SECONDS)
    steps = engine.steps
    until(lambda: not engine.live, "the answer to end")
    assert engine.steps - steps < 50


def test_who_leaves_the_queue_is_not_asked(app, engine):
    long = busy(app, engine)
    app.ask(Question(PICTURE, "caption gone")).leave_after(0.2)
    last = comes(app, "caption en")
    long.leave.set()
    assert text(last.end()) == SENTENCE
    assert "caption gone" not in engine.prompts


def test_what_nobody_listens_for_any_more_is_forgotten(site, app, engine):
    queue = site.demo._queue
    alone(app, "caption en")
    for seconds in (0.01, 0.1, 0.2):
        app.ask(Question(PICTURE, "caption forever")).leave_after(seconds)
    kept = queue.pending_messages_per_session, queue.pending_event_ids_session
    until(lambda: not any(kept), "news to be forgotten")
    assert alone(app, "caption en")["text"] == SENTENCE


def test_what_somebody_will_listen_for_is_kept(site, app, engine):
    queue = site.demo._queue
    long = busy(app, engine)
    for each in (long.call, comes(app, "caption en").call):
        listening.forget(queue, each.session, left=True)
        assert each.session in queue.pending_messages_per_session
    long.leave.set()


@pytest.mark.parametrize("left", [False, True])
def test_what_came_while_a_stream_ended_is_kept_for_the_next(left):
    news = {"come": asyncio.Queue(), "told": asyncio.Queue()}
    news["come"].put_nowait("all that it had to say")
    queue = SimpleNamespace(
        pending_messages_per_session=news,
        pending_event_ids_session={"come": {"done"}, "told": set()},
        event_ids_to_events={},
    )
    for session in list(news):
        listening.forget(queue, session, left=left)
    kept = [] if left else ["come"]
    assert list(news) == list(queue.pending_event_ids_session) == kept


def in_a_loop(doing: Awaitable) -> None:
    # Playwright leaves its own loop running in this thread.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, doing).result()


def request(path: str, **queue: object) -> dict:
    """An ASGI scope of visitor "a", at a server with this queue of events."""
    blocks = SimpleNamespace(_queue=SimpleNamespace(**queue))
    return {
        "type": "http",
        "path": f"/gradio_api/queue/{path}",
        "query_string": b"session_hash=a",
        "app": SimpleNamespace(get_blocks=lambda: blocks),
    }


def test_a_stream_that_is_opened_when_all_is_told_waits_for_more(site, app):
    call = app.ask(Question(PICTURE, "caption en"))
    assert call.answer()["text"] == SENTENCE
    stream = f"{site.url}/gradio_api/queue/data?session_hash={call.session}"
    with httpx.stream("GET", stream, timeout=httpx.Timeout(SECONDS, read=1)) as told:
        with pytest.raises(httpx.ReadTimeout):
            next(told.iter_text())


@pytest.mark.parametrize("ended", [False, True])
def test_the_last_of_several_streams_is_the_one_that_counts(monkeypatch, ended):
    """Who was told all is forgotten a while after it, unless a stream is open again."""
    forgotten, scope = [], request("data")
    own = scope["app"].get_blocks()._queue

    def forget(queue: object, of: str, *, left: bool) -> None:
        if queue is own:  # the page of another test may have a visitor to forget too
            forgotten.append((of, left))

    monkeypatch.setattr(listening, "forget", forget)
    monkeypatch.setattr(listening, "LATER", 0.05)
    last = {"body": listening.LAST if ended else b""}

    async def served(_scope, end, send):
        await end.wait()
        await send(last)

    async def sent(_message):
        await asyncio.sleep(0)

    async def streams():
        ends = [asyncio.Event() for _ in range(3)]
        app = listening.Listening(served)
        first, second = (asyncio.create_task(app(scope, e, sent)) for e in ends[:2])
        for task, end in ((first, ends[0]), (second, ends[1])):
            await asyncio.sleep(0)
            assert forgotten == []
            end.set()
            await task
        assert forgotten == ([] if ended else [("a", True)])
        third = asyncio.create_task(app(scope, ends[2], sent))
        await asyncio.sleep(0.1)
        assert forgotten == ([] if ended else [("a", True)])
        ends[2].set()
        await third
        await asyncio.sleep(0.1)
        assert forgotten == ([("a", False)] if ended else 2 * [("a", True)])

    in_a_loop(streams())


@pytest.mark.parametrize("gone", [False, True])
def test_a_reply_comes_after_the_end_of_the_stream_is_read(monkeypatch, gone):
    monkeypatch.setattr(listening, "forget", lambda queue, of, left: None)
    known = {"of a": "a", "of b": "b"}
    events = {name: SimpleNamespace(session_hash=of) for name, of in known.items()}
    end = {"body": b'data: {"msg":"close_stream"}'}
    told = []

    async def served(_scope, message, send):
        await send(message)

    async def read(message):
        if message is end:
            await asyncio.sleep(0.05)  # of a slow network
            if gone:
                raise OSError
        told.append(message)

    async def visits():
        app = listening.Listening(served)
        scope = request("join", event_ids_to_events=events)
        stream = asyncio.create_task(app(request("data"), end, read))
        await asyncio.sleep(0)
        replies = [{"body": json.dumps({"event_id": name}).encode()} for name in known]
        replies.append({"body": b"no JSON"})
        await asyncio.gather(*(app(scope, reply, read) for reply in replies))
        with pytest.raises(OSError) if gone else contextlib.nullcontext():
            await stream
        first, *others = replies
        assert told == [*others, *([] if gone else [end]), first]
        assert not app._ending

    in_a_loop(visits())


def test_what_takes_too_long_is_ended_and_told(app, engine, monkeypatch):
    monkeypatch.setattr(patience, "LIMIT", 0.5)
    assert "longer than 0.5 seconds" in alone(app, "caption forever")["error"]
    until(lambda: not engine.live, "the answer to end")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("caption memory", faults.MEMORY),
        ("caption mistake", "failed on the server (KeyError)"),
    ],
)
def test_a_question_that_fails_is_told_why_and_harms_no_other(
    app, engine, prompt, told
):
    asked = ("caption en", prompt, "caption de")
    before, failed, after = (one.end() for one in [comes(app, p) for p in asked])
    assert told in failed["error"] and "secret" not in failed["error"]
    assert [text(before), text(after)] == [SENTENCE] * 2


def test_no_more_visitors_are_remembered_than_is_said(site, app, engine):
    for _ in range(SESSIONS + 3):
        alone(app, "caption nothing")
    assert len(site.demo.app.state_holder.session_data) <= SESSIONS


def test_files_that_were_sent_and_shown_go_when_they_are_old(site, app, tmp_path):
    app.sent.clear()
    old_files.delete_old(site.demo, -1)
    built_in = set(app.folder.rglob("*"))
    Image.new("RGB", (99, 66), "teal").save(tmp_path / "mine.png")
    app.ask(Question(tmp_path / "mine.png", "caption en")).answer()
    new = {path for path in app.folder.rglob("*") if path.is_file()} - built_in
    assert {path.suffix for path in new} == {".png", ".webp"}
    old_files.delete_old(site.demo, 60)
    assert all(path.is_file() for path in new)
    old_files.delete_old(site.demo, -1)
    assert set(app.folder.rglob("*")) == built_in, "folders too"
    app.sent.clear()
    assert alone(app, "caption en")["text"] == SENTENCE


def test_files_go_while_others_are_sent():
    names, stop = {f"/nowhere/{i}" for i in range(2000)}, threading.Event()
    demo = SimpleNamespace(blocks={}, temp_file_sets=[names])

    def send() -> None:
        while not stop.is_set():
            names.add(f"/nowhere/{time.perf_counter_ns()}")

    sender = threading.Thread(target=send)
    sender.start()
    try:
        old_files.delete_old(demo, 0)
    finally:
        stop.set()
        sender.join()


def test_the_page_tells_the_place_in_the_queue_and_escape_leaves_it(app, engine, page):
    scope, state = page.locator("#scope .scope"), page.locator("#scope .state")
    long = busy(app, engine)
    comes(app, "caption de")
    ask(page, "caption gone")
    words = "waiting: 1 question comes before yours"
    expect(state).to_have_text(words)
    expect(page.locator("#scope .say")).to_have_text(words)
    expect(scope).to_have_attribute("data-busy", "true")
    page.keyboard.press("Escape")
    expect(state).not_to_contain_text("waiting")
    expect(scope).not_to_have_attribute("data-busy", "true")
    long.leave.set()
    answered(page, "caption en")
    assert "caption gone" not in engine.prompts


def test_what_waits_is_not_answered_when_its_visitor_asks_anew(app, engine, page):
    long = busy(app, engine)
    comes(app, "caption de")
    words = "waiting: 1 question comes before yours"
    for number in range(4):
        ask(page, f"markup number{number}")
        expect(page.locator("#scope .state")).to_have_text(words)
        page.wait_for_timeout(400)  # a while: it is not told at once
    long.leave.set()
    chips = page.locator("#scope [data-phase=done] .tokens")
    expect(chips).to_contain_text("number3", timeout=PATIENT)
    assert [each for each in engine.prompts if "number" in each] == ["markup number3"]


def test_what_came_before_its_turn_was_over_is_never_begun(monkeypatch):
    turn, begun = turns.Turn(), []

    def news():
        begun.append("begun")
        yield from "abc"

    before = time.monotonic()
    turn.end()
    monkeypatch.setattr(turns, "came", lambda: before)
    assert [*turn.take(news())] == [] and not begun
    monkeypatch.undo()
    taken = turn.take(news())
    assert next(taken) == "a" and turn.held
    turn.end()
    assert [*taken] == [] and not turn.held
    assert [*turn.take(news())] == ["a", "b", "c"] and not turn.held


@pytest.mark.parametrize("name", ["_ended", "ended"])  # on Probe, on Compare
def test_what_runs_is_not_told_to_have_ended_by_a_stop_before_it(site, name):
    ended = next(each.fn for each in site.demo.fns.values() if each.name == name)
    turn = turns.Turn()
    running = turn.take(letter for letter in "ab")
    next(running)
    assert ended(turn) == gr.skip()
    turn.end()
    assert ended(turn) != gr.skip()


def test_the_page_tells_that_the_queue_is_full_and_goes_on(app, engine, page):
    long = busy(app, engine)
    for _ in range(QUEUE):
        comes(app, "caption en")
    ask(page, "caption gone")
    expect(page.get_by_text("currently busy").first).to_be_visible(timeout=PATIENT)
    long.leave.set()
    until(lambda: len(engine.prompts) > QUEUE, "the others to be asked")
    answered(page, "caption de")
    assert "caption gone" not in engine.prompts
